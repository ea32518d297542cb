"""The batch size in a loop of one's own: a rule with its state and counts."""

import collections
import operator
from typing import Any

from adabatch.controllers import buckets
from adabatch.controllers.base import (
  OF_UPDATES,
  PROGRESS,
  BatchSizeController,
  GradientNoise,
  MissingSignal,
  Signals,
  check_needs,
)
from adabatch.controllers.buckets import Ladder, Plan
from adabatch.controllers.state import state_from_json, state_to_json

_FIELDS = (
  'rule',
  'ladder',
  'num_examples',
  'nominal',
  'updates',
  'examples',
  'taken',
  'state',
)


class BatchSize:
  """The batch size to use now; told of each update, it decides on the next.

  Read `size` and `damping` before each update, call `observe` once after it. A
  rule that reads a pass over the data before the first update has it by
  `start`; for all others the size is there at once.

  >>> from adabatch.controllers import adadamp
  >>> rule = adadamp(initial_batch_size=8, decay=0.0)
  >>> batch_size = BatchSize(rule, buckets.ladder(8, 64, devices=1))
  >>> for loss in (2.0, 0.7, 0.1):
  ...   batch_size.observe(loss=loss)
  ...   print(batch_size.nominal, batch_size.size, batch_size.damping)
  8.0 8 1.0
  23.0 32 1.0
  160.0 64 0.4
  >>> batch_size.updates, batch_size.examples
  (3, 48)
  """

  def __init__(
    self,
    controller: BatchSizeController,
    ladder: Ladder,
    *,
    num_examples: int | None = None,
  ):
    """Before the first update.

    Args:
      controller: the rule, with any wrappers around it.
      ladder: the sizes that are run, of `buckets.ladder`.
      num_examples: the size of an epoch, where a rule or a sampler counts them.

    Raises:
      ValueError: the epoch has no examples, the rule needs what is no signal,
        or it refuses to begin.
    """
    if num_examples is not None and num_examples < 1:
      raise ValueError(
        f'num_examples={num_examples} was given; set it to the number of '
        'training examples, at least 1'
      )
    check_needs(controller)
    self.num_examples = num_examples
    self._controller, self._ladder = controller, ladder
    self._state = controller.init()
    self._plan: Plan | None = None
    self._updates = self._examples = 0
    self._taken: collections.deque[int] = collections.deque()
    if not self.needs:
      self.start()

  @property
  def started(self) -> bool:
    """Whether the first size is known; if not, `start` or a state gives it."""
    return self._plan is not None

  @property
  def plan(self) -> Plan:
    """What the next update runs; its bucket says in which microbatches."""
    if self._plan is None:
      raise MissingSignal(
        'the first batch size depends on a measurement: call start('
        f'{", ".join(f"{name}=..." for name in sorted(self.needs))}) before '
        'the first update, or load_state_dict'
      )
    return self._plan

  @property
  def size(self) -> int:
    """The examples of the next update."""
    return self.plan.batch_size

  @property
  def nominal(self) -> float:
    """The batch size that the rule asks for, in examples."""
    return self.plan.nominal

  @property
  def damping(self) -> float:
    """The factor on the learning rate of the next update, at most 1."""
    return self.plan.damping

  @property
  def updates(self) -> int:
    """Updates that were observed."""
    return self._updates

  @property
  def examples(self) -> int:
    """Examples of all updates that were observed."""
    return self._examples

  @property
  def epoch(self) -> float | None:
    """Examples over the size of an epoch; None where that is not known."""
    if self.num_examples is None:
      return None
    return self.examples / self.num_examples

  @property
  def due(self) -> bool:
    """Whether the next call of `observe` may change the size."""
    return self._controller.due(self._next_update)

  @property
  def needs(self) -> frozenset[str]:
    """The signals that the next call of `observe`, or `start`, will read.

    What takes a pass over data (`full_*`, `subset_*`) is among them only where
    a decision is due. The counts are not: they are known.
    """
    needs = self._controller.needs - self._counted
    if self._plan is None:
      return needs - OF_UPDATES - PROGRESS
    return needs if self.due else needs & OF_UPDATES

  @property
  def taken(self) -> tuple[int, ...]:
    """Sizes of the batches that were taken and not observed yet, in order."""
    return tuple(self._taken)

  def start(self, **signals: Any) -> None:
    """Chooses the first size by what was measured before the first update.

    Args:
      **signals: those of `needs`, by name; see `Signals`.

    Raises:
      MissingSignal: the rule reads another one.
      ValueError: the run has begun, a signal is unknown or not one number, or
        the rule cannot work with it.
    """
    if self._plan is not None:
      raise ValueError(
        'start() was called, but the first batch size is known already; call '
        'it once, and only for a rule whose `needs` are not empty before it'
      )
    self._ask(self._read(Signals(0, 0, 0.0), signals))

  def take(self) -> int:
    """The size of one more batch, made ready ahead of its update.

    For loaders that prefetch: what was taken is what the next updates have,
    whatever `size` is by then.
    """
    self._taken.append(self.size)
    return self._taken[-1]

  def observe(self, examples: int | None = None, **signals: Any) -> None:
    """Counts an update that is done, and decides on the next size where due.

    Args:
      examples: of the update; None for those of the oldest batch taken, or, if
        none was, for `size`.
      **signals: those of `needs`, by name; see `Signals`. A scalar array or
        tensor will do; what the rule does not read is not looked at, and so
        not waited for. `epoch` where the size of an epoch is not known.

    Raises:
      MissingSignal: a decision is due and lacks a signal; nothing is counted.
      ValueError: no examples, a signal is unknown or not one number, or the
        rule cannot work with it.
    """
    done = self._done(examples)
    update, total = self._updates + 1, self._examples + done
    epoch = self.num_examples and total / self.num_examples
    counts = Signals(update, total, epoch, batch_size=done)
    values = self._read(counts, signals)
    # A rule that reads nothing of updates need not be asked at each.
    if self.due or self._controller.needs & OF_UPDATES:
      self._ask(values)
    self._updates, self._examples = update, total
    while done > 0 and self._taken:
      done -= self._taken.popleft()

  def state_dict(self) -> dict[str, Any]:
    """All that a restart needs, as plain values that JSON keeps exactly."""
    return {
      'rule': self._controller.rule,
      'ladder': self._sizes(),
      'num_examples': self.num_examples,
      'nominal': self._plan and self._plan.nominal,
      'updates': self._updates,
      'examples': self._examples,
      'taken': list(self._taken),
      'state': state_to_json(self._state),
    }

  def load_state_dict(self, saved: dict[str, Any]) -> None:
    """Goes on from what `state_dict` gave, with the same rule, ladder and
    number of examples.

    Args:
      saved: that, after any trip through JSON.

    Raises:
      ValueError: it is of another rule or of other sizes; nothing is changed.
    """
    if not isinstance(saved, dict) or set(saved) != set(_FIELDS):
      raise ValueError(
        f'{saved!r:.60} is no state of a BatchSize; give what state_dict() '
        f'returned, with {", ".join(_FIELDS)}'
      )
    here = {
      'rule': self._controller.rule,
      'ladder': self._sizes(),
      'num_examples': self.num_examples,
    }
    for what, value in here.items():
      if saved[what] != value:
        raise ValueError(
          f'the state is of the {what} {saved[what]}, but this BatchSize has '
          f'{value}; restore with what wrote the state'
        )
    state = state_from_json(self._controller.init(), saved['state'])
    nominal = saved['nominal']
    plan = None if nominal is None else buckets.plan(nominal, self._ladder)
    self._state, self._plan = state, plan
    self._updates, self._examples = saved['updates'], saved['examples']
    self._taken = collections.deque(saved['taken'])

  @property
  def _counted(self) -> frozenset[str]:
    """What is known here, and need not be told."""
    known = PROGRESS if self.num_examples else PROGRESS - {'epoch'}
    return known | {'batch_size'}

  @property
  def _next_update(self) -> int:
    return 0 if self._plan is None else self._updates + 1

  def _ask(self, signals: Signals) -> None:
    nominal, state = self._controller.update(self._state, signals)
    self._plan, self._state = buckets.plan(nominal, self._ladder), state

  def _done(self, examples: int | None) -> int:
    if examples is None:
      return self._taken[0] if self._taken else self.size
    done = operator.index(examples)
    if done < 1:
      raise ValueError(
        f'examples={examples} was given; observe() is for updates that had '
        'some, at least 1'
      )
    self.plan  # noqa: B018, refuses an update before the start
    return done

  def _read(self, counts: Signals, given: dict[str, Any]) -> Signals:
    """The signals of an update: what is needed of those given, as floats."""
    allowed = [name for name in Signals._fields if name not in self._counted]
    for name in given:
      if name not in allowed:
        raise ValueError(
          f'{name}=... was given, which is no signal that a loop reports; '
          f'choose among {", ".join(allowed)}'
        )
    return counts._replace(
      **{
        name: _plain(name, given[name])
        for name in self.needs & given.keys()
        if given[name] is not None
      }
    )

  def _sizes(self) -> dict[str, Any]:
    """The part of a ladder that sizes and damping depend on."""
    return {
      'batch_sizes': list(self._ladder.batch_sizes),
      'rounding': self._ladder.rounding,
      'replicas': self._ladder.replicas,
      'damping_exponent': self._ladder.damping_exponent,
    }


def _plain(name: str, value: Any) -> float | GradientNoise:
  if name == 'gradient_noise':
    try:
      trace, norm = value
    except (TypeError, ValueError) as error:
      raise ValueError(
        f'gradient_noise={value!r} was given; give GradientNoise('
        'trace_covariance, squared_norm)'
      ) from error
    return GradientNoise(_plain('S', trace), _plain('|G|^2', norm))  # pyright: ignore
  shape = tuple(getattr(value, 'shape', ()))
  if shape:
    raise ValueError(
      f'{name} of shape {shape} was given; give one number, such as its mean'
    )
  # A tensor of torch that requires a gradient warns of float().
  return float(value.item() if hasattr(value, 'item') else value)
