"""What an update takes, for rules that read it."""

import collections
import math
import statistics

from adabatch.controllers.buckets import Bucket
from adabatch.devices.mesh import of_first_process
from adabatch.devices.messages import Call


class UpdateTimes:
  """Seconds of an update in each bucket, by the training clock.

  They are measured from one decision to the next: there the host has waited for
  all that was dispatched, and between them a report that is read late makes the
  next one early. Time that the clock stands still, to compile or to evaluate,
  is not in them, and neither is the first call in a bucket, which is slower.
  Where there are several processes, the clock of the first counts.
  """

  def __init__(self, windows: int):
    """Nothing was measured yet.

    Args:
      windows: of a bucket, from one decision to the next, of which the median
        counts; with fewer nothing is known.
    """
    self._known: dict[Bucket, collections.deque[float]] = {}
    self._windows = windows
    self._begin(None)

  def _begin(self, bucket: Bucket | None) -> None:
    self._bucket, self._updates, self._seconds = bucket, 0, 0.0

  def saw(self, call: Call, seconds: float) -> float:
    """A call that is done, and how long after the one before.

    Returns:
      What an update like those of the call takes; NaN while that is not known.
    """
    bucket = call.plan.bucket
    if bucket != self._bucket:
      self._begin(bucket)
    else:
      self._updates += call.count
      self._seconds += seconds
    known = self._known.setdefault(
      bucket, collections.deque(maxlen=self._windows)
    )
    if call.decides and self._updates:
      known.append(of_first_process(self._seconds / self._updates))
      self._begin(bucket)
    return statistics.median(known) if len(known) == self._windows else math.nan
