"""What a plan says of other numbers of chips, in words and as a picture."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from adabatch.report import scales
from adabatch.report.layout import Key, duration, figure, quantity, table
from adabatch.report.panels import Line, Panel
from adabatch.report.pictures import draw

# Of a run: how it is called, its colour and look.
RUNS = {
  'schedule': ('the schedule', 's1', ''),
  'smallest': ('B = {smallest:,} throughout', 's2', ''),
  'largest': ('B = {largest:,} throughout', 's3', ''),
}
KINDS = {
  'strong': 'the same batches on more chips',
  'weak': 'batches that grow with the chips',
}
TIME = scales.ScaleRule(span=4)
MEANING = (
  "A model: the compiler's estimate of a step on {chips} chips, lines between "
  'the batch sizes that were compiled, and an all-reduce at the full bandwidth '
  'of the links; nothing was measured, and chips never wait. All runs see as '
  'many examples. '
)


def _names(scaling: Mapping[str, Any]) -> dict[str, str]:
  """Of the runs that are predicted; a constant one is its own schedule."""
  names = {key: name.format(**scaling) for key, (name, _, _) in RUNS.items()}
  if scaling['schedule'] != 'known':
    del names['schedule']
  if scaling['smallest'] == scaling['largest']:
    del names['largest']
  return names


def scaling_tables(
  plan: Mapping[str, Any],
) -> Iterator[tuple[str, list[str], list[list[str]]]]:
  """Titles, columns and rows by the number of chips, where there are any."""
  scaling = plan.get('scaling', {})
  if 'strong' not in scaling:
    return
  names = _names(scaling)
  for kind, title in KINDS.items():
    columns, rows = ['chips', 'sides'], []
    for name in names.values():
      columns += [name, 'chip-hours', 'efficiency']
    columns += ['of the smallest'] if 'schedule' in names else []
    for row in scaling[kind]:
      where = '–' if row['shape'] is None else 'x'.join(map(str, row['shape']))
      if (row['slices'] or 1) > 1:
        where = f'{row["slices"]} * {where}'
      cells = [quantity(row['chips']), where]
      for name in names:
        cells += _cells(row, name)
      if 'schedule' in names:
        share = (row['schedule'] or {}).get('of_smallest')
        cells.append('–' if share is None else f'{share:.2f}')
      rows.append(cells)
    yield f'{kind} scaling (model): {title}', columns, rows


def _cells(row: Mapping[str, Any], name: str) -> list[str]:
  run = row[name]
  if run is None:
    why = 'beyond one slice' if row['shape'] is None else 'cannot be shared'
    return [why, '–', '–']
  sign = {'fewer': '≤ ', 'more': '~ ', '': ''}[run['outside']]
  efficiency = run['efficiency']
  return [
    sign + duration(run['seconds']),
    f'{sign}{run["chip_hours"]:,.3g}',
    '–' if efficiency is None else f'{efficiency:.0%}',
  ]


def scaling_lines(plan: Mapping[str, Any]) -> Iterator[str]:
  """Sentences: where the schedule wins, and what is not known."""
  scaling = plan.get('scaling')
  if scaling is None:
    return
  if 'why_not' in scaling:
    yield f'scaling is not predicted: {scaling["why_not"]}'
    return
  for one in scaling['left_out']:
    yield (f'scaling leaves out batches of {one["batch_size"]:,}: {one["why"]}')
  yield _wins(scaling)
  runs = [row[name] for row in scaling['strong'] for name in _names(scaling)]
  outside = {run['outside'] for run in runs if run is not None}
  sizes = scaling['microbatch_sizes']
  if 'fewer' in outside:
    yield (
      f'≤: a chip has fewer examples than the {sizes[0]:,} at once that were '
      'compiled, and is taken to be no faster; plan.scaling=True compiles fewer'
    )
  if 'more' in outside:
    yield (
      f'~: a chip has more examples at once than the {sizes[-1]:,} that were '
      'compiled, and its time goes on by a line'
    )
  if falls := scaling['falls_at']:
    yield (
      'by the compiler a step is faster than one of fewer examples at '
      f'{", ".join(map(quantity, falls))} at once, which the model keeps'
    )
  if scaling['fixed_seconds'] is None:
    yield (
      'nothing that was compiled says what an update does once however many '
      'microbatches it has: k of them are taken to last k times as long as one'
    )


def _wins(scaling: Mapping[str, Any]) -> str:
  """Whether the schedule is faster than its smallest batch, and where."""
  smallest, largest = scaling['smallest'], scaling['largest']
  if scaling['schedule'] == 'unknown':
    return (
      'by the model: what the schedule gains is not known before, for it '
      'decides by what is measured'
    )
  if scaling['schedule'] == 'too large':
    return 'by the model: nothing of the schedule, part of which does not fit'
  if smallest == largest:
    return 'by the model: nothing is won where the batch never grows'
  # Not where more than a bound is unknown.
  rows = [
    row
    for row in scaling['strong']
    if all(row[name] and row[name]['outside'] != 'fewer' for name in RUNS)
  ]
  first = scaling['wins_from']
  if first is None or not rows:
    return (
      'by the model: at no number of chips of which more than a bound is known '
      'does the schedule take 10 % less time than as many examples in batches '
      f'of {smallest:,}'
    )
  last = rows[-1]
  ours, theirs = (last[name]['of_smallest'] for name in ('schedule', 'largest'))
  less = 'less still' if theirs < ours else 'no less'
  return (
    f'by the model, not by a measurement: from {first:,} chips on the schedule '
    'takes at least 10 % less time than as many examples in batches of '
    f'{smallest:,} ({ours:.2f} of it on {last["chips"]:,}); batches of '
    f'{largest:,} throughout take {less} ({theirs:.2f}): that small batches '
    'early need fewer examples is what the schedule is for, and the model '
    'knows nothing of it'
  )


def scaling_section(plan: Mapping[str, Any]) -> Iterator[str]:
  """The part of a page; nothing where there was no machine."""
  if 'scaling' not in plan:
    return
  scaling = plan['scaling']
  yield '<h2 class="part">On fewer chips and on more (a model)</h2>'
  if 'strong' in scaling:
    yield '<div class="charts">'
    for kind in KINDS:
      yield _figure(scaling, kind)
    yield '</div>'
    text = MEANING.format(chips=f'{scaling["compiled_chips"]:,}')
    yield f'<p class="note">{escape(text)}</p>'
  yield from (f'<p>{escape(line)}.</p>' for line in scaling_lines(plan))
  for title, columns, rows in scaling_tables(plan):
    yield f'<h3>{escape(title)}</h3>'
    yield from table(columns, rows, ())


def _figure(scaling: Mapping[str, Any], kind: str) -> str:
  """Time against chips, both logarithmic, and an ideal line."""
  rows, names = scaling[kind], _names(scaling)
  chips = np.array([row['chips'] for row in rows], float)
  unit, size = _unit(rows)
  lines, keys = [], []
  for key, name in names.items():
    _, color, look = RUNS[key]
    seconds = np.array(
      [np.nan if row[key] is None else row[key]['seconds'] for row in rows]
    )
    lines.append(Line(name, color, {'chips': chips}, seconds / size, look))
    keys.append(Key(name, color, look))
  # From one chip, of what the table begins with.
  alone = rows[0][next(iter(names))]
  if alone is not None:
    ideal = alone['seconds'] / size / chips
    lines.append(Line('ideal', 'soft', {'chips': chips}, ideal, 'dotted'))
    keys.append(Key('ideal: time on one chip / chips', 'soft', 'dotted'))
  title = f'Time by chips, {kind} scaling (model)'
  panel = Panel(title, unit, lines, TIME)
  picture = draw(panel, 'chips', chips[-1], f'scaling-{kind}-', start=chips[0])
  return figure(title, unit, keys, KINDS[kind], picture)


def _unit(rows: Sequence[Mapping[str, Any]]) -> tuple[str, float]:
  """Of the longest time."""
  longest = max(
    (row[k]['seconds'] for row in rows for k in RUNS if row.get(k)), default=0
  )
  if longest > 3 * 3600:
    return 'hours', 3600.0
  return ('minutes', 60.0) if longest > 600 else ('seconds', 1.0)
