"""Searches at many batch sizes in one table for each workload."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adabatch.search.space import near_edges
from adabatch.search.trials import (
  COMPLETE,
  INCOMPLETE,
  INFEASIBLE,
  Search,
  Trial,
  judge,
)
from adabatch.study.curves import (
  Regimes,
  best_under,
  column,
  regimes,
  steps_to_target,
)
from adabatch.study.fit import CriticalBatchSize, fit_critical_batch_size


class Row(NamedTuple):
  """What a search at one batch size came to.

  Attributes:
    batch_size: of all its trials.
    steps: to result; None if no trial reached the goal: the row is censored.
    examples: steps times batch size.
    seconds: the training clock of the best trial at that step, if it has one.
    interval: of the steps, with 95 % confidence.
    trial: the number of the best trial, the one that took these steps.
    parameters: of the best trial; {} if there is none.
    reached: feasible trials that reached the goal.
    feasible, infeasible, incomplete: trials by their status.
    longest: most steps of a feasible trial: steps to result of a censored row
      are more than that for these trials.
    edges: where the best point is near an end of the space: if it is, the space
      must grow before the row can be believed.
    best: the best value by any feasible trial, or None.
  """

  batch_size: int
  steps: int | None
  examples: int | None
  seconds: float | None
  interval: tuple[float, float]
  trial: int | None
  parameters: dict[str, float]
  reached: int
  feasible: int
  infeasible: int
  incomplete: int
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
  """

  dataset: str
  model: str
  optimizer: str
  rows: tuple[Row, ...]
  fit: CriticalBatchSize | None
  regimes: Regimes


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


def _row(
  search: Search, metric: str, goal: float, higher_is_better: bool, seed: int
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
    seed=seed,
  )
  steps = result.steps
  trial = None if result.curve is None else feasible[result.curve]
  status = [t.status for t in trials]
  return Row(
    batch_size=search.batch_size,
    steps=steps,
    examples=None if steps is None else steps * search.batch_size,
    seconds=_seconds(trial, steps),
    interval=result.interval,
    trial=None if trial is None else trial.number,
    parameters=dict(trial.parameters) if trial else {},
    reached=sum(s is not None for s in result.by_curve),
    feasible=len(feasible),
    infeasible=status.count(INFEASIBLE),
    incomplete=status.count(INCOMPLETE),
    longest=max((t.steps for t in feasible), default=0),
    edges=tuple(near_edges(search.space, trial.parameters)) if trial else (),
    best=best_under(feasible, metric, higher_is_better=higher_is_better),
  )


def summarize(
  searches: Iterable[Search],
  metric: str,
  goal: float,
  *,
  higher_is_better: bool = False,
  seed: int = 0,
) -> list[Workload]:
  """Steps to result of every search, by workload and batch size.

  Only `COMPLETE` trials count: one that diverged later is not taken at its best
  moment. Trials that end once another was better are judged first, so that the
  table does not depend on how many ran side by side; what they might have
  reached later is then unknown, and the upper end of an interval is too high
  rather than too low.

  Args:
    searches: of any workloads.
    metric: column of the measurements.
    goal: to be strictly better than.
    higher_is_better: whether the metric is to be above the goal.
    seed: of the intervals.

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
    rows = [_row(s, metric, goal, higher_is_better, seed) for s in group]
    steps = [row.steps for row in rows]
    fit = None
    if sum(s is not None for s in steps) >= 3:
      fit = fit_critical_batch_size(sizes, steps)
    found.append(Workload(*names, tuple(rows), fit, regimes(sizes, steps)))
  return found


def to_json(workloads: Iterable[Workload]) -> list[dict[str, Any]]:
  """Plain JSON: what is censored, open or unbounded is null.

  >>> to_json([Workload('a', 'b', 'sgd', (), None, regimes([], []))])
  ... # doctest: +NORMALIZE_WHITESPACE
  [{'dataset': 'a', 'model': 'b', 'optimizer': 'sgd', 'rows': [], 'fit': None,
    'regimes': {'labels': [], 'perfect_up_to': None, 'maximal_from': None}}]
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


HEADER = (
  'batch size',
  'steps',
  '95 % interval',
  'examples',
  'regime',
  'feasible / infeasible / reached',
  'best parameters',
  'near an edge',
)


def format_table(workload: Workload) -> str:
  """The table in Markdown, aligned so that a terminal shows it as well."""
  lines: list[tuple[str, ...]] = [HEADER]
  for row, label in zip(workload.rows, workload.regimes.labels, strict=True):
    lines.append(
      (
        f'{row.batch_size}',
        f'> {row.longest}' if row.steps is None else f'{row.steps}',
        '' if row.steps is None else _interval(row.interval),
        '' if row.examples is None else f'{row.examples}',
        label,
        f'{row.feasible} / {row.infeasible} / {row.reached}',
        ', '.join(f'{k} {v:.4g}' for k, v in row.parameters.items()),
        ', '.join(f'{key} ({side})' for key, side in row.edges),
      )
    )
  widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
  lines.insert(1, tuple('-' * width for width in widths))
  table = [
    '| ' + ' | '.join(map(str.ljust, cells, widths)) + ' |' for cells in lines
  ]
  title = f'{workload.dataset}, {workload.model}, {workload.optimizer}'
  return '\n'.join([title, '', *table, '', _fitted(workload.fit)])


def _interval(interval: Sequence[float]) -> str:
  return ' to '.join(f'{x:.6g}' for x in interval)


def _fitted(fit: CriticalBatchSize | None) -> str:
  if fit is None:
    return 'No fit: fewer than 3 batch sizes reached the goal.'
  return (
    f'S(B) = S_min (1 + B_crit / B): S_min {fit.min_steps:.4g}'
    f' ({_interval(fit.min_steps_interval)}), B_crit'
    f' {fit.critical_batch_size:.4g}'
    f' ({_interval(fit.critical_batch_size_interval)}), {fit.points} sizes'
  )
