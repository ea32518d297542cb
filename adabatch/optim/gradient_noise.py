"""How noisy a minibatch gradient is: estimates of tr Sigma and |G|^2.

Sigma is the covariance of the gradient of one example, G the true gradient.
Gradients g_i of k parts of a batch, of n_i examples each and n in all, vary
around their weighted mean g, the gradient of the batch, by

    tr Sigma = (sum_i n_i |g_i|^2 - n |g|^2) / (k - 1)
    |G|^2    = |g|^2 - tr Sigma / n

Both are unbiased for parts of any sizes, and may be negative by chance: smooth
numerator and denominator separately before dividing. With parts of equal size
they are the published estimates from two batch sizes.

Where BatchNorm ties the examples of a group together, the parts are whole
groups.

Reference: McCandlish et al., An Empirical Model of Large-Batch Training, 2018
(arXiv:1812.06162), appendix A.1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adabatch.controllers import GradientNoise


class MicrobatchNorms(NamedTuple):
  """Sums over microbatch gradients, which add over microbatches and devices.

  Attributes:
    squared_norm: sum over microbatches of n_i |g_i|^2, g_i the mean gradient of
      one microbatch and n_i its examples; where the variance of each coordinate
      is wanted, a pytree of n_i g_i^2.
    count: microbatches that hold an example at all.
  """

  squared_norm: Any
  count: jax.Array


class Previous(NamedTuple):
  """The gradient of the update before.

  Attributes:
    gradient: mean over its examples.
    examples: how many they were, float32 []; 0: there was no such update.
  """

  gradient: optax.Updates
  examples: jax.Array


def no_previous(params: optax.Params) -> Previous:
  """Before the first update."""
  return Previous(jax.tree.map(jnp.zeros_like, params), jnp.float32(0))


def squared_norm(tree: optax.Updates) -> jax.Array:
  """Sum of |x|^2 over all entries x of a pytree, in float32.

  >>> float(squared_norm({'w': jnp.array([3.0, 4.0]), 'z': jnp.array([1j])}))
  26.0
  """

  def one(x: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(x):
      return one(x.real) + one(x.imag)
    return jnp.sum(jnp.square(x.astype(jnp.float32)))

  return sum(map(one, jax.tree.leaves(tree)), start=jnp.float32(0))


def of_microbatch(
  gradient_sum: optax.Updates,
  weight: jax.Array,
  squares: Callable[[optax.Updates], Any] = squared_norm,
) -> MicrobatchNorms:
  """The sums contributed by one microbatch, empty ones contributing nothing.

  Args:
    gradient_sum: sum of the examples' gradients.
    weight: number of examples in it, a scalar; may be 0, or a fraction where
      examples count in parts.
    squares: gradient -> what is added up of it, homogeneous of degree 2.
  """
  real = weight > 0
  size = jnp.where(real, weight, 1.0)
  return MicrobatchNorms(
    jax.tree.map(
      lambda square: jnp.where(real, square / size, 0.0), squares(gradient_sum)
    ),
    real.astype(jnp.float32),
  )


def from_microbatches(
  norms: MicrobatchNorms, mean_squared_norm: jax.Array, batch_size: jax.Array
) -> GradientNoise:
  """Estimates from the microbatches of one update; NaN if only one is real.

  Args:
    norms: summed over all microbatches on all devices.
    mean_squared_norm: |g|^2 of the gradient of the whole batch.
    batch_size: n, its examples.

  >>> norms = MicrobatchNorms(jnp.float32(20.0), jnp.float32(4.0))
  >>> noise = from_microbatches(norms, jnp.float32(2.0), jnp.float32(4.0))
  >>> float(noise.trace_covariance), float(noise.squared_norm)
  (4.0, 1.0)
  """
  gap = jnp.where(norms.count > 1, norms.count - 1, jnp.nan)
  trace: Any = (norms.squared_norm - batch_size * mean_squared_norm) / gap
  squared: Any = mean_squared_norm - trace / batch_size
  return GradientNoise(trace, squared)


def from_difference(
  gradient: optax.Updates, examples: jax.Array, previous: Previous
) -> GradientNoise:
  """Estimates from two successive gradients, as from two microbatches.

      tr Sigma = |g - g'|^2 / (1/n + 1/n')

  For batches of a single example, which have no parts. The previous gradient
  was taken at other parameters, so the estimate is biased: the distance between
  the two points counts as noise. NaN where either holds no example.

  Args:
    gradient: g, the mean gradient of this update.
    examples: n, in it.
    previous: g' and n'.
  """
  old, before = previous
  total = of_both(examples, previous)
  distance = squared_norm(jax.tree.map(jnp.subtract, gradient, old))
  trace: Any = distance * examples * before / total
  mean = pooled(gradient, examples, previous, total)
  squared: Any = squared_norm(mean) - trace / total
  return GradientNoise(trace, squared)


def of_both(examples: jax.Array, previous: Previous) -> jax.Array:
  """The examples of two updates; NaN where either has none."""
  known = (examples > 0) & (previous.examples > 0)
  return jnp.where(known, examples + previous.examples, jnp.nan)


def pooled(
  gradient: optax.Updates,
  examples: jax.Array,
  previous: Previous,
  total: jax.Array,
) -> optax.Updates:
  """The mean gradient over the `total` examples of two updates.

  >>> old = Previous(jnp.float32(1.0), jnp.float32(1.0))
  >>> float(pooled(jnp.float32(3.0), jnp.float32(3.0), old, jnp.float32(4.0)))
  2.5
  """
  old, before = previous
  return jax.tree.map(
    lambda g, p: (examples * g + before * p) / total, gradient, old
  )


def unknown() -> GradientNoise:
  """No estimate: NaN for both."""
  return GradientNoise(jnp.float32(jnp.nan), jnp.float32(jnp.nan))
