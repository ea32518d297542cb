"""Pictures of a study: what it takes to reach the goal, by batch size.

`study_page` puts them on the page. Each function returns a Matplotlib figure in
the colours of a palette, without a legend, or None if there is nothing to draw;
its artists carry labels. With the colours of `style.LIGHT` it can be saved as
it is; `pictures.to_svg` puts one in those of `pictures.COLOR` into a page.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adabatch.report import scales
from adabatch.report.charts import (
  DASHED,
  Palette,
  blank,
  explain,
  log_axis,
  series_color,
  set_scale,
  size_axis,
)
from adabatch.report.points import LEARNING_RATE, MOMENTUM, known
from adabatch.report.records import number
from adabatch.study import Row, Workload, best_under, predict
from adabatch.study.curves import DIMINISHING, MAXIMAL, PERFECT
from adabatch.study.trials import Search

OPACITY = {PERFECT: 1.0, DIMINISHING: 0.5, MAXIMAL: 0.2}
BUDGET_MARKS = ('o', 's', '^', 'D', 'v')
GUIDE: Any = {'linewidth': 1, 'alpha': 0.8}


def steps_figure(
  workloads: Sequence[Workload], palette: Palette
) -> Figure | None:
  """Steps to the goal against the batch size, both logarithmic.

  Points, with a line up to what half the trials came to, the curve
  S_min (1 + B_crit / B), the line of perfect scaling, triangles where no trial
  reached the goal, and a strip above for the regimes. Where the curves of
  several workloads share their batch sizes, points stand a little apart so that
  lines stay legible.
  """
  return _amounts(workloads, palette, lambda batch_size: 1.0)


def examples_figure(
  workloads: Sequence[Workload], palette: Palette, epoch: float = 1.0
) -> Figure | None:
  """Likewise examples, or epochs of so many examples."""
  return _amounts(workloads, palette, lambda batch_size: batch_size / epoch)


def _amounts(
  workloads: Sequence[Workload],
  palette: Palette,
  cost: Callable[[float], float],
) -> Figure | None:
  """Steps, at a cost each that depends on the batch size alone."""
  rows = [row for workload in workloads for row in workload.rows]
  heights = [h * cost(row.batch_size) for row in rows for h in _heights(row)]
  heights = [height for height in heights if 0 < height < math.inf]
  if not heights:
    return None
  figure, axes = blank(palette, above=0.08 + 0.08 * len(workloads))
  size_axis(axes, [row.batch_size for row in rows], palette)
  # Room for arrows above.
  log_axis(axes, 'y', [*heights, 1.6 * max(heights)])
  for i, workload in enumerate(workloads):
    color = series_color(i, palette)
    apart = 2 ** (0.1 * (i - (len(workloads) - 1) / 2))
    _draw_rows(axes, workload, cost, color, apart)
    _draw_guides(axes, workload, cost, color)
  _draw_regimes(axes, workloads, palette)
  solved = [row for row in rows if row.steps is not None]
  mark: Any = {'marker': '^', 'linestyle': 'none'}
  if solved:
    label = 'slope of perfect scaling'
    explain(axes, label, palette, linestyle=DASHED, **GUIDE)
  if any(workload.fit for workload in workloads):
    explain(axes, 'fitted curve', palette, linewidth=1.3)
  if any(row.half is not None and row.half != row.steps for row in solved):
    label = 'with half the trials'
    explain(axes, label, palette, marker='_', linestyle='none')
  if any(row.half is None for row in solved):
    label = 'not reached with half the trials'
    explain(axes, label, palette, **mark)
  if any(row.steps is None and row.longest for row in rows):
    label = 'goal not reached by then'
    explain(axes, label, palette, fillstyle='none', **mark)
  return figure


def _heights(row: Row) -> list[float]:
  if row.steps is None:
    return [float(row.longest or 0)]
  return [float(row.steps), float(row.half or row.steps)]


def _draw_rows(
  axes: Axes,
  workload: Workload,
  cost: Callable[[float], float],
  color: str,
  apart: float,
) -> None:
  solved = [row for row in workload.rows if row.steps is not None]
  bottom, top = axes.get_ylim()
  stub = (top / bottom) ** 0.09
  axes.plot(
    [apart * row.batch_size for row in solved],
    [(row.steps or 0) * cost(row.batch_size) for row in solved],
    color=color,
    marker='o',
    markersize=5,
    # Without a curve the eye needs the line between the points.
    linestyle='none' if workload.fit else '-',
    linewidth=1,
    label=workload.optimizer,
  )
  for row in solved:
    low, high = float(row.steps or 0), row.half
    if high == row.steps:
      continue
    # An arrow stands for a goal that half the trials did not reach.
    ends = [low, stub * low if high is None else high]
    x = apart * row.batch_size
    y = np.array(ends) * cost(row.batch_size)
    axes.plot([x, x], y, color=color, linewidth=1.2)
    mark = '^' if high is None else '_'
    size = {'marker': mark, 'markersize': 5, 'markeredgewidth': 1.2}
    axes.plot(x, y[1], color=color, **size)
  censored = [row for row in workload.rows if row.steps is None and row.longest]
  axes.plot(
    [apart * row.batch_size for row in censored],
    [row.longest * cost(row.batch_size) for row in censored],
    color=color,
    marker='^',
    markersize=7,
    markeredgewidth=1.3,
    fillstyle='none',
    linestyle='none',
  )


def _draw_guides(
  axes: Axes,
  workload: Workload,
  cost: Callable[[float], float],
  color: str,
) -> None:
  """The fitted curve, and the line of perfect scaling."""
  sizes = np.geomspace(*axes.get_xlim(), 100)
  costs = np.array([cost(size) for size in sizes])
  if workload.fit:
    curve = np.array([predict(workload.fit, size) for size in sizes]) * costs
    axes.plot(sizes, curve, color=color, linewidth=1.3)
  first = next((row for row in workload.rows if row.steps is not None), None)
  if first and first.steps:
    line = first.steps * first.batch_size / sizes * costs
    axes.plot(sizes, line, color=color, linestyle=DASHED, **GUIDE)


def _draw_regimes(
  axes: Axes, workloads: Sequence[Workload], palette: Palette
) -> None:
  """A strip for each workload above the axes; paler where less is gained."""
  seen = set()
  for i, workload in enumerate(workloads):
    y = 1.015 + 0.035 * (len(workloads) - 1 - i)
    for low, high, label in regime_strip(workload, *axes.get_xlim()):
      axes.plot(
        [low, high],
        [y, y],
        transform=axes.get_xaxis_transform(),
        clip_on=False,
        color=series_color(i, palette),
        linewidth=4,
        alpha=OPACITY[label],
        solid_capstyle='butt',
      )
      seen.add(label)
  for label, opacity in OPACITY.items():
    if label in seen:
      explain(axes, label, palette, linewidth=5, alpha=opacity)


def regime_strip(
  workload: Workload, low: float, high: float
) -> list[tuple[float, float, str]]:
  """From which size to which a regime holds, between two sizes.

  A size stands for all that are nearer to it than to its neighbours.
  """
  sizes = [row.batch_size for row in workload.rows]
  between = [math.sqrt(a * b) for a, b in itertools.pairwise(sizes)]
  ends = itertools.pairwise([low, *between, high])
  labels = workload.regimes.labels
  strip: list[tuple[float, float, str]] = []
  for (start, end), label in zip(ends, labels, strict=True):
    # One piece for each regime: between two there would be a hairline.
    if strip and strip[-1][2] == label:
      start = strip.pop()[0]
    strip.append((start, end, label))
  return [piece for piece in strip if piece[2] in OPACITY]


def seconds_figure(
  workloads: Sequence[Workload], palette: Palette
) -> Figure | None:
  """Seconds on the training clock to the goal, where they are known."""
  lines = _points(workloads, lambda row: number(row.seconds))
  return _lines(workloads, lines, palette)


def rate_figure(
  workloads: Sequence[Workload], palette: Palette, effective: bool = False
) -> Figure | None:
  """The learning rate of the best trial against the batch size.

  With lines of linear and of square-root scaling through the smallest size.

  Args:
    workloads: one line each.
    palette: the colours.
    effective: draws learning rate / (1 - momentum) instead; a momentum that
      was not searched counts as 0.
  """
  lines = _points(workloads, lambda row: best_rate(row, effective))
  figure = _lines(workloads, lines, palette)
  if figure is None:
    return None
  axes = figure.axes[0]
  sizes = np.array(axes.get_xlim())
  for i, line in enumerate(lines):
    for power, style in ((1, DASHED), (0.5, ':')):
      if line:
        size, rate = line[0]
        y = rate * (sizes / size) ** power
        color = series_color(i, palette)
        axes.plot(sizes, y, color=color, linestyle=style, **GUIDE)
  explain(axes, 'linear scaling', palette, linestyle=DASHED, **GUIDE)
  explain(axes, 'square-root scaling', palette, linestyle=':', **GUIDE)
  return figure


def best_rate(row: Row, effective: bool) -> float:
  """The best trial's learning rate; NaN if there is none."""
  rate = known(row.parameters, LEARNING_RATE)
  if not effective:
    return rate
  momentum = known(row.parameters, MOMENTUM)
  momentum = 0.0 if math.isnan(momentum) else momentum
  return rate / (1 - momentum) if momentum < 1 else math.nan


