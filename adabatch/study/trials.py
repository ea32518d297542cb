"""A trial, a search, and how the one is judged by what came before it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adabatch.study.space import Parameter

COMPLETE, INFEASIBLE, INCOMPLETE = 'COMPLETE', 'INFEASIBLE', 'INCOMPLETE'

# Columns of the measurements, in the published names; errors, so that less is
# better. The loss has its name where there is an accuracy: it is of classes.
LOSS = 'val/cross_entropy_error'
ERROR = 'val/classification_error'


class Goal(NamedTuple):
  """What a trial is to reach.

  Attributes:
    metric: column of the measurements; less is better.
    value: reached by an evaluation strictly below it; None: no goal is set.
  """

  metric: str
  value: float | None


def _column(metric: str, higher_is_better: Mapping[str, bool]) -> str:
  if 'accuracy' in higher_is_better and metric in ('loss', 'accuracy'):
    return ERROR if metric == 'accuracy' else LOSS
  return f'val/{metric}_error' if higher_is_better[metric] else f'val/{metric}'


def _error(value: float, higher: bool) -> float:
  # Rounded, because 1 - 0.9 must not be less than 0.1.
  return round(1 - value, 12) if higher else value


def columns(
  metrics: Mapping[str, float], higher_is_better: Mapping[str, bool]
) -> dict[str, float]:
  """An evaluation as errors, in the published names where there are any.

  Others are called `val/NAME`, and `val/NAME_error` where more is better, which
  stands for one less it. The perplexity is left out: the loss says the same.

  Args:
    metrics: of the evaluation.
    higher_is_better: by name, of those to be kept.

  >>> columns({'loss': 0.5, 'accuracy': 0.9}, {'loss': False, 'accuracy': True})
  {'val/cross_entropy_error': 0.5, 'val/classification_error': 0.1}
  >>> columns({'loss': 0.5, 'auc': 0.9}, {'loss': False, 'auc': True})
  {'val/loss': 0.5, 'val/auc_error': 0.1}
  """
  return {
    _column(name, higher_is_better): _error(metrics[name], higher)
    for name, higher in higher_is_better.items()
    if name != 'perplexity'
  }


def published_goal(
  metric: str, value: float | None, higher_is_better: Mapping[str, bool]
) -> Goal:
  """A target for a metric of the evaluation, as `columns` names it.

  >>> published_goal('accuracy', 0.9, {'loss': False, 'accuracy': True})
  Goal(metric='val/classification_error', value=0.1)

  Raises:
    ValueError: for a metric that is not recorded.
  """
  names = [name for name in higher_is_better if name != 'perplexity']
  if metric not in names:
    logarithm = ' (the logarithm of perplexity)' * (metric == 'perplexity')
    raise ValueError(
      f'{metric!r} cannot be searched for: choose {" or ".join(names)}'
      f'{logarithm}'
    )
  if value is not None:
    value = _error(value, higher_is_better[metric])
  return Goal(_column(metric, higher_is_better), value)


class Trial(NamedTuple):
  """One training with one choice of metaparameters.

  Attributes:
    number: its place in the search, from 1.
    parameters: metaparameters by name.
    status: `COMPLETE`, `INFEASIBLE` (it diverged) or `INCOMPLETE`.
    steps: updates that it took.
    measurements: columns of equal length, [evaluations]; `step` counts updates,
      `seconds` is the training clock where it is known.
  """

  number: int
  parameters: dict[str, float]
  status: str
  steps: int
  measurements: dict[str, np.ndarray]


class Search(NamedTuple):
  """All trials at one batch size; the published archive calls it a study.

  Attributes:
    dataset, model, optimizer: the workload.
    batch_size: of all trials.
    space: what was searched.
    train_steps: updates that a trial takes, if nothing ends it earlier.
    early_stopping: whether trials end once an earlier one was better.
    trials: in the order of their numbers.
  """

  dataset: str
  model: str
  optimizer: str
  batch_size: int
  space: Mapping[str, Parameter]
  train_steps: int
  early_stopping: bool
  trials: Sequence[Trial]


def first_below(trial: Trial, metric: str, goal: float) -> int | None:
  """The first step with an evaluation strictly below the goal, or None.

  >>> trial = Trial(1, {}, COMPLETE, 20, {'step': np.array([10, 20]),
  ...               ERROR: np.array([0.2, 0.1])})
  >>> first_below(trial, ERROR, 0.2), first_below(trial, ERROR, 0.1)
  (20, None)
  """
  below = np.flatnonzero(trial.measurements[metric] < goal)
  return int(trial.measurements['step'][below[0]]) if below.size else None


def cut(trial: Trial, steps: int) -> Trial:
  """The trial as if it had been stopped after so many steps.

  What diverged later had not diverged by then.
  """
  if trial.steps <= steps:
    return trial
  keep = trial.measurements['step'] <= steps
  return trial._replace(
    status=COMPLETE if trial.status == INFEASIBLE else trial.status,
    steps=steps,
    measurements={k: v[keep] for k, v in trial.measurements.items()},
  )


def unmeasured(searches: Iterable[Search]) -> int:
  """Complete trials that ended before their first evaluation.

  One is ended after as many updates as an earlier trial took to the goal; where
  the batch size is not the same for both it may be evaluated later.
  """
  return sum(
    t.status == COMPLETE and not len(t.measurements.get('step', ()))
    for search in searches
    for t in search.trials
  )


def judge(
  trials: Iterable[Trial], metric: str | None, goal: float | None
) -> list[Trial]:
  """The trials as if they had run one after the other, by number.

  Once one reached the goal at step s, those of a higher number need not run
  past s, and are taken as stopped there, even if they went on because the two
  ran side by side. So the same trials give the same table, however many workers
  there were and however often they were killed.

  Args:
    trials: by number.
    metric: column of the goal.
    goal: reached by an evaluation strictly below it; None: nothing is cut.
  """
  judged, limit = [], None
  for trial in trials:
    if limit is not None:
      trial = cut(trial, limit)
    if goal is not None and metric is not None and trial.status != INCOMPLETE:
      reached = first_below(trial, metric, goal)
      if reached is not None:
        trial, limit = cut(trial, reached), reached
    judged.append(trial)
  return judged
