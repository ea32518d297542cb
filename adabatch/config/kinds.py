"""The kind of value that each key holds: that of its default, told in words."""

import math
import reprlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from adabatch.config.errors import Config, ConfigError
from adabatch.config.flat import flatten
from adabatch.config.keys import AUTOMATIC, COUNTED, default


class Kind(NamedTuple):
  """What a value may be.

  Attributes:
    words: that say so.
    holds: whether a value is one.
  """

  words: str
  holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
  # What is larger no device can count.
  return type(value) is int and abs(value) < 2**63


def _is_number(value: Any) -> bool:
  if isinstance(value, int):
    return _is_whole(value)
  return isinstance(value, float) and math.isfinite(value)


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _is_plain(value: Any) -> bool:
  """What a file of JSON gives back as it was."""
  if isinstance(value, list | tuple):
    return all(map(_is_plain, value))
  simple = value is None or isinstance(value, bool | str)
  return simple or _is_number(value)


KINDS: dict[type, Kind] = {
  bool: Kind('True or False', lambda value: isinstance(value, bool)),
  int: Kind('a whole number below 2^63', _is_whole),
  float: Kind('a finite number', _is_number),
  str: Kind(
    'a text in one line', lambda value: _is_text(value) and value.isprintable()
  ),
  tuple: Kind('a tuple', lambda value: isinstance(value, list | tuple)),
}
# All 64 bits count.
SEED = Kind('a whole number', lambda value: type(value) is int)
COUNT = Kind(
  "a finite number or a text such as '2.5B'",
  lambda value: _is_number(value) or _is_text(value),
)
LINES = Kind('a text', _is_text)
AUTO = Kind(
  "a whole number below 2^63, or 'auto'",
  lambda value: _is_whole(value) or value == 'auto',
)
# Whose texts may be written in several lines.
TABLES = frozenset(['controller.step_table.table'])
MOST_ENTRIES = 1000
# Of keys of somebody else.
OTHER = Kind(
  'a finite number, a text, True, False, None or a tuple of such', _is_plain
)
# Of tuples whose default tells it not.
ENTRIES = {
  'data.mean': float,
  'data.std': float,
  'data.randaugment': float,
}


def _kinds(table: Config, prefix: str = '') -> Iterator[tuple[str, Kind]]:
  """Of every key of the defaults."""
  for name, value in table.items():
    key = prefix + name
    if hasattr(value, 'items'):
      yield from _kinds(value, f'{key}.')
      continue
    of = table.get_type(name)
    if key == 'seed':
      kind = SEED
    elif key in AUTOMATIC:
      kind = AUTO
    elif of is tuple:
      entry = type(value[0]) if value else ENTRIES[key]
      kind = _several(COUNT if key in COUNTED else KINDS[entry])
    else:
      kind = COUNT if key in COUNTED else KINDS[of]
      kind = LINES if key in TABLES else kind
    yield key, _or_none(kind) if value is None else kind


def _several(kind: Kind) -> Kind:
  return Kind(
    f'a tuple of at most {MOST_ENTRIES}, each {kind.words}',
    lambda value: (
      isinstance(value, list | tuple)
      and len(value) <= MOST_ENTRIES
      and all(map(kind.holds, value))
    ),
  )


def _or_none(kind: Kind) -> Kind:
  return Kind(
    f'{kind.words}, or None', lambda value: value is None or kind.holds(value)
  )


ALL: dict[str, Kind] = dict(_kinds(default()))


def check_kinds(config: Config) -> None:
  """Refuses values of another kind than a key holds.

  Args:
    config: the whole config.

  Raises:
    ConfigError: naming the key, what was given and what is allowed.

  >>> config = default()
  >>> with config.ignore_type():
  ...   config.study.optimizers = (-1,)
  >>> check_kinds(config)
  Traceback (most recent call last):
    ...
  adabatch.config.errors.ConfigError: study.optimizers must be a tuple of at \
most 1000, each a text in one line, got (-1,)
  """
  for key, value in flatten(config).items():
    kind = ALL.get(key, OTHER)
    if not kind.holds(value):
      raise ConfigError(
        f'{key} must be {kind.words}, got {reprlib.repr(value)}'
      )
