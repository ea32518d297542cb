"""Training with the batch size that the optimisation needs now."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from adabatch.controllers.batch_size import BatchSize
  from adabatch.train.load import load
  from adabatch.train.register import register

__version__ = '0.1.0'

# Fetched when they are asked for: a batch-size rule needs no JAX.
_WHERE = {
  'BatchSize': 'adabatch.controllers.batch_size',
  'load': 'adabatch.train.load',
  'register': 'adabatch.train.register',
}

__all__ = ['BatchSize', '__version__', 'load', 'register']


def __getattr__(name: str) -> Any:
  if name not in _WHERE:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  import importlib

  return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