def _points(
  workloads: Sequence[Workload], value: Callable[[Row], float]
) -> list[list[tuple[int, float]]]:
  """(batch size, value) of the rows where the value is positive."""
  return [
    [(row.batch_size, v) for row in workload.rows if (v := value(row)) > 0]
    for workload in workloads
  ]


def _lines(
  workloads: Sequence[Workload],
  lines: Sequence[Sequence[tuple[int, float]]],
  palette: Palette,
) -> Figure | None:
  """One line of points for each workload, both axes logarithmic."""
  if not any(lines):
    return None
  figure, axes = blank(palette)
  size_axis(
    axes, [row.batch_size for w in workloads for row in w.rows], palette
  )
  log_axis(axes, 'y', [value for line in lines for _, value in line])
  for i, (workload, line) in enumerate(zip(workloads, lines, strict=True)):
    if line:
      axes.plot(
        *zip(*line, strict=True),
        color=series_color(i, palette),
        marker='o',
        markersize=5,
        linewidth=1.2,
        label=workload.optimizer,
      )
  return figure


def budgets(searches: Sequence[Search], per_step: bool) -> list[int]:
  """Five budgets in steps or examples, evenly spaced on a logarithmic axis.

  From where trials of every batch size have been evaluated once to the most
  that any took, rounded up to two digits.
  """
  firsts, lasts = [], []
  for search in searches:
    cost = 1 if per_step else search.batch_size
    taken = [t.measurements['step'] for t in search.trials]
    taken = [steps * cost for steps in taken if len(steps)]
    if taken:
      firsts.append(min(steps[0] for steps in taken))
      lasts.append(max(steps[-1] for steps in taken))
  if not firsts:
    return []
  spaced = np.geomspace(max(1, *firsts), max(1, *lasts), 5)
  units = [10 ** max(0, math.floor(math.log10(value)) - 1) for value in spaced]
  rounded = zip(spaced, units, strict=True)
  # Rounding noise must not lift 2000 to 2100.
  return sorted({math.ceil(v / unit - 1e-9) * unit for v, unit in rounded})


