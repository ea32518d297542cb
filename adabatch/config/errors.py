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


# What a part raises that cannot work with a value.
MISTAKES = (ValueError, TypeError, ArithmeticError)


@contextlib.contextmanager
def refusing(key: str, *errors: type[Exception]) -> Iterator[None]:
  """Names the key whose value some part could not work with.

  Args:
    key: that is named.
    *errors: that say so; none for `MISTAKES`.
  """
  said = errors or MISTAKES
  try:
    yield
  except ConfigError:
    raise
  except said as error:
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise ConfigError(f'{key}: {reason}') from error
