"""The rule that follows measurements of the critical batch size."""

import math
from typing import NamedTuple

from adabatch.controllers.base import BatchSizeController, Signals, described
from adabatch.controllers.state import (
  accept,
  check_number,
  hold,
  reject,
  required,
)


class ProbeState(NamedTuple):
  """State of `probe`."""

  batch_size: float
  ignored: int = 0


@described
def probe(*, initial_batch_size: float) -> BatchSizeController:
  """Doubles where a measured critical batch size allows it; never shrinks.

    B_k = 2 B_{k-1} if B_crit >= 2 B_{k-1}, else B_{k-1}

  B_crit is what training on from here, with larger batches over the same
  examples, has shown to cost nothing; give the lower end of its interval. NaN
  says that nothing was measured at this update.

  Args:
    initial_batch_size: B_0, examples.

  Returns:
    A controller that needs `critical_batch_size`.

  Raises:
    ValueError: an argument is out of range.

  >>> controller = probe(initial_batch_size=64)
  >>> sizes, state = [], controller.init()
  >>> for measured in (100.0, 128.0, float('nan'), 900.0):
  ...   signals = Signals(critical_batch_size=measured)
  ...   size, state = controller.update(state, signals)
  ...   sizes.append(size)
  >>> sizes
  [64.0, 128.0, 128.0, 256.0]

  Reference: Merrill et al., 2025, https://arxiv.org/abs/2505.23971
  """
  check_number('initial_batch_size', initial_batch_size, at_least=1)

  def update(state: ProbeState, signals: Signals):
    (critical,) = required('probe', signals, ['critical_batch_size']) or (0.0,)
    if not math.isfinite(critical):
      return reject(state)
    doubled = 2 * state.batch_size
    if critical < doubled * (1 - 1e-9):
      return hold(state)
    return accept(state, doubled, smallest=initial_batch_size)

  return BatchSizeController(
    init=lambda: ProbeState(float(initial_batch_size)),
    update=update,
    needs=frozenset({'critical_batch_size'}),
  )
