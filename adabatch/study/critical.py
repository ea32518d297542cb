"""How large a batch may be, by branches that differ in nothing else.

Branches of one point train on over the same examples with other batch sizes,
and are evaluated on the same held-out examples, so what a batch size costs is
the mean of differences that are taken example by example. Their errors come
from the examples, which are a sample, and from the stretches of the training
data, which are another.

Reference: Merrill et al., Critical Batch Size Revisited, 2025
(arXiv:2505.23971), for branches and the largest batch that costs no more than
epsilon.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import interpolate, special, stats

CONFIDENCE = 0.95
# What the trend of the variances counts, in degrees of freedom, beside that of
# a size's own few repeats.
MOST_SHARED = 3


class Difference(NamedTuple):
  """Loss of one batch size less that of the reference.

  Attributes:
    batch_size: in examples.
    loss: mean held-out loss; infinite if a branch diverged.
    difference: mean of the paired differences; 0 of the reference.
    error: its standard error.
    degrees: of freedom of that error.
    unpaired_error: that it would have if each branch had been trained and
      evaluated on other examples.
  """

  batch_size: int
  loss: float
  difference: float
  error: float
  degrees: float
  unpaired_error: float

  def half_width(self, confidence: float = CONFIDENCE) -> float:
    """Of the interval of the difference."""
    if not self.error:
      return 0.0
    return self.error * float(stats.t.ppf((1 + confidence) / 2, self.degrees))


def differences(
  losses: Mapping[int, np.ndarray],
  reference: int,
  weights: np.ndarray | None = None,
) -> list[Difference]:
  """What each batch size costs against the reference.

      d_ri = l_ri(B) - l_ri(B_ref),    mean over repeats r and examples i
      error^2 = s_r^2 / R + s_i^2 / N

  s_i is the spread over examples of the mean over repeats, and s_r that over
  repeats of the mean over examples. From few repeats s_r^2 is known badly, so
  that of a trend through all sizes, log s_r^2 = a + b |log B / B_ref|, counts
  beside it, as up to `MOST_SHARED` degrees of freedom. With one repeat s_r is
  unknown and left out: what another stretch of the data would have changed is
  then not in the error.

  Args:
    losses: batch size -> float [R, N], of the same repeats and examples.
    reference: the size that others are compared with.
    weights: what each example counts, [N]; None: all the same.

  Returns:
    One for each size, from the smallest; of a size, or of the reference, with
    losses that are not finite, an infinite difference.

  Raises:
    ValueError: if the reference is not there, or shapes differ.

  >>> rng = np.random.default_rng(0)
  >>> base = rng.normal(2.0, 1.0, (2, 100))
  >>> found = differences({8: base, 16: base + 0.5}, reference=8)
  >>> f'{found[1].difference:.2f} {found[1].error:.2f}'
  '0.50 0.00'
  """
  if reference not in losses:
    raise ValueError(
      f'no branch has the reference batch size {reference}: give its losses'
    )
  base = np.asarray(losses[reference], np.float64)
  repeats, count = base.shape
  w = np.ones(count) if weights is None else np.asarray(weights, np.float64)
  shares = w / w.sum()
  paired = {}
  for size, values in losses.items():
    if np.shape(values) != base.shape:
      raise ValueError(
        f'losses of batch size {size} have the shape {np.shape(values)}, and '
        f'those of {reference} {base.shape}: give the same repeats and examples'
      )
    if np.isfinite(values).all() and np.isfinite(base).all():
      paired[size] = np.asarray(values, np.float64) - base
  by_repeat = {size: d @ shares for size, d in paired.items()}
  spreads = _spreads(by_repeat, reference)
  found = []
  for size in sorted(losses):
    values = np.asarray(losses[size], np.float64)
    if size not in paired:
      found.append(Difference(size, math.inf, math.inf, 0.0, 1.0, math.inf))
      continue
    mean = float((values @ shares).mean())
    over_examples = _variance_of_mean(paired[size].mean(0), shares)
    spread, degrees = spreads.get(size, (0.0, math.inf))
    over_repeats = spread / repeats
    variance = over_examples + over_repeats
    found.append(
      Difference(
        size,
        mean,
        float(by_repeat[size].mean()),
        math.sqrt(variance),
        _degrees([(over_examples, count - 1), (over_repeats, degrees)]),
        math.sqrt(_alone(values, shares) + _alone(base, shares)),
      )
    )
  return found


def _spreads(
  by_repeat: Mapping[int, np.ndarray], reference: int
) -> dict[int, tuple[float, float]]:
  """Variances over repeats and their degrees of freedom, by batch size.

  Args:
    by_repeat: batch size -> mean differences, [R].
    reference: left out, because its differences are 0.
  """
  sizes = [size for size in by_repeat if size != reference]
  own = min((len(values) - 1 for values in by_repeat.values()), default=0)
  if not own or not sizes:
    return {}
  found = {size: float(np.var(by_repeat[size], ddof=1)) for size in sizes}
  if len(sizes) < 3 or min(found.values()) <= 0:
    return {size: (variance, own) for size, variance in found.items()}
  away = np.abs(np.log(np.array(sizes) / reference))
  spread = np.sum((away - away.mean()) ** 2)
  # The trend is known worst at its ends.
  leverage = 1 / len(away) + (away - away.mean()) ** 2 / max(spread, 1e-12)
  # The logarithm of an estimated variance is too low on average.
  bias = special.digamma(own / 2) - math.log(own / 2)
  logs = np.log([found[size] for size in sizes]) - bias
  trend = np.exp(np.polyval(np.polyfit(away, logs, 1), away))
  most = min(MOST_SHARED, (len(sizes) - 2) * own)
  counts = most * (1 - np.minimum(leverage, 1))
  return {
    size: ((own * found[size] + count * other) / (own + count), own + count)
    for size, other, count in zip(
      sizes, trend.tolist(), counts.tolist(), strict=True
    )
  }


def _alone(losses: np.ndarray, shares: np.ndarray) -> float:
  """Variance of the mean loss of one batch size, [R, N]."""
  over_examples = _variance_of_mean(losses.mean(0), shares)
  if len(losses) == 1:
    return over_examples
  return over_examples + float(np.var(losses @ shares, ddof=1)) / len(losses)


def _variance_of_mean(values: np.ndarray, shares: np.ndarray) -> float:
  """Of a weighted mean of independent values."""
  mean = values @ shares
  correction = 1 - np.sum(shares**2)
  if not correction > 0:
    return 0.0
  variance = np.sum(shares * (values - mean) ** 2) / correction
  return float(variance * np.sum(shares**2))


def _degrees(parts: Sequence[tuple[float, float]]) -> float:
  """Of freedom of a sum of variances, by Welch and Satterthwaite."""
  total = sum(variance for variance, _ in parts)
  below = sum(v**2 / n for v, n in parts if v and n)
  return total**2 / below if below else math.inf


class Critical(NamedTuple):
  """The largest batch size that costs no more than epsilon, in examples.

  Attributes:
    batch_size: where the differences cross epsilon; None: none of the sizes
      costs so much.
    low: least that is not refuted; the reference itself at least, or 0 where
      that diverged.
    high: largest that is not refuted; None: nothing refutes the largest size
      that was tried, or one beyond.
    tried: the largest size.
  """

  batch_size: float | None
  low: float
  high: float | None
  tried: int

  @property
  def at_least(self) -> float:
    """The point, or the largest size tried."""
    return float(self.tried) if self.batch_size is None else self.batch_size


def critical(
  found: Sequence[Difference],
  reference: int,
  epsilon: float,
  confidence: float = CONFIDENCE,
) -> Critical:
  """Where the cost of a larger batch comes to epsilon.

  The differences are interpolated in the logarithm of the batch size, without
  overshooting (PCHIP), and so are the ends of their intervals: `low` is where
  the upper end first exceeds epsilon, `high` where the lower end does for good.

  Args:
    found: of the sizes that were tried.
    reference: the size that the others are compared with.
    epsilon: cost that is still none, above 0.
    confidence: of the interval.

  >>> flat = [Difference(b, 2.0, 0.0, 0.001, 99, 0.1) for b in (8, 16, 32)]
  >>> critical(flat, 8, epsilon=0.01)
  Critical(batch_size=None, low=32.0, high=None, tried=32)
  >>> steep = [d._replace(difference=0.01 * i) for i, d in enumerate(flat)]
  >>> print(f'{critical(steep, 8, epsilon=0.01).batch_size:.1f}')
  16.0
  """
  above = [d for d in found if d.batch_size >= reference]
  tried = above[-1].batch_size
  finite = [d for d in above if math.isfinite(d.difference)]
  diverged = [d.batch_size for d in above if not math.isfinite(d.difference)]
  if not finite or diverged and diverged[0] < finite[0].batch_size:
    return Critical(None, 0.0, None, tried)
  if diverged:  # nothing is said beyond the first of them
    finite = [d for d in finite if d.batch_size < diverged[0]]
  at = np.log([d.batch_size for d in finite])
  middle = np.array([d.difference for d in finite])
  half = np.array([d.half_width(confidence) for d in finite])

  def crosses(values: np.ndarray, *, last: bool = False) -> float | None:
    return _crossing(at, values, epsilon, last=last)

  point, low = crosses(middle), crosses(middle + half)
  high = crosses(middle - half, last=True)
  if point is not None:
    # Interpolated apart, the ends may cross a little on the other side.
    low = point if low is None else min(low, point)
    high = None if high is None else max(high, point)
  edge = float(finite[-1].batch_size)
  if diverged:
    # Somewhere between the last that did not and the first that did.
    low = edge if low is None else low
    high = float(diverged[0]) if high is None else high
    point = math.sqrt(edge * diverged[0]) if point is None else point
  low = edge if low is None else low
  return Critical(point, low, high, tried)


def _crossing(
  at: np.ndarray, values: np.ndarray, level: float, *, last: bool
) -> float | None:
  """exp of where an interpolated curve first, or for good, exceeds a level."""
  if len(at) == 1:
    return float(np.exp(at[0])) if values[0] > level else None
  curve = interpolate.PchipInterpolator(at, values)
  fine = np.linspace(at[0], at[-1], 200 * (len(at) - 1) + 1)
  exceeds = curve(fine) > level + 1e-12 * max(1.0, abs(level))
  if last:
    if not exceeds[-1]:
      return None
    below = np.flatnonzero(~exceeds)
    i = below[-1] + 1 if len(below) else 0
  else:
    if not exceeds.any():
      return None
    i = int(np.argmax(exceeds))
  if i == 0:
    return float(np.exp(at[0]))
  a, b = fine[i - 1], fine[i]
  ya, yb = curve(a), curve(b)
  return float(np.exp(a + (b - a) * (level - ya) / (yb - ya)))


class Growth(NamedTuple):
  """critical(examples) = scale examples^power, fitted in logarithms.

  Attributes:
    power: its estimate, with the ends of its interval.
    power_low, power_high: those.
    scale: in examples^(1 - power).
    points: how many it was fitted to.
    left_out: points without an estimate, of which a bound alone is known.
  """

  power: float
  power_low: float
  power_high: float
  scale: float
  points: int
  left_out: int


def growth(
  at: Sequence[int],
  sizes: Sequence[Critical],
  confidence: float = CONFIDENCE,
) -> Growth | None:
  """How the critical batch size grows along a run; None of under two points.

  Least squares of log B against log examples, each with the weight of its
  interval; what is beyond the largest size that was tried is left out.

  Args:
    at: examples of the points.
    sizes: their critical sizes.
    confidence: of the interval.

  >>> grown = [Critical(10 * n**0.5, 9 * n**0.5, 11 * n**0.5, 999)
  ...          for n in (100, 400, 1600)]
  >>> f'{growth([100, 400, 1600], grown).power:.2f}'
  '0.50'
  """
  rows = [
    (math.log(n), math.log(c.batch_size), _log_error(c, confidence))
    for n, c in zip(at, sizes, strict=True)
    if c.batch_size is not None and n > 0
  ]
  if len(rows) < 2:
    return None
  x, y, error = np.array(rows).T
  w = 1 / error**2
  mean = np.average(x, weights=w)
  spread = np.sum(w * (x - mean) ** 2)
  if not spread > 0:
    return None
  power = float(np.sum(w * (x - mean) * y) / spread)
  offset = float(np.average(y, weights=w) - power * mean)
  residual = float(np.sum(w * (y - offset - power * x) ** 2))
  # No smaller than the intervals say, and larger where the points scatter more.
  excess = max(1.0, residual / (len(x) - 2)) if len(x) > 2 else 1.0
  half = math.sqrt(excess / spread) * float(
    stats.norm.ppf((1 + confidence) / 2)
  )
  return Growth(
    power,
    power - half,
    power + half,
    math.exp(offset),
    len(x),
    len(sizes) - len(x),
  )


def _log_error(found: Critical, confidence: float) -> float:
  """Standard error of log B, from its interval; one that is open is as wide
  above as below."""
  assert found.batch_size is not None
  point, low = found.batch_size, found.low
  high = point**2 / low if found.high is None else found.high
  width = max(math.log(high / low), 1e-3)
  return width / (2 * float(stats.norm.ppf((1 + confidence) / 2)))


def to_json(value: Any) -> dict[str, Any]:
  """A record as JSON has it; what is not finite is None."""
  return {
    name: None if isinstance(x, float) and not math.isfinite(x) else x
    for name, x in value._asdict().items()
  }
