"""Any optimizer of optax, with the learning rate of a moving batch size."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adabatch.optim.masks import no_norms_and_biases
from adabatch.optim.optimizers import framed
from adabatch.optim.scaling import Scaling
from adabatch.optim.trust import Mask
from adabatch.optim.weight_decay import decaying

Factory = Callable[..., optax.GradientTransformation]

# Names that optax's optimizers have for the mask of their weight decay.
_MASKS = ('mask', 'weight_decay_mask')


class AtLearningRateState(NamedTuple):
  """The state of an optimizer and of its learning rate.

      lr, rate <- rate.update(rate),  u, inner <- make(lr).update(g, inner)

  Attributes:
    inner: of the optimizer.
    rate: of what knows the learning rate.
  """

  inner: Any
  rate: Any


def at_learning_rate(
  make: Callable[[jax.typing.ArrayLike], optax.GradientTransformation],
  rate: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
  """An optimizer that gets another learning rate at each update.

      u, state <- make(lr).update(g, state, params)

  As the optimizer itself reads it, the rate acts where it is published to act.

  Args:
    make: learning rate -> optimizer, whose state does not depend on it.
    rate: a transform whose state has a `learning_rate`, such as
      `scale_by_batch_learning_rate`.

  Returns:
    A transform whose `update` takes what both take.

  >>> from adabatch.optim import scale_by_batch_learning_rate
  >>> tx = at_learning_rate(optax.sgd, scale_by_batch_learning_rate(0.5))
  >>> ones = jnp.ones(2)
  >>> print(tx.update(ones, tx.init(ones), batch_size=64, examples=0)[0])
  [-0.5 -0.5]
  """

  def init(params):
    return AtLearningRateState(make(0.0).init(params), rate.init(params))

  def update(updates, state, params=None, **extra):
    _, now = rate.update((), state.rate, **extra)
    lr = optax.tree_utils.tree_get(now, 'learning_rate')
    inner = optax.with_extra_args_support(make(lr))
    updates, new = inner.update(updates, state.inner, params, **extra)
    return updates, AtLearningRateState(new, now)

  return optax.GradientTransformationExtraArgs(init, update)


def find_optimizer(name: str) -> Factory:
  """An optimizer of optax by its name.

  Args:
    name: as one would write it: 'optax.lion', 'optax.contrib.muon'.

  Returns:
    The function that makes it, which takes a `learning_rate`.

  Raises:
    ValueError: there is none of that name, or it cannot be trained with by its
      updates alone.

  >>> find_optimizer('optax.lion') is optax.lion
  True
  """
  module, *path = name.split('.')
  found: Any = optax if module == 'optax' else None
  for part in path:
    found = getattr(found, part, None)
  of_optax = inspect.isfunction(found) and len(path) in (1, 2)
  if not of_optax or 'learning_rate' not in inspect.signature(found).parameters:
    raise ValueError(
      f'{name} is no optimizer of optax {optax.__version__} that takes a '
      'learning_rate: write its name as in optax.lion or optax.contrib.muon'
    )
  if path[-1].startswith('schedule_free'):
    raise ValueError(
      f'{name} is evaluated at other parameters than it trains: choose another '
      'optimizer, with ema.half_life for an average of the weights'
    )
  return found


def of_optax(
  factory: Factory,
  learning_rate: optax.GradientTransformationExtraArgs,
  arguments: Mapping[str, Any] | None = None,
  *,
  weight_decay: jax.typing.ArrayLike = 0.0,
  weight_decay_scaling: Scaling | None = None,
  decay_mask: Mask | None = None,
  clip_norm: jax.typing.ArrayLike | None = None,
) -> optax.GradientTransformationExtraArgs:
  """An optimizer of optax, for a batch size that moves.

      g <- min(1, clip / |g|) g,  u = damping optimizer(lr(e, B), g)

  Args:
    factory: makes it of a `learning_rate` and its other arguments.
    learning_rate: such as `scale_by_batch_learning_rate`.
    arguments: of the optimizer, but for the learning rate and those below.
    weight_decay: wd, its own if it takes a `weight_decay`, else L2 in g.
    weight_decay_scaling: if given, batch size -> factor on weight_decay.
    decay_mask: where weight decay applies, as for `make_optimizer`.
    clip_norm: clip, the largest norm of a gradient; None for any.

  Returns:
    A transform whose `update` needs params and the keyword arguments
    `batch_size`, `damping` and `examples`, scalars.

  Raises:
    ValueError: for an argument that the optimizer does not take, or that it
      must not be given here, or lacks.

  >>> from adabatch.optim import scale_by_batch_learning_rate
  >>> rate = scale_by_batch_learning_rate(0.1)
  >>> tx = of_optax(optax.lion, rate, {'b1': 0.95})
  >>> ones = {'kernel': jnp.ones((1, 1))}
  >>> updates, _ = tx.update(ones, tx.init(ones), ones,
  ...                        batch_size=64, damping=0.5, examples=0)
  >>> print(updates['kernel'])
  [[-0.05]]
  """
  arguments = dict(arguments or {})
  parameters = inspect.signature(factory).parameters
  _check_arguments(factory, parameters, arguments)
  mask = no_norms_and_biases if decay_mask is None else decay_mask
  arguments |= {name: mask for name in _MASKS if name in parameters}
  decay = weight_decay, weight_decay_scaling
  if 'weight_decay' in parameters:

    def own(rate):
      return decaying(
        lambda wd: factory(learning_rate=rate, weight_decay=wd, **arguments),
        *decay,
      )

    return framed([at_learning_rate(own, learning_rate)], clip_norm)

  def without(rate):
    return factory(learning_rate=rate, **arguments)

  l2 = decaying(lambda wd: optax.add_decayed_weights(wd, mask), *decay)  # pyright: ignore
  return framed([l2, at_learning_rate(without, learning_rate)], clip_norm)


def _check_arguments(
  factory: Factory,
  parameters: Mapping[str, inspect.Parameter],
  arguments: Mapping[str, Any],
) -> None:
  name = factory.__name__
  ours = ('learning_rate', 'weight_decay', *_MASKS)
  allowed = [parameter for parameter in parameters if parameter not in ours]
  for given in arguments:
    if given not in allowed:
      raise ValueError(
        f'{name} takes no {given} here, but {", ".join(allowed) or "nothing"}'
      )
  empty = inspect.Parameter.empty
  for parameter in allowed:
    if parameters[parameter].default is empty and parameter not in arguments:
      raise ValueError(f'{name} needs {parameter}')


def check_trains(tx: optax.GradientTransformation) -> None:
  """Refuses an optimizer whose update needs more than gradients.

      tx.update(g, state, params, batch_size=, damping=, examples=)

  Some need the loss or a second gradient. Nothing is computed.

  Args:
    tx: an optimizer; its state has a `learning_rate`.

  Raises:
    ValueError, TypeError: of its own, or for two learning rates.

  >>> check_trains(optax.contrib.momo())  # doctest: +IGNORE_EXCEPTION_DETAIL
  Traceback (most recent call last):
  TypeError: ... missing 1 required keyword-only argument: 'value'
  """
  params = {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
  tx = optax.with_extra_args_support(tx)

  def step(params):
    extra = {'batch_size': 1.0, 'damping': 1.0, 'examples': 0.0}
    updates, state = tx.update(params, tx.init(params), params, **extra)
    return updates, optax.tree_utils.tree_get(state, 'learning_rate')

  try:
    updates, _ = jax.eval_shape(step, params)
  except KeyError:
    raise ValueError('it has a learning_rate of its own in its state') from None
  if jax.tree.structure(updates) != jax.tree.structure(params):
    raise ValueError('its updates are not like the parameters')
