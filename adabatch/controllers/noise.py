"""Rules that follow the noise of the gradient."""

import math
from typing import NamedTuple

from adabatch.controllers.base import (
  BatchSizeController,
  Signals,
  described,
)
from adabatch.controllers.state import (
  Average,
  accept,
  check_minimum_loss,
  check_number,
  hold,
  hold_below_minimum,
  reject,
  required,
  round_signal,
  round_up,
)
from adabatch.controllers.wrappers import monotone


class NoiseState(NamedTuple):
  """State of `noise_scale`."""

  batch_size: float
  trace: Average = Average()  # of S = tr Sigma
  norm: Average = Average()  # of |G|^2
  ignored: int = 0


@described
def noise_scale(
  *,
  initial_batch_size: float,
  c: float = 1.0,
  decay: float = 0.99,
  floor: bool = True,
) -> BatchSizeController:
  """Batch size proportional to the simple gradient noise scale.

    B_k = c S / |G|^2

  S = tr Sigma and |G|^2 are smoothed separately, then divided, because the
  ratio of two noisy numbers is biased. Where either smoothed value is not
  positive (the estimates are unbiased, so chance can do that) it says
  nothing, and the last size is kept; the averages go on. The averages enter
  with four significant digits. The first few estimates are noisy: give them
  time with `every(wait=...)`.

  Args:
    initial_batch_size: B_0, examples, until there is an estimate.
    c: batch size in units of the noise scale, above 0.
    decay: of both bias-corrected moving averages, per update.
    floor: whether B_0 is the smallest size; if not, 1 is.

  Returns:
    A controller that needs `gradient_noise`.

  Raises:
    ValueError: an argument is out of range.

  >>> from adabatch.controllers import GradientNoise
  >>> controller = noise_scale(initial_batch_size=64)
  >>> controller.update(
  ...   controller.init(), Signals(gradient_noise=GradientNoise(400.0, 2.0)))[0]
  200.0

  Reference: McCandlish et al., 2018, https://arxiv.org/abs/1812.06162
  """
  return _noise_scale(
    'noise_scale', initial_batch_size, c, decay, floor, ceil=False
  )


@described
def norm_test(
  *,
  initial_batch_size: float,
  eta: float = 0.5,
  decay: float = 0.99,
) -> BatchSizeController:
  """The smallest batch whose gradient passes the norm test; never shrinks.

    B_k = max(B_{k-1}, ceil(tr Sigma / (eta^2 |G|^2)))

  It is `monotone(noise_scale(c=1/eta**2))`, rounded up: |G|^2 is the
  unbiased estimate, not the minibatch's ||g||^2, which noise inflates. One
  underestimate of |G|^2 is never taken back, so a long memory (`decay`),
  `every(wait=...)` or `limit_growth` are advised.

  Args:
    initial_batch_size: B_0, examples, the smallest size.
    eta: tolerated noise-to-signal ratio of the batch gradient, above 0.
    decay: of both bias-corrected moving averages, per update.

  Returns:
    A controller that needs `gradient_noise`.

  Raises:
    ValueError: an argument is out of range.

  >>> from adabatch.controllers import GradientNoise
  >>> controller = norm_test(initial_batch_size=64, eta=0.5)
  >>> controller.update(
  ...   controller.init(), Signals(gradient_noise=GradientNoise(50.1, 2.0)))[0]
  101.0

  Reference: Lau et al., 2024 (AdAdaGrad), https://arxiv.org/abs/2402.11215
  """
  # Beyond, its square is 0 or infinite.
  check_number('eta', eta, at_least=1e-150, below=1e150)
  return monotone(
    _noise_scale(
      'norm_test', initial_batch_size, 1 / eta**2, decay, True, ceil=True
    )
  )


