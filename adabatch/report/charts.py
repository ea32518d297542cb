"""What the pictures of searches and studies share: axes, marks and keys."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from adabatch.report import scales
from adabatch.report.layout import Key
from adabatch.report.pictures import COLOR, LOOKS, dress

# A colour for each name in the style sheet: one of its palettes for a file of
# its own, or the stand-ins for a picture in the page.
Palette = Mapping[str, str]

WIDTH = 4.5  # inches; about a column of the page at its text's size
SIZE = 9  # points of all text
DASHED = LOOKS['dashed']['linestyle']

# How trials are drawn, those that matter most last. None: the series' colour.
MARKS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
  'incomplete': ('not finished', 'soft', {'marker': '+'}),
  'infeasible': ('diverged', 'bad', {'marker': 'x'}),
  'feasible': ('feasible', 'soft', {'fillstyle': 'none'}),
  'reached': ('goal reached', None, {}),
  'best': ('best', None, {'marker': '*', 'markersize': 11}),
}


def blank(
  palette: Palette, height: float = 2.6, above: float = 0.08
) -> tuple[Figure, Axes]:
  """A figure with one empty pair of axes and some inches above them."""
  height += above
  figure = Figure(figsize=(WIDTH, height))
  bottom = 0.44 / height
  axes = figure.add_axes((0.115, bottom, 0.85, 1 - bottom - above / height))
  dress(axes, palette)
  return figure, axes


def name_x(axes: Axes, label: str, palette: Palette) -> None:
  axes.set_xlabel(label, color=palette['ink'], labelpad=4, fontsize=SIZE)


def series_color(index: int, palette: Palette) -> str:
  return palette[f's{index % 6 + 1}']


def size_label(batch_size: int) -> str:
  """A power of two as one says it.

  >>> size_label(512), size_label(4096), size_label(2**20)
  ('512', '4k', '1M')
  """
  for unit, suffix in ((2**20, 'M'), (2**10, 'k')):
    if batch_size >= unit and batch_size % unit == 0:
      return f'{batch_size // unit}{suffix}'
  return str(batch_size)


def size_ticks(low: float, high: float) -> list[int]:
  """At most eight powers of two, evenly spaced.

  >>> size_ticks(11.3, 11585)
  [16, 64, 256, 1024, 4096]
  >>> size_ticks(43, 230)
  [64, 128]
  """
  first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
  return [2**k for k in range(first, last + 1, 1 + (last - first) // 8)]


def size_axis(axes: Axes, sizes: Sequence[int], palette: Palette) -> None:
  """Makes x the batch size, in octaves."""
  low, high = min(sizes), max(sizes)
  margin = max((high / low) ** 0.04, 2 ** (0.5 if high > low else 1.2))
  low, high = low / margin, high * margin
  ticks = size_ticks(low, high)
  axes.set_xscale('log', base=2)
  axes.set_xlim(low, high)
  axes.set_xticks(ticks, [size_label(tick) for tick in ticks], fontsize=SIZE)
  axes.minorticks_off()
  name_x(axes, 'batch size', palette)


def set_scale(axes: Axes, which: str, scale: scales.Scale) -> None:
  """Makes one axis what a scale says."""
  settings = {
    f'{which}scale': 'log' if scale.log else 'linear',
    f'{which}lim': (scale.low, scale.high),
  }
  axes.set(**settings)
  set_ticks = axes.set_xticks if which == 'x' else axes.set_yticks
  set_ticks(scale.ticks, scale.labels, fontsize=SIZE)
  axes.minorticks_off()


def log_axis(axes: Axes, which: str, values: Iterable[float]) -> None:
  """A logarithmic axis that holds all positive values; one at least."""
  set_scale(axes, which, log_scale_of(values))


def log_scale_of(values: Iterable[float]) -> scales.Scale:
  positive = [v for v in values if 0 < v < math.inf] or [1.0]
  return scales.log_scale(min(positive), max(positive))


def draw_marks(
  axes: Axes,
  kinds: Sequence[str],
  x: ArrayLike,
  y: ArrayLike,
  palette: Palette,
  color: str,
) -> None:
  """Draws trials as marks, one label for each kind."""
  x, y = np.array(x, float), np.array(y, float)
  for kind, (label, name, look) in MARKS.items():
    here = np.array([k == kind for k in kinds], bool)
    here &= np.isfinite(x) & np.isfinite(y)
    if not here.any():
      continue
    own = palette[name] if name else color
    style: dict[str, Any] = {
      'marker': 'o',
      'markersize': 4.5,
      'markeredgewidth': 1.1,
      'markeredgecolor': palette['ink'] if kind == 'best' else own,
    }
    style |= {'linestyle': 'none', 'color': own, 'clip_on': False} | look
    axes.plot(x[here], y[here], label=label, **style)


def _look(handle: Line2D) -> str:
  marks = {'o': 'dot', '^': 'arrow', '*': 'star', 'x': 'cross', '+': 'plus'}
  marks['_'] = ''  # a short line, as for lines
  if str(handle.get_linestyle()) == 'None':
    mark = marks.get(str(handle.get_marker()), 'dot')
    hollow = {'dot': 'ring', 'arrow': 'triangle'}
    return hollow.get(mark, mark) if handle.get_fillstyle() == 'none' else mark
  if handle.get_linewidth() > 4:
    return 'band'
  return {'--': 'dashed', ':': 'dotted'}.get(str(handle.get_linestyle()), '')


def keys_of(figure: Figure) -> list[Key]:
  """The keys of a figure in the page's colours, one for each label."""
  names = {color: name for name, color in COLOR.items()}
  keys: dict[str, Key] = {}
  for axes in figure.axes:
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
      assert isinstance(handle, Line2D)
      name = names[to_hex(handle.get_color())]
      opacity = handle.get_alpha() or 1.0
      keys.setdefault(label, Key(label, name, _look(handle), opacity))
  # What matters most comes first.
  order = [label for label, *_ in reversed(MARKS.values())]
  return sorted(
    keys.values(), key=lambda key: (*order, key.name).index(key.name)
  )


def explain(axes: Axes, label: str, palette: Palette, **look: Any) -> None:
  """Adds a key for what stands in the colour of each series."""
  axes.plot([], [], color=palette['ink'], label=label, **look)
