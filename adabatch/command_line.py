"""What the command needs beside its flags: clear errors, a short summary."""

import pathlib
import re
import sys
from typing import Any

from absl import flags

from adabatch import config

DEFAULT_CONFIG = 'configs/digits_mlp.py'
EXIT_CODES = {
  'completed': 0,
  'target_reached': 0,
  'diverged': 1,
  'preempted': 130,
}


def parse(argv: list[str]) -> list[str]:
  """Parses the flags; a wrong one ends the program with one line.

  For `absl.app.run(main, flags_parser=parse)`.
  """
  # Not the flag's own default: ml_collections would read that, with the
  # overrides, while the flag is being defined, where no error can be caught.
  if not any(re.match('--?config(=|$)', a) for a in argv[1:]):
    argv.insert(1, f'--config={DEFAULT_CONFIG}')
  # ml_collections raises a bare KeyError for these, with half of a hint.
  known = config.flatten(config.default())
  for argument in argv[1:]:
    name = argument.lstrip('-').partition('=')[0]
    key = name.removeprefix('config.')
    if argument.startswith('--config.') and key not in known:
      sys.exit(f'error: unknown config key {key!r}{config.nearest(key)}')
  try:
    rest = flags.FLAGS(argv)
    flags.FLAGS.config.keys()  # a file that is not there is reported here
  except flags.Error as error:
    # Of an error in a config's own code, what it says and not where it was.
    message = ' '.join(str(error).split()).rpartition('Error: ')[2]
    sys.exit(f'error: {message}')
  except OSError as error:
    reason = str(error).splitlines()[-1].strip()
    sys.exit(f'error: cannot load the config file: {reason}')
  return rest


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