def _noise_scale(
  rule: str,
  initial_batch_size: float,
  c: float,
  decay: float,
  floor: bool,
  *,
  ceil: bool,
) -> BatchSizeController:
  check_number('initial_batch_size', initial_batch_size, at_least=1)
  check_number('c', c, above=0)
  check_number('decay', decay, at_least=0, below=1)

  def update(state: NoiseState, signals: Signals):
    values = required(rule, signals, ['gradient_noise'])
    if values is None:
      return hold(state)
    (noise,) = values
    if not all(map(math.isfinite, noise)):
      return reject(state)
    trace = state.trace.add(noise.trace_covariance, decay=decay)
    norm = state.norm.add(noise.squared_norm, decay=decay)
    state = state._replace(trace=trace, norm=norm)
    if trace.value <= 0 or norm.value <= 0:
      return hold(state)
    size = c * round_signal(trace.value) / round_signal(norm.value)
    size = round_up(size) if ceil else size
    return accept(state, size, smallest=initial_batch_size if floor else 1)

  return BatchSizeController(
    init=lambda: NoiseState(float(initial_batch_size)),
    update=update,
    needs=frozenset({'gradient_noise'}),
  )


class CabsState(NamedTuple):
  """State of `cabs`."""

  batch_size: float
  trace: Average = Average()  # of tr Sigma
  loss: Average = Average()
  below_minimum: int = 0
  ignored: int = 0


@described
def cabs(
  *,
  initial_batch_size: float,
  c: float = 1.0,
  minimum_loss: float = 0.0,
  decay: float = 0.95,
  floor: bool = True,
) -> BatchSizeController:
  """Batch size coupled to the learning rate, the noise and the loss.

    B_k = c lr tr Sigma / (F - F*)

  tr Sigma and the minibatch loss F are smoothed. lr is the effective rate
  without damping: with it the size would cause the rate that causes the size.
  For the same reason lr must not be proportional to the batch size; a rate
  a sqrt(B) makes the sizes converge to the B with B = c a sqrt(B) tr Sigma /
  (F - F*). Where the smoothed tr Sigma is not positive, or F not above F*, the
  last size is kept. lr, tr Sigma and F - F* enter with four significant digits.

  Args:
    initial_batch_size: B_0, examples, until there is an estimate.
    c: factor in front, above 0; 1 in the paper.
    minimum_loss: F*, a lower bound of the loss, in units of the loss.
    decay: of both bias-corrected moving averages, per update.
    floor: whether B_0 is the smallest size; if not, 1 is.

  Returns:
    A controller that needs `learning_rate`, `loss` and `gradient_noise`.

  Raises:
    ValueError: an argument is out of range; or, from `update`,
      `minimum_loss` lies above the first loss measured.

  >>> from adabatch.controllers import GradientNoise
  >>> controller = cabs(initial_batch_size=16)
  >>> controller.update(controller.init(), Signals(
  ...   1, loss=2.0, learning_rate=0.5,
  ...   gradient_noise=GradientNoise(400.0, 2.0)))[0]
  100.0

  Reference: Balles et al., 2017, https://arxiv.org/abs/1612.05086
  """
  check_number('initial_batch_size', initial_batch_size, at_least=1)
  check_number('c', c, above=0)
  check_number('minimum_loss', minimum_loss)
  check_number('decay', decay, at_least=0, below=1)
  needs = ('learning_rate', 'loss', 'gradient_noise')

  def update(state: CabsState, signals: Signals):
    values = required('cabs', signals, needs)
    if values is None:
      return hold(state)
    lr, loss, noise = values
    if not all(map(math.isfinite, (noise.trace_covariance, loss, lr))):
      return reject(state)
    if not state.loss.weight:
      check_minimum_loss(minimum_loss, loss)
    state = state._replace(
      trace=state.trace.add(noise.trace_covariance, decay=decay),
      loss=state.loss.add(loss, decay=decay),
    )
    trace = round_signal(state.trace.value)
    left = round_signal(state.loss.value - minimum_loss)
    if left <= 0:
      return hold_below_minimum(state)
    if trace <= 0:
      return hold(state)
    size = c * round_signal(lr) * trace / left
    return accept(state, size, smallest=initial_batch_size if floor else 1)

  return BatchSizeController(
    init=lambda: CabsState(float(initial_batch_size)),
    update=update,
    needs=frozenset(needs),
  )
