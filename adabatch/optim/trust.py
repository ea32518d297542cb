"""Trust ratios: steps in proportion to the size of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

# A pytree of booleans, a prefix of one, or params -> such a tree.
Mask = Any


def scale_by_lars(
  weight_decay: jax.typing.ArrayLike = 0.0,
  trust_coefficient: jax.typing.ArrayLike = 0.001,
  *,
  decay_mask: Mask = True,
  trust_mask: Mask = True,
) -> optax.GradientTransformationExtraArgs:
  """LARS without its learning rate and momentum.

      u = t (g + wd p),    t = trust |p| / (|g| + wd |p|)

  leaf by leaf, with Euclidean norms. t = 1 where |p| or |g| is 0. The norm of
  the sum g + wd p, in place of the sum of the norms, would be another method.

  Args:
    weight_decay: wd.
    trust_coefficient: trust.
    decay_mask: where weight decay applies; wd = 0 elsewhere.
    trust_mask: where the trust ratio applies; t = 1 elsewhere. Masks are
      pytrees of booleans, prefixes of such, or functions params -> such a tree.

  Returns:
    A transform without state whose `update` needs params; dtypes and shardings
    of the updates are kept.

  Raises:
    ValueError: from `update`, without params.

  Reference: You et al., Large Batch Training of Convolutional Networks, 2017
  (arXiv 1708.03888), equation 6 and algorithm 1.

  >>> import jax.numpy as jnp
  >>> tx = scale_by_lars(weight_decay=1.0, trust_coefficient=0.5)
  >>> p, g = jnp.array([2.0]), jnp.array([-6.0])
  >>> updates, _ = tx.update(g, tx.init(p), p)
  >>> print(updates)  # 0.5 2 / (6 + 2) (-6 + 2)
  [-0.5]
  """

  def scaled(update, param, decayed, trusted):
    # Not a Python branch: weight decay may be traced.
    decay = jnp.asarray(weight_decay if decayed else 0.0, jnp.float32)
    new = update + decay * param
    if not trusted:
      return new.astype(update.dtype)
    size, slope = _norm(param), _norm(update)
    ratio = trust_coefficient * size / (slope + decay * size)
    ratio = jnp.where((size > 0) & (slope > 0), ratio, 1.0)
    return (ratio * new).astype(update.dtype)

  def update(updates, state, params=None, **extra):
    del extra
    if params is None:
      raise ValueError('scale_by_lars: update needs params, got None')
    masks = (_leaves(mask, params) for mask in (decay_mask, trust_mask))
    return jax.tree.map(scaled, updates, params, *masks), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def _norm(leaf):
  leaf = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
  size = (leaf * leaf.conj()).real if jnp.iscomplexobj(leaf) else leaf * leaf
  return jnp.sqrt(jnp.sum(size))


def _leaves(mask: Mask, params: Any) -> Any:
  """The mask with a boolean for each leaf of params."""
  prefix = mask(params) if callable(mask) else mask
  return jax.tree.map(
    lambda m, below: jax.tree.map(lambda _: m, below), prefix, params
  )
