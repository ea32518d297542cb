"""The networks, and BatchNorm whose statistics ignore the batch size."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from adabatch.models import MODELS, GhostBatchNorm, PooledCNN, StridedCNN

IMAGE = (28, 28, 1)


def close(a, b, rel=1e-6):
  """Equal pytrees, relative to the largest entry of each array."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    x, y = np.asarray(x), np.asarray(y)
    np.testing.assert_allclose(x, y, rtol=0, atol=rel * np.abs(y).max())


def draw(shape, seed=0):
  """Values whose mean and scale differ by channel."""
  rng = np.random.Generator(np.random.Philox(seed))
  channels = np.arange(1, shape[-1] + 1, dtype=np.float32)
  return channels * (rng.standard_normal(shape, np.float32) + 2)


def perturbed(x):
  """Variables of BatchNorm, no entry of them at its initial value."""
  variables = {
    'params': {'scale': np.ones(x.shape[-1]), 'bias': np.zeros(x.shape[-1])},
    'batch_stats': {'mean': np.zeros(x.shape[-1]), 'var': np.ones(x.shape[-1])},
  }
  rng = np.random.Generator(np.random.Philox(1))
  return jax.tree.map(
    lambda v: (v + rng.uniform(0.5, 1.5, v.shape)).astype(np.float32), variables
  )


@functools.partial(jax.jit, static_argnums=0)
def run_training(model, variables, x, weights, target):
  real = jnp.ones(len(x)) if weights is None else weights

  def loss(params, x):
    y, new = model.apply(
      {**variables, 'params': params},
      x,
      train=True,
      weights=weights,
      mutable=['batch_stats'],
    )
    losses = jnp.mean(jnp.square(y - target), range(1, y.ndim))
    return jnp.sum(jnp.where(real > 0, losses, 0.0)), (y, new)

  (by_params, by_x), (y, new) = jax.grad(loss, (0, 1), has_aux=True)(
    variables['params'], x
  )
  return y, new['batch_stats'], by_params, by_x


def train(model, variables, x, weights=None, rows=slice(None)):
  """Outputs, new statistics, gradients by the parameters and by x.

  The loss is the sum of the squared distances of the real outputs from target
  outputs, of which `rows` says which belong to x.
  """
  target = draw((24, *x.shape[1:]), seed=2)[rows][: len(x)]
  return run_training(model, variables, x, weights, target)


def rows_of(result, rows):
  """A result of `train`, of what belongs to examples only these."""
  return [v[rows] if isinstance(v, jax.Array) else v for v in result]


# Ghost BatchNorm.


class FlaxBatchNorm(nn.Module):
  """The same interface, over the whole batch."""

  momentum: float

  @nn.compact
  def __call__(self, x, *, train, weights=None):
    return nn.BatchNorm(
      use_running_average=not train,
      momentum=self.momentum,
      epsilon=1e-3,
      use_fast_variance=False,
      name='norm',
    )(x)


@pytest.mark.parametrize('shape', [(24, 5), (12, 4, 3, 5)])
@pytest.mark.parametrize('times', [1, 10])
def test_one_group_is_the_batch_norm_of_flax(shape, times):
  x = draw(shape)
  ours = GhostBatchNorm(times * len(x), momentum=0.8, epsilon=1e-3)
  variables = perturbed(x)
  twin = FlaxBatchNorm(0.8)
  nested = {k: {'norm': v} for k, v in variables.items()}
  y, statistics, by_params, by_x = train(twin, nested, x)
  expected = (y, statistics['norm'], by_params['norm'], by_x)
  close(train(ours, variables, x), expected, 1e-5)
  close(
    ours.apply(variables, x, train=False), twin.apply(nested, x, train=False)
  )


