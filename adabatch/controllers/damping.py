"""Rules that grow the batch as the loss or the gradient shrinks."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from adabatch.controllers.base import (
  BatchSizeController,
  Signals,
  described,
)
from adabatch.controllers.state import (
  SMALLEST_RATIO,
  Average,
  Mean,
  accept,
  check_choice,
  check_minimum_loss,
  check_number,
  hold,
  hold_below_minimum,
  reject,
  required,
  round_signal,
  round_up,
)

_LOSSES = {'full': 'full_loss', 'subset': 'subset_loss', 'ema': 'loss'}
_GRADIENTS = {
  'full': 'full_gradient_norm_squared',
  'subset': 'subset_gradient_norm_squared',
  'ema': 'gradient_noise',
}


class DampingState(NamedTuple):
  """State of `adadamp` and `adadamp_grad`."""

  batch_size: float
  initial: float | None = None  # the first F - F*, or squared norm
  first: Mean = Mean()  # of what `initial` is made of, until there is one
  average: Average = Average()
  below_minimum: int = 0
  ignored: int = 0


@described
def adadamp(
  *,
  initial_batch_size: float,
  loss_source: str = 'ema',
  minimum_loss: float = 0.0,
  exponent: float = 1.0,
  decay: float = 0.95,
  initial_updates: int = 1,
  floor: bool = True,
) -> BatchSizeController:
  r"""Batch size inversely proportional to a power of the loss that is left.

    B_k = ceil(B_0 ((F(x_0) - F*) / (F(x_k) - F*))^e)

  With e = 1 this is AdaDamp. Of language models Kaplan et al. found the
  critical batch size to be B* / F^(1 / 0.21), so e = 4.76, F* = 0.

  F(x_0) is the first finite value measured; for 'ema', where a value is the
  loss of one minibatch, the plain mean of those of the first
  `initial_updates`, until which the size is B_0. Where F(x_k) is not above F*
  there is nothing to divide by, and the last size is kept. The differences
  enter with four significant digits.

  Args:
    initial_batch_size: B_0, examples.
    loss_source: 'full' (the whole training set), 'subset' (a fixed subset)
      or 'ema' (the smoothed minibatch loss, which costs nothing).
    minimum_loss: F*, a lower bound of the loss, in units of the loss.
    exponent: e, above 0.
    decay: of the bias-corrected moving average of 'ema', per update.
    initial_updates: of 'ema', at least 1; inside `every(updates, wait)` best
      the update of the first change, that is `wait or updates`.
    floor: whether B_0 is the smallest size; if not, 1 is.

  Returns:
    A controller that needs `full_loss`, `subset_loss` or `loss`.

  Raises:
    ValueError: an argument is out of range; or, from `update`,
      `minimum_loss` lies above F(x_0).

  >>> controller = adadamp(initial_batch_size=64, loss_source='full')
  >>> size, state = controller.update(controller.init(), Signals(full_loss=2.0))
  >>> controller.update(state, Signals(update=1, full_loss=0.5))[0]
  256.0

  Reference: Sievert and Charles, 2019, https://arxiv.org/abs/1910.08222, for
  e = 1; Kaplan et al., Scaling Laws for Neural Language Models, 2020,
  https://arxiv.org/abs/2001.08361, section 5.1, and MiniMax-01, 2025,
  https://arxiv.org/abs/2501.08313, for e = 4.76.
  """
  check_choice('loss_source', loss_source, tuple(_LOSSES))
  check_number('minimum_loss', minimum_loss)
  check_number('exponent', exponent, above=0)
  return _inverse(
    'adadamp',
    initial_batch_size,
    _LOSSES[loss_source],
    float,
    minimum_loss=minimum_loss,
    exponent=exponent,
    decay=decay,
    smoothed=loss_source == 'ema',
    initial_updates=initial_updates,
    floor=floor,
  )


@described
def adadamp_grad(
  *,
  initial_batch_size: float,
  gradient_source: str = 'ema',
  decay: float = 0.95,
  initial_updates: int = 1,
  floor: bool = True,
) -> BatchSizeController:
  """Batch size inversely proportional to the squared gradient norm.

    B_k = ceil(B_0 ||grad F(x_0)||^2 / ||grad F(x_k)||^2)

  The form of `adadamp` for non-convex objectives. The norm at x_0 is the
  first positive value measured; for 'ema' the plain mean of the estimates of
  the first `initial_updates`, or of more until it is positive. The unbiased
  estimate behind 'ema' may be zero or negative by chance; that says nothing,
  so the last size is kept.

  Args:
    initial_batch_size: B_0, examples.
    gradient_source: 'full' (the whole training set), 'subset' (a fixed
      subset) or 'ema' (the smoothed unbiased estimate |G|^2 of
      `gradient_noise`).
    decay: of the bias-corrected moving average of 'ema', per update.
    initial_updates: of 'ema', at least 1; inside `every(updates, wait)` best
      the update of the first change, that is `wait or updates`.
    floor: whether B_0 is the smallest size; if not, 1 is.

  Returns:
    A controller that needs `full_gradient_norm_squared`,
    `subset_gradient_norm_squared` or `gradient_noise`.

  Raises:
    ValueError: an argument is out of range.

  >>> controller = adadamp_grad(initial_batch_size=64, gradient_source='full')
  >>> _, state = controller.update(
  ...   controller.init(), Signals(full_gradient_norm_squared=9.0))
  >>> controller.update(
  ...   state, Signals(update=1, full_gradient_norm_squared=3.0))[0]
  192.0

  Reference: Sievert and Charles, 2019, https://arxiv.org/abs/1910.08222
  """
  check_choice('gradient_source', gradient_source, tuple(_GRADIENTS))
  smoothed = gradient_source == 'ema'
  return _inverse(
    'adadamp_grad',
    initial_batch_size,
    _GRADIENTS[gradient_source],
    (lambda noise: noise.squared_norm) if smoothed else float,
    minimum_loss=None,
    decay=decay,
    smoothed=smoothed,
    initial_updates=initial_updates,
    floor=floor,
  )


def _inverse(
  rule: str,
  initial_batch_size: float,
  field: str,
  measurement: Callable[[Any], float],
  *,
  minimum_loss: float | None,
  decay: float,
  smoothed: bool,
  initial_updates: int,
  floor: bool,
  exponent: float = 1.0,
) -> BatchSizeController:
  """B_k = ceil(B_0 (m_0 / m_k)^e), m being the measurement less F*, if a loss.

  `field` is the signal and `measurement` what is read of it; `minimum_loss` is
  None for what is no loss.
  """
  check_number('initial_batch_size', initial_batch_size, at_least=1)
  check_number('decay', decay, at_least=0, below=1)
  check_number('initial_updates', initial_updates, at_least=1)
  memory, minimum = decay if smoothed else 0.0, minimum_loss or 0.0

  def update(state: DampingState, signals: Signals):
    values = required(rule, signals, [field])
    if values is None:
      return hold(state)
    value = measurement(values[0])
    average = state.average.add(value, decay=memory)
    left = round_signal(average.value - minimum)
    if not (math.isfinite(value) and math.isfinite(left)):
      return reject(state)
    state = state._replace(average=average)
    if state.initial is None:
      first = (state.first if smoothed else Mean()).add(value)
      state = state._replace(first=first)
      if smoothed and signals.update < initial_updates:
        return hold(state)
      if minimum_loss is not None:
        check_minimum_loss(minimum_loss, first.value)
      initial = round_signal(first.value - minimum)
      if initial <= 0:
        return hold(state)
      state = state._replace(first=Mean(), initial=initial)
    assert state.initial is not None
    if left <= 0:
      return hold(state) if minimum_loss is None else hold_below_minimum(state)
    # Dividing by the ratio keeps B_0 exact where nothing has changed.
    ratio = max(left / state.initial, SMALLEST_RATIO)
    if exponent != 1:
      ratio = _power(ratio, exponent)
    size = round_up(initial_batch_size / ratio)
    return accept(state, size, smallest=initial_batch_size if floor else 1)

  return BatchSizeController(
    init=lambda: DampingState(float(initial_batch_size)),
    update=update,
    needs=frozenset({field}),
  )


def _power(ratio: float, exponent: float) -> float:
  """ratio^exponent, within SMALLEST_RATIO and its inverse."""
  bound = -math.log(SMALLEST_RATIO)
  # A float's own power raises an error where it overflows.
  return math.exp(min(max(exponent * math.log(ratio), -bound), bound))


def _median(values: tuple[float, ...]) -> float:
  inner = sorted(values)[(len(values) - 1) // 2 : len(values) // 2 + 1]
  return inner[0] / 2 + inner[-1] / 2  # of 1e308 and 1e308 as well


def _mean(values: tuple[float, ...]) -> float:
  return sum(value / len(values) for value in values)


_REDUCTIONS: dict[str, Callable[[tuple[float, ...]], float]] = {
  'min': min,
  'mean': _mean,
  'median': _median,
  'max': max,
}


class RadadampState(NamedTuple):
  """State of `radadamp`; a block is the updates since the last decision."""

  batch_size: float
  left: int  # signals until the block is complete
  initial_loss: float | None = None
  initial_norm: float | None = None
  loss: float = 0.0  # rolling average of F - F*
  norm: float = 0.0  # rolling average of ||g||^2
  losses: tuple[float, ...] = ()  # of the block
  norms: tuple[float, ...] = ()
  below_minimum: int = 0
  ignored: int = 0


@described
def radadamp(
  *,
  initial_batch_size: float,
  rho: float = 0.2,
  window: int = 20,
  reduction: str = 'min',
  minimum_loss: float = 0.0,
  initial_updates: int = 1,
  floor: bool = True,
) -> BatchSizeController:
  """Batch size from rolling averages of minibatch loss and gradient.

    B_k = ceil(B_0 / ((F_k / F_0 + ||g||^2_k / ||g||^2_0) / 2))

  Every `window` updates the losses (less F*) and squared gradient norms of
  these are reduced to one number each, which enters a rolling average: x <- rho
  x + (1 - rho) reduced. F_0 and ||g||^2_0 are the first block's, which is of
  max(window, initial_updates) updates and counts into the second block, too.
  The averages enter with four significant digits. Where F_k is not above F* the
  last size is kept.

  The size changes only at a block's end: wrap it in `every(updates=window)`.
  ||g||^2 of a minibatch falls as the batch grows, and so the next size rises:
  where noise is all of it, sizes converge to B_0 F_0 / F_k.

  Args:
    initial_batch_size: B_0, examples.
    rho: weight of the past in the rolling averages, from 0 up to below 1.
    window: updates in a block.
    reduction: 'min', 'mean', 'median' or 'max' over a block.
    minimum_loss: F*, subtracted from the loss, in units of the loss.
    initial_updates: in the first block at least, from 1; the authors' `wait`.
    floor: whether B_0 is the smallest size; if not, 1 is.

  Returns:
    A controller that needs `loss` and `gradient_norm_squared`.

  Raises:
    ValueError: an argument is out of range; or, from `update`, F* is above F_0.

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
  check_choice('reduction', reduction, tuple(_REDUCTIONS))
  check_number('minimum_loss', minimum_loss)
  check_number('initial_updates', initial_updates, at_least=1)
  start = RadadampState(float(initial_batch_size), max(window, initial_updates))

  def update(state: RadadampState, signals: Signals):
    values = required('radadamp', signals, ['loss', 'gradient_norm_squared'])
    if values is None:
      return hold(state)
    loss, norm = values[0] - minimum_loss, values[1]
    if not (math.isfinite(loss) and math.isfinite(norm)):
      return reject(state)
    state = _with_signal(state, loss, norm)
    if state.left:
      return hold(state)
    state = _end_block(state, window, _REDUCTIONS[reduction], rho, minimum_loss)
    if state.initial_loss is None:
      return hold(state)
    if state.loss <= 0:
      return hold_below_minimum(state)
    size = round_up(initial_batch_size / _ratio_to_first(state))
    return accept(state, size, smallest=initial_batch_size if floor else 1)

  return BatchSizeController(
    init=lambda: start,
    update=update,
    needs=frozenset(['loss', 'gradient_norm_squared']),
  )


