"""What a plan says of other numbers of chips, in words."""

from collections.abc import Iterator, Mapping
from typing import Any

from adabatch.report.layout import duration, quantity

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


def names_of(scaling: Mapping[str, Any]) -> dict[str, str]:
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
  names = names_of(scaling)
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
  runs = [row[name] for row in scaling['strong'] for name in names_of(scaling)]
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
