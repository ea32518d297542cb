"""Each norm of the noise through whole updates, on any number of devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from adabatch import data, optim
from adabatch.controllers import buckets
from adabatch.data.source import Inputs
from adabatch.devices.mesh import make_devices
from adabatch.devices.messages import Call, Report
from adabatch.devices.recipe import Recipe
from adabatch.devices.step import Variant
from adabatch.devices.trainer import Trainer
from adabatch.models import tasks
from adabatch.optim.noise_norms import NOISE_NORMS
from tests.optim.test_noise_norms import folded

BETA2, EPSILON, SEED, BATCH = 0.9, 0.01, 3, 16
NORMS = sorted(NOISE_NORMS)


class Normed(nn.Module):
  """Of one number: two dense layers around a LayerNorm."""

  @nn.compact
  def __call__(self, x, *, train, rows=None):
    return nn.Dense(1)(nn.relu(nn.LayerNorm()(nn.Dense(5)(x))))[:, 0]


def loss(out, batch):
  return 0.5 * (out - batch['y']) ** 2


@functools.cache
def split():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(512, 6)).astype(np.float32)
  y = x.sum(1) + rng.normal(size=512).astype(np.float32)
  return data.Split({'x': x, 'y': y}, 1)


def load(arrays, indices, positions):
  return {k: a[indices] for k, a in arrays.items()}


def make_trainer(name, devices, *, keep_gradient=False, per_call=1):
  return Trainer(
    Recipe(
      model=Normed(),
      task=tasks.classification()._replace(
        loss=loss, inputs=lambda batch: batch['x']
      ),
      tx=optim.make_optimizer(
        'adam', lambda examples, batch_size: 0.01, beta2=BETA2, epsilon=EPSILON
      ),
      inputs=Inputs(split(), split(), False, 0, lambda seed: load, load),
      network_input=jax.ShapeDtypeStruct((1, 6), np.float32),
      devices=make_devices(jax.devices()[:devices]),
      seed=SEED,
      estimate_noise=True,
      noise_norm=NOISE_NORMS[name](BETA2, EPSILON),
      keep_gradient=keep_gradient,
      updates_per_call=per_call,
    )
  )


def plan(devices, size=BATCH, microbatch=2):
  """Batches of 16 in eight parts, however many devices share them."""
  rungs = buckets.ladder(size, size, devices=devices, max_per_device=microbatch)
  return buckets.plan(size, rungs)


@functools.cache
def reports(name, devices, size=BATCH, updates=5):
  """Of updates in one call, [updates] each; and the states before each."""
  trainer = make_trainer(name, devices, keep_gradient=size == 1)
  states, rows = [], []
  for k in range(updates):
    call = Call(k, k * size, 1, plan(devices, size))
    trainer.compile(call)
    states.append(jax.tree.map(np.asarray, trainer.state))
    rows.append(np.asarray(trainer.dispatch(call, stop=False))[0, 0])
  trainer.close()
  return Report(*np.array(rows, np.float64).T), states


def per_example(params, update, size=BATCH):
  """Gradients at the parameters, as a tree of [examples, ...]."""
  order = data.Order(512, SEED)
  chosen = data.take(order, update * size, (update + 1) * size)

  def one(params, x, y):
    out = Normed().apply({'params': params}, x[None], train=True)
    return loss(out, {'y': y})[0]

  arrays = split().arrays
  gradient = jax.vmap(jax.grad(one), (None, 0, 0))
  return gradient(params, arrays['x'][chosen], arrays['y'][chosen])


def seen(name, gradients, state):
  """[examples, coordinates] that are measured, written out."""
  paths = jax.tree_util.tree_leaves_with_path(gradients)
  (adam,) = (
    s
    for s in jax.tree.leaves(
      state.opt_state, is_leaf=lambda s: hasattr(s, 'nu') and hasattr(s, 'mu')
    )
    if hasattr(s, 'nu')
  )
  columns = []
  for (path, g), nu in zip(paths, jax.tree.leaves(adam.nu), strict=True):
    if name == 'normalisation' and 'LayerNorm' not in str(path):
      continue
    g = np.asarray(g, np.float64)
    if name == 'adam':
      nu_hat = nu / (1 - BETA2 ** int(adam.count))
      g = g / (np.sqrt(nu_hat) + EPSILON)
    columns.append(g.reshape(len(g), -1))
  return np.concatenate(columns, 1)


def estimate(name, g, parts):
  """Of parts [examples] of equal size, by an analysis of variance."""
  n, k = len(g), parts
  means = g.reshape(k, n // k, -1).mean(1)
  mean, variances = g.mean(0), (n // k) * means.var(0, ddof=1)
  if name != 'l1':
    return variances.sum(), np.sum(mean**2) - variances.sum() / n
  c4 = {2: 0.797884560802865, 8: 0.965030456185}[k]
  s, size = np.sqrt(variances), np.abs(mean)
  # Of units that are off both are 0.
  error = np.where(s > 0, s / np.sqrt(n), 1.0)
  lengths = np.where(s > 0, 2 * size - folded(size, error), size)
  return (s.sum() / c4) ** 2, lengths.sum() * abs(lengths.sum())


@pytest.mark.parametrize('name', NORMS)
@pytest.mark.parametrize('devices', [1, 8])
def test_noise_is_that_of_single_examples(name, devices):
  report, states = reports(name, devices)
  for k in range(5):
    got = report.trace_covariance[k], report.squared_norm[k]
    if name == 'adam' and k == 0:
      assert np.isnan(got).all()
      continue
    gradients = per_example(states[k].params, k)
    expected = estimate(name, seen(name, gradients, states[k]), 8)
    np.testing.assert_allclose(got, expected, rtol=5e-4)


@pytest.mark.parametrize('name', NORMS)
@pytest.mark.parametrize('devices', [2, 8])
def test_shared_out_it_is_the_same(name, devices):
  one, several = reports(name, 1)[0], reports(name, devices)[0]
  np.testing.assert_allclose(several[:5], one[:5], rtol=1e-4)


def test_norms_differ_and_what_is_trained_does_not():
  found = {name: reports(name, 1)[0] for name in NORMS}
  for name in NORMS:
    np.testing.assert_array_equal(found[name][:3], found['l2'][:3])
    if name != 'l2':
      scale = found[name].trace_covariance / found['l2'].trace_covariance
      assert (np.abs(np.log(scale[1:])) > 0.05).all(), name


@pytest.mark.parametrize('name', NORMS)
@pytest.mark.parametrize('devices', [1, 8])
def test_of_single_examples_the_one_before_is_the_other_part(name, devices):
  report, states = reports(name, devices, 1, 4)
  assert np.isnan(report.trace_covariance[0])
  for k in range(1, 4):
    pairs = [per_example(states[i].params, i, 1) for i in (k - 1, k)]
    both = jax.tree.map(lambda *g: np.concatenate(g), *pairs)
    expected = estimate(name, seen(name, both, states[k]), 2)
    got = report.trace_covariance[k], report.squared_norm[k]
    np.testing.assert_allclose(got, expected, rtol=5e-4)


def exchanged(name):
  """Floats that an update's all-reduces take, and how many there are."""
  trainer = make_trainer(name, 8)
  lowered = trainer.lower(Variant(plan(8).bucket))
  trainer.close()
  found = re.findall(
    r'"stablehlo\.all_reduce"\(.*?\}\) : \((.*?)\) ->',
    lowered.as_text(),
    re.DOTALL,
  )
  shapes = re.findall(r'tensor<((?:\d+x)*)f32>', ' '.join(found))
  count = sum(int(np.prod([int(n) for n in s.split('x')[:-1]])) for s in shapes)
  compiled = lowered.compile().as_text()
  return count, len(re.findall(r' all-reduce(?:-start)?\(', compiled))


