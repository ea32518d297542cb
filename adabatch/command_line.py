"""What the command needs beside its flags: clear errors, a short summary."""

import contextlib
import pathlib
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from absl import flags

from adabatch import config, parallel
from adabatch.checkpoint import CheckpointError
from adabatch.config import ConfigError
from adabatch.data import DatasetError

DEFAULT_CONFIG = 'configs/digits_mlp.py'
# Exit statuses, which the help of launch.py and the README list.
ERROR, USAGE = 1, 2
EXIT_CODES = {'completed': 0, 'target_reached': 0, 'diverged': 3}


def exit_code(status: str, number: int | None = None) -> int:
  """The exit status that a summary's status stands for.

  Args:
    status: of a run, a search or a study.
    number: the signal that this process was stopped by; None: it was another
      process of the run that was asked to stop, so this one ends as if by
      SIGTERM.

  >>> exit_code('diverged'), exit_code('preempted', signal.SIGINT)
  (3, 130)
  """
  if status == 'preempted':
    return 128 + (number or signal.SIGTERM)
  return EXIT_CODES[status]


def fail(message: str, status: int = ERROR) -> NoReturn:
  """Ends the program with one line."""
  print(f'error: {message}', file=sys.stderr)
  sys.exit(status)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
  """Ends the program in one line where what was asked for cannot be done."""
  try:
    yield
  except (ConfigError, DatasetError, CheckpointError) as error:
    fail(str(error))
  except KeyboardInterrupt:  # before training began, or for the second time
    fail('interrupted before a checkpoint was written', 128 + signal.SIGINT)


def join(distributed: bool, *others: Any) -> None:
  """Joins the other processes, as the flags say; see `parallel.initialize`."""
  try:
    parallel.initialize(distributed, *others)
  except ValueError as error:
    fail(f'cannot join the other processes: {error}', USAGE)


def parse(argv: list[str]) -> list[str]:
  """Parses the flags; a wrong one ends the program with one line.

  For `absl.app.run(main, flags_parser=parse)`.
  """
  # Not the flag's own default: ml_collections would read that, with the
  # overrides, while the flag is being defined, where no error can be caught.
  if not any(re.match('--?config(=|$)', a) for a in argv[1:]):
    argv.insert(1, f'--config={DEFAULT_CONFIG}')
  # ml_collections raises a bare KeyError for these, with half of a hint.
  names = [argument.lstrip('-').partition('=')[0] for argument in argv[1:]]
  keys = [n.removeprefix('config.') for n in names if n.startswith('config.')]
  known, others = config.flatten(config.default()), []
  for key in keys:
    if config.is_of_another_model(key):
      others.append(key)  # which only the config file may know
    elif key not in known:
      fail(f'unknown config key {key!r}{config.nearest(key)}', USAGE)
  try:
    rest = flags.FLAGS(argv)
    flags.FLAGS.config.keys()  # a file that is not there is reported here
  except flags.Error as error:
    fail(_of_flags(str(error), argv), USAGE)
  except (KeyError, AttributeError):  # of a table, of a key in it
    if not others:
      raise
    hints = (f'{key!r}{config.nearest(key)}' for key in others)
    fail(f'the config file has no {" or no ".join(hints)}', USAGE)
  except OSError as error:
    reason = str(error).splitlines()[-1].strip()
    fail(f'cannot load the config file: {reason}', USAGE)
  if len(rest) > 1:
    fail(f'unexpected argument {rest[1]!r}: flags start with --', USAGE)
  return rest


def _of_flags(text: str, argv: list[str]) -> str:
  """What an error of the flags says, in one line.

  >>> text = 'get_config() takes 0 positional arguments but 1 was given'
  >>> _of_flags(text, ['launch.py', '--config=mine.py:x'])
  "mine.py has no variants, got ':x': leave that out"
  """
  # Of an error in a config's own code, what it says and not where it was.
  message = ' '.join(text.split()).rpartition('Error: ')[2]
  given = re.findall(r'--?config[= ](\S+)', ' '.join(argv))
  file, colon, variant = given[-1].partition(':') if given else ('', '', '')
  if re.match('get_config.. takes 0 positional arguments', message) and colon:
    return f'{file} has no variants, got {colon + variant!r}: leave that out'
  if re.match('get_config.. missing 1 required positional', message):
    return f'{file} has only variants: name one, as in {file}:NAME'
  return message


def run_name(config_file: str) -> str:
  """What a run is called: the config's name, and its variant if it has one.

  >>> run_name('configs/digits_mlp.py'), run_name('a/resnet50_imagenet.py:8k')
  ('digits_mlp', 'resnet50_imagenet_8k')
  """
  path, _, variant = config_file.partition(':')
  return '_'.join(filter(None, [pathlib.Path(path).stem, variant]))


def describe(summary: dict[str, Any]) -> str:
  """A run in two or three lines; a search or a study in a line for each size.

  >>> print(describe({'status': 'completed', 'updates': 9, 'examples': 1000,
  ...                 'epochs': 2.5, 'seconds': 1.25, 'final': {}}))
  completed: 9 updates, 1,000 examples, 2.5 epochs, 1.2 s of training
  """
  if 'job' in summary:
    return _describe_search(summary)
  lines = [
    f'{summary["status"]}: {summary["updates"]:,} updates, '
    f'{summary["examples"]:,} examples, {summary["epochs"]:.1f} epochs, '
    f'{summary["seconds"]:.1f} s of training'
  ]
  if 'message' in summary:
    lines.append(summary['message'])
  for split, metrics in summary['final'].items():
    values = ', '.join(f'{k} {v:.4f}' for k, v in metrics.items())
    lines.append(f'{split}: {values}')
  return '\n'.join(lines)


def _describe_search(summary: dict[str, Any]) -> str:
  trials = summary['trials']
  blind = ''
  if trials['unmeasured']:
    blind = f' ({trials["unmeasured"]:,} ended before their first evaluation)'
  lines = [
    f'{summary["status"]}: {trials["complete"]:,} trials{blind} and '
    f'{trials["infeasible"]:,} that diverged, {summary["seconds"]:.0f} s'
  ]
  best = summary.get('best')
  if best:
    steps = '' if best['steps'] is None else f', goal after {best["steps"]:,}'
    value = f'{summary["metric"]} {best["value"]:.4f}'
    lines.append(f'best: trial {best["trial"]}, {value}{steps}')
    lines += [f'  {key} {v:.4g}' for key, v in best['parameters'].items()]
  for workload in summary.get('workloads', []):
    lines += [_describe_row(workload['optimizer'], r) for r in workload['rows']]
    fit = workload['fit']
    if fit is not None:
      lines.append(
        f'{workload["optimizer"]}: least updates {fit["min_steps"]:,.0f}, '
        f'critical batch size {fit["critical_batch_size"]:,.0f}'
      )
    if workload['lack_of_fit'] is not None:
      lines.append(f'lack of fit: {workload["lack_of_fit"]}')
  return '\n'.join(lines)


def _describe_row(optimizer: str, row: dict[str, Any]) -> str:
  values = ', '.join(f'{k} {v:.4g}' for k, v in row['parameters'].items())
  steps = row['steps']
  result = f'more than {row["longest"]:,}' if steps is None else f'{steps:,}'
  edges = ''.join(
    f'; near the {side} end of {key}' for key, side in row['edges']
  )
  return (
    f'{optimizer} {row["batch_size"]:>6}: {result} updates  {values}{edges}'
  )
