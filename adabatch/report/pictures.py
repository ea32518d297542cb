"""One panel as an SVG element that fits into a page."""

import html
import io
import math
import re
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adabatch.report import scales
from adabatch.report.lines import since_start, thin
from adabatch.report.panels import Panel
from adabatch.report.style import LIGHT

SIZE = (4.5, 2.6)  # inches of a picture
MAX_MARKERS = 60  # a line with more points than this is drawn without markers

# Matplotlib writes colours as hex. These stand for the page's own colours, so
# that one picture is legible on light, dark and paper.
COLOR = {name: f'#0000{i:02x}' for i, name in enumerate(LIGHT, start=1)}
CSS_COLORS = {color: f'var(--{name})' for name, color in COLOR.items()}
INK, GRID = COLOR['ink'], COLOR['grid']
DOTTED: Any = (0, (1, 2))
LOOKS: dict[str, Any] = {
  '': {},
  'dashed': {'linestyle': (0, (3, 1.5))},
  'dotted': {'linestyle': DOTTED},
  'faint': {'linewidth': 0.8, 'alpha': 0.35},
  'thin': {'linewidth': 1.0, 'alpha': 0.75},  # one of several alike
}
RC: Any = {
  # Text stays text: it is small, follows the page's font and can be searched.
  'svg.fonttype': 'none',
  'svg.hashsalt': 'adabatch',
  'font.family': ['DejaVu Sans'],  # for its metrics; the page has its own
  'font.size': 9,
  'lines.markersize': 3,
  'lines.markeredgewidth': 0,
}


def draw(
  panel: Panel,
  axis: str,
  end: float,
  prefix: str,
  *,
  start: float = 0.0,
  size: tuple[float, float] = SIZE,
  markers: int = MAX_MARKERS,
) -> str:
  """Draws a panel against one axis.

  Args:
    panel: what to draw.
    axis: one of `AXES`.
    end: where the run ends; all panels of a page share their x axis.
    prefix: starts every id in the SVG; unique in the page.
    start: where the x axis starts; above 0 it is logarithmic.
    size: in inches; the page shows it as wide as its column is.
    markers: a line with more points than this is drawn without them.

  Returns:
    An `<svg>` element, or '' if the panel has no finite point.
  """
  curves = [(line, *thin(line.x[axis], line.y)) for line in panel.lines]
  values = np.concatenate([np.empty(0), *(y for _, _, y in curves)])
  if not values.size:
    return ''
  if panel.floor is not None:
    values = values[values >= panel.floor]
  if panel.limit:
    values = np.append(values, panel.limit)
  scale = scales.choose_scale(values, panel.rule)
  unit, label = 1, {'examples': 'examples seen'}.get(axis, axis)
  if axis == 'seconds':
    unit, name = (60, 'min') if end > 600 else (1, 's')
    unit, name = (3600, 'h') if end > 3 * 3600 else (unit, name)
    label = f'training time ({name})'

  with matplotlib.rc_context(RC):
    figure, axes = _empty(size)
    if scale.log:
      axes.set_yscale('log', nonpositive='mask')
    _set_x(axes, start / unit, end / unit)
    axes.set_ylim(scale.low, scale.high)
    axes.set_yticks(scale.ticks, scale.labels)
    axes.minorticks_off()
    axes.set_xlabel(label, color=INK, labelpad=4)
    if panel.limit:
      axes.axhline(panel.limit, color=INK, linewidth=0.9, linestyle=DOTTED)
    if panel.stop and math.isfinite(panel.stop[axis]):
      stop = panel.stop[axis] / unit
      axes.axvline(stop, color=COLOR['s2'], linewidth=1.2, linestyle=DOTTED)
    for line, x, y in curves:
      looks = line.look.split()
      marked = len(x) <= markers and not {'dashed', 'dotted'} & {*looks}
      marked = marked or len(x) == 1
      if line.steps:
        x, y = since_start(x, y)
      axes.plot(
        x / unit,
        y,
        color=COLOR[line.color],
        drawstyle='steps-pre' if line.steps else 'default',
        marker='o' if marked else '',
        **{k: v for look in looks for k, v in LOOKS[look].items()},
      )
  return to_svg(figure, prefix, f'{panel.title} against {label}')


