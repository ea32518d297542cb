"""How noisy a minibatch gradient is: estimates of tr Sigma and |G|^2.

Sigma is the covariance of the gradient of one example, G the true gradient.
A mean over b examples has E|G_b|^2 = |G|^2 + tr(Sigma) / b, so two batch sizes
give both unknowns. The estimates are unbiased and may be negative by chance:
smooth numerator and denominator separately before dividing.

Reference: McCandlish et al., An Empirical Model of Large-Batch Training, 2018
(arXiv:1812.06162), appendix A.1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adabatch.controllers import GradientNoise


class MicrobatchNorms(NamedTuple):
  """Sums over microbatch gradients, which add over microbatches and devices.

  Attributes:
    squared_norm: sum over microbatches of |G_m|^2, G_m the mean gradient of one
      microbatch.
    inverse_size: sum over microbatches of 1 / (its examples).
    count: microbatches that hold an example at all.
  """

  squared_norm: jax.Array
  inverse_size: jax.Array
  count: jax.Array


def squared_norm(tree: optax.Updates) -> jax.Array:
  """Sum of |x|^2 over all entries x of a pytree, in float32.

  >>> float(squared_norm({'w': jnp.array([3.0, 4.0j])}))
  25.0
  """
  return inner_product(tree, tree)


def inner_product(a: optax.Updates, b: optax.Updates) -> jax.Array:
  """Real part of the sum of a conj(b) over all entries, in float32.

  >>> float(inner_product(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])))
  11.0
  """

  def of_leaf(x, y):
    if jnp.iscomplexobj(x):
      return of_leaf(x.real, y.real) + of_leaf(x.imag, y.imag)
    return jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32))

  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return sum((of_leaf(x, y) for x, y in pairs), start=jnp.zeros([]))


def of_microbatch(gradient_sum: optax.Updates, weight: jax.Array):
  """The sums contributed by one microbatch, empty ones contributing nothing.

  Args:
    gradient_sum: sum of the examples' gradients.
    weight: number of examples in it, a scalar; may be 0.
  """
  real = (weight > 0).astype(jnp.float32)
  size = jnp.maximum(weight, 1.0)
  return MicrobatchNorms(
    real * squared_norm(gradient_sum) / size**2, real / size, real
  )


def from_norms(
  small_squared_norm, large_squared_norm, small_size, large_size
) -> GradientNoise:
  """Solves for tr Sigma and |G|^2 from mean squared norms at two sizes.

      |G|^2    = (n |G_n|^2 - m |G_m|^2) / (n - m)
      tr Sigma = (|G_m|^2 - |G_n|^2) / (1/m - 1/n)

  Args:
    small_squared_norm: mean of |G_m|^2 over gradients of m examples.
    large_squared_norm: |G_n|^2 of their mean, over n examples.
    small_size: m. For microbatches of different sizes: their harmonic mean.
    large_size: n > m; NaN comes back where n = m.

  >>> noise = from_norms(5.0, 2.0, 1.0, 4.0)
  >>> float(noise.trace_covariance), float(noise.squared_norm)
  (4.0, 1.0)
  """
  m, n = jnp.float32(small_size), jnp.float32(large_size)
  apart = n > m
  gap = jnp.where(apart, n - m, jnp.nan)
  return GradientNoise(
    trace_covariance=(small_squared_norm - large_squared_norm) * m * n / gap,
    squared_norm=(n * large_squared_norm - m * small_squared_norm) / gap,
  )


def from_microbatches(
  norms: MicrobatchNorms, mean_squared_norm: jax.Array, batch_size: jax.Array
) -> GradientNoise:
  """Estimates from the microbatches of one update; NaN if only one is real.

  Args:
    norms: summed over all microbatches on all devices.
    mean_squared_norm: |G_n|^2 of the gradient of the whole batch.
    batch_size: n, its examples.
  """
  return from_norms(
    norms.squared_norm / norms.count,
    mean_squared_norm,
    norms.count / norms.inverse_size,
    jnp.where(norms.count > 1, batch_size, 0.0),
  )


def from_difference(
  gradient: optax.Updates,
  previous_gradient: optax.Updates,
  size: jax.Array,
  previous_size: jax.Array,
) -> GradientNoise:
  """Estimates from two successive gradients, where there is one microbatch.

      |G|^2    = <g, g'>
      tr Sigma = |g - g'|^2 / (1/n + 1/n')

  The previous gradient was taken at other parameters, so the estimate is
  biased: the distance between the two points counts as noise. It is for
  batches of one example, which nothing else can be said of.

  Args:
    gradient: g, the mean gradient of this update.
    previous_gradient: g', that of the update before.
    size: n, examples in the first; NaN comes back where there are none.
    previous_size: n', in the second; likewise.

  >>> g, before = jnp.array([2.0, 0.0]), jnp.array([1.0, 1.0])
  >>> noise = from_difference(g, before, jnp.float32(1), jnp.float32(1))
  >>> float(noise.trace_covariance), float(noise.squared_norm)
  (1.0, 2.0)
  """
  # NaN where there is none of one.
  known: Any = jnp.where((size > 0) & (previous_size > 0), 1.0, jnp.nan)
  distance = squared_norm(
    jax.tree.map(jnp.subtract, gradient, previous_gradient)
  )
  product = inner_product(gradient, previous_gradient)
  sizes = size * previous_size / jnp.maximum(size + previous_size, 1e-30)
  return GradientNoise(distance * sizes * known, product * known)


def unknown() -> GradientNoise:
  """No estimate: NaN for both."""
  return GradientNoise(jnp.float32(jnp.nan), jnp.float32(jnp.nan))
