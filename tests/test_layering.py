"""The order of the house: imports point only downward, and in no circle.

This is the architecture's own document. A folder imports from those above it
in ORDER alone; files of one folder form no cycle; and a folder imports the
packages of others that stand beside it. A new dependency needs a word there, or
the tests below fail.
"""

import ast
import gc
import graphlib
import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.way_of_a_batch_size import count, usual_ways

ROOT = Path(__file__).parents[1]

# Folder -> the packages of somebody else that it may import.
ORDER = {
  # Every key of a config.
  'config': {'absl', 'ml_collections'},
  # How large the next batch should be. The two others for callbacks of theirs,
  # where somebody asks for one: the test of what is installed does without.
  'controllers': {'lightning', 'numpy', 'transformers'},
  # What that does to gradients, rates and replicas.
  'optim': {'jax', 'numpy', 'optax'},
  # What is trained on what.
  'models': {'flax', 'jax', 'numpy', 'optax'},
  'data': {
    'PIL',
    'absl',  # grain's flags
    'array_record',
    'cv2',
    'google',  # protocol buffers
    'grain',
    'jax',
    'numpy',
    'pyarrow',
    'sentencepiece',
    'simplejpeg',
    'sklearn',
    'tensorflow_datasets',
    'tqdm',
  },
  # One update on all devices.
  'devices': {'flax', 'jax', 'numpy', 'optax'},
  # Trials, and what they say.
  'study': {'numpy', 'scipy'},
  # What a person looks at.
  'report': {'matplotlib', 'numpy'},
  # The loop, and what it keeps.
  'train': {
    'flax',
    'jax',
    'mlflow',
    'numpy',
    'orbax',
    'safetensors',
    'tensorboardX',
    'tqdm',
    'wandb',
  },
  # What a run will be.
  'plan': {'jax', 'numpy', 'optax', 'tqdm'},
  # Many trainings.
  'search': {'jax', 'ml_collections', 'numpy', 'optuna', 'sqlalchemy', 'tqdm'},
  # What a user types.
  'command': {'absl', 'argcomplete', 'ml_collections'},
}
# In no folder: the package, and `python -m adabatch`.
LOOSE = {'adabatch', 'adabatch.__main__'}
HEIGHT = {folder: i for i, folder in enumerate(ORDER)}


def folder_of(module):
  """'optim' of 'adabatch.optim.adam'."""
  return module.split('.')[1]


def sources(root=ROOT):
  """Module name -> file, for every module of adabatch."""
  found = {}
  for path in sorted((root / 'adabatch').rglob('*.py')):
    name = '.'.join(path.relative_to(root).with_suffix('').parts)
    found[name.removesuffix('.__init__')] = path
  return found


def parse(path):
  # Python 3.11 fails if it collects garbage with code of its own meanwhile.
  gc.disable()
  try:
    return ast.parse(path.read_text(), str(path))
  finally:
    gc.enable()


