"""The page's colours and its style sheet."""

from collections.abc import Mapping

# By the names that the style sheet gives them. Pictures are drawn in them: with
# one of these palettes, or with stand-ins that become the page's variables.
LIGHT = {
  'paper': '#ffffff',
  'card': '#f6f7f9',
  'ink': '#23272f',
  'soft': '#5d6673',
  'grid': '#d5dae1',
  's1': '#1f65c8',
  's2': '#d35312',
  's3': '#1b8a5a',
  's4': '#8b46b5',
  's5': '#927000',
  's6': '#b81b5c',
  'bad': '#c0271d',
}
DARK = {
  'paper': '#14171c',
  'card': '#1e232b',
  'ink': '#e4e8ee',
  'soft': '#a2acba',
  'grid': '#3a424e',
  's1': '#6ea8ff',
  's2': '#ff9a5c',
  's3': '#5fd3a0',
  's4': '#cf9bf0',
  's5': '#e0c04c',
  's6': '#ff85b3',
  'bad': '#ff8b80',
}
SERIES = ('s1', 's2', 's3', 's4', 's5', 's6')


def _variables(colors: Mapping[str, str]) -> str:
  return ' '.join(f'--{name}: {color};' for name, color in colors.items())


COLORS = f"""
:root {{ {_variables(LIGHT)} color-scheme: light dark; }}
@media screen and (prefers-color-scheme: dark) {{
  :root {{ {_variables(DARK)} }} }}
"""
RULES = """\
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
.axis, .charts { display: grid; gap: 1.6rem 2rem; margin-top: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
.axis { display: none; }
#x-updates:checked ~ .by-updates, #x-examples:checked ~ .by-examples,
#x-seconds:checked ~ .by-seconds { display: grid; }
figure { margin: 0; min-width: 0; break-inside: avoid; display: flex;
  flex-direction: column; justify-content: space-between; gap: .3rem; }
.keys { display: flex; flex-wrap: wrap; gap: 0 1rem; }
.keys, .note { font-size: .85rem; }
.key::before { content: ''; display: inline-block; width: 1.3em;
  margin-right: .4em; vertical-align: .25em; border-top: 3px solid; }
.dashed::before { border-top: 2px dashed; } .faint { --faint: .4; }
.dotted::before { border-top: 2px dotted; }
.key::before { opacity: var(--faint, 1); }
.key span { color: var(--ink); }
.empty { padding: 3rem; text-align: center; background: var(--card); }
svg { width: 100%; height: auto; }
svg text { font-family: var(--font) !important; }
summary { cursor: pointer; font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .2rem .6rem .2rem 0; font-weight: 400;
  border-bottom: 1px solid var(--grid); vertical-align: top; }
th { color: var(--soft); width: 45%; }
h2.part { display: block; font-size: 1.2rem; margin: 2rem 0 0; }
.key.dot::before, .key.ring::before, .key.triangle::before,
.key.star::before, .key.cross::before, .key.plus::before,
.key.arrow::before { border: 0; width: auto; vertical-align: 0; }
.key.dot::before { content: '●'; } .key.ring::before { content: '○'; }
.key.triangle::before { content: '△'; } .key.star::before { content: '★'; }
.key.cross::before { content: '×'; } .key.plus::before { content: '+'; }
.key.arrow::before { content: '▲'; }
.key.band::before { border-top-width: .6em; vertical-align: .05em; }
.three { gap: 1rem 1.6rem; margin-top: .4rem;
  grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); }
.lead { font-size: 1.1rem; max-width: 60rem; margin: .2rem 0 .6rem; }
.best { margin: .1rem 0; color: var(--soft); font-size: .9rem; }
.scroll .key { white-space: nowrap; }
.set { margin-top: 1.6rem; }
.legend { padding: .5rem 0; background: var(--paper);
  border-bottom: 1px solid var(--grid); }
.thin::before { border-top-width: 2px; --faint: .75; }
@media screen { .legend { position: sticky; top: 0; } }
@media screen and (max-width: 50rem) {
  .legend { flex-wrap: nowrap; overflow-x: auto; white-space: nowrap; } }
.charts figure { justify-content: flex-start; }
.scroll { overflow-x: auto; }
.scroll td, .scroll th { width: auto; overflow-wrap: normal;
  text-align: right; }
.scroll td { white-space: nowrap; }
pre { margin: 0; padding: .5rem .7rem; background: var(--card);
  border-radius: .5rem; white-space: pre-wrap; word-break: break-all;
  user-select: all; }
.copied { margin: .7rem 0 .2rem; }
.charts td, .charts th { font-size: .92em; padding-right: .5rem; }
.scroll .word { text-align: left; white-space: normal; min-width: 7rem; }
@media print {
  body { padding: 0; max-width: none; font-size: 10pt; }
  label, .against { display: none; }
  .axis, .charts { grid-template-columns: 1fr 1fr; }
  .scroll { font-size: .8em; }
}
"""
STYLE = COLORS + RULES
