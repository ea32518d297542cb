"""Pictures of a probe: what a larger batch costs, and when.

`probe_page` puts them on the page. Like those of a study they are Matplotlib
figures in the colours of a palette, whose artists carry labels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adabatch.report import scales
from adabatch.report.charts import (
  DASHED,
  SIZE,
  WIDTH,
  Palette,
  blank,
  explain,
  log_scale_of,
  name_x,
  set_scale,
  size_axis,
)
from adabatch.report.pictures import dress
from adabatch.report.probe_points import (
  CRITICAL,
  ESTIMATES,
  Estimate,
  critical_of,
  estimates,
  steps_of,
)
from adabatch.report.records import number

UPPER, ROW, GAP, BELOW, ABOVE = 2.2, 0.34, 0.12, 0.44, 0.1  # inches
LEFT, RIGHT = 0.6, 0.15
FAR = (
  16  # an estimate this many times beyond the sizes tried leaves the picture
)
MOST = 10  # a difference this many times what matters leaves it too
BAND: Any = {'alpha': 0.15, 'linewidth': 0}
MARK: Any = {'linestyle': 'none', 'clip_on': False, 'zorder': 4}


class Row(NamedTuple):
  """A batch size that was tried.

  Attributes:
    batch_size: in examples.
    difference: of the held-out loss; NaN if the branch diverged.
    half: half its interval.
  """

  batch_size: int
  difference: float
  half: float


def rows_of(point: Mapping[str, Any]) -> list[Row]:
  return [
    Row(r['batch_size'], number(r['difference']), number(r['half_width']))
    for r in point['table']
  ]


def size_range(
  points: Sequence[Mapping[str, Any]],
  found: Sequence[Estimate],
  others: Sequence[float] = (),
) -> tuple[float, float]:
  """From which batch size to which a picture goes.

  Args:
    points: what is beyond the sizes tried there by more than `FAR` leaves it.
    found: estimates that it is to hold.
    others: sizes that it is to hold.
  """
  tried = [row['batch_size'] for point in points for row in point['table']]
  least, most = max(min(tried) / FAR, 1), max(tried) * FAR
  ends = [e for one in found for e in (one.value, one.low, one.high)]
  ends = [e for e in (*ends, *others) if 0 < e < math.inf] or tried
  return (
    float(np.clip(min(ends), least, most)),
    float(np.clip(max(ends), least, most)),
  )


def cost_range(rows: Sequence[Row], epsilon: float) -> tuple[float, float]:
  """The differences around epsilon; what is far beyond leaves the picture.

  Else one branch that went wrong would flatten what is asked about.

  >>> rows = [Row(8, 0.0, 0.0), Row(16, 0.01, 0.004), Row(64, 3.0, 0.1)]
  >>> cost_range(rows, epsilon=0.01)
  (-0.01, 0.1)
  """
  finite = [row for row in rows if math.isfinite(row.difference)]
  halves = [row.half for row in finite if row.half > 0]
  most = MOST * max(epsilon, min(halves, default=0.0))
  high = max((row.difference + row.half for row in finite), default=0.0)
  low = min((row.difference - row.half for row in finite), default=0.0)
  return min(-epsilon, max(low, -most)), max(2 * epsilon, min(high, most))


def cost_figure(
  point: Mapping[str, Any], epsilon: float, palette: Palette
) -> Figure:
  """What each batch size costs, and below it what the cheap estimates say.

  The paired differences with their intervals, epsilon, and the interval of the
  critical size, over one axis of batch sizes with a row for each estimate.
  """
  found, rows = estimates(point), rows_of(point)
  strip = ROW * len(found)
  height = ABOVE + UPPER + GAP + strip + BELOW
  figure = Figure(figsize=(WIDTH, height))
  left, width = LEFT / WIDTH, 1 - (LEFT + RIGHT) / WIDTH
  upper = figure.add_axes(
    (left, (BELOW + strip + GAP) / height, width, UPPER / height)
  )
  lower = figure.add_axes((left, BELOW / height, width, strip / height))
  tried = [float(row.batch_size) for row in rows]
  low, high = size_range([point], found, tried)
  for axes in (upper, lower):
    dress(axes, palette)
    size_axis(axes, [math.floor(low), math.ceil(high)], palette)
  upper.set_xticks([])
  upper.set_xlabel('')
  upper.spines['bottom'].set_visible(False)
  low, high = cost_range(rows, epsilon)
  margin = 0.07 * (high - low)
  low, high = low - margin, high + 2 * margin
  ticks = scales.linear_ticks(low, high)
  labels = scales.tick_labels(ticks)
  set_scale(upper, 'y', scales.Scale(False, low, high, ticks, labels))
  lower.set_ylim(0, len(found))
  lower.set_yticks([])
  for axes, opacity in ((upper, 1.0), (lower, 0.4)):  # below is text over it
    _draw_critical(axes, found[0], palette, opacity)
    style: Any = {'linewidth': 1, 'linestyle': ':', 'alpha': opacity}
    axes.axvline(point['batch_size'], color=palette['soft'], **style)
  _draw_rows(upper, rows, palette)
  upper.axhline(epsilon, color=palette['ink'], linewidth=1, linestyle=DASHED)
  for i, estimate in enumerate(found):
    _draw_estimate(lower, len(found) - 1 - i, estimate, palette)
  _explain_cost(upper, found[0], palette)
  return figure


def _draw_critical(
  axes: Axes, found: Estimate, palette: Palette, opacity: float
) -> None:
  """The interval as a band, the critical size as a line."""
  color = palette[ESTIMATES[CRITICAL]]
  low, high = axes.get_xlim()
  if not math.isnan(found.low):
    axes.axvspan(found.low, min(found.high, high), color=color, **BAND)
  if low < found.value < high:
    axes.axvline(found.value, color=color, linewidth=1.3, alpha=opacity)


def _draw_rows(axes: Axes, rows: Sequence[Row], palette: Palette) -> None:
  color = palette['s1']
  low, high = axes.get_ylim()
  finite = [row for row in rows if math.isfinite(row.difference)]
  sizes = [row.batch_size for row in finite]
  axes.plot(
    sizes, [row.difference for row in finite], color=color, linewidth=1.2
  )
  for row in finite:
    ends = np.clip(
      [row.difference - row.half, row.difference + row.half], low, high
    )
    if row.half > 0 and ends[0] < ends[1]:
      x = [row.batch_size] * 2
      axes.plot(x, ends, color=color, linewidth=1.1)
  marks = {'o': [], '^': [], 'v': []}
  for row in finite:
    mark = '^' if row.difference > high else 'v'
    inside = low <= row.difference <= high
    marks['o' if inside else mark].append(row)
  for mark, some in marks.items():
    y = np.clip([row.difference for row in some], low, high)
    look: Any = {'marker': mark, 'markersize': 5 if mark == 'o' else 6}
    x = [row.batch_size for row in some]
    axes.plot(x, y, color=color, **look, **MARK)
  if marks['^'] or marks['v']:
    label = 'beyond the picture'
    axes.plot([], [], color=color, marker='^', label=label, linestyle='none')
  diverged = [row.batch_size for row in rows if row not in finite]
  if diverged:
    axes.plot(
      diverged,
      [high] * len(diverged),
      color=palette['bad'],
      marker='x',
      markersize=6,
      markeredgewidth=1.4,
      label='diverged',
      **MARK,
    )


def _explain_cost(axes: Axes, found: Estimate, palette: Palette) -> None:
  axes.plot([], [], color=palette['s1'], label='difference, with its interval')
  explain(axes, 'epsilon', palette, linestyle=DASHED, linewidth=1)
  color = palette[ESTIMATES[CRITICAL]]
  if not math.isnan(found.value):
    axes.plot([], [], color=color, label=CRITICAL)
  if found.known:
    label = 'its interval' if found.value > 0 else 'where it may be'
    axes.plot([], [], color=color, label=label, linewidth=5, alpha=0.3)
  axes.plot(
    [],
    [],
    color=palette['soft'],
    linestyle=':',
    label='batch size of the run',
  )


def _draw_estimate(
  axes: Axes, bottom: int, found: Estimate, palette: Palette
) -> None:
  """A row of the strip: a name, a number, and a mark with its interval."""
  text: Any = {'fontsize': SIZE, 'color': palette['ink'], 'va': 'center'}
  text['transform'] = axes.get_yaxis_transform()
  axes.text(0, bottom + 0.68, found.name, ha='left', **text)
  axes.text(1, bottom + 0.68, found.text, ha='right', **text)
  low, high = axes.get_xlim()
  color, y = palette[ESTIMATES[found.name]], bottom + 0.25
  style: Any = {'color': color, **MARK}
  if not math.isnan(found.low):
    ends = np.clip([found.low, found.high], low, high)
    axes.plot(ends, [y, y], color=color, linewidth=1.6)
    closed = [e for e in (found.low, found.high) if low <= e <= high]
    axes.plot(
      closed,
      [y] * len(closed),
      marker='|',
      markersize=6,
      markeredgewidth=1.4,
      **style,
    )
  beyond = {
    '<': [low] if found.known and min(_given(found)) < low else [],
    '>': [high] if found.known and max(_given(found)) > high else [],
  }
  for mark, x in beyond.items():
    axes.plot(x, [y] * len(x), marker=mark, markersize=5, **style)
  if low <= found.value <= high:
    axes.plot([found.value], [y], marker='o', markersize=5, **style)


def _given(found: Estimate) -> list[float]:
  """Its value and its ends, those that there are."""
  ends = (found.value, found.low, found.high)
  return [x for x in ends if not math.isnan(x)]


def _over_examples(
  points: Sequence[Mapping[str, Any]],
  sizes: tuple[float, float],
  palette: Palette,
) -> tuple[Figure, Axes]:
  """Empty axes: examples and batch sizes, both logarithmic."""
  figure, axes = blank(palette)
  at = [float(point['examples']) for point in points]
  # Room for what comes after the last, and for arrows at both ends.
  set_scale(axes, 'x', log_scale_of([*at, 1.4 * max(at)]))
  set_scale(axes, 'y', scales.log_scale(sizes[0] / 1.1, sizes[1] * 1.5, 2))
  name_x(axes, 'examples seen', palette)
  return figure, axes


def _draw_over_examples(
  axes: Axes, x: float, found: Estimate, palette: Palette
) -> None:
  """One estimate at one checkpoint, with its interval; open ends as arrows."""
  low, high = axes.get_ylim()
  color = palette[ESTIMATES[found.name]]
  style: Any = {'color': color, **MARK}
  if not math.isnan(found.low):
    ends = np.clip([found.low, found.high], low, high)
    axes.plot([x, x], ends, color=color, linewidth=1.2)
    if math.isnan(found.value):  # a bound alone
      axes.plot([x], ends[:1], marker='_', markersize=6, **_thick(style))
  if found.known and max(_given(found)) > high:
    axes.plot([x], [high], marker='^', markersize=5, **style)
  if found.known and min(_given(found)) < low:
    axes.plot([x], [low], marker='v', markersize=5, **style)
  if low <= found.value <= high:
    axes.plot([x], [found.value], marker='o', markersize=5, **style)


def _thick(style: Mapping[str, Any]) -> dict[str, Any]:
  return {'markeredgewidth': 1.4, **style}


def growth_figure(found: Mapping[str, Any], palette: Palette) -> Figure | None:
  """The critical size along the run, the fitted power law, and the ramp."""
  points = [point for point in found['points'] if point['examples'] > 0]
  if not points:
    return None
  sizes = [critical_of(point) for point in points]
  steps = steps_of(found)
  others = [float(b) for _, b in steps]
  others += [float(point['batch_size']) for point in points]
  span = size_range(points, sizes, others)
  figure, axes = _over_examples(points, span, palette)
  x = [float(point['examples']) for point in points]
  if found['growth'] is not None:
    _draw_growth(axes, found['growth'], x, sizes, palette)
  if steps:
    start, end = axes.get_xlim()
    at = [max(float(at), start) for at, _ in steps] + [end]
    axes.plot(
      at,
      [b for _, b in steps] + [steps[-1][1]],
      color=palette['s1'],
      linewidth=1.5,
      drawstyle='steps-post',
      label='ramp',
    )
  axes.plot(
    x,
    [point['batch_size'] for point in points],
    color=palette['soft'],
    marker='o',
    markersize=5,
    fillstyle='none',
    markeredgewidth=1.1,
    label='batch size of the run',
    **MARK,
  )
  for at, one in zip(x, sizes, strict=True):
    _draw_over_examples(axes, at, one, palette)
  color = palette[ESTIMATES[CRITICAL]]
  mark: Any = {'color': color, 'linestyle': 'none'}
  axes.plot([], [], marker='o', label=f'{CRITICAL}, with its interval', **mark)
  if any(math.isinf(one.high) for one in sizes):
    axes.plot([], [], marker='^', label='open above', **mark)
  return figure


def _draw_growth(
  axes: Axes,
  growth: Mapping[str, Any],
  x: Sequence[float],
  sizes: Sequence[Estimate],
  palette: Palette,
) -> None:
  """The power law, and those with the ends of the interval of the power."""
  fitted = [
    at for at, one in zip(x, sizes, strict=True) if not math.isnan(one.value)
  ]
  color = palette[ESTIMATES[CRITICAL]]
  middle = float(np.exp(np.mean(np.log(fitted))))
  there = growth['scale'] * middle ** growth['power']
  at = np.geomspace(*axes.get_xlim(), 60)
  line, one, other = (
    there * (at / middle) ** growth[name]
    for name in ('power', 'power_low', 'power_high')
  )
  ends = np.minimum(one, other), np.maximum(one, other)
  axes.fill_between(at, *ends, color=color, **BAND)
  axes.plot(at, line, color=color, linewidth=1.2, linestyle=DASHED)
  look: Any = {'linewidth': 1.2, 'linestyle': DASHED}
  axes.plot([], [], color=color, label='power law', **look)
  axes.plot([], [], color=color, label='its interval', linewidth=5, alpha=0.3)


def agreement_figure(
  found: Mapping[str, Any], palette: Palette
) -> Figure | None:
  """The critical size and the cheap estimates, side by side along the run.

  None where there are no cheap ones.
  """
  points = [point for point in found['points'] if point['examples'] > 0]
  by_point = [[e for e in estimates(p) if e.known] for p in points]
  every = [one for some in by_point for one in some]
  names = [name for name in ESTIMATES if any(e.name == name for e in every)]
  if not set(names) - {CRITICAL}:
    return None
  sizes = size_range(points, every)
  figure, axes = _over_examples(points, sizes, palette)
  start, end = axes.get_xlim()
  apart = (end / start) ** 0.012
  for i, name in enumerate(names):
    shift = apart ** (i - (len(names) - 1) / 2)
    color = palette[ESTIMATES[name]]
    at: list[float] = []
    values: list[float] = []
    for point, some in zip(points, by_point, strict=True):
      for one in some:
        if one.name == name:
          x = shift * point['examples']
          _draw_over_examples(axes, x, one, palette)
          if one.value > 0:
            at.append(x)
            values.append(one.value)
    axes.plot(at, values, color=color, linewidth=1, alpha=0.6)
    axes.plot([], [], color=color, label=name)
  return figure
