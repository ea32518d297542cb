"""What a plan says of other numbers of chips, as a part of its page."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from adabatch.report import scales
from adabatch.report.layout import Key, figure, table
from adabatch.report.panels import Line, Panel
from adabatch.report.pictures import draw
from adabatch.report.plan_scaling import (
  KINDS,
  RUNS,
  names_of,
  scaling_lines,
  scaling_tables,
)

TIME = scales.ScaleRule(span=4)
MEANING = (
  "A model: the compiler's estimate of a step on {chips} chips, lines between "
  'the batch sizes that were compiled, and an all-reduce at the full bandwidth '
  'of the links; nothing was measured, and chips never wait. All runs see as '
  'many examples. '
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
  rows, names = scaling[kind], names_of(scaling)
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
