"""The page of a search: its trials, at one batch size."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from adabatch.report.charts import series_color
from adabatch.report.layout import (
  details,
  document,
  duration,
  heading,
  quantity,
  table,
  tile,
)
from adabatch.report.pictures import COLOR
from adabatch.report.points import Point, Task, axes_of, points, ranked
from adabatch.report.records import number
from adabatch.report.study_page import (
  PLANE,
  chart,
  edge_warning,
  judged,
  read,
  stopped,
  trial_counts,
)
from adabatch.report.trial_figures import (
  curves_figure,
  has_momentum,
  plane_figure,
  slice_figure,
)
from adabatch.study import Row
from adabatch.study.space import near_edges
from adabatch.study.table import half_text
from adabatch.study.trials import Search

MOST_ROWS = 10


def _tiles(
  search: Search, found: Sequence[Point], row: Row, task: Task, seconds: Any
) -> Iterator[str]:
  order = ranked(found, task)
  yield '<dl class="tiles">'
  yield tile('batch size', quantity(search.batch_size), search.optimizer)
  yield tile('trials', *trial_counts([search]))
  best = min((p.value for p in order), key=task.loss, default=None)
  yield tile('best value', quantity(best), task.metric)
  if task.goal is not None:
    if row.steps is None:
      small = f'after {row.longest:,} steps' if row.longest else ''
      yield tile('goal', 'not reached', small)
    else:
      small = f'with half the trials: {half_text(row)}'
      yield tile('steps to the goal', quantity(row.steps), small)
      small = ''
      if search.early_stopping:
        small = 'in no more steps than all trials before'
      yield tile('trials that reached it', quantity(row.reached), small)
      if row.seconds is not None:
        yield tile('time to the goal', duration(row.seconds))
  if order:
    yield tile('best trial', f'{order[0].trial.number}')
  if seconds is not None:
    yield tile('time of the search', duration(seconds))
  yield '</dl>'
  if order:
    edges = near_edges(search.space, order[0].trial.parameters)
    if edges:
      text = f'Best trial: {edge_warning(edges)}.'
      yield f'<p class="bad">{escape(text)}</p>'


def _charts(
  search: Search, found: Sequence[Point], task: Task
) -> Iterator[str]:
  color = series_color(0, COLOR)
  ids = (f'c{i}-' for i in itertools.count())
  yield '<div class="charts">'
  drawn = curves_figure(found, task.metric, task.goal, COLOR, color)
  yield chart(
    f'{task.metric} of all trials', '', drawn, next(ids), stopped([search])
  )
  panels = [(search.batch_size, found)]
  if has_momentum(panels):
    drawn = plane_figure(panels, COLOR, color)
    yield chart('All trials', PLANE, drawn, next(ids))
  for key, parameter in axes_of(search).items():
    drawn = slice_figure(key, parameter, found, task.goal, COLOR, color)
    scale = parameter.scale.replace('_', ' ')
    unit = f'{scale}; best {task.metric}'
    yield chart(key, unit, drawn, next(ids))
  yield '</div>'


def _best_trials(search: Search, order: Sequence[Point]) -> Iterator[str]:
  keys = list(axes_of(search))
  keys += [k for p in order for k in p.trial.parameters]
  keys = list(dict.fromkeys(keys))
  cells = [
    [
      str(point.trial.number),
      quantity(point.steps) if point.steps < math.inf else '–',
      quantity(point.value),
      f'{point.trial.steps:,}',
      *(_parameter(point.trial.parameters.get(key)) for key in keys),
    ]
    for point in order[:MOST_ROWS]
  ]
  columns = ('trial', 'steps to the goal', 'best value', 'steps taken', *keys)
  yield '<section><h2 class="part">Best trials</h2>'
  yield from table(columns, cells, ())
  yield '</section>'


def _parameter(value: Any) -> str:
  known = number(value)
  return quantity(value) if math.isnan(known) else f'{known:.4g}'


def build_search_page(
  name: str,
  search: Search,
  task: Task,
  summary: Mapping[str, Any],
  config: Mapping[str, Any],
) -> str:
  """The whole page; pure, and the same text for the same search.

  Args: as for `build_study_page`.
  """
  (search,) = read([search], task)
  ((row,),) = (workload.rows for workload in judged([search], task))
  found = points(search, task)
  words = (search.dataset, search.model, search.optimizer, task.text())
  body = [
    *heading(name, str(summary.get('status', 'unfinished')), ' · '.join(words)),
    *_tiles(search, found, row, task, summary.get('seconds')),
    *_charts(search, found, task),
    *_best_trials(search, ranked(found, task)),
    *details('Summary', summary),
    *details('Config', config),
  ]
  return document(name, body)
