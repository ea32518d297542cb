"""Programs by the compiler of TPUs, which needs none."""

import importlib.util
import json

import numpy as np
import pytest
from flax import linen as nn

import adabatch
from adabatch import data
from adabatch.models import MODELS, Rows
from adabatch.models.conv_norm import conv_and_norm
from adabatch.models.resnet import BasicBlock
from adabatch.plan.job import plan
from adabatch.report import write_plan
from adabatch.report.summary import describe
from tests.experiments import digits

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='the compiler of TPUs (libtpu) is not installed',
)


class OneBlock(nn.Module):
  """A ResNet of one block, with everything that the deep ones have."""

  num_classes: int
  dtype: object = None
  batch_norm_group: int = 4

  @nn.compact
  def __call__(self, x, *, train: bool, rows: Rows | None = None):
    conv, norm = conv_and_norm(
      self.batch_norm_group, self.dtype, train=train, rows=rows
    )
    x = nn.relu(norm(conv(x, 16)))
    x = BasicBlock(16, batch_norm_group=self.batch_norm_group)(
      x, train=train, rows=rows
    )
    return nn.Dense(self.num_classes)(x.mean((1, 2)))


@pytest.fixture(name='one_block')
def _one_block(tmp_path):
  """overrides -> the plan of it on images of 32 x 32."""
  config = digits()
  adabatch.register(config, 'model', 'one_block', OneBlock)
  rng = np.random.default_rng(0)

  def split(examples: int) -> data.Split:
    image = rng.integers(0, 256, (examples, 32, 32, 3), dtype=np.uint8)
    label = rng.integers(0, 10, examples)
    return data.from_arrays({'image': image, 'label': label}, 10)

  splits = split(20_000), split(1_000)

  def made(**overrides):
    config.update_from_flattened_dict(
      {
        'model.name': 'one_block',
        'data.crop_padding': 4,
        'data.flip': True,
        'controller.name': 'constant',
        'controller.initial_batch_size': 64,
        'controller.max_batch_size': 64,
        'optimizer.name': 'nesterov',
        **overrides,
      }
    )
    return plan(config, tmp_path, splits=splits)

  yield made
  del MODELS['one_block']


SET = 20_000 * 32 * 32 * 3


@pytest.mark.parametrize(('name', 'chips'), [('v5e:2x2', 4), ('v5e:4x4', 16)])
def test_a_residual_network(one_block, name, chips):
  (rung,) = one_block(**{'plan.topology': name})['ladder']
  # One exchange of gradients, statistics and reports.
  (exchange,) = rung['collectives']
  assert exchange['kind'] == 'all-reduce'
  assert exchange['times'] == 1
  assert exchange['devices'] == chips
  # All parameters, momenta and statistics are updated in place.
  assert rung['donated'] >= 11 + 11 + 6
  # The resident set lies there once.
  memory = rung['memory']
  assert SET < memory['argument'] < SET + 3e6
  assert memory['temp'] < SET / 2
  assert rung['compiler_seconds'] < 1e-3


def test_replicas_do_not_talk_between_syncs(one_block):
  found = one_block(
    **{
      'plan.topology': 'v5e:2x2',
      'sync.name': 'local_sgd',
      'sync.replicas': 4,
      'sync.local_steps': 4,
    }
  )
  (rung,) = found['ladder']
  apart = rung['without_sync']
  assert apart['collectives'] == []
  assert sum(c['times'] for c in rung['collectives']) >= 1
  assert apart['seconds'] < rung['seconds']
  spent = found['schedule']
  assert spent['updates'] / 5 < spent['syncs'] < spent['updates'] / 3
  between = spent['updates'] - spent['syncs']
  assert spent['seconds'] == pytest.approx(
    spent['syncs'] * rung['seconds'] + between * apart['seconds']
  )
  assert 'no sync' in describe(found)


