"""Rules that grow the batch as the loss or the gradient shrinks."""

import math
from collections.abc import Callable
from typing import NamedTuple

from adabatch.controllers.base import BatchSizeController, Signals
from adabatch.controllers.state import (
  SMALLEST_RATIO,
  Average,
  accept,
  check_choice,
  check_minimum_loss,
  check_number,
  hold,
  reject,
  round_up,
)

_LOSSES = {'full': 'full_loss', 'subset': 'subset_loss', 'ema': 'loss'}
_GRADIENTS = {
  'full': 'full_gradient_norm_squared',
  'subset': 'subset_gradient_norm_squared',
  'ema': 'gradient_noise',
}
_REDUCTIONS = ('min', 'mean', 'max')


class DampingState(NamedTuple):
  """State of `adadamp` and `adadamp_grad`."""

  batch_size: float
  initial: float | None = None  # the first F - F*, or squared norm
  average: Average = Average()
  ignored: int = 0


def adadamp(
  *,
  initial_batch_size: float,
  loss_source: str = 'full',
  minimum_loss: float = 0.0,
  decay: float = 0.95,
  floor: bool = True,
) -> BatchSizeController:
  r"""Batch size inversely proportional to the loss that is left.

    B_k = ceil(B_0 (F(x_0) - F*) / (F(x_k) - F*))

  F(x_0) is the first finite value measured above F*. (F(x_k) - F*) is
  bounded below by 1e-12 (F(x_0) - F*), so F(x_k) < F* gives a huge size,
  never a negative one.

  Args:
    initial_batch_size: B_0, examples.
    loss_source: 'full' (the whole training set), 'subset' (a fixed subset)
      or 'ema' (the smoothed minibatch loss, which costs nothing).
    minimum_loss: F*, a lower bound of the loss, in units of the loss.
    decay: of the bias-corrected moving average of 'ema', per update.
    floor: whether B_0 is the smallest size; if not, 1 is.

  Returns:
    A controller that needs `full_loss`, `subset_loss` or `loss`.

  Raises:
    ValueError: an argument is out of range; or, from `update`,
      `minimum_loss` lies above the first loss measured.

  >>> controller = adadamp(initial_batch_size=64)
  >>> size, state = controller.update(controller.init(), Signals(full_loss=2.0))
  >>> controller.update(state, Signals(update=1, full_loss=0.5))[0]
  256.0

  Reference: Sievert and Charles, 2019, https://arxiv.org/abs/1910.08222
  """
  check_choice('loss_source', loss_source, tuple(_LOSSES))
  check_number('minimum_loss', minimum_loss)
  field = _LOSSES[loss_source]

  def check_first(loss: float) -> None:
    check_minimum_loss(minimum_loss, loss)

  return _inverse(
    initial_batch_size,
    lambda signals: getattr(signals, field),
    field,
    minimum=minimum_loss,
    decay=decay,
    smoothed=loss_source == 'ema',
    floor=floor,
    check_first=check_first,
  )


def adadamp_grad(
  *,
  initial_batch_size: float,
  gradient_source: str = 'full',
  decay: float = 0.95,
  floor: bool = True,
) -> BatchSizeController:
  """Batch size inversely proportional to the squared gradient norm.

    B_k = ceil(B_0 ||grad F(x_0)||^2 / ||grad F(x_k)||^2)

  The form of `adadamp` for non-convex objectives. The norm at x_0 is the
  first positive value measured. The unbiased estimate behind 'ema' may be
  zero or negative by chance; that says nothing, so the last size is kept.

  Args:
    initial_batch_size: B_0, examples.
    gradient_source: 'full' (the whole training set), 'subset' (a fixed
      subset) or 'ema' (the smoothed unbiased estimate |G|^2 of
      `gradient_noise`).
    decay: of the bias-corrected moving average of 'ema', per update.
    floor: whether B_0 is the smallest size; if not, 1 is.

  Returns:
    A controller that needs `full_gradient_norm_squared`,
    `subset_gradient_norm_squared` or `gradient_noise`.

  Raises:
    ValueError: an argument is out of range.

  >>> controller = adadamp_grad(initial_batch_size=64)
  >>> _, state = controller.update(
  ...   controller.init(), Signals(full_gradient_norm_squared=9.0))
  >>> controller.update(
  ...   state, Signals(update=1, full_gradient_norm_squared=3.0))[0]
  192.0

  Reference: Sievert and Charles, 2019, https://arxiv.org/abs/1910.08222
  """
  check_choice('gradient_source', gradient_source, tuple(_GRADIENTS))
  field = _GRADIENTS[gradient_source]

  def read(signals: Signals) -> float | None:
    if gradient_source != 'ema':
      return getattr(signals, field)
    noise = signals.gradient_noise
    return None if noise is None else noise.squared_norm

  return _inverse(
    initial_batch_size,
    read,
    field,
    minimum=0.0,
    decay=decay,
    smoothed=gradient_source == 'ema',
    floor=floor,
    hold_unless_positive=True,
  )


