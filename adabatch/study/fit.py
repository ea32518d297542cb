"""How steps to result fall with the batch size: two numbers and their doubt."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

# So far beyond the batch sizes, in log B_crit, the curve is its own limit to
# the last bit of a float64.
_BEYOND = 40.0
_GRID = 4001
# A curve that misses by less is as good as steps that are known to 5 % allow.
TOLERANCE = 0.1


class CriticalBatchSize(NamedTuple):
  """The curve S(B) = S_min + E_min / B = S_min (1 + B_crit / B).

  Attributes:
    min_steps: S_min, which no batch size goes below; 0 if the data show nothing
      but perfect scaling.
    critical_batch_size: B_crit = E_min / S_min, where half the gain is made; 0
      if the data show no gain at all, inf if nothing but perfect scaling.
    min_examples: E_min, which no batch size gets by with less of.
    min_steps_interval: where the data leave S_min; open ends are 0 and inf.
    critical_batch_size_interval: where they leave B_crit, likewise.
    confidence: of the intervals.
    noise: standard deviation of log S about the curve, sqrt(sum r^2 / (n - 2)).
    points: how many pairs were fitted.
    largest_residual: the r = log S - log S(B) that is largest in size: how far
      the curve misses where it fits worst.
    largest_residual_at: the batch size where it does.
  """

  min_steps: float
  critical_batch_size: float
  min_examples: float
  min_steps_interval: tuple[float, float]
  critical_batch_size_interval: tuple[float, float]
  confidence: float
  noise: float
  points: int
  largest_residual: float
  largest_residual_at: float


def predict(fit: CriticalBatchSize, batch_size: float) -> float:
  """Steps to result at a batch size: S(B) = S_min + E_min / B.

  >>> fit = fit_critical_batch_size([1, 10, 100], [1100.0, 200.0, 110.0])
  >>> round(predict(fit, 1000), 6)
  101.0
  """
  return fit.min_steps + fit.min_examples / batch_size


def overhead_batch_size(
  fit: CriticalBatchSize, overhead: float = 0.2, reference: float = 0.0
) -> float:
  """The batch size that takes so much more examples than a small one.

      B S(B) = (1 + overhead) R S(R)
      B = (1 + overhead) R + overhead B_crit

  Args:
    fit: of the steps.
    overhead: examples beyond those at the reference, as a share of them.
    reference: R, the batch size that is compared with; 0 stands for E_min, the
      examples that no batch size gets by with less of.

  Raises:
    ValueError: for a number that is negative.

  >>> fit = fit_critical_batch_size([1, 10, 100], [1100.0, 200.0, 110.0])
  >>> round(overhead_batch_size(fit, reference=1), 6)
  3.2

  Reference: Zhang et al., How Does Critical Batch Size Scale in Pre-training?,
  2024 (arXiv:2410.21676), where R = 256 and the overhead is 20 %.
  """
  for name, value in (('overhead', overhead), ('reference', reference)):
    if not value >= 0:
      raise ValueError(f'{name} must not be negative, got {value}')
  return (1 + overhead) * reference + overhead * fit.critical_batch_size


def lack_of_fit(
  fit: CriticalBatchSize, spread: float | None = None
) -> str | None:
  """In words, how the curve misses the steps; None if it does not.

  It misses if its largest residual is beyond both 10 % and what so many draws
  from a normal distribution with the given spread exceed in 1 case of 20.

  Args:
    fit: of the steps.
    spread: standard deviation of log S by luck alone, such as the draw of
      trials, or of seeds over the square root of their number; None if it is
      not known.

  Raises:
    ValueError: for a spread that is negative.

  >>> lack_of_fit(fit_critical_batch_size([1, 10, 100], [1100, 200, 110]))
  >>> lack_of_fit(fit_critical_batch_size([1, 10, 100], [1100, 400, 110]))
  ... # doctest: +ELLIPSIS
  'the curve misses the steps at batch size 10 by 59 %, ...'
  """
  if spread is not None and not spread >= 0:
    raise ValueError(f'spread must not be negative, got {spread}')
  by_luck = special.ndtri(1 - 0.025 / fit.points) * (spread or 0.0)
  missed = abs(fit.largest_residual)
  if missed <= max(math.log(1 + TOLERANCE), by_luck):
    return None
  share = 100 * math.expm1(missed)
  luck = (
    'and how far luck spreads them is not known'
    if spread is None
    else f'and luck spreads them by {100 * math.expm1(spread):.0f} %'
  )
  return (
    f'the curve misses the steps at batch size {fit.largest_residual_at:g} by'
    f' {share:.0f} %, {luck}: they have another shape, which S_min and B_crit'
    ' do not describe'
  )


def uncensored(
  batch_sizes: Sequence[float], steps: Sequence[float | None]
) -> list[tuple[float, float]]:
  """The pairs whose steps are known: neither None nor NaN nor inf.

  Raises:
    ValueError: for lengths that differ, and for sizes or steps that are not
      positive.
  """
  if len(batch_sizes) != len(steps):
    raise ValueError(
      f'{len(batch_sizes)} batch sizes and {len(steps)} steps: give one for'
      ' each'
    )
  for size in batch_sizes:
    if not 0 < size < math.inf:
      raise ValueError(f'a batch size must be positive, got {size}')
  pairs = [
    (float(size), float(count))
    for size, count in zip(batch_sizes, steps, strict=True)
    if count is not None and math.isfinite(count)
  ]
  for _, count in pairs:
    if count <= 0:
      raise ValueError(f'steps to result must be positive, got {count:g}')
  return pairs


class _Profile(NamedTuple):
  """The fit on log S, for n pairs, as a function of t = log B_crit alone.

  The best S_min at a given t has a closed form, so no search over it can fail:

      log S_min(t) = mean_i (log S_i - log(1 + e^t / B_i))

  Attributes:
    b: log B_i, [n].
    y: log S_i, [n].
  """

  b: np.ndarray
  y: np.ndarray

  def level(self, t: npt.ArrayLike) -> np.ndarray:
    """log S_min(t), like t."""
    t = np.asarray(t)[..., None]
    return (self.y - np.logaddexp(0.0, t - self.b)).mean(-1)

  def examples(self, t: npt.ArrayLike) -> np.ndarray:
    """log E_min(t), like t: t + log S_min(t), but exact for large t too."""
    t = np.asarray(t)[..., None]
    return (self.y + self.b - np.logaddexp(0.0, self.b - t)).mean(-1)

  def squares(self, t: npt.ArrayLike) -> np.ndarray:
    """The sum of squared residuals at S_min(t), like t."""
    return np.square(self.residuals(t)).sum(-1)

  def slope(self, t: npt.ArrayLike) -> np.ndarray:
    """Minus half the derivative of `squares`, like t."""
    shift = np.asarray(t)[..., None] - self.b
    small, large = special.expit(shift), -special.expit(-shift)
    gain = np.where(self._is_small(t), small, large)
    return (self.residuals(t) * gain).sum(-1)

  def residuals(self, t: npt.ArrayLike) -> np.ndarray:
    """log S_i - log S(B_i) at S_min(t), [..., n]."""
    shift = np.asarray(t)[..., None] - self.b
    small, large = np.logaddexp(0.0, shift), np.logaddexp(0.0, -shift) - self.b
    r = self.y - np.where(self._is_small(t), small, large)
    return r - r.mean(-1, keepdims=True)

  def _is_small(self, t: npt.ArrayLike) -> np.ndarray:
    # There are two forms, alike up to a constant, which the mean takes away;
    # each keeps its digits on its own side.
    return np.asarray(t)[..., None] < self.b.mean()


def fit_critical_batch_size(
  batch_sizes: Sequence[float],
  steps: Sequence[float | None],
  *,
  confidence: float = 0.95,
) -> CriticalBatchSize:
  """Least squares on log S, because steps to result err by a factor.

      S(B) = S_min (1 + B_crit / B)

  The intervals are profile likelihoods: all values of the one number with which
  some value of the other gives

      RSS <= RSS_min (1 + F_{1, n-2}(confidence) / (n - 2))

  That is exact to the extent that the curve is right, the errors of log S are
  alike, and the curve is straight in its numbers near the fit. Censored sizes
  are left out, so where these are the smallest or the largest ones, the curve
  is not seen there.

  Args:
    batch_sizes: B, [n].
    steps: S, [n]; None, NaN or inf where the goal was not reached.
    confidence: of the intervals, in (0, 1).

  Raises:
    ValueError: for fewer than 3 different batch sizes with steps: two numbers
      pass through two points, whatever these are, and nothing is left to tell
      the noise by.

  >>> fit = fit_critical_batch_size([1, 10, 100, 9], [1100, 200, 110, None])
  >>> round(fit.min_steps, 6), round(fit.critical_batch_size, 6), fit.points
  (100.0, 10.0, 3)

  Reference: McCandlish et al., An Empirical Model of Large-Batch Training, 2018
  (arXiv:1812.06162), equation 5.1.
  """
  if not 0 < confidence < 1:
    raise ValueError(f'confidence must be between 0 and 1, got {confidence}')
  pairs = uncensored(batch_sizes, steps)
  distinct = len({size for size, _ in pairs})
  if distinct < 3:
    raise ValueError(
      f'a fit needs 3 different batch sizes with steps, got {distinct} among'
      f' {len(batch_sizes)}'
    )
  b, y = np.log(pairs).T
  profile, n = _Profile(b, y), len(pairs)
  grid = np.linspace(b.min() - _BEYOND, b.max() + _BEYOND, _GRID)
  # Squares below this are rounding of the logarithms.
  floor = n * (8 * np.finfo(float).eps * max(1.0, float(np.abs(y).max()))) ** 2

  best = _minimum(profile, grid, floor)
  least = float(profile.squares(best))
  quantile = float(special.fdtri(1, n - 2, confidence))
  allowed = least * (1 + quantile / (n - 2)) + floor
  low, high = _allowed_range(profile, grid, best, allowed)
  residuals = profile.residuals(best)
  worst = int(np.argmax(np.abs(residuals)))
  return CriticalBatchSize(
    min_steps=0.0 if best >= grid[-1] else math.exp(profile.level(best)),
    critical_batch_size=_size(best, grid),
    min_examples=0.0 if best <= grid[0] else math.exp(profile.examples(best)),
    min_steps_interval=_levels(profile, grid, best, low, high, allowed),
    critical_batch_size_interval=(_size(low, grid), _size(high, grid)),
    confidence=confidence,
    noise=math.sqrt(least / (n - 2)),
    points=n,
    largest_residual=float(residuals[worst]),
    largest_residual_at=pairs[worst][0],
  )


def _size(t: float, grid: np.ndarray) -> float:
  """B_crit at t, where the ends of the grid stand for 0 and inf."""
  if t >= grid[-1]:
    return math.inf
  return 0.0 if t <= grid[0] else math.exp(t)


def _minimum(profile: _Profile, grid: np.ndarray, floor: float) -> float:
  """The best t; an end of the grid if nothing is better than the limit."""
  squares = profile.squares(grid)
  i = int(np.argmin(squares))
  best = float(grid[i])
  low, high = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
  # The squares are flat where they are least, their slope is not.
  if profile.slope(low) > 0 > profile.slope(high):
    best = _root(profile.slope, low, high)
  least = float(profile.squares(best))
  for end in (0, -1):
    if squares[end] <= least + floor:
      best = float(grid[end])
  return best


def _allowed_range(
  profile: _Profile, grid: np.ndarray, best: float, allowed: float
) -> tuple[float, float]:
  """The least and the largest t whose squares are allowed."""
  t = np.unique(np.append(grid, best))
  inside = np.flatnonzero((profile.squares(t) <= allowed) | (t == best))

  def edge(i: int, outside: int) -> float:
    if not 0 <= outside < len(t):
      return float(t[i])
    return _root(lambda t: profile.squares(t) - allowed, t[i], t[outside])

  first, last = int(inside[0]), int(inside[-1])
  return edge(first, first - 1), edge(last, last + 1)


def _root(
  function: Callable[[float], np.ndarray], low: float, high: float
) -> float:
  # SciPy's brentq may return a pair, but not when called like this.
  root = optimize.brentq(function, low, high, xtol=1e-13)
  return float(root)  # pyright: ignore


def _levels(
  profile: _Profile,
  grid: np.ndarray,
  best: float,
  low: float,
  high: float,
  allowed: float,
) -> tuple[float, float]:
  """The interval of S_min: the allowed region, seen from its side.

  At a given t the squares grow by n d^2 at a distance d from log S_min(t), so
  what is allowed there ends at d = sqrt((allowed - squares(t)) / n).
  """
  t = np.append(np.linspace(low, high, len(grid)), best)
  spare = np.maximum(allowed - profile.squares(t), 0.0)
  reach = np.sqrt(spare / len(profile.y))
  level = profile.level(t)
  least = 0.0 if high >= grid[-1] else math.exp((level - reach).min())
  return least, math.exp((level + reach).max())
