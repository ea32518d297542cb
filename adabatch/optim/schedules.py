"""Learning-rate decay counted in examples, as multipliers that start at 1.

With a moving batch size nobody knows the number of updates in advance, so
every schedule here is a function of the examples seen; any optax schedule that
starts at 1, its count read as examples, serves as well. Configs know those of
`adabatch.train.optimizer.DECAYS`.

Called with a number, a schedule computes on the host and returns a NumPy
scalar, equal up to rounding to what it returns for an array of JAX.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from adabatch.optim.host import Scalar, float32, namespace

Schedule = Callable[[jax.typing.ArrayLike], Scalar]

_UNITS = ('epochs', 'examples', 'updates', 'tokens')


def constant() -> Schedule:
  """No decay.

      m(e) = 1

  Returns:
    A schedule: examples seen (scalar) -> multiplier (float32 scalar).

  >>> print(constant()(5_000))
  1.0
  """
  return _of_examples(lambda xp, count: xp.ones_like(count))


def piecewise(
  boundaries: Sequence[float], factors: float | Sequence[float] = 0.1
) -> Schedule:
  """Multiplies by a factor at each boundary.

      m(e) = prod_{i: e >= boundaries_i} factors_i

  Args:
    boundaries: examples at which the multiplier jumps, strictly increasing.
      The update that starts at a boundary already has the new value.
    factors: one factor for every boundary, or one for each of them; each
      multiplies what the earlier ones left (0.1, 0.1 gives 0.1 then 0.01).

  Returns:
    A schedule: examples seen (scalar) -> multiplier (float32 scalar).

  Raises:
    ValueError: boundaries that do not increase or are not positive, as many
      factors as boundaries are not given, or a factor is negative.

  Reference: Goyal et al., Accurate, Large Minibatch SGD, 2017
  (arXiv 1706.02677): a factor of 0.1 at epochs 30, 60 and 80.

  >>> schedule = piecewise([300, 600])
  >>> print(*[f'{schedule(e):.2f}' for e in (0, 299, 300, 600)])
  1.00 1.00 0.10 0.01
  """
  boundaries = [float(b) for b in boundaries]
  if isinstance(factors, Sequence):
    factors = [float(f) for f in factors]
  else:
    factors = [float(factors)] * len(boundaries)
  if len(factors) != len(boundaries):
    raise ValueError(
      f'piecewise: {len(boundaries)} boundaries but {len(factors)} factors; '
      'give one factor, or one for each boundary'
    )
  if any(a >= b for a, b in zip([0.0, *boundaries], boundaries, strict=False)):
    raise ValueError(
      f'piecewise: boundaries {boundaries} must be positive and increasing'
    )
  if any(f < 0 for f in factors):
    raise ValueError(f'piecewise: factors {factors} must not be negative')

  def schedule(xp, count):
    value = xp.ones_like(count)
    for boundary, factor in zip(boundaries, factors, strict=True):
      # float32 like the count: both are rounded alike.
      passed = count >= np.float32(boundary)
      value = value * xp.where(passed, np.float32(factor), np.float32(1))
    return value

  return _of_examples(schedule)


def cosine(total: Any, final: Any = 0.0) -> Schedule:
  """Half a cosine from 1 to `final`, then constant.

      m(e) = final + (1 - final) (1 + cos(pi min(e, total) / total)) / 2

  Args:
    total: length of the decay in examples; a number, which may be traced.
    final: multiplier at and after `total`; likewise.

  Returns:
    A schedule: examples seen (scalar) -> multiplier (float32 scalar).

  Raises:
    ValueError: total is not positive.

  Reference: Loshchilov and Hutter, SGDR, 2016 (arXiv 1608.03983).

  >>> schedule = cosine(total=1000, final=0.1)
  >>> print(*[f'{schedule(e):.2f}' for e in (0, 500, 1000, 2000)])
  1.00 0.55 0.10 0.10
  """
  _check_total('cosine', total)
  total, final = float32(total), float32(final)

  # Total and final may be traced, here and below: trials that train side by
  # side in one program differ in them.
  def schedule(xp, count):
    angle = np.float32(np.pi) * xp.minimum(1, count / total)
    return final + (1 - final) * (1 + xp.cos(angle)) / 2

  return _of_examples(schedule, total, final)


def linear(total: Any, final: Any) -> Schedule:
  """A straight line from 1 to `final`, then constant.

      m(e) = 1 - (1 - final) min(1, e / total)

  Args:
    total: length of the decay in examples; a number, which may be traced.
    final: multiplier at and after `total` (alpha in the reference); likewise.

  Returns:
    A schedule: examples seen (scalar) -> multiplier (float32 scalar).

  Raises:
    ValueError: total is not positive.

  Reference: Shallue et al., Measuring the Effects of Data Parallelism on
  Neural Network Training, 2018 (arXiv 1811.03600), section 3.

  >>> schedule = linear(total=1000, final=0.1)
  >>> print(*[f'{schedule(e):.2f}' for e in (0, 500, 1000, 2000)])
  1.00 0.55 0.10 0.10
  """
  return polynomial(total, power=1.0, final=final)


def polynomial(
  total: Any,
  power: float = 2.0,
  final: Any = 0.0,
) -> Schedule:
  """A power of the remaining fraction, from 1 to `final`, then constant.

      m(e) = final + (1 - final) (1 - min(1, e / total))^power

  Args:
    total: length of the decay in examples.
    power: exponent; 1 is a straight line, 2 the usual choice with LARS.
    final: multiplier at and after `total`.

  Returns:
    A schedule: examples seen (scalar) -> multiplier (float32 scalar).

  Raises:
    ValueError: total or power is not positive.

  Reference: You et al., Large Batch Training of Convolutional Networks, 2017
  (arXiv 1708.03888), which trains with power 2.

  >>> schedule = polynomial(total=1000, power=2)
  >>> print(*[f'{schedule(e):.2f}' for e in (0, 500, 1000, 2000)])
  1.00 0.25 0.00 0.00
  """
  _check_total('polynomial', total)
  if not power > 0:
    raise ValueError(f'polynomial: power must be positive, got {power}')

  total, final = float32(total), float32(final)

  def schedule(xp, count):
    return final + (1 - final) * (1 - xp.minimum(1, count / total)) ** power

  return _of_examples(schedule, total, final)


def wsd(
  total: Any,
  cooldown: Any = 0.2,
  final: Any = 0.0,
  shape: str = '1-sqrt',
) -> Schedule:
  """Constant, then a cooldown to `final`; with a warmup, warmup-stable-decay.

      m(e) = final + (1 - final) (1 - x)            'linear'
      m(e) = final + (1 - final) (1 - sqrt(x))      '1-sqrt'
      x = clip((e - (1 - cooldown) total) / (cooldown total), 0, 1)

  Until the cooldown begins the run's length need not be known.

  Args:
    total: length in examples, the cooldown included; a number, which may be
      traced.
    cooldown: share of it that is the cooldown, in (0, 1]; likewise.
    final: multiplier at and after `total`; likewise.
    shape: 'linear' or '1-sqrt'.

  Returns:
    A schedule: examples seen (scalar) -> multiplier (float32 scalar).

  Raises:
    ValueError: total is not positive, cooldown not in (0, 1], or an unknown
      shape.

  Reference: Hu et al., MiniCPM, 2024 (arXiv 2404.06395); Haegele et al.,
  Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations,
  2024 (arXiv 2405.18392), for 1 - sqrt and a cooldown of 20 %.

  >>> schedule = wsd(total=1000, cooldown=0.4)
  >>> print(*[f'{schedule(e):.2f}' for e in (0, 600, 700, 1000, 2000)])
  1.00 1.00 0.50 0.00 0.00
  """
  _check_total('wsd', total)
  if shape not in _COOLDOWNS:
    raise ValueError(
      f'wsd: unknown shape {shape!r}; choose one of {", ".join(_COOLDOWNS)}'
    )
  if not isinstance(cooldown, Tracer) and not 0 < cooldown <= 1:
    raise ValueError(f'wsd: cooldown must be in (0, 1], got {cooldown}')
  total, cooldown = float32(total), float32(cooldown)
  final, left = float32(final), _COOLDOWNS[shape]

  def schedule(xp, count):
    done = (count / total - (1 - cooldown)) / cooldown
    return final + (1 - final) * left(xp, xp.clip(done, 0, 1))

  return _of_examples(schedule, total, cooldown, final)


# Share of the way done -> of what is left.
_COOLDOWNS: dict[str, Callable[[Any, Any], Any]] = {
  'linear': lambda xp, done: 1 - done,
  '1-sqrt': lambda xp, done: 1 - xp.sqrt(done),
}


def after_batch_growth(
  decay: Schedule,
  *,
  exponent: float,
  initial_batch_size: float,
  max_batch_size: float,
) -> Schedule:
  """What is left for the learning rate when the batch grows instead.

      m(e) = max(alpha, alpha_cap)^q,  alpha = decay(e),  alpha_cap = B0 / B_max

  where alpha < 1; where alpha >= 1 the batch has nothing to grow for and
  m = alpha. The batch-size controller turns a decay by alpha into the nominal
  size B0 / alpha. Once that exceeds B_max, the loop's damping is

      B_max / (B0 / alpha) = alpha / alpha_cap,

  so learning rate and damping together give alpha^q before the cap and
  alpha_cap^q alpha / alpha_cap beyond it: continuous at the cap, and from
  there on the full remaining decay, because the batch cannot absorb any more
  of it. (Raising alpha itself to q beyond the cap would decay twice.) Combine
  it with `no_scaling`: a rule that also scales by the grown batch size would
  undo the decay.

  Args:
    decay: the schedule to replace: examples seen -> alpha.
    exponent: q, the part of the decay that stays with the learning rate: 0
      is Smith et al. (for SGD), 1/2 is Seesaw (for Adam).
    initial_batch_size: B0 in examples, the same as the controller's.
    max_batch_size: B_max in examples, the largest size the loop can run
      (float('inf') where there is none).

  Returns:
    A schedule: examples seen (scalar) -> multiplier (float32 scalar).

  Raises:
    ValueError: exponent is outside [0, 1] or not 0 < B0 <= B_max.

  Reference: Smith et al., Don't Decay the Learning Rate, Increase the Batch
  Size, 2018 (arXiv 1711.00489); Meterez et al., Seesaw, 2025
  (arXiv 2510.14717), for q = 1/2.

  >>> schedule = after_batch_growth(
  ...     piecewise([300, 600]), exponent=0.5,
  ...     initial_batch_size=64, max_batch_size=1600)
  >>> print(*[f'{schedule(e):.3f}' for e in (0, 300, 600)])
  1.000 0.316 0.200
  """
  if not 0 <= exponent <= 1:
    raise ValueError(
      f'after_batch_growth: exponent must be in [0, 1], got {exponent}'
    )
  if not 0 < initial_batch_size <= max_batch_size:
    raise ValueError(
      'after_batch_growth: need 0 < initial_batch_size <= max_batch_size, '
      f'got {initial_batch_size} and {max_batch_size}'
    )
  alpha_cap = initial_batch_size / max_batch_size

  def schedule(examples):
    alpha = float32(decay(examples))
    xp = namespace(alpha)
    grown = xp.maximum(alpha, np.float32(alpha_cap)) ** exponent
    return float32(xp.where(alpha < 1, grown, alpha))

  return schedule


def to_examples(
  length: Any,
  unit: str,
  *,
  num_examples: float | None = None,
  reference_batch_size: float | None = None,
  tokens_per_example: float | None = None,
) -> Any:
  """Converts a length of training to examples.

      epochs: length * num_examples,  updates: length * reference_batch_size,
      tokens: length / tokens_per_example

  Args:
    length: how much, in `unit`; a number, which may be traced.
    unit: 'epochs', 'examples', 'updates' or 'tokens'.
    num_examples: examples in an epoch; needed for 'epochs' only.
    reference_batch_size: examples in an update; needed for 'updates' only.
    tokens_per_example: needed for 'tokens' only.

  Returns:
    The length in examples.

  Raises:
    ValueError: another unit, or the number its conversion needs is missing.

  >>> to_examples(2, 'epochs', num_examples=60_000)
  120000.0
  >>> to_examples(100, 'updates', reference_batch_size=256)
  25600.0
  """
  if unit not in _UNITS:
    raise ValueError(
      f'to_examples: unknown unit {unit!r}; choose one of {", ".join(_UNITS)}'
    )
  if unit == 'examples':
    return 1.0 * length
  name, size = {
    'epochs': ('num_examples', num_examples),
    'updates': ('reference_batch_size', reference_batch_size),
    'tokens': ('tokens_per_example', tokens_per_example),
  }[unit]
  if size is None:
    raise ValueError(f'to_examples: {unit} need {name}, got None')
  return length / float(size) if unit == 'tokens' else length * float(size)


def _of_examples(schedule: Callable[[Any, Any], Any], *others: Any) -> Schedule:
  """A schedule (namespace, count) -> multiplier, of float32 counts.

  Integer counts, boundaries and totals overflow beyond 2^31 examples.

  Args:
    schedule: the formula.
    others: what may be traced in it.
  """

  def of_examples(examples):
    xp = namespace(examples, *others)
    return float32(schedule(xp, float32(examples)))

  return of_examples


def _check_total(name: str, total: Any) -> None:
  if isinstance(total, Tracer):
    return
  if not total > 0:
    raise ValueError(f'{name}: total must be positive, got {total}')
