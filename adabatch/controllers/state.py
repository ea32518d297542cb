"""What rules are made of, and the way of their states to JSON and back."""

import math
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

from adabatch.controllers.base import OF_UPDATES, MissingSignal, Signals

# Ratios of a measurement to its first value are bounded below by this: a
# size is then at most 1e12 times the initial one, never infinite.
SMALLEST_RATIO = 1e-12

# Digits of a measurement that a rule divides. Sums over devices depend on their
# order in about the seventh digit; unrounded, a `ceil` could turn that into
# another batch size.
SIGNAL_DIGITS = 4

_NON_FINITE = {'inf': math.inf, '-inf': -math.inf, 'nan': math.nan}


def required(
  rule: str, signals: Signals, names: Sequence[str]
) -> tuple[Any, ...] | None:
  """The signals that a rule needs.

  Args:
    rule: its name, for the message.
    signals: what it was given.
    names: of the signals that it reads.

  Returns:
    Their values; None before the first update, where some are of updates and
    do not exist yet.

  Raises:
    MissingSignal: a signal is None that should exist.

  >>> required('cabs', Signals(update=1, loss=2.0), ['update', 'loss'])
  (1, 2.0)
  >>> required('cabs', Signals(update=0), ['update', 'loss'])
  """
  missing = [name for name in names if getattr(signals, name) is None]
  if missing and signals.update == 0 and OF_UPDATES.issuperset(missing):
    return None
  if missing:
    name = missing[0]
    raise MissingSignal(
      f'{rule} reads the signal {name!r}, which is None at update '
      f'{signals.update}: give {name}=... wherever a decision is due (NaN if '
      'there is no estimate), or take a rule that needs less'
    )
  return tuple(getattr(signals, name) for name in names)


class Average(NamedTuple):
  """Bias-corrected exponential moving average.

    total  <- decay total  + (1 - decay) x
    weight <- decay weight + (1 - decay)
    value   = total / weight

  >>> Average().add(3.0, decay=0.9).add(5.0, decay=0.0).value
  5.0
  """

  total: float = 0.0
  weight: float = 0.0

  def add(self, x: float, *, decay: float) -> 'Average':
    """The average with one more value in it."""
    return Average(
      decay * self.total + (1 - decay) * float(x),
      decay * self.weight + (1 - decay),
    )

  @property
  def value(self) -> float:
    """The average; NaN while it is empty."""
    return self.total / self.weight if self.weight else math.nan


class Mean(NamedTuple):
  """Plain mean of all values so far.

  >>> Mean().add(3.0).add(5.0)
  Mean(value=4.0, count=2)
  """

  value: float = 0.0
  count: int = 0

  def add(self, x: float) -> 'Mean':
    """The mean with one more value in it."""
    count = self.count + 1
    # Terms that are divided first cannot overflow.
    return Mean(self.value + (float(x) / count - self.value / count), count)


class Held(NamedTuple):
  """The smallest state: the last size, and how many signals were ignored."""

  batch_size: float
  ignored: int = 0


def hold(state: Any) -> tuple[float, Any]:
  """Keep the last size."""
  return state.batch_size, state


def hold_below_minimum(state: Any) -> tuple[float, Any]:
  """Keep the last size and count a loss that was not above F*."""
  return hold(state._replace(below_minimum=state.below_minimum + 1))


def reject(state: Any) -> tuple[float, Any]:
  """Keep the last size and count a signal that was not finite."""
  return hold(state._replace(ignored=state.ignored + 1))


def accept(state: Any, size: float, *, smallest: float) -> tuple[float, Any]:
  """Take a new size, at least `smallest` (>= 1), unless not finite."""
  if not math.isfinite(size):
    return reject(state)
  return hold(state._replace(batch_size=float(max(size, smallest))))


def round_up(size: float) -> float:
  """ceil(size) that forgives the rounding error of a few operations.

  Without that, 64 (0.3 / 0.1) / 3 would be 65 and fill another bucket.

  >>> round_up(64 * (1 + 1e-15)), round_up(64.01)
  (64.0, 65.0)
  """
  if not math.isfinite(size):
    return size
  return float(math.ceil(size - 1e-12 * abs(size)))


def round_signal(value: float) -> float:
  """Rounds to significant digits.

  Rules round what they divide, and not what they are given: of a loss close to
  F* the difference has to keep its digits, not the loss.

  >>> round_signal(0.123456), round_signal(1.00049 - 1)
  (0.1235, 0.00049)
  """
  return float(f'{value:.{SIGNAL_DIGITS - 1}e}')


def losses_below_minimum(state: Any) -> int:
  """How often a rule read a loss that was not above F*, and kept its size.

  Args:
    state: of a controller, with any number of wrappers around it.

  >>> from adabatch.controllers import adadamp
  >>> losses_below_minimum(adadamp(initial_batch_size=8).init())
  0
  """
  while hasattr(state, 'inner'):
    state = state.inner
  return getattr(state, 'below_minimum', 0)


