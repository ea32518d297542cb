"""Searches at many batch sizes in one table for each workload."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adabatch.study.curves import (
  Regimes,
  best_under,
  column,
  regimes,
  spread_over_trials,
  steps_to_target,
)
from adabatch.study.fit import (
  CriticalBatchSize,
  fit_critical_batch_size,
  lack_of_fit,
  overhead_batch_size,
)
from adabatch.study.space import near_edges
from adabatch.study.trials import (
  COMPLETE,
  INCOMPLETE,
  INFEASIBLE,
  Search,
  Trial,
  judge,
)


class Row(NamedTuple):
  """What a search at one batch size came to.

  Attributes:
    batch_size: of all its trials.
    steps: to result; None if no trial reached the goal: the row is censored.
    examples: steps times batch size.
    seconds: the training clock of the best trial at that step, if it has one.
    half: steps to result of the first half of the feasible trials, which a
      search for half as many would have come to; None if it reached nothing.
    trial: the number of the best trial, the one that took these steps.
    parameters: of the best trial; {} if there is none.
    reached: feasible trials that reached the goal. Where trials end once an
      earlier one was better, those that took no more steps than all before
      them: what the others would have come to later is not known.
    feasible, infeasible, incomplete: trials by their status.
    unmeasured: feasible trials that ended before their first evaluation.
    longest: most steps of a feasible trial: steps to result of a censored row
      are more than that for these trials.
    edges: where the best point is near an end of the space: if it is, the space
      must grow before the row can be believed. In a censored row the point with
      the best value is meant.
    best: the best value by any feasible trial, or None.
  """

  batch_size: int
  steps: int | None
  examples: int | None
  seconds: float | None
  half: int | None
  trial: int | None
  parameters: dict[str, float]
  reached: int
  feasible: int
  infeasible: int
  incomplete: int
  unmeasured: int
  longest: int
  edges: tuple[tuple[str, str], ...]
  best: float | None


class Workload(NamedTuple):
  """All batch sizes of one workload.

  Attributes:
    dataset, model, optimizer: what was trained, and how.
    rows: by batch size.
    fit: None where fewer than 3 batch sizes reached the goal.
    regimes: one label for each row.
    spread: standard deviation of log S over draws of trials, about; see
      `spread_over_trials`.
    overhead_batch_size: where the fit takes 20 % more examples than at the
      smallest batch size that reached the goal.
    lack_of_fit: in words, how the fit misses the rows; None if it does not.
  """

  dataset: str
  model: str
  optimizer: str
  rows: tuple[Row, ...]
  fit: CriticalBatchSize | None
  regimes: Regimes
  spread: float | None = None
  overhead_batch_size: float | None = None
  lack_of_fit: str | None = None


def _measured(trial: Trial, metric: str) -> Trial:
  """The trial with the metric's column, though nothing may be in it."""
  values = column(trial, metric)
  step = trial.measurements.get('step', np.empty(0, int))
  return trial._replace(
    measurements={**trial.measurements, 'step': step, metric: values}
  )


def _seconds(trial: Trial | None, step: int | None) -> float | None:
  """The training clock at an evaluation; None if it is not known."""
  if trial is None or 'seconds' not in trial.measurements:
    return None
  at = int(np.flatnonzero(trial.measurements['step'] == step)[0])
  seconds = float(trial.measurements['seconds'][at])
  return seconds if math.isfinite(seconds) else None


def _nearest(
  feasible: Sequence[Trial], metric: str, higher_is_better: bool
) -> Trial | None:
  """The trial with the best value, the first of several."""
  best = [
    (value if not higher_is_better else -value, t.number, t)
    for t in feasible
    if (value := best_under([t], metric, higher_is_better=higher_is_better))
    is not None
  ]
  return min(best, key=lambda b: b[:2])[2] if best else None


def _row(
  search: Search, metric: str, goal: float, higher_is_better: bool
) -> Row:
  trials = sorted(
    (_measured(t, metric) for t in search.trials), key=lambda t: t.number
  )
  if search.early_stopping and not higher_is_better:
    trials = judge(trials, metric, goal)
  feasible = [t for t in trials if t.status == COMPLETE]
  result = steps_to_target(
    [(t.measurements['step'], t.measurements[metric]) for t in feasible],
    goal,
    higher_is_better=higher_is_better,
  )
  steps = result.steps
  trial = None if result.curve is None else feasible[result.curve]
  nearest = trial or _nearest(feasible, metric, higher_is_better)
  status = [t.status for t in trials]
  return Row(
    batch_size=search.batch_size,
    steps=steps,
    examples=None if steps is None else steps * search.batch_size,
    seconds=_seconds(trial, steps),
    half=result.half,
    trial=None if trial is None else trial.number,
    parameters=dict(trial.parameters) if trial else {},
    reached=sum(s is not None for s in result.by_curve),
    feasible=len(feasible),
    infeasible=status.count(INFEASIBLE),
    incomplete=status.count(INCOMPLETE),
    unmeasured=sum(not len(t.measurements['step']) for t in feasible),
    longest=max((t.steps for t in feasible), default=0),
    edges=(
      tuple(near_edges(search.space, nearest.parameters)) if nearest else ()
    ),
    best=best_under(feasible, metric, higher_is_better=higher_is_better),
  )


