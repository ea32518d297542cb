"""What the pictures of a page show, independent of their x axis."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adabatch.report import scales
from adabatch.report.lines import smooth
from adabatch.report.records import (
  NOT_METRICS,
  Record,
  Records,
  column,
  has,
  positions,
  set_column,
)
from adabatch.report.style import SERIES


class Line(NamedTuple):
  """One line of a panel; values that are not finite are not drawn."""

  name: str  # for the key; '' for none
  color: str  # one of SERIES
  x: Mapping[str, np.ndarray]  # for every axis
  y: np.ndarray
  look: str = ''  # 'dashed', 'dotted', 'faint', 'thin', or several of them
  steps: bool = False  # a value holds since the one before


class Panel(NamedTuple):
  """One picture; it is drawn once for each x axis."""

  title: str
  unit: str
  lines: Sequence[Line]
  rule: scales.ScaleRule
  note: str = ''
  limit: float | None = None  # B_max, a horizontal line
  # Where the loss stopped being finite on every axis, a vertical line.
  stop: Mapping[str, float] | None = None
  floor: float | None = None  # what is lower leaves the picture


def _missing(values: np.ndarray) -> str:
  count = int(np.count_nonzero(~np.isfinite(values)))
  return f'values not finite, not drawn: {count:,}' if count else ''


def train_panels(records: Records, max_batch_size: float) -> list[Panel]:
  """Batch size, learning rate, training loss and, if known, noise scale.

  `max_batch_size` is NaN if there is none.
  """
  x = positions(records)
  batch_size = set_column(records, 'batch_size')
  nominal = column(records, 'nominal_batch_size')
  loss = column(records, 'loss')

  note, limit = '', max_batch_size if max_batch_size > 0 else None
  largest = max(np.nanmax(x, initial=0) for x in (batch_size, nominal))
  if limit and 0 < 8 * largest < limit:
    # A line far above everything else would flatten the rest.
    note, limit = f'B_max = {limit:,.0f}, above the picture', None
  sizes = (
    Line('nominal', 's2', x, nominal, 'dashed', steps=True),
    Line('true', 's1', x, batch_size, steps=True),
  )

  rate = (Line('', 's1', x, set_column(records, 'learning_rate'), steps=True),)
  rate_rule = scales.ScaleRule(span=20, quantile=0.25, from_zero=True)

  window = len(records) / 50
  losses = [Line('', 's1', x, loss)]
  if window > 1:
    name = f'average of about {round(window):,} records'
    losses = [
      Line('each record', 's1', x, loss, 'faint'),
      Line(name, 's1', x, smooth(loss, window)),
    ]
  broken = np.flatnonzero(~np.isfinite(loss))
  stop = {a: float(x[a][broken[0]]) for a in x} if broken.size else None

  panels = [
    Panel('Batch size', 'examples', sizes, scales.BATCH_SIZE, note, limit),
    Panel('Effective learning rate', '', rate, rate_rule),
    Panel('Training loss', '', losses, scales.LOSS, _missing(loss), stop=stop),
  ]
  if has(records, 'gradient_noise_scale'):
    noise = column(records, 'gradient_noise_scale')
    lines = (Line('', 's1', x, noise),)
    rule = scales.ScaleRule(span=4, quantile=0.05, from_zero=True)
    panels.append(
      Panel('Gradient noise scale', 'examples', lines, rule, _missing(noise))
    )
  return panels


def eval_panels(records: Sequence[Record]) -> list[Panel]:
  """Loss and every further metric, one line for each split."""
  by_split: dict[str, list[Record]] = {}
  for record in records:
    by_split.setdefault(str(record.get('split', '')), []).append(record)
  x = {split: positions(part) for split, part in by_split.items()}
  panels = []
  # A dict keeps the order in which they appear.
  for metric in {'loss': None} | {key: None for r in records for key in r}:
    lines = [
      Line(split, SERIES[i % len(SERIES)], x[split], column(part, metric))
      for i, (split, part) in enumerate(by_split.items())
    ]
    values = np.concatenate([np.empty(0), *(line.y for line in lines)])
    # What is never a number is a name or a remark.
    if metric == 'loss' or (
      metric not in NOT_METRICS and np.isfinite(values).any()
    ):
      title = f'Evaluation {metric}'
      panels.append(Panel(title, '', lines, scales.LOSS, _missing(values)))
  return panels
