"""How the learning rate grows with the batch size: batch_size -> factor."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adabatch.optim.host import Scalar, float32, namespace

# On the host for a number, like schedules.
Scaling = Callable[[jax.typing.ArrayLike], Scalar]


class StatefulScaling(NamedTuple):
  """A scaling that learns from the gradient noise.

      factor, state <- update(state, batch_size, gradient_noise)

  Attributes:
    init: () -> state, a tree of float32 scalars.
    update: (state, batch_size, gradient_noise or None) -> (factor, state).
  """

  init: Callable[[], Any]
  update: Callable[..., tuple[Scalar, Any]]


class AdaScaleState(NamedTuple):
  """Exponential moving averages that start at zero, and their total weight.

      unbiased average = average / weight

  Attributes:
    trace_covariance: average of S, float32 scalar, gradient units squared.
    squared_norm: average of |G|^2, float32 scalar, gradient units squared.
    weight: 1 - decay^n after n estimates, float32 scalar; 0 before any.
  """

  trace_covariance: jax.Array
  squared_norm: jax.Array
  weight: jax.Array


def no_scaling() -> Scaling:
  """The same learning rate at every batch size.

      factor(B) = 1

  Returns:
    A scaling: global batch size in examples (scalar) -> float32 scalar.

  >>> print(no_scaling()(512))
  1.0
  """
  return lambda batch_size: namespace(batch_size).float32(1)


def linear_scaling(reference_batch_size: float) -> Scaling:
  """The linear scaling rule.

      factor(B) = B / B_ref

  Args:
    reference_batch_size: B_ref in examples, where the base learning rate
      was chosen.

  Returns:
    A scaling: global batch size in examples (scalar) -> float32 scalar.

  Raises:
    ValueError: reference_batch_size is not positive.

  Reference: Goyal et al., Accurate, Large Minibatch SGD, 2017
  (arXiv 1706.02677).

  >>> print(linear_scaling(256)(512))
  2.0
  """
  check_reference('linear_scaling', reference_batch_size)
  return lambda batch_size: _ratio(batch_size, reference_batch_size)


def sqrt_scaling(reference_batch_size: float) -> Scaling:
  """The square-root scaling rule.

      factor(B) = sqrt(B / B_ref)

  Args:
    reference_batch_size: B_ref in examples, where the base learning rate
      was chosen.

  Returns:
    A scaling: global batch size in examples (scalar) -> float32 scalar.

  Raises:
    ValueError: reference_batch_size is not positive.

  Reference: Krizhevsky, One weird trick for parallelizing convolutional
  neural networks, 2014 (arXiv 1404.5997).

  >>> print(sqrt_scaling(256)(1024))
  2.0
  """
  check_reference('sqrt_scaling', reference_batch_size)

  def scaling(batch_size):
    ratio = _ratio(batch_size, reference_batch_size)
    return namespace(ratio).sqrt(ratio)

  return scaling


def adascale(
  reference_batch_size: float, *, decay: float = 0.95
) -> StatefulScaling:
  """AdaScale: scales by the gain that the measured gradient noise allows.

      r = (sigma^2 + mu^2) / (sigma^2 / s + mu^2),    s = B / B_ref,
      sigma^2 = max(0, <S>) / B_ref,    mu^2 = max(0, <|G|^2>)

  with bias-corrected exponential moving averages <.>. The gain is s where
  noise dominates (linear scaling), 1 where it is negligible, and always
  between the two. Before any estimate, and where both averages are clamped
  to zero, r = 1: the small-batch learning rate is the safe one.

  An estimate counts for the update it comes with. One that is not finite is
  ignored, so a caller can pass NaN for "nothing measured this time" without
  another compilation.

  Unlike the paper, decay and warmup advance by examples, not by the gain.

  Args:
    reference_batch_size: B_ref in examples, where the base learning rate
      was chosen.
    decay: of the moving averages, for each estimate, in [0, 1).

  Returns:
    A StatefulScaling. `gradient_noise` is a pair of scalars: S, the trace of
    the covariance of one example's gradient, and |G|^2, the squared norm of
    the mean gradient; unsmoothed, possibly negative.

  Raises:
    ValueError: reference_batch_size is not positive or decay not in [0, 1).

  Reference: Johnson et al., AdaScale SGD, 2020 (arXiv 2007.05105).

  >>> scaling = adascale(32)
  >>> factor, state = scaling.update(scaling.init(), 128, (32.0, 1.0))
  >>> print(factor)  # (1 + 1) / (1/4 + 1)
  1.6
  """
  check_reference('adascale', reference_batch_size)
  if not 0 <= decay < 1:
    raise ValueError(f'adascale: decay must be in [0, 1), got {decay}')

  def init():
    # Three arrays, not one three times: a buffer cannot be donated twice.
    return AdaScaleState(*(jnp.zeros([], jnp.float32) for _ in range(3)))

  def update(state, batch_size, gradient_noise=None):
    if gradient_noise is not None:
      state = _average(state, gradient_noise, decay)
    return _gain(state, batch_size, reference_batch_size), state

  return StatefulScaling(init, update)


def _average(state, gradient_noise, decay):
  trace_covariance, squared_norm = (
    jnp.asarray(value, jnp.float32) for value in gradient_noise
  )
  new = AdaScaleState(trace_covariance, squared_norm, jnp.ones([], jnp.float32))
  usable = jnp.isfinite(trace_covariance) & jnp.isfinite(squared_norm)
  return jax.tree.map(
    lambda old, n: jnp.where(usable, decay * old + (1 - decay) * n, old),
    state,
    new,
  )


def _gain(state, batch_size, reference_batch_size):
  s = _ratio(batch_size, reference_batch_size)
  some = state.weight > 0
  weight = jnp.where(some, state.weight, 1)
  sigma2 = jnp.maximum(state.trace_covariance / weight, 0)
  sigma2 = sigma2 / reference_batch_size
  mu2 = jnp.maximum(state.squared_norm / weight, 0)
  # With 1 in both places a quotient 0/0 (nothing measured) reads as 1.
  nothing = ~some | (sigma2 + mu2 == 0)
  gain = jnp.where(nothing, 1, sigma2 + mu2) / jnp.where(
    nothing, 1, sigma2 / s + mu2
  )
  # The bounds hold in exact arithmetic; rounding must not break them.
  return jnp.clip(gain, jnp.minimum(s, 1), jnp.maximum(s, 1))


def _ratio(batch_size, reference_batch_size):
  return float32(batch_size) / float32(reference_batch_size)


def check_reference(name: str, reference_batch_size: Any) -> None:
  """Raises ValueError for a reference batch size that is not positive.

      reference_batch_size > 0

  Args:
    name: of the caller, for the message.
    reference_batch_size: in examples. A JAX array (a hyperparameter under
      optax.inject_hyperparams) is not checked: its value may be traced.

  >>> check_reference('linear_scaling', 256)
  """
  if isinstance(reference_batch_size, jax.Array):
    return
  if not reference_batch_size > 0:
    raise ValueError(
      f'{name}: reference_batch_size must be positive, '
      f'got {reference_batch_size}'
    )
