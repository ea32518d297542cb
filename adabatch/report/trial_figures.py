"""Pictures of trials: where in the space they lie, and how they went.

As in `study_figures`, each function returns a figure without a legend, or None.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adabatch.report import scales
from adabatch.report.charts import (
  MARKS,
  SIZE,
  WIDTH,
  Palette,
  blank,
  draw_marks,
  explain,
  log_axis,
  log_scale_of,
  name_x,
  set_scale,
  size_label,
)
from adabatch.report.lines import thin
from adabatch.report.pictures import dress
from adabatch.report.points import (
  LEARNING_RATE,
  MOMENTUM,
  Point,
  known,
  place,
)
from adabatch.report.records import number
from adabatch.study.space import Parameter

COLUMNS = 3  # of small pictures: narrower ones have no room for their ticks
MOST_POINTS = 200  # of one trial's line; there may be hundreds of trials
Panels = Sequence[tuple[int, Sequence[Point]]]  # by batch size


def has_momentum(panels: Panels) -> bool:
  return any(
    math.isfinite(known(point.trial.parameters, MOMENTUM))
    for _, part in panels
    for point in part
  )


def plane_figure(panels: Panels, palette: Palette, color: str) -> Figure | None:
  """Trials by learning rate (x) and 1 - momentum (y), one panel for each size.

  Args:
    panels: pairs of a batch size and its points.
    palette: the colours.
    color: of those that reached the goal.
  """
  placed = [(size, *_plane(part), part) for size, part in panels]
  rates = [rate for _, x, _, _ in placed for rate in x]
  slacks = [slack for _, _, y, _ in placed for slack in y]
  if not np.isfinite(np.array(rates) * np.array(slacks)).any():
    return None
  columns = min(COLUMNS, len(panels))
  rows = math.ceil(len(panels) / columns)
  height = 0.5 + (1.3 if columns > 1 else 2.2) * rows
  figure = Figure(figsize=(WIDTH, height))
  gap = 0.03 if columns > 1 else 0.0
  for i, (size, x, y, part) in enumerate(placed):
    row, column = divmod(i, columns)
    # Room for the ticks at the left and below, and for a title on each.
    width, top = 0.865 / columns, 1 - 0.02 / height
    tall = (1 - 0.44 / height) / rows
    box = (0.115 + column * width, top - (row + 1) * tall)
    axes = figure.add_axes((*box, width - gap, tall - 0.26 / height))
    dress(axes, palette)
    axes.grid(axis='x', color=palette['grid'], linewidth=0.7)
    set_scale(axes, 'x', sparse(log_scale_of(rates), columns))
    set_scale(axes, 'y', sparse(log_scale_of(slacks), columns))
    axes.tick_params(
      labelleft=column == 0, labelbottom=i + columns >= len(panels)
    )
    if columns > 1:
      title = f'B = {size_label(size)}'
      axes.set_title(title, fontsize=SIZE, color=palette['ink'], pad=3)
    draw_marks(axes, [p.kind for p in part], x, y, palette, color)
  figure.text(
    0.55,
    0.05 / height,
    'learning rate',
    color=palette['ink'],
    fontsize=SIZE,
    ha='center',
  )
  return figure


def _plane(part: Sequence[Point]) -> tuple[list[float], list[float]]:
  parameters = [point.trial.parameters for point in part]
  x = [_positive(known(p, LEARNING_RATE)) for p in parameters]
  return x, [_positive(1 - known(p, MOMENTUM)) for p in parameters]


def sparse(scale: scales.Scale, columns: int) -> scales.Scale:
  """At most two ticks, away from the ends, if panels stand side by side."""
  if columns == 1:
    return scale
  span = math.log(scale.high / scale.low)
  inner = [
    (tick, label)
    for tick, label in zip(scale.ticks, scale.labels, strict=True)
    if 0.12 < math.log(tick / scale.low) / span < 0.88
  ]
  inner = inner[:: math.ceil(len(inner) / 2) or 1]
  ticks, labels = [t for t, _ in inner], [label for _, label in inner]
  return scale._replace(ticks=ticks, labels=labels)


def _positive(value: float) -> float:
  return value if value > 0 else math.nan


def strip_figure(panels: Panels, palette: Palette, color: str) -> Figure | None:
  """Trials by learning rate, one row for each batch size."""
  rows = [
    [_positive(known(p.trial.parameters, LEARNING_RATE)) for p in part]
    for _, part in panels
  ]
  rates = [rate for row in rows for rate in row if rate > 0]
  if not rates:
    return None
  figure, axes = blank(palette, height=0.6 + 0.34 * len(panels))
  log_axis(axes, 'x', rates)
  name_x(axes, 'learning rate', palette)
  labels = [size_label(size) for size, _ in panels]
  axes.set_yticks(range(len(panels)), labels, fontsize=SIZE)
  axes.set_ylim(-0.6, len(panels) - 0.4)
  kinds = [point.kind for _, part in panels for point in part]
  # Neighbours stand a little apart, each trial always in its own place.
  y = [
    i + 0.5 * ((0.618 * point.trial.number) % 1 - 0.5)
    for i, (_, part) in enumerate(panels)
    for point in part
  ]
  x = [rate for row in rows for rate in row]
  draw_marks(axes, kinds, x, y, palette, color)
  return figure


def curves_figure(
  points: Sequence[Point],
  metric: str,
  goal: float | None,
  palette: Palette,
  color: str,
) -> Figure | None:
  """The metric of every trial against updates; those that diverged end there.

  The axis holds what feasible trials did, so that a trial on its way to
  infinity does not flatten the others.
  """
  curves = []
  for point in points:
    columns = point.trial.measurements
    x, y = thin(columns['step'].astype(float), columns[metric], MOST_POINTS)
    if len(x):
      curves.append((point.kind, x, y))
  if not curves:
    return None
  tame = [y for kind, _, y in curves if kind != 'infeasible']
  values = np.concatenate(tame or [y for _, _, y in curves])
  if goal is not None:
    values = np.append(values, goal)
  figure, axes = blank(palette)
  set_scale(axes, 'y', scales.choose_scale(values, scales.LOSS))
  _updates_axis(axes, max(x[-1] for _, x, _ in curves), palette)
  for kind, (label, name, _) in MARKS.items():
    # A trial with one evaluation is a point.
    lines = [(x, y) for k, x, y in curves if k == kind]
    for i, (x, y) in enumerate(lines):
      axes.plot(
        x,
        y,
        color=palette[name] if name else color,
        alpha=None if kind == 'best' else 0.55,
        linewidth=2.4 if kind == 'best' else 0.9,
        marker='o' if len(x) == 1 else '',
        label='' if i else label,
      )
  if goal is not None:
    axes.axhline(
      goal, color=palette['ink'], linewidth=1, linestyle=':', label='goal'
    )
  return figure


def _updates_axis(axes: Axes, end: float, palette: Palette) -> None:
  end = 1.02 * end or 1.0
  ticks = scales.linear_ticks(0, end)
  axes.set_xlim(0, end)
  axes.set_xticks(ticks, scales.tick_labels(ticks), fontsize=SIZE)
  name_x(axes, 'updates', palette)


def slice_figure(
  key: str,
  parameter: Parameter,
  points: Sequence[Point],
  goal: float | None,
  palette: Palette,
  color: str,
) -> Figure | None:
  """The best value of each trial against one metaparameter, on its own scale.

  Trials that diverged stand in a row at the top: their best value tells how
  they began, not how good the choice was.
  """
  given = [number(point.trial.parameters.get(key)) for point in points]
  x = [place(parameter, value) for value in given]
  y = np.array([p.value for p in points], float)
  fine = np.array([p.kind != 'infeasible' for p in points], bool)
  drawn = y[fine & np.isfinite(y)]
  if not np.isfinite(x).any() or not len(points):
    return None
  if goal is not None:
    drawn = np.append(drawn, goal)
  figure, axes = blank(palette, height=2.3, above=0.2)
  set_scale(axes, 'y', _value_scale(drawn))
  # Just above the axes, whatever their scale.
  low, high = axes.get_ylim()
  if axes.get_yscale() == 'log':
    above = high * (high / low) ** 0.04
  else:
    above = high + 0.04 * (high - low)
  ticks, labels = parameter_ticks(parameter)
  inside = [u for u in x if math.isfinite(u)]
  axes.set_xlim(min(0, *inside) - 0.03, max(1, *inside) + 0.03)
  axes.set_xticks(ticks, labels, fontsize=SIZE)
  kinds = [point.kind for point in points]
  draw_marks(axes, kinds, x, np.where(fine, y, above), palette, color)
  if goal is not None:
    axes.axhline(goal, color=palette['ink'], linewidth=1, linestyle=':')
    explain(axes, 'goal', palette, linestyle=':')
  return figure


def _value_scale(values: np.ndarray) -> scales.Scale:
  values = values if values.size else np.array([0.0, 1.0])
  return scales.choose_scale(values, scales.LOSS)


def parameter_ticks(parameter: Parameter) -> tuple[list[float], list[str]]:
  """Where on [0, 1] the ticks of a metaparameter stand, and their labels.

  >>> parameter_ticks(Parameter('reverse_log', (0.9, 0.999)))[1]
  ['0.9', '0.97', '0.99', '0.997', '0.999']
  >>> parameter_ticks(Parameter('discrete', (0.0, 0.5)))
  ([0.25, 0.75], ['0', '0.5'])
  """
  low, high = parameter.values[0], parameter.values[-1]
  if parameter.scale == 'discrete':
    values = list(parameter.values)
  elif parameter.scale == 'log':
    values = scales.log_scale(low, high).ticks
  elif parameter.scale == 'reverse_log':
    values = [1 - t for t in scales.log_scale(1 - high, 1 - low).ticks][::-1]
  else:
    values = scales.linear_ticks(low, high)
    if parameter.scale == 'integer':
      values = [value for value in values if value % 1 == 0]
  if parameter.scale != 'discrete':
    values = [v for v in values if -0.01 <= place(parameter, v) <= 1.01]
  values = values[:: math.ceil(len(values) / 8) or 1]
  places = [parameter.place(value) for value in values]
  return places, [f'{value:.6g}' for value in values]
