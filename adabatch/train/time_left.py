"""How fast a run is, and how long it still takes, while its batch grows.

Read from the records of updates alone, so that an update costs nothing. Their
seconds are without compilation, evaluation and checkpoints.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from adabatch.controllers import BatchSizeController, Signals, buckets
from adabatch.controllers.base import PROGRESS
from adabatch.controllers.buckets import Ladder
from adabatch.train.build import Parts
from adabatch.train.run_end import RunEnd

STEPS = 256  # in which what is left of a run is gone through
LOOK_AHEAD = 1900  # updates among which the next decision is looked for


class Stretch(NamedTuple):
  """Examples that come in batches of one size."""

  batch_size: int
  examples: int


def constantly(end: RunEnd, update: int, examples: int, size: int) -> Stretch:
  """The rest of a run whose batch stays as it is.

  >>> constantly(RunEnd(1000, 9), 5, 80, 16)
  Stretch(batch_size=16, examples=64)
  """
  updates = max(end.left(update, examples, size), 0)
  return Stretch(size, min(updates * size, end.examples - examples))


def ahead(
  rule: BatchSizeController,
  ladder: Ladder,
  end: RunEnd,
  num_examples: int,
  update: int,
  examples: int,
  size: int,
  steps: int = STEPS,
) -> list[Stretch]:
  """The rest of a run whose rule reads nothing but its progress.

  The rule is asked at most `steps` times, and is taken to change nothing in
  between: no size is off by more than one part of so many of the run.

  Args:
    rule: of the run.
    ladder: the sizes that are run.
    end: what ends the run.
    num_examples: of the training split.
    update, examples: done so far.
    size: of the last batch.
    steps: in which it is gone through.

  >>> from adabatch.controllers import step_table
  >>> sizes = buckets.ladder(16, 64, devices=1)
  >>> rule = step_table(table='0:16 32:64')
  >>> ahead(rule, sizes, RunEnd(160), 100, 1, 16, 16)
  [Stretch(batch_size=16, examples=16), Stretch(batch_size=64, examples=128)]
  """
  found: list[Stretch] = []
  state = rule.init()
  step = max(constantly(end, update, examples, size).examples // steps, 1)
  while not end.over(update, examples):
    if rule.due(update):
      signals = Signals(update, examples, examples / num_examples)
      nominal, state = rule.update(state, signals)
      size = buckets.plan(nominal, ladder).batch_size
    first = update + max(step // size, 1)
    later = range(first, first + LOOK_AHEAD)
    until = next(filter(rule.due, later), math.inf)
    rest = end.left(update, examples, size)
    count = int(min(until - update, rest))
    more = min(count * size, end.examples - examples)
    if found and found[-1].batch_size == size:
      more += found.pop().examples
    found.append(Stretch(size, more))
    update += count
    examples = min(examples + count * size, end.examples)
  return found


def seconds_of(
  stretches: Sequence[Stretch], seconds_per_example: Mapping[int, float]
) -> float:
  """What they take; a size that was not measured costs as the nearest one.

  Args:
    stretches: of a run.
    seconds_per_example: by batch size, of at least one.

  >>> seconds_of([Stretch(16, 10), Stretch(256, 10)], {16: 1.0, 64: 0.5})
  15.0
  """

  def cost(size: int) -> float:
    nearest = min(
      seconds_per_example, key=lambda known: abs(math.log(known / size))
    )
    return seconds_per_example[nearest]

  return sum(one.examples * cost(one.batch_size) for one in stretches)


class TimeLeft:
  """What the records of updates tell of the time.

  The updates up to the first record of a size are not measured: in the first
  of them the program is loaded.
  """

  def __init__(self, parts: Parts):
    """Nothing was measured yet."""
    self._parts = parts
    known = not parts.controller.needs - PROGRESS
    self._known = known and not parts.config.sync.tune.enabled
    self._forget()

  def _forget(self) -> None:
    self._last: tuple[int, float] | None = None
    # Examples and seconds by size; of one that was only begun none.
    self._measured: dict[int, tuple[int, float]] = {}

  def _rung(self, size: int) -> int:
    """What the devices run for a batch of this size."""
    rungs = self._parts.ladder.batch_sizes
    return next((rung for rung in rungs if rung >= size), rungs[-1])

  def saw(self, kind: str, record: Mapping[str, Any]) -> None:
    """Any record of the run, in order."""
    if kind in ('replicas', 'rollback'):
      self._forget()  # other programs, or earlier examples
    if kind != 'train':
      return
    now = record['examples'], record['seconds']
    before, self._last = self._last, now
    rung = self._rung(record['batch_size'])
    if before is None or rung not in self._measured:
      self._measured.setdefault(rung, (0, 0.0))
      return
    examples, seconds = self._measured[rung]
    self._measured[rung] = (
      examples + now[0] - before[0],
      seconds + now[1] - before[1],
    )

  def words(self, record: Mapping[str, Any]) -> str:
    """Of a `train` record that was seen; '' while nothing was measured."""
    costs = {
      rung: seconds / examples
      for rung, (examples, seconds) in self._measured.items()
      if examples > 0 and seconds > 0
    }
    if not costs:
      return ''
    parts, size = self._parts, record['batch_size']
    rung = self._rung(size)
    rate = f'{1 / costs[rung]:,.0f} examples/s  ' if rung in costs else ''
    at = record['update'], record['examples']
    if self._known:
      rest = ahead(
        parts.controller, parts.ladder, parts.end, parts.extent.epoch, *at, size
      )
      return f'{rate}{seconds_of(rest, costs):.0f} s left'
    left = seconds_of([constantly(parts.end, *at, rung)], costs)
    return f'{rate}{left:.0f} s left at this batch size'
