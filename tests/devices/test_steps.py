"""Updates and evaluation on the devices against slow twins in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from adabatch import data, optim
from adabatch.controllers import buckets
from adabatch.devices import parallel, train_state
from adabatch.devices.evaluate import Evaluator, Measurements, resident_pieces
from adabatch.devices.feeds import ResidentFeed
from adabatch.devices.updates import Updates
from adabatch.models import tasks

CLASSES, EXAMPLES, SMOOTHING = 3, 40, 0.2
BASE, MOMENTUM = 0.02, 0.9


class Regression(nn.Module):
  """Softmax regression; in evaluation mode less a running mean of inputs."""

  @nn.compact
  def __call__(self, x, *, train, rows=None):
    x = x.reshape(x.shape[0], -1)
    mean = self.variable('stats', 'mean', jnp.zeros, x.shape[1:])
    if train:
      batch_mean = rows.weights @ x / jnp.maximum(jnp.sum(rows.weights), 1)
      mean.value = 0.9 * mean.value + 0.1 * batch_mean
      return nn.Dense(CLASSES)(x)
    return nn.Dense(CLASSES)(x - mean.value)


def load(arrays, indices, positions):
  """Training images are brighter by an amount that the position gives."""
  image = arrays['image'][indices]
  if positions is not None:
    high, low = positions
    factor = 1 + high / 4 + (low % 5) / 8
    image = image * factor.astype(jnp.float32)[:, None, None, None]
  return {'image': image, 'label': arrays['label'][indices]}


def rule(examples, batch_size):
  """Falls with the examples, as long as float32 can tell them apart."""
  falling = jnp.where(examples < 2.0**31, 64 / (64 + examples), 1.0)
  return BASE * batch_size / 16 * falling


@pytest.fixture(scope='module')
def split():
  rng = np.random.default_rng(0)
  arrays = {
    'image': rng.normal(size=(EXAMPLES, 2, 1, 2)).astype(np.float32),
    'label': rng.integers(0, CLASSES, EXAMPLES),
  }
  return data.from_arrays(arrays, CLASSES)


def make_updates(split, devices, *, per_call=1, backend='shard_map', seed=3):
  mesh = parallel.make_mesh(jax.devices()[:devices])
  return Updates(
    Regression(),
    tasks.classification(SMOOTHING),
    optim.make_optimizer('momentum', rule, momentum=MOMENTUM),
    load,
    ResidentFeed(split, data.Order(EXAMPLES, seed), mesh),
    network_input=split.arrays['image'][:1],
    seed=seed,
    mesh=mesh,
    backend=backend,
    estimate_noise=True,
    keep_gradient=True,
    updates_per_call=per_call,
  )


def softmax(logits):
  exponentials = np.exp(logits - logits.max(1, keepdims=True))
  return exponentials / exponentials.sum(1, keepdims=True)


def with_bias(x):
  return np.concatenate([x, np.ones((len(x), 1))], 1)


def weights_of(state):
  """Kernel and bias in one matrix."""
  dense = state.params['Dense_0']
  rows = [np.asarray(dense['kernel']), np.asarray(dense['bias'])[None]]
  return np.concatenate(rows).astype(np.float64)


class Twin:
  """The same training, an example at a time as far as that is possible."""

  def __init__(self, state, split, seed=3):
    self.w = weights_of(state)
    self.velocity = np.zeros_like(self.w)
    self.previous = np.zeros_like(self.w), 0
    self.mean = np.zeros(len(self.w) - 1)
    self.order = data.Order(EXAMPLES, seed)
    self.split = split

  def update(self, position, plan):
    size, bucket = plan.batch_size, plan.bucket
    positions = range(position, position + size)
    chosen = data.take(self.order, position, position + size)
    factor = [1 + (p >> 32) / 4 + (p % 2**32 % 5) / 8 for p in positions]
    x = self.split.arrays['image'][chosen].reshape(size, -1).astype(np.float64)
    x *= np.array(factor)[:, None]
    hot = np.eye(CLASSES)[self.split.arrays['label'][chosen]]
    targets = (1 - SMOOTHING) * hot + SMOOTHING / CLASSES
    p = softmax(with_bias(x) @ self.w)
    gradients = np.einsum('ni,nc->nic', with_bias(x), p - targets)
    gradient = gradients.mean(0)
    loss = -np.sum(targets * np.log(p)) / size

    # Which slots each microbatch of each device holds, the empty ones apart.
    width = bucket.microbatch_size
    groups = [
      gradients[first : min(first + width, size)]
      for first in range(0, bucket.slots, width)
    ]
    groups = [g for g in groups if len(g)]
    if len(groups) > 1:
      trace = sum(len(g) * np.sum((g.mean(0) - gradient) ** 2) for g in groups)
      trace /= len(groups) - 1
      squared = np.sum(gradient**2) - trace / size
    elif not self.previous[1]:
      trace = squared = np.nan
    else:
      old, before = self.previous
      total = size + before
      trace = np.sum((gradient - old) ** 2) * size * before / total
      pooled = (size * gradient + before * old) / total
      squared = np.sum(pooled**2) - trace / total

    falling = 64 / (64 + position) if position < 2**31 else 1
    rate = BASE * size / 16 * falling * plan.damping
    self.velocity = MOMENTUM * self.velocity + gradient
    self.w = self.w - rate * self.velocity
    self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
    self.previous = gradient, size
    return loss, np.sum(gradient**2), rate, trace, squared


# Nominal sizes and how many updates of each: with empty slots, without, damped.
SIZES = ((5, 3), (11, 2), (16, 1), (64, 2), (4, 2))


@pytest.mark.parametrize(
  ('devices', 'max_per_device', 'per_call', 'backend', 'start'),
  [
    (1, None, 1, 'shard_map', 0),
    (1, 3, 1, 'shard_map', 2**32 - 7),
    (3, None, 4, 'shard_map', 2**32 - 7),
    (2, 3, 1, 'pmap', 0),
  ],
)
def test_updates_equal_numpy(
  split, devices, max_per_device, per_call, backend, start
):
  updates = make_updates(split, devices, per_call=per_call, backend=backend)
  ladder = buckets.ladder(
    4,
    16,
    devices=devices,
    max_per_device=max_per_device,
    growth=4.0,
    rounding='exact',
  )
  twin = Twin(updates.state, split)
  position = start
  for nominal, count in SIZES:
    plan = buckets.plan(nominal, ladder)
    program = updates.cache.get(updates.variant(plan.bucket, False))
    for done in range(0, count, per_call):
      now, stop = min(per_call, count - done), done > 0
      got = np.asarray(updates.run(program, position, plan, now, stop=stop))
      assert got.shape == (1, per_call, 9)
      got = got[0]
      for row in got[:now]:
        expected = twin.update(position, plan)
        position += plan.batch_size
        np.testing.assert_allclose(row[:3], expected[:3], rtol=1e-5)
        np.testing.assert_allclose(row[3:5], expected[3:], rtol=2e-3, atol=1e-6)
        assert row[5] == stop * devices
        assert row[6] == plan.batch_size
      assert not got[now:].any()
    np.testing.assert_allclose(weights_of(updates.state), twin.w, atol=1e-5)
    mean = updates.state.model_state['stats']['mean']
    np.testing.assert_allclose(mean, twin.mean, atol=1e-6)
  updates.cache.close()


def test_the_seed_gives_the_parameters(split):
  kernels = [
    weights_of(make_updates(split, 1, seed=seed).state).tolist()
    for seed in (3, 3, 4)
  ]
  assert kernels[0] == kernels[1] != kernels[2]


def test_no_array_is_copied_to_the_devices_unasked(split):
  updates = make_updates(split, 1)
  plan = buckets.plan(4, buckets.ladder(4, 16, devices=1))
  double = jax.jit(lambda x: 2 * x)
  double(np.ones(3))
  with pytest.raises(Exception, match='[Dd]isallowed'):
    updates.run(
      lambda state, arrays, batch: (state, double(np.ones(3))),
      *(0, plan, 1),
      stop=False,
    )


@pytest.mark.parametrize(
  ('devices', 'max_per_device', 'limit', 'backend'),
  [
    (1, 100, 40, 'shard_map'),
    (1, 4, 13, 'shard_map'),
    (3, 2, 13, 'shard_map'),
    (3, 100, 2, 'shard_map'),
    (2, 4, 13, 'pmap'),
  ],
)
def test_evaluation_equals_numpy(
  split, devices, max_per_device, limit, backend
):
  mesh = parallel.make_mesh(jax.devices()[:devices])
  fresh = train_state.create(
    Regression(),
    split.arrays['image'][:1],
    optim.make_optimizer('sgd', 0.1),
    jax.random.key(0),
  )
  mean = np.array([0.5, -1.0, 0.25, 2.0], np.float32)
  state = parallel.replicate(
    fresh._replace(model_state={'stats': {'mean': mean}}, opt_state=()), mesh
  )
  evaluator = Evaluator(
    Regression(),
    tasks.classification(SMOOTHING),
    load,
    resident_pieces(
      parallel.replicate(split.arrays, mesh), limit, mesh, max_per_device
    ),
    mesh=mesh,
    backend=backend,
  )
  x = with_bias(split.arrays['image'][:limit].reshape(limit, -1) - mean)
  label = split.arrays['label'][:limit]
  p = softmax(x @ weights_of(state))
  gradient = x.T @ (p - np.eye(CLASSES)[label]) / limit
  # Twice: what was summed must not stay.
  for _ in range(2):
    assert evaluator.metrics(state) == pytest.approx(
      {
        'loss': -np.log(p[np.arange(limit), label]).mean(),
        'accuracy': (p.argmax(1) == label).mean(),
      },
      rel=1e-5,
    )
    assert evaluator.gradient_norm_squared(state) == pytest.approx(
      np.sum(gradient**2), rel=1e-4
    )


class Fake:
  """An evaluator whose answers tell what it was asked."""

  def __init__(self, arrays, examples):
    self.arrays, self.examples = arrays, examples

  def metrics(self, state):
    return {'loss': f'{self.arrays} loss of {state}', 'accuracy': 1.0}

  def gradient_norm_squared(self, state):
    return f'{self.arrays} norm of {state}'


class FakeCalibration:
  """Over ten examples."""

  examples = 10

  def __call__(self, state):
    return f'calibrated {state}'


def test_measurements_cost_what_they_evaluate():
  def measure(*needs, calibration=None):
    made = []

    def evaluator(pieces):
      made.append(pieces[0])
      return Fake(*pieces)

    measurements = Measurements(
      frozenset(needs),
      evaluator,
      full=lambda: ('all', 100),
      subset=lambda: ('some', 10),
      calibration=calibration,
    )
    return made, *measurements.take('x')

  assert measure('loss', 'gradient_noise') == ([], {}, 0)
  assert measure('full_loss', 'loss') == (
    ['all'],
    {'full_loss': 'all loss of x'},
    100,
  )
  assert measure('subset_loss', 'subset_gradient_norm_squared') == (
    ['some'],
    {
      'subset_loss': 'some loss of x',
      'subset_gradient_norm_squared': 'some norm of x',
    },
    20,
  )
  made, values, cost = measure('subset_loss', 'full_gradient_norm_squared')
  assert sorted(made) == ['all', 'some']
  assert len(values) == 2
  assert cost == 110
  # Statistics are calibrated once for the loss and the norm.
  needs = 'subset_loss', 'subset_gradient_norm_squared'
  _, values, cost = measure(*needs, calibration=FakeCalibration)
  assert values['subset_loss'] == 'some loss of calibrated x'
  assert values['subset_gradient_norm_squared'] == 'some norm of calibrated x'
  assert cost == 30
  assert measure('loss', calibration=FakeCalibration) == ([], {}, 0)
