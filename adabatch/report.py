"""A run's directory in one page: `WORKDIR/report.html`.

The page is one self-contained file: pictures are inline SVG, there are no
scripts, fonts or images to fetch, so it opens offline, on a phone and years
later. It may be written at any time, of a finished run, of one that was killed
in the middle of a line, or of one that diverged.

    python -m adabatch.report WORKDIR
"""

from __future__ import annotations

import argparse
import html
import io
import itertools
import json
import math
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Record = dict[str, Any]

# The x axes of the page, in the order of the switch. With a moving batch size
# the three tell different stories: updates are the serial work, examples the
# total work, seconds what one waits for.
AXES = ('updates', 'examples', 'seconds')
DEFAULT_AXIS = 'examples'
RECORD_KEY = {'updates': 'update', 'examples': 'examples', 'seconds': 'seconds'}

MAX_POINTS = 2000  # of one line in one picture
MAX_MARKERS = 60  # a line with more points than this is drawn without markers
HUGE = 1e30  # treated as not finite: no axis is readable that reaches so far
EVAL_KEYS = frozenset(
  ('kind', 'update', 'examples', 'epoch', 'seconds', 'split', 'loss')
)
LOWER_IS_BETTER = frozenset(('loss', 'perplexity', 'error'))


# ---------------------------------------------------------------------------
# Reading what a run left behind


