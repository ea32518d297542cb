"""The commands that the README and the pages show are run as they stand.

Not by the README's own test command, because it takes minutes:

    python -m pytest -m commands
"""

import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib

import numpy as np
import pytest
from PIL import Image

from tests import commands, tfds_sets

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ['README.md', *(f'docs/{p.name}' for p in (ROOT / 'docs').glob('*.md'))]
# What a block of commands would need that is not here; it says why.
ELSEWHERE = {
  'sbatch ': 'a cluster: tests/test_recipes.py has its script',
  'pip install': 'the gate installs the README by its own lines',
  'cuda:': 'the compiler of GPUs, a package of 2 GB',
  '--distributed --set': 'a scheduler that starts each process',
  'launch.py --distributed': 'the same',
}
# Commands that are skipped where there is no such package.
NEEDS = {'plan.topology=v5e': 'libtpu', 'plan.topology=v6e': 'libtpu'}
# Commands that would take minutes on this small data, by how they begin; and
# what is set besides. The batch sizes are as they were asked for.
SHORTER = {
  'study study_digits_mlp': 'search.trials=1 study.batch_sizes=(64,128)',
  'search mine.py': 'search.trials=3',
  'train resnet20_cifar10': 'epochs=2',
  'plan resnet20_cifar10 --set controller.name=geodamp': 'smoke=True',
  'plan resnet50_imagenet_adadamp --set plan.topology': 'smoke=True',
  'train transformer_lm1b': 'data.vocab_size=270 data.sequence_length=16'
  ' model.transformer.num_layers=1 model.transformer.model_dim=16'
  ' model.transformer.num_heads=2 model.transformer.hidden_dim=16 epochs=2',
  'train digits_mlp --set epochs=400': 'epochs=20',
  'probe runs/lm': 'probe.factors=(0.5,1,2)',
}


def blocks(page):
  """The fenced blocks of a page: (language, text)."""
  text = (ROOT / page).read_text()
  return re.findall(r'^```(\w*)[^\n]*\n(.*?)^```$', text, re.M | re.S)


def elsewhere(line):
  for what, package in NEEDS.items():
    if what in line and importlib.util.find_spec(package) is None:
      return f'no {package}'
  return next((why for what, why in ELSEWHERE.items() if what in line), None)


def lines(block):
  """The commands of a block, each with the lines that it goes on in."""
  joined = re.sub(r'\\\n\s*', '', block)
  return re.findall(
    r'^(?:until .*?^done|(?:.+? &\n)*.+?)$', joined, re.M | re.S
  )


def parts(page):
  """What can be run by itself: a page; of the recipes each."""
  if page != 'docs/recipes.md':
    return [page]
  titles = re.findall(r'^## (.*)$', (ROOT / page).read_text(), re.M)
  return [f'{page}#{title}' for title in titles]


def script(part):
  page, _, title = part.partition('#')
  text = (ROOT / page).read_text()
  if title:
    text = text.partition(f'\n## {title}\n')[2].partition('\n## ')[0]
  found = re.findall(r'^```sh\n(.*?)^```$', text, re.M | re.S)
  return [line for block in found for line in lines(block)]


RUNNABLE = [
  part
  for page in sorted(PAGES)
  for part in parts(page)
  if any(not elsewhere(line) for line in script(part))
]


def test_all_commands_are_where_they_are_found():
  assert len(RUNNABLE) > 10
  for page in PAGES:
    text = (ROOT / page).read_text()
    assert not re.search(
      r'^ {4}([A-Z_]+=\S+ )?(adabatch|python|pip) ', text, re.M
    ), page
    for language, block in blocks(page):
      if not re.search(r'^(adabatch|python|pip) ', block, re.M):
        continue
      if language == 'bash':  # that of a cluster
        assert re.search('sbatch|kubectl|gcloud|--distributed', block), page
      elif language == 'text':  # the form of a command
        assert re.search('[A-Z]{4}', block), page
      else:
        assert language in ('sh', 'python'), page


def test_extras_that_are_named_exist():
  extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project'][
    'optional-dependencies'
  ]
  for page in PAGES:
    text = (ROOT / page).read_text()
    named = re.findall(r"pip install (?:-e )?'(?:adabatch|\.)\[(.*?)\]'", text)
    for extra in ','.join(named).split(','):
      assert extra in {'', 'EXTRA', *extras}, (page, extra)


def test_modules_and_scripts_that_are_named_exist():
  named = set()
  for page in PAGES:
    text = (ROOT / page).read_text()
    named |= set(re.findall(r'`python (?:-m ([\w.]+)|([\w/]+\.py))', text))
  assert len(named) > 10
  for module, path in named:
    if module:
      assert importlib.util.find_spec(module), module
    else:
      assert (ROOT / path).is_file(), path