@pytest.mark.parametrize(('name', 'chips'), [('v5e:2x2', 4), ('v5e:4x4', 16)])
def test_the_digits(name, chips, tmp_path):
  config = digits(
    **{
      'plan.topology': name,
      'controller.name': 'geodamp',
      'controller.initial_batch_size': 64,
      'buckets.max_per_device': 4,
    }
  )
  found = plan(config, tmp_path)
  assert found['topology']['chips'] == chips
  for rung in found['ladder']:
    assert rung['fits']
    # One exchange an update, of all gradients and what is reported.
    (exchange,) = rung['collectives']
    assert exchange['kind'] == 'all-reduce'
    assert exchange['times'] == 1
    assert exchange['devices'] == chips
    assert 4 * 2410 <= exchange['bytes'] < 4 * 2410 + 100
    # The state is updated in place, and the resident set is not copied: it is
    # read at most once, into the fast memory.
    assert rung['donated'] >= 8
    assert rung['bandwidth_bound_seconds'] * 819e9 < 1.5 * 1438 * 128
    assert 0 < rung['compiler_seconds'] < 1e-3
  spent = found['schedule']
  assert spent['seconds'] == pytest.approx(
    sum(rung.get('updates', 0) * rung['seconds'] for rung in found['ladder'])
  )
  assert spent['chip_hours'] == pytest.approx(spent['seconds'] * chips / 3600)
  assert json.loads((tmp_path / 'plan.json').read_text()) == found
  assert 'chip-hours' in describe(found)
  assert f'(exact), {name}' in write_plan(tmp_path).read_text()
  evaluation = found['topology']['evaluation']
  assert evaluation['fits']
  assert evaluation['calls'] * evaluation['examples_at_once'] >= 359
  assert evaluation['memory']['argument'] >= 359 * 128
  # The momenta and the training split lie there as well.
  beside = 4 * 2410 + 1438 * (128 + 4)
  assert beside <= evaluation['beside_bytes'] < beside + 1000
  assert evaluation['bytes'] == (
    evaluation['memory']['peak'] + evaluation['beside_bytes']
  )
  # Again without compiling: what the compiler said is kept.
  assert plan(config, tmp_path) == found


def test_gradients_of_8_bits_travel_in_half_the_bytes(tmp_path):
  def exchanged(dtype):
    config = digits(
      **{
        'plan.topology': 'v5e:2x2',
        'parallel.gradient_dtype': dtype,
        'controller.name': 'constant',
        'model.mlp.hidden_sizes': (1024,),
      }
    )
    (rung,) = plan(config, tmp_path)['ladder']
    # What is large: gradients. Losses and weights are as they were.
    return sum(c['times'] * c['bytes'] for c in rung['collectives']), rung

  parameters = 64 * 1024 + 1024 + 1024 * 10 + 10
  whole, rung = exchanged('float32')
  half, low = exchanged('bfloat16')
  assert 4 * parameters <= whole < 4 * parameters + 100
  assert 2 * parameters <= half < 2 * parameters + 100
  # Time is less, though not by half: hops take theirs.
  assert low['all_reduce_seconds'] < rung['all_reduce_seconds']


def test_what_is_too_large_says_what_fits(tmp_path):
  """Activations of 65,536 numbers an example, on 16 GB."""
  examples = 524_288
  image = np.zeros((examples, 8, 8, 1), np.uint8)
  label = np.arange(examples) % 10
  split = data.from_arrays({'image': image, 'label': label}, 10)
  config = digits(
    **{
      'plan.topology': 'v5e:2x2',
      'model.mlp.hidden_sizes': (65_536,),
      'controller.initial_batch_size': examples // 4,
      'controller.max_batch_size': examples,
      'buckets.max_per_device': examples // 4,
    }
  )
  found = plan(config, tmp_path, splits=(split, split))
  *_, rung = found['ladder']
  assert not rung['fits']
  most = rung['fits_with']
  assert most in (8192, 16_384, 32_768, 65_536)
  assert f'buckets.max_per_device={most} fits' in describe(found)
  # What it takes is not known, and so not added up.
  assert 'seconds' not in rung
  assert 'seconds' not in found['range'][str(examples)]
  config.buckets.max_per_device = most
  found = plan(config, tmp_path, splits=(split, split))
  assert all(rung['fits'] for rung in found['ladder'])
  assert found['range'][str(examples)]['seconds'] > 0
