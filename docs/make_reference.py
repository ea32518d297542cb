"""Makes docs/reference/: every key, and every public symbol.

python docs/make_reference.py
"""

import importlib
import pathlib
from html import escape

from adabatch import config
from adabatch.command.explain import explain, keys_of
from adabatch.config.comments import comments

REFERENCE = pathlib.Path(__file__).parent / 'reference'
# Modules whose public symbols are for others to use.
MODULES = (
  'adabatch',
  'adabatch.controllers',
  'adabatch.optim',
  'adabatch.models',
  'adabatch.data',
  'adabatch.study',
  'adabatch.report',
  'adabatch.train',
  'adabatch.config',
)
# Modules without a list of their public symbols, of which all are shown.
WHOLE = (
  'adabatch.controllers.buckets',
  'adabatch.controllers.pytorch',
  'adabatch.models.tasks',
)


def keys_page() -> str:
  """Every key, by table."""
  lines = [
    '# All keys',
    '',
    'Each is set by `--set KEY=VALUE` of `adabatch`, by `--config.KEY=VALUE` '
    'of `launch.py`, or by `c.KEY = VALUE` in a config. `adabatch explain KEY` '
    'says the same in a terminal, with the configs that set it. Of the rules, '
    'networks and sync rules with a table of their own, the others are '
    'ignored. `None` means: not set.',
    '',
  ]
  tables: dict[str, list[str]] = {}
  for key in keys_of(''):
    tables.setdefault(_table(key), []).append(key)
  for table, keys in tables.items():
    lines += [f'## {table or "Of the run"}', '']
    if about := comments().get(table):
      lines += [_sentence(about), '']
    lines += ['| key | default | value | meaning |', '|---|---|---|---|']
    lines += [_row(key) for key in keys]
    lines += ['']
  return '\n'.join(lines)


def _table(key: str) -> str:
  """The first part of a key, where there is one."""
  return key.partition('.')[0] if '.' in key else ''


def _row(key: str) -> str:
  found = explain(key)
  value = found.kind + (f', {found.range}' if found.range else '')
  cells = f'`{key}`', f'`{found.default}`', value, _sentence(found.comment)
  return f'| {" | ".join(_cell(cell) for cell in cells)} |'


def _cell(text: str) -> str:
  return text.replace('|', '\\|')


def _sentence(text: str) -> str:
  """With a capital and a stop, its markup taken as it stands."""
  text = escape(text, quote=False).replace('*', '\\*')
  text = text[0].upper() + text[1:] if text[:2].islower() else text
  return text if text.endswith(('.', '...')) else f'{text}.'


def public_of(name: str) -> list[str]:
  """The public symbols of a module, but for what Python itself reads."""
  names = importlib.import_module(name).__all__
  return [symbol for symbol in names if not symbol.startswith('__')]


def module_page(name: str) -> str:
  """Every public symbol of a module, by mkdocstrings."""
  lines = [f'# {name}', '', f'::: {name}', '    options:']
  if name in MODULES:
    lines += ['      members:']
    lines += [f'        - {symbol}' for symbol in public_of(name)]
  lines += ['      show_root_heading: false', '']
  return '\n'.join(lines)


def pages() -> dict[str, str]:
  """File name -> text, of all."""
  found = {'keys.md': keys_page()}
  for name in (*MODULES, *WHOLE):
    found[f'{name}.md'] = module_page(name)
  return found


if __name__ == '__main__':
  REFERENCE.mkdir(exist_ok=True)
  for name, text in pages().items():
    (REFERENCE / name).write_text(text)
  print(f'{len(config.flatten(config.default()))} keys, {len(pages())} pages')
