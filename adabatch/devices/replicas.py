"""Replicas on the devices, and the anchor around which they agree.

What they agree on, and when, is a row of `adabatch.optim.sync`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adabatch.devices.state import TrainState
from adabatch.optim.sync import SyncRule


class SyncState(NamedTuple):
  """Replicas and their anchor; `params` and `model_state` are the anchor's.

  Attributes:
    params: z.
    model_state: BatchNorm statistics of z: the replicas' mean at the last sync.
    outer_state: o, the state of V.
    replicas: the x_k with their optimizer states; leaves [replicas, ...].
  """

  params: Any
  model_state: Any
  outer_state: Any
  replicas: Any  # a TrainState


# Either has `params` and `model_state`, those of the model that is evaluated.
State = TrainState | SyncState


class Distances(NamedTuple):
  """How far apart the replicas were at a sync, with d_k = y_k - z.

  Attributes:
    replica_squared_distance: mean of |d_k|^2.
    mean_squared_distance: |mean of d_k|^2.
  """

  replica_squared_distance: jax.Array
  mean_squared_distance: jax.Array


def _is_float(x: Any) -> bool:
  return jnp.issubdtype(x.dtype, jnp.floating)


def create(state: TrainState, rule: SyncRule, replicas: int) -> SyncState:
  """Replicas that all start as `state` is; jit- and eval_shape-able.

  Args:
    state: of one model.
    rule: how the replicas will agree.
    replicas: how many there are.
  """
  return SyncState(
    params=state.params,
    model_state=state.model_state,
    outer_state=rule.outer.init(state.params),
    replicas=jax.tree.map(
      lambda x: jnp.broadcast_to(x, (replicas, *x.shape)), state
    ),
  )


def _mean(tree: Any, here: int, axis: str | None) -> Any:
  """Over the leading axis of `here` replicas, and those along an axis."""
  # One by one: a CPU's reduction over the leading axis is far slower.
  sums, count = jax.tree.map(lambda x: sum(x[1:], start=x[0]), tree), here
  if axis is not None:
    sums = jax.lax.psum(sums, axis)
    count *= jax.lax.axis_size(axis)
  # Integers are the same everywhere.
  return jax.tree.map(lambda x: x / count if _is_float(x) else x // count, sums)


def _spread(value: jax.Array, like: jax.Array) -> jax.Array:
  return jnp.broadcast_to(value, like.shape) + jnp.zeros_like(like)


def agree(
  rule: SyncRule,
  state: SyncState,
  before: Any,
  *,
  learning_rate: jax.Array,
  average_momentum: bool,
  axis: str | None = None,
) -> tuple[SyncState, Distances]:
  """One sync.

  Args:
    rule: the method.
    state: after the update; its replicas may be those of one device.
    before: the replicas' parameters before the update.
    learning_rate: of each replica, float32 [replicas].
    average_momentum: whether to average the optimizers' states as well.
    axis: name of the axis over which the replicas are spread; None if all are
      here.

  Returns:
    The state after the sync, and how far apart the replicas were.
  """
  new = state.replicas
  seen = before if rule.observe == 'before' else new.params
  distances = jax.tree.map(lambda y, z: y - z, seen, state.params)
  squares = sum(
    jnp.sum(jnp.square(d), tuple(range(1, d.ndim)))
    for d in jax.tree.leaves(distances)
  )
  averaged = {
    'distance': distances,
    'squares': squares,
    'learning_rate': learning_rate,
    'model_state': new.model_state,
    'momentum': [
      x
      for x in jax.tree.leaves(new.opt_state)
      if average_momentum and _is_float(x)
    ],
  }
  means = _mean(averaged, learning_rate.shape[0], axis)

  updates, outer_state = rule.outer.update(
    jax.tree.map(jnp.negative, means['distance']),
    state.outer_state,
    state.params,
    learning_rate=means['learning_rate'],
  )
  anchor = optax.apply_updates(state.params, updates)
  reference = anchor if rule.reference == 'new' else state.params
  a = rule.pull
  # In this order x' - a y vanishes where y = x' and a = 1, so that replicas are
  # equal to the reference to the bit.
  params = jax.tree.map(
    lambda x, y, r: (x - a * y) + a * r, new.params, seen, reference
  )

  new = new._replace(params=params)
  if a == 1:
    new = new._replace(
      model_state=jax.tree.map(_spread, means['model_state'], new.model_state)
    )
  if average_momentum:
    momenta = iter(means['momentum'])
    new = new._replace(
      opt_state=jax.tree.map(
        lambda x: _spread(next(momenta), x) if _is_float(x) else x,
        new.opt_state,
      )
    )
  norm = sum(jnp.sum(jnp.square(d)) for d in jax.tree.leaves(means['distance']))
  return (
    SyncState(anchor, means['model_state'], outer_state, new),
    Distances(means['squares'], jnp.asarray(norm)),
  )


def agreed_bytes(state: State, average_momentum: bool) -> int:
  """What a replica gives to the average at a sync, in bytes.

  Of a plain train state: what a device gives to that of every update, the
  gradient and the statistics.
  """
  leaves = jax.tree.leaves((state.params, state.model_state))
  size = sum(x.size * x.dtype.itemsize for x in leaves if _is_float(x))
  if average_momentum and isinstance(state, SyncState):
    # Of one replica; not `x[0]`, which would be computed.
    size += sum(
      x.size // x.shape[0] * x.dtype.itemsize
      for x in jax.tree.leaves(state.replicas.opt_state)
      if _is_float(x)
    )
  return size


def restart(rule: SyncRule, state: SyncState) -> SyncState:
  """Replicas start from z and the anchor from rest; momenta stay.

  Args:
    rule: how the replicas agree.
    state: just after a sync, or what replicas did since is lost.
  """

  def spread(anchor, replicas):
    return jax.tree.map(
      lambda z, x: jnp.broadcast_to(z, x.shape), anchor, replicas
    )

  return state._replace(
    outer_state=rule.outer.init(state.params),
    replicas=state.replicas._replace(
      params=spread(state.params, state.replicas.params),
      model_state=spread(state.model_state, state.replicas.model_state),
    ),
  )


def resize(state: SyncState, replicas: int) -> SyncState:
  """The same run with another number of replicas.

  New ones are copies of z with the mean of the others' optimizer states. Where
  there are to be fewer, all go on from the mean of those there were.

  Args:
    state: with any number of replicas.
    replicas: how many there are to be.

  >>> from adabatch.optim.sync import local_sgd
  >>> plain = TrainState({'w': jnp.zeros(2)}, {}, ())
  >>> state = create(plain, local_sgd(4), replicas=2)
  >>> resize(state, 3).replicas.params['w'].shape
  (3, 2)
  """
  old = state.replicas
  have = jax.tree.leaves(old)[0].shape[0]
  if replicas == have:
    return state

  def mean(x):
    return jnp.mean(x, 0) if _is_float(x) else x[0]

  fresh = jax.tree.map(mean, old)
  if replicas > have:
    fresh = fresh._replace(params=state.params, model_state=state.model_state)

  def rows(x, new):
    if replicas < have:
      return jnp.broadcast_to(new, (replicas, *new.shape))
    more = jnp.broadcast_to(new, (replicas - have, *new.shape))
    return jnp.concatenate([x, more])

  return state._replace(replicas=jax.tree.map(rows, old, fresh))
