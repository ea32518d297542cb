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

  Attributes:
    count: updates so far, int32 scalar.
    mu: first moment, like the parameters, at least float32.
    nu: second moment, like the parameters, real, at least float32.
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
  b2_min: jax.typing.ArrayLike = 0.95,
) -> optax.GradientTransformationExtraArgs:
  """Adam with the half-life of the second moment fixed in examples.

      beta2_k = max(floor, b2^(B_k / B_ref)), floor = min(b2, max(b2_min, b1^2))
      mu <- b1 mu + (1 - b1) g,  nu <- beta2_k nu + (1 - beta2_k) |g|^2
      u = mu / (1 - b1^k) / (sqrt(nu / (1 - prod_{i<=k} beta2_i)) + eps)

  With B = B_ref throughout it is `optax.scale_by_adam`. Without the floor,
  b2^(B / B_ref) would come near 0 where B is many times B_ref; below b1^2, nu
  forgets a large gradient sooner than mu does, and the updates that follow are
  not bounded by any multiple of the learning rate.

  Args:
    b1: decay of the first moment, for each update.
    b2: decay of the second moment, for each B_ref examples.
    eps: added to the denominator, in units of the gradient.
    reference_batch_size: B_ref in examples, where b2 was chosen.
    b2_min: beta2_k is not lowered below this, nor below b1^2; from b2 = 0.999
      it comes to 0.95 at 51 B_ref.

  Returns:
    A transform whose `update` needs the keyword argument `batch_size` (true
    global batch, scalar). Moments are kept in at least float32; the updates
    have the gradients' dtypes and shardings.

  Raises:
    ValueError: reference_batch_size is not positive.

  Reference: Kingma and Ba, Adam, 2014 (arXiv 1412.6980); Busbridge et al.,
  How to Scale Your EMA, 2023 (arXiv 2307.13813), for the power of the decay.

  >>> import jax.numpy as jnp
  >>> tx = scale_by_adam_in_examples(b2=0.98, reference_batch_size=32)
  >>> state = tx.init(jnp.ones(1))
  >>> updates, state = tx.update(jnp.ones(1), state, batch_size=64)
  >>> print(f'{state.nu[0]:.4f} {updates[0]:.2f}')  # 1 - 0.98^2
  0.0396 1.00
  """
  check_reference('scale_by_adam_in_examples', reference_batch_size)

  def update(
    updates, state, params=None, *, batch_size: jax.typing.ArrayLike, **extra
  ):
    del params, extra
    ratio = jnp.asarray(batch_size, jnp.float32) / reference_batch_size
    # 1 - beta2_k by expm1: with B much below B_ref, beta2_k rounds to 1.
    floor = _log(beta2_floor(b1, b2, b2_min))
    new = -jnp.expm1(jnp.maximum(ratio * _log(b2), floor))
    count = jnp.asarray(optax.safe_increment(state.count))
    mu = jax.tree.map(
      lambda g, m: m + (1 - b1) * (g.astype(m.dtype) - m), updates, state.mu
    )
    nu = jax.tree.map(
      lambda g, v: v + new * (_squared(g, v.dtype) - v), updates, state.nu
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
  return optax.GradientTransformationExtraArgs(_no_moments, update)  # pyright: ignore


def _no_moments(params):
  return ScaleByAdamInExamplesState(
    count=jnp.zeros([], jnp.int32),
    mu=jax.tree.map(lambda p: jnp.zeros_like(p, _dtype(p)), params),
    nu=jax.tree.map(
      lambda p: jnp.zeros_like(p, jnp.finfo(_dtype(p)).dtype), params
    ),
    nu_weight=jnp.zeros([], jnp.float32),
  )


def _dtype(leaf):
  return jnp.promote_types(leaf.dtype, jnp.float32)


def remembering_examples(opt_state: Any, b2: float) -> Any:
  """The state of an optimizer whose Adam is to remember examples from now on.

      nu_weight = 1 - b2^k after k updates, each of B_ref examples

  Args:
    opt_state: in which every `optax.ScaleByAdamState` is replaced.
    b2: of the updates so far.

  Returns:
    The state of the optimizer with `scale_by_adam_in_examples` in its place.

  >>> before = optax.scale_by_adam(b2=0.5)
  >>> _, state = before.update(jnp.ones(1), before.init(jnp.ones(1)))
  >>> float(remembering_examples((state,), 0.5)[0].nu_weight)
  0.5
  """

  def one(node: Any) -> Any:
    if not isinstance(node, optax.ScaleByAdamState):
      return node
    count = jnp.asarray(node.count)
    weight = -jnp.expm1(count.astype(jnp.float32) * _log(b2))
    return ScaleByAdamInExamplesState(count, node.mu, node.nu, weight)

  return jax.tree.map(
    one, opt_state, is_leaf=lambda n: isinstance(n, optax.ScaleByAdamState)
  )


def beta2_floor(b1: Any, b2: Any, b2_min: Any) -> Any:
  """The least decay of the second moment, however large the batch.

      floor = min(b2, max(b2_min, b1^2))

  b2 itself, where that is lower: at B_ref it holds as it was chosen.

  Args:
    b1: as in `scale_by_adam_in_examples`, like the others.
    b2: of the second moment.
    b2_min: its floor.

  Returns:
    A scalar; a number if all three are.

  >>> beta2_floor(0.9, 0.999, 0.95), beta2_floor(0.9, 0.999, 0.0)
  (0.95, 0.81)
  """
  if any(isinstance(b, jax.Array) for b in (b1, b2, b2_min)):
    return jnp.minimum(b2, jnp.maximum(b2_min, b1 * b1))
  return min(b2, max(b2_min, b1**2))


def _squared(gradient, dtype):
  """|g|^2, also of complex numbers, whose square is not real."""
  if jnp.iscomplexobj(gradient):
    return (gradient * gradient.conj()).real.astype(dtype)
  return jnp.square(gradient.astype(dtype))


def _log(b2):
  # In float64 where b2 is a number: log(0.999) in float32 is off by 3e-5.
  if isinstance(b2, jax.Array):
    return jnp.log(b2.astype(jnp.float32))
  return math.log(b2) if b2 > 0 else -math.inf
