"""The noise scale of a point, against one that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch import data
from adabatch.devices.point_noise import (
  PointNoise,
  noise_scale,
)
from adabatch.devices.trainer import Trainer
from adabatch.optim.noise_norms import NoiseNorm, euclidean
from adabatch.train.build import build
from tests.experiments import digits

BATCHES, SIZE, DIMENSIONS = 32, 32, 40


def estimate(rng, mean, spread):
  """From batches of gradients N(mean, spread^2), each entry for itself."""
  shape = BATCHES, len(mean)
  g = mean + spread / np.sqrt(SIZE) * rng.standard_normal(shape)
  whole = g.mean(0)
  return noise_scale((g**2).sum(1), g @ whole, float(whole @ whole), SIZE)


MEAN = np.linspace(0.1, 0.5, DIMENSIONS)
SPREAD = np.linspace(1.0, 3.0, DIMENSIONS)
TRACE, NORM = float((SPREAD**2).sum()), float(MEAN @ MEAN)


@pytest.mark.parametrize('seed', range(3))
def test_estimates_are_unbiased_and_their_interval_covers(seed):
  rng = np.random.default_rng(seed)
  found = [estimate(rng, MEAN, SPREAD) for _ in range(200)]
  for name, expected in (('trace_covariance', TRACE), ('squared_norm', NORM)):
    values = np.array([getattr(one, name) for one in found])
    error = values.std() / np.sqrt(len(values))
    assert error < 0.02 * expected, 'too few to tell'
    assert abs(values.mean() - expected) < 4 * error
  values = np.array([one.value for one in found])
  assert abs(values.mean() / (TRACE / NORM) - 1) < 0.02
  inside = [one.low < TRACE / NORM < one.high for one in found]
  assert 0.88 <= np.mean(inside) <= 1
  # And it is no wider than it need be.
  width = np.mean([np.log(one.high / one.low) for one in found])
  assert 2 < width / np.log(values).std() < 6


def test_where_there_is_only_noise():
  """Of |G|^2 nothing is known: the scale has a lower end alone."""
  rng = np.random.default_rng(0)
  found = [estimate(rng, 0 * MEAN, SPREAD) for _ in range(200)]
  assert np.mean([one.high == np.inf for one in found]) > 0.9
  finite = [one.low for one in found]
  assert min(finite) > 100
  assert all(one.value > 0 or np.isnan(one.value) for one in found)


def test_where_there_is_none():
  found = noise_scale(np.full(4, 2.0), np.full(4, 2.0), 2.0, 8)
  assert found[:3] == (0.0, 0.0, 0.0)
  with pytest.raises(ValueError, match='has no error'):
    noise_scale(np.ones(2), np.ones(2), 1.0, 8)


# Of a network.


def plainly(parts, params, chosen, batches, weights):
  """From the gradient of each batch, in float64."""
  recipe, inputs = parts.recipe, parts.recipe.inputs
  arrays = jax.tree.map(jnp.asarray, inputs.train.arrays)

  @jax.jit
  def gradient(params, indices):
    batch = inputs.load(arrays, indices, None)

    def loss(params):
      x = recipe.task.inputs(batch)
      outputs = recipe.model.apply({'params': params}, x, train=False)
      return recipe.task.loss(outputs, batch).mean()

    found = jax.tree.leaves(jax.grad(loss)(params))
    return jnp.concatenate([x.ravel() for x in found])

  size = len(chosen) // batches
  w = np.concatenate([np.ravel(x) for x in jax.tree.leaves(weights)])
  g = np.stack(
    [
      np.float64(gradient(params, chosen[i * size : (i + 1) * size])) * w
      for i in range(batches)
    ]
  )
  mean = g.mean(0)
  return noise_scale((g**2).sum(1), g @ mean, float(mean @ mean), size)


def drawn(seed, size, examples):
  high, low = data.position_halves(seed)
  rng = np.random.Generator(np.random.Philox([low, 2, high]))
  return rng.permutation(examples)[:size]


@pytest.mark.parametrize(
  ('devices', 'asked', 'batches', 'most'),
  [(1, 64, 32, 1024), (4, 64, 16, 1024), (1, 64, 64, 1)],
)
def test_of_a_network(compile_quickly, devices, asked, batches, most):
  """Plain and as Adam weighs it; devices and memory say how many batches."""
  keys = {'model.mlp.hidden_sizes': (8,), 'optimizer.name': 'adam'}
  config = digits(**keys | {'eval.max_per_device': most})
  parts = build(config, jax.devices()[:devices])
  trainer = Trainer(parts.recipe)
  state = trainer.state
  weights = jax.tree.map(lambda p: 1 / (jnp.abs(p) + 0.1), state.params)

  def weigh(opt_state):
    return lambda tree: jax.tree.map(jnp.multiply, tree, weights)

  norms = {'simple': euclidean(), 'weighed': NoiseNorm(weigh)}
  noise = PointNoise(parts.recipe, asked, lambda split: None, norms)
  assert noise.examples == 2 * asked
  both = noise.take(state)
  chosen = drawn(parts.recipe.seed, asked, parts.extent.epoch)
  ones = jax.tree.map(jnp.ones_like, weights)
  for name, w in (('simple', ones), ('weighed', weights)):
    found = both[name]
    expected = plainly(parts, state.params, chosen, batches, w)
    np.testing.assert_allclose(found[:2], expected[:2], 1e-3)
    np.testing.assert_allclose(found[3:], expected[3:], 1e-4)
  assert both['simple'].value != pytest.approx(found.value, 1e-2)
  trainer.close()


def test_too_few_examples(compile_quickly):
  parts = build(digits(**{'model.mlp.hidden_sizes': (8,)}), jax.devices()[:1])
  trainer = Trainer(parts.recipe)
  norms = {'simple': euclidean()}
  noise = PointNoise(parts.recipe, 2, lambda split: None, norms)
  assert noise.take(trainer.state) == {'simple': None}
  trainer.close()
