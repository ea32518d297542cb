"""Networks of one's own, of linen, NNX or Equinox, called as ours are."""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from adabatch.models.rows import ROWS_STREAM, Rows


def signature_of(make: Callable[..., Any]) -> inspect.Signature:
  """What a constructor takes.

  >>> signature_of(nnx.Linear).bind(2, 3, rngs=None).arguments['in_features']
  2
  """
  if not (isinstance(make, type) and issubclass(make, nnx.Module)):
    return inspect.signature(make)
  # The class itself says that it takes anything.
  whole = inspect.signature(make.__init__)
  return whole.replace(parameters=list(whole.parameters.values())[1:])


def call(make: Callable[..., Any], parameters: Mapping[str, Any]) -> Any:
  """A network that is called as `model.apply(variables, x, train=, rows=)`.

  Args:
    make: a class of linen, NNX or Equinox, or a function that makes a linen
      module.
    parameters: what it is made with, without `rngs` and `key`.

  Raises:
    TypeError: for a BatchNorm whose statistics would depend on the hardware.
  """
  if isinstance(make, type) and issubclass(make, nnx.Module):
    return OfNNX(make, parameters)
  if isinstance(make, type) and has_outputs_first(make):
    return OfEquinox(sys.modules['equinox'], make, parameters)
  model = make(**parameters)
  if not isinstance(model, nn.Module):
    return model
  takes = inspect.signature(model.__call__).parameters
  return model if {'train', 'rows'} <= {*takes} else OfLinen(model)


def has_outputs_first(make: Any) -> bool:
  """Whether the first axis of kernels is of outputs, as in Equinox.

  >>> has_outputs_first(nnx.Linear)
  False
  """
  equinox = sys.modules.get('equinox')
  return bool(
    equinox and isinstance(make, type) and issubclass(make, equinox.Module)
  )


def _how(
  function: Callable[..., Any], train: bool, rows: Rows | None
) -> dict[str, Any]:
  """What a network is told of how it is called, as far as it wants to know."""
  told: dict[str, Any] = dict.fromkeys(
    ('train', 'training', 'is_training'), train
  )
  told |= dict.fromkeys(('deterministic', 'use_running_average'), not train)
  told['rows'] = rows
  takes = inspect.signature(function).parameters
  return {key: value for key, value in told.items() if key in takes}


class OfLinen:
  """A linen module without `train` or `rows`."""

  def __init__(self, model: nn.Module):
    self._model = model

  def init(self, rngs: Any, x: Any, *, train: bool, rows: Any = None) -> Any:
    how = _how(self._model.__call__, train, rows)
    return self._model.init(rngs, x, **how)

  def apply(
    self,
    variables: Any,
    x: Any,
    *,
    train: bool,
    rows: Any = None,
    **options: Any,
  ) -> Any:
    how = _how(self._model.__call__, train, rows)
    return self._model.apply(variables, x, **how, **options)


class _Built:
  """A network that holds its parameters: built anew wherever it is called.

  Its first values are then thrown away, and with them what computes them.
  """

  def __init__(self, make: type, parameters: Mapping[str, Any]):
    self._make, self._parameters = make, dict(parameters)

  def new(self, **random: Any) -> Any:
    """A network; `random` is given where its class takes it."""
    takes = signature_of(self._make).parameters
    given = {key: value for key, value in random.items() if key in takes}
    return self._make(**self._parameters, **given)

  def build(self, key: jax.Array) -> tuple[Any, Any, Any]:
    """(network, its parameters, puts others in their place).

    Of `key` are the parameters, and what it draws when it is called.
    """
    raise NotImplementedError

  def run(
    self, model: Any, x: Any, train: bool, rows: Any, key: jax.Array
  ) -> Any:
    """What the network makes of a batch."""
    raise NotImplementedError

  def init(self, rngs: Any, x: Any, *, train: bool, rows: Any = None) -> Any:
    key = rngs['params'] if isinstance(rngs, Mapping) else rngs
    # It may not fit its inputs.
    jax.eval_shape(lambda: self.run(self.build(key)[0], x, train, rows, key))
    return {'params': _nested(self.build(key)[1])}

  def apply(
    self,
    variables: Any,
    x: Any,
    *,
    train: bool,
    rows: Any = None,
    rngs: Mapping[str, jax.Array] | None = None,
    mutable: Any = False,
  ) -> Any:
    rngs = {'dropout': jax.random.key(0), **(rngs or {})}
    # The key that all microbatches share, for what is drawn by place.
    key = rngs.get(ROWS_STREAM, rngs['dropout'])
    _, params, replace = self.build(rngs['dropout'])
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    leaves = [_at(variables['params'], path) for path, _ in paths]
    model = replace(jax.tree.unflatten(structure, leaves))
    outputs = self.run(model, x, train, rows, key)
    return outputs if mutable is False else (outputs, {})


