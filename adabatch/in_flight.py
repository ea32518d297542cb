"""Updates that were dispatched and have not reported yet."""

import collections
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax

from adabatch.buckets import Bucket, Plan
from adabatch.clock import Clock
from adabatch.controllers import GradientNoise
from adabatch.steps import StepSignals


class Dispatched(NamedTuple):
  """Updates on their way: what they run, and what they will report.

  Attributes:
    update, examples: done before them.
    count: how many they are.
    nominal, plan: of each of them.
    reports: float32 [at least count, 7], a row of StepSignals for each.
  """

  update: int
  examples: int
  count: int
  nominal: float
  plan: Plan
  reports: jax.Array


class Update(NamedTuple):
  """One update that is done.

  Attributes:
    update, examples: done with it.
    seconds: what the training clock showed then.
    nominal, plan: what it ran.
    report: what it reported.
    noise: its estimates of the gradient noise, if it has any.
  """

  update: int
  examples: int
  seconds: float
  nominal: float
  plan: Plan
  report: StepSignals
  noise: GradientNoise | None


class InFlight:
  """The queue of dispatched updates, oldest first."""

  def __init__(self, clock: Clock):
    self._clock = clock
    self._queue: collections.deque[Dispatched] = collections.deque()
    self._fetched = clock.seconds

  def add(self, dispatched: Dispatched) -> None:
    self._queue.append(dispatched)

  def take(self, keep: int = 0) -> Iterator[Update]:
    """Waits for the oldest until `keep` calls are on their way.

    The updates of one call end at unknown times; they are taken to be equally
    long.
    """
    while len(self._queue) > keep:
      done = self._queue.popleft()
      rows = jax.device_get(done.reports)[: done.count].tolist()
      now, since = self._clock.seconds, self._fetched
      self._fetched = now
      for i, row in enumerate(rows, start=1):
        report, update = StepSignals(*row), done.update + i
        yield Update(
          update=update,
          examples=done.examples + i * done.plan.batch_size,
          seconds=since + (now - since) * i / done.count,
          nominal=done.nominal,
          plan=done.plan,
          report=report,
          noise=_noise(report, update, done.plan.bucket),
        )


def _noise(
  report: StepSignals, update: int, bucket: Bucket
) -> GradientNoise | None:
  estimate = GradientNoise(report.trace_covariance, report.squared_norm)
  differenced = bucket.devices * bucket.accumulation_steps == 1
  # The first difference is with a gradient that was never taken.
  unknown = differenced and update == 1
  known = all(map(math.isfinite, estimate)) and not unknown
  return estimate if known else None
