"""A batch-size rule of one's own, held to what `controllers.base` says."""

import contextlib
import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any

from adabatch.config import ConfigError
from adabatch.controllers import (
  BatchSizeController,
  MissingSignal,
  Signals,
  State,
  always,
  check_needs,
  state_to_json,
)


def held_to_contract(
  factory: Callable[..., Any], key: str
) -> Callable[..., BatchSizeController]:
  """A function that makes the same rules, of which each mistake is one line.

  Args:
    factory: what was registered.
    key: of the config, that names the rule.

  Returns:
    A function whose rules raise a `ConfigError` where theirs fail, or return
    something else than a size, a state or a truth value.
  """

  def make(**parameters: Any) -> BatchSizeController:
    with _one_line(key, 'making it'):
      rule = factory(**parameters)
      if not isinstance(rule, BatchSizeController):
        raise TypeError(f'it returned {rule!r}: return a BatchSizeController')
      check_needs(rule)

    def init() -> State:
      with _one_line(key, 'init'):
        return _checked_state(rule.init())

    def update(state: State, signals: Signals) -> tuple[float, State]:
      with _one_line(key, 'update'):
        size, state = rule.update(state, signals)
        return _checked_size(size), _checked_state(state)

    def due(update: int) -> bool:
      with _one_line(key, 'due'):
        return bool(rule.due(update))

    # Wrappers know `always`, and look no further.
    when = always if rule.due is always else due
    return rule._replace(init=init, update=update, due=when)

  return make


@contextlib.contextmanager
def _one_line(key: str, what: str) -> Iterator[None]:
  """Of somebody's own code any exception, but for what wrappers wait for."""
  try:
    yield
  except (ConfigError, MissingSignal):
    raise
  except Exception as error:
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())
    raise ConfigError(f'{key}: {what}: {reason}') from error


def _checked_size(size: Any) -> float:
  number = isinstance(size, numbers.Real) and not isinstance(size, bool)
  if not (number and 1 <= float(size) < math.inf):
    raise ValueError(
      f'it returned the size {size!r}: return (size, state), the size a finite '
      'number of at least 1'
    )
  return float(size)


def _checked_state(state: State) -> State:
  state_to_json(state)  # of which a checkpoint is made
  return state
