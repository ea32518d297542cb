"""The same measure of gradient noise, however the hardware shares it out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from adabatch import controllers, data, optim
from adabatch.controllers import buckets
from adabatch.data.source import Inputs
from adabatch.devices.mesh import make_devices
from adabatch.devices.messages import Call, Report
from adabatch.devices.recipe import Recipe
from adabatch.devices.trainer import Trainer
from adabatch.models import tasks


class Linear(nn.Module):
  """A single product."""

  @nn.compact
  def __call__(self, x, *, train, rows=None):
    w = self.param('w', nn.initializers.zeros, (x.shape[1],))
    return x @ w


@functools.cache
def measured(devices, batch_size, updates=400, rate=0.3):
  """Reports of updates of least squares, far from converged at this rate.

  Returns:
    A Report of float arrays [updates].
  """
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4096, 6)).astype(np.float32)
  noise = rng.normal(size=4096).astype(np.float32)
  split = data.Split({'x': x, 'y': x.sum(1) + noise}, 1)

  def load(arrays, indices, positions):
    return {k: a[indices] for k, a in arrays.items()}

  trainer = Trainer(
    Recipe(
      model=Linear(),
      task=tasks.classification()._replace(
        loss=lambda out, batch: 0.5 * (out - batch['y']) ** 2,
        inputs=lambda batch: batch['x'],
      ),
      tx=optim.make_optimizer('sgd', lambda examples, batch_size: rate),
      inputs=Inputs(split, split, False, 0, lambda seed: load, load),
      network_input=jax.ShapeDtypeStruct((1, 6), np.float32),
      devices=make_devices(
        jax.devices()[:devices], options={'xla_backend_optimization_level': 0}
      ),
      estimate_noise=True,
      keep_gradient=batch_size == 1,
      updates_per_call=updates,
    )
  )
  rungs = buckets.ladder(
    batch_size, batch_size, devices=devices, min_microbatches=2
  )
  plan = buckets.plan(batch_size, rungs)
  call = Call(0, 0, updates, plan)
  trainer.compile(call)
  reports = np.asarray(trainer.dispatch(call, stop=False))[0]
  trainer.close()
  return Report(*reports.T.astype(float))


def asked(report, batch_size):
  """What each rule asks for in the end, and the gain of AdaScale."""
  rules = {
    'noise_scale': controllers.noise_scale(initial_batch_size=1, decay=0.998),
    'norm_test': controllers.norm_test(initial_batch_size=1, decay=0.998),
    'cabs': controllers.cabs(initial_batch_size=1, decay=0.99),
  }
  sizes = {}
  for name, rule in rules.items():
    state, got = rule.init(), []
    for update in range(len(report.loss)):
      signals = controllers.Signals(
        update + 1,
        loss=report.loss[update],
        learning_rate=report.learning_rate[update],
        gradient_noise=controllers.GradientNoise(
          report.trace_covariance[update], report.squared_norm[update]
        ),
      )
      size, state = rule.update(state, signals)
      got.append(size)
    sizes[name] = got[-1]
  scaling = optim.adascale(batch_size / 32, decay=0.998)
  noise = report.trace_covariance, report.squared_norm
  init = scaling.init()
  _, gains = jax.lax.scan(
    lambda state, noise: scaling.update(state, batch_size, noise)[::-1],
    init,
    jax.tree.map(jnp.float32, noise),
  )
  return sizes | {'adascale': float(gains[-1])}


@pytest.mark.parametrize('devices', [2, 8])
def test_rules_ask_for_the_same_on_any_devices(devices):
  """Within the spread of the estimates, which is 5 % over so many updates."""
  one, several = measured(1, 16), measured(devices, 16)
  # The parameters take the same way, so that nothing else differs.
  np.testing.assert_allclose(one.loss, several.loss, rtol=1e-3)
  assert asked(one, 16) == pytest.approx(asked(several, 16), rel=0.15)


def test_the_noise_is_that_of_the_data():
  """tr Sigma of least squares is (d + 1) |w - w*|^2 + d; d = 6."""
  trace = measured(1, 16).trace_covariance[100:].mean()
  assert 6 < trace < 7


@pytest.mark.parametrize('devices', [2, 8])
def test_a_single_example_has_only_the_update_before(devices):
  """The first has none; then any devices give the same estimates."""
  one, several = measured(1, 1, 20, 0.01), measured(devices, 1, 20, 0.01)
  assert np.isnan(several.trace_covariance[0])
  assert np.isfinite(several.trace_covariance[1:]).all()
  for name in ('trace_covariance', 'squared_norm'):
    np.testing.assert_allclose(
      getattr(several, name), getattr(one, name), rtol=1e-3, atol=1e-3
    )