def summarize(
  searches: Iterable[Search],
  metric: str,
  goal: float,
  *,
  higher_is_better: bool = False,
) -> list[Workload]:
  """Steps to result of every search, by workload and batch size.

  Only `COMPLETE` trials count: one that diverged later is not taken at its best
  moment. Trials that end once another was better are judged first, so that the
  table does not depend on how many ran side by side.

  Args:
    searches: of any workloads.
    metric: column of the measurements.
    goal: to be strictly better than.
    higher_is_better: whether the metric is to be above the goal.

  Returns:
    One for each (dataset, model, optimizer), in that order.

  Raises:
    ValueError: for two searches of one workload at one batch size, which are
      not the same experiment; for a metric that was not measured.
  """
  workloads: dict[tuple[str, str, str], list[Search]] = defaultdict(list)
  for search in searches:
    names = (search.dataset, search.model, search.optimizer)
    workloads[names].append(search)
  found = []
  for names, group in sorted(workloads.items()):
    group.sort(key=lambda search: search.batch_size)
    sizes = [search.batch_size for search in group]
    for size, next_size in zip(sizes, sizes[1:], strict=False):
      if size == next_size:
        raise ValueError(
          f'two searches of {"/".join(names)} at batch size {size}: summarize'
          ' them apart'
        )
    rows = [_row(s, metric, goal, higher_is_better) for s in group]
    found.append(_workload(names, rows))
  return found


def _workload(names: tuple[str, str, str], rows: Sequence[Row]) -> Workload:
  sizes, steps = [row.batch_size for row in rows], [row.steps for row in rows]
  solved = [(row, row.steps) for row in rows if row.steps is not None]
  workload = Workload(
    *names,
    rows=tuple(rows),
    fit=None,
    regimes=regimes(sizes, steps),
    spread=spread_over_trials(
      (row.feasible, row.half or row.longest, steps) for row, steps in solved
    ),
  )
  if len(solved) < 3:
    return workload
  fit = fit_critical_batch_size(sizes, steps)
  return workload._replace(
    fit=fit,
    overhead_batch_size=overhead_batch_size(
      fit, reference=solved[0][0].batch_size
    ),
    lack_of_fit=lack_of_fit(fit, workload.spread),
  )


def to_json(workloads: Iterable[Workload]) -> list[dict[str, Any]]:
  """Plain JSON: what is censored, open or unbounded is null.

  >>> to_json([Workload('a', 'b', 'sgd', (), None, regimes([], []))])
  ... # doctest: +NORMALIZE_WHITESPACE
  [{'dataset': 'a', 'model': 'b', 'optimizer': 'sgd', 'rows': [], 'fit': None,
    'regimes': {'labels': [], 'perfect_up_to': None, 'maximal_from': None},
    'spread': None, 'overhead_batch_size': None, 'lack_of_fit': None}]
  """
  return [_plain(workload) for workload in workloads]


def _plain(value: Any) -> Any:
  if hasattr(value, '_asdict'):
    value = value._asdict()
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, Mapping):
    return {key: _plain(v) for key, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def half_text(row: Row) -> str:
  """Steps to result of the first half of the trials, for a person."""
  if row.steps is None:
    return ''
  return 'not reached' if row.half is None else f'{row.half:,}'


def residual_text(fit: CriticalBatchSize, spread: float | None) -> str:
  """How far the curve misses, and how far the draw of trials lets it.

  >>> fit = fit_critical_batch_size([1, 10, 100], [1100, 400, 110])
  >>> residual_text(fit, 0.1)
  'largest residual 59 % (B = 10), spread over trials about 11 %'
  """
  share = 100 * math.expm1(abs(fit.largest_residual))
  text = f'largest residual {share:.0f} % (B = {fit.largest_residual_at:g})'
  if spread is not None:
    text += f', spread over trials about {100 * math.expm1(spread):.0f} %'
  return text
