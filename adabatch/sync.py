"""How replicas agree: local SGD, SlowMo, DiLoCo, EASGD, SMA are one rule.

Replicas x_k train side by side, each on its share of the batch. Every H updates
they meet around one anchor z, which is the model that is evaluated:

    inner:    x_k' = x_k + U(g_k(x_k))
    at sync:  y_k  = x_k' ("after")  or  x_k ("before")
              D    = -mean_k (y_k - z)
              z'   = z + V(o, D)                    V: any optax transform
              x_k  <- x_k' - a (y_k - r)            r = z ("old") or z' ("new")

A method is a row of SYNC_RULES; it says what H, a, r, y and V are. Seen
"before" the update, the average can travel while the gradient is computed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adabatch.train_state import TrainState

REPLICA_AXIS = 'replica'

# (examples seen, batch size, damping) -> updates of a replica until the sync.
Period = Callable[[int, int, float], int]


class SyncRule(NamedTuple):
  """How replicas agree; see the module for the meaning.

  Attributes:
    period: H, asked at the start of each period.
    pull: a, the share of its distance by which a replica is moved.
    reference: r, the `old` or the `new` anchor.
    observe: whether y_k is seen `before` or `after` the update.
    outer: V; its update may read the keyword argument `learning_rate`.
    restarts: whether replicas start from z where the learning rate drops.
  """

  period: Period
  pull: float
  reference: str
  observe: str
  outer: optax.GradientTransformationExtraArgs
  restarts: bool = False


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


def _every(local_steps: int) -> Period:
  return lambda examples, batch_size, damping: local_steps


def _transform(transform: optax.GradientTransformation):
  return optax.with_extra_args_support(transform)


def _averaging(period: Period, outer: optax.GradientTransformation) -> SyncRule:
  """The rows in which every replica goes on from z'."""
  return SyncRule(period, 1.0, 'new', 'after', _transform(outer))


def local_sgd(local_steps: int) -> SyncRule:
  """Replicas train alone for H updates, then all go on from their mean.

  Args:
    local_steps: H, in updates of one replica.

  Reference: Stich, Local SGD converges fast and communicates little, 2018
  (arXiv:1805.09767).

  >>> local_sgd(16).period(0, 64, 1.0)
  16
  """
  return _averaging(_every(local_steps), optax.sgd(1.0))


def post_local_sgd(local_steps: int, switch: float) -> SyncRule:
  """Models are averaged at each update at first, then as in local SGD.

      H = 1 before `switch` examples, then local_steps

  With H = 1 it is synchronous training for optimizers that are linear in the
  gradient (sgd, momentum, nesterov), and only for these: under adam, adamw,
  lamb and lars each replica divides by a norm of its own gradients, and the
  mean of such updates is not the update of the mean gradient.

  Args:
    local_steps: H afterwards.
    switch: examples; as published, the first drop of the learning rate.

  Reference: Lin et al., Don't use large mini-batches, use local SGD, 2018
  (arXiv:1808.07217).

  >>> rule = post_local_sgd(16, switch=1000)
  >>> rule.period(999, 64, 1.0), rule.period(1000, 64, 1.0)
  (1, 16)
  """
  return _averaging(
    lambda examples, batch_size, damping: (
      local_steps if examples >= switch else 1
    ),
    optax.sgd(1.0),
  )


def qsr(
  local_steps: int,
  alpha: float,
  learning_rate: Callable[[int, int], float],
) -> SyncRule:
  """Local SGD whose period grows as the learning rate falls.

      H = max(H_base, floor((alpha / learning rate)^2))

  Args:
    local_steps: H_base.
    alpha: in units of the learning rate.
    learning_rate: (examples, batch size) -> learning rate without damping, and
      without its warmup, in which H would be too large.

  Reference: Gu et al., A Quadratic Synchronization Rule for distributed deep
  learning, 2023 (arXiv:2310.14423).

  >>> rule = qsr(4, 0.1, lambda examples, batch_size: 0.1 / (1 + examples))
  >>> rule.period(0, 64, 1.0), rule.period(4, 64, 1.0)
  (4, 25)
  """

  def period(examples, batch_size, damping):
    rate = learning_rate(examples, batch_size) * damping
    # The run ends in a sync however long the period; this keeps it an integer.
    ratio = min(alpha / rate, 1e6) if rate > 0 else 1e6
    # 0.1 / 0.02 is 5, whatever its binary fractions say; schedules are float32.
    return max(local_steps, int(ratio**2 * (1 + 1e-6)))

  return _averaging(period, optax.sgd(1.0))


def slowmo(local_steps: int, momentum: float, learning_rate: float) -> SyncRule:
  """Local SGD with a slow momentum over the periods.

      u <- beta u + (z - mean y) / lr,    z' = z - s lr u

  lr is the replicas' learning rate at the sync.

  Args:
    local_steps: H.
    momentum: beta.
    learning_rate: s, a factor on lr.

  Reference: Wang et al., SlowMo, 2019 (arXiv:1910.00643).
  """
  trace = optax.trace(momentum)

  def update(updates, state, params=None, *, learning_rate: Any, **extra):
    del extra
    # Where a schedule ends in 0 nothing has moved either.
    lr = jnp.maximum(learning_rate, 1e-12)
    velocity, state = trace.update(
      jax.tree.map(lambda d: d / lr, updates), state, params
    )
    return jax.tree.map(lambda u: -slow * lr * u, velocity), state

  slow = learning_rate
  # optax's type for update knows no required extra arguments.
  outer = optax.GradientTransformationExtraArgs(trace.init, update)  # pyright: ignore
  return _averaging(_every(local_steps), outer)


