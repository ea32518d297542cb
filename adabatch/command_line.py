"""What the command needs beside its flags: clear errors, a short summary."""

import re
import sys
from typing import Any

from absl import flags

from adabatch import config

DEFAULT_CONFIG = 'configs/digits_mlp.py'


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
    sys.exit(f'error: {" ".join(str(error).split())}')
  except OSError as error:
    reason = str(error).splitlines()[-1].strip()
    sys.exit(f'error: cannot load the config file: {reason}')
  return rest


def describe(summary: dict[str, Any]) -> str:
  """A run in two or three lines.

  >>> print(describe({'status': 'completed', 'updates': 9, 'examples': 1000,
  ...                 'epochs': 2.5, 'seconds': 1.25, 'final': {}}))
  completed: 9 updates, 1,000 examples, 2.5 epochs, 1.2 s of training
  """
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