class OfNNX(_Built):
  """An NNX class: `rngs` are given, layers are told whether they train."""

  def __init__(self, make: type, parameters: Mapping[str, Any]):
    super().__init__(make, parameters)
    abstract = nnx.eval_shape(lambda: self.new(rngs=nnx.Rngs(0)))
    for path, part in nnx.iter_modules(abstract):
      if isinstance(part, nnx.BatchNorm):
        _refuse('flax.nnx.BatchNorm', '/'.join(map(str, path)))
    known = nnx.Any(nnx.Param, nnx.RngState)
    others = nnx.to_flat_state(nnx.state(abstract, nnx.Not(known)))
    for path, _ in others:
      raise TypeError(
        f'{make.__name__} keeps {"/".join(map(str, path))!r}, which is neither '
        'a parameter nor random: what changes in training and is no parameter '
        'is kept of linen modules alone'
      )

  def build(self, key):
    model = self.new(rngs=nnx.Rngs(key))
    state = nnx.state(model, nnx.Param)

    def replace(values):
      nnx.replace_by_pure_dict(state, values)
      nnx.update(model, state)
      return model

    return model, nnx.to_pure_dict(state), replace

  def run(self, model, x, train, rows, key):
    del key  # its streams were made of it
    (model.train if train else model.eval)()
    return model(x, **_how(model.__call__, train, rows))


class OfEquinox(_Built):
  """An Equinox class, called with one example: `key` is of its place."""

  def __init__(self, equinox: Any, make: type, parameters: Mapping[str, Any]):
    super().__init__(make, parameters)
    self._equinox = equinox
    norm, state = equinox.nn.BatchNorm, equinox.nn.StateIndex
    key = jax.random.key(0)
    abstract = equinox.filter_eval_shape(lambda: self.new(key=key))
    for leaf in jax.tree.leaves(
      abstract, is_leaf=lambda x: isinstance(x, norm | state)
    ):
      if isinstance(leaf, norm):
        _refuse('equinox.nn.BatchNorm', make.__name__)
      if isinstance(leaf, state):
        raise TypeError(
          f'{make.__name__} has a layer with a state, a StateIndex: what '
          'changes in training and is no parameter is kept of linen modules '
          'alone'
        )

  def build(self, key):
    equinox, is_parameter = self._equinox, self._equinox.is_inexact_array
    params = equinox.filter(self.new(key=key), is_parameter)
    # What is no parameter is the same at each call, drawn or not.
    fixed = self.new(key=jax.random.key(0))
    rest = equinox.filter(fixed, is_parameter, inverse=True)
    return (
      equinox.combine(params, rest),
      params,
      lambda values: equinox.combine(values, rest),
    )

  def run(self, model, x, train, rows, key):
    model = self._equinox.nn.inference_mode(model, value=not train)
    places = jnp.arange(len(x)) if rows is None else rows.places
    by_key = 'key' in inspect.signature(type(model).__call__).parameters

    def one(x, place):
      more = {'key': jax.random.fold_in(key, place)} if by_key else {}
      return model(x, **more)

    return jax.vmap(one)(x, places)


def _refuse(what: str, path: str) -> None:
  raise TypeError(
    f'the layer {path or "itself"!r} is a {what}, whose statistics would '
    'depend on the devices, the microbatches and the empty slots: use a norm '
    'of each example (LayerNorm, GroupNorm, RMSNorm), or in a linen module '
    'adabatch.models.GhostBatchNorm'
  )


def _names(path: Any) -> list[str]:
  return [jax.tree_util.keystr((key,), simple=True) for key in path]


def _nested(tree: Any) -> dict[str, Any]:
  """A pytree as dictionaries of dictionaries, by the names of its parts."""
  nested: dict[str, Any] = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    *parents, last = _names(path)
    table = nested
    for name in parents:
      table = table.setdefault(name, {})
    table[last] = leaf
  return nested


def _at(nested: Any, path: Any) -> Any:
  for name in _names(path):
    nested = nested[name]
  return nested
