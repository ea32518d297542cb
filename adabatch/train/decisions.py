"""The batch-size rule at work: what it is fed, and what comes of it."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from adabatch import controllers
from adabatch.config import ConfigError, refusing
from adabatch.controllers import (
  BatchSizeController,
  GradientNoise,
  Signals,
  buckets,
)
from adabatch.controllers.base import OF_UPDATES, PROGRESS
from adabatch.controllers.buckets import Bucket, Ladder, Plan
from adabatch.train.calls import Update

# Updates among which a decision is looked for when guessing a future one.
LOOK_AHEAD = 1900
# Future buckets that are guessed, and where: at these parts of what is ahead,
# so that none is missed where a rule grows fast.
MOST_AHEAD, PARTS_AHEAD = 2, tuple(2**k for k in range(16, -1, -1))


# Of an update that gave no estimate: measured, in vain.
NO_ESTIMATE = GradientNoise(math.nan, math.nan)


class Measure(NamedTuple):
  """How the signals come about that cost a pass over data.

  Attributes:
    take: (updates, examples) -> their values then, by name, and how many
      examples were evaluated for them; None: the run is to stop first.
    due: (updates, examples) -> whether a decision there has to wait for them.
  """

  take: Callable[[int, int], tuple[dict[str, float], int] | None]
  due: Callable[[int, int], bool] = lambda update, examples: True


class Decisions:
  """The nominal batch size of the next update, and how it is arrived at.

  Attributes:
    ladder: the sizes that are run, and on what.
    nominal: nominal batch size of the next update, in examples.
    evaluated_examples: examples evaluated only to choose batch sizes.
    measured: whether the rule reads anything that the devices have to report;
      if not, nothing has to be waited for.
    follows: whether it reads every update.
    pending: whether a decision was put off until the run goes on.
  """

  def __init__(
    self,
    controller: BatchSizeController,
    ladder: Ladder,
    measure: Measure,
    *,
    initial_batch_size: int,
    num_examples: int,
    saved: dict[str, Any] | None = None,
    keys: Mapping[str, str] | None = None,
  ):
    """Starts before the first update, or goes on from what was saved.

    Args:
      controller: the rule.
      ladder: the sizes that are run.
      measure: asked where a decision is due.
      initial_batch_size: nominal size until the first decision.
      num_examples: the size of an epoch.
      saved: what `host` gave.
      keys: argument of the rule -> the key of the config that it is.
    """
    self._controller, self.ladder = controller, ladder
    self._measure = measure
    self._num_examples = num_examples
    self._keys = keys or {}
    self._state = controller.init()
    self.nominal = float(initial_batch_size)
    self._growth = 1.0  # at the last decision; not kept, for it guesses alone
    self.evaluated_examples = 0
    self.pending = False
    self.measured = bool(controller.needs - PROGRESS)
    self.follows = bool(controller.needs & OF_UPDATES)
    if saved is not None:
      self.nominal = saved['nominal']
      self.evaluated_examples = saved['evaluated_examples']
      # Runs of before never put one off.
      self.pending = saved.get('pending', False)
      with refusing('controller'):
        self._state = controllers.state_from_json(
          controller.init(), saved['controller']
        )

  def due(self, update: int) -> bool:
    """Whether the size may change after this many updates."""
    return self._controller.due(update)

  def waits(self, update: int, examples: int) -> bool:
    """Whether a decision after so many has to wait for the devices."""
    return self.measured and self._measure.due(update, examples)

  @property
  def losses_below_minimum(self) -> int:
    """How often the rule read a loss that was not above F*."""
    return controllers.losses_below_minimum(self._state)

  def host(self) -> dict[str, Any]:
    """For a checkpoint."""
    return {
      'nominal': self.nominal,
      'evaluated_examples': self.evaluated_examples,
      'pending': self.pending,
      'controller': controllers.state_to_json(self._state),
    }

  def until_due(self, update: int, most: int) -> int:
    """How many updates later the next decision is due, but at most so many."""
    due, count = self._controller.due, 1
    while count < most and not due(update + count):
      count += 1
    return count

  def decide(self, update: int, examples: int) -> None:
    """Where a decision is due and no update reports what the rule reads: before
    the first one, for a rule that reads progress alone, and if it is pending.

    Args:
      update: updates done so far; 0 before the first one.
      examples: examples trained on so far.

    Raises:
      ConfigError: if the rule cannot work with what was measured.
    """
    self._ask(self._progress(update, examples), measure=self.measured)

  def observe(self, done: Update) -> None:
    """Feeds the rule one update, in order; every update exactly once.

    One that reads nothing of updates is asked where a decision is due.

    Raises:
      ConfigError: if the rule cannot work with what was measured, because F*
        lies above the first loss.
    """
    decides = done.decides and self.waits(done.update, done.examples)
    if not (decides or self.follows):
      return
    signals = self._progress(done.update, done.examples)._replace(
      loss=done.report.loss,
      gradient_norm_squared=done.report.gradient_norm_squared,
      # The rule's own size caused the damping.
      learning_rate=done.report.learning_rate / done.plan.damping,
      gradient_noise=done.noise or NO_ESTIMATE,
      batch_size=done.plan.batch_size,
      seconds_per_update=done.usual_seconds,
    )
    self._ask(signals, measure=decides)

  def _ask(self, signals: Signals, *, measure: bool) -> None:
    self.pending = False
    if measure:
      # A measurement is part of the training, and its time counts as such.
      found = self._measure.take(signals.update, signals.examples or 0)
      if found is None:
        self.pending = True
        return
      values, cost = found
      self.evaluated_examples += cost
      signals = signals._replace(**values)
    before = self.nominal
    try:
      self.nominal, self._state = self._controller.update(self._state, signals)
    except ValueError as error:
      raise ConfigError(_whole(str(error), self._keys)) from error
    if measure:
      self._growth = self.nominal / before

  def plan(self) -> Plan:
    """What the next update runs."""
    return buckets.plan(self.nominal, self.ladder)

  def likely_next(self, update: int, examples: int, ahead: int) -> list[Bucket]:
    """Buckets that will probably be asked for after the current one, in order.

    A rule that reads measurements mostly grows as it did at the last decision,
    or by a rung. One that reads nothing but the run's progress can be asked
    what it will want up to `ahead` examples later.
    """
    plan = self.plan()
    found = [plan.bucket]
    if self.measured:
      grown = min(self.nominal * self._growth, self.ladder.batch_sizes[-1])
      found.append(buckets.plan(max(grown, 1.0), self.ladder).bucket)
      size: int | None = plan.batch_size
      while size is not None and len(found) <= MOST_AHEAD + 1:
        size = buckets.next_rung(size, self.ladder)
        if size is not None:
          found.append(buckets.bucket_for(size, self.ladder))
    else:
      for part in PARTS_AHEAD:
        more = ahead // part
        first = update + max(more // plan.batch_size, 1)
        later = next(filter(self.due, range(first, first + LOOK_AHEAD)), None)
        if later is None:
          break
        signals = self._progress(later, examples + more)
        nominal, _ = self._controller.update(self._state, signals)
        found.append(buckets.plan(nominal, self.ladder).bucket)
    different = dict.fromkeys(b for b in found if b != plan.bucket)
    return list(different)[:MOST_AHEAD]

  def _progress(self, update: int, examples: int) -> Signals:
    return Signals(update, examples, examples / self._num_examples)


def _whole(message: str, keys: Mapping[str, str]) -> str:
  """A message of a rule, which does not know where its arguments stand.

  >>> _whole('window=0: at least 1', {'window': 'controller.cabs.window'})
  'controller.cabs.window=0: at least 1'
  """
  return re.sub(
    r'(?<![\w.])(\w+)(?==)', lambda m: keys.get(m[1], m[1]), message
  )
