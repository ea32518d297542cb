"""The page that compares runs: what differs, and what it bought."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from adabatch.report import scales
from adabatch.report.compared import DONE, Group, Run, differing, groups_of
from adabatch.report.equal_metric import (
  Milestone,
  amount,
  bests,
  common_split,
  metrics_of,
  milestone,
  sentence,
  with_unit,
)
from adabatch.report.layout import (
  EMPTY,
  Key,
  document,
  figure,
  key_span,
  quantity,
  table,
)
from adabatch.report.lines import smooth
from adabatch.report.panels import Line, Panel
from adabatch.report.pictures import draw
from adabatch.report.records import (
  AXES,
  Records,
  column,
  lower_is_better,
  number,
  positions,
  set_column,
)
from adabatch.report.style import SERIES

SMALL = (3.4, 2.3)  # inches: three pictures stand side by side
MARKERS = 12  # more would hide the lines of the other runs
ZOOM = 6  # times the range of the best values is seen below it
MOST_NAMED = 4  # groups in a line of text
FAR = 20.0  # times as long as the shortest run: the x axis is logarithmic
LOOKS = ('', 'dashed', 'dotted')
# Runs part where their losses are low.
LOSS = scales.LOSS._replace(span=4)


class _Style:
  """A colour for each group; lines of runs that are alike are thinner."""

  def __init__(self, runs: Sequence[Run], groups: Sequence[Group]):
    self.keys: list[Key] = []
    self.lines = [Key('', SERIES[0])] * len(runs)
    for i, group in enumerate(groups):
      color = SERIES[i % len(SERIES)]
      look = LOOKS[i // len(SERIES) % len(LOOKS)]
      members = [runs[k] for k in group.members]
      states = {_status(run) for run in members} - DONE
      remark = f' – {", ".join(sorted(states))}' if states else ''
      self.keys.append(Key(f'{group.name()}{remark}', color, look))
      thin = f'{look} thin'.strip() if len(members) > 1 else look
      for k in group.members:
        self.lines[k] = Key(runs[k].label, color, thin)

  def line(self, i: int, records: Records, y: Any, **more: Any) -> Line:
    key = self.lines[i]
    return Line('', key.color, positions(records), y, key.look, **more)


def _status(run: Run) -> str:
  return str(run.known['status'])


def _split_panels(runs: Sequence[Run], style: _Style) -> Iterator[Panel]:
  """Each metric of each split that was evaluated; held-out ones first."""
  splits = dict.fromkeys(
    [run.held_out for run in runs if run.held_out is not None]
    + [str(r.get('split', '')) for run in runs for r in run.evaluations]
  )
  for split in splits:
    for metric in metrics_of(runs, split):
      lines = []
      for i, run in enumerate(runs):
        records = [r for r in run.evaluations if r.get('split', '') == split]
        lines.append(style.line(i, records, column(records, metric)))
      floor = _floor(runs, split, metric)
      low = np.concatenate([line.y for line in lines])
      note = ''
      if floor is not None and (low < floor).any():
        note = f'without what is below {quantity(floor)}'
      yield Panel(f'{split} {metric}', '', lines, LOSS, note, floor=floor)


def _floor(runs: Sequence[Run], split: str, metric: str) -> float | None:
  """Where a picture starts in which one is to see by how much runs differ.

  A loss has a logarithmic axis instead.
  """
  best = [
    value
    for run, value in zip(runs, bests(runs, split, metric), strict=True)
    if math.isfinite(value) and not run.diverged
  ]
  if lower_is_better(metric) or len(set(best)) < 2:
    return None
  return min(best) - ZOOM * (max(best) - min(best))


def _training_panel(runs: Sequence[Run], style: _Style) -> Panel:
  lines = []
  for i, run in enumerate(runs):
    loss = column(run.train, 'loss')
    # Single batches would hide each other.
    y = smooth(loss, max(len(loss) / 50, 1.0))
    lines.append(style.line(i, run.train, y))
  note = 'of batches; long runs as averages over a fiftieth of their records'
  return Panel('training loss', '', lines, LOSS, note)


def _set_panels(runs: Sequence[Run], style: _Style) -> list[Panel]:
  """What is set for an update: batch size and learning rate."""
  panels = []
  rate = scales.ScaleRule(span=20, quantile=0.25, from_zero=True)
  for title, unit, key, rule in (
    ('batch size', 'examples', 'batch_size', scales.BATCH_SIZE),
    ('effective learning rate', '', 'learning_rate', rate),
  ):
    lines = [
      style.line(i, run.train, set_column(run.train, key), steps=True)
      for i, run in enumerate(runs)
    ]
    panels.append(Panel(title, unit, lines, rule))
  return panels


def _starts(runs: Sequence[Run]) -> dict[str, float]:
  """Where each x axis starts: above 0, so logarithmic, if lengths differ much.

  Otherwise short runs would be a line at the edge.
  """
  starts = {}
  for axis in AXES:
    ends = [run.end[axis] for run in runs if run.end[axis] > 0]
    far = bool(ends) and max(ends) > FAR * min(ends)
    values = [
      positions(part)[axis]
      for run in runs
      for part in (run.train, run.evaluations)
      if far
    ]
    found = np.concatenate([np.empty(0), *values])
    starts[axis] = float(min(found[found > 0], default=0.0))
  return starts


def _row(
  panel: Panel,
  ends: Mapping[str, float],
  starts: Mapping[str, float],
  prefix: str,
) -> Iterator[str]:
  """A panel against each axis, side by side."""
  yield f'<section><h2 class="part">{escape(panel.title.capitalize())}</h2>'
  keys = []
  if panel.limit is not None:
    keys = [Key('the best common value', 'ink', 'dotted')]
  spans = ''.join(map(key_span, keys))
  if spans or panel.note:
    yield f'<div class="keys note">{spans}{escape(panel.note)}</div>'
  yield '<div class="charts three">'
  for axis in AXES:
    picture = draw(
      panel,
      axis,
      ends[axis],
      f'{prefix}{axis}-',
      start=starts[axis],
      size=SMALL,
      markers=MARKERS,
    )
    yield f'<figure>{picture or EMPTY}</figure>'
  yield '</div></section>'


def _legend(style: _Style) -> str:
  return f'<div class="keys legend">{"".join(map(key_span, style.keys))}</div>'


def _equal_table(
  runs: Sequence[Run], style: _Style, milestones: Sequence[Milestone]
) -> Iterator[str]:
  """What each run took to be as good as all were."""
  if not milestones:
    return
  columns, rows = ['run'], [[key] for key in style.lines]
  for reached in milestones:
    name = f'{reached.metric} {quantity(reached.value)}'
    columns += [f'{axis} to {name}' for axis in AXES]
    for row, cost in zip(rows, reached.costs, strict=True):
      row += [
        '–' if cost is None else amount(axis, cost[axis])  # pyright: ignore
        for axis in AXES
      ]
  yield '<h2 class="part">At equal metric</h2>'
  split = milestones[0].split
  yield (
    f'<p class="note">Up to the first evaluation on {escape(split)} that is '
    'as good as the best one of the run that came least far. Seconds are those '
    'of the training clock, on the machine where each ran.</p>'
  )
  yield from table(columns, rows, ['run'])


def _target(run: Run) -> str:
  target = run.known.get('target', {})
  if target.get('value') is None:
    return '–'
  name = f'{target.get("metric")} {quantity(target["value"])}'
  if not target.get('reached'):
    return f'{name}: not reached'
  at = ', '.join(with_unit(axis, [number(target.get(axis))]) for axis in AXES)
  return f'{name}: {at}'


def _result_table(
  runs: Sequence[Run], style: _Style, split: str | None
) -> Iterator[str]:
  """How each run ended."""
  metrics = metrics_of(runs, split) if split is not None else []
  columns = ['run', 'status', *AXES]
  columns += [f'{which} {m}' for m in metrics for which in ('best', 'final')]
  columns += ['target'] * any(_target(run) != '–' for run in runs)
  rows = []
  for key, run in zip(style.lines, runs, strict=True):
    row: list[str | Key] = [key, _status(run).replace('_', ' ')]
    row += [amount(axis, number(run.known[axis])) for axis in AXES]
    for metric in metrics:
      for which in ('best', 'final'):
        scores = run.known[which].get(split, {})
        row.append(quantity(scores.get(metric)))
    row += [_target(run)] * ('target' in columns)
    rows.append(row)
  yield '<h2 class="part">How they ended</h2>'
  if split is not None:
    yield f'<p class="note">Metrics are of {escape(split)}.</p>'
  yield from table(columns, rows, ['run', 'status', 'target'])


def _key_table(
  style: _Style, keys: Mapping[str, Sequence[str]]
) -> Iterator[str]:
  """The keys that differ; the longer way down, which is easier to read."""
  yield '<h2 class="part">Keys of the config that differ</h2>'
  if not keys:
    yield '<p class="note">none</p>'
  elif len(keys) < len(style.lines):
    columns = ['run', *keys]
    rows = [
      [line, *(values[i] for values in keys.values())]
      for i, line in enumerate(style.lines)
    ]
    yield from table(columns, rows, columns)
  else:
    columns = ['key', *(line.name for line in style.lines)]
    rows = [[key, *values] for key, values in keys.items()]
    yield from table(columns, rows, columns)


def _best(groups: Sequence[Group], reached: Milestone) -> str:
  """The best value of each group; of many, that of the two ends."""
  better = min if lower_is_better(reached.metric) else max
  found: dict[str, tuple[float, str]] = {}
  for group in groups:
    values = [reached.best[i] for i in group.members]
    values = [value for value in values if math.isfinite(value)]
    if values:
      ends = dict.fromkeys(quantity(v) for v in (min(values), max(values)))
      found[group.label] = better(values), ' to '.join(ends)
  said = [f'{label} {text}' for label, (_, text) in found.items()]
  if len(said) == 1:
    said = [text for _, text in found.values()]
  elif len(said) > MOST_NAMED:
    order = sorted(found, key=lambda label: found[label][0])
    if better is max:
      order.reverse()
    said = [f'from {order[0]} {found[order[0]][1]}']
    said = [f'{said[0]} to {order[-1]} {found[order[-1]][1]}']
  return f'Best {reached.split} {reached.metric}: {", ".join(said)}.'


def build_comparison_page(runs: Sequence[Run]) -> str:
  """The whole page; pure, and the same text for the same runs."""
  groups, keys, split = groups_of(runs), differing(runs), common_split(runs)
  style = _Style(runs, groups)
  milestones = [
    found
    for metric in (metrics_of(runs, split) if split is not None else [])
    if (found := milestone(runs, split or '', metric)) is not None
  ]
  by_name = {found.metric: found for found in milestones}
  ends = {axis: max(run.end[axis] for run in runs) for axis in AXES}
  starts = _starts(runs)
  first = runs[0].config
  names = [str(first[k]) for k in ('data.name', 'task.name') if k in first]
  lead = sentence(runs, groups, keys, by_name.get('loss'))
  remarks = [_best(groups, found) for found in milestones]
  if len(groups) > 1 and len(groups) < len(runs):
    remarks.append('Of runs that differ in their seed alone the median counts.')
  body = [
    f'<h1>{len(runs)} runs</h1>',
    f'<p class="subtitle">{escape(" · ".join(names))}</p>',
    f'<p class="lead">{escape(lead)}</p>',
    *(f'<p class="best">{escape(line)}</p>' for line in remarks),
    _legend(style),
  ]
  for i, panel in enumerate(_split_panels(runs, style)):
    found = next(
      (m for m in milestones if panel.title == f'{m.split} {m.metric}'), None
    )
    panel = panel._replace(limit=found and found.value)
    body += _row(panel, ends, starts, f'e{i}-')
  body += _row(_training_panel(runs, style), ends, starts, 't-')
  body += ['<div class="charts three set">']
  for i, panel in enumerate(_set_panels(runs, style)):
    picture = draw(
      panel,
      'examples',
      ends['examples'],
      f's{i}-',
      start=starts['examples'],
      size=SMALL,
      markers=MARKERS,
    )
    title = panel.title.capitalize()
    body.append(figure(title, panel.unit, (), panel.note, picture))
  body += [
    '</div>',
    *_equal_table(runs, style, milestones),
    *_result_table(runs, style, split),
    *_key_table(style, keys),
  ]
  return document('comparison of runs', body)
