"""The configs that come along, and which one a word means."""

import difflib
import pathlib

import adabatch
from adabatch.command.docstrings import first_line

# Of the directory of a run, its own config.
OF_RUN = pathlib.Path(__file__).with_name('config_of_run.py')


def directory() -> pathlib.Path:
  """Where they lie: in the package once it is installed, else beside it."""
  package = pathlib.Path(adabatch.__file__).parent
  inside = package / 'configs'
  return inside if inside.is_dir() else package.with_name('configs')


def files() -> dict[str, pathlib.Path]:
  """Name -> file, of each."""
  return {path.stem: path for path in sorted(directory().glob('*.py'))}


def describe() -> dict[str, str]:
  """Name -> what it is, in a line.

  >>> describe()['digits_mlp'].partition(' on')[0]
  'AdaDamp'
  """
  return {name: first_line(path) for name, path in files().items()}


def find(word: str) -> str:
  """What `--config` is to be: a file, with its variant if it has one.

  Args:
    word: NAME or NAME:VARIANT of those that come along, a file, likewise, or
      the directory of a run.

  Raises:
    ValueError: if there is none such, with the nearest.

  >>> find('resnet50_imagenet:8k').rpartition('/')[2]
  'resnet50_imagenet.py:8k'
  """
  if (pathlib.Path(word) / 'config.json').is_file():
    return f'{OF_RUN}:{word}'
  name, colon, variant = word.partition(':')
  path = pathlib.Path(name)
  if path.suffix == '.py':
    if not path.is_file():
      raise ValueError(f'there is no file {name}')
  elif name in files():
    path = files()[name]
  elif path.is_dir():
    raise ValueError(f'{name} is not the directory of a run: no config.json')
  else:
    near = difflib.get_close_matches(name, files(), 1)
    hint = f'did you mean {near[0]}?' if near else '`adabatch list` shows them'
    raise ValueError(
      f'no config {name!r}: {hint} Or a file, or the directory of a run'
    )
  return f'{path}{colon}{variant}'
