"""Between two calls: another number of replicas, or all of them start anew."""

from collections.abc import Iterator
from typing import Any

from adabatch.train.calls import Progress
from adabatch.train.next_call import next_plan
from adabatch.train.records import Record, note, replicas_record
from adabatch.train.replicas import Change


def regroup(run: Any) -> Iterator[Record]:
  """Does with the replicas what is due before the next call.

  Args:
    run: with `at`, `parts`, `decisions`, `replicas`, `trainer`, `reports` and
      `clock`.
  """
  at, replicas = run.at, run.replicas
  if run.parts.config.sync.tune.enabled:
    plan = next_plan(at, run.parts, run.decisions, replicas)
    if replicas.tuning_due(at, plan):
      yield from _tune(run)
  if replicas.restart_due(at.examples):
    yield from run.reports.observe()
    with run.clock.paused():
      run.trainer.restart()
    yield note(at, f'update {at.update}: replicas restart from z')


def changed(at: Progress, change: Change) -> Iterator[Record]:
  """Says that there is another number of replicas."""
  yield note(at, f'update {at.update}: {change}')
  yield 'replicas', replicas_record(at, change)


def _tune(run: Any) -> Iterator[Record]:
  """Finds how many replicas a device should train."""
  at, replicas, settled = run.at, run.replicas, run.replicas.settled
  yield from run.reports.observe()
  plan = next_plan(at, run.parts, run.decisions, replicas)
  change = replicas.tune(at, plan, run.clock.seconds)
  if change is not None:
    with run.clock.paused():
      run.trainer.resize(change.now)
    at.seconds = run.clock.seconds
    yield from changed(at, change)
  if replicas.settled and not settled:
    number = replicas.counts.replicas
    yield note(at, f'update {at.update}: settled at {number} replicas')
