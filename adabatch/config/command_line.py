"""The command line: flags, clear errors, exit statuses."""

import ast
import contextlib
import pathlib
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from absl import flags

from adabatch import config

DEFAULT_CONFIG = 'configs/digits_mlp.py'
# Exit statuses, which the help of launch.py and docs/run_files.md list.
ERROR, USAGE = 1, 2
# Tables that only some jobs read.
READ_BY = {
  'plan': ('plan',),
  'probe': ('probe',),
  'search': ('search', 'study'),
  'study': ('study',),
}
EXIT_CODES = {'completed': 0, 'target_reached': 0, 'diverged': 3, 'grow': 76}


def exit_code(status: str, number: int | None = None) -> int:
  """The exit status that a summary's status stands for.

  Args:
    status: of a run, a search or a study.
    number: the signal that this process was stopped by; None: it was another
      process of the run that was asked to stop, so this one ends as if by
      SIGTERM.

  >>> exit_code('diverged'), exit_code('preempted', signal.SIGINT)
  (3, 130)
  >>> exit_code('grow'), exit_code('grow', signal.SIGINT)
  (76, 130)
  """
  # Who stops a run does not want it started again with more.
  if status == 'preempted' or (status == 'grow' and number is not None):
    return 128 + (number or signal.SIGTERM)
  return EXIT_CODES[status]


def fail(message: str, status: int = ERROR) -> NoReturn:
  """Ends the program with one line."""
  say(f'error: {message}')
  sys.exit(status)


def say(message: str) -> None:
  """A line on standard error; where that is lost, or its disk full, nothing."""
  with contextlib.suppress(OSError):
    print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def refusing(
  *errors: type[Exception], status: int = ERROR, prefix: str = ''
) -> Iterator[None]:
  """Ends the program in one line where what was asked for cannot be done.

  Args:
    errors: that say so.
    status: to end with.
    prefix: of the line.
  """
  try:
    yield
  except errors as error:
    fail(f'{prefix}{error}', status)
  except KeyboardInterrupt:  # before training began, or for the second time
    fail('interrupted before a checkpoint was written', 128 + signal.SIGINT)


def parse(argv: list[str]) -> list[str]:
  """Parses the flags; a wrong one ends the program with one line.

  For `absl.app.run(main, flags_parser=parse)`.
  """
  # Not the flag's own default: ml_collections would read that, with the
  # overrides, while the flag is being defined, where no error can be caught.
  if not any(re.match('--?config(=|$)', a) for a in argv[1:]):
    argv.insert(1, f'--config={DEFAULT_CONFIG}')
  _keep_the_last(argv)
  _quote_counts(argv)
  arguments = _take_arguments(argv) | _take_nones(argv)
  # ml_collections raises a bare KeyError for these, with half of a hint.
  names = [argument.lstrip('-').partition('=')[0] for argument in argv[1:]]
  keys = [n.removeprefix('config.') for n in names if n.startswith('config.')]
  known, others = config.flatten(config.default()), []
  for key in keys:
    if config.is_of_another(key):
      others.append(key)  # which only the config file may know
    elif key not in known:
      fail(f'unknown config key {key!r}{config.nearest(key)}', USAGE)
  try:
    rest = flags.FLAGS(argv)
    flags.FLAGS.config.keys()  # a file that is not there is reported here
    with flags.FLAGS.config.unlocked(), flags.FLAGS.config.ignore_type():
      flags.FLAGS.config.update_from_flattened_dict(arguments)
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
  _refuse_unread([*keys, *arguments], flags.FLAGS.job)
  if len(rest) > 1:
    fail(f'unexpected argument {rest[1]!r}: flags start with --', USAGE)
  return rest


def _keep_the_last(argv: list[str]) -> None:
  """Takes out --config.KEY=VALUE where KEY comes again: the last one counts.

  Of two tuples ml_collections would make a longer one.

  Args:
    argv: all arguments; where it is `sys.argv` the flags do not see others.

  >>> argv = ['launch.py', '--config.seed=1', '--job=train', '--config.seed=2']
  >>> _keep_the_last(argv)
  >>> argv
  ['launch.py', '--job=train', '--config.seed=2']
  """
  names = [argument.lstrip('-').partition('=')[0] for argument in argv]
  for i in reversed(range(1, len(argv))):
    if names[i].startswith('config.') and names[i] in names[i + 1 :]:
      if '=' not in argv[i]:
        fail(f'{names[i]} is given twice: write --{names[i]}=VALUE once', USAGE)
      del argv[i], names[i]


def _refuse_unread(keys: Iterable[str], job: str) -> None:
  """Refuses what was set for another job than the one that is asked for.

  A config file may hold keys of all jobs: it serves them all.
  """
  for key in keys:
    jobs = READ_BY.get(key.partition('.')[0])
    if jobs is not None and job not in jobs:
      of = ' and '.join(f'--job={name}' for name in jobs)
      fail(
        f'{key} has no effect on --job={job}: only {of} reads it; leave it out '
        'or choose another job',
        USAGE,
      )


def _quote_counts(argv: list[str]) -> None:
  """Quotes counts with a suffix, and 'auto', which are texts to a config.

  Args:
    argv: all arguments; where it is `sys.argv` the flags do not see others.

  >>> argv = ['launch.py', '--config.max_tokens=2.5B', '--job=train']
  >>> _quote_counts(argv)
  >>> argv
  ['launch.py', "--config.max_tokens='2.5B'", '--job=train']
  """
  for i, argument in enumerate(argv):
    name, equals, value = argument.partition('=')
    key = name.lstrip('-').removeprefix('config.')
    if key in config.AUTOMATIC and value == 'auto':
      argv[i] = f"{name}='auto'"
    if equals and key in config.COUNTED:
      quoted = re.sub(
        r'(?<![\w.\'"])([\d._]+[A-Za-z])(?![\w\'"])', r"'\1'", value
      )
      argv[i] = f'{name}={quoted}'


def _take_arguments(argv: list[str]) -> dict[str, Any]:
  """Takes out --config.optimizer.args.KEY=VALUE, which may be any keys.

  Args:
    argv: all arguments; where it is `sys.argv` the flags do not see them, too.

  >>> argv = ['launch.py', '--config.optimizer.args.b1=0.9', '--job=train']
  >>> _take_arguments(argv), argv
  ({'optimizer.args.b1': 0.9}, ['launch.py', '--job=train'])
  """
  found = {}
  for argument in list(argv[1:]):
    name, equals, value = argument.lstrip('-').partition('=')
    key = name.removeprefix('config.')
    if key == name or not key.startswith(config.ARGUMENTS):
      continue
    if not equals:
      fail(f'{argument} has no value: write {argument}=VALUE', USAGE)
    try:
      found[key] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      found[key] = value
    argv.remove(argument)
  return found


def _take_nones(argv: list[str]) -> dict[str, None]:
  """Takes out --config.KEY=None of keys that may be None, which flags cannot.

  Args:
    argv: all arguments; where it is `sys.argv` the flags do not see them, too.

  >>> argv = ['launch.py', '--config.target.value=None', '--config.seed=1']
  >>> _take_nones(argv), argv
  ({'target.value': None}, ['launch.py', '--config.seed=1'])
  """
  optional = {
    key
    for key, value in config.flatten(config.default()).items()
    if value is None
  }
  found = {}
  for argument in list(argv[1:]):
    name, _, value = argument.lstrip('-').partition('=')
    key = name.removeprefix('config.')
    if key != name and key in optional and value == 'None':
      found[key] = None
      argv.remove(argument)
  return found


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