@pytest.fixture(scope='module')
def material(tmp_path_factory):
  """Small sets under the names that the pages use, and programs on the path."""
  root = tmp_path_factory.mktemp('material')
  rng = np.random.default_rng(0)
  sets = {'fashion_mnist': (28, 28, 1), 'cifar10': (32, 32, 3)}
  for name, shape in sets.items():
    for split, count in (('train', 160), ('test', 20)):
      labels = np.arange(count) % 10
      images = (
        rng.integers(0, 99, (count, *shape)) + 15 * labels[:, None, None, None]
      )
      images = images.astype(np.uint8)
      tfds_sets.write_tfds(
        root / 'DIR', images, labels, shape, name, split, classes=10
      )
  for split, count in (('train', 600), ('test', 60)):
    text = [' '.join(map(str, row)) for row in rng.integers(0, 999, (count, 9))]
    text = [row.encode() for row in text]
    tfds_sets.write_set(root / 'DIR', text, 'lm1b', split=split)
  for name in ('cats', 'dogs'):
    (root / 'PATH' / name).mkdir(parents=True)
    for i in range(30):
      pixels = rng.integers(0, 255, (28, 28), np.uint8)
      Image.fromarray(pixels).save(root / 'PATH' / name / f'{i}.png')
  shutil.copy(ROOT / 'configs' / 'digits_mlp.py', root / 'mine.py')
  for path in ROOT.iterdir():
    if path.name not in ('runs', *(p.name for p in root.iterdir())):
      (root / path.name).symlink_to(path)
  return root


PROGRAM = """#!{python}
import os, sys
arguments = sys.argv[1:]
if sys.argv[0].endswith('adabatch'):
  arguments = ['-m', 'adabatch', *arguments, *os.environ['SHORTER'].split()]
if '--process_id=0' in arguments and os.environ['OTHERS']:
  at = arguments.index('--process_id=0')
  (count,) = (
    int(a.partition('=')[2]) for a in arguments if '--num_processes' in a
  )
  for other in range(1, count):
    if not os.fork():
      arguments[at] = f'--process_id={{other}}'
      break
os.execv('{python}', ['{python}', *arguments])
"""


def shorter(line):
  """What is set besides, as words of a command line."""
  for begin, keys in SHORTER.items():
    if f'adabatch {begin}' in line:
      return [f'--set={key}' for key in keys.split()]
  return []


def execute(line, place, environment):
  """A line that a shell would only split is run without the imports."""
  words = shlex.split(line, comments=True)
  if words[0] == 'adabatch' and not re.search('[&|;\n]|--process_id', line):
    command = [ROOT / 'adabatch' / '__main__.py', *words[1:], *shorter(line)]
    return commands.run(command, environment, cwd=place)
  return subprocess.run(
    ['bash', '-c', f'set -euo pipefail\n{line}'],
    cwd=place,
    env=environment,
    capture_output=True,
    text=True,
  )


@pytest.fixture
def place(material, tmp_path):
  for path in material.iterdir():
    (tmp_path / path.name).symlink_to(path)
  programs = tmp_path / 'programs-of-the-test'
  programs.mkdir()
  for name in ('adabatch', 'python'):
    (programs / name).write_text(PROGRAM.format(python=sys.executable))
    (programs / name).chmod(0o755)
  return tmp_path


def free_port():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


@pytest.mark.commands
@pytest.mark.parametrize('part', RUNNABLE)
def test_commands_run(part, place):
  environment = os.environ | {
    'PATH': f'{place}/programs-of-the-test:{os.environ["PATH"]}',
    'PYTHONPATH': str(ROOT),
    'TFDS_DATA_DIR': str(place / 'DIR'),
    'XLA_FLAGS': commands.QUICKLY,
    # With the TPU's compiler there, JAX would look for a TPU, and may wait.
    'JAX_PLATFORMS': 'cpu',
    'WANDB_MODE': 'offline',
  }
  for line in script(part):
    if elsewhere(line):
      continue
    here = re.sub(
      'HOST:PORT|localhost:[0-9]+', f'localhost:{free_port()}', line
    )
    here = here.replace(' /shared/', ' shared/')
    begun = time.monotonic()
    done = execute(
      here,
      place,
      environment
      | {
        'OTHERS': '' if '--process_id=1' in line else 'yes',
        'SHORTER': ' '.join(shorter(line)),
      },
    )
    said = f'{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}'
    print(f'{time.monotonic() - begun:.1f} s: {line}')
    assert done.returncode == 0, said
    assert 'Traceback' not in done.stderr, said


def test_what_is_shortened_is_shown():
  shown = [
    line for page in PAGES for part in parts(page) for line in script(part)
  ]
  for begin in SHORTER:
    assert any(f'adabatch {begin}' in line for line in shown), begin
  for what in ELSEWHERE:
    assert any(
      what in line for p in PAGES for _, b in blocks(p) for line in lines(b)
    ), what