def _inverse(
  initial_batch_size: float,
  read: Callable[[Signals], float | None],
  field: str,
  *,
  minimum: float,
  decay: float,
  smoothed: bool,
  floor: bool,
  check_first: Callable[[float], None] = lambda value: None,
  hold_unless_positive: bool = False,
) -> BatchSizeController:
  """B_k = ceil(B_0 m_0 / m_k), where m is the measurement minus `minimum`."""
  check_number('initial_batch_size', initial_batch_size, at_least=1)
  check_number('decay', decay, at_least=0, below=1)
  memory = decay if smoothed else 0.0

  def update(state: DampingState, signals: Signals):
    value = read(signals)
    if value is None:
      return hold(state)
    if not math.isfinite(value):
      return reject(state)
    if state.initial is None:
      check_first(value)
    average = state.average.add(value, decay=memory)
    left = average.value - minimum
    if not math.isfinite(left):
      return reject(state)
    state = state._replace(average=average)
    if left <= 0 and (hold_unless_positive or state.initial is None):
      return hold(state)
    if state.initial is None:
      state = state._replace(initial=left)
    assert state.initial is not None
    # Dividing by the ratio keeps B_0 exact where nothing has changed.
    ratio = max(left / state.initial, SMALLEST_RATIO)
    size = round_up(initial_batch_size / ratio)
    return accept(state, size, smallest=initial_batch_size if floor else 1)

  return BatchSizeController(
    init=lambda: DampingState(float(initial_batch_size)),
    update=update,
    needs=frozenset({field}),
  )


class RadadampState(NamedTuple):
  """State of `radadamp`; a block is the updates since the last decision."""

  batch_size: float
  initial_loss: float | None = None
  initial_norm: float | None = None
  loss: float = 0.0  # rolling average of F - F*
  norm: float = 0.0  # rolling average of ||g||^2
  block_loss: float = 0.0
  block_norm: float = 0.0
  count: int = 0
  ignored: int = 0


def radadamp(
  *,
  initial_batch_size: float,
  rho: float = 0.2,
  window: int = 20,
  reduction: str = 'min',
  minimum_loss: float = 0.0,
  floor: bool = True,
) -> BatchSizeController:
  """Batch size from rolling averages of minibatch loss and gradient.

    B_k = B_0 / ((F_k / F_0 + ||g||^2_k / ||g||^2_0) / 2)

  Every `window` updates the losses (less F*) and squared gradient norms of
  these updates are reduced to one number each, which enters a rolling
  average: x <- rho x + (1 - rho) reduced. F_0 and ||g||^2_0 are the first
  block's. The size changes only at the end of a block; wrap the controller
  in `every(updates=window)` so that the loop need not ask in between.

  Args:
    initial_batch_size: B_0, examples.
    rho: weight of the past in the rolling averages, from 0 up to below 1.
    window: updates in a block.
    reduction: 'min', 'mean' or 'max' over a block.
    minimum_loss: F*, subtracted from the loss, in units of the loss.
    floor: whether B_0 is the smallest size; if not, 1 is.

  Returns:
    A controller that needs `loss` and `gradient_norm_squared`.

  Raises:
    ValueError: an argument is out of range; or, from `update`,
      `minimum_loss` lies above the first block's loss.

  >>> controller = radadamp(initial_batch_size=64, rho=0.0, window=1)
  >>> _, state = controller.update(
  ...   controller.init(), Signals(1, loss=2.0, gradient_norm_squared=4.0))
  >>> controller.update(
  ...   state, Signals(2, loss=1.0, gradient_norm_squared=2.0))[0]
  128.0

  Reference: Sievert's `adadamp` package, https://github.com/stsievert/adadamp
  """
  check_number('initial_batch_size', initial_batch_size, at_least=1)
  check_number('rho', rho, at_least=0, below=1)
  check_number('window', window, at_least=1)
  check_choice('reduction', reduction, _REDUCTIONS)
  check_number('minimum_loss', minimum_loss)

  def fold(block: float, x: float, count: int) -> float:
    if count == 1:
      return float(x)
    if reduction == 'mean':
      return block + (x - block) / count
    return min(block, x) if reduction == 'min' else max(block, x)

  def update(state: RadadampState, signals: Signals):
    loss, norm = signals.loss, signals.gradient_norm_squared
    if loss is None or norm is None:
      return hold(state)
    loss = loss - minimum_loss
    if not (math.isfinite(loss) and math.isfinite(norm)):
      return reject(state)
    count = state.count + 1
    loss = fold(state.block_loss, loss, count)
    norm = fold(state.block_norm, norm, count)
    if not (math.isfinite(loss) and math.isfinite(norm)):
      return reject(state)
    if count < window:
      return hold(state._replace(block_loss=loss, block_norm=norm, count=count))
    state = state._replace(block_loss=0.0, block_norm=0.0, count=0)
    first_loss, first_norm = state.initial_loss, state.initial_norm
    if first_loss is None or first_norm is None:
      check_minimum_loss(minimum_loss, loss + minimum_loss)
      if loss <= 0 or norm <= 0:  # no ratio can be taken of these
        return hold(state)
      first_loss, first_norm = loss, norm
      state = state._replace(initial_loss=loss, initial_norm=norm)
    else:
      loss = rho * state.loss + (1 - rho) * loss
      norm = rho * state.norm + (1 - rho) * norm
    state = state._replace(loss=loss, norm=norm)
    ratio = (loss / first_loss + norm / first_norm) / 2
    size = initial_batch_size / max(ratio, SMALLEST_RATIO)
    return accept(state, size, smallest=initial_batch_size if floor else 1)

  return BatchSizeController(
    init=lambda: RadadampState(float(initial_batch_size)),
    update=update,
    needs=frozenset({'loss', 'gradient_norm_squared'}),
  )
