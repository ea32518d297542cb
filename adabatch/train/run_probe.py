"""`controller.name=probe`: asks inside a run what twice the batch would cost.

Where one is due, the run goes on from where it is over the same examples, some
stretches with its batch and with twice that, as it would be trained with then.
The branches are thrown away; what they cost the held-out loss decides.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import jax
import numpy as np

from adabatch.controllers import buckets
from adabatch.controllers.buckets import Ladder, Plan
from adabatch.devices.losses import ExampleLosses, Losses
from adabatch.devices.measurements import make_calibration
from adabatch.devices.mesh import any_process
from adabatch.devices.messages import Call
from adabatch.devices.trainer import Trainer
from adabatch.study.critical import critical, differences
from adabatch.train.branches import train_on
from adabatch.train.build import Parts
from adabatch.train.calls import Progress
from adabatch.train.decisions import Decisions
from adabatch.train.optimizer import largest_decay
from adabatch.train.probe_points import check_held_out
from adabatch.train.records import Record
from adabatch.train.reports import Clock

SIGNAL = 'critical_batch_size'


class Due(NamedTuple):
  """What the next probe would be.

  Attributes:
    plans: of the run's batch size and of twice that.
    examples: of each branch.
  """

  plans: tuple[Plan, Plan]
  examples: int


def next_probe(
  parts: Parts, at: Progress, nominal: float, evaluated: int
) -> Due | None:
  """What a probe would be here; None if none is due.

  It is where the examples have grown by `controller.probe.growth` since the
  last one. All probes together, this one too, take the share
  `controller.probe.cost` of the examples so far, or a little less: the more
  there are, the further a probe looks ahead, but no less than so many
  `controller.probe.updates`, and no more in all than the run has left. There is
  none where there is no larger batch, or the rate has come to 0.

  Args:
    parts: of the run.
    at: where it is.
    nominal: batch size now.
    evaluated: examples that the model of each branch is evaluated on.
  """
  p, ladder, end = parts.config.controller.probe, parts.ladder, parts.end
  if at.examples == 0:
    return None
  plans = buckets.plan(nominal, ladder), buckets.plan(2 * nominal, ladder)
  now, twice = (plan.batch_size for plan in plans)
  if now == twice or plans[1].damping < 1:
    return None
  last = at.probes[-1]['examples'] if at.probes else 0
  if at.examples < p.growth * last:
    return None
  spent = at.probe_examples + at.probe_evaluated_examples
  cost = (p.cost * at.examples - spent) / (2 * p.repeats) - evaluated
  # No more than the run has left itself.
  left = min(end.examples - at.examples, (end.updates - at.update) * now)
  updates = math.floor(min(cost, left / (2 * p.repeats)) / twice)
  if updates < p.updates:
    return None
  examples = updates * twice
  reach = at.examples + examples
  if largest_decay(parts.config, parts.extent, at.examples, reach) < 1e-6:
    return None  # nothing would move
  return Due(plans, examples)


def calls_of(
  at: Progress,
  plan: Plan,
  examples: int,
  offset: int,
  ladder: Ladder,
  room: int,
) -> Iterator[Call]:
  """The calls of a branch; the last batch is cut where the examples end."""
  done = updates = 0
  while done < examples:
    whole = (examples - done) // plan.batch_size
    now, count = plan, min(max(whole, 1), room)
    if not whole:
      now = buckets.cut(plan, examples - done, ladder)
    yield Call(
      update=at.update + updates,
      examples=at.examples + done,
      count=count,
      plan=now,
      left_out=at.left_out + offset,
      rate=at.rate,
    )
    done, updates = done + count * now.batch_size, updates + count


def _silent(split: str) -> Callable[[int, str], None]:
  """Of records that the run has told of."""
  del split
  return lambda record, reason: None


class RunProbe:
  """What `Decisions` asks for the critical batch size."""

  def __init__(
    self,
    parts: Callable[[], Parts],
    trainer: Trainer,
    at: Callable[[], Progress],
    clock: Callable[[], Clock],
    pausing: Callable[[], AbstractContextManager[None]],
    doing: Callable[[str, str], None],
    stop: Callable[[], bool],
    in_a_call: Callable[[], int],
  ):
    """Nothing is compiled yet.

    Args:
      parts: of the run, as they are now.
      trainer: of the run.
      at: where that is.
      clock: of the training.
      pausing: what is entered while a program is compiled.
      doing: is told what is next, and how far the run is.
      stop: whether this process was asked to stop.
      in_a_call: how many updates a call does, for a stop to be seen soon.

    Raises:
      ConfigError: for held-out examples that are none.
    """
    check_held_out(parts())
    self._now, self._trainer = parts, trainer
    self._at, self._clock = at, clock
    self._pausing, self._doing, self._stop = pausing, doing, stop
    self._in_a_call = in_a_call
    recipe = parts().recipe
    self._nominal: Callable[[], float] = lambda: math.nan
    self.records: list[Record] = []
    self._losses = Losses(recipe, trainer.evaluator.pieces, pausing)
    self._calibration = None
    if jax.tree.leaves(trainer.state.model_state):
      self._calibration = make_calibration(recipe, _silent, pausing)
    # By each branch.
    self._evaluated = self._losses.examples
    if self._calibration is not None:
      self._evaluated += self._calibration.examples

  def follow(self, decisions: Decisions) -> None:
    """Asks these for the batch size that is to be doubled."""
    self._nominal = lambda: decisions.nominal

  def due(self, update: int, examples: int) -> bool:
    """Whether a probe is due after so many updates and examples."""
    del update
    return self._due(examples) is not None

  def _due(self, examples: int) -> Due | None:
    at = dataclasses.replace(self._at(), examples=examples)
    return next_probe(self._now(), at, self._nominal(), self._evaluated)

  def measure(
    self, update: int, examples: int
  ) -> tuple[dict[str, float], int] | None:
    """The signal, NaN where no probe is due; and no examples beside its own.

    None where the run is to stop: the probe is made when that goes on.
    """
    due = self._due(examples)
    if due is None:
      return {SIGNAL: math.nan}, 0
    return self._clock().on_all(lambda: self._measure(due, update, examples))

  def _measure(
    self, due: Due, update: int, examples: int
  ) -> tuple[dict[str, float], int] | None:
    at, p = self._at(), self._now().config.controller.probe
    began = self._clock().seconds
    losses = {plan.batch_size: [] for plan in due.plans}
    for repeat in range(p.repeats):
      for plan in due.plans:
        offset = repeat * due.examples
        found = self._grow(at, plan, due.examples, offset)
        if found is None:
          # Not counted: the run that goes on is to be as if it had not stopped.
          return None
        losses[plan.batch_size].append(found)
    self._trainer.feed.start(at.examples + at.left_out)
    now, twice = (plan.batch_size for plan in due.plans)
    weights = losses[now][0].weights
    table = differences(
      {b: np.stack([x.losses for x in some]) for b, some in losses.items()},
      now,
      weights,
    )
    size = critical(table, now, p.epsilon, p.confidence)
    difference = table[-1]
    evaluated = 2 * p.repeats * self._evaluated
    trained = 2 * p.repeats * due.examples
    record = {
      'update': update,
      'examples': examples,
      'ahead': due.examples,
      'batch_size': now,
      'tried': twice,
      'difference': difference.difference,
      'half_width': difference.half_width(p.confidence),
      'epsilon': p.epsilon,
      'doubles': size.low >= twice * (1 - 1e-9),
      'probe_examples': trained,
      'probe_evaluated_examples': evaluated,
    }
    at.probes.append(record)
    at.probe_examples += trained
    at.probe_evaluated_examples += evaluated
    at.probe_seconds += self._clock().seconds - began
    self.records.append(('probe', record))
    # Of sizes that the ladder rounds: what the rule compares is nominal.
    return {SIGNAL: 2 * self._nominal() if record['doubles'] else size.low}, 0

  def _stops_alone(self) -> bool:
    """Whether to end within a branch; several processes end after it."""
    return jax.process_count() == 1 and self._stop()

  def _grow(
    self, at: Progress, plan: Plan, examples: int, offset: int
  ) -> ExampleLosses | None:
    """What a branch comes to; None if the run is to stop."""
    trainer, parts = self._trainer, self._now()

    def told() -> Iterator[Call]:
      room = min(trainer.room(plan.bucket), self._in_a_call())
      for call in calls_of(at, plan, examples, offset, parts.ladder, room):
        self._doing('probing', f'update {at.update}')
        yield call

    if any_process(self._stop()):
      return None
    with trainer.set_aside():
      trainer.feed.start(at.examples + at.left_out + offset)
      train_on(trainer, told(), self._pausing, self._stops_alone)
      if any_process(self._stop()):
        return None
      trainer.evaluates = True
      state = trainer.everywhere()
      if self._calibration is not None:
        state = self._calibration(state)
      found = self._losses.take(state)
      trainer.evaluates = False
      return found
