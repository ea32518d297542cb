"""The page of a study: batch sizes and optimizers against what they take."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

from adabatch.report.charts import keys_of, series_color
from adabatch.report.layout import (
  details,
  document,
  duration,
  figure,
  heading,
  quantity,
  table,
  tile,
)
from adabatch.report.pictures import COLOR, to_svg
from adabatch.report.points import (
  LEARNING_RATE,
  MOMENTUM,
  Task,
  known,
  points,
  readable,
)
from adabatch.report.records import HUGE, number
from adabatch.report.study_figures import (
  budget_figure,
  examples_figure,
  rate_figure,
  seconds_figure,
  steps_figure,
)
from adabatch.report.trial_figures import (
  has_momentum,
  plane_figure,
  strip_figure,
)
from adabatch.study import Row, Workload, summarize
from adabatch.study.table import half_text, residual_text
from adabatch.study.trials import COMPLETE, INFEASIBLE, Search, unmeasured

PLANE = '1 − momentum against learning rate'


def read(searches: Iterable[Search], task: Task) -> list[Search]:
  """The searches as the pages' functions want them, by batch size."""
  by_size = sorted(searches, key=lambda search: search.batch_size)
  return [readable(search, task) for search in by_size]


def stopped(searches: Iterable[Search]) -> str:
  """What the reader of a picture must know of how long trials went."""
  if any(search.early_stopping for search in searches):
    return 'each trial ends once an earlier one was better'
  return ''


def judged(searches: Sequence[Search], task: Task) -> list[Workload]:
  """Readable searches by workload; without a goal none reaches it."""
  goal = task.goal
  if goal is None:
    goal = HUGE if task.higher_is_better else -HUGE
  return summarize(
    searches, task.metric, goal, higher_is_better=task.higher_is_better
  )


def chart(
  title: str, unit: str, drawn: Figure | None, prefix: str, note: str = ''
) -> str:
  """A figure in the page's colours as an element of the page."""
  if drawn is None:
    return figure(title, unit, [], note, '')
  return figure(title, unit, keys_of(drawn), note, to_svg(drawn, prefix, title))


def trial_counts(searches: Sequence[Search]) -> tuple[str, str]:
  """How many trials there are, and how many of them came to what."""
  count = Counter(t.status for search in searches for t in search.trials)
  complete, infeasible = count.pop(COMPLETE, 0), count.pop(INFEASIBLE, 0)
  parts = f'{complete:,} complete'
  blind = unmeasured(searches)
  if blind:
    parts += f' ({blind:,} ended before the first evaluation)'
  parts += f', {infeasible:,} diverged'
  rest = sum(count.values())
  if rest:
    parts += f', {rest:,} not finished'
  return f'{complete + infeasible + rest:,}', parts


def edge_warning(edges: Iterable[tuple[str, str]]) -> str:
  """What to do where a best point lies near an end of its space.

  >>> edge_warning([('learning_rate', 'low')])
  'learning_rate near its low end: widen the space'
  """
  return '; '.join(
    f'{key} near its {side} end: widen the space' for key, side in edges
  )


def interval_text(low: float, high: float) -> str:
  """An interval for a person; 0 and inf are open ends.

  >>> interval_text(10, 20), interval_text(0, 2000.5)
  ('10 to 20', '< 2,000')
  >>> interval_text(30, math.inf), interval_text(0, math.inf)
  ('≥ 30', 'not bounded')
  """
  if math.isinf(low) or (low <= 0 and math.isinf(high)):
    return 'not bounded'
  if math.isinf(high):
    return f'≥ {_rounded(low)}'
  return (
    f'{_rounded(low)} to {_rounded(high)}' if low > 0 else f'< {_rounded(high)}'
  )


def _rounded(value: float) -> str:
  return f'{value:,.0f}' if value >= 1000 else f'{value:.3g}'


def _bounds(interval: tuple[float, float]) -> str:
  text = interval_text(*interval)
  return f'{text}, not bounded above' if text[0] == '≥' else text


def fit_text(workload: Workload) -> str:
  """The fitted curve and the regimes in words."""
  fit, regimes = workload.fit, workload.regimes
  if fit is None:
    words = 'No curve is fitted to fewer than three sizes that reach the goal.'
  else:
    critical = 'unbounded'
    if math.isfinite(fit.critical_batch_size):
      critical = _rounded(fit.critical_batch_size)
    share = f'{100 * fit.confidence:.0f} %'
    words = (
      f'S(B) = S_min (1 + B_crit / B) with '
      f'S_min = {_rounded(fit.min_steps)} '
      f'({share}: {_bounds(fit.min_steps_interval)}) and '
      f'B_crit = {critical} '
      f'({share}: {_bounds(fit.critical_batch_size_interval)}); '
      f'{residual_text(fit, workload.spread)}.'
    )
    overhead = workload.overhead_batch_size
    if overhead is not None and math.isfinite(overhead):
      words += (
        f' 20 % more examples than at the smallest size at B = '
        f'{_rounded(overhead)}.'
      )
  if regimes.perfect_up_to is not None:
    words += f' Perfect scaling up to B = {quantity(regimes.perfect_up_to)}.'
  if regimes.maximal_from is not None:
    words += (
      f' Maximal data parallelism from B = {quantity(regimes.maximal_from)}.'
    )
  return words


