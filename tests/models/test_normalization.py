"""BatchNorm whose statistics ignore batch size, devices and microbatches."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from adabatch import data, optim
from adabatch.controllers import buckets
from adabatch.data.source import Inputs
from adabatch.devices.mesh import BY_DEVICE, DATA_AXIS, WHOLE, make_devices
from adabatch.devices.messages import Call
from adabatch.devices.recipe import Recipe
from adabatch.devices.step import varying
from adabatch.devices.trainer import Trainer
from adabatch.models import MODELS, GhostBatchNorm, Rows, tasks


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


def rows_with(weights):
  """Rows on one device, or None for full ones."""
  if weights is None:
    return None
  return Rows(weights=weights, places=jnp.arange(len(weights)))


@functools.partial(jax.jit, static_argnums=0)
def run_training(model, variables, x, weights, target):
  real = jnp.ones(len(x)) if weights is None else weights

  def loss(params, x):
    y, new = model.apply(
      {**variables, 'params': params},
      x,
      train=True,
      rows=rows_with(weights),
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
  def __call__(self, x, *, train, rows=None):
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


@pytest.mark.parametrize('depth', [20])
def test_a_group_without_examples_stays_finite_however_deep(depth):
  """Its own values would grow 300 times at each layer."""
  model = MODELS['cifar_resnet'](10, depth=depth, width=4, batch_norm_group=4)
  x = draw((8, 16, 16, 3))
  rows = Rows(jnp.arange(8.0) < 4, jnp.arange(8))
  variables = jax.jit(functools.partial(model.init, train=False))(
    jax.random.key(0), x
  )

  @jax.jit
  def gradient(params):
    def loss(params):
      logits, new = model.apply(
        {**variables, 'params': params},
        x,
        train=True,
        rows=rows._replace(weights=rows.weights.astype(jnp.float32)),
        mutable=['batch_stats'],
      )
      return jnp.sum(jnp.where(rows.weights[:, None], logits**2, 0)), new

    return jax.grad(loss, has_aux=True)(params)

  found = gradient(variables['params'])
  assert all(np.isfinite(v).all() for v in jax.tree.leaves(found))


def test_gradients_are_those_of_what_is_computed():
  """Also of weights that are fractions, and of the outputs of empty slots."""
  x, weights = draw((8, 3, 5)), jnp.array([1, 0.25, 0, 1, 0.5, 1, 0, 0])
  target, model = draw(x.shape, seed=2), GhostBatchNorm(4)
  variables = perturbed(x)

  def ours(params, x):
    return model.apply(
      {**variables, 'params': params},
      x,
      train=True,
      rows=rows_with(weights),
      mutable=['batch_stats'],
    )[0]

  def plainly(params, x):
    groups, share = x.reshape(2, 4, 3, 5), weights.reshape(2, 4, 1, 1)
    share = share / (3 * jnp.sum(share, 1, keepdims=True))
    mean = jnp.sum(groups * share, (1, 2), keepdims=True)
    var = jnp.sum((groups - mean) ** 2 * share, (1, 2), keepdims=True)
    y = (groups - mean) * jax.lax.rsqrt(var + model.epsilon)
    return (y * params['scale'] + params['bias']).reshape(x.shape)

  def gradients(f):
    def loss(params, x):
      return jnp.sum((f(params, x) - target) ** 2)

    return jax.jit(jax.grad(loss, (0, 1)))(variables['params'], x)

  close(gradients(ours), gradients(plainly), rel=1e-5)


def test_initialising_leaves_the_statistics_alone():
  model = GhostBatchNorm(4)
  variables = model.init(jax.random.key(0), draw((8, 5)), train=True)
  np.testing.assert_array_equal(variables['batch_stats']['mean'], np.zeros(5))
  np.testing.assert_array_equal(variables['batch_stats']['var'], np.ones(5))


# Groups that several devices share.


def on_devices(devices, size, group, x, weights, variables):
  """Outputs, new statistics and gradients of `devices` devices of `size`."""
  model = GhostBatchNorm(group)
  target = draw(x.shape, seed=2)
  between = (DATA_AXIS,) if devices > 1 else ()

  def body(variables, shares):
    x, weights, target = shares
    variables = varying(variables, between)
    first = size * (jax.lax.axis_index(DATA_AXIS) if between else 0)
    rows = Rows(weights, first + jnp.arange(size), devices, DATA_AXIS)

    def loss(params, x):
      y, new = model.apply(
        {**variables, 'params': params},
        x,
        train=True,
        rows=rows,
        mutable=['batch_stats'],
      )
      losses = jnp.mean(jnp.square(y - target), range(1, y.ndim))
      return jnp.sum(jnp.where(weights > 0, losses, 0.0)), (y, new)

    gradients, (y, new) = jax.grad(loss, (0, 1), has_aux=True)(
      variables['params'], x
    )
    share = jnp.sum(weights)
    statistics = jax.tree.map(lambda v: v * share, new['batch_stats'])
    sums = jax.lax.psum((statistics, share, gradients[0]), between)
    if not between:
      return sums, (y, gradients[1])
    rows = jax.lax.all_gather((y, gradients[1]), DATA_AXIS, axis=0, tiled=True)
    return sums, jax.lax.pmax(rows, DATA_AXIS)

  shares = jax.tree.map(
    lambda v: v.reshape(devices, size, *v.shape[1:]), (x, weights, target)
  )
  program = make_devices(jax.devices()[:devices]).spmd(
    body, arguments=(WHOLE, BY_DEVICE)
  )
  (statistics, share, by_params), (y, by_x) = program(variables, shares)
  statistics = jax.tree.map(lambda v: v / share, statistics)
  return y, statistics, by_params, by_x


@pytest.mark.parametrize(
  ('devices', 'size', 'group', 'real'),
  [
    (8, 4, 8, 32),  # pairs of devices
    (8, 2, 8, 13),  # fours, of which the last holds nothing
    (3, 4, 8, 12),  # a pair, and one device that is half a group
    (8, 3, 32, 20),  # all of them together are less than a group
    (5, 2, 6, 9),  # threes, which are no power of two
    (4, 8, 4, 29),  # two groups on each device
  ],
)
@pytest.mark.parametrize('shape', [(5,), (3, 2, 5)])
def test_devices_share_a_group(devices, size, group, real, shape):
  n = devices * size
  x = draw((n, *shape))
  weights = (np.arange(n) < real).astype(np.float32)
  variables = perturbed(x)
  got = on_devices(devices, size, group, x, weights, variables)
  expected = on_devices(1, n, group, x, weights, variables)
  close(got[1:3], expected[1:3], 1e-5)
  close(
    [v[:real] for v in (got[0], got[3])],
    [v[:real] for v in (expected[0], expected[3])],
    1e-5,
  )


def test_a_group_that_is_cut_is_refused():
  x = draw((12, 5))
  with pytest.raises(ValueError, match='groups of 8 examples do not fit 6'):
    on_devices(2, 6, 8, x, np.ones(12, np.float32), perturbed(x))


@pytest.mark.parametrize(
  ('devices', 'max_per_device', 'backend'),
  [
    (8, None, 'shard_map'),
    (3, None, 'pmap'),
    (1, 20, 'shard_map'),
    (4, 2, 'shard_map'),
    (2, 8, 'pmap'),
  ],
)
def test_training_leaves_the_same_statistics(devices, max_per_device, backend):
  """For any device count and any accumulation; batches of 5 and 50."""
  close(
    trained(devices, max_per_device, backend),
    trained(1, None, 'shard_map'),
    1e-5,
  )


@functools.cache
def trained(devices, max_per_device, backend):
  """Running statistics after three updates in two sizes."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (70, 6, 6, 1), np.uint8)
  split = data.from_arrays({'image': images, 'label': np.arange(70) % 3}, 3)

  def load(arrays, indices, positions):
    image = arrays['image'][indices] / 255.0
    return {'image': image, 'label': arrays['label'][indices]}

  trainer = Trainer(
    Recipe(
      model=MODELS['strided_cnn'](3, (4, 6), hidden_size=5, batch_norm_group=8),
      task=tasks.classification(),
      tx=optim.make_optimizer('sgd', lambda examples, batch_size: 0.1),
      inputs=Inputs(split, split, False, 0, lambda seed: load, load),
      network_input=jax.ShapeDtypeStruct((1, 6, 6, 1), np.float32),
      devices=make_devices(
        jax.devices()[:devices],
        backend=backend,
        options={'xla_backend_optimization_level': 0},  # compiles faster
      ),
    )
  )
  ladder = buckets.ladder(
    5,
    50,
    devices=devices,
    max_per_device=max_per_device,
    rounding='exact',
    group_size=8,
  )
  position = 0
  for update, size in enumerate((5, 50, 50)):
    plan = buckets.plan(size, ladder)
    assert plan.batch_size == size
    call = Call(update, position, 1, plan)
    trainer.compile(call)
    trainer.dispatch(call, stop=False)
    position += size
  trainer.close()
  return jax.device_get(trainer.state.model_state)
