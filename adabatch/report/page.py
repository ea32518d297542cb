"""The page of a run."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from adabatch.config import flatten
from adabatch.report.layout import (
  Key,
  details,
  document,
  duration,
  figure,
  heading,
  quantity,
  tile,
)
from adabatch.report.panels import Panel, eval_panels, train_panels
from adabatch.report.pictures import draw
from adabatch.report.records import (
  AXES,
  Record,
  Records,
  device_time,
  ends,
  facts,
  number,
)


def _head(name: str, known: Mapping[str, Any], config: Mapping[str, Any]):
  """Title, tiles and target; `known` is what `facts` returns."""
  keys = ('data.name', 'model.name', 'optimizer.name', 'controller.name')
  names = [str(config[key]) for key in keys if config.get(key)]
  if config.get('sync.name', 'synchronous') != 'synchronous':
    names.append(config['sync.name'])
  subtitle = ' · '.join(names)
  yield from heading(name, str(known['status']), subtitle)
  yield '<dl class="tiles">'
  for split, scores in known['best'].items():
    # Metrics before losses, as they are what a run is for.
    for metric in sorted(scores, key=lambda metric: metric == 'loss'):
      last = quantity(known['final'].get(split, {}).get(metric))
      value = quantity(scores[metric])
      yield tile(f'best {split} {metric}', value, f'final {last}')
  epochs = f'{quantity(known["epochs"])} epochs' if 'epochs' in known else ''
  yield tile('updates', quantity(known['updates']))
  yield tile('examples', quantity(known['examples']), epochs)
  yield tile('training time', duration(known['seconds']))
  if (used := device_time(known)) is not None:
    of = f'{used[1]:.0%} of {quantity(known["devices"])} devices always'
    yield tile('device time', duration(used[0]), of)
  if 'compilations' in known:
    seconds = duration(known.get('compile_seconds'))
    waited = duration(known.get('stall_seconds'))
    yield tile('compilations', quantity(known['compilations']), seconds)
    yield tile('waited for compiling', waited)
  for key in ('skipped_updates', 'rollbacks'):
    if known.get(key):
      yield tile(key.replace('_', ' '), quantity(known[key]))
  if known.get('replicas', 1) != 1:
    of = f'of {quantity(known["replicas"])} replicas'
    yield tile('syncs', quantity(known.get('sync_count')), of)
  yield '</dl>'
  target = known.get('target', {})
  if target.get('value') is not None:
    result = 'not reached'
    if target.get('reached'):
      # Of text alone.
      tokens = (
        f'{quantity(target["tokens"])} tokens, ' if 'tokens' in target else ''
      )
      result = (
        f'reached after {quantity(target["updates"])} updates, '
        f'{quantity(target["examples"])} examples, {tokens}'
        f'{duration(target["seconds"])}'
      )
    text = f'Target {target["metric"]} {quantity(target["value"])}: {result}.'
    yield f'<p>{escape(text)}</p>'


def _figure(panel: Panel, axis: str, end: float, prefix: str) -> str:
  keys = [Key(line.name, line.color, line.look) for line in panel.lines]
  if panel.limit:
    keys.append(Key(f'B_max = {quantity(panel.limit)}', 'ink', 'dotted'))
  if panel.stop:
    keys.append(Key('first loss that is not finite', 's2', 'dotted'))
  picture = draw(panel, axis, end, prefix)
  return figure(panel.title, panel.unit, keys, panel.note, picture)


def _pictures(panels: Sequence[Panel], end: Mapping[str, float]):
  yield '<section class="pictures" aria-label="Pictures">'
  yield '<span class="against">against</span>'
  # Inputs and pictures are siblings: then the switch needs no script.
  for axis in AXES:
    checked = ' checked' if axis == 'examples' else ''
    yield f'<input type="radio" name="x" id="x-{axis}"{checked}>'
    yield f'<label for="x-{axis}">{axis}</label>'
  for axis in AXES:
    yield f'<div class="axis by-{axis}">'
    for i, panel in enumerate(panels):
      yield _figure(panel, axis, end[axis], f'{axis}{i}-')
    yield '</div>'
  yield '</section>'


def build_page(
  name: str,
  train_records: Records,
  eval_records: Sequence[Record],
  summary: Mapping[str, Any],
  config: Mapping[str, Any],
) -> str:
  """The whole page; pure, and the same text for the same run."""
  end = ends(train_records, eval_records)
  config = flatten(config)
  max_batch_size = number(config.get('controller.max_batch_size'))
  panels = train_panels(train_records, max_batch_size)
  panels += eval_panels(eval_records)
  body = [
    *_head(name, facts(summary, eval_records, end), config),
    *_pictures(panels, end),
    *details('Summary', summary),
    *details('Config', config),
  ]
  return document(name, body)