COLUMNS = (
  'batch size',
  'steps',
  'with half the trials',
  'examples',
  'time',
  'reached / feasible / diverged',
  'not finished',
  'best value',
  'learning rate',
  'momentum',
  'regime',
  'remark',
)


def _cells(row: Row, label: str) -> list[str]:
  censored = f'> {row.longest:,}' if row.longest else '–'
  return [
    quantity(row.batch_size),
    censored if row.steps is None else quantity(row.steps),
    half_text(row) or '–',
    quantity(row.examples),
    duration(row.seconds),
    f'{row.reached} / {row.feasible} / {row.infeasible}',
    quantity(row.incomplete),
    quantity(row.best),
    _known(row, LEARNING_RATE),
    _known(row, MOMENTUM),
    label,
    edge_warning(row.edges),
  ]


def _known(row: Row, names: Sequence[str]) -> str:
  value = known(row.parameters, names)
  return '–' if math.isnan(value) else f'{value:.4g}'


HALF = (
  'With half the trials: what the first half of them came to, as a search for '
  'half as many would have. Another search of as many finds fewer steps in one '
  'case of two.'
)
REACHED = (
  'Reached: in no more steps than all trials before; each trial ends once an '
  'earlier one was better, and what it would have come to is not known.'
)
SHARED = (
  'The points are the same at several batch sizes, so these share their luck.'
)
OWN = 'Each batch size has points of its own'
DERIVED = (
  ", drawn with a seed made of the study's, the optimizer and the batch size"
)


def share_points(searches: Sequence[Search]) -> bool:
  """Whether half the points of a batch size were tried at another one too."""
  tried = [
    {tuple(sorted(t.parameters.items())) for t in search.trials if t.parameters}
    for search in searches
  ]
  return any(
    2 * len(a & b) >= min(len(a), len(b)) > 0
    for a, b in itertools.combinations(tried, 2)
  )


def remarks(searches: Sequence[Search], ours: bool) -> str:
  """What the reader of a workload's table must know.

  Args:
    searches: of the workload.
    ours: whether this project drew the points.
  """
  parts = [HALF]
  if any(search.early_stopping for search in searches):
    parts.append(REACHED)
  if len(searches) > 1:
    own = f'{OWN}{DERIVED if ours else ""}.'
    parts.append(SHARED if share_points(searches) else own)
  return ' '.join(parts)


def _workload_table(
  workload: Workload, searches: Sequence[Search], ours: bool
) -> Iterator[str]:
  rows = zip(workload.rows, workload.regimes.labels, strict=True)
  yield f'<section><h2 class="part">{escape(workload.optimizer)}</h2>'
  yield f'<p>{escape(fit_text(workload))}</p>'
  if workload.lack_of_fit is not None:
    warning = f'Lack of fit: {workload.lack_of_fit}.'
    yield f'<p class="bad">{escape(warning)}</p>'
  cells = [_cells(row, label) for row, label in rows]
  yield from table(COLUMNS, cells, ('regime', 'remark'))
  yield f'<p class="note">{escape(remarks(searches, ours))}</p>'
  yield '</section>'


def _tiles(
  searches: Sequence[Search], workloads: Sequence[Workload], seconds: Any
) -> Iterator[str]:
  yield '<dl class="tiles">'
  sizes = sorted({search.batch_size for search in searches})
  span = f'{sizes[0]:,} to {sizes[-1]:,}' if sizes else ''
  yield tile('batch sizes', str(len(sizes)), span)
  names = sorted({search.optimizer for search in searches})
  yield tile('optimizers', str(len(names)), ', '.join(names))
  yield tile('trials', *trial_counts(searches))
  for workload in workloads:
    solved = [row for row in workload.rows if row.steps is not None]
    least = min(solved, key=lambda row: row.steps or 0, default=None)
    value = quantity(least.steps) if least else 'goal not reached'
    small = f'at B = {quantity(least.batch_size)}' if least else ''
    yield tile(f'fewest steps, {workload.optimizer}', value, small)
  if seconds is not None:
    yield tile('time', duration(seconds))
  yield '</dl>'