def _with_signal(
  state: RadadampState, loss: float, norm: float
) -> RadadampState:
  return state._replace(
    losses=(*state.losses, loss),
    norms=(*state.norms, norm),
    left=state.left - 1,
  )


def _end_block(
  state: RadadampState,
  window: int,
  reduce: Callable[[tuple[float, ...]], float],
  rho: float,
  minimum_loss: float,
) -> RadadampState:
  """Takes the block into the rolling averages and begins another."""
  loss, norm = reduce(state.losses), reduce(state.norms)
  state = state._replace(left=window)
  if state.initial_loss is None:
    check_minimum_loss(minimum_loss, loss + minimum_loss)
  if state.initial_loss is None and loss > 0 and norm > 0:
    return state._replace(  # and the next block begins with this one
      initial_loss=round_signal(loss),
      initial_norm=round_signal(norm),
      loss=loss,
      norm=norm,
    )
  state = state._replace(losses=(), norms=())
  if state.initial_loss is None:  # no ratio can be taken of these
    return state
  return state._replace(
    loss=rho * state.loss + (1 - rho) * loss,
    norm=rho * state.norm + (1 - rho) * norm,
  )


def _ratio_to_first(state: RadadampState) -> float:
  assert state.initial_loss is not None
  assert state.initial_norm is not None
  loss = round_signal(state.loss) / state.initial_loss
  norm = round_signal(state.norm) / state.initial_norm
  return max((loss + norm) / 2, SMALLEST_RATIO)
