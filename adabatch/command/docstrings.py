"""What modules say of themselves, read from their source: nothing is imported.

So that a list of networks takes no second, and no JAX.
"""

import ast
import functools
import pathlib
import re

import adabatch

ROOT = pathlib.Path(adabatch.__file__).parent
# What TABLE.name is a row of: a module, and a table in it.
TABLES = {
  'controller': ('adabatch.controllers', 'CONTROLLERS'),
  'model': ('adabatch.models', 'MODELS'),
  'optimizer': ('adabatch.optim.optimizers', 'OPTIMIZERS'),
  'sync': ('adabatch.optim.sync', 'SYNC_RULES'),
  'task': ('adabatch.models.tasks', 'TASKS'),
}


@functools.cache
def _parse(path: pathlib.Path) -> tuple[ast.Module, list[str]]:
  source = path.read_text()
  return ast.parse(source), source.splitlines()


def file_of(module: str) -> pathlib.Path:
  """Of a module of this package.

  >>> file_of('adabatch.optim.sync').name
  'sync.py'
  """
  path = ROOT.joinpath(*module.split('.')[1:])
  return path / '__init__.py' if path.is_dir() else path.with_suffix('.py')


def first_line(path: pathlib.Path) -> str:
  """Of a module's docstring."""
  return _first_line(_parse(path)[0])


def rows(module: str, table: str) -> dict[str, str]:
  """What each row of a table of names is, in a line.

  It is the first line of the docstring of what stands in the row; of a lambda,
  the comment above.

  Args:
    module: that the table is in.
    table: its name.

  >>> rows('adabatch.controllers', 'CONTROLLERS')['padadamp']
  'Linear growth with the number of updates: the passive AdaDamp.'
  >>> rows('adabatch.optim.optimizers', 'OPTIMIZERS')['sgd']
  'stochastic gradient descent'
  """
  tree, lines = _parse(file_of(module))
  value = _assigned(tree, table)
  found = {}
  for key, what in zip(value.keys, value.values, strict=True):
    assert isinstance(key, ast.Constant)
    if isinstance(what, ast.Name):
      found[key.value] = _first_line(_definition(module, what.id)[1])
    else:
      found[key.value] = lines[key.lineno - 2].strip().removeprefix('# ')
  return found


def place(module: str, table: str, row: str) -> str:
  """The file that defines what stands in a row of a table of names.

  Raises:
    LookupError: if there is no such row.

  >>> place('adabatch.controllers', 'CONTROLLERS', 'padadamp')
  'adabatch/controllers/schedule.py'
  """
  value = _assigned(_parse(file_of(module))[0], table)
  for key, what in zip(value.keys, value.values, strict=True):
    if isinstance(key, ast.Constant) and key.value == row:
      assert isinstance(what, ast.Name)
      found = _definition(module, what.id)[0]
      return str(file_of(found).relative_to(ROOT.parent))
  raise LookupError(row)


def _assigned(tree: ast.Module, name: str) -> ast.Dict:
  for node in tree.body:
    targets = {
      target.id
      for target in getattr(node, 'targets', [getattr(node, 'target', None)])
      if isinstance(target, ast.Name)
    }
    if name in targets:
      value = getattr(node, 'value', None)
      assert isinstance(value, ast.Dict), name
      return value
  raise LookupError(name)


def _definition(
  module: str, name: str
) -> tuple[str, ast.FunctionDef | ast.ClassDef]:
  """Of a function or a class, wherever it was imported from, and its module."""
  for node in _parse(file_of(module))[0].body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
      return module, node
    if isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        if (alias.asname or alias.name) == name:
          return _definition(node.module, alias.name)
  raise LookupError(f'{module}.{name}')


def _first_line(
  node: ast.Module | ast.FunctionDef | ast.ClassDef,
) -> str:
  """The first paragraph of the docstring, as one line."""
  text = ast.get_docstring(node) or ''
  return re.sub(r'\s+', ' ', text.partition('\n\n')[0])
