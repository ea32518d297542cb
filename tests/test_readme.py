"""What the README shows is true."""

import pathlib
import re

import pytest

from adabatch import controllers

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


def blocks(language):
  return re.findall(rf'^```{language}\n(.*?)^```$', README, re.M | re.S)


def test_first_block_is_the_two_commands():
  train, test = blocks('sh')[0].splitlines()
  assert 'pip install' in train
  assert train.endswith('python launch.py --config=configs/digits_mlp.py')
  assert 'pip install' in test
  assert test.endswith('pytest')


def run(snippet):
  names = {}
  exec(compile(snippet, 'README.md', 'exec'), names)
  return names


def test_the_snippets_run(capsys):
  study, loop = blocks('python')
  run(study)
  fit, overhead, misses = capsys.readouterr().out.splitlines()
  steps, size, low, high = map(float, re.findall(r'[\d.]+', fit))
  assert 50 < steps < 130
  assert low < size < high
  assert float(overhead) < size
  assert 'no point' in misses
  names = run(loop)
  sizes = names['batch_sizes']
  assert sizes[-1] > 4 * sizes[0]
  assert names['loss'] < 0.1 * names['first_loss']


# What may stand in the loop's place for a rule, and what a rule misses there.
RULES = {
  'constant': '',
  'adadamp': '',
  'radadamp': 'window=5',
  'padadamp': 'rate=4.0',
  'geodamp': 'delay_epochs=0.01',
  'step_table': "table='0:8 100:32'",
  'ramp_up': 'final_batch_size=32, increment=8, examples=200',
  'from_lr_schedule': 'lambda examples: 1 / (1 + examples)',
}
MISSING = {
  "adadamp(loss_source='full', ": 'full_loss',
  'adadamp_grad(': 'gradient_noise',
  'noise_scale(': 'gradient_noise',
  'norm_test(': 'gradient_noise',
  'cabs(': 'learning_rate',
}


def test_the_loop_feeds_every_rule_or_says_what_it_lacks():
  assert set(RULES) | {key.partition('(')[0] for key in MISSING} == set(
    controllers.CONTROLLERS
  )
  parts, loop = blocks('python')[1].split('\nparams = ')
  loop = 'params = ' + loop.replace('range(1, 101)', 'range(1, 22)')
  (make,) = re.findall(r'^controller = controllers\.adadamp.*\n.*', parts, re.M)
  names = run(parts)  # compiles each size once

  def sizes(rule):
    with_rule = re.sub(r'adadamp\(.*\)', f'{rule}initial_batch_size=8)', make)
    exec(with_rule + '\n' + loop, names)
    return names['batch_sizes']

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


def test_map_names_every_module():
  modules = {
    path.name + ('/' if path.is_dir() else '')
    for path in (ROOT / 'adabatch').iterdir()
    if not path.name.startswith('_')
  }
  for module in modules:
    assert f'`{module}`' in README, module