def _empty(size: tuple[float, float]) -> tuple[Figure, Axes]:
  """A figure whose axes leave the room that labels need, whatever its size."""
  width, height = size
  figure = Figure(figsize=size)
  axes = figure.add_axes(
    (0.52 / width, 0.44 / height, 1 - 0.68 / width, 1 - 0.52 / height)
  )
  dress(axes, COLOR)
  return figure, axes


def _set_x(axes: Axes, start: float, end: float) -> None:
  if start > 0:
    scale = scales.log_scale(start, max(end, start))
    # What holds from the start begins at 0: at the edge of the picture.
    axes.set_xscale('log', nonpositive='clip')
    axes.set_xlim(scale.low, scale.high)
    axes.set_xticks(scale.ticks, scale.labels)
    return
  end = 1.02 * (end or 1.0)
  ticks = scales.linear_ticks(0, end)
  axes.set_xlim(0, end)
  axes.set_xticks(ticks, scales.tick_labels(ticks))


def dress(axes: Axes, palette: Mapping[str, str]) -> None:
  """Nothing but horizontal lines, in the palette's colours, on no ground."""
  axes.patch.set_visible(False)
  axes.tick_params(length=0, colors=palette['ink'], pad=4)
  axes.grid(axis='y', color=palette['grid'], linewidth=0.7)
  axes.set_axisbelow(True)
  axes.spines[['top', 'right', 'left']].set_visible(False)
  axes.spines['bottom'].set_color(palette['grid'])


def to_svg(figure: Figure, prefix: str, description: str) -> str:
  """A figure drawn in the colours `COLOR` as an element of a page."""
  figure.patch.set_visible(False)
  buffer = io.StringIO()
  with matplotlib.rc_context(RC):
    figure.savefig(buffer, format='svg', metadata={'Date': None})
  return embed_svg(buffer.getvalue(), prefix, description)


def embed_svg(svg: str, prefix: str, description: str) -> str:
  """Turns Matplotlib's SVG file into an element of an HTML page.

  Several such files number their ids alike, and in one page a duplicate would
  make a picture borrow another's clip path, so ids get a prefix. Metadata go
  (they hold addresses), colours become the page's, coordinates keep two
  decimals.

  >>> embed_svg('<?xml?><svg width="9pt" viewBox="0 0 9 9"><path id="b" '
  ...           'd="M 1.23456 2 "/><use xlink:href="#b"/></svg>', 'p1-', 'A')
  ... # doctest: +NORMALIZE_WHITESPACE
  '<svg role="img" aria-label="A" viewBox="0 0 9 9"><path id="p1-b"
  d="M1.23 2"/><use href="#p1-b"/></svg>'
  """

  def compact(path: re.Match[str]) -> str:
    two_decimals = re.sub(r'(\.\d\d)\d+', r'\1', path[0])
    return re.sub(r'\s*([A-Zz"])\s*', r'\1', two_decimals)

  (view_box,) = re.findall(r'viewBox="[^"]*"', svg)
  body = re.split(r'<svg[^>]*>', svg)[1].replace('xlink:href=', 'href=')
  body = re.sub(r'<metadata>.*?</metadata>|<!--.*?-->', '', body, flags=re.S)
  body = re.sub(r'( id="|href="#|url\(#)', rf'\g<1>{prefix}', body)
  body = re.sub(r'(?<= d=)"[^"]*"', compact, body)
  for color, css in CSS_COLORS.items():
    body = body.replace(f': {color}', f': {css}')
  body = re.sub(r'>\s+<', '><', body).strip()
  label = f'aria-label="{html.escape(description)}"'
  return f'<svg role="img" {label} {view_box}>{body}'
