"""Ghost BatchNorm in one reading of its input, as on TPUs, and how it sums."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch.devices.mesh import BY_DEVICE, DATA_AXIS, WHOLE, make_devices
from adabatch.devices.step import varying
from adabatch.models import GhostBatchNorm, Rows, normalization

CHANNELS = 4


def draw(shape, mean, seed=0):
  rng = np.random.Generator(np.random.Philox(seed))
  return (mean + rng.standard_normal(shape)).astype(np.float32)


# Of mean 100 and variance 1: known well, a little and not at all, as at first.
@pytest.mark.parametrize('running', [100.0, 97.0, 96.2, 50.0, 0.0, -1e4])
def test_one_reading_is_as_exact_as_two(running):
  x = draw((2, 32, 144, CHANNELS), 100.0)
  mask = np.ones((2, 32, 1, 1), np.float32)
  mask[1, 20:] = 0
  x[1, 20:] = -1e3  # empty slots hold whatever
  share = mask / (x.shape[2] * mask.sum(1, keepdims=True))
  guess = np.full(CHANNELS, running, np.float32)
  got = jax.jit(normalization._one_pass)(x, share, guess)
  for g, real in enumerate((32, 20)):
    exact = x[g, :real].astype(np.float64)
    mean, var = exact.mean((0, 1)), exact.var((0, 1))
    np.testing.assert_allclose(got[0][g, 0, 0], mean, rtol=1e-6)
    np.testing.assert_allclose(got[1][g, 0, 0], var, rtol=1e-5)


def readings(jaxpr, size):
  """Sums over arrays of that size."""
  return sum(
    eqn.primitive.name == 'reduce_sum' and eqn.invars[0].aval.size == size
    for eqn in jaxpr.eqns
  )


def test_what_is_close_is_read_once():
  """No sum but those of the first reading is taken."""
  x = draw((1, 32, 16, CHANNELS), 0.5)
  share = np.full((1, 32, 1, 1), 1 / 512, np.float32)
  arguments = x, share, np.zeros(CHANNELS, np.float32)
  program = jax.make_jaxpr(normalization._one_pass)(*arguments)
  (either,) = (e for e in program.eqns if e.primitive.name == 'cond')
  assert readings(program, x.size) == 2
  branches = either.params['branches']
  assert [readings(branch, x.size) for branch in branches] == [0, 2]


@pytest.mark.parametrize('mean', [0.0, 3.0, 100.0, 3000.0])
def test_bfloat16_is_read_once_and_loses_less_than_its_rounding(mean):
  """At the first update, which knows nothing of the mean."""
  exact = draw((1, 32, 144, CHANNELS), mean)
  x = jnp.asarray(exact, jnp.bfloat16)
  share = np.full((1, 32, 1, 1), 1 / (32 * 144), np.float32)
  unknown = np.zeros(CHANNELS, np.float32)
  program = jax.make_jaxpr(normalization._one_pass)(x, share, unknown)
  assert readings(program, x.size) == 2
  assert not any(e.primitive.name == 'cond' for e in program.eqns)
  _, found = jax.jit(normalization._one_pass)(x, share, unknown)
  rounded = np.asarray(x, np.float64).var((0, 1, 2))
  wrong = np.abs(np.ravel(found) - rounded)
  by_rounding = np.abs(rounded - exact.astype(np.float64).var((0, 1, 2)))
  assert np.all(wrong <= 1e-5 * rounded + by_rounding)


@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16])
@pytest.mark.parametrize('exceptions', [0, 1])
def test_what_is_nearly_constant_is_not_blown_up(dtype, exceptions):
  """Nothing of it was rounded."""
  values = np.linspace(-300, 300, 257).astype(jnp.bfloat16)
  x = np.broadcast_to(values, (1, 32, 49, len(values))).astype(np.float32)
  x[0, :exceptions, 0] *= 1.015625
  x = x.astype(jnp.bfloat16).astype(dtype)
  share = np.full((1, 32, 1, 1), 1 / (32 * 49), np.float32)
  unknown = np.zeros(len(values), np.float32)
  found = jax.jit(normalization._one_pass)(jnp.asarray(x), share, unknown)
  mean, var = np.asarray(found)
  assert np.all(var >= (0 if dtype == jnp.bfloat16 else -1e-9))
  exact = x.astype(np.float64)
  true_var = exact.var((0, 1, 2))
  y = (exact - mean) / np.sqrt(var + 1e-5)
  true_y = (exact - exact.mean((0, 1, 2))) / np.sqrt(true_var + 1e-5)
  assert np.all(np.abs(y) <= 1.05 * np.abs(true_y) + 0.1)


@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16])
@pytest.mark.parametrize('mean', [0.0, 100.0])
def test_results_and_gradients_are_those_of_the_textbook(
  dtype, mean, monkeypatch
):
  """Two readings of what is around 0, differentiated by JAX."""
  monkeypatch.setattr(normalization, '_two_passes', normalization._one_pass)
  x = jnp.asarray(draw((12, 3, 3, CHANNELS), mean), dtype)
  target = draw(x.shape, 0.0, 1)
  model = GhostBatchNorm(8)
  variables = model.init(jax.random.key(0), x, train=False)
  weights = jnp.asarray([1.0] * 11 + [0.0])

  def ours(params, x):
    y, _ = model.apply(
      {**variables, 'params': params},
      x,
      train=True,
      rows=Rows(weights, jnp.arange(12)),
      mutable=['batch_stats'],
    )
    return y

  def textbook(params, x):
    found = []
    for rows, real in ((slice(0, 8), 8), (slice(8, 12), 3)):
      group = x[rows].astype(jnp.float32)
      centred = group - jnp.mean(group[:real], (0, 1, 2))
      var = jnp.mean(jnp.square(centred[:real]), (0, 1, 2))
      y = centred * jax.lax.rsqrt(var + 1e-5)
      found.append(y * params['scale'] + params['bias'])
    return jnp.concatenate(found)

  def with_gradients(normalise, x):
    def loss(params, x):
      y = normalise(params, x)
      squares = jnp.square(y - target) * weights[:, None, None, None]
      return jnp.sum(squares), y

    both = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    return both(variables['params'], x)

  found, expected = with_gradients(ours, x), with_gradients(textbook, x - mean)
  rel = 1e-5 if dtype == np.float32 else 1e-2  # of a gradient in bfloat16
  if mean and dtype == np.float32:
    rel = 5e-5  # the mean itself is known to 1e-5 of the variance
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    a, b = (v[:11] if v.ndim == 4 else v for v in (a, b))
    np.testing.assert_allclose(a, b, rtol=0, atol=rel * np.abs(b).max())


@pytest.mark.parametrize('dtype', [jnp.bfloat16, np.int32])
def test_the_result_is_as_exact_as_its_own_dtype(dtype):
  """However coarse the input is."""
  x = jnp.asarray(10 * draw((8, CHANNELS), 0.0), dtype)
  model = GhostBatchNorm(8)
  variables = model.init(jax.random.key(0), x, train=False)

  def trained(params, x):
    y, _ = model.apply(
      {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
    )
    return jnp.sum(jnp.sin(y)), y

  both = jax.grad(trained, has_aux=True)
  found = both(variables['params'], x)
  expected = both(variables['params'], x.astype(jnp.float32))
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
  ('devices', 'gathers', 'reduces'),
  [
    (8, 2, 0),  # pairs
    (3, 0, 2),  # a pair, and one device
  ],
)
def test_devices_sum_once_each_way_and_among_their_own(
  devices, gathers, reduces
):
  """Mean and variance in one exchange, and both sums of the gradient."""
  model = GhostBatchNorm(8)
  x = draw((devices, 4, 3, 3, CHANNELS), 0.0)
  variables = model.init(jax.random.key(0), x[0], train=False)

  def body(variables, x):
    variables = varying(variables)
    rows = Rows(jnp.ones(4), jnp.arange(4), devices, DATA_AXIS)

    def loss(params, x):
      y, _ = model.apply(
        {**variables, 'params': params},
        x,
        train=True,
        rows=rows,
        mutable=['batch_stats'],
      )
      return jnp.sum(jnp.square(y))

    found = jax.grad(loss, (0, 1))(variables['params'], x)
    return jax.lax.pmax(found, DATA_AXIS)

  program = make_devices(jax.devices()[:devices]).spmd(
    body, arguments=(WHOLE, BY_DEVICE)
  )
  text = program.lower(variables, x).as_text()
  assert len(re.findall('stablehlo.all_gather"', text)) == gathers
  parts = text.split('stablehlo.all_reduce"')[1:]
  sums = [part for part in parts if 'stablehlo.add' in part.split('})')[0]]
  assert len(sums) == reduces
  if gathers:
    own = re.findall(r'all_gather"[^\n]*replica_groups = dense<(.*?)>', text)
    assert own == ['[[0, 1], [2, 3], [4, 5], [6, 7]]'] * 2
