"""What was dispatched, when it was done, and what is made of its reports."""

import collections
import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax
import numpy as np

from adabatch.controllers import GradientNoise
from adabatch.devices.messages import (
  Call,
  Report,
  combine,
  finite_rows,
  share_above,
)
from adabatch.train.build import Parts
from adabatch.train.calls import Progress, Update
from adabatch.train.decisions import Decisions
from adabatch.train.not_finite import skip, without
from adabatch.train.per_call import Pace
from adabatch.train.records import Record, note, train_record
from adabatch.train.skipped import count_skipped
from adabatch.train.update_times import UpdateTimes

_T = TypeVar('_T')


class Clock:
  """Seconds of training, without evaluation, checkpoints and compilation.

  Attributes:
    devices: in use from now on.

  >>> now = iter([0.0, 2.0, 7.0, 8.0]).__next__
  >>> clock = Clock(now=now)
  >>> with clock.paused():  # from 2.0 to 7.0
  ...   pass
  >>> clock.seconds  # at 8.0
  3.0
  """

  def __init__(
    self,
    seconds: float = 0.0,
    now: Callable[[], float] = time.perf_counter,
    *,
    device_seconds: float = 0.0,
    devices: int = 1,
  ):
    """Goes on from both kinds of seconds, at first on all `devices`."""
    self._now = now
    self._begin, self._all = (seconds, device_seconds), devices
    self.restart()

  def restart(self) -> None:
    """Begins once more, as if no time had passed."""
    self._before, self._of_devices = self._begin
    self._since: float | None = self._now()
    self.devices = self._all

  @property
  def seconds(self) -> float:
    return self._before + self._running

  @property
  def device_seconds(self) -> float:
    """The integral of the devices in use over the seconds."""
    return self._of_devices + self._running * self.devices

  @property
  def _running(self) -> float:
    return 0.0 if self._since is None else self._now() - self._since

  @property
  def running(self) -> bool:
    return self._since is not None

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Stops the clock; a pause inside a pause changes nothing."""
    if self._since is None:
      yield
      return
    self._stop()
    try:
      yield
    finally:
      self._since = self._now()

  def _stop(self) -> None:
    running = self._running
    self._before += running
    self._of_devices += running * self.devices
    self._since = None

  def on_all(self, does: Callable[[], _T]) -> _T:
    """What is done on all devices."""
    if self._since is None:
      return does()
    began = self._before + self._now() - self._since
    found = does()  # which may pause
    seconds = self._before + self._now() - self._since - began
    self._of_devices += seconds * (self._all - self.devices)
    return found


class Reports:
  """Of calls on their way to the devices, oldest first.

  Each update is checked, fed to the batch-size rule, and recorded where that is
  due.

  Attributes:
    stopping: whether a process was asked to stop, or a decision waits for that.
  """

  def __init__(
    self,
    parts: Parts,
    at: Progress,
    decisions: Decisions,
    clock: Clock,
    gather: Callable[[jax.Array], jax.Array] | None = None,
    in_flight: int = 0,
    pace: Pace | None = None,
    beside: list[Record] | None = None,
  ):
    """Nothing is on its way.

    Args:
      parts: of the run.
      at: where it is; kept up to date.
      decisions: the batch-size rule at work.
      clock: of the training.
      gather: makes the reports of all replicas known to every process, where
        each has only those of its own.
      in_flight: how many calls may be on their way.
      pace: is told how long the first calls took.
      beside: records that decisions give, taken from there.
    """
    self._parts, self._at, self._decisions = parts, at, decisions
    self._clock, self._gather, self._in_flight = clock, gather, in_flight
    self._pace, self._beside = pace, beside
    self._queue: collections.deque[tuple[Call, jax.Array]] = collections.deque()
    self._fetched = clock.seconds
    self._times: UpdateTimes | None = None
    if 'seconds_per_update' in parts.controller.needs:
      self._times = UpdateTimes(parts.config.controller.goodput.windows)
    self._told = decisions.losses_below_minimum > 0
    self._last: Update | None = None
    # Not at.seconds, which is that of the last evaluation or checkpoint.
    self._logged = at.examples, clock.seconds
    self.stopping = False

  def add(self, call: Call, reports: jax.Array) -> None:
    """A call and what it will report: [replicas, at least count, 9]."""
    self._queue.append((call, reports))

  def follow(self, call: Call, reports: jax.Array) -> Iterator[Record]:
    """The same, and waits for earlier ones, or for it where it decides.

    The record of an update that decided comes after the next dispatch: until
    then the devices have nothing to do.
    """
    self.add(call, reports)
    yield from self._log_decision()
    if self._gather is None:
      waits = call.decides and self._decisions.waits(*call.after(call.count))
      yield from self._fetch(0 if waits else self._in_flight)
      return
    # To gather them takes time: only where they are needed.
    log, (done, _) = self._parts.due.log, call.after(call.count)
    if call.decides or done // log > call.update // log:
      yield from self._fetch(0)
    else:
      self.wait(self._in_flight)

  def wait(self, keep: int) -> None:
    """Waits for this process's devices until `keep` calls are on their way."""
    if len(self._queue) > keep:
      jax.block_until_ready(self._queue[-1 - keep][1])

  def observe(self, keep: int = 0) -> Iterator[Record]:
    """Waits for the oldest until `keep` calls are on their way.

    The updates of one call end at unknown times; they are taken to be equally
    long.

    Raises:
      Diverged: if one is not finite, and none is skipped or too many are.
    """
    yield from self._log_decision()
    yield from self._fetch(keep)
    yield from self._log_decision()

  def _fetch(self, keep: int) -> Iterator[Record]:
    if self._gather is not None:
      # The reports are gathered behind all that was dispatched; and on a CPU
      # two collectives at once could wait for each other for ever.
      self.wait(0)
    clip = self._parts.config.optimizer.clip_norm
    while len(self._queue) > keep:
      call, reports = self._queue.popleft()
      if self._gather is not None:
        reports = self._gather(reports)
      rows = np.asarray(reports)
      now, since = self._clock.seconds, self._fetched
      self._fetched = now
      self._measure(call, now - since)
      usual = math.nan
      if self._times is not None:
        usual = self._times.saw(call, now - since)
      for i in self._looked_at(call, rows):
        one, (update, examples) = rows[:, i - 1], call.after(i)
        report = combine(one)
        if report.finite:
          self._at.skipped_in_a_row = 0
        else:
          yield skip(one, call, i, self._at, self._parts)
          one, whole = without(one), report
          report = combine(one)._replace(stop=whole.stop, weight=whole.weight)
        yield from self._observe(
          Update(
            update=update,
            examples=examples,
            seconds=since + (now - since) * i / call.count,
            plan=call.plan,
            decides=call.decides and i == call.count,
            report=report,
            noise=_noise(report),
            clipped=None if clip is None else share_above(one, clip),
            usual_seconds=usual,
          )
        )

  def decide(self) -> Iterator[Record]:
    """What was put off, now that nothing is on its way."""
    self._decisions.decide(self._at.update, self._at.examples)
    yield from self._measured()

  def _measured(self) -> Iterator[Record]:
    """After a decision, or where it was put off."""
    # What was measured took no time of the next call.
    self._fetched = self._clock.seconds
    self.stopping |= self._decisions.pending
    while self._beside:
      yield self._beside.pop(0)

  def _measure(self, call: Call, seconds: float) -> None:
    if self._pace is None or not self._pace.measures:
      return
    if jax.process_count() > 1:
      # Processes agree by a collective, of which there is one at a time.
      self.wait(0)
    self._pace.saw(call.plan.bucket, call.count, seconds)

  def _looked_at(self, call: Call, rows: np.ndarray) -> Iterable[int]:
    """Which updates of a call are, from 1: all, or those that leave a trace.

    Args:
      call: that is done.
      rows: its reports, [replicas, at least count, 9].
    """
    every = range(1, call.count + 1)
    if call.count == 1:
      return every
    reports = rows[:, : call.count].reshape(-1, rows.shape[-1])
    if (
      self._decisions.follows
      or self._parts.recipe.sync is not None
      or self._at.skipped_in_a_row
      or not finite_rows(reports).all()
      or Report(*reports.T).stop.any()
    ):
      return every
    log = self._parts.due.log
    first = log - call.update % log
    logged = range(first, call.count + 1, log)
    return logged if call.count in logged else (*logged, call.count)

  def _observe(self, done: Update) -> Iterator[Record]:
    parts, at, report = self._parts, self._at, done.report
    self.stopping |= report.stop > 0
    inputs = parts.recipe.inputs
    if inputs.streaming and not inputs.tokens_per_example:
      count_skipped(done, at, parts.config, inputs)
    if at.skipped_in_a_row and not report.finite:
      # A decision that is due waits for the next one.
      return
    if self._decisions.measured:
      self._decisions.observe(done)
      if done.decides:
        yield from self._measured()
        if not self._told:
          yield from self._tell(done)
    self._last = done
    if math.isfinite(report.replica_squared_distance):
      names = 'replica_squared_distance', 'mean_squared_distance'
      at.distances = {name: getattr(report, name) for name in names}
    # That of a decision, which somebody may wait for, comes later.
    due = self._queue if done.decides else done.update % parts.due.log == 0
    if due:
      yield from self.log_last()

  def _log_decision(self) -> Iterator[Record]:
    """The record of the last update, if it decided and there is none yet."""
    if self._last is not None and self._last.decides:
      yield from self.log_last()

  def _tell(self, done: Update) -> Iterator[Record]:
    """Says so when the rule reads a loss that it cannot follow."""
    self._told = self._decisions.losses_below_minimum > 0
    if self._told:
      yield note(
        self._at,
        f'update {done.update}: the loss is not above '
        f'controller.{self._parts.config.controller.name}.minimum_loss, so the '
        f'batch size stays at {self._decisions.nominal:.6g}; summary.json '
        'counts how often',
      )

  def log_last(self) -> Iterator[Record]:
    """The record of the last update, if there is none yet."""
    done = self._last
    if done is None or done.examples <= self._logged[0]:
      return
    record = train_record(done, self._logged, self._parts, self._at.distances)
    self._logged = done.examples, done.seconds
    yield 'train', record


def _noise(report: Report) -> GradientNoise | None:
  estimate = GradientNoise(report.trace_covariance, report.squared_norm)
  return estimate if all(map(math.isfinite, estimate)) else None
