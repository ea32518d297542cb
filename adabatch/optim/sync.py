"""How replicas agree: local SGD, SlowMo, DiLoCo, EASGD, SMA are one rule.

Replicas x_k train side by side, each on its share of the batch. Every H updates
they meet around one anchor z, which is the model that is evaluated:

    inner:    x_k' = x_k + U(g_k(x_k))
    at sync:  y_k  = x_k' ("after")  or  x_k ("before")
              D    = -mean_k (y_k - z)
              z'   = z + V(o, D)                    V: any optax transform
              x_k  <- x_k' - a (y_k - r)            r = z ("old") or z' ("new")

A method is a row of SYNC_RULES; it says what H, a, r, y and V are. Seen
"before" the update, the average can travel while the gradient is computed. The
rule is at work in `adabatch.devices.replicas`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

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


# A new one also needs a table in `config/keys.py`, ranges, and its slow twin in
# `tests/devices/test_sync.py`.
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
