"""Keeps hyperparameters in float32 whatever the parameters' dtype."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def scale_in_float32(updates: Any, factor: jax.typing.ArrayLike) -> Any:
  """Multiplies a tree by a float32 scalar and keeps each leaf's dtype.

      u <- cast(float32(u) * factor, dtype(u))

  Args:
    updates: pytree of floating-point or complex arrays of any shape.
    factor: scalar. It is never rounded to the leaves' dtype, only the product.

  Returns:
    The scaled pytree, same shapes, dtypes and shardings.

  >>> import jax.numpy as jnp
  >>> scale_in_float32(jnp.ones(2, jnp.bfloat16), 0.5)
  Array([0.5, 0.5], dtype=bfloat16)
  """
  factor = jnp.asarray(factor, jnp.float32)
  return jax.tree.map(lambda u: (u * factor).astype(u.dtype), updates)


def in_float32(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Runs a transform on float32 copies and casts its updates back at the end.

      u, state <- inner(float32(g), state, float32(params));  u <- cast(u)

  optax multiplies by Python scalars, which take the dtype of the array: in
  bfloat16 a momentum of 0.9999 or a beta2 of 0.999 becomes 1. Here the inner
  state is float32 too (for bfloat16 parameters it takes twice the memory).
  Leaves of 32 bits or more, and integers, pass through untouched.

  Args:
    inner: any optax transform, with or without extra arguments.

  Returns:
    A transform with the same state tree as `inner`; its updates have the
    dtypes of the gradients it is given.

  Reference: Micikevicius et al., Mixed Precision Training, 2017
  (arXiv 1710.03740), on why accumulators are kept in float32.

  >>> import jax.numpy as jnp, optax
  >>> tx = in_float32(optax.trace(decay=0.9999))
  >>> params = jnp.ones(2, jnp.bfloat16)
  >>> state = tx.init(params)
  >>> updates, state = tx.update(params, state)
  >>> print(updates.dtype, state.trace.dtype)
  bfloat16 float32
  """
  inner = optax.with_extra_args_support(inner)

  def init(params):
    return inner.init(jax.tree.map(_widen, params))

  def update(updates, state, params=None, **extra):
    wide_params = None if params is None else jax.tree.map(_widen, params)
    new, state = inner.update(
      jax.tree.map(_widen, updates), state, wide_params, **extra
    )
    new = jax.tree.map(lambda n, u: n.astype(u.dtype), new, updates)
    return new, state

  return optax.GradientTransformationExtraArgs(init, update)


def _widen(leaf):
  """The leaf in at least float32; what is not floating-point is left alone."""
  if not jnp.issubdtype(leaf.dtype, jnp.floating):
    return leaf
  dtype = jnp.promote_types(leaf.dtype, jnp.float32)
  if isinstance(leaf, jax.ShapeDtypeStruct):  # of parameters yet to be made
    return leaf.update(dtype=dtype)
  return leaf.astype(dtype)