@pytest.mark.parametrize('shape', [(8, 5), (8, 3, 3, 5)])
def test_groups_are_independent(shape):
  """Two groups are the two halves, each as a batch of its own."""
  x = draw(shape)
  model, whole = GhostBatchNorm(4), GhostBatchNorm(8)
  variables = perturbed(x)
  y, statistics, by_params, by_x = train(model, variables, x)
  halves = [
    train(model, variables, x[rows], rows=rows)
    for rows in (slice(0, 4), slice(4, 8))
  ]
  ys, averages, of_params, of_x = zip(*halves, strict=True)
  close(y, jnp.concatenate(ys))
  close(by_x, jnp.concatenate(of_x))
  close(by_params, jax.tree.map(jnp.add, *of_params))
  close(statistics, jax.tree.map(lambda a, b: (a + b) / 2, *averages))
  changed = np.concatenate([x[:4], 100 * x[4:]])
  np.testing.assert_array_equal(train(model, variables, changed)[0][:4], y[:4])
  assert not np.allclose(train(whole, variables, x)[0], y, rtol=1e-2)


@pytest.mark.parametrize('shape', [(24, 5), (24, 3, 3, 5)])
@pytest.mark.parametrize('group', [4, 64])
def test_padded_is_unpadded(shape, group):
  """With whatever in the empty slots: rows 11 to 23 carry weight 0."""
  x = draw(shape)
  model = GhostBatchNorm(group)
  variables = perturbed(x)
  alone = train(model, variables, x[:11])
  padded = np.concatenate([x[:11], 1000 + 50 * x[11:]])
  weights = (np.arange(24) < 11).astype(np.float32)
  got = train(model, variables, padded, weights)
  close(rows_of(got, slice(11)), list(alone))
  assert not np.any(got[3][11:])


def test_empty_slots_may_lie_anywhere_in_a_group():
  x = draw((8, 5))
  weights = np.array([0, 1, 1, 0, 1, 0, 0, 1], np.float32)
  real = np.flatnonzero(weights)
  model = GhostBatchNorm(8)
  variables = perturbed(x)
  alone = train(model, variables, x[real], rows=real)
  got = train(model, variables, x, weights)
  close(rows_of(got, real), list(alone))


@pytest.mark.parametrize('real', [24, 18])
def test_statistics_do_not_depend_on_the_microbatches(real):
  """Averaged with their examples as weights, as the step does."""
  x = draw((24, 5))
  weights = (np.arange(24) < real).astype(np.float32)
  model = GhostBatchNorm(4)
  variables = perturbed(x)
  whole = train(model, variables, x, weights)[1]
  for split in ((8, 16), (4,) * 6, (12, 12)):
    edges = np.cumsum((0, *split))
    total = jax.tree.map(np.zeros_like, whole)
    for start, stop in itertools.pairwise(edges):
      rows = slice(start, stop)
      part = train(model, variables, x[rows], weights[rows], rows)[1]
      share = weights[rows].sum() / real
      total = jax.tree.map(lambda t, v, s=share: t + s * v, total, part)
    close(total, whole)


def test_a_group_without_examples_stays_finite():
  x = draw((4, 5))
  got = train(GhostBatchNorm(4), perturbed(x), x, np.zeros(4, np.float32))
  assert all(np.isfinite(v).all() for v in jax.tree.leaves(got))


def test_initialising_leaves_the_statistics_alone():
  model = GhostBatchNorm(4)
  variables = model.init(jax.random.key(0), draw((8, 5)), train=True)
  np.testing.assert_array_equal(variables['batch_stats']['mean'], np.zeros(5))
  np.testing.assert_array_equal(variables['batch_stats']['var'], np.ones(5))


# Networks.


def parameters(model, shape):
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False)
  )
  return sum(v.size for v in jax.tree.leaves(variables['params']))


def test_pooled_cnn_has_the_parameters_of_the_paper():
  assert parameters(PooledCNN(10), IMAGE) == 111_050


@pytest.mark.parametrize('hidden', [(), (128,), (64, 32, 16)])
@pytest.mark.parametrize('shape', [(64,), (8, 8, 3)])
def test_mlp_parameters(hidden, shape):
  sizes = [int(np.prod(shape)), *hidden, 7]
  expected = sum((a + 1) * b for a, b in itertools.pairwise(sizes))
  assert parameters(MODELS['mlp'](7, hidden_sizes=hidden), shape) == expected