def budget_figure(
  searches: Sequence[Search],
  metric: str,
  palette: Palette,
  *,
  per_step: bool,
  higher_is_better: bool = False,
  index: int = 0,
) -> Figure | None:
  """The best value of the metric within budgets, against the batch size.

  Args:
    searches: of one workload, by batch size.
    metric: its column.
    palette: the colours.
    per_step: whether budgets are steps; else examples.
    higher_is_better: of the metric.
    index: of the workload, for its colour.
  """
  lines = []
  for budget in budgets(searches, per_step):
    limit = {'steps' if per_step else 'examples': budget}
    values = [
      best_under(
        search.trials,
        metric,
        batch_size=search.batch_size,
        higher_is_better=higher_is_better,
        **limit,
      )
      for search in searches
    ]
    values = np.array([np.nan if v is None else v for v in values], float)
    if np.isfinite(values).any():
      lines.append((budget, values))
  if not lines:
    return None
  figure, axes = blank(palette)
  sizes = [search.batch_size for search in searches]
  size_axis(axes, sizes, palette)
  drawn = np.concatenate([values for _, values in lines])
  set_scale(
    axes, 'y', scales.choose_scale(drawn[np.isfinite(drawn)], scales.LOSS)
  )
  for i, (budget, values) in enumerate(lines):
    finite = np.isfinite(values)
    axes.plot(
      np.array(sizes)[finite],
      values[finite],
      color=series_color(index, palette),
      alpha=0.3 + 0.7 * (i + 1) / len(lines),
      marker=BUDGET_MARKS[i % len(BUDGET_MARKS)],
      markersize=5,
      linewidth=0.8 + 0.3 * i,
      label=f'≤ {budget:,}',
    )
  return figure
