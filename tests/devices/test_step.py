"""Updates and evaluation on the devices against slow twins in NumPy."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from adabatch import data, optim
from adabatch.controllers import buckets
from adabatch.data.source import Inputs
from adabatch.devices import state as state_lib
from adabatch.devices.evaluation import Evaluator
from adabatch.devices.measurements import Measurements
from adabatch.devices.mesh import make_devices
from adabatch.devices.messages import Call
from adabatch.devices.pieces import resident_pieces
from adabatch.devices.recipe import Recipe
from adabatch.devices.trainer import Trainer
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


def make_recipe(split, devices, *, backend='shard_map', **kwargs):
  image = split.arrays['image']
  return Recipe(
    model=Regression(),
    task=tasks.classification(SMOOTHING),
    tx=optim.make_optimizer('momentum', rule, momentum=MOMENTUM),
    inputs=Inputs(
      train=split,
      evaluation=split,
      streaming=False,
      workers=0,
      load_train=lambda seed: load,
      load=load,
    ),
    network_input=jax.ShapeDtypeStruct((1, *image.shape[1:]), image.dtype),
    devices=make_devices(jax.devices()[:devices], backend=backend),
    **kwargs,
  )


def make_trainer(split, devices, *, per_call=1, backend='shard_map', seed=3):
  return Trainer(
    make_recipe(
      split,
      devices,
      backend=backend,
      seed=seed,
      estimate_noise=True,
      keep_gradient=True,
      updates_per_call=per_call,
    )
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
  trainer = make_trainer(split, devices, per_call=per_call, backend=backend)
  ladder = buckets.ladder(
    4,
    16,
    devices=devices,
    max_per_device=max_per_device,
    growth=4.0,
    rounding='exact',
  )
  twin = Twin(trainer.state, split)
  position, update = start, 0
  for nominal, count in SIZES:
    plan = buckets.plan(nominal, ladder)
    for done in range(0, count, per_call):
      now, stop = min(per_call, count - done), done > 0
      call = Call(update, position, now, plan)
      trainer.compile(call)
      got = np.asarray(trainer.dispatch(call, stop=stop))
      update += now
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
    np.testing.assert_allclose(weights_of(trainer.state), twin.w, atol=1e-5)
    mean = trainer.state.model_state['stats']['mean']
    np.testing.assert_allclose(mean, twin.mean, atol=1e-6)
  trainer.close()


def test_the_seed_gives_the_parameters(split):
  kernels = [
    weights_of(make_trainer(split, 1, seed=seed).state).tolist()
    for seed in (3, 3, 4)
  ]
  assert kernels[0] == kernels[1] != kernels[2]


def test_no_array_is_copied_to_the_devices_unasked(split):
  trainer = make_trainer(split, 1)
  plan = buckets.plan(4, buckets.ladder(4, 16, devices=1))
  call = Call(0, 0, 1, plan)
  trainer.compile(call)
  program, copied = trainer._program, []

  def run(*given):
    here = [x for x in jax.tree.leaves(given) if not isinstance(x, jax.Array)]
    copied.append(sum(x.nbytes for x in here))
    return program(*given)

  trainer._program = run
  for _ in range(2):
    trainer.dispatch(call, stop=False)
  # What is in the batch, and neither state nor data.
  assert copied == [4 * (2 + 4 + 6)] * 2
  trainer.close()


LAGGING = np.array([0.5, -1.0, 0.25, 2.0], np.float32)


def lagging(recipe):
  """A state on the devices whose running mean is that of no data."""
  state = state_lib.create(
    recipe.model,
    np.zeros(recipe.network_input.shape, np.float32),
    recipe.tx,
    jax.random.key(0),
  )
  statistics = {'stats': {'mean': LAGGING}}
  return recipe.devices.place(
    state._replace(model_state=statistics, opt_state=())
  )


def evaluated(state, split, chosen, mean):
  """Metrics of some examples and |mean gradient|^2, with a running mean."""
  n, label = len(chosen), split.arrays['label'][chosen]
  x = with_bias(split.arrays['image'][chosen].reshape(n, -1) - mean)
  p = softmax(x @ weights_of(state))
  gradient = x.T @ (p - np.eye(CLASSES)[label]) / n
  metrics = {
    'loss': -np.log(p[np.arange(n), label]).mean(),
    'accuracy': (p.argmax(1) == label).mean(),
  }
  return metrics, np.sum(gradient**2)


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
  recipe = make_recipe(split, devices, backend=backend)
  state = lagging(recipe)
  arrays = recipe.devices.place(split.arrays)
  evaluator = Evaluator(
    recipe, resident_pieces(arrays, limit, recipe.devices, max_per_device)
  )
  expected, norm = evaluated(state, split, np.arange(limit), LAGGING)
  # Twice: what was summed must not stay.
  for _ in range(2):
    assert evaluator.metrics(state) == pytest.approx(expected, rel=1e-5)
    assert evaluator.gradient_norm_squared(state) == pytest.approx(
      norm, rel=1e-4
    )


class Recorded:
  """A split that notes what is read from it."""

  def __init__(self, split):
    self._split, self.read_indices = split, []

  def __getattr__(self, name):
    return getattr(self._split, name)

  def read(self, indices, positions=None):
    self.read_indices.append(indices)
    return self._split.read(indices, positions)


def test_measurements_cost_what_they_evaluate(split):
  """And are of the examples they say, with calibrated statistics."""
  state = lagging(make_recipe(split, 2))

  def measure(*needs, statistics=True):
    source, compiled = Recorded(split), []
    recipe = make_recipe(
      source, 2, seed=3, needs=frozenset(needs), subset_size=10
    )

    @contextlib.contextmanager
    def compiling():
      compiled.append(needs)
      yield

    measurements = Measurements(
      recipe,
      recipe.devices.place(split.arrays),
      lambda name: pytest.fail,  # no record is damaged
      compiling,
      has_statistics=statistics,
    )
    values, cost = measurements.take(state)
    return source.read_indices, len(compiled), values, cost

  def approx(loss, norm, source):
    return pytest.approx(
      {f'{source}_loss': loss, f'{source}_gradient_norm_squared': norm},
      rel=1e-4,
    )

  # What needs no pass costs nothing, whatever statistics there are.
  assert measure('loss', 'gradient_noise') == ([], 0, {}, 0)
  both = 'subset_loss', 'subset_gradient_norm_squared'
  (subset, drawn), _, values, cost = measure(*both)
  assert [len(set(indices)) for indices in (subset, drawn)] == [10, 10]
  assert set(subset) != set(drawn)
  images = split.arrays['image'].reshape(EXAMPLES, -1)
  mean = images[drawn].mean(0)
  metrics, norm = evaluated(state, split, subset, mean)
  assert values == approx(metrics['loss'], norm, 'subset')
  # Statistics are calibrated once for the loss and the norm.
  assert cost == 10 + 2 * 10
  (again,), programs, values, cost = measure(*both, statistics=False)
  assert again.tolist() == subset.tolist()
  metrics, norm = evaluated(state, split, subset, LAGGING)
  assert values == approx(metrics['loss'], norm, 'subset')
  assert cost == 2 * 10
  assert programs == 3  # the loss, the gradient and its norm

  metrics, norm = evaluated(state, split, np.arange(EXAMPLES), mean)
  (again,), _, values, cost = measure('full_loss', 'loss')
  assert again.tolist() == drawn.tolist()
  assert values == pytest.approx({'full_loss': metrics['loss']}, rel=1e-4)
  assert cost == 10 + EXAMPLES
  reads, _, values, cost = measure('subset_loss', 'full_gradient_norm_squared')
  assert len(reads) == 2
  assert values.keys() == {'subset_loss', 'full_gradient_norm_squared'}
  assert values['full_gradient_norm_squared'] == pytest.approx(norm, rel=1e-4)
  assert cost == 10 + 10 + EXAMPLES
