"""What searches tell the pictures: each trial as one point of its space."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adabatch.report.layout import quantity
from adabatch.report.records import number
from adabatch.study import best_under
from adabatch.study.space import Parameter
from adabatch.study.trials import (
  COMPLETE,
  ERROR,
  INFEASIBLE,
  LOSS,
  Search,
  Trial,
  judge,
)

# Ours, and what others call them.
LEARNING_RATE = ('learning_rate.base', 'learning_rate', 'lr')
MOMENTUM = ('optimizer.momentum', 'momentum')
NOT_METRICS = frozenset(('step', 'seconds', 'epoch', 'examples'))


class Task(NamedTuple):
  """What is asked of trials.

  Attributes:
    metric: column of the measurements.
    goal: to be strictly better than; None if there is none.
    higher_is_better: of the metric.
  """

  metric: str
  goal: float | None
  higher_is_better: bool = False

  def text(self) -> str:
    if self.goal is None:
      return self.metric
    sign = '>' if self.higher_is_better else '<'
    return f'{self.metric} {sign} {quantity(self.goal)}'

  def loss(self, values: Any) -> Any:
    """Values or a value, so that less is better."""
    return -values if self.higher_is_better else values


class Point(NamedTuple):
  """A trial in a picture.

  Attributes:
    trial: it.
    kind: 'reached', 'feasible', 'infeasible', 'incomplete'; 'best' for one.
    value: the best that its metric became; NaN if it is not feasible or never
      was a number.
    steps: to the goal; inf if it did not reach it.
  """

  trial: Trial
  kind: str
  value: float
  steps: float


def tamed(values: Iterable[float]) -> np.ndarray:
  """As floats, NaN where a value is not one that could be drawn.

  >>> tamed([1, float('inf'), 1e200, -2.5])
  array([ 1. ,  nan,  nan, -2.5])
  """
  return np.array([number(value) for value in values], float)


def readable(search: Search, task: Task) -> Search:
  """The search as the table of a study sees it, and with nothing undrawable.

  Every trial has the metric, NaN where it is not known, and ends where an
  earlier one of the search was better, if that is how it was searched. Axes of
  the space on whose scales some trial has no place are left out.
  """

  def read(trial: Trial) -> Trial:
    columns = {key: tamed(c) for key, c in trial.measurements.items()}
    steps = columns.get('step', np.empty(0))
    # A step that is not a positive number is no place for a measurement.
    keep = np.flatnonzero(steps > 0)
    columns = {k: c[keep] for k, c in columns.items() if len(c) == len(steps)}
    columns['step'] = steps[keep].astype(int)
    columns.setdefault(task.metric, np.full(len(keep), np.nan))
    return trial._replace(measurements=columns)

  trials = sorted(map(read, search.trials), key=lambda trial: trial.number)
  if search.early_stopping and not task.higher_is_better:
    trials = judge(trials, task.metric, task.goal)
  space = {
    key: parameter
    for key, parameter in search.space.items()
    if all(_lies_on(parameter, t.parameters.get(key)) for t in trials)
  }
  return search._replace(trials=trials, space=space)


def place(parameter: Parameter, value: float) -> float:
  """Where on [0, 1] a value lies; NaN where its scale has no place for it."""
  if not math.isfinite(value):
    return math.nan
  try:
    return parameter.place(value)
  except (ValueError, TypeError, ZeroDivisionError):
    return math.nan


def _lies_on(parameter: Parameter, value: float | None) -> bool:
  return value is None or math.isfinite(place(parameter, value))


def guess_metric(searches: Iterable[Search]) -> str:
  """The column a page shows if nobody has said which."""
  found = {
    key: None
    for search in searches
    for trial in search.trials
    for key in trial.measurements
    if key not in NOT_METRICS
  }
  return next((key for key in (ERROR, LOSS, *found) if key in found), ERROR)


def points(search: Search, task: Task) -> list[Point]:
  """One point for each trial of a readable search.

  The best is the first to reach the goal; if none did, the one with the best
  value.
  """
  found = [_point(trial, task) for trial in search.trials]
  order = ranked(found, task)
  return [
    p._replace(kind='best') if order and p is order[0] else p for p in found
  ]


def _point(trial: Trial, task: Task) -> Point:
  metric = task.metric
  value = best_under([trial], metric, higher_is_better=task.higher_is_better)
  kinds = {COMPLETE: 'feasible', INFEASIBLE: 'infeasible'}
  kind = kinds.get(trial.status, 'incomplete')
  if value is None:
    return Point(trial, kind, math.nan, math.inf)
  if task.goal is None or task.loss(value) >= task.loss(task.goal):
    return Point(trial, kind, value, math.inf)
  reached = task.loss(trial.measurements[metric]) < task.loss(task.goal)
  steps = trial.measurements['step'][reached]
  return Point(trial, 'reached', value, float(steps.min()))


def ranked(found: Iterable[Point], task: Task) -> list[Point]:
  """The feasible points, best first: by steps to the goal, then by value."""
  return sorted(
    (point for point in found if not math.isnan(point.value)),
    key=lambda p: (p.steps, task.loss(p.value), p.trial.number),
  )


def find_key(keys: Iterable[str], names: Sequence[str]) -> str | None:
  """The key that goes by one of these names, alone or behind a dot.

  >>> find_key(['x', 'optimizer.momentum'], ('momentum',))
  'optimizer.momentum'
  """
  keys = list(keys)
  for name in names:
    for key in keys:
      if key == name or key.endswith(f'.{name}'):
        return key
  return None


def known(parameters: Mapping[str, float], names: Sequence[str]) -> float:
  """The value of a parameter that goes by one of these names, or NaN."""
  key = find_key(parameters, names)
  return number(parameters[key]) if key else math.nan


def axes_of(search: Search) -> dict[str, Parameter]:
  """The space; of what trials have beyond it, the range that they take."""
  space = dict(search.space)
  values: dict[str, list[float]] = {}
  for trial in search.trials:
    for key, value in trial.parameters.items():
      if key not in space and np.isfinite(number(value)):
        values.setdefault(key, []).append(number(value))
  for key, taken in values.items():
    low, high = min(taken), max(taken)
    if low < high:
      log = low > 0 and high / low > 20
      space[key] = Parameter('log' if log else 'linear', (low, high))
  return space
