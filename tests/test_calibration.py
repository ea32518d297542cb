"""Measurements of networks with BatchNorm, whose statistics are calibrated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from adabatch import data, parallel, tasks, train_state
from adabatch.data import Split
from adabatch.evaluate import (
  Evaluator,
  Measurements,
  resident_pieces,
  streamed_pieces,
)
from adabatch.models import MODELS, Rows

EXAMPLES = 30


class NoOptimizer:
  """Of which a state is made that is never updated."""

  def init(self, params):
    return ()


def load(arrays, indices, positions):
  """Far from mean 0 and variance 1, which fresh statistics stand for."""
  batch = {name: array[indices] for name, array in arrays.items()}
  return batch | {'image': 50 * batch['image'] + 20}


@pytest.fixture(scope='module')
def split():
  rng = np.random.default_rng(0)
  arrays = {
    'image': rng.normal(size=(EXAMPLES, 6, 6, 1)).astype(np.float32),
    'label': np.arange(EXAMPLES) % 3,
  }
  return data.from_arrays(arrays, 3)


@functools.cache
def make(group_size):
  model = MODELS['strided_cnn'](
    3, (4,), hidden_size=5, batch_norm_group=group_size
  )
  example = np.zeros((1, 6, 6, 1), np.float32)
  return model, train_state.create(
    model, example, NoOptimizer(), jax.random.key(0)
  )


def measure(
  split: Split,
  group_size,
  devices,
  backend='shard_map',
  *,
  stream=False,
  signal='subset_loss',
):
  """What a rule would be told of the fresh network, and what it cost."""
  model, state = make(group_size)
  mesh = parallel.make_mesh(jax.devices()[:devices])
  state = parallel.replicate(state, mesh)

  def pieces():
    if stream:
      return streamed_pieces(
        split, mesh, 16, workers=0, skipped=pytest.fail, group_size=group_size
      )
    arrays = parallel.replicate(split.arrays, mesh)
    return resident_pieces(arrays, EXAMPLES, mesh, 1000, group_size)

  measurements = Measurements(
    frozenset({signal}),
    lambda pieces: Evaluator(
      model,
      tasks.classification(),
      load,
      pieces,
      mesh=mesh,
      backend=backend,
      options=None
      if backend == 'pmap'
      else {'xla_backend_optimization_level': 0},
    ),
    full=pieces,
    subset=pieces,
  )
  before = jax.device_get(state.model_state)
  values, cost = measurements.take(state)
  jax.tree.map(np.testing.assert_array_equal, before, state.model_state)
  return values[signal], cost


def in_training_mode(split, group_size):
  """Loss and squared gradient norm as an update would see them."""
  model, state = make(group_size)
  batch = load(split.arrays, np.arange(EXAMPLES), None)
  rows = Rows(jnp.ones(EXAMPLES), jnp.arange(EXAMPLES))

  def loss(params):
    logits, _ = model.apply(
      {'params': params, **state.model_state},
      batch['image'],
      train=True,
      rows=rows,
      mutable=['batch_stats'],
    )
    return tasks.classification().loss(logits, batch).mean()

  return float(loss(state.params))


def test_the_first_loss_is_that_of_training(split):
  """To rounding, as one group holds all; fresh statistics say nothing."""
  loss, cost = measure(split, 32, 1)
  assert loss == pytest.approx(in_training_mode(split, 32), rel=1e-4)
  assert cost == 2 * EXAMPLES
  model, state = make(32)
  batch = load(split.arrays, np.arange(EXAMPLES), None)
  variables = {'params': state.params, **state.model_state}
  logits = model.apply(variables, batch['image'], train=False)
  assert tasks.classification().loss(logits, batch).mean() > 2 * loss


@pytest.mark.parametrize('signal', ['loss', 'gradient_norm_squared'])
def test_groups_are_the_same_on_any_devices(split, signal):
  one, _ = measure(split, 4, 1, signal=f'subset_{signal}')
  for how in ({}, {'backend': 'pmap'}, {'stream': True}):
    several, _ = measure(split, 4, 3, signal=f'subset_{signal}', **how)
    assert several == pytest.approx(one, rel=1e-4)
    if signal != 'loss':
      break


class Normalised(nn.Module):
  """With an average of another name and rate, a counter, and no parameter in
  what is averaged."""

  @nn.compact
  def __call__(self, x, *, train, rows=None):
    x = x.reshape(x.shape[0], -1)
    mean = self.variable('mine', 'mean', jnp.zeros, x.shape[1:])
    steps = self.variable('mine', 'steps', jnp.zeros, (), jnp.int32)
    updates = self.variable('mine', 'updates', jnp.ones, ())
    if train:
      now = rows.weights @ x / jnp.maximum(jnp.sum(rows.weights), 1)
      mean.value = 0.999 * mean.value + 0.001 * now
      steps.value += 1
      updates.value += 1
    return nn.Dense(3)(x - mean.value)


@pytest.mark.parametrize('devices', [1, 4])
def test_any_moving_average_is_calibrated(split, devices):
  model, mesh = Normalised(), parallel.make_mesh(jax.devices()[:devices])
  example = np.zeros((1, 6, 6, 1), np.float32)
  state = train_state.create(model, example, NoOptimizer(), jax.random.key(0))
  arrays = parallel.replicate(split.arrays, mesh)
  evaluator = Evaluator(
    model,
    tasks.classification(),
    load,
    resident_pieces(arrays, EXAMPLES, mesh, 7),
    mesh=mesh,
    backend='shard_map',
  )
  state, cost = evaluator.calibrated(parallel.replicate(state, mesh))
  assert cost == EXAMPLES
  mine = jax.device_get(state.model_state['mine'])
  image = load(split.arrays, np.arange(EXAMPLES), None)['image']
  expected = image.reshape(EXAMPLES, -1).mean(0)
  np.testing.assert_allclose(mine['mean'], expected, rtol=1e-3)
  assert mine['steps'] == 0
  assert mine['steps'].dtype == np.int32
  assert mine['updates'] == 1


def test_networks_without_statistics_pay_nothing(split):
  model, mesh = MODELS['mlp'](3, (4,)), parallel.make_mesh(jax.devices()[:1])
  example = np.zeros((1, 6, 6, 1), np.float32)
  state = train_state.create(model, example, NoOptimizer(), jax.random.key(0))
  arrays = parallel.replicate(split.arrays, mesh)
  evaluator = Evaluator(
    model,
    tasks.classification(),
    load,
    resident_pieces(arrays, EXAMPLES, mesh, 7),
    mesh=mesh,
    backend='shard_map',
  )
  assert evaluator.calibrated(state) == (state, 0)
