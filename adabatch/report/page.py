"""The page: HTML around the pictures, and its style sheet."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from adabatch.config import flatten
from adabatch.report.panels import Panel, eval_panels, train_panels
from adabatch.report.pictures import draw
from adabatch.report.records import AXES, Record, facts, number, positions

EMPTY = '<p class="empty">nothing to draw yet</p>'
MOOD = {'completed': 'good', 'target_reached': 'good', 'diverged': 'bad'}

STYLE = """
:root { --paper: #fff; --card: #f6f7f9; --ink: #23272f; --soft: #5d6673;
  --grid: #d5dae1; --s1: #1f65c8; --s2: #d35312; --s3: #1b8a5a;
  --s4: #8b46b5; --s5: #927000; --s6: #b81b5c; --bad: #c0271d;
  color-scheme: light dark; }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #14171c; --card: #1e232b; --ink: #e4e8ee; --soft: #a2acba;
    --grid: #3a424e; --s1: #6ea8ff; --s2: #ff9a5c; --s3: #5fd3a0;
    --s4: #cf9bf0; --s5: #e0c04c; --s6: #ff85b3; --bad: #ff8b80; } }
* { box-sizing: border-box; overflow-wrap: anywhere; }
body { margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 72rem;
  background: var(--paper); color: var(--ink); font: 1rem/1.45 var(--font);
  --font: system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; }
h1 { margin: 0; font-size: 1.6rem; }
h2 { display: inline; font-size: 1rem; }
.subtitle { margin: .2rem 0 1rem; }
.subtitle, .note, .unit, .against { color: var(--soft); }
.status { font-size: .85rem; font-weight: 600; white-space: nowrap;
  padding: .1rem .6rem; border: 1.5px solid; border-radius: 1rem;
  vertical-align: .25em; color: var(--soft); }
.good { color: var(--s3); } .bad { color: var(--bad); }
.tiles { display: grid; gap: .6rem; margin: 0 0 .6rem;
  grid-template-columns: repeat(auto-fit, minmax(8.2rem, 1fr)); }
.tiles div { background: var(--card); border-radius: .5rem; padding: .5rem; }
.tiles dt, small { font-size: .8rem; font-weight: 400; color: var(--soft); }
.tiles dd { margin: 0; font-size: 1.15rem; font-weight: 600; }
small, svg { display: block; }
section, details { margin-top: 1.4rem; }
input { position: absolute; opacity: 0; }
label { display: inline-block; padding: .25rem .7rem; cursor: pointer;
  border: 1px solid var(--grid); border-radius: 1rem; }
