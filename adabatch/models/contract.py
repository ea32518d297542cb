"""What a model and a task must keep to, checked while they are traced.

Results do not depend on devices, microbatches and empty slots as long as every
layer treats its rows one by one, or looks at `rows`, and every loss is that of
an example. What breaks this is refused here in one line.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adabatch.models import ROWS_STREAM, Rows
from adabatch.models.scores import LanguageModel


def check_model(model: Any) -> None:
  """Refuses what is no Flax linen module.

  Raises:
    TypeError: if `model` has no `init` and `apply`.
  """
  if not (hasattr(model, 'init') and hasattr(model, 'apply')):
    name = type(model).__name__
    raise TypeError(
      f'{name} has no `init` and `apply`, as flax.linen modules do: give a '
      'flax.linen module, or wrap a class of flax.nnx by '
      f'flax.nnx.bridge.to_linen({name}, ...)'
    )


def apply_in_training(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
  """`model.apply`, unless a layer's statistics would depend on the hardware.

  Raises:
    TypeError: if the network has a BatchNorm of Flax that takes its mean and
      variance from the rows at hand.
  """
  with nn.intercept_methods(_refuse_batch_norm):
    return apply(model, *args, **kwargs)


def apply(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
  """`model.apply`; of our language models the outputs are `Scores`."""
  if isinstance(model, LanguageModel):
    kwargs['method'] = 'scores'
  return model.apply(*args, **kwargs)


def init_in_training(model: nn.Module, inputs: jax.Array) -> Any:
  """Variables, made as an update would call the network; for `eval_shape`.

  Raises:
    TypeError: as `check_model` and `apply_in_training`.
  """
  check_model(model)
  batch = inputs.shape[0]
  rows = Rows(jnp.ones(batch), jnp.arange(batch, dtype=jnp.int32))
  streams = ('params', 'dropout', ROWS_STREAM)
  rngs = {name: jax.random.key(0) for name in streams}
  with nn.intercept_methods(_refuse_batch_norm):
    return model.init(rngs, inputs, train=True, rows=rows)


def _refuse_batch_norm(call, args, kwargs, context):
  module = context.module
  if context.method_name == '__call__':
    if isinstance(module, nn.BatchNorm):
      frozen = kwargs.get('use_running_average', module.use_running_average)
      if args[1:]:
        frozen = args[1]
      if not frozen:
        _refuse('flax.linen.BatchNorm', '/'.join(module.path))
    elif type(module).__module__.startswith('flax.nnx.'):
      _check_wrapped(module)
  return call(*args, **kwargs)


def _check_wrapped(module: Any) -> None:
  """Looks for a BatchNorm in what a linen module makes of an NNX class."""
  from flax import nnx  # only where it was imported to wrap something

  # Its own calls are made while this one is traced, where no variable may be.
  def make():
    rngs = {} if module.skip_rng else {'rngs': nnx.Rngs(0)}
    return module.nnx_class(*module.args, **module.kwargs, **rngs)

  for path, part in nnx.iter_modules(nnx.eval_shape(make)):
    if isinstance(part, nnx.BatchNorm):
      _refuse('flax.nnx.BatchNorm', '/'.join(map(str, path)))


def _refuse(what: str, path: str) -> None:
  raise TypeError(
    f'the layer {path or "itself"!r} is a {what}, whose statistics would '
    'depend on the devices, the microbatches and the empty slots: use '
    'adabatch.models.GhostBatchNorm(group_size)(x, train=train, rows=rows)'
  )


def per_example(values: Any, weights: jax.Array, what: str) -> jax.Array:
  """`values`, if they are one for each example.

  Args:
    values: of examples.
    weights: what each of them counts, [B].
    what: they are, for the message.

  Raises:
    ValueError: if their shape is not that of the weights.
  """
  if jnp.shape(values) != weights.shape:
    raise ValueError(
      f'{what} has the shape {jnp.shape(values)}, not {weights.shape}: '
      'return one value for each example, and leave the mean to the caller'
    )
  return values


def gathered(values: Any, weights: jax.Array) -> Any:
  """`values`, if all of its arrays have one entry for each example.

  Args:
    values: a pytree, that a task gathers of examples.
    weights: what each of them counts, [B].

  Raises:
    ValueError: if a leading axis is not that of the weights.
  """
  for value in jax.tree.leaves(values):
    if jnp.shape(value)[:1] != weights.shape:
      raise ValueError(
        f'what the task gathers has the shape {jnp.shape(value)}, not '
        f'({weights.shape[0]}, ...): return arrays with an entry for each '
        'example'
      )
  return values


def named(found: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
  """The metrics of a whole split in order, if they are those announced.

  Args:
    found: by the task.
    names: that `higher_is_better` has beside those of the means.

  Raises:
    ValueError: if they have other names.

  >>> named({'auc': 1}, ['auc'])
  {'auc': 1.0}
  """
  if set(found) != set(names):
    raise ValueError(
      f'the task makes {", ".join(found) or "nothing"} of the whole split, and '
      f'its higher_is_better has {", ".join(names) or "nothing"} beside the '
      'means: name the same in both'
    )
  return {name: float(found[name]) for name in names}
