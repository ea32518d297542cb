"""What a config is, and how one that cannot be run is refused."""

import contextlib
from collections.abc import Iterator
from typing import Any

# A ConfigDict; its attributes have no static types.
Config = Any


class ConfigError(ValueError):
  """A config that cannot be run, in one line that says what to do."""


def choose(table: dict[str, Any], name: str, key: str) -> Any:
  """The entry of a table, or a line that lists what there is."""
  if name not in table:
    raise ConfigError(
      f'unknown {key} {name!r}: choose one of {", ".join(sorted(table))}'
    )
  return table[name]


@contextlib.contextmanager
def refusing(key: str) -> Iterator[None]:
  """Names the key whose value some part could not work with."""
  try:
    yield
  except ConfigError:
    raise
  except (ValueError, TypeError, ArithmeticError) as error:
    reason = ' '.join(str(error).split())
    raise ConfigError(f'{key}: {reason}') from error
