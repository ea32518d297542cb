"""`--job=plan`, as a user sees it."""

import hashlib
import importlib
import json

import jax
import pytest

from adabatch import data
from adabatch.config import ConfigError
from adabatch.plan.job import plan
from adabatch.report import write_plan
from adabatch.report.summary import describe
from adabatch.train import train
from tests.experiments import digits
from tests.test_launch import DIGITS, launch, one_line

pytestmark = pytest.mark.usefixtures('compile_quickly')


def hashes(directory):
  return {
    path: hashlib.blake2b(path.read_bytes()).hexdigest()
    for path in directory.rglob('*')
    if path.is_file()
  }


def test_a_run_is_planned_beside_it_and_not_touched(tmp_path):
  config = digits(max_updates=20, **{'controller.name': 'geodamp'})
  devices = jax.devices()[:1]
  summary = train(config, tmp_path, devices=devices)
  before = hashes(tmp_path)
  found = plan(config, tmp_path, devices=devices)
  page = write_plan(tmp_path)
  after = hashes(tmp_path)
  new = {tmp_path / 'plan.json', page}
  assert {k: v for k, v in after.items() if k not in new} == before
  assert json.loads((tmp_path / 'plan.json').read_text()) == found
  for key in ('updates', 'examples'):
    assert found['schedule'][key] == summary[key]
  assert found['schedule']['points']['update'][-1] == 20
  assert found['changed']['max_updates'] == [None, 20]
  # Weights 64 x 32 + 32 and 32 x 10 + 10; three products of each, but for the
  # gradient of the pixels.
  model = found['model']
  assert model['groups'] == {'Dense_0': 2080, 'Dense_1': 330}
  assert model['flops_per_example'] == pytest.approx(
    2 * (2 * 2048 + 3 * 320), rel=0.1
  )
  size = sum(
    path.stat().st_size
    for path in (tmp_path / 'checkpoints' / '20').rglob('*')
    if path.is_file()
  )
  assert 0.5 * size < found['disk']['checkpoint_bytes'] < 1.5 * size
  text = describe(found)
  assert 'exact: 20 updates' in text
  assert 'mlp: 2,410 parameters' in text
  html = page.read_text()
  assert html.count('<svg') == 4
  assert 'Effective learning rate against updates' in html


def test_a_measured_rule_has_a_range_and_a_path(tmp_path):
  config = digits(**{'controller.adadamp.loss_source': 'ema'})
  found = plan(config, tmp_path, devices=jax.devices()[:1])
  assert 'schedule' not in found
  assert list(found['range']) == ['16', '128']
  assert 'exact' not in describe(found)
  assert '<svg' not in write_plan(tmp_path).read_text()
  config.plan.loss = '2.3 0.05 0.3'
  found = plan(config, tmp_path, devices=jax.devices()[:1])
  sizes = found['schedule']['points']['batch_size']
  assert sizes[0] == 16
  assert max(sizes) > 32
  ends = [spent['updates'] for spent in found['range'].values()]
  assert ends[1] < found['schedule']['updates'] < ends[0]
  assert 'of the assumed loss' in describe(found)


@pytest.mark.parametrize(
  ('name', 'variant', 'changes', 'examples', 'parameters'),
  [
    ('resnet20_cifar10', (), {}, 50_000, 269_722),
    # A network that is looked at sooner.
    (
      'resnet50_imagenet',
      ('8k',),
      {'model.resnet.depth': 18},
      1_281_167,
      11_689_512,
    ),
    ('transformer_lm1b', (), {}, 4_296_875, 35_287_040),
  ],
)
def test_data_that_are_not_there(
  name, variant, changes, examples, parameters, tmp_path
):
  """Their counts are known; nothing is read, and nothing of it written."""
  config = importlib.import_module(f'configs.{name}').get_config(*variant)
  config.update_from_flattened_dict(changes)
  config.data.data_dir = str(tmp_path / 'none')
  found = plan(config, tmp_path / 'w', devices=jax.devices()[:2])
  assert not found['data_there']
  assert found['data']['examples'] >= examples * 0.9
  assert found['model']['parameters'] == parameters
  assert 'not prepared here' in describe(found)
  write_plan(tmp_path / 'w')
  names = sorted(path.name for path in (tmp_path / 'w').iterdir())
  assert names == ['plan.html', 'plan.json']


def test_of_other_sets_nothing_is_known(tmp_path):
  config = digits(**{'data.name': 'mine', 'data.data_dir': str(tmp_path)})
  with pytest.raises(data.NotPrepared):
    plan(config, tmp_path / 'w')
  assert not (tmp_path / 'w').exists()


def test_the_command(tmp_path):
  result = launch(DIGITS, f'--workdir={tmp_path}', '--job=plan')
  assert result.returncode == 0, result.stderr
  assert 'if every batch had 512: 113 updates' in result.stdout
  assert f'report: {tmp_path}/plan.html' in result.stdout
  wrong = '--config.plan.loss=nowhere'
  line = one_line(launch(DIGITS, f'--workdir={tmp_path}', '--job=plan', wrong))
  assert "plan.loss='nowhere' is neither a directory" in line


def test_a_directory_without_a_plan(tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no plan.json'):
    write_plan(tmp_path)


def test_mistakes_are_those_of_a_run(tmp_path):
  config = digits(**{'controller.max_batch_size': 4})
  with pytest.raises(ConfigError, match='initial_batch_size=16 is above'):
    plan(config, tmp_path / 'w')
  assert not (tmp_path / 'w').exists()


def test_beside_a_schedule_stand_its_ends(tmp_path):
  """At equal examples; and the whole config is told."""
  config = digits(**{'controller.name': 'geodamp', 'epochs': 20.0})
  found = plan(config, tmp_path, devices=jax.devices()[:1])
  assert found['exact']
  assert list(found['range']) == ['16', '128']
  assert {spent['examples'] for spent in found['range'].values()} == {
    found['schedule']['examples']
  }
  text = describe(found)
  assert 'if every batch had 16: ' in text
  assert 'if every batch had 128: ' in text
  assert found['config']['controller.name'] == 'geodamp'
  assert found['changed']['controller.name'] == ['adadamp', 'geodamp']
  config.controller.name = 'constant'
  found = plan(config, tmp_path, devices=jax.devices()[:1])
  assert 'range' not in found
