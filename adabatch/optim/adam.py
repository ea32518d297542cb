"""Adam whose second moment remembers examples, not updates."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adabatch.optim.scaling import check_reference


class ScaleByAdamInExamplesState(NamedTuple):
  """Moments as in optax, and the weight that corrects the second one's bias.

      nu_hat = nu / nu_weight

  Args:
    count: updates so far, int32 scalar.
    mu: first moment, like the parameters, at least float32.
    nu: second moment, like the parameters, at least float32.
    nu_weight: 1 - prod_i beta2_i over the updates so far, float32 scalar.
  """

  count: jax.Array
  mu: Any
  nu: Any
  nu_weight: jax.Array


def scale_by_adam_in_examples(
  b1: jax.typing.ArrayLike = 0.9,
  b2: jax.typing.ArrayLike = 0.999,
  eps: jax.typing.ArrayLike = 1e-8,
  *,
  reference_batch_size: jax.typing.ArrayLike,
) -> optax.GradientTransformationExtraArgs:
  """Adam with the half-life of the second moment fixed in examples.

      beta2_k = b2^(B_k / B_ref)
      mu <- b1 mu + (1 - b1) g,  nu <- beta2_k nu + (1 - beta2_k) g^2
      u = mu / (1 - b1^k) / (sqrt(nu / (1 - prod_{i<=k} beta2_i)) + eps)

  With B = B_ref throughout it is `optax.scale_by_adam`.

  Args:
    b1: decay of the first moment, for each update.
    b2: decay of the second moment, for each B_ref examples.
    eps: added to the denominator, in units of the gradient.
    reference_batch_size: B_ref in examples, where b2 was chosen.

  Returns:
    A transform whose `update` needs the keyword argument `batch_size` (true
    global batch, scalar). Moments are kept in at least float32; the updates
    have the gradients' dtypes and shardings.

  Raises:
    ValueError: reference_batch_size is not positive.

  Reference: Kingma and Ba, Adam, 2014 (arXiv 1412.6980); Busbridge et al.,
  How to Scale Your EMA, 2023 (arXiv 2307.13813), for the power of the decay.

  >>> import jax.numpy as jnp
  >>> tx = scale_by_adam_in_examples(b2=0.9, reference_batch_size=32)
  >>> state = tx.init(jnp.ones(1))
  >>> updates, state = tx.update(jnp.ones(1), state, batch_size=64)
  >>> print(f'{state.nu[0]:.2f} {updates[0]:.2f}')  # 1 - 0.9^2
  0.19 1.00
  """
  check_reference('scale_by_adam_in_examples', reference_batch_size)

  def init(params):
    return ScaleByAdamInExamplesState(
      count=jnp.zeros([], jnp.int32),
      mu=jax.tree.map(_zeros_like, params),
      nu=jax.tree.map(_zeros_like, params),
      nu_weight=jnp.zeros([], jnp.float32),
    )

  def update(
    updates, state, params=None, *, batch_size: jax.typing.ArrayLike, **extra
  ):
    del params, extra
    ratio = jnp.asarray(batch_size, jnp.float32) / reference_batch_size
    # 1 - beta2_k by expm1: with B much below B_ref, beta2_k rounds to 1.
    new = -jnp.expm1(ratio * _log(b2))
    count = jnp.asarray(optax.safe_increment(state.count))
    mu = jax.tree.map(
      lambda g, m: m + (1 - b1) * (g.astype(m.dtype) - m), updates, state.mu
    )
    nu = jax.tree.map(
      lambda g, v: v + new * (jnp.square(g.astype(v.dtype)) - v),
      updates,
      state.nu,
    )
    nu_weight = state.nu_weight + new * (1 - state.nu_weight)
    mu_weight = 1 - jnp.asarray(b1, jnp.float32) ** count
    updates = jax.tree.map(
      lambda g, m, v: (
        (m / mu_weight) / (jnp.sqrt(v / nu_weight) + eps)
      ).astype(g.dtype),
      updates,
      mu,
      nu,
    )
    return updates, ScaleByAdamInExamplesState(count, mu, nu, nu_weight)

  # optax's type for update knows no required extra arguments.
  return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore


def _zeros_like(leaf):
  dtype = jnp.promote_types(leaf.dtype, jnp.float32)
  return jnp.zeros_like(leaf, dtype=dtype)


def _log(b2):
  # In float64 where b2 is a number: log(0.999) in float32 is off by 3e-5.
  if isinstance(b2, jax.Array):
    return jnp.log(b2.astype(jnp.float32))
  return math.log(b2) if b2 > 0 else -math.inf
