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
# Modules whose public symbols are for others to use, and what each is.
MODULES = {
  'adabatch': 'A batch size for a loop of your own, a trained network, parts of '
  'your own.',
  'adabatch.controllers': 'Batch-size rules, and what wraps them.',
  'adabatch.optim': 'Optax transforms, schedules, the gradient noise, replicas.',
  'adabatch.models': 'Networks.',
  'adabatch.data': 'Sets, their one order, augmentation.',
  'adabatch.study': 'Steps to result, critical batch sizes.',
  'adabatch.report': 'Pages of runs, searches, studies and probes.',
  'adabatch.train': 'The training itself.',
  'adabatch.config': 'What a config may hold.',
}
# Modules without a list of their public symbols, of which all are shown.
WHOLE = {
  'adabatch.controllers.buckets': 'From a nominal size to what the hardware '
  'runs.',
  'adabatch.controllers.pytorch': 'Callbacks for the Trainers of Hugging Face '
  'and Lightning.',
  'adabatch.models.tasks': 'What a network is trained for.',
}


def keys_page() -> str:
  """Every key, by table."""
  lines = [
    '# All keys',
    '',
    'Each is set by `--set KEY=VALUE` of `adabatch`, by `--config.KEY=VALUE` of '
    '`launch.py`, or by `c.KEY = VALUE` in a config. `adabatch explain KEY` '
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


def module_page(name: str) -> str:
  """Every public symbol of a module, by mkdocstrings."""
  about = MODULES.get(name) or WHOLE[name]
  lines = [f'# {name}', '', about, '', f'::: {name}', '    options:']
  if name in MODULES:
    public = importlib.import_module(name).__all__
    lines += ['      members:']
    lines += [f'        - {symbol}' for symbol in public]
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
