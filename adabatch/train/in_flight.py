"""Updates that were dispatched and have not reported yet."""

import collections
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from adabatch.controllers import GradientNoise
from adabatch.controllers.buckets import Plan
from adabatch.devices.steps import StepSignals, combine
from adabatch.train.clock import Clock


class Dispatched(NamedTuple):
  """Updates on their way: what they run, and what they will report.

  Attributes:
    update, examples: done before them.
    count: how many they are.
    nominal, plan: of each of them.
    reports: float32 [replicas, at least count, 9], a row of StepSignals for
      each.
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
    report: what it reported, all replicas together.
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

  def __init__(
    self, clock: Clock, gather: Callable[[jax.Array], jax.Array] | None = None
  ):
    """`gather` makes the reports of all replicas known to every process, where
    each has only those of its own."""
    self._clock, self._gather = clock, gather
    self._queue: collections.deque[Dispatched] = collections.deque()
    self._fetched = clock.seconds

  def add(self, dispatched: Dispatched) -> None:
    self._queue.append(dispatched)

  def wait(self, keep: int) -> None:
    """Waits for this process's devices until `keep` calls are on their way."""
    if len(self._queue) > keep:
      jax.block_until_ready(self._queue[-1 - keep].reports)

  def take(self, keep: int = 0) -> Iterator[Update]:
    """Waits for the oldest until `keep` calls are on their way.

    The updates of one call end at unknown times; they are taken to be equally
    long.
    """
    if self._gather is not None:
      # The reports are gathered behind all that was dispatched; and on a CPU
      # two collectives at once could wait for each other for ever.
      self.wait(0)
    while len(self._queue) > keep:
      done = self._queue.popleft()
      reports = done.reports
      if self._gather is not None:
        reports = self._gather(reports)
      rows = jax.device_get(reports)
      now, since = self._clock.seconds, self._fetched
      self._fetched = now
      for i in range(1, done.count + 1):
        report = combine(rows[:, i - 1])
        yield Update(
          update=done.update + i,
          examples=done.examples + i * done.plan.batch_size,
          seconds=since + (now - since) * i / done.count,
          nominal=done.nominal,
          plan=done.plan,
          report=report,
          noise=_noise(report),
        )


def _noise(report: StepSignals) -> GradientNoise | None:
  estimate = GradientNoise(report.trace_covariance, report.squared_norm)
  return estimate if all(map(math.isfinite, estimate)) else None
