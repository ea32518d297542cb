"""How far a search is, by what the storage holds of it: plain functions."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adabatch.search.storage import Entry
from adabatch.study.trials import (
  COMPLETE,
  Goal,
  Search,
  Trial,
  first_below,
  judge,
)


def as_trial(entry: Entry) -> Trial:
  """A point that has ended."""
  assert entry.result is not None
  return Trial(
    number=entry.point + 1,
    parameters=entry.parameters,
    status=entry.result['status'],
    steps=entry.result['steps'],
    measurements={
      name: np.asarray(values, np.int64 if name == 'step' else np.float64)
      for name, values in entry.result['columns'].items()
    },
  )


def ended(entries: Mapping[int, Entry]) -> list[Trial]:
  """The trials of all points that have ended, by number."""
  done = [entry for entry in entries.values() if entry.result is not None]
  return [as_trial(entry) for entry in sorted(done, key=lambda e: e.point)]


def limits(
  trials: Sequence[Trial], goal: Goal, some: Sequence[int]
) -> list[int | None]:
  """Updates after which points need not go on; None: to their end.

  The least that a trial before the point took to the goal. Points count from 0
  and trials from 1, so those before point p have numbers up to p. A trial after
  it changes nothing: alone, it would not have run yet.

  Args:
    trials: that have ended.
    goal: with a value.
    some: points.
  """
  assert goal.value is not None
  reached = [
    (trial.number, steps)
    for trial in trials
    if (steps := first_below(trial, goal.metric, goal.value)) is not None
  ]
  return [
    min((steps for n, steps in reached if n <= point), default=None)
    for point in some
  ]


class State(NamedTuple):
  """How far a search is.

  Attributes:
    counted: trials that count, judged, in the order of their numbers.
    free: points to be taken next.
    running: how many of the points that are needed others are working on.
  """

  counted: list[Trial]
  free: list[int]
  running: int


def survey(
  entries: Mapping[int, Entry], goal: Goal | None, wanted: int, most: int
) -> State:
  """What is done and what is to be done, by the points in their order.

  Args:
    entries: by point.
    goal: that cuts later trials; None: none does.
    wanted: trials that do not diverge.
    most: points there are.
  """
  value = None if goal is None else goal.value
  judged = {
    trial.number - 1: trial
    for trial in judge(ended(entries), goal and goal.metric, value)
  }
  state = State([], [], 0)
  left = wanted
  for point in range(most):
    if left == 0:
      break
    if point in judged:
      state.counted.append(judged[point])
      left -= judged[point].status == COMPLETE
      continue
    left -= 1
    if point in entries:
      state = state._replace(running=state.running + 1)
    else:
      state.free.append(point)
  return state


def objective(trial: Trial, goal: Goal, total: int) -> float:
  """What a sampler minimises: updates to the goal, else how far it is away.

      s                            if the goal was reached in s updates
      total (1 + best - goal)      if it was not
      best                         if there is no goal

  >>> trial = Trial(1, {}, COMPLETE, 9, {'step': np.array([4, 9]),
  ...               'e': np.array([0.5, 0.2])})
  >>> objective(trial, Goal('e', 0.3), 10), objective(trial, Goal('e', 0.2), 10)
  (9.0, 10.0)
  """
  values = trial.measurements[goal.metric]
  best = float(np.min(values[np.isfinite(values)], initial=np.inf))
  best = min(best, 1e6)
  if goal.value is None:
    return best
  reached = first_below(trial, goal.metric, goal.value)
  if reached is None:
    return total * (1 + best - goal.value)
  return float(reached)


def best_trial(search: Search, goal: Goal) -> Trial | None:
  """The trial that reached the goal first, or came nearest to it."""
  complete = [t for t in search.trials if t.status == COMPLETE]
  return min(
    complete,
    key=lambda t: objective(t, goal, search.train_steps),
    default=None,
  )
