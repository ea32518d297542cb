"""The page of a plan."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import numpy as np

from adabatch.report import scales
from adabatch.report.layout import (
  Key,
  details,
  document,
  figure,
  heading,
  quantity,
  table,
  tile,
)
from adabatch.report.panels import Line, Panel
from adabatch.report.pictures import draw
from adabatch.report.plan_scaling_figures import scaling_section
from adabatch.report.plan_table import (
  flops,
  in_bytes,
  ladder_table,
  lines_of_totals,
  machine_tables,
  programs_line,
)

MEANING = (
  'Memory and collectives are those of the compiled programs. The step is the '
  "compiler's own estimate of its schedule, without waiting for other chips; "
  'the all-reduce a model, a ring along each side of the torus. The bounds are '
  "FLOPs over the chip's peak, and the bytes that the schedule moves over the "
  'bandwidth of its memory. No chip was asked. Compiled with'
)


def _tiles(plan: Mapping[str, Any]) -> Iterator[str]:
  model, about, disk = plan['model'], plan['data'], plan['disk']
  yield '<dl class="tiles">'
  yield tile('parameters', quantity(model['parameters']))
  yield tile('work of an example', flops(model['flops_per_example']))
  yield tile('state', in_bytes(model['state_bytes']))
  yield tile('examples', quantity(about['examples']), about['name'])
  yield tile('devices', quantity(plan['devices']['number']))
  yield tile('disk', in_bytes(disk['bytes']), 'at most')
  yield '</dl>'


def _panels(points: Mapping[str, Any], largest: float) -> list[Panel]:
  """The schedule against updates and examples."""
  columns = {
    name: np.array([np.nan if v is None else v for v in values], float)
    for name, values in points.items()
  }
  x = {'updates': columns['update'], 'examples': columns['examples']}
  sizes = (
    Line(
      'nominal', 's2', x, columns['nominal_batch_size'], 'dashed', steps=True
    ),
    Line('true', 's1', x, columns['batch_size'], steps=True),
  )
  limit = largest if largest else None
  panels = [
    Panel('Batch size', 'examples', sizes, scales.BATCH_SIZE, limit=limit)
  ]
  if np.isfinite(columns['learning_rate']).any():
    rule = scales.ScaleRule(span=20, quantile=0.25, from_zero=True)
    rate = (Line('', 's1', x, columns['learning_rate'], steps=True),)
    panels.append(Panel('Effective learning rate', '', rate, rule))
  return panels


def _pictures(plan: Mapping[str, Any]) -> Iterator[str]:
  schedule = plan.get('schedule')
  if schedule is None:
    return
  points = schedule['points']
  panels = _panels(points, float(plan['ladder'][-1]['batch_size']))
  yield '<div class="charts">'
  for axis, key in (('updates', 'update'), ('examples', 'examples')):
    end = float(points[key][-1])
    for i, panel in enumerate(panels):
      keys = [Key(line.name, line.color, line.look) for line in panel.lines]
      if panel.limit:
        keys.append(Key(f'B_max = {quantity(panel.limit)}', 'ink', 'dotted'))
      picture = draw(panel, axis, end, f'{axis}{i}-')
      title = f'{panel.title} against {axis}'
      yield figure(title, panel.unit, keys, panel.note, picture)
  yield '</div>'


def build_plan_page(name: str, plan: Mapping[str, Any]) -> str:
  """The whole page; pure, and the same text for the same plan."""
  model, about = plan['model'], plan['data']
  subtitle = f'{about["name"]} · {model["name"]}'
  body = [*heading(name, 'plan', subtitle), *_tiles(plan)]
  if not plan.get('data_there', True):
    text = (
      f'{about["name"]} is not prepared here: its numbers of examples are '
      'those that are known of it, of a text about.'
    )
    body.append(f'<p>{escape(text)}</p>')
  body += [
    f'<p class="lead">{escape(f"{name}: {text}")}</p>'
    for name, text in lines_of_totals(plan)
  ]
  lines = [programs_line(plan), *plan['remarks']]
  body += [f'<p>{escape(line)}</p>' for line in lines if line is not None]
  body += _pictures(plan)
  body.append('<h2 class="part">The ladder</h2>')
  body += table(*ladder_table(plan), ())
  for title, columns, rows in machine_tables(plan):
    machine = plan['topology']['name']
    body.append(f'<h2 class="part">{escape(f"{title}, {machine}")}</h2>')
    body += table(columns, rows, ('how',))
  if 'topology' in plan:
    compiler = plan['topology']['compiler']
    body.append(f'<p class="note">{escape(MEANING)} {escape(compiler)}.</p>')
  body += scaling_section(plan)
  body.append('<h2 class="part">Parameters</h2>')
  rows = [
    [group, quantity(count), f'{count / model["parameters"]:.1%}']
    for group, count in model['groups'].items()
  ]
  body += table(('group', 'parameters', 'share'), rows, ('group',))
  changed = {
    key: f'{new} (default {old})' for key, (old, new) in plan['changed'].items()
  }
  body += details('What differs from the defaults', changed)
  body += details('Config', plan['config'])
  return document(name, body)
