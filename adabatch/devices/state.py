"""What training carries from update to update on the devices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from adabatch import optim
from adabatch.models import contract
from adabatch.optim import gradient_noise


class TrainState(NamedTuple):
  """Everything on the devices that the next update depends on.

  Attributes:
    params: the parameters x_k.
    model_state: variables that are not trained (BatchNorm statistics).
    opt_state: the state of the optax transform.
    previous: gradient of the update before, kept only for the differenced
      noise estimate; else None.
    averaged_state: the average of `model_state`, where the optimizer keeps one
      of the parameters; else None.
  """

  params: Any
  model_state: Any
  opt_state: optax.OptState
  previous: gradient_noise.Previous | None = None
  averaged_state: Any = None


def create(
  model: nn.Module,
  example: jax.typing.ArrayLike,
  tx: optax.GradientTransformation,
  rng: jax.Array,
  *,
  keep_gradient: bool = False,
  initial: Any = None,
) -> TrainState:
  """Fresh parameters and optimizer state; jit- and eval_shape-able.

  Args:
    model: called as `model(example, train=False, weights=None)`.
    example: a batch of one input, for its shape.
    tx: the optimizer.
    rng: key of the initialisation.
    keep_gradient: whether to carry the previous gradient.
    initial: see `start_from`; None: all variables are fresh.
  """
  contract.check_model(model)
  variables = dict(model.init(rng, example, train=False))
  if initial is not None:
    variables = start_from(variables, initial)
  params = variables.pop('params')
  opt_state = tx.init(params)
  return TrainState(
    params=params,
    model_state=variables,
    opt_state=opt_state,
    previous=gradient_noise.no_previous(params) if keep_gradient else None,
    averaged_state=optim.no_average(opt_state, variables),
  )


def start_from(variables: Any, initial: Any) -> Any:
  """The variables, with those of another network where name and shape agree.

  >>> fresh = {'a': jnp.zeros(2), 'b': jnp.zeros(3)}
  >>> start_from(fresh, {'a': jnp.ones(2), 'b': jnp.ones(4)})['a'].tolist()
  [1.0, 1.0]
  """
  given = dict(jax.tree_util.tree_leaves_with_path(initial))

  def choose(path, leaf):
    other = given.get(path)
    if other is None or other.shape != leaf.shape:
      return leaf
    return other.astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(choose, variables)


def to_evaluate(state: Any) -> Any:
  """The state with the average of its parameters, if its optimizer keeps one.

  And with that of its running statistics: those of the last parameters would
  not be theirs.

  Args:
    state: of one model, or of replicas, whose anchor it is.
  """
  if not isinstance(state, TrainState):
    return state
  average = optim.averaged(state.opt_state)
  if average is None:
    return state

  def like(average: Any, now: Any) -> Any:
    return jax.tree.map(lambda a, x: a.astype(x.dtype), average, now)

  return state._replace(
    params=like(average, state.params),
    model_state=like(state.averaged_state, state.model_state),
  )


def is_finite(tree: Any) -> jax.Array:
  """Whether every floating-point entry of a pytree is finite; bool scalar.

  >>> bool(is_finite({'w': jnp.array([1.0, jnp.inf]), 'count': jnp.array(3)}))
  False
  """
  leaves = [
    x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)
  ]
  return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in leaves]))
