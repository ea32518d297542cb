"""What is installed beside the base, and how one says that it is not."""

import contextlib
from collections.abc import Iterator

from adabatch.config.errors import ConfigError

# Package, as it is imported -> the extra that brings it; see pyproject.toml.
EXTRAS = {
  'PIL': 'images',
  'absl': 'train',
  'array_record': 'tfds',
  'cv2': 'images',
  'flax': 'train',
  'google': 'train',
  'grain': 'images',
  'matplotlib': 'report',
  'ml_collections': 'train',
  'mlflow': 'mlflow',
  'optuna': 'search',
  'orbax': 'train',
  'pyarrow': 'tables',
  'safetensors': 'train',
  'sentencepiece': 'text',
  'simplejpeg': 'images',
  'sklearn': 'train',
  'sqlalchemy': 'search',
  'tensorboardX': 'train',
  'tensorflow_datasets': 'tfds',
  'tqdm': 'train',
  'wandb': 'wandb',
}


class NotInstalled(ConfigError):
  """A package that is needed for what was asked, and how to install it."""


def say_how(package: str) -> str:
  """How a package of an extra is installed.

  >>> say_how('optuna')
  "optuna is not installed: pip install 'adabatch[search]'"
  """
  extra = EXTRAS[package]
  return f"{package} is not installed: pip install 'adabatch[{extra}]'"


@contextlib.contextmanager
def needing() -> Iterator[None]:
  """Says how to install what could not be imported.

  Raises:
    NotInstalled: instead of ModuleNotFoundError, for a package of an extra.

  >>> with needing():
  ...   raise ModuleNotFoundError(name='sqlalchemy.exc')
  Traceback (most recent call last):
    ...
  adabatch.config.extras.NotInstalled: sqlalchemy is not installed: \
pip install 'adabatch[search]'
  """
  try:
    yield
  except ModuleNotFoundError as error:
    package = (error.name or '').partition('.')[0]
    if package not in EXTRAS:
      raise  # a fault of another kind
    raise NotInstalled(say_how(package)) from error
