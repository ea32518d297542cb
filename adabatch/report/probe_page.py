"""The page of a probe: how large a batch may be, at one checkpoint or more."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

from adabatch.report.charts import keys_of
from adabatch.report.layout import (
  details,
  document,
  duration,
  figure,
  heading,
  quantity,
  table,
  tile,
)
from adabatch.report.pictures import COLOR, to_svg
from adabatch.report.probe_figures import (
  agreement_figure,
  cost_figure,
  growth_figure,
)
from adabatch.report.probe_points import (
  counted,
  critical_of,
  estimates,
  ramp_lines,
  sentence,
  size,
  steps_of,
  with_error,
)
from adabatch.report.records import number

UNFINISHED = {
  'running': 'The probe was going on: this is what it had found so far.',
  'preempted': (
    'The probe was stopped before its end: this is what it had found. Started '
    'again it goes on, with the branches that are there.'
  ),
}
MEANING = (
  'Branches of one checkpoint train on over the same examples with other batch '
  'sizes, and are evaluated on the same held-out examples, so what a batch '
  'size costs is the mean of differences taken example by example. The '
  'unpaired error is what it would be if each branch had been evaluated on '
  'examples of its own. The critical size is where that cost comes to epsilon '
  '(Merrill et al., 2025, arXiv:2505.23971). The cheap estimates look at '
  'gradients of the checkpoint alone: the noise scale is tr Σ / |G|² (Adam: of '
  'gradients as its second moments scale them), the norm test asks for the '
  'size at which the mean gradient has η² of its squared norm as noise.'
)


def _chart(
  title: str, unit: str, drawn: Figure | None, prefix: str, note: str
) -> str:
  """A figure in the page's colours as an element of the page."""
  if drawn is None:
    return figure(title, unit, [], note, '')
  picture = to_svg(drawn, prefix, title)
  return figure(title, unit, keys_of(drawn), note, picture)


def _tiles(found: Mapping[str, Any], epsilon: float) -> Iterator[str]:
  cost, points = found['cost'], found['points']
  yield '<dl class="tiles">'
  yield tile('checkpoints', quantity(len(points)))
  if len(points) == 1:
    text, _, interval = critical_of(points[0]).text.partition(' (')
    small = [interval.removesuffix(')'), _in_tokens(points[0], found)]
    yield tile('critical size', text, ', '.join(filter(None, small)))
  yield tile('epsilon', f'{epsilon:g}', 'of the held-out loss')
  yield tile('branches', quantity(cost['branches']))
  yield tile('examples trained on', quantity(cost['examples']))
  yield tile('examples evaluated', quantity(cost['evaluated_examples']))
  yield tile('time', duration(cost['seconds']))
  yield '</dl>'


def _in_tokens(point: Mapping[str, Any], found: Mapping[str, Any]) -> str:
  """The critical size in tokens, of a text."""
  tokens, value = found.get('tokens_per_example'), critical_of(point).value
  if not tokens or math.isnan(value):
    return ''
  return f'{size(value * tokens)} tokens'


def _cells(
  row: Mapping[str, Any], reference: int, epsilon: float, *, tuned: bool
) -> list[str]:
  difference = number(row['difference'])
  half, error = number(row['half_width']), number(row['unpaired_error'])
  there = math.isfinite(difference)
  if not there:
    said, above = 'diverged', 'yes'
  elif row['batch_size'] == reference:
    said, above = 'compared with', '–'
  else:
    said = with_error(difference, half)
    above = 'no' if difference + half <= epsilon else 'open'
    above = 'yes' if difference - half > epsilon else above
  return [
    quantity(row['batch_size']),
    said,
    above,
    quantity(row['loss']) if there else '–',
    f'{error:.2g}' if math.isfinite(error) else '–',
    f'{row["factor"]:g}',
    f'{row["rate"]:.3g}',
    *[f'{row["multiplier"]:g}'] * tuned,
    quantity(row['updates']),
  ]


def _point_table(
  point: Mapping[str, Any], epsilon: float, *, tuned: bool
) -> Iterator[str]:
  """What each batch size came to, from the smallest."""
  names = ['batch size', 'difference', f'above {epsilon:g}', 'loss']
  names += ['unpaired error', 'factor', 'rate factor']
  names += ['tuned factor'] * tuned + ['updates']
  rows = [
    _cells(row, point['batch_size'], epsilon, tuned=tuned)
    for row in point['table']
  ]
  yield from table(names, rows, ())


def _cost_line(point: Mapping[str, Any]) -> str:
  cost = point['cost']
  share = ''
  if point['examples'] > 0:
    part = cost['examples'] / point['examples']
    share = f', {part:.2g} times those of the run up to here'
  return (
    f'Cost: {counted(cost["branches"], "branch", "es")} of '
    f'{counted(point["branch_examples"], "example")}, '
    f'{counted(cost["examples"], "example")} in all{share}; '
    f'{counted(cost["evaluated_examples"], "example")} evaluated; '
    f'{duration(cost["seconds"])}.'
  )


