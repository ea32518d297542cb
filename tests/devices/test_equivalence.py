"""The same run, however the hardware shares it out."""

import jax
import numpy as np
import pytest

from adabatch import data
from adabatch.models import MODELS, StridedCNN
from adabatch.models.dropout import Dropout
from adabatch.train import train
from tests.experiments import column, digits

pytestmark = pytest.mark.usefixtures('compile_quickly')

# The main job's rule, from 16 examples to 64 and beyond the cap.
UPDATES = 60
CAP = {'controller.max_batch_size': 64, 'epochs': 100.0}


def run(tmp_path, name, devices=1, **overrides):
  config = digits(max_updates=UPDATES, **CAP | overrides)
  workdir = tmp_path / name
  train(config, workdir, devices=jax.devices()[:devices])
  return workdir


def agree(a, b, *, updates=UPDATES):
  """Equal batch sizes; losses to 1e-5 at once and 1e-4 at the end."""
  sizes = column(a, 'batch_size')
  assert len(sizes) == updates
  assert sizes == column(b, 'batch_size')
  assert column(a, 'nominal_batch_size') == column(b, 'nominal_batch_size')
  losses = np.array([column(a, 'loss'), column(b, 'loss')])
  np.testing.assert_allclose(*losses[:, :1], rtol=1e-5)
  np.testing.assert_allclose(*losses, rtol=1e-4)
  assert len(set(sizes)) >= 2, 'the run must visit several buckets'


@pytest.fixture(scope='module')
def one_device(tmp_path_factory):
  return run(tmp_path_factory.mktemp('runs'), 'one')


@pytest.mark.quick
def test_eight_devices(one_device, tmp_path):
  agree(one_device, run(tmp_path, 'eight', devices=8))


@pytest.mark.quick
def test_pmap(one_device, tmp_path):
  overrides = {'parallel.backend': 'pmap'}
  agree(one_device, run(tmp_path, 'pmap', devices=8, **overrides))


def test_three_devices_that_share_unevenly(one_device, tmp_path):
  agree(one_device, run(tmp_path, 'three', devices=3))


def test_accumulation(one_device, tmp_path):
  overrides = {'buckets.max_per_device': 8}
  agree(one_device, run(tmp_path, 'accumulated', **overrides))


def test_accumulation_on_devices(one_device, tmp_path):
  overrides = {'buckets.max_per_device': 3}
  agree(one_device, run(tmp_path, 'both', devices=4, **overrides))


@pytest.mark.parametrize(('devices', 'per_call'), [(1, 7), (4, 50)])
def test_several_updates_in_one_call(one_device, tmp_path, devices, per_call):
  overrides = {'updates_per_call': per_call}
  several = run(tmp_path, 'several', devices=devices, **overrides)
  agree(one_device, several)
  assert column(several, 'update') == list(range(1, UPDATES + 1))
  assert column(several, 'seconds') == sorted(column(several, 'seconds'))
  for name in ('examples', 'learning_rate', 'damping'):
    np.testing.assert_allclose(
      column(several, name), column(one_device, name), rtol=1e-6
    )


def test_calls_of_any_length_give_the_same_bits(tmp_path):
  """Checkpoints cut the calls short; the numbers must not notice."""
  whole = run(tmp_path, 'whole', updates_per_call=20)
  cut = run(
    tmp_path, 'cut', updates_per_call=20, **{'checkpoint.every_updates': 7}
  )
  assert column(whole, 'loss') == column(cut, 'loss')


@pytest.mark.parametrize('model', ['mlp', 'batch_norm'])
def test_exact_rounding_equals_unpadded_steps(tmp_path, model):
  overrides = {'buckets.rounding': 'exact'}
  if model == 'batch_norm':
    overrides |= {
      'model.name': 'strided_cnn',
      'model.strided_cnn.channels': (4,),
      'model.strided_cnn.hidden_size': 16,
      'model.strided_cnn.batch_norm_group': 32,
    }
  padded = run(tmp_path, 'padded', **overrides)
  # A rung for every size: no slot is ever empty.
  unpadded = run(
    tmp_path, 'unpadded', **overrides, **{'buckets.growth': 1.0001}
  )
  agree(padded, unpadded)
  assert any(size & (size - 1) for size in column(padded, 'batch_size'))


