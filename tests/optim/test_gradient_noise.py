"""Gradient-noise estimates against a covariance that is known exactly."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch.optim import gradient_noise as gn

DIMENSIONS = 6
SIGMA = 0.7  # standard deviation of the label noise


def regression_gradients(seed, trials, examples, error):
  """Gradients of squared errors of examples at w, w - w* = `error`.

  With inputs x ~ N(0, I) and labels x.w* + SIGMA e the gradient of one example
  is x (x.error - SIGMA e), so G = error and, by Gaussian fourth moments,
  tr Sigma = (d + 1) |error|^2 + d SIGMA^2.
  """
  rng = np.random.Generator(np.random.Philox(seed))
  x = rng.standard_normal((trials, examples, DIMENSIONS), np.float32)
  noise = rng.standard_normal((trials, examples), np.float32)
  return x * (x @ error - SIGMA * noise)[..., None]


def truth(error):
  squared = float(np.sum(np.square(error)))
  return (DIMENSIONS + 1) * squared + DIMENSIONS * SIGMA**2, squared


def assert_unbiased(estimates, expected):
  """The mean over trials is the truth within 4 standard errors."""
  estimates = np.asarray(estimates, np.float64)
  error = estimates.std() / math.sqrt(len(estimates))
  assert error < 0.02 * expected, 'too few trials to tell'
  assert abs(estimates.mean() - expected) < 4 * error


ERROR = np.linspace(0.2, 1.2, DIMENSIONS).astype(np.float32)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('sizes', [(4, 4), (1,) * 8, (5, 1, 0, 2), (7, 0, 1)])
def test_microbatch_estimates_are_unbiased(seed, sizes):
  examples = sum(sizes)
  gradients = regression_gradients(seed, 20_000, examples, ERROR)
  edges = np.cumsum((0, *sizes))
  sums = np.stack(
    [gradients[:, a:b].sum(1) for a, b in zip(edges, edges[1:], strict=False)],
    1,
  )

  @jax.jit
  @jax.vmap
  def estimate(sums, mean):
    norms = jax.vmap(gn.of_microbatch)(
      {'w': sums}, jnp.asarray(sizes, jnp.float32)
    )
    norms = jax.tree.map(jnp.sum, norms)
    return gn.from_microbatches(
      norms, gn.squared_norm({'w': mean}), jnp.float32(examples)
    )

  got = estimate(sums, gradients.mean(1))
  trace, squared = truth(ERROR)
  assert_unbiased(got.trace_covariance, trace)
  assert_unbiased(got.squared_norm, squared)


@pytest.mark.parametrize('sizes', [(3, 3, 3), (3, 2, 0, 4)])
def test_microbatch_estimate_is_the_textbook_formula(sizes):
  """An analysis of variance in NumPy; of equal sizes, the published one."""
  gradients = regression_gradients(9, 1, 9, ERROR)[0].astype(np.float64)
  groups = np.split(gradients, np.cumsum(sizes)[:-1])
  real = [g for g in groups if len(g)]
  n = len(gradients)
  mean = gradients.mean(0)
  trace = sum(len(g) * np.sum((g.mean(0) - mean) ** 2) for g in real)
  trace /= len(real) - 1
  squared = np.sum(mean**2) - trace / n
  if len(set(sizes)) == 1:
    m, large = sizes[0], np.sum(mean**2)
    small = np.mean([np.sum(g.mean(0) ** 2) for g in real])
    assert trace == pytest.approx((small - large) / (1 / m - 1 / n))
    assert squared == pytest.approx((n * large - m * small) / (n - m))

  norms = [
    gn.of_microbatch(jnp.float32(g.sum(0)), jnp.float32(len(g))) for g in groups
  ]
  norms = jax.tree.map(lambda *x: sum(x), *norms)
  got = gn.from_microbatches(norms, gn.squared_norm(mean), jnp.float32(n))
  assert float(got.trace_covariance) == pytest.approx(trace, rel=1e-5)
  assert float(got.squared_norm) == pytest.approx(squared, rel=1e-5)


def test_a_microbatch_may_hold_a_part_of_an_example():
  """A row of text that is half full: its mean gradient is the whole one."""
  norms = gn.of_microbatch(0.5 * jnp.ones(4), jnp.float32(0.5))
  assert [float(x) for x in norms] == [0.5 * 4, 1.0]


def test_an_empty_microbatch_contributes_nothing():
  norms = gn.of_microbatch({'w': jnp.ones(3)}, jnp.float32(0))
  assert [float(x) for x in norms] == [0.0, 0.0]


@pytest.mark.parametrize('sizes', [(8,), (0, 8, 0), (0, 0)])
def test_one_microbatch_or_none_gives_nan(sizes):
  weights = jnp.asarray(sizes, jnp.float32)
  norms = jax.vmap(gn.of_microbatch)(jnp.ones((len(sizes), 3)), weights)
  norms = jax.tree.map(jnp.sum, norms)
  got = gn.from_microbatches(norms, jnp.float32(3.0), weights.sum())
  assert np.isnan(got).all()


def test_one_microbatch_gives_nan_whatever_its_size():
  """1 / (1 / n) is not n for every n in floating point."""
  sizes = jnp.arange(1.0, 513.0)
  norms = jax.vmap(gn.of_microbatch)(jnp.ones((512, 3)), sizes)
  got = jax.vmap(gn.from_microbatches)(norms, jnp.ones(512), sizes)
  assert np.isnan(got).all()


def difference(gradient, previous, examples, before):
  old = gn.Previous(previous, jnp.float32(before))
  return gn.from_difference(gradient, jnp.float32(examples), old)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('sizes', [(4, 4), (1, 5)])
def test_difference_is_unbiased_at_fixed_parameters(seed, sizes):
  """Whatever the size of the batch before was."""
  now, before = sizes
  gradients = regression_gradients(seed, 20_000, now + before, ERROR)
  got = jax.vmap(lambda a, b: difference(a, b, now, before))(
    gradients[:, :now].mean(1), gradients[:, now:].mean(1)
  )
  trace, squared = truth(ERROR)
  assert_unbiased(got.trace_covariance, trace)
  assert_unbiased(got.squared_norm, squared)


def test_difference_is_the_textbook_formula():
  """For equal sizes: tr Sigma = b |g - p|^2 / 2 and |G|^2 = g.p."""
  g = {'a': jnp.array([1.0, -2.0]), 'b': jnp.array([[0.5]])}
  p = {'a': jnp.array([0.5, -1.0]), 'b': jnp.array([[2.0]])}
  got = difference(g, p, 10, 10)
  assert float(got.trace_covariance) == pytest.approx(10 * 3.5 / 2, rel=1e-6)
  assert float(got.squared_norm) == pytest.approx(3.5, rel=1e-6)
  got = difference(g, p, 1, 4)
  assert float(got.trace_covariance) == pytest.approx(3.5 * 4 / 5, rel=1e-6)


def test_the_first_difference_is_unknown():
  params = {'a': jnp.ones(3)}
  got = gn.from_difference(params, jnp.float32(1), gn.no_previous(params))
  assert np.isnan(got).all()
  assert np.isnan(difference(params, params, 0, 1)).all()


def test_squared_norm_adds_up_in_float32():
  # 300 ones: bfloat16 cannot count beyond 256.
  tree = {'a': jnp.ones(300, jnp.bfloat16), 'b': [jnp.full((2, 2), 3.0), None]}
  got = gn.squared_norm(tree)
  assert got.dtype == jnp.float32
  assert float(got) == 336.0


def test_squared_norm_of_complex_numbers():
  assert float(gn.squared_norm({'z': jnp.array([3 + 4j, 1j])})) == 26.0


def test_the_square_itself_is_taken_in_float32():
  # 1.0078125**2 has more digits than bfloat16 holds.
  value = 1.0078125
  got = gn.squared_norm(jnp.full(64, value, jnp.bfloat16))
  assert float(got) == pytest.approx(64 * value**2, rel=1e-6)


def test_unknown_is_nan():
  assert np.isnan(gn.unknown()).all()
