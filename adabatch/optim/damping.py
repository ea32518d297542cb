"""Damping: the part of a batch size that the hardware cannot give."""

import jax
import optax

from adabatch.optim.precision import scale_in_float32


def scale_by_damping() -> optax.GradientTransformationExtraArgs:
  """Multiplies the updates by `damping`; belongs last in a chain.

      u <- damping * u,    damping = min(1, B_max / B_nominal)

  When a controller asks for B_nominal > B_max, AdaDamp trains with B_max and
  a learning rate smaller by the ratio. Last in the chain, the factor acts at
  once and in full, also where momentum comes after the learning rate (LARS).
  It has no state, so when the nominal batch size falls back the learning rate
  is back as well.

  Returns:
    A transform whose `update` needs the keyword argument `damping`, a scalar
    (without units, in (0, 1]; computed by the caller). Without it `update`
    raises TypeError: a forgotten damping would otherwise go unnoticed. Dtypes
    and shardings of the updates are kept.

  Reference: Sievert and Charles, Improving the convergence of SGD through
  adaptive batch sizes, 2019 (arXiv 1910.08222), Algorithm 1.

  >>> import jax.numpy as jnp
  >>> tx = scale_by_damping()
  >>> state = tx.init(jnp.ones(2))
  >>> updates, state = tx.update(jnp.ones(2), state, damping=0.25)
  >>> updates
  Array([0.25, 0.25], dtype=float32)
  """

  def init(params):
    del params
    return optax.EmptyState()

  def update(
    updates, state, params=None, *, damping: jax.typing.ArrayLike, **extra
  ):
    del params, extra
    return scale_in_float32(updates, damping), state

  # optax's type for update knows no required extra arguments.
  return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore
