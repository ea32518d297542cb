"""A moving average of the parameters, whose memory is counted in examples."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AverageParamsState(NamedTuple):
  """The average so far.

      average <- average + share (x - average),  share = (1 - d) / weight

  Attributes:
    averaged_params: like the parameters, at least float32.
    weight: 1 - 2^(-examples / half-life), float32 scalar; 0 before any update.
    averaged_share: of the last parameters in the average, float32 scalar.
  """

  averaged_params: Any
  weight: jax.Array
  averaged_share: jax.Array


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
    nothing = jnp.zeros([], jnp.float32)
    return AverageParamsState(_copy(params), nothing, jnp.zeros_like(nothing))

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
    average = _follow(
      state.averaged_params, optax.apply_updates(params, updates), share
    )
    return updates, AverageParamsState(average, weight, share)

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


def no_average(opt_state: Any, variables: Any) -> Any:
  """The average of what goes with the parameters, before any update.

      average = variables

  Averaged parameters want the statistics that they would have, and running ones
  are those of the last parameters.

  Args:
    opt_state: of an optimizer.
    variables: pytree of arrays, such as running statistics.

  Returns:
    A pytree of the same structure, floating leaves at least float32; None if
    the optimizer keeps no average.

  >>> no_average(optax.sgd(0.1).init(jnp.zeros(2)), {}) is None
  True
  """
  return None if averaged(opt_state) is None else _copy(variables)


def average_along(opt_state: Any, average: Any, variables: Any) -> Any:
  """The average of what goes with the parameters, after an update of them.

      average <- average + share (variables - average)

  with the share that the parameters had, so that both have the same weights.
  What is no floating-point number is that of the last update.

  Args:
    opt_state: of the optimizer, after the update.
    average: so far, from `no_average`.
    variables: as they are now.

  Reference: the running statistics are averaged like the weights in
  ModelEmaV2 of timm, https://github.com/huggingface/pytorch-image-models

  >>> tx = average_params(half_life=64)
  >>> p = jnp.zeros(1)
  >>> state = tx.init(p)
  >>> average = no_average(state, jnp.zeros(1))
  >>> for x in (3.0, 6.0):  # of weights 1/2 and 1
  ...   _, state = tx.update(p, state, p, batch_size=64)
  ...   average = average_along(state, average, jnp.full(1, x))
  >>> print(average)
  [5.]
  """
  if average is None:
    return None
  share = optax.tree_utils.tree_get(opt_state, 'averaged_share')
  return _follow(average, variables, share)


def _follow(average: Any, now: Any, share: jax.Array) -> Any:
  def one(a, x):
    if not jnp.issubdtype(x.dtype, jnp.inexact):
      return x
    return a + share * (_widen(x) - a)

  return jax.tree.map(one, average, now)


def _copy(tree: Any) -> Any:
  return jax.tree.map(lambda x: jnp.array(_widen(x)), tree)


def _widen(leaf: jax.Array) -> jax.Array:
  if not jnp.issubdtype(leaf.dtype, jnp.inexact):
    return leaf
  return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
