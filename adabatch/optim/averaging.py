"""A moving average of the parameters, whose memory is counted in examples."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AverageParamsState(NamedTuple):
  """The average so far.

      average <- average + share (x - average),  share = (1 - d) / weight

  Args:
    averaged_params: like the parameters, at least float32.
    weight: 1 - 2^(-examples / half-life), float32 scalar; 0 before any update.
  """

  averaged_params: Any
  weight: jax.Array


def average_params(half_life: Any) -> optax.GradientTransformationExtraArgs:
  """Keeps an exponential moving average of the parameters; changes nothing.

      d_k = 2^(-B_k / half_life)
      average_k = sum_i w_i x_i / sum_i w_i,  w_i = (1 - d_i) prod_{i<j<=k} d_j

  over the parameters x_i after each update i. So it is bias-corrected like
  Adam's moments: those before the first update have no weight, and after few
  examples it is about the mean of all. A batch twice as large forgets twice as
  much. It belongs last, where the updates are those that are applied.

  Args:
    half_life: examples after which a weight has fallen to a half; a number,
      which may be traced.

  Returns:
    A transform whose `update` needs params and the keyword argument
    `batch_size` (true global batch, scalar). The average is read by
    `averaged`.

  Raises:
    ValueError: half_life is not positive; or, from `update`, without params.

  Reference: Polyak and Juditsky, Acceleration of stochastic approximation by
  averaging, 1992; Busbridge et al., How to Scale Your EMA, 2023
  (arXiv 2307.13813), for a decay that is a power of the batch size.

  >>> tx = average_params(half_life=64)
  >>> state = tx.init(jnp.zeros(1))
  >>> for x in (0.0, 3.0):  # the weights of 3 and 6 are 1/2 and 1
  ...   updates = jnp.full(1, 3.0)
  ...   _, state = tx.update(updates, state, jnp.full(1, x), batch_size=64)
  >>> print(averaged(state))
  [5.]
  """
  if not isinstance(half_life, jax.Array) and not half_life > 0:
    raise ValueError(
      f'average_params: half_life must be positive, got {half_life}'
    )

  def init(params):
    wide = jax.tree.map(lambda p: jnp.array(_widen(p)), params)
    return AverageParamsState(wide, jnp.zeros([], jnp.float32))

  def update(
    updates,
    state,
    params=None,
    *,
    batch_size: jax.typing.ArrayLike,
    **extra,
  ):
    del extra
    if params is None:
      raise ValueError('average_params: update needs params, got None')
    halves = jnp.asarray(batch_size, jnp.float32) / half_life
    # 1 - d, which in float32 would be coarse where d is near 1.
    fresh = -jnp.expm1(-jnp.log(2.0) * halves)
    weight = state.weight + fresh * (1 - state.weight)
    # Of an empty batch at first 0 / 0.
    share = jnp.where(weight > 0, fresh / jnp.where(weight > 0, weight, 1), 0)
    average = jax.tree.map(
      lambda a, x: a + share * (_widen(x) - a),
      state.averaged_params,
      optax.apply_updates(params, updates),
    )
    return updates, AverageParamsState(average, weight)

  # optax's type for update knows no required extra arguments.
  return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore


def with_average(
  tx: optax.GradientTransformation, half_life: jax.typing.ArrayLike
) -> optax.GradientTransformationExtraArgs:
  """An optimizer, and the average of the parameters that it makes.

      tx, average_params

  Args:
    tx: any optimizer; its updates stay as they are.
    half_life: examples after which a weight has fallen to a half.

  Returns:
    A transform whose `update` needs params and what both need.

  Raises:
    ValueError: half_life is not positive.

  >>> tx = with_average(optax.sgd(1.0), half_life=64)
  >>> p = jnp.ones(1)
  >>> _, state = tx.update(p, tx.init(p), p, batch_size=64)
  >>> print(averaged(state))
  [0.]
  """
  return optax.chain(tx, average_params(half_life))


def averaged(opt_state: Any) -> Any:
  """The average in the state of an optimizer; None if it keeps none.

      sum_i w_i x_i / sum_i w_i

  Args:
    opt_state: of a chain of transforms, one of which may be `average_params`.

  >>> averaged(optax.sgd(0.1).init(jnp.zeros(2))) is None
  True
  """
  return optax.tree_utils.tree_get(opt_state, 'averaged_params')


def _widen(leaf: jax.Array) -> jax.Array:
  return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
