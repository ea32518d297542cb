"""The page: HTML around the pictures, and its style sheet."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from adabatch.config import flatten
from adabatch.report.panels import Panel, eval_panels, train_panels
from adabatch.report.pictures import draw
from adabatch.report.records import AXES, Record, facts, last_positions, number

DEFAULT_AXIS = 'examples'
EMPTY = '<p class="empty">nothing to draw yet</p>'
MOOD = {'completed': 'good', 'target_reached': 'good', 'diverged': 'bad'}

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


def quantity(value: Any) -> str:
  """A value for a person: counts with separators, others to four digits.

  >>> quantity(60000), quantity(0.88814), quantity(float('nan')), quantity(None)
  ('60,000', '0.8881', 'not finite', '–')
  """
  if value is None:
    return '–'
  if not isinstance(value, int | float):
    return str(value)
  if not math.isfinite(value):
    return 'not finite'
  if float(value).is_integer() and abs(value) < 1e15:
    return f'{int(value):,}'
  return f'{value:.4g}'


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


def _tile(name: str, value: str, small: str = '') -> str:
  small = f'<small>{escape(small)}</small>' if small else ''
  return f'<div><dt>{escape(name)}</dt><dd>{escape(value)}{small}</dd></div>'


def _head(name: str, known: Mapping[str, Any], config: Mapping[str, Any]):
  """Title, tiles and target; `known` is what `facts` returns."""
  keys = ('data.name', 'model.name', 'optimizer.name', 'controller.name')
  subtitle = ' · '.join(str(config[key]) for key in keys if config.get(key))
  status = str(known['status'])
  yield (
    f'<h1>{escape(name)} <span class="status {MOOD.get(status, "")}">'
    f'{escape(status.replace("_", " "))}</span></h1>'
    f'<p class="subtitle">{escape(subtitle)}</p>'
    '<dl class="tiles">'
  )
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
    compiling = duration(known.get('compile_seconds'))
    yield _tile('compilations', quantity(known['compilations']), compiling)
  if 'stall_seconds' in known:
    yield _tile('waited for compiling', duration(known['stall_seconds']))
  yield '</dl>'
  target = known.get('target', {})
  if target.get('value') is not None:
    result = 'not reached.'
    if target.get('reached'):
      result = (
        f'reached after {quantity(target.get("updates"))} updates, '
        f'{quantity(target.get("examples"))} examples, '
        f'{duration(target.get("seconds"))}.'
      )
    text = f'Target {target["metric"]} {quantity(target["value"])}: {result}'
    yield f'<p class="target">{escape(text)}</p>'


def _figure(panel: Panel, axis: str, end: float, prefix: str) -> str:
  picture = draw(panel, axis, end, prefix)
  keys = [
    (line.name, f's{line.color}', line.look)
    for line in panel.lines
    if line.name
  ]
  if panel.limit:
    keys.append((f'B_max = {quantity(panel.limit)}', 'ink', 'dotted'))
  if panel.stop:
    keys.append(('first loss that is not finite', 's2', 'dotted'))
  spans = (
    f'<span class="key {look}" style="color: var(--{color})">'
    f'<span>{escape(name)}</span></span>'
    for name, color, look in keys
  )
  unit = f' <span class="unit">({panel.unit})</span>' if panel.unit else ''
  note = f'<div class="note">{escape(panel.note)}</div>' if panel.note else ''
  return (
    f'<figure><figcaption><h2>{escape(panel.title)}</h2>{unit}'
    f'<div class="keys">{"".join(spans) if picture else ""}</div>{note}'
    '</figcaption>'
    f'{picture or EMPTY}</figure>'
  )


def _pictures(panels: Sequence[Panel], end: Mapping[str, float]):
  yield '<section class="pictures" aria-label="Pictures">'
  yield '<span class="against">against</span>'
  # Inputs and pictures are siblings: then the switch needs no script.
  for axis in AXES:
    checked = ' checked' if axis == DEFAULT_AXIS else ''
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
  end = last_positions([*train_records, *eval_records])
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
    '<meta name="color-scheme" content="light dark">',
    f'<title>{escape(name)} – adabatch</title>',
    f'<style>{STYLE}</style></head><body>',
    *_head(name, facts(summary, eval_records, end), config),
    *_pictures(panels, end),
    *_table('Summary', flatten(summary)),
    *_table('Config', config),
    '</body></html>',
  ]
  return '\n'.join(page) + '\n'
