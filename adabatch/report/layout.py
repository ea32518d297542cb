"""What all pages are made of: a frame, tiles, pictures with keys, tables."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from adabatch.config import flatten
from adabatch.report.records import number
from adabatch.report.style import STYLE

EMPTY = '<p class="empty">nothing to draw yet</p>'
MOOD = {'completed': 'good', 'target_reached': 'good', 'diverged': 'bad'}


class Key(NamedTuple):
  """What one colour and look in a picture stands for."""

  name: str
  color: str  # of the style sheet
  # 'dashed', 'dotted', 'faint', 'thin', 'band', or the name of a mark
  look: str = ''
  opacity: float = 1.0


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
  >>> [duration(s) for s in (0.0258, 6.3e-6, 2e-9, 0)]
  ['25.8 ms', '6.3 µs', '2 ns', '0 s']
  """
  seconds = number(seconds)
  if 0 < seconds < 0.0999:
    small = 1e3 * seconds
    if small >= 0.1:
      return f'{small:.3g} ms'
    return f'{1e3 * small:.3g} µs' if small >= 1e-4 else f'{1e6 * small:.3g} ns'
  if not seconds >= 60:
    return '–' if math.isnan(seconds) else f'{seconds:.3g} s'
  minutes, rest = divmod(round(seconds), 60)
  hours, days = minutes // 60, minutes // 1440
  if hours == 0:
    return f'{minutes} min {rest:02d} s'
  if days == 0:
    return f'{hours} h {minutes % 60:02d} min'
  return f'{days} d {hours % 24} h'


def document(name: str, body: Iterable[str]) -> str:
  """The whole page around its body."""
  page = [
    '<!DOCTYPE html>',
    '<html lang="en"><head><meta charset="utf-8">',
    # The page needs nothing from elsewhere; this makes the browser see to it.
    '<meta http-equiv="Content-Security-Policy" content="'
    "default-src 'none'; style-src 'unsafe-inline'\">",
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    f'<title>{escape(name)} – adabatch</title><style>{STYLE}</style>',
    '</head><body>',
    *body,
    '</body></html>',
  ]
  return '\n'.join(page) + '\n'


def heading(name: str, status: str, subtitle: str) -> Iterator[str]:
  yield f'<h1>{escape(name)} <span class="status {MOOD.get(status, "")}">'
  yield f'{escape(status.replace("_", " "))}</span></h1>'
  yield f'<p class="subtitle">{escape(subtitle)}</p>'


def tile(name: str, value: str, small: str = '') -> str:
  """One fact; tiles stand in a `<dl class="tiles">`."""
  small = f'<small>{escape(small)}</small>' if small else ''
  return f'<div><dt>{escape(name)}</dt><dd>{escape(value)}{small}</dd></div>'


def key_span(key: Key) -> str:
  """A key before its name; '' if it has none."""
  if not key.name:
    return ''
  faint = '' if key.opacity == 1 else f'; --faint: {key.opacity:.2g}'
  return (
    f'<span class="key {key.look}" style="color: var(--{key.color}){faint}">'
    f'<span>{escape(key.name)}</span></span>'
  )


def figure(
  title: str, unit: str, keys: Sequence[Key], note: str, picture: str
) -> str:
  """A picture with its caption; '' for the picture says that there is none."""
  spans = ''.join(map(key_span, keys)) if picture else ''
  unit = f'({escape(unit)})' if unit else ''
  return (
    f'<figure><figcaption><h2>{escape(title)}</h2> '
    f'<span class="unit">{unit}</span><div class="keys">{spans}</div>'
    f'<div class="note">{escape(note)}</div></figcaption>'
    f'{picture or EMPTY}</figure>'
  )


def details(title: str, nested: Mapping[str, Any]) -> Iterator[str]:
  """A table of keys and values that opens when one asks for it."""
  flat = flatten(nested)
  if flat:
    yield f'<details><summary>{title}</summary><table>'
    for key, value in flat.items():
      if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False)
      yield f'<tr><th scope="row">{escape(key)}</th>'
      yield f'<td>{escape(value)}</td></tr>'
    yield '</table></details>'


def table(
  columns: Sequence[str],
  rows: Iterable[Sequence[str | Key]],
  words: Sequence[str],
) -> Iterator[str]:
  """A wide table; it scrolls by itself where the page is narrow.

  Args:
    columns: their names.
    rows: as many texts each, or keys for what is drawn.
    words: names of the columns that hold words, not numbers.
  """
  looks = [' class="word"' if name in words else '' for name in columns]
  yield '<div class="scroll"><table><thead><tr>'
  for name, look in zip(columns, looks, strict=True):
    yield f'<th scope="col"{look}>{escape(name)}</th>'
  yield '</tr></thead><tbody>'
  for row in rows:
    cells = ''.join(
      f'<td{look}>{key_span(c) if isinstance(c, Key) else escape(c)}</td>'
      for c, look in zip(row, looks, strict=True)
    )
    yield f'<tr>{cells}</tr>'
  yield '</tbody></table></div>'