@pytest.mark.parametrize('group', [0, 8])
@pytest.mark.parametrize('shape', [IMAGE, (32, 32, 3), (9, 5, 1)])
def test_strided_cnn_parameters(group, shape):
  height, width, depth = shape
  expected = 0
  for channels in (4, 6):
    expected += (9 * depth + 1) * channels + (2 * channels if group else 0)
    height, width, depth = -(-height // 2), -(-width // 2), channels
  expected += (height * width * depth + 1) * 20 + (20 + 1) * 10
  model = StridedCNN(10, (4, 6), hidden_size=20, batch_norm_group=group)
  assert parameters(model, shape) == expected


# Each with logit 5 of 10 for the image of `test_golden_logit` and key 0. They
# change when the architecture or the initialisation does.
NETWORKS = {
  'mlp': (MODELS['mlp'](10), 0.38981456),
  'strided_cnn': (StridedCNN(10), 0.04971111),
  'strided_cnn_bn': (StridedCNN(10, batch_norm_group=8), 0.04971061),
  'pooled_cnn': (PooledCNN(10), 0.20895264),
}


@functools.cache
def initial(name):
  init = functools.partial(NETWORKS[name][0].init, train=False)
  return jax.jit(init)(jax.random.key(0), jnp.zeros((1, *IMAGE)))


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(model, variables, x, training, weights=None):
  return model.apply(
    variables, x, train=training, weights=weights, mutable=['batch_stats']
  )


@pytest.mark.parametrize('name', NETWORKS)
def test_golden_logit(name):
  model, expected = NETWORKS[name]
  image = jnp.linspace(-1.0, 1.0, 28 * 28).reshape(1, *IMAGE)
  got, _ = run(model, initial(name), image, False)
  assert float(got[0, 5]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('name', NETWORKS)
def test_logits_of_each_example(name):
  model, variables = NETWORKS[name][0], initial(name)
  x = draw((3, *IMAGE))
  y, _ = run(model, variables, x, False)
  assert y.shape == (3, 10)
  assert y.dtype == jnp.float32
  one, _ = run(model, variables, x[1:2], False)
  close(y[1:2], one, 1e-5)


def test_only_training_touches_the_statistics():
  with_statistics = [n for n in NETWORKS if 'batch_stats' in initial(n)]
  assert with_statistics == ['strided_cnn_bn']
  model, variables = NETWORKS['strided_cnn_bn'][0], initial('strided_cnn_bn')
  x = draw((3, *IMAGE))
  evaluated = run(model, variables, x, False)[1]['batch_stats']
  trained = run(model, variables, x, True)[1]['batch_stats']
  for old, same, new in zip(
    *map(jax.tree.leaves, (variables['batch_stats'], evaluated, trained)),
    strict=True,
  ):
    np.testing.assert_array_equal(old, same)
    assert np.all(old != new)


def test_strided_cnn_passes_the_weights_on():
  x = draw((8, *IMAGE))
  model, variables = NETWORKS['strided_cnn_bn'][0], initial('strided_cnn_bn')
  alone, statistics = run(model, variables, x[:5], True)
  x[5:] *= 50
  padded, same = run(model, variables, x, True, jnp.arange(8) < 5)
  close(padded[:5], alone, 1e-5)
  close(same, statistics)


@pytest.mark.parametrize('shape', [(27, 28, 1), (28, 27, 1), (8, 8, 3)])
def test_pooled_cnn_refuses_small_images(shape):
  with pytest.raises(ValueError, match='at least 28x28.*strided_cnn or mlp'):
    parameters(PooledCNN(10), shape)


def test_every_model_is_in_the_table():
  assert set(MODELS) == {'mlp', 'pooled_cnn', 'strided_cnn'}
