"""What the README and the pages that it leads to show is true."""

import json
import pathlib
import re

import numpy as np
import pytest

from adabatch import controllers

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


def blocks(language, page='README.md'):
  text = (ROOT / page).read_text()
  return re.findall(rf'^```{language}\n(.*?)^```$', text, re.M | re.S)


def test_it_is_short():
  assert len(README.splitlines()) <= 100


def test_first_block_is_the_two_commands():
  train, test = blocks('sh')[0].splitlines()
  assert 'pip install' in train
  assert train.endswith('python launch.py --config=configs/digits_mlp.py')
  assert 'pip install' in test
  assert test.endswith('pytest')


def run(snippet, **names):
  exec(compile(snippet, 'README.md', 'exec'), names)
  return names


def loop_of(snippet):
  """A loop of a page, with a least-squares fit: its losses and batch sizes."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1024, 8))
  y = x @ np.arange(8.0)
  losses, sizes = [], []

  def step(state, x, y, damping):
    error = x @ state - y
    losses.append(np.mean(error**2))
    sizes.append(len(x))
    return state - 0.1 * damping * error @ x / len(x), losses[-1]

  names = run(snippet, x=x, y=y, state=np.zeros(8), step=step)
  return losses, sizes, names


def test_the_snippets_run(capsys):
  (short,) = blocks('python')
  _, sizes, names = loop_of(short)
  assert names['batch_size'].examples == sum(sizes) >= 1024
  assert sizes[-1] > 2 * sizes[0]
  (study,) = blocks('python', 'docs/study.md')
  run(study)
  fit, overhead, misses = capsys.readouterr().out.splitlines()
  steps, size, low, high = map(float, re.findall(r'[\d.]+', fit))
  assert 50 < steps < 130
  assert low < size < high
  assert float(overhead) < size
  assert 'no point' in misses
  (loop,) = blocks('python', 'docs/own_loop.md')
  losses, sizes, names = loop_of(loop)
  assert sizes[-1] > 4 * sizes[0]
  assert losses[-1] < 0.1 * losses[0]
  assert json.loads(json.dumps(names['saved']))['examples'] == sum(sizes)


def test_the_own_loop_is_short():
  (short,) = blocks('python')
  lines = short.partition('\n\n')[2].strip().splitlines()
  assert len(lines) <= 5


# What may stand in the loop's place for a rule, and what a rule misses there.
RULES = {
  'constant': '',
  'adadamp': '',
  'padadamp': 'rate=4.0',
  'geodamp': 'delay_epochs=0.5',
  'step_table': "table='0:8 100:32'",
  'ramp_up': 'final_batch_size=32, increment=8, examples=200',
  'from_lr_schedule': 'lambda examples: 1 / (1 + examples)',
}
MISSING = {
  "adadamp(loss_source='full', ": 'full_loss',
  'radadamp(window=5, ': 'gradient_norm_squared',
  'adadamp_grad(': 'gradient_noise',
  'noise_scale(': 'gradient_noise',
  'norm_test(': 'gradient_noise',
  'cabs(': 'learning_rate',
  'goodput(sizes=(8, 16), ': 'gradient_noise',
  'probe(': 'critical_batch_size',
}


def test_the_loop_feeds_every_rule_or_says_what_it_lacks():
  assert set(RULES) | {key.partition('(')[0] for key in MISSING} == set(
    controllers.CONTROLLERS
  )
  (loop,) = blocks('python', 'docs/own_loop.md')
  imports = 'from adabatch.controllers import *\n'

  def sizes(rule):
    arguments = f'{rule}initial_batch_size=8)'
    with_rule, count = re.subn(r'adadamp\(.*?\)', arguments, loop)
    assert count == 1
    return loop_of(imports + with_rule)[1]

  for name, arguments in RULES.items():
    got = sizes(f'{name}({arguments}{arguments and ", "}')
    assert (len(set(got)) > 1) == (name != 'constant'), name
  for rule, signal in MISSING.items():
    with pytest.raises(controllers.MissingSignal, match=signal):
      sizes(rule)


def test_linked_files_exist():
  links = re.findall(r'\]\((?!http)([^)#]+)\)', README)
  assert links
  for link in links:
    assert (ROOT / link).exists(), link


def test_the_architecture_names_every_folder():
  page = (ROOT / 'docs' / 'architecture.md').read_text()
  for path in (ROOT / 'adabatch').glob('*/__init__.py'):
    assert f'`{path.parent.name}/`' in page, path.parent.name