def _point(
  point: Mapping[str, Any], found: Mapping[str, Any], epsilon: float, index: int
) -> Iterator[str]:
  """One checkpoint: its verdict, its picture, its table."""
  at = f'After {counted(point["examples"], "example")}'
  where = f'update {point["update"]:,}, epoch {point["epoch"]:.3g}'
  yield f'<section><h2 class="part">{escape(f"{at} ({where})")}</h2>'
  yield f'<p class="lead">{escape(sentence(point["verdict"]))}</p>'
  diverged = [r['batch_size'] for r in point['table'] if r['loss'] is None]
  if diverged:
    text = f'Diverged: batch size {", ".join(map(quantity, diverged))}.'
    yield f'<p class="bad">{escape(text)}</p>'
  yield '<div class="charts">'
  batch_size, examples = point['batch_size'], point['branch_examples']
  confidence = f'{100 * found["confidence"]:g} %'
  note = (
    f'Held-out loss less that of batch size {batch_size:,}, after the same '
    f'{counted(examples, "example")}; intervals of {confidence}. Below, on the '
    'same axis: what the cheap estimates say.'
  )
  drawn = cost_figure(point, epsilon, COLOR)
  title = 'What a batch size costs'
  yield _chart(title, 'held-out loss', drawn, f'p{index}-', note)
  yield '<div>'
  tuned = found['run']['learning_rate'] == 'tune'
  yield from _point_table(point, epsilon, tuned=tuned)
  repeats = counted(point['repeats'], 'repeat')
  note = (
    f'Difference ± half of the interval of {confidence}, over {repeats}; '
    f'above {epsilon:g}: whether the whole interval is. Factors are those of '
    'the batch size and the learning rate of the run.'
  )
  yield f'<p class="note">{escape(note)}</p>'
  yield f'<p class="note">{escape(_cost_line(point))}</p>'
  yield '</div></div></section>'


def _growth_text(found: Mapping[str, Any]) -> str:
  """How the critical size changes along the run, in a sentence or two."""
  points, grown = found['points'], found['growth']
  ends = [
    f'{critical_of(p).text} after {counted(p["examples"], "example")}'
    for p in (points[0], points[-1])
  ]
  text = f'Critical size: {ends[0]}, {ends[1]}.'
  if grown is None:
    return f'{text} Too few of them are known to fit how it grows.'
  fitted = counted(grown['points'], 'checkpoint')
  text += (
    f' It goes as examples to the power {grown["power"]:.2f} '
    f'({grown["power_low"]:.2f} to {grown["power_high"]:.2f}), from {fitted}.'
  )
  if grown['left_out']:
    left = counted(grown['left_out'], 'checkpoint')
    text += f' Left out: {left} where no size was too large.'
  return text


def _over_points(found: Mapping[str, Any]) -> Iterator[str]:
  """All checkpoints together: pictures along the run, and one table."""
  points = found['points']
  yield '<section><h2 class="part">Along the run</h2>'
  yield f'<p class="lead">{escape(_growth_text(found))}</p>'
  yield '<div class="charts">'
  note = ''
  if any(point['examples'] <= 0 for point in points):
    note = 'The checkpoint before the first example is not on this axis.'
  drawn = growth_figure(found, COLOR)
  yield _chart('Critical size along the run', 'examples', drawn, 'g0-', note)
  drawn = agreement_figure(found, COLOR)
  if drawn is not None:
    title = 'Beside the cheap estimates'
    yield _chart(title, 'examples', drawn, 'g1-', note)
  yield '</div>'
  by_point = [{e.name: e.text for e in estimates(point)} for point in points]
  names = list(dict.fromkeys(name for some in by_point for name in some))
  rows = [
    [
      quantity(point['examples']),
      quantity(point['update']),
      quantity(point['batch_size']),
      *(texts.get(name, '–') for name in names),
    ]
    for point, texts in zip(points, by_point, strict=True)
  ]
  yield from table(('examples', 'update', 'batch size', *names), rows, ())
  yield '</section>'


def _ramp(found: Mapping[str, Any]) -> Iterator[str]:
  """The ramp that the run could have had, to copy."""
  steps = steps_of(found)
  if not steps:
    return
  yield '<section><h2 class="part">Ramp</h2>'
  if len(steps) == 1:
    text = (
      f'None: the critical size is nowhere above twice {steps[0][1]:,}, at '
      'which the run began.'
    )
    yield f'<p>{escape(text)}</p></section>'
    return
  said = ', then '.join(
    f'{batch_size:,} from {counted(at, "example")} on' if at else
    f'{batch_size:,}'
    for at, batch_size in steps
  )  # fmt: skip
  text = f'Batch size {said}: doubled where the critical size allows it.'
  yield f'<p>{escape(text)}</p>'
  for name, line in ramp_lines(found):
    yield f'<p class="note copied">{escape(name)}</p>'
    yield f'<pre><code>{escape(line)}</code></pre>'
  yield '</section>'


def build_probe_page(name: str, found: Mapping[str, Any]) -> str:
  """The whole page; pure, and the same text for the same probe.

  Args:
    name: of its directory.
    found: what `probe.json` holds.
  """
  points: Sequence[Mapping[str, Any]] = found['points']
  status, epsilon = str(found['status']), float(found['run']['epsilon'])
  confidence = f'{100 * found["confidence"]:g} %'
  subtitle = f'probe · {found["split"]} · intervals of {confidence}'
  body = [*heading(name, status, subtitle)]
  if status in UNFINISHED:
    body.append(f'<p>{escape(UNFINISHED[status])}</p>')
  body += _tiles(found, epsilon)
  if not points:
    body.append('<p class="empty">no checkpoint is through yet</p>')
  if len(points) > 1:
    body += _over_points(found)
    body += _ramp(found)
  for i, point in enumerate(points):
    body += _point(point, found, epsilon, i)
  if len(points) == 1:
    body += _ramp(found)
  body.append(f'<section><p class="note">{escape(MEANING)}</p></section>')
  return document(name, [*body, *details('Probe', found['run'])])
