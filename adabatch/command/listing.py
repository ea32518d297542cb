"""What there is, a line each: `adabatch list`."""

import textwrap
from collections.abc import Callable

from adabatch.command import configs, docstrings


def _data() -> dict[str, str]:
  """What `data.name` may begin with."""
  return {
    'digits': "scikit-learn's handwritten digits, which come along.",
    'NAME': 'An image or text set that TensorFlow Datasets prepared.',
    'folder:PATH': 'Images in folders, one for each class.',
    'npz:PATH': 'Arrays x and y, or x_train, y_train, x_test, y_test.',
    'csv:PATH': 'Columns of numbers, and names or numbers as labels.',
    'parquet:PATH': 'Columns of numbers, or encoded images.',
  }


def _sync() -> dict[str, str]:
  one = {'synchronous': 'One model: gradients are averaged at each update.'}
  return one | docstrings.rows(*docstrings.TABLES['sync'])


LISTS: dict[str, Callable[[], dict[str, str]]] = {
  'configs': configs.describe,
  'rules': lambda: docstrings.rows(*docstrings.TABLES['controller']),
  'models': lambda: docstrings.rows(*docstrings.TABLES['model']),
  'optimizers': lambda: docstrings.rows(*docstrings.TABLES['optimizer']),
  'sync': _sync,
  'tasks': lambda: docstrings.rows(*docstrings.TABLES['task']),
  'data': _data,
}
# The key that each is a value of.
KEYS = {
  'configs': 'adabatch train CONFIG',
  'rules': 'controller.name',
  'models': 'model.name',
  'optimizers': 'optimizer.name',
  'sync': 'sync.name',
  'tasks': 'task.name',
  'data': 'data.name',
}


def describe(what: str | None) -> str:
  """The rows of one list, or of all, under their headings.

  >>> print(describe('tasks').splitlines()[0])
  tasks (task.name)
  """
  return '\n\n'.join(_describe(name) for name in ([what] if what else LISTS))


def _describe(name: str) -> str:
  rows = LISTS[name]()
  width = max(map(len, rows)) + 2
  lines = [
    textwrap.shorten(f'{words}', max(40, 110 - width), placeholder=' ...')
    for words in rows.values()
  ]
  return '\n'.join(
    [
      f'{name} ({KEYS[name]})',
      *(
        f'  {key:<{width}}{line}' for key, line in zip(rows, lines, strict=True)
      ),
    ]
  )
