"""Noise rules ask for the same batch sizes on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch import (
  buckets,
  controllers,
  data,
  gradient_noise,
  optim,
  parallel,
  tasks,
)
from adabatch.controllers import GradientNoise, Signals
from adabatch.feeds import ResidentFeed
from adabatch.steps import StepSignals
from adabatch.updates import Updates
from tests.test_steps import Regression

EXAMPLES, CLASSES, UPDATES, SEEDS = 512, 3, 100, 6
DEVICES = (1, 2, 8)


@pytest.fixture(scope='module')
def split():
  rng = np.random.default_rng(0)
  label = rng.integers(0, CLASSES, EXAMPLES)
  image = rng.normal(size=(EXAMPLES, 2, 2, 2))
  image[..., 0, 0] += label[:, None]
  return data.from_arrays(
    {'image': image.astype(np.float32), 'label': label}, CLASSES
  )


def load(arrays, indices, positions):
  del positions
  return {name: array[indices] for name, array in arrays.items()}


def reports(split, devices, batch_size, *, rate=0.05, seeds=SEEDS):
  """What the updates of some seeds report: [seeds, updates, 9]."""
  mesh = parallel.make_mesh(jax.devices()[:devices])
  updates = Updates(
    Regression(),
    tasks.classification(0.0),
    optim.make_optimizer('sgd', rate),
    load,
    ResidentFeed(split, data.Order(EXAMPLES, 0), mesh),
    network_input=split.arrays['image'][:1],
    seed=0,
    mesh=mesh,
    backend='shard_map',
    estimate_noise=True,
    keep_gradient=True,
    updates_per_call=UPDATES,
  )
  ladder = buckets.ladder(batch_size, batch_size, devices=devices, split=True)
  plan = buckets.plan(batch_size, ladder)
  program = updates.cache.get(updates.variant(plan.bucket, False))
  fresh = jax.device_get(updates.state)
  found = []
  for seed in range(seeds):
    updates.state = parallel.replicate(fresh, mesh)
    position = seed * UPDATES * batch_size
    got = updates.run(program, position, plan, UPDATES, stop=False)
    found.append(np.asarray(got)[0])
  updates.close()
  return np.array(found)


def signals(rows):
  for update, row in enumerate(rows, start=1):
    report = StepSignals(*map(float, row))
    noise = GradientNoise(report.trace_covariance, report.squared_norm)
    yield Signals(
      update,
      loss=report.loss,
      learning_rate=report.learning_rate,
      gradient_noise=noise if np.isfinite(noise).all() else None,
    )


def nominal(controller, rows):
  state, size = controller.init(), None
  for signal in signals(rows):
    size, state = controller.update(state, signal)
  return size


def gain(rows):
  scaling = optim.adascale(32)
  state, factor = scaling.init(), 1.0
  for signal in signals(rows):
    factor, state = scaling.update(state, 512, signal.gradient_noise)
  return float(factor)


READERS = {
  'noise_scale': lambda rows: nominal(
    controllers.noise_scale(initial_batch_size=1, floor=False), rows
  ),
  # Averages of a few updates are noisy, and it takes nothing back.
  'norm_test': lambda rows: nominal(
    controllers.every(
      controllers.norm_test(initial_batch_size=1), updates=10, wait=50
    ),
    rows,
  ),
  'cabs': lambda rows: nominal(
    controllers.cabs(initial_batch_size=1, floor=False, c=100.0), rows
  ),
  'adascale': gain,
}


@pytest.fixture(scope='module')
def by_devices(split):
  return {n: reports(split, n, 16) for n in DEVICES}


@pytest.mark.parametrize('reader', READERS)
def test_devices_agree(by_devices, reader):
  """Within the spread of the estimates; parameters move all the while."""
  logs = {
    n: np.log([READERS[reader](rows) for rows in found])
    for n, found in by_devices.items()
  }
  for n in DEVICES[1:]:
    spread = np.hypot(logs[1].std(ddof=1), logs[n].std(ddof=1))
    difference = logs[n].mean() - logs[1].mean()
    assert abs(difference) < 4 * spread / np.sqrt(SEEDS)
    assert spread < 1.5  # or nothing would be said


def test_all_estimate_the_same(by_devices):
  """Averages over all updates, to a few parts of a hundred."""
  traces = [found[..., 3].mean() for found in by_devices.values()]
  assert np.ptp(traces) < 0.1 * np.mean(traces)


def test_of_single_examples(split):
  """There is nothing but the gradient before, and that on all devices."""
  one, two, eight = (reports(split, n, 1, seeds=1)[0] for n in DEVICES)
  assert np.isnan(one[0, 3:5]).all()
  assert np.isfinite(one[1:, 3:5]).all()
  np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-5)


def test_the_size_before_is_remembered(split):
  """S does not jump where the batch changes: 1 / n + 1 / n', not 2 / n."""
  rng = np.random.default_rng(1)
  small = rng.normal(size=(4000, 1, 3)).mean(1)
  large = rng.normal(size=(4000, 9, 3)).mean(1)
  got = jax.vmap(
    lambda g, p: gradient_noise.from_difference(
      g, p, jnp.float32(9), jnp.float32(1)
    )
  )(large, small)
  assert float(got.trace_covariance.mean()) == pytest.approx(3.0, rel=0.05)