input:checked + label { background: var(--ink); color: var(--paper); }
input:focus-visible + label { outline: 3px solid var(--s1); }
.axis { display: none; gap: 1.6rem 2rem; margin-top: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
#x-updates:checked ~ .by-updates, #x-examples:checked ~ .by-examples,
#x-seconds:checked ~ .by-seconds { display: grid; }
figure { margin: 0; min-width: 0; break-inside: avoid; display: flex;
  flex-direction: column; justify-content: space-between; gap: .3rem; }
.keys { display: flex; flex-wrap: wrap; gap: 0 1rem; }
.keys, .note { font-size: .85rem; }
.key::before { content: ''; display: inline-block; width: 1.3em;
  margin-right: .4em; vertical-align: .25em; border-top: 3px solid; }
.dashed::before { border-top: 2px dashed; } .faint::before { opacity: .4; }
.dotted::before { border-top: 2px dotted; }
.key span { color: var(--ink); }
.empty { padding: 3rem; text-align: center; background: var(--card); }
svg { width: 100%; height: auto; }
svg text { font-family: var(--font) !important; }
summary { cursor: pointer; font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .2rem .6rem .2rem 0; font-weight: 400;
  border-bottom: 1px solid var(--grid); vertical-align: top; }
th { color: var(--soft); width: 45%; }
@media print {
  body { padding: 0; max-width: none; font-size: 10pt; }
  label, .against { display: none; }
  .axis { grid-template-columns: 1fr 1fr; }
}
"""


def quantity(value: Any) -> str:
  """A value for a person: counts with separators, others to four digits.

  >>> quantity(60000), quantity(0.88814), quantity('none'), quantity(None)
  ('60,000', '0.8881', 'none', '–')
  """
  if not isinstance(value, int | float):
    return '–' if value is None else str(value)
  return f'{value:,.0f}' if value % 1 == 0 else f'{value:.4g}'


def duration(seconds: Any) -> str:
  """Seconds for a person.

  >>> [duration(s) for s in (0.25, 12.3, 754, 7_500, 200_000, None)]
  ['0.25 s', '12.3 s', '12 min 34 s', '2 h 05 min', '2 d 7 h', '–']
  """
  seconds = number(seconds)
  if not seconds >= 60:
    return '–' if math.isnan(seconds) else f'{seconds:.3g} s'
  minutes, rest = divmod(round(seconds), 60)
  hours, days = minutes // 60, minutes // 1440
  if hours == 0:
    return f'{minutes} min {rest:02d} s'
  if days == 0:
    return f'{hours} h {minutes % 60:02d} min'
  return f'{days} d {hours % 24} h'


def _tile(name: str, value: str, small: str = '') -> str:
  small = f'<small>{escape(small)}</small>' if small else ''
  return f'<div><dt>{escape(name)}</dt><dd>{escape(value)}{small}</dd></div>'


def _head(name: str, known: Mapping[str, Any], config: Mapping[str, Any]):
  """Title, tiles and target; `known` is what `facts` returns."""
  keys = ('data.name', 'model.name', 'optimizer.name', 'controller.name')
  names = [str(config[key]) for key in keys if config.get(key)]
  if config.get('sync.name', 'synchronous') != 'synchronous':
    names.append(config['sync.name'])
  subtitle = ' · '.join(names)
  status = str(known['status'])
  yield f'<h1>{escape(name)} <span class="status {MOOD.get(status, "")}">'
  yield f'{escape(status.replace("_", " "))}</span></h1>'
  yield f'<p class="subtitle">{escape(subtitle)}</p><dl class="tiles">'
  for split, scores in known['best'].items():
    # Metrics before losses, as they are what a run is for.
    for metric in sorted(scores, key=lambda metric: metric == 'loss'):
      last = quantity(known['final'].get(split, {}).get(metric))
      value = quantity(scores[metric])
      yield _tile(f'best {split} {metric}', value, f'final {last}')
  epochs = f'{quantity(known["epochs"])} epochs' if 'epochs' in known else ''
  yield _tile('updates', quantity(known['updates']))
  yield _tile('examples', quantity(known['examples']), epochs)
  yield _tile('training time', duration(known['seconds']))
  if 'compilations' in known:
    seconds = duration(known.get('compile_seconds'))
    waited = duration(known.get('stall_seconds'))
    yield _tile('compilations', quantity(known['compilations']), seconds)
    yield _tile('waited for compiling', waited)
  if known.get('replicas', 1) != 1:
    of = f'of {quantity(known["replicas"])} replicas'
    yield _tile('syncs', quantity(known.get('sync_count')), of)
  yield '</dl>'
  target = known.get('target', {})
  if target.get('value') is not None:
    result = 'not reached'
    if target.get('reached'):
      result = (
        f'reached after {quantity(target["updates"])} updates, '
        f'{quantity(target["examples"])} examples, '
        f'{duration(target["seconds"])}'
      )
    text = f'Target {target["metric"]} {quantity(target["value"])}: {result}.'
    yield f'<p>{escape(text)}</p>'


def _figure(panel: Panel, axis: str, end: float, prefix: str) -> str:
  picture = draw(panel, axis, end, prefix)
  keys = [(line.name, line.color, line.look) for line in panel.lines]
  if panel.limit:
    keys.append((f'B_max = {quantity(panel.limit)}', 'ink', 'dotted'))
  if panel.stop:
    keys.append(('first loss that is not finite', 's2', 'dotted'))
  spans = ''.join(
    f'<span class="key {look}" style="color: var(--{color})">'
    f'<span>{escape(name)}</span></span>'
    for name, color, look in keys
    if name and picture
  )
  unit = f'({panel.unit})' if panel.unit else ''
  return (
    f'<figure><figcaption><h2>{escape(panel.title)}</h2> '
    f'<span class="unit">{unit}</span><div class="keys">{spans}</div>'
    f'<div class="note">{escape(panel.note)}</div></figcaption>'
    f'{picture or EMPTY}</figure>'
  )


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


def _table(title: str, flat: Mapping[str, Any]):
  if flat:
    yield f'<details><summary>{title}</summary><table>'
    for key, value in flat.items():
      if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False)
      yield f'<tr><th scope="row">{escape(key)}</th>'
      yield f'<td>{escape(value)}</td></tr>'
    yield '</table></details>'


def build_page(
  name: str,
  train_records: Sequence[Record],
  eval_records: Sequence[Record],
  summary: Mapping[str, Any],
  config: Mapping[str, Any],
) -> str:
  """The whole page; pure, and the same text for the same run."""
  records = [*train_records, *eval_records]
  end = {
    axis: float(np.nanmax([0, *x])) for axis, x in positions(records).items()
  }
  config = flatten(config)
  max_batch_size = number(config.get('controller.max_batch_size'))
  panels = train_panels(train_records, max_batch_size)
  panels += eval_panels(eval_records)
  page = [
    '<!DOCTYPE html>',
    '<html lang="en"><head><meta charset="utf-8">',
    # The page needs nothing from elsewhere; this makes the browser see to it.
    '<meta http-equiv="Content-Security-Policy" content="'
    "default-src 'none'; style-src 'unsafe-inline'\">",
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    f'<title>{escape(name)} – adabatch</title><style>{STYLE}</style>',
    '</head><body>',
    *_head(name, facts(summary, eval_records, end), config),
    *_pictures(panels, end),
    *_table('Summary', flatten(summary)),
    *_table('Config', config),
    '</body></html>',
  ]
  return '\n'.join(page) + '\n'
