"""Controllers around controllers: when, and how fast, the size may change.

All call the inner controller at each update, so that its averages see every
signal, and look at what it says only where a decision is due. Between decisions
it may go without a signal that it needs: it then keeps its state.
"""

from collections.abc import Callable
from typing import NamedTuple

from adabatch.controllers.base import (
  BatchSizeController,
  MissingSignal,
  Signals,
  State,
  always,
  described,
)
from adabatch.controllers.state import check_number


class WrapperState(NamedTuple):
  """State of a wrapper: the size it holds and the inner state."""

  inner: State
  batch_size: float | None = None  # None before the first call


@described
def every(
  controller: BatchSizeController, updates: int = 20, wait: int = 0
) -> BatchSizeController:
  """Change the size only every so many updates.

    due(k) = k = 0, or k >= wait and (k - wait) mod updates = 0

  and the inner controller is due as well: of two nested `every`, decisions
  fall on the updates that both allow. The inner controller still sees each
  update's signals.

  Args:
    controller: the inner controller.
    updates: between two decisions.
    wait: updates before the first change.

  Returns:
    A controller that holds its size between decisions.

  Raises:
    ValueError: `updates` is below 1 or `wait` below 0.

  >>> from adabatch.controllers import padadamp
  >>> controller = every(
  ...   padadamp(initial_batch_size=8, rate=1.0), updates=2, wait=3)
  >>> state, sizes = controller.init(), []
  >>> for k in range(7):
  ...   size, state = controller.update(state, Signals(update=k))
  ...   sizes.append(size)
  >>> sizes
  [8.0, 8.0, 8.0, 11.0, 11.0, 13.0, 13.0]

  Reference: the authors' code holds for 20 updates after waiting for 100,
  https://github.com/stsievert/adadamp
  """
  ours, theirs = every_due(updates, wait), controller.due

  def both(k: int) -> bool:
    return ours(k) and theirs(k)

  due = ours if theirs is always else both
  return _wrap(controller, lambda held, proposed: proposed, due)


def every_due(updates: int = 20, wait: int = 0) -> Callable[[int], bool]:
  """After which updates `every` decides: k -> whether that is one of them.

  For rules that are dear to ask, such as `from_lr_schedule`.

  Args:
    updates: between two decisions.
    wait: updates before the first change.

  Raises:
    ValueError: `updates` is below 1 or `wait` below 0.

  >>> [k for k in range(9) if every_due(updates=3, wait=2)(k)]
  [0, 2, 5, 8]
  """
  check_number('updates', updates, at_least=1)
  check_number('wait', wait, at_least=0)
  return lambda k: k == 0 or (k >= wait and (k - wait) % updates == 0)


@described
def monotone(controller: BatchSizeController) -> BatchSizeController:
  """Never shrink: B_k = max(B_{k-1}, b_k), where b_k is the inner size.

  Args:
    controller: the inner controller.

  Returns:
    A controller whose size never decreases.

  >>> from adabatch.controllers import step_table
  >>> controller = monotone(step_table(table='0:64 100:32'))
  >>> _, state = controller.update(controller.init(), Signals(examples=0))
  >>> controller.update(state, Signals(update=1, examples=100))[0]
  64.0
  """
  return _wrap(controller, max, controller.due)


@described
def smooth(controller: BatchSizeController, rho: float) -> BatchSizeController:
  """Average the logarithms of the sizes at each decision.

    B_k = B_{k-1}^rho b_k^(1 - rho)

  A size that is far too large for once counts little: half-way between 64 and
  64e12 lies 64e6, not 32e12.

  Args:
    controller: the inner controller, which proposes b_k.
    rho: weight of the past, from 0 (no smoothing) up to below 1.

  Returns:
    A controller whose size follows the inner one with a delay.

  Raises:
    ValueError: `rho` is out of range.

  >>> from adabatch.controllers import step_table
  >>> controller = smooth(step_table(table='0:64 100:128'), rho=0.75)
  >>> _, state = controller.update(controller.init(), Signals(examples=0))
  >>> round(controller.update(state, Signals(update=1, examples=100))[0], 2)
  76.11
  """
  check_number('rho', rho, at_least=0, below=1)

  def change(held: float, proposed: float) -> float:
    # Written so that equal sizes stay equal to the last bit: a size of
    # 64.00000000000001 would be rounded up to another bucket.
    mean = proposed * (held / proposed) ** rho
    return min(max(mean, min(held, proposed)), max(held, proposed))

  return _wrap(controller, change, controller.due)


@described
def limit_growth(
  controller: BatchSizeController, factor: float
) -> BatchSizeController:
  """Grow at most by a factor per decision: B_k = min(b_k, factor B_{k-1}).

  Shrinking is not limited. Put it around `every`, not inside: without
  `every` each update is a decision.

  Args:
    controller: the inner controller, which proposes b_k.
    factor: largest growth at one decision, above 1.

  Returns:
    A controller whose size approaches the inner one in bounded steps.

  Raises:
    ValueError: `factor` is not above 1.

  >>> from adabatch.controllers import step_table
  >>> controller = limit_growth(step_table(table='0:64 100:512'), factor=2)
  >>> _, state = controller.update(controller.init(), Signals(examples=0))
  >>> controller.update(state, Signals(update=1, examples=100))[0]
  128.0
  """
  check_number('factor', factor, above=1)
  return _wrap(
    controller,
    lambda held, proposed: min(proposed, factor * held),
    controller.due,
  )


@described
def hysteresis(
  controller: BatchSizeController, ratio: float
) -> BatchSizeController:
  """Ignore small changes: B_k = b_k if it is far from B_{k-1}, else B_{k-1}.

    far: b_k > ratio B_{k-1} or b_k < B_{k-1} / ratio

  Args:
    controller: the inner controller, which proposes b_k.
    ratio: smallest relative change to follow, above 1.

  Returns:
    A controller that changes its size less often.

  Raises:
    ValueError: `ratio` is not above 1.

  >>> from adabatch.controllers import step_table
  >>> controller = hysteresis(step_table(table='0:64 100:70 200:90'), ratio=1.2)
  >>> _, state = controller.update(controller.init(), Signals(examples=0))
  >>> size, state = controller.update(state, Signals(update=1, examples=100))
  >>> size, controller.update(state, Signals(update=2, examples=200))[0]
  (64.0, 90.0)
  """
  check_number('ratio', ratio, above=1)
  return _wrap(
    controller,
    lambda held, proposed: (
      held if held / ratio <= proposed <= ratio * held else proposed
    ),
    controller.due,
  )


def _wrap(
  controller: BatchSizeController,
  change: Callable[[float, float], float],
  due: Callable[[int], bool],
) -> BatchSizeController:
  """The size becomes change(held, proposed) where a decision is due."""

  def update(state: WrapperState, signals: Signals):
    held = state.batch_size
    try:
      proposed, inner = controller.update(state.inner, signals)
    except MissingSignal:
      if held is None or due(signals.update):
        raise
      return held, state
    if held is None:
      held = proposed
    elif due(signals.update):
      held = change(held, proposed)
    return held, WrapperState(inner, held)

  return BatchSizeController(
    init=lambda: WrapperState(controller.init()),
    update=update,
    needs=controller.needs | {'update'},
    due=due,
  )