def imports(name, path, modules):
  """The modules that a file imports, wherever in it, by their full names."""
  found = set()
  package = name if path.name == '__init__.py' else name.rpartition('.')[0]
  for node in ast.walk(parse(path)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ''
      if node.level:
        parents = package.split('.')
        above = parents[: len(parents) + 1 - node.level]
        base = '.'.join([*above, base] if base else above)
      for alias in node.names:
        # `from adabatch import data` imports a module, not a name in one.
        full = f'{base}.{alias.name}'
        found.add(full if full in modules else base)
  return found - {name}


def graph(root=ROOT):
  """Module -> the modules that it imports, adabatch's and others."""
  modules = sources(root)
  return {name: imports(name, path, modules) for name, path in modules.items()}


def violations(root=ROOT):
  """One line for each import that the order forbids."""
  wrong = []
  for name, others in graph(root).items():
    if name in LOOSE:
      continue
    folder = folder_of(name)
    for other in sorted(others):
      package = other.split('.')[0]
      if package in sys.stdlib_module_names or other == 'adabatch':
        continue
      if package == 'adabatch':
        fine = HEIGHT.get(folder_of(other), math.inf) <= HEIGHT[folder]
      else:
        fine = package in ORDER[folder]
      if not fine:
        wrong.append(f'{name} imports {other}')
  return wrong


def cycle(root=ROOT):
  """The modules of a circle of imports, the first again as the last; or []."""
  modules = graph(root)
  ours = {name: others & modules.keys() for name, others in modules.items()}
  try:
    graphlib.TopologicalSorter(ours).prepare()
  except graphlib.CycleError as error:
    return error.args[1]
  return []


def test_the_listing_is_the_order():
  """No module lies loose, and no folder is without its place."""
  entries = (ROOT / 'adabatch').iterdir()
  files = {'__init__.py', '__main__.py', 'py.typed', '__pycache__'}
  names = {entry.name for entry in entries} - files
  assert names == set(ORDER)


def test_every_package_is_used_where_it_may_be():
  used = {folder: set() for folder in ORDER}
  for name, others in graph().items():
    if name not in LOOSE:
      used[folder_of(name)] |= {other.split('.')[0] for other in others}
  for folder, packages in used.items():
    extra = packages - sys.stdlib_module_names - {'adabatch'}
    assert extra | {'numpy'} == ORDER[folder] | {'numpy'}, folder


def test_imports_point_only_downward():
  assert violations() == []


def test_no_imports_form_a_circle():
  assert cycle() == []


def test_the_package_itself_imports_nothing():
  """So that importing a controller brings along nothing else."""
  packages = sorted(set().union(*ORDER.values()))
  code = f"""
import sys
def loaded():
  names = [name for name in sys.modules if name.startswith('adabatch.')]
  return names + [name for name in {packages} if name in sys.modules]
import adabatch
assert not loaded(), loaded()
assert 'BatchSize' in dir(adabatch) and not loaded()
from adabatch import BatchSize
assert BatchSize is adabatch.BatchSize is adabatch.controllers.BatchSize
others = [n for n in loaded() if not n.startswith('adabatch.controllers')]
assert others == ['numpy'], others
try:
  adabatch.Batchsize
except AttributeError as error:
  assert 'Batchsize' in str(error)
else:
  raise AssertionError
"""
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


@pytest.fixture
def house(tmp_path):
  """A copy of the folders, with a file or two in each, all empty."""
  files = '__init__ config/__init__ config/keys config/errors devices/__init__ '
  files += 'devices/step devices/feeds optim/__init__ train/__init__ train/loop'
  for file in files.split():
    path = tmp_path / f'adabatch/{file}.py'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  return tmp_path


@pytest.mark.parametrize(
  ('module', 'line', 'forbidden'),
  [
    ('config.keys', 'import jax', 'jax'),
    ('config.keys', 'from adabatch import train', 'adabatch.train'),
    ('config.keys', 'from .. import train', 'adabatch.train'),
    ('optim', 'from ..devices.step import step', 'adabatch.devices.step'),
    ('optim', 'def f():\n  from flax import linen', 'flax'),
    ('devices.step', 'import adabatch.train', 'adabatch.train'),
    ('devices.step', 'from adabatch.train import train', 'adabatch.train'),
    ('devices.step', 'import orbax.checkpoint as ocp', 'orbax.checkpoint'),
    ('train.loop', 'from adabatch import report', None),
    ('train.loop', 'from adabatch import search', 'adabatch.search'),
    ('config.keys', 'import math\nimport ml_collections', None),
    ('train.loop', 'from adabatch import devices, optim', None),
  ],
)
def test_the_walk_sees_forbidden_imports(house, module, line, forbidden):
  for folder in ('report', 'search'):
    (house / 'adabatch' / folder).mkdir()
    (house / 'adabatch' / folder / '__init__.py').touch()
  path = sources(house)[f'adabatch.{module}']
  path.write_text(line)
  expected = [f'adabatch.{module} imports {forbidden}'] if forbidden else []
  assert violations(house) == expected


@pytest.mark.parametrize(
  'lines',
  [
    {
      'config.keys': 'from adabatch import train',
      'train': 'from adabatch.train.loop import train',
      'train.loop': 'from adabatch.config.keys import default',
    },
    {
      'devices.step': 'from adabatch.devices import feeds',
      'devices.feeds': 'def f():\n  from adabatch.devices.step import step',
    },
    {
      'config': 'from adabatch.config.keys import default',
      'config.keys': 'from adabatch.config import ConfigError',
    },
  ],
)
def test_the_walk_sees_circles(house, lines):
  assert cycle(house) == []
  for module, line in lines.items():
    sources(house)[f'adabatch.{module}'].write_text(line)
  assert set(cycle(house)) == {f'adabatch.{module}' for module in lines}


@pytest.mark.parametrize(
  ('folder', 'installed'),
  [
    ('controllers', ()),
    ('optim', ('jax', 'optax')),
    ('study', ('scipy',)),
  ],
)
def test_what_others_reuse_runs_with_little_installed(folder, installed):
  """In an interpreter where no other package of ORDER can be imported.

  Optax itself imports absl, so that is blocked after optax was imported.
  """
  packages = set().union(*ORDER.values())
  blocked = sorted(packages - set(installed) - {'numpy', 'absl'})
  modules = [m for m in sources() if m.startswith(f'adabatch.{folder}')]
  code = '\n'.join(
    itertools.chain(
      ['import sys'],
      [f'sys.modules[{package!r}] = None' for package in blocked],
      [f'import {package}' for package in installed],
      [
        'for name in [m for m in sys.modules if m.split(".")[0] == "absl"]:',
        '  del sys.modules[name]',
        'sys.modules["absl"] = None',
      ],
      [f'import {module}' for module in modules],
    )
  )
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


def test_the_way_of_a_batch_size_is_short():
  """Files that an update goes through, and changes from one to another."""
  ways = usual_ways(updates=50)
  for kind, files, changes in (
    ('ordinary update', 9, 18),
    ('deciding update', 13, 28),
  ):
    entered, changed = count(ways[kind])
    assert 5 < entered <= files
    assert 5 < changed <= changes