@pytest.mark.parametrize('name', NORMS)
def test_what_devices_exchange_for_it(name):
  """Nothing more for norms of squares, one more gradient for l1; at once."""
  plain, once = exchanged('l2')
  parameters = 6 * 5 + 5 + 5 + 5 + 5 + 1
  assert (once, plain) == (1, parameters + 5)
  expected = parameters - 1 if name == 'l1' else 0
  assert exchanged(name) == (plain + expected, once)


def test_without_a_reader_nothing_is_measured():
  trainer = make_trainer('l1', 8)
  recipe = trainer._recipe._replace(estimate_noise=False)
  quiet = Trainer(recipe)
  text = quiet.lower(Variant(plan(8).bucket)).as_text()
  plain = Trainer(recipe._replace(noise_norm=NOISE_NORMS['l2'](0.0, 0.0)))
  assert text == plain.lower(Variant(plan(8).bucket)).as_text()
  for one in (trainer, quiet, plain):
    one.close()


def test_a_mean_of_nothing_tells_nothing():
  """Of a batch without a readable example neither number is one."""
  norm = NOISE_NORMS['l1'](0.0, 0.0)
  zeros = {'w': jnp.zeros(3)}
  norms = norm.of_microbatch(None, zeros, jnp.float32(0))
  got = norm.from_microbatches(
    None, norms, zeros, jnp.float32(0), jnp.float32(0)
  )
  assert not np.isfinite(got.trace_covariance)
