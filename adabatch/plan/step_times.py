"""How long a chip takes for a microbatch, and for several accumulated.

Of some pairs of m examples at once and k microbatches accumulated the time c is
known. Of others it is

    T(m, k)  for a known m: on the line through the known k on either side, or
             through the last two; of one known k alone
             fixed + k (c - fixed) / k_known
    T(m, k)  for another m: on the line through T of the known m on either side
             beyond the largest: on the line through T of the last two, which
             does not fall; of one known m alone, in proportion
             below the smallest: T of the smallest, as if none were faster

It rises with m and k where what is known does. Compilers say of small programs
that a larger one is faster, which is then kept.

`fixed` is what is done once an update, however many microbatches it has: the
intercept of the line through two known k of one m. Where there are none, it is
unknown and taken as 0: k microbatches take k times as long as one.
"""

import bisect
import itertools
from collections.abc import Iterable
from typing import NamedTuple


class Point(NamedTuple):
  """What is known.

  Attributes:
    microbatch_size: examples at once on a chip.
    accumulation_steps: microbatches of an update.
    seconds: that the chip takes, without an exchange.
  """

  microbatch_size: int
  accumulation_steps: int
  seconds: float


class StepTimes:
  """T(m, k) of the module.

  Attributes:
    sizes: known m, increasing.
    fixed: seconds done once an update; None: unknown.

  >>> times = StepTimes([Point(2, 1, 3.0), Point(4, 1, 5.0), Point(4, 3, 13.0)])
  >>> times(3, 1), times(8, 1), times(4, 5), times(1, 1), times.fixed
  (4.0, 9.0, 21.0, 3.0, 1.0)
  """

  def __init__(self, points: Iterable[Point]):
    """From at least one point.

    Raises:
      ValueError: if there is none.
    """
    rows: dict[int, dict[int, float]] = {}
    for size, steps, seconds in points:
      rows.setdefault(size, {})[steps] = seconds
    if not rows:
      raise ValueError('no time of a step is known')
    self._rows = {size: sorted(row.items()) for size, row in rows.items()}
    self.sizes = sorted(rows)
    self.fixed = self._fixed()

  def __call__(self, size: int, steps: int) -> float:
    """Seconds of an update with `steps` microbatches of `size` examples."""
    sizes = self.sizes
    i = bisect.bisect_left(sizes, size)
    if i == len(sizes):
      last = self._accumulated(sizes[-1], steps)
      if len(sizes) == 1:
        return last * size / sizes[-1]
      before = self._accumulated(sizes[-2], steps)
      slope = (last - before) / (sizes[-1] - sizes[-2])
      return last + max(slope, 0.0) * (size - sizes[-1])
    above = self._accumulated(sizes[i], steps)
    if i == 0 or sizes[i] == size:
      return above
    below = self._accumulated(sizes[i - 1], steps)
    share = (size - sizes[i - 1]) / (sizes[i] - sizes[i - 1])
    return below + share * (above - below)

  @property
  def falls(self) -> list[int]:
    """Known sizes that are faster than the one before."""
    pairs = itertools.pairwise(self.sizes)
    return [high for low, high in pairs if self(high, 1) < self(low, 1)]

  def _fixed(self) -> float | None:
    """From the size that was accumulated most often."""
    several = [row for row in self._rows.values() if len(row) > 1]
    if not several:
      return None
    (k1, c1), (k2, c2) = max(several, key=lambda row: row[-1][0])[-2:]
    least = min(c for row in self._rows.values() for _, c in row)
    return min(max(c1 - k1 * (c2 - c1) / (k2 - k1), 0.0), least)

  def _accumulated(self, size: int, steps: int) -> float:
    """T of a size that is known."""
    row = self._rows[size]
    if len(row) == 1:
      fixed, ((k, c),) = self.fixed or 0.0, row
      return c if k == steps else fixed + steps * (c - fixed) / k
    i = bisect.bisect_left(row, (steps,))
    if i < len(row) and row[i][0] == steps:
      return row[i][1]
    i = min(max(i, 1), len(row) - 1)
    (k1, c1), (k2, c2) = row[i - 1 : i + 1]
    slope = max((c2 - c1) / (k2 - k1), 0.0)
    if steps < k1:  # no microbatch of fewer takes less than its share
      return max(c1 - (k1 - steps) * slope, c1 * steps / k1)
    return (
      c2 + (steps - k2) * slope
      if steps > k2
      else (c1 + (steps - k1) * (c2 - c1) / (k2 - k1))
    )
