"""Words on one key, or on a table of them: `adabatch explain KEY`."""

import ast
import re
import textwrap
from collections.abc import Mapping
from typing import NamedTuple

from adabatch import config
from adabatch.command import configs, docstrings
from adabatch.config.comments import comments
from adabatch.config.kinds import ALL
from adabatch.config.ranges import RANGES

MOST = 6  # configs and files that are named


class Explained(NamedTuple):
  """What there is to say of a key.

  Attributes:
    key: with dots.
    comment: what it means.
    default: of it, as Python writes it.
    kind: of value, in words.
    range: of numbers, in words; '' where the rule that takes it checks it.
    read: files that read it, from the package on.
    set: (config, value), of the configs that come along and set it.
  """

  key: str
  comment: str
  default: str
  kind: str
  range: str
  read: list[str]
  set: list[tuple[str, str]]


def explain(key: str) -> Explained:
  """What there is to say of a key.

  Raises:
    ConfigError: if there is none such, with the nearest.

  >>> found = explain('controller.every')
  >>> found.comment, found.default, found.range
  ('updates between two decisions', '20', 'at least 1')
  """
  flat = config.flatten(config.default())
  if key not in flat:
    raise config.ConfigError(f'no key {key!r}{config.nearest(key)}')
  return Explained(
    key,
    comments()[key],
    repr(flat[key]),
    ALL[key].words,
    RANGES[key][0] if key in RANGES else '',
    _readers(key, _sources()),
    _setters(key),
  )


def keys_of(table: str) -> dict[str, str]:
  """Of a table each key, with its comment; of '' all; {} of no table."""
  prefix = f'{table}.' if table else ''
  known = config.flatten(config.default())
  return {
    key: comments()[key] for key in sorted(known) if key.startswith(prefix)
  }


def describe(key: str) -> str:
  """All of it, in a few lines; of a table its keys, a line each."""
  if (keys := keys_of(key)) and key not in keys:
    about = comments().get(key, '')
    rows = [f'{name}: {comment}' for name, comment in keys.items()]
    wrapped = [_wrap(row, '  ') for row in rows]
    return '\n'.join([*([_wrap(about)] if about else []), *wrapped])
  found = explain(key)
  kind = found.kind + (f', {found.range}' if found.range else '')
  lines = [
    found.key,
    _wrap(found.comment, '  '),
    '',
    f'  default   {found.default}',
    f'  value     {kind}',
    f'  example   --set {found.key}={_example(found)}',
  ]
  if found.set:
    rows = [f'{value} in {name}' for name, value in found.set[:MOST]]
    more = len(found.set) - MOST
    rows += [f'... and {more} more'] if more > 0 else []
    lines.append(f'  configs   {(chr(10) + " " * 12).join(rows)}')
  read = found.read[:MOST]
  lines.append(f'  read in   {(chr(10) + " " * 12).join(read)}')
  return '\n'.join(lines)


def _wrap(text: str, indent: str = '') -> str:
  return textwrap.fill(
    text, 78, initial_indent=indent, subsequent_indent=indent + '  '
  )


def _example(found: Explained) -> str:
  """A value, as a shell takes it: one that is in use, or the default."""
  value = found.set[0][1] if found.set else found.default
  return value if re.fullmatch(r'[\w.+-]+', value.strip("'")) else f'"{value}"'


def _setters(key: str) -> list[tuple[str, str]]:
  """Of the configs that come along those that set it, and the value."""
  found = []
  for name, path in configs.files().items():
    if f'c.{key} ' not in (source := path.read_text()):
      continue
    for node in ast.walk(ast.parse(source)):
      if (
        isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == f'c.{key}'
      ):
        found.append((name, ast.unparse(node.value)))
        break
  return found


def _readers(key: str, sources: Mapping[str, str]) -> list[str]:
  """The files that read it.

  Of a rule's own table, which is handed over whole, where the rule is defined.
  Else those with the key in full, as attributes or in a text; else, because a
  table often has a short name there, those with its table and its last part.
  """
  parts = key.split('.')
  if len(parts) == 3 and parts[0] in docstrings.TABLES:
    module, table = docstrings.TABLES[parts[0]]
    try:
      return [docstrings.place(module, table, parts[1])]
    except LookupError:
      pass  # no such row, such as sync.tune
  start = r'\bconfig\.' if len(parts) == 1 else r'\.'
  last = re.escape(parts[-1])
  attempts = [
    [start + re.escape(key) + r'\b'],
    [rf'\b{re.escape(key)}\b'],
    [rf'\.{parts[-2]}\b', rf'(\.|\'){last}\b'] if len(parts) > 1 else ['$^'],
  ]
  for patterns in attempts:
    compiled = [re.compile(pattern) for pattern in patterns]
    found = [
      name
      for name, source in sources.items()
      if parts[-1] in source and all(p.search(source) for p in compiled)
    ]
    if found:
      return found
  return []


def _sources() -> dict[str, str]:
  """Of every file that may read a config."""
  root = docstrings.ROOT
  return {
    str(path.relative_to(root.parent)): path.read_text()
    for path in sorted(root.rglob('*.py'))
    if path.relative_to(root).parts[0] not in ('config', 'command')
  }