def diloco(local_steps: int, momentum: float, learning_rate: float) -> SyncRule:
  """Local training whose mean change is a gradient for Nesterov's momentum.

  Args:
    local_steps: H, 500 as published.
    momentum: of the outer optimizer, 0.9 as published.
    learning_rate: of the outer optimizer, 0.7 as published.

  Reference: Douillard et al., DiLoCo, 2023 (arXiv:2311.08105).
  """
  outer = optax.sgd(learning_rate, momentum=momentum, nesterov=True)
  return _averaging(_every(local_steps), outer)


def easgd(local_steps: int, rho: float, *, replicas: int) -> SyncRule:
  """Replicas and anchor are drawn to each other by an elastic force.

      x_k <- x_k' - alpha (x_k - z),    z' = z + alpha sum_k (x_k - z)

  The force itself leaves z + sum_k x_k as it is.

  Args:
    local_steps: tau.
    rho: K alpha.
    replicas: K.

  Raises:
    ValueError: if rho is not positive, or not below `largest_stable_rho`.

  Reference: Zhang et al., Deep learning with elastic averaging SGD, 2015
  (arXiv:1412.6651).
  """
  _check_stable(rho, replicas, 0.0)
  return SyncRule(
    _every(local_steps),
    rho / replicas,
    'old',
    'before',
    _transform(optax.sgd(rho)),
  )


def sma(
  local_steps: int,
  rho: float,
  momentum: float,
  *,
  replicas: int,
  restarts: bool = True,
) -> SyncRule:
  """CROSSBOW's synchronous model averaging, with momentum of the anchor.

      c_k = alpha (x_k - z),    x_k <- x_k' - c_k
      z'  = z + sum_k c_k + mu (z - z_before)

  Args:
    local_steps: tau, 1 as published.
    rho: K alpha; so that the anchor moves alike with any number of replicas.
    momentum: mu.
    replicas: K.
    restarts: whether replicas start from z, and the anchor from rest, where a
      piecewise learning rate drops.

  Raises:
    ValueError: if rho is not positive, or not below `largest_stable_rho`.

  Reference: Koliousis et al., CROSSBOW, 2019 (arXiv:1901.02244).
  """
  _check_stable(rho, replicas, momentum)
  outer = optax.chain(
    optax.scale(rho), optax.trace(momentum), optax.scale(-1.0)
  )
  return SyncRule(
    _every(local_steps),
    rho / replicas,
    'old',
    'before',
    _transform(outer),
    restarts,
  )


SYNC_RULES: dict[str, Callable[..., SyncRule]] = {
  'local_sgd': local_sgd,
  'post_local_sgd': post_local_sgd,
  'qsr': qsr,
  'slowmo': slowmo,
  'diloco': diloco,
  'easgd': easgd,
  'sma': sma,
}


def largest_stable_rho(replicas: int, momentum: float = 0.0) -> float:
  """The bound below which replicas and anchor come together.

      rho < 2 K (1 + mu) / (1 + K + mu)

  At the bound the distance between the replicas' mean and the anchor changes
  its sign at each sync and keeps its size.

  >>> round(largest_stable_rho(16, momentum=0.9) / 16, 3)
  0.212
  """
  return 2 * replicas * (1 + momentum) / (1 + replicas + momentum)


def _check_stable(rho: float, replicas: int, momentum: float) -> None:
  bound = largest_stable_rho(replicas, momentum)
  if not 0 < rho < bound:
    raise ValueError(
      f'rho={rho} is not stable with {replicas} replicas and momentum '
      f'{momentum}: it must be above 0 and below {bound:.6g}'
    )


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
  count = learning_rate.shape[0] * (
    1 if axis is None else jax.lax.axis_size(axis)
  )

  def mean(tree):
    # One by one: a CPU's reduction over the leading axis is far slower.
    sums = jax.tree.map(lambda x: sum(x[1:], start=x[0]), tree)
    if axis is not None:
      sums = jax.lax.psum(sums, axis)
    # Integers are the same everywhere.
    return jax.tree.map(
      lambda x: x / count if _is_float(x) else x // count, sums
    )

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
  means = mean(averaged)

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

  def spread(value, like):
    return jnp.broadcast_to(value, like.shape) + jnp.zeros_like(like)

  new = new._replace(params=params)
  if a == 1:
    new = new._replace(
      model_state=jax.tree.map(spread, means['model_state'], new.model_state)
    )
  if average_momentum:
    momenta = iter(means['momentum'])
    new = new._replace(
      opt_state=jax.tree.map(
        lambda x: spread(next(momenta), x) if _is_float(x) else x,
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
