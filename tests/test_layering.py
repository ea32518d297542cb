"""The floors of the house: imports point only downward.

This is the architecture's own document. A new module needs a line in FLOORS
and a new dependency one in PACKAGES, or the tests below fail.
"""

import ast
import gc
import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Modules and packages of adabatch; a package stands for all its modules.
FLOORS = {
  # Pure ideas, which other JAX projects reuse as they are.
  'controllers': 0,  # how large the next batch should be
  'optim': 0,  # what that does to the learning rate
  'gradient_noise': 0,  # how noisy a gradient is
  'buckets': 0,  # how the hardware runs that many examples
  'extras': 0,  # what to say where a package is missing
  # What is trained on what.
  'models': 1,
  'tasks': 1,
  'data': 1,
  # One update on the devices.
  'contract': 2,
  'train_state': 2,
  'steps': 2,
  'evaluation_steps': 2,
  'parallel': 2,
  'sync': 2,
  'step_cache': 2,
  'feeds': 2,
  'updates': 2,
  # The loop, and what it keeps.
  'config': 3,
  'smoke': 3,
  'inputs': 3,
  'ranges': 3,
  'run_end': 3,
  'optimization': 3,
  'experiment': 3,
  'assembly': 3,
  'evaluate': 3,
  'checkpoint': 3,
  'metrics': 3,
  'clock': 3,
  'console': 3,
  'decisions': 3,
  'agreement': 3,
  'learner_tuning': 3,
  'programs': 3,
  'skipped': 3,
  'in_flight': 3,
  'stop': 3,
  'workdir': 3,
  'train': 3,
  # Many trainings, and what they say together.
  'search': 4,
  'study': 4,
  # What a person uses.
  'report': 4,
  'command_line': 4,
}

# The lowest floor that may import a package of somebody else.
PACKAGES = {
  'numpy': 0,
  'jax': 0,
  'optax': 0,
  'flax': 1,
  'absl': 1,  # grain's flags
  'grain': 1,
  'tensorflow_datasets': 1,
  'sklearn': 1,
  'sentencepiece': 1,
  'PIL': 1,
  'array_record': 1,
  'cv2': 1,
  'simplejpeg': 1,
  'google': 1,  # protocol buffers
  'ml_collections': 3,
  'orbax': 3,
  'tensorboardX': 3,
  'tqdm': 1,
  'matplotlib': 4,
  'optuna': 4,
  'scipy': 4,
  'sqlalchemy': 4,  # optuna's
}

# Floor 0 promises less than its floor allows.
ONLY = {
  'extras': set(),
  'controllers': {'numpy'},
  'buckets': {'numpy'},
  'gradient_noise': {'numpy', 'jax', 'optax'},
  'optim': {'numpy', 'jax', 'optax'},
}


def part_of(module):
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
        # `from adabatch import steps` imports a module, not a name in one.
        full = f'{base}.{alias.name}'
        found.add(full if full in modules else base)
  return found


def violations(root=ROOT):
  """One line for each import that the floors forbid."""
  modules = sources(root)
  wrong = []
  for name, path in modules.items():
    if name == 'adabatch':
      continue
    part = part_of(name)
    for other in sorted(imports(name, path, modules)):
      package = other.split('.')[0]
      if package in sys.stdlib_module_names or other == 'adabatch':
        continue
      if package == 'adabatch':
        floor = FLOORS[part_of(other)]
      else:
        floor = PACKAGES.get(package, math.inf)
        if part in ONLY and package not in ONLY[part]:
          wrong.append(f'{name} imports {other}')
          continue
      if floor > FLOORS[part]:
        wrong.append(f'{name} imports {other}')
  return wrong


def test_every_module_has_a_floor():
  parts = {part_of(name) for name in sources() if name != 'adabatch'}
  assert parts == set(FLOORS)


def test_every_package_has_a_floor():
  modules = sources()
  used = {
    other.split('.')[0]
    for name, path in modules.items()
    for other in imports(name, path, modules)
  }
  assert used - sys.stdlib_module_names - {'adabatch'} == set(PACKAGES)


def test_imports_point_only_downward():
  assert violations() == []


def test_the_package_itself_imports_nothing():
  """So that importing a controller brings along nothing else."""
  modules = sources()
  assert imports('adabatch', modules['adabatch'], modules) == set()


@pytest.mark.parametrize(
  ('module', 'line', 'forbidden'),
  [
    ('buckets', 'import jax', 'jax'),
    ('buckets', 'from adabatch import steps', 'adabatch.steps'),
    ('buckets', 'from . import steps', 'adabatch.steps'),
    ('optim', 'from ..steps import train_step', 'adabatch.steps'),
    ('optim', 'def f():\n  from flax import linen', 'flax'),
    ('steps', 'import adabatch.train', 'adabatch.train'),
    ('steps', 'from adabatch.train import train', 'adabatch.train'),
    ('steps', 'import orbax.checkpoint as ocp', 'orbax.checkpoint'),
    ('train', 'from adabatch import report', 'adabatch.report'),
    ('buckets', 'import math\nimport numpy as np', None),
    ('train', 'from adabatch import steps, buckets', None),
  ],
)
def test_the_walk_sees_forbidden_imports(tmp_path, module, line, forbidden):
  house = tmp_path / 'adabatch'
  (house / 'optim').mkdir(parents=True)
  for name in ('__init__', 'optim/__init__', 'buckets', 'steps', 'train',
               'report'):  # fmt: skip
    (house / f'{name}.py').touch()
  file = 'optim/__init__' if module == 'optim' else module
  (house / f'{file}.py').write_text(line)
  expected = [f'adabatch.{module} imports {forbidden}'] if forbidden else []
  assert violations(tmp_path) == expected


@pytest.mark.parametrize(
  ('modules', 'installed'),
  [
    (('controllers', 'buckets'), ()),
    (('optim', 'gradient_noise'), ('jax', 'optax')),
  ],
)
def test_floor_0_runs_with_nothing_else_installed(modules, installed):
  """In an interpreter where no other package of PACKAGES can be imported.

  Optax itself imports absl, so that is blocked after optax was imported.
  """
  blocked = sorted(set(PACKAGES) - set(installed) - {'numpy', 'absl'})
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
      [f'import adabatch.{module}' for module in modules],
    )
  )
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
