"""What the README shows is true."""

import pathlib
import re

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
  steps, size, low, high = map(
    float, re.findall(r'[\d.]+', capsys.readouterr().out)
  )
  assert 50 < steps < 130
  assert low < size < high
  names = run(loop)
  sizes = names['batch_sizes']
  assert sizes[-1] > 4 * sizes[0]
  assert names['loss'] < 0.1 * names['first_loss']


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