def check_number(
  name: str,
  value: float,
  *,
  at_least: float | None = None,
  above: float | None = None,
  below: float | None = None,
) -> None:
  """Raise a one-line ValueError unless `value` is finite and in range."""
  limits = (('>=', at_least), ('>', above), ('<', below))
  bounds = [f'{sign} {x:g}' for sign, x in limits if x is not None]
  allowed = ' and '.join(['a finite number', *bounds])
  if not (
    isinstance(value, numbers.Real)
    and math.isfinite(value)
    and (at_least is None or value >= at_least)
    and (above is None or value > above)
    and (below is None or value < below)
  ):
    raise ValueError(f'{name}={value!r} was given; set {name} to {allowed}')


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
  """Raise a one-line ValueError unless `value` is one of `choices`."""
  if value not in choices:
    raise ValueError(
      f'{name}={value!r} was given; set {name} to one of {", ".join(choices)}'
    )


def check_minimum_loss(minimum_loss: float, initial_loss: float) -> None:
  """Raise a one-line ValueError if F* lies above the first measured loss."""
  if minimum_loss > initial_loss:
    raise ValueError(
      f'minimum_loss={minimum_loss!r} was given but the initial loss is only '
      f'{initial_loss:.6g}; give a lower bound of the loss'
    )


def state_to_json(state: Any) -> Any:
  """A controller's state as plain JSON values.

  NamedTuples become objects, tuples lists, and non-finite numbers the
  strings 'inf', '-inf' and 'nan', which strict JSON readers accept too.

  Args:
    state: what `init` or `update` of a controller returned.

  Returns:
    Dicts, lists, numbers, strings and None; `json.dumps` takes it.

  Raises:
    ValueError: the state holds something other than numbers.

  >>> state_to_json(Held(64.0))
  {'batch_size': 64.0, 'ignored': 0}
  """
  if isinstance(state, tuple):
    if hasattr(state, '_fields'):
      fields = zip(state._fields, state, strict=True)  # pyright: ignore
      return {name: state_to_json(leaf) for name, leaf in fields}
    return [state_to_json(leaf) for leaf in state]
  if state is None:
    return None
  if isinstance(state, numbers.Integral):
    return int(state)
  if isinstance(state, numbers.Real):
    value = float(state)
    return value if math.isfinite(value) else str(value)
  raise ValueError(
    f'a controller state holds {state!r}; allowed are numbers, None and '
    'tuples of them; keep anything else outside the state'
  )


def state_from_json(template: Any, data: Any) -> Any:
  """The inverse of `state_to_json`, exact to the last bit.

  Args:
    template: `controller.init()` of the controller that made the state. An
      empty tuple in it stands for any number of floats.
    data: what `state_to_json` returned, after any trip through JSON text.

  Returns:
    A state with the template's structure and the data's numbers.

  Raises:
    ValueError: the data has another structure than the template.

  >>> state_from_json(Held(1.0), {'batch_size': 96.0, 'ignored': 2})
  Held(batch_size=96.0, ignored=2)
  """
  return _from_json(template, data, 'state')


def _from_json(template: Any, data: Any, where: str) -> Any:
  if isinstance(template, tuple) and hasattr(template, '_fields'):
    fields: tuple[str, ...] = template._fields  # pyright: ignore
    if not isinstance(data, dict) or set(data) != set(fields):
      given = sorted(data) if isinstance(data, dict) else repr(data)
      raise _mismatch(where, given, f'the fields {sorted(fields)}')
    return type(template)(
      **{
        name: _from_json(leaf, data[name], f'{where}.{name}')
        for name, leaf in zip(fields, template, strict=True)
      }
    )
  if isinstance(template, tuple):
    if isinstance(data, list | tuple) and not template:
      template = (0.0,) * len(data)
    if not isinstance(data, list | tuple) or len(data) != len(template):
      raise _mismatch(where, repr(data), f'a list of {len(template)}')
    return tuple(
      _from_json(leaf, item, f'{where}[{i}]')
      for i, (leaf, item) in enumerate(zip(template, data, strict=True))
    )
  if isinstance(data, str) and data in _NON_FINITE:
    data = _NON_FINITE[data]
  if template is None and data is None:
    return None
  if isinstance(data, bool) or not isinstance(data, int | float):
    raise _mismatch(where, repr(data), 'a number')
  if isinstance(template, int) and not isinstance(data, int):
    raise _mismatch(where, repr(data), 'a whole number')
  return float(data) if isinstance(template, float) else data


def _mismatch(where: str, given: Any, allowed: str) -> ValueError:
  return ValueError(
    f'{where} is {given} but this controller has {allowed} there; '
    'restore with the controller that wrote the state'
  )