def test_augmentation_does_not_depend_on_devices(one_device, tmp_path):
  overrides = {'data.crop_padding': 1, 'data.flip': True, 'data.mixup': 0.4}
  overrides['controller.max_batch_size'] = 32
  one = run(tmp_path, 'one', **overrides)
  eight = run(tmp_path, 'eight', devices=8, **overrides)
  agree(one, eight)
  assert column(one, 'loss')[0] != pytest.approx(
    column(one_device, 'loss')[0], rel=1e-3
  )


def test_a_noise_rule_begins_with_a_single_example(tmp_path):
  """On several devices too, of which one has it; there is an estimate."""
  overrides = {
    'max_updates': 12,
    'controller.name': 'noise_scale',
    'controller.initial_batch_size': 1,
    'controller.max_batch_size': 4,
    'controller.every': 1,
  }
  train(digits(**overrides), tmp_path, devices=jax.devices()[:8])
  nominal = column(tmp_path, 'nominal_batch_size')
  assert nominal[:2] == [1, 1]
  assert max(nominal) > 1


@pytest.mark.parametrize(
  ('devices', 'overrides'),
  [
    (3, {'parallel.backend': 'pmap'}),
    (4, {'buckets.max_per_device': 3, 'buckets.rounding': 'exact'}),
  ],
)
def test_streaming(one_device, tmp_path, devices, overrides):
  """Read while training, by a thread."""
  overrides |= {
    'data.placement': 'streaming',
    'data.workers': 0,
  }
  streamed = run(tmp_path, 'streamed', devices=devices, **overrides)
  if 'buckets.rounding' in overrides:
    del overrides['data.placement']
    resident = run(tmp_path, 'resident', devices=devices, **overrides)
    agree(resident, streamed)
  else:
    agree(one_device, streamed)


class Dropping(StridedCNN):
  """Compiled sooner than the networks that have dropout of their own."""

  def setup(self):
    self.drop = Dropout(0.5)

  def __call__(self, x, *, train, rows=None):
    x = self.drop(x, train=train, rows=rows)
    return super().__call__(x, train=train, rows=rows)


def test_dropout_and_augmentation(tmp_path, monkeypatch):
  """Drawn by place and position, so the same on any devices, in any steps."""
  monkeypatch.setitem(MODELS, 'strided_cnn', Dropping)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (64, 8, 8, 1), np.uint8)
  split = data.from_arrays({'image': images, 'label': np.arange(64) % 4}, 4)
  overrides = {
    'max_updates': 2,
    'epochs': 100.0,
    'model.name': 'strided_cnn',
    'model.strided_cnn.channels': (4,),
    'model.strided_cnn.hidden_size': 8,
    'model.strided_cnn.batch_norm_group': 4,
    'data.crop_padding': 2,
    'data.flip': True,
    'data.random_erasing': 0.5,
    'controller.name': 'constant',
    'controller.initial_batch_size': 16,
  }
  losses = {}
  for name, devices, more in (
    ('one', 1, {}),
    ('three, in steps', 3, {'buckets.max_per_device': 4}),
    ('stream', 1, {'data.placement': 'streaming', 'data.workers': 0}),
  ):
    config = digits(**overrides | more)
    config.log.every_updates = 1
    train(
      config,
      tmp_path / name,
      devices=jax.devices()[:devices],
      splits=(split, split),
    )
    losses[name] = column(tmp_path / name, 'loss')
    assert column(tmp_path / name, 'batch_size') == [16, 16]
  for name in ('three, in steps', 'stream'):
    np.testing.assert_allclose(losses[name], losses['one'], rtol=1e-4)