def read_metrics(
  workdir: str | os.PathLike[str],
) -> tuple[list[Record], list[Record]]:
  """Reads `WORKDIR/metrics.jsonl` into its train and its eval records.

  A last line that a killed process left unfinished is ignored. An unreadable
  line elsewhere is skipped with a warning, because it is not expected.

  Args:
    workdir: the directory of a run.

  Returns:
    `(train_records, eval_records)`, in the order of the file.

  Raises:
    FileNotFoundError: if the directory holds no `metrics.jsonl`.
  """
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} does not exist; give the directory of a run (its --workdir)'
    )
  records: dict[str, list[Record]] = {'train': [], 'eval': []}
  unreadable = []
  number = 0
  # A process can be killed between two bytes of one character.
  with open(path, encoding='utf-8', errors='replace') as lines:
    for number, line in enumerate(lines, start=1):
      if not line.strip():
        continue
      try:
        record = json.loads(line)
      except ValueError:
        record = None
      if not isinstance(record, dict):
        unreadable.append(number)
      elif record.get('kind') in records:
        records[record['kind']].append(record)
  for bad in unreadable:
    if bad != number:
      warnings.warn(f'{path}:{bad} is not a JSON record, skipped', stacklevel=2)
  return records['train'], records['eval']


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file; {} if there is none, or not yet a whole one."""
  try:
    value = json.loads(path.read_text(encoding='utf-8', errors='replace'))
  except (OSError, ValueError):
    return {}
  return value if isinstance(value, dict) else {}


def number(value: Any) -> float:
  """A JSON value as a float; NaN if it is not a number one could draw.

  >>> number(3), number(None), number('nan'), number(True), number(1e300)
  (3.0, nan, nan, nan, nan)
  """
  if isinstance(value, bool):
    return math.nan
  try:
    value = float(value)
  except (TypeError, ValueError, OverflowError):
    return math.nan
  return value if abs(value) < HUGE else math.nan


def column(records: Iterable[Record], key: str) -> np.ndarray:
  """One key of all records as a float array, NaN where it is not a number.

  >>> column([{'loss': 2.5}, {'loss': None}, {}], 'loss')
  array([2.5, nan, nan])
  """
  return np.array([number(record.get(key)) for record in records], float)


def flatten(tree: Any, prefix: str = '') -> dict[str, Any]:
  """Nested dicts as one dict with dotted keys.

  >>> flatten({'seed': 0, 'data': {'name': 'mnist'}})
  {'seed': 0, 'data.name': 'mnist'}
  """
  if not isinstance(tree, Mapping) or not tree:
    return {prefix: tree} if prefix else {}
  flat = {}
  for key, value in tree.items():
    flat.update(flatten(value, f'{prefix}.{key}' if prefix else str(key)))
  return flat


# ---------------------------------------------------------------------------
# Lines: smoothing and thinning


def smooth(
  values: np.ndarray, window: float, points: int = 1000
) -> np.ndarray:
  """Mean of the finite values around each record, about `window` of them.

  Centred, so that the line does not lag behind a falling loss. Near the first
  record, where a loss falls steeply, the window shrinks on both sides; at the
  last it is cut on one side, to end in a mean and not in one noisy value.

  Args:
    values: one value for each record.
    window: records in a mean.
    points: evaluated at about so many records, evenly spaced.

  Returns:
    An array like `values`; NaN where it was not evaluated and where the value
    itself is not finite.

  >>> smooth(np.array([9.0, 6.0, 0.0, np.nan, 3.0, 5.0]), window=3)
  array([ 9.,  5.,  3., nan,  4.,  4.])
  """
  smoothed = np.full(len(values), np.nan)
  finite = np.isfinite(values)
  last = len(values) - 1
  step = max(1, math.ceil(len(values) / points))
  for k in {*range(0, len(values), step), *([last] if last >= 0 else [])}:
    if finite[k]:
      half = min(int(window / 2), k)
      around = slice(k - half, k + half + 1)
      smoothed[k] = values[around][finite[around]].mean()
  return smoothed


def thin(
  x: np.ndarray, y: np.ndarray, points: int = MAX_POINTS
) -> tuple[np.ndarray, np.ndarray]:
  """Drops points that a picture cannot show, spikes are kept.

  Points that are not finite go first. Of the rest, if they are too many, each
  of points/4 equal intervals of x keeps its first, lowest, highest and last
  point: at one interval a pixel that is the same picture (the M4 aggregation,
  Jugel et al., VLDB 2014). Intervals of x, not of the index: when the batch
  size grows, a few late records cover most of the examples.

  >>> x = np.arange(10_000.0)
  >>> y = np.zeros(10_000)
  >>> y[4321] = 7
  >>> thin_x, thin_y = thin(x, y)
  >>> len(thin_x) <= 2000, thin_y.max(), thin_x[-1]
  (True, np.float64(7.0), np.float64(9999.0))
  """
  finite = np.isfinite(x) & np.isfinite(y)
  x, y = x[finite], y[finite]
  if len(x) <= points:
    return x, y
  order = np.argsort(x, kind='stable')
  x, y = x[order], y[order]
  bins = max(points // 4, 1)
  width = (x[-1] - x[0]) / bins or 1.0
  interval = np.minimum((x - x[0]) / width, bins - 1).astype(int)
  starts = np.flatnonzero(np.diff(interval, prepend=-1))
  keep = set()
  for start, end in itertools.pairwise([*starts.tolist(), len(x)]):
    part = y[start:end]
    extremes = int(part.argmin()), int(part.argmax())
    keep.update((start, *(start + offset for offset in extremes), end - 1))
  index = np.array(sorted(keep))
  return x[index], y[index]


# ---------------------------------------------------------------------------
# Numbers as text


def short(value: float) -> str:
  """A number for an axis, in as few characters as is sensible.

  >>> [short(v) for v in (0, 0.05, 64, 4096, 16384, 1e6, 2.5e9)]
  ['0', '0.05', '64', '4096', '16.4k', '1M', '2.5B']
  """
  for size, suffix in ((1e9, 'B'), (1e6, 'M'), (1e3, 'k')):
    if 1e4 <= abs(value) < 1e13 and abs(value) >= size:
      return f'{value / size:.3g}{suffix}'
  return f'{value:.4g}'


def tick_labels(ticks: Sequence[float]) -> list[str]:
  """Labels of evenly spaced ticks: all in one unit, as short as is exact.

  >>> tick_labels([0, 20_000, 40_000])
  ['0', '20k', '40k']
  >>> tick_labels([0.69314, 0.69315, 0.69316])
  ['0.69314', '0.69315', '0.69316']
  """
  largest = max((abs(tick) for tick in ticks), default=0)
  size, suffix = 1.0, ''
  for candidate in ((1e3, 'k'), (1e6, 'M'), (1e9, 'B')):
    # 2000, 4000, 6000 are read faster than 2k, 4k, 6k.
    if max(candidate[0], 1e4) <= largest < 1e13:
      size, suffix = candidate
  scaled = [tick / size for tick in ticks]
  spacing = scaled[1] - scaled[0] if len(scaled) > 1 else max(largest, 1.0)
  labels = []
  for digits in range(1, 16):
    labels = [f'{tick:.{digits}g}' for tick in scaled]
    errors = (
      abs(float(label) - tick)
      for label, tick in zip(labels, scaled, strict=True)
    )
    # `.1g` writes 20 as 2e+01: more digits also get rid of exponents.
    if max(errors, default=0) <= 0.01 * spacing and not (
      1 <= largest < 1e13 and any('e+' in label for label in labels)
    ):
      break
  return ['0' if float(label) == 0 else label + suffix for label in labels]


def quantity(value: Any, digits: int = 4) -> str:
  """A value for a person: counts with separators, others to some digits.

  >>> quantity(60000), quantity(0.88814), quantity(float('nan')), quantity(None)
  ('60,000', '0.8881', 'not finite', '–')
  """
  if value is None:
    return '–'
  if isinstance(value, int | float) and not isinstance(value, bool):
    if not math.isfinite(value):
      return 'not finite'
    if float(value).is_integer() and abs(value) < 1e15:
      return f'{int(value):,}'
    return f'{value:.{digits}g}'
  return str(value)


def duration(seconds: Any) -> str:
  """Seconds for a person.

  >>> [duration(s) for s in (0.25, 12.3, 754, 7_500, 200_000, None)]
  ['0.25 s', '12.3 s', '12 min 34 s', '2 h 05 min', '2 d 7 h', '–']
  """
  seconds = number(seconds)
  if not math.isfinite(seconds):
    return '–'
  if seconds < 60:
    return f'{seconds:.3g} s'
  whole = round(seconds)
  if whole < 3600:
    return f'{whole // 60} min {whole % 60:02d} s'
  if whole < 86400:
    return f'{whole // 3600} h {whole % 3600 // 60:02d} min'
  return f'{whole // 86400} d {whole % 86400 // 3600} h'


# ---------------------------------------------------------------------------
# Scales


class Scale(NamedTuple):
  """A y axis: where it starts and ends, its ticks and their labels."""

  log: bool
  low: float
  high: float
  ticks: list[float]
  labels: list[str]


class ScaleRule(NamedTuple):
  """When a y axis is logarithmic, and where it starts.

  Logarithmic if the highest value is more than `span` times the given quantile
  of the values. A quantile, not the minimum: one lucky batch with a loss of
  1e-8, or the last updates of a cosine decay, say nothing about the rest.
  """

  span: float
  quantile: float = 0.0
  from_zero: bool = False
  base: int = 10


def _log_ticks(low: float, high: float, base: int) -> list[float]:
  first = math.ceil(math.log(low, base) - 1e-9)
  last = math.floor(math.log(high, base) + 1e-9)
  decades = math.log10(high / low)
  if base == 10 and decades < 2.5:
    factors = (1, 2, 5) if decades < 1.8 else (1, 3)
    ticks = [
      factor * 10.0**exponent
      for exponent in range(first - 1, last + 1)
      for factor in factors
    ]
    return [tick for tick in ticks if low <= tick <= high]
  stride = max(1, math.ceil((last - first + 1) / 7))
  return [float(base) ** e for e in range(first, last + 1, stride)]


def choose_scale(values: np.ndarray, rule: ScaleRule) -> Scale:
  """The y axis for these values (finite, at least one).

  >>> choose_scale(np.array([64.0, 1024.0]), ScaleRule(span=4, base=2)).labels
  ['64', '128', '256', '512', '1024']
  >>> choose_scale(np.array([64.0, 128.0]), ScaleRule(4, from_zero=True)).labels
  ['0', '25', '50', '75', '100', '125']
  """
  low, high = float(values.min()), float(values.max())
  typical = float(np.quantile(values, rule.quantile))
  if typical > 0 and high / typical > rule.span:
    positive = values[values > 0]
    # Where the rule looks at a quantile, far outliers below may leave the
    # picture; those above never do, a spike is news.
    low = float(positive.min())
    if rule.quantile > 0:
      low = max(low, float(np.quantile(positive, 0.01)) / 10)
    margin = (high / low) ** 0.05
    low, high = low / margin, high * margin
    base = rule.base if high / low < 2**14 else 10
    ticks = _log_ticks(low, high, base)
    return Scale(True, low, high, ticks, [short(tick) for tick in ticks])
  if rule.from_zero and low >= 0:
    low, high = 0.0, (high or 1.0) * 1.08
  elif high - low <= 1e-12 * max(abs(high), abs(low)):
    pad = 0.1 * abs(high) or 0.5
    low, high = low - pad, high + pad
  else:
    margin = 0.05 * (high - low)
    low, high = low - margin, high + margin
  ticks = linear_ticks(low, high)
  return Scale(False, low, high, ticks, tick_labels(ticks))


def linear_ticks(low: float, high: float) -> list[float]:
  """At most seven round values from low to high.

  >>> linear_ticks(0, 102)
  [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
  """
  locator = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10])
  ticks = locator.tick_values(low, high)
  return [float(tick) for tick in ticks if low <= tick <= high]


def time_unit(seconds: float) -> tuple[float, str]:
  """The unit for a time axis that ends there, and its size in seconds.

  >>> time_unit(90), time_unit(3000), time_unit(86_400)
  ((1.0, 's'), (60.0, 'min'), (3600.0, 'h'))
  """
  if seconds <= 600:
    return 1.0, 's'
  return (60.0, 'min') if seconds <= 3 * 3600 else (3600.0, 'h')


# ---------------------------------------------------------------------------
# Panels: what is drawn, independent of the x axis


class Line(NamedTuple):
  """One line of a panel, with the x values of every axis."""

  name: str
  color: int  # 1-based, an entry of the page's palette
  x: Mapping[str, np.ndarray]
  y: np.ndarray
  steps: bool = False
  faint: bool = False
  dashed: bool = False


class Panel(NamedTuple):
  """One picture; it is drawn once for each x axis."""

  title: str
  unit: str
  lines: Sequence[Line]
  rule: ScaleRule
  note: str = ''
  limit: float | None = None
  # Where the run ends, so that all panels of a page share their x axis.
  end: Mapping[str, float] | None = None
  # The update, examples and seconds at which the loss stopped being finite.
  stop: Mapping[str, float] | None = None


def positions(records: Sequence[Record]) -> dict[str, np.ndarray]:
  """The x values of records for every axis."""
  return {axis: column(records, RECORD_KEY[axis]) for axis in AXES}


def last_positions(records: Sequence[Record]) -> dict[str, float]:
  """The largest x value of every axis, 0 without records.

  >>> last_positions([{'update': 3, 'examples': 96}, {'update': 2}])
  {'updates': 3.0, 'examples': 96.0, 'seconds': 0.0}
  """
  return {
    axis: max(x[np.isfinite(x)].tolist(), default=0.0)
    for axis, x in positions(records).items()
  }


def _missing(values: np.ndarray) -> str:
  count = int(np.count_nonzero(~np.isfinite(values)))
  if not count:
    return ''
  return f'{count:,} value{"s" * (count > 1)} not finite, not drawn'


def smoothing_window(records: int) -> float:
  """Records that a smoothed line averages: a fiftieth of the run.

  >>> smoothing_window(10), smoothing_window(5000)
  (1.0, 100.0)
  """
  return max(records / 50, 1.0)


def train_panels(
  records: Sequence[Record], max_batch_size: float | None
) -> list[Panel]:
  """Batch size, learning rate, training loss and, if known, noise scale."""
  x = positions(records)
  batch_size = column(records, 'batch_size')
  nominal = column(records, 'nominal_batch_size')
  loss = column(records, 'loss')
  panels = []

  seen = np.concatenate([batch_size, nominal])
  seen = seen[np.isfinite(seen)]
  note, limit = '', max_batch_size
  if limit and seen.size and limit > 8 * seen.max():
    # A line far above everything else would flatten the rest.
    note, limit = f'B_max = {quantity(limit)}, above the picture', None
  panels.append(
    Panel(
      'Batch size',
      'examples',
      (
        Line('nominal', 2, x, nominal, steps=True, dashed=True),
        Line('true', 1, x, batch_size, steps=True),
      ),
      ScaleRule(span=4, from_zero=True, base=2),
      note,
      limit,
    )
  )
  panels.append(
    Panel(
      'Effective learning rate',
      '',
      (Line('learning rate', 1, x, column(records, 'learning_rate')),),
      ScaleRule(span=20, quantile=0.25, from_zero=True),
    )
  )
  broken = np.flatnonzero(~np.isfinite(loss))
  stop = {a: float(x[a][broken[0]]) for a in AXES} if broken.size else None
  window = smoothing_window(len(records))
  lines = [Line('each record', 1, x, loss, faint=window > 1)]
  if window > 1:
    name = f'average of about {round(window):,} records'
    lines.append(Line(name, 1, x, smooth(loss, window)))
  panels.append(
    Panel(
      'Training loss',
      '',
      lines,
      ScaleRule(span=20, quantile=0.01),
      _missing(loss),
      stop=stop,
    )
  )
  if any('gradient_noise_scale' in record for record in records):
    noise = column(records, 'gradient_noise_scale')
    panels.append(
      Panel(
        'Gradient noise scale',
        'examples',
        (Line('estimate', 1, x, noise),),
        ScaleRule(span=4, quantile=0.05, from_zero=True),
        _missing(noise),
      )
    )
  return panels


def eval_panels(records: Sequence[Record]) -> list[Panel]:
  """Loss and every further metric, one line for each split."""
  by_split: dict[str, list[Record]] = {}
  metrics = ['loss']
  for record in records:
    by_split.setdefault(str(record.get('split', '')), []).append(record)
    metrics += [
      key for key in record if key not in EVAL_KEYS and key not in metrics
    ]
  x = {split: positions(part) for split, part in by_split.items()}
  panels = []
  for metric in metrics:
    y = {split: column(part, metric) for split, part in by_split.items()}
    lines = [
      Line(split, 1 + i % len(PALETTE), x[split], y[split])
      for i, split in enumerate(by_split)
    ]
    values = np.concatenate([*y.values(), np.empty(0)])
    if metric != 'loss' and not np.isfinite(values).any():
      continue  # not a number: a name or a remark
    title = 'Evaluation loss' if metric == 'loss' else f'Evaluation {metric}'
    rule = ScaleRule(span=20, quantile=0.01)
    panels.append(Panel(title, '', lines, rule, _missing(values)))
  return panels


# ---------------------------------------------------------------------------
# Drawing one panel as an SVG that fits into a page

# Matplotlib writes colours as hex. These stand for the page's own colours, so
# that one picture is legible on light, dark and paper.
INK, GRID = '#000001', '#000002'
PALETTE = {i: f'#0000{0x10 + i:02x}' for i in range(1, 7)}
CSS_COLORS = {INK: 'var(--ink)', GRID: 'var(--grid)'} | {
  color: f'var(--s{i})' for i, color in PALETTE.items()
}

RC: Any = {
  # Text stays text: it is small, follows the page's font and can be searched.
  'svg.fonttype': 'none',
  'svg.hashsalt': 'adabatch',
  'path.simplify': True,
  'font.family': ['DejaVu Sans'],  # for its metrics; the page has its own
  'font.size': 9,
}

_X_LABELS = {'updates': 'updates', 'examples': 'examples seen'}


def draw(panel: Panel, axis: str, prefix: str) -> str:
  """Draws a panel against one axis.

  Args:
    panel: what to draw.
    axis: one of `AXES`.
    prefix: starts every id in the SVG; unique in the page.

  Returns:
    An `<svg>` element, or '' if the panel has no finite point.
  """
  curves = []
  for line in panel.lines:
    x, y = thin(line.x[axis], line.y)
    if len(x):
      curves.append((line, x, y))
  if not curves:
    return ''
  values = np.concatenate([y for _, _, y in curves])
  if panel.limit:
    values = np.append(values, panel.limit)
  scale = choose_scale(values, panel.rule)
  end = max(float(x.max()) for _, x, _ in curves)
  end = max(end, panel.end[axis] if panel.end else 0.0)
  unit, label = 1.0, _X_LABELS.get(axis, '')
  if axis == 'seconds':
    unit, name = time_unit(end)
    label = f'training time ({name})'
  end = end / unit if end > 0 else 1.0

  with matplotlib.rc_context(RC):
    figure = Figure(figsize=(4.5, 2.6))
    axes = figure.add_axes((0.115, 0.17, 0.85, 0.80))
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    if scale.log:
      axes.set_yscale('log', nonpositive='mask')
    axes.set_xlim(0, end * 1.02)
    axes.set_ylim(scale.low, scale.high)
    x_ticks = linear_ticks(0, end * 1.02)
    axes.set_xticks(x_ticks, tick_labels(x_ticks))
    axes.set_yticks(scale.ticks, scale.labels)
    axes.minorticks_off()
    axes.tick_params(length=0, colors=INK, pad=4)
    axes.set_xlabel(label, color=INK, labelpad=4)
    axes.grid(axis='y', color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ('top', 'right', 'left'):
      axes.spines[side].set_visible(False)
    axes.spines['bottom'].set_color(GRID)
    if panel.limit:
      axes.axhline(panel.limit, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
    if panel.stop and math.isfinite(panel.stop[axis]):
      axes.axvline(
        panel.stop[axis] / unit, color=PALETTE[2], linewidth=1.2,
        linestyle=(0, (1, 2)),
      )
    for line, x, y in curves:
      axes.plot(
        x / unit, y,
        color=PALETTE[line.color],
        linewidth=0.8 if line.faint else 1.5,
        alpha=0.35 if line.faint else 1.0,
        linestyle=(0, (3, 1.5)) if line.dashed else '-',
        drawstyle='steps-post' if line.steps else 'default',
        marker='o' if len(x) <= MAX_MARKERS and not line.dashed else '',
        markersize=3,
        markeredgewidth=0,
        solid_joinstyle='round',
      )
    buffer = io.StringIO()
    figure.savefig(buffer, format='svg', metadata={'Date': None})
  described = f'{panel.title} against {label}'
  return embed_svg(buffer.getvalue(), prefix, described)


def embed_svg(svg: str, prefix: str, description: str) -> str:
  """Turns Matplotlib's SVG file into an element of an HTML page.

  Several such files number their ids alike, and in one page a duplicate would
  make a picture borrow another's clip path; so ids that something refers to
  get a prefix, and the others go. Metadata go too (they hold addresses),
  colours become the page's, coordinates keep two decimals.

  >>> embed_svg('<?xml?><svg width="9pt" viewBox="0 0 9 9"><g id="a">'
  ...           '<path id="b" d="M 1.23456 2 "/></g><use xlink:href="#b"/>'
  ...           '</svg>', 'p1-', 'A line')
  ... # doctest: +NORMALIZE_WHITESPACE
  '<svg role="img" aria-label="A line" viewBox="0 0 9 9"><g><path
  id="p1-b" d="M1.23 2"/></g><use href="#p1-b"/></svg>'
  """
  svg = svg[svg.index('<svg') :].strip()
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
  svg = re.sub(r'<!--.*?-->', '', svg, flags=re.DOTALL)
  svg = svg.replace('xlink:href=', 'href=')
  head, body = svg.split('>', 1)
  view = re.search(r'viewBox="[^"]*"', head)
  head = '<svg role="img" aria-label="{}" {}'.format(
    html.escape(description), view.group() if view else ''
  )
  used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
  body = re.sub(
    r' id="([^"]*)"',
    lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else '',
    body,
  )
  body = re.sub(r'(href="#|url\(#)', rf'\g<1>{prefix}', body)
  body = re.sub(
    r'(stroke|fill): (#[0-9a-f]{6})',
    lambda m: f'{m[1]}: {CSS_COLORS.get(m[2], m[2])}',
    body,
  )
  body = re.sub(r' d="([^"]*)"', lambda m: f' d="{_compact(m[1])}"', body)
  return head + '>' + re.sub(r'>\s+<', '><', body)


def _compact(path: str) -> str:
  """SVG path data with at most two decimals and no needless blanks."""
  path = re.sub(r'(\.\d\d)\d+', r'\1', path)
  return re.sub(r'\s*([A-Za-z])\s*', r'\1', ' '.join(path.split())).strip()


# ---------------------------------------------------------------------------
# The page

STYLE = """
:root { --paper: #fff; --card: #f6f7f9; --ink: #23272f; --soft: #5d6673;
  --grid: #d5dae1; --s1: #1f65c8; --s2: #d35312; --s3: #1b8a5a;
  --s4: #8b46b5; --s5: #927000; --s6: #b81b5c; --good: #1b8a5a;
  --bad: #c0271d; }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #14171c; --card: #1e232b; --ink: #e4e8ee; --soft: #a2acba;
    --grid: #3a424e; --s1: #6ea8ff; --s2: #ff9a5c; --s3: #5fd3a0;
    --s4: #cf9bf0; --s5: #e0c04c; --s6: #ff85b3; --good: #5fd3a0;
    --bad: #ff8b80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 72rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.45 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.2;
  overflow-wrap: anywhere; }
h2 { margin: 0; font-size: 1rem; }
.subtitle, .note, .unit { color: var(--soft); }
.subtitle { margin: .2rem 0 1rem; overflow-wrap: anywhere; }
.status { font-size: .85rem; font-weight: 600; white-space: nowrap;
  padding: .1rem .6rem; border: 1.5px solid; border-radius: 1rem;
  vertical-align: .25em; color: var(--soft); }
.status.good { color: var(--good); }
.status.bad { color: var(--bad); }
.tiles { display: grid; gap: .6rem; margin: 0 0 .6rem;
  grid-template-columns: repeat(auto-fit, minmax(8.2rem, 1fr)); }
.tiles div { background: var(--card); border-radius: .5rem;
  padding: .5rem .7rem; }
.tiles dt { font-size: .8rem; color: var(--soft); overflow-wrap: anywhere; }
.tiles dd { margin: 0; font-size: 1.15rem; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.tiles small { display: block; font-size: .8rem; font-weight: 400;
  color: var(--soft); }
.target { margin: 0 0 .6rem; }
.pictures { margin-top: 1.4rem; }
.pictures > input { position: absolute; opacity: 0; }
.pictures > .against { color: var(--soft); margin-right: .3rem; }
.pictures > label { display: inline-block; padding: .25rem .7rem;
  border: 1px solid var(--grid); border-radius: 1rem; cursor: pointer; }
.pictures > input:checked + label { background: var(--ink);
  color: var(--paper); border-color: var(--ink); }
.pictures > input:focus-visible + label { outline: 2px solid var(--s1);
  outline-offset: 2px; }
.axis { display: none; gap: 1.6rem 2rem; margin-top: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
#x-updates:checked ~ .by-updates, #x-examples:checked ~ .by-examples,
#x-seconds:checked ~ .by-seconds { display: grid; }
figure { margin: 0; min-width: 0; break-inside: avoid;
  display: flex; flex-direction: column; justify-content: space-between; }
figcaption { margin-bottom: .3rem; overflow-wrap: anywhere; }
figcaption h2 { display: inline; }
.keys { display: flex; flex-wrap: wrap; gap: 0 1rem; font-size: .85rem; }
.key::before { content: ''; display: inline-block; width: 1.3em;
  margin-right: .4em; vertical-align: .25em;
  border-top: 3px solid currentColor; }
.key span { color: var(--ink); }
.key.dashed::before { border-top-style: dashed; border-top-width: 2px; }
.key.dotted::before { border-top-style: dotted; border-top-width: 2px; }
.key.faint::before { opacity: .4; }
.c0 { color: var(--ink); } .c1 { color: var(--s1); } .c2 { color: var(--s2); }
.c3 { color: var(--s3); } .c4 { color: var(--s4); } .c5 { color: var(--s5); }
.c6 { color: var(--s6); }
.note { font-size: .85rem; }
.empty { padding: 3rem 1rem; text-align: center; color: var(--soft);
  background: var(--card); border-radius: .5rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto,
  sans-serif !important; }
details { margin-top: 1.4rem; }
summary { cursor: pointer; font-weight: 600; }
table { border-collapse: collapse; margin-top: .5rem; width: 100%;
  font-size: .9rem; }
th, td { text-align: left; padding: .2rem .6rem .2rem 0;
  border-bottom: 1px solid var(--grid); vertical-align: top;
  overflow-wrap: anywhere; font-weight: 400; }
th { color: var(--soft); width: 45%; }
@media print {
  body { padding: 0; max-width: none; font-size: 10pt; }
  .pictures > label, .pictures > .against { display: none; }
  .axis { grid-template-columns: 1fr 1fr; }
  .tiles { grid-template-columns: repeat(auto-fit, minmax(6rem, 1fr)); }
  .tiles div { border: 1px solid var(--grid); padding: .3rem .5rem; }
  .tiles dd { font-size: 1rem; }
}
"""

GOOD = frozenset(('completed', 'target_reached'))


def best_and_final(
  records: Sequence[Record],
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
  """`best` and `final` of an unfinished run, from its eval records.

  >>> best_and_final([{'split': 'test', 'loss': 1.5, 'accuracy': 0.5},
  ...                 {'split': 'test', 'loss': 2.0, 'accuracy': 0.6}])
  ({'test': {'loss': 1.5, 'accuracy': 0.6}}, \
{'test': {'loss': 2.0, 'accuracy': 0.6}})
  """
  best: dict[str, dict[str, Any]] = {}
  final: dict[str, dict[str, Any]] = {}
  for record in records:
    split = str(record.get('split', ''))
    for metric in record:
      value = number(record[metric])
      if (metric in EVAL_KEYS and metric != 'loss') or math.isnan(value):
        continue
      final.setdefault(split, {})[metric] = value
      better = min if metric in LOWER_IS_BETTER else max
      scores = best.setdefault(split, {})
      scores[metric] = better(scores.get(metric, value), value)
  return best, final


class Facts(NamedTuple):
  """What the head of the page says."""

  status: str
  updates: Any
  examples: Any
  seconds: Any
  best: Mapping[str, Any]
  final: Mapping[str, Any]


def gather_facts(
  summary: Mapping[str, Any],
  train_records: Sequence[Record],
  eval_records: Sequence[Record],
) -> Facts:
  """From the summary if it describes these records, else from the records.

  A run that was preempted and resumed still has its old summary, until it ends
  again; its metrics are then further than the summary says.
  """
  records = [*train_records[-1:], *eval_records[-1:]]
  reached = {
    axis: max((number(r.get(key)) for r in records), default=math.nan)
    for axis, key in RECORD_KEY.items()
  }
  reached = {k: None if math.isnan(v) else v for k, v in reached.items()}
  stale = number(summary.get('updates')) < (reached['updates'] or 0)
  best, final = best_and_final(eval_records)
  if summary and not stale:
    kept = {'best': best, 'final': final}
    for name in kept:
      if isinstance(summary.get(name), Mapping) and summary[name]:
        kept[name] = summary[name]
    reached |= {axis: summary[axis] for axis in AXES if axis in summary}
    return Facts(str(summary.get('status', 'unknown')), **reached, **kept)
  status = 'unfinished'
  if stale:
    status = f'resumed after {summary.get("status", "a stop")}'
  return Facts(status, **reached, best=best, final=final)


def _tile(name: str, value: str, small: str = '') -> str:
  small = f'<small>{html.escape(small)}</small>' if small else ''
  return (
    f'<div><dt>{html.escape(name)}</dt>'
    f'<dd>{html.escape(value)}{small}</dd></div>'
  )


def _head(
  name: str,
  summary: Mapping[str, Any],
  config: Mapping[str, Any],
  facts: Facts,
) -> list[str]:
  flat = flatten(config)
  keys = ('data.name', 'model.name', 'optimizer.name', 'controller.name')
  parts = [str(flat[key]) for key in keys if flat.get(key)]
  mood = 'good' if facts.status in GOOD else ''
  mood = 'bad' if facts.status == 'diverged' else mood
  page = [
    f'<h1>{html.escape(name)} <span class="status {mood}">'
    f'{html.escape(facts.status.replace("_", " "))}</span></h1>',
    f'<p class="subtitle">{html.escape(" · ".join(parts))}</p>',
  ]
  tiles = []
  # Metrics before losses, as they are what a run is for.
  for split, scores in facts.best.items():
    if not isinstance(scores, Mapping):
      continue
    last = facts.final.get(split)
    last = last if isinstance(last, Mapping) else {}
    for metric in sorted(scores, key=lambda metric: metric == 'loss'):
      tiles.append(
        _tile(
          f'best {split} {metric}',
          quantity(scores[metric]),
          f'final {quantity(last.get(metric))}',
        )
      )
  rest = [
    _tile('updates', quantity(facts.updates)),
    _tile(
      'examples',
      quantity(facts.examples),
      f'{quantity(summary["epochs"])} epochs' if 'epochs' in summary else '',
    ),
    _tile('training time', duration(facts.seconds)),
  ]
  if 'compilations' in summary:
    rest.append(
      _tile(
        'compilations',
        quantity(summary['compilations']),
        duration(summary.get('compile_seconds')),
      )
    )
  if 'stall_seconds' in summary:
    rest.append(
      _tile('waited for compiling', duration(summary['stall_seconds']))
    )
  page.append(f'<dl class="tiles">{"".join(tiles + rest)}</dl>')
  page += _target(summary.get('target'))
  return page


def _target(target: Any) -> list[str]:
  if not isinstance(target, Mapping) or not target.get('metric'):
    return []
  text = f'Target {target["metric"]} {quantity(target.get("value"))}: '
  if target.get('reached'):
    text += (
      f'reached after {quantity(target.get("updates"))} updates, '
      f'{quantity(target.get("examples"))} examples, '
      f'{duration(target.get("seconds"))}.'
    )
  else:
    text += 'not reached.'
  return [f'<p class="target">{html.escape(text)}</p>']


def _key(name: str, kind: str) -> str:
  return f'<span class="key {kind}"><span>{html.escape(name)}</span></span>'


def _figure(panel: Panel, axis: str, prefix: str) -> str:
  picture = draw(panel, axis, prefix)
  keys = []
  if not picture:
    panel = panel._replace(lines=(), limit=None, stop=None)
  if len(panel.lines) > 1 or panel.limit:
    for line in panel.lines:
      kind = f'c{line.color}' + ' dashed' * line.dashed + ' faint' * line.faint
      keys.append(_key(line.name, kind))
  elif panel.title.startswith('Evaluation'):
    keys = [_key(line.name, f'c{line.color}') for line in panel.lines]
  if panel.limit:
    keys.append(_key(f'B_max = {quantity(panel.limit)}', 'c0 dotted'))
  if panel.stop:
    keys.append(_key('first loss that is not finite', 'c2 dotted'))
  unit = f' <span class="unit">({panel.unit})</span>' if panel.unit else ''
  note = f'<div class="note">{html.escape(panel.note)}</div>'
  return (
    f'<figure><figcaption><h2>{html.escape(panel.title)}</h2>{unit}'
    f'<div class="keys">{"".join(keys)}</div>{note if panel.note else ""}'
    '</figcaption>'
    + (picture or '<p class="empty">nothing to draw yet</p>')
    + '</figure>'
  )


def _pictures(panels: Sequence[Panel]) -> list[str]:
  page = ['<section class="pictures" aria-label="Pictures">']
  page.append('<span class="against">against</span>')
  # Inputs and pictures are siblings: then the switch needs no script.
  for axis in AXES:
    checked = ' checked' if axis == DEFAULT_AXIS else ''
    page.append(
      f'<input type="radio" name="x" id="x-{axis}"{checked}>'
      f'<label for="x-{axis}">{axis}</label>'
    )
  for axis in AXES:
    page.append(f'<div class="axis by-{axis}">')
    page += [
      _figure(panel, axis, f'{axis}{i}-') for i, panel in enumerate(panels)
    ]
    page.append('</div>')
  page.append('</section>')
  return page


def _table(title: str, tree: Mapping[str, Any]) -> list[str]:
  rows = [
    f'<tr><th scope="row">{html.escape(key)}</th>'
    f'<td>{html.escape(_plain(value))}</td></tr>'
    for key, value in flatten(tree).items()
  ]
  if not rows:
    return []
  return [
    f'<details><summary>{html.escape(title)}</summary>'
    f'<table>{"".join(rows)}</table></details>'
  ]


def _plain(value: Any) -> str:
  if isinstance(value, str):
    return value
  return json.dumps(value, ensure_ascii=False)


def max_batch_size(config: Mapping[str, Any]) -> float | None:
  """B_max of a run's config, None if it is not there or no limit.

  >>> max_batch_size({'controller': {'max_batch_size': 4096}})
  4096.0
  >>> max_batch_size({})
  """
  value = number(flatten(config).get('controller.max_batch_size'))
  return value if value > 0 else None


def build_page(
  name: str,
  train_records: Sequence[Record],
  eval_records: Sequence[Record],
  summary: Mapping[str, Any],
  config: Mapping[str, Any],
) -> str:
  """The whole page; pure, and the same text for the same run."""
  facts = gather_facts(summary, train_records, eval_records)
  panels = train_panels(train_records, max_batch_size(config))
  panels += eval_panels(eval_records)
  end = last_positions([*train_records, *eval_records])
  panels = [panel._replace(end=end) for panel in panels]
  title = html.escape(name)
  page = [
    '<!DOCTYPE html>',
    '<html lang="en"><head><meta charset="utf-8">',
    # The page needs nothing from elsewhere; this makes the browser see to it.
    '<meta http-equiv="Content-Security-Policy" '
    'content="default-src \'none\'; style-src \'unsafe-inline\'">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    '<meta name="color-scheme" content="light dark">',
    f'<title>{title} – adabatch</title><style>{STYLE}</style></head><body>',
    *_head(name, summary, config, facts),
    *_pictures(panels),
    *_table('Summary', summary),
    *_table('Config', config),
    '</body></html>',
  ]
  return '\n'.join(page) + '\n'


def write_report(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes `WORKDIR/report.html` from what the run has left there so far.

  Needs `metrics.jsonl`; uses `summary.json` and `config.json` if they are
  there. A reader sees the old page or the new one, never a half of it.

  Args:
    workdir: the directory of a run.

  Returns:
    The path of the page.

  Raises:
    FileNotFoundError: if the directory holds no `metrics.jsonl`.
  """
  workdir = pathlib.Path(workdir)
  train_records, eval_records = read_metrics(workdir)
  page = build_page(
    workdir.resolve().name,
    train_records,
    eval_records,
    _read_json(workdir / 'summary.json'),
    _read_json(workdir / 'config.json'),
  )
  path = workdir / 'report.html'
  temporary = workdir / f'.report.html.{os.getpid()}'
  try:
    # A torn record may have left half a surrogate pair: never fail on it.
    temporary.write_text(page, encoding='utf-8', errors='replace')
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
  return path


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    prog='python -m adabatch.report',
    description="Write a run's report.html from its metrics.",
  )
  parser.add_argument('workdir', help='directory with a metrics.jsonl')
  arguments = parser.parse_args(argv)
  try:
    path = write_report(arguments.workdir)
  except OSError as error:
    print(f'adabatch.report: {error}', file=sys.stderr)
    return 2
  print(path)
  return 0


if __name__ == '__main__':
  sys.exit(main())