def _goal_charts(
  workloads: Sequence[Workload], epoch: float, ids: Iterator[str]
) -> Iterator[str]:
  """What it takes to reach the goal, and the best learning rates."""
  kind = 'Epochs' if epoch > 1 else 'Examples'
  drawn = steps_figure(workloads, COLOR)
  yield chart('Steps to the goal', 'updates', drawn, next(ids))
  drawn = examples_figure(workloads, COLOR, epoch)
  yield chart(f'{kind} to the goal', '', drawn, next(ids))
  drawn = rate_figure(workloads, COLOR)
  yield chart('Best learning rate', '', drawn, next(ids))
  rows = [row for workload in workloads for row in workload.rows]
  if any(math.isfinite(known(row.parameters, MOMENTUM)) for row in rows):
    drawn = rate_figure(workloads, COLOR, effective=True)
    unit = 'learning rate / (1 − momentum)'
    yield chart('Best effective learning rate', unit, drawn, next(ids))
  drawn = seconds_figure(workloads, COLOR)
  if drawn:
    yield chart('Time to the goal', 'seconds', drawn, next(ids))


def _trial_chart(
  optimizer: str, searches: Sequence[Search], task: Task, index: int, name: str
) -> str:
  """Where the trials of one workload lie in its spaces."""
  panels = [(search.batch_size, points(search, task)) for search in searches]
  color = series_color(index, COLOR)
  if has_momentum(panels):
    title, unit = f'Trials of {optimizer}', PLANE
    drawn = plane_figure(panels, COLOR, color)
  else:
    title, unit = f'Learning rates of {optimizer}', 'by batch size'
    drawn = strip_figure(panels, COLOR, color)
  return chart(title, unit, drawn, name, stopped(searches))


def _budget_charts(
  optimizer: str,
  searches: Sequence[Search],
  task: Task,
  index: int,
  ids: Iterator[str],
) -> Iterator[str]:
  """How good the solutions of one workload are within budgets."""
  for per_step, kind in ((True, 'steps'), (False, 'examples')):
    drawn = budget_figure(
      searches,
      task.metric,
      COLOR,
      per_step=per_step,
      higher_is_better=task.higher_is_better,
      index=index,
    )
    title = f'Within so many {kind}, {optimizer}'
    unit = f'best {task.metric}'
    yield chart(title, unit, drawn, next(ids), stopped(searches))


def _charts(
  searches: Sequence[Search],
  workloads: Sequence[Workload],
  task: Task,
  epoch: float,
  prefix: str,
) -> Iterator[str]:
  """All pictures of the workloads that share a data set and a model."""
  own = [
    (w.optimizer, [s for s in searches if s.optimizer == w.optimizer])
    for w in workloads
  ]
  ids = (f'{prefix}{i}-' for i in itertools.count())
  yield '<div class="charts">'
  if task.goal is not None:
    yield from _goal_charts(workloads, epoch, ids)
  yield '</div><div class="charts">'
  for i, (optimizer, part) in enumerate(own):
    yield _trial_chart(optimizer, part, task, i, next(ids))
  yield '</div><div class="charts">'
  for i, (optimizer, part) in enumerate(own):
    yield from _budget_charts(optimizer, part, task, i, ids)
  yield '</div>'


def build_study_page(
  name: str,
  searches: Sequence[Search],
  task: Task,
  summary: Mapping[str, Any],
  config: Mapping[str, Any],
  remark: str = '',
) -> str:
  """The whole page; pure, and the same text for the same study.

  Args:
    name: of the study.
    searches: at any batch sizes, of any workloads.
    task: what is asked of them.
    summary: what the study says of itself; {} if it says nothing.
    config: likewise.
    remark: what the reader must know of how it was read.
  """
  searches = read(searches, task)
  workloads = judged(searches, task)
  epoch = number(summary.get('train_examples'))
  epoch = epoch if epoch > 1 else 1.0
  body = [
    *heading(name, str(summary.get('status', 'unfinished')), task.text()),
    *_tiles(searches, workloads, summary.get('seconds')),
  ]
  if remark:
    body.append(f'<p class="bad">{escape(remark)}</p>')
  if not workloads:
    body.append('<p class="empty">no trials yet</p>')
  by_model = itertools.groupby(workloads, key=lambda w: (w.dataset, w.model))
  for i, ((dataset, model), group) in enumerate(by_model):
    group = list(group)
    part = [s for s in searches if (s.dataset, s.model) == (dataset, model)]
    body.append(f'<h2 class="part">{escape(dataset)} · {escape(model)}</h2>')
    body += _charts(part, group, task, epoch, f'g{i}p')
    for workload in group:
      own = [s for s in part if s.optimizer == workload.optimizer]
      body += _workload_table(workload, own, bool(config))
  # The tables say it better.
  summary = {k: v for k, v in summary.items() if k != 'workloads'}
  return document(
    name, [*body, *details('Summary', summary), *details('Config', config)]
  )
