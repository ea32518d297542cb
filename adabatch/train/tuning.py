"""How many replicas a device trains: as many as raise its throughput.

A small batch leaves an accelerator idle; another replica on it may use what is
left. One is added while that raises the throughput by more than a threshold,
else it is taken back. Throughput is the median of several windows, and a
replica is given up only where that loses less than half the threshold, so that
noise does not move the number to and fro.

Reference: Koliousis et al., CROSSBOW, 2019 (arXiv:1901.02244), section 3.4.
"""

import statistics
from typing import NamedTuple


class TuningRule(NamedTuple):
  """When the number changes.

  Attributes:
    most: replicas on a device, at most.
    threshold: relative gain in throughput that one more must bring.
    windows: measurements before each decision.
  """

  most: int
  threshold: float
  windows: int


class Tuning(NamedTuple):
  """Where the search is; plain numbers.

  Attributes:
    here: replicas on each device, now.
    phase: `base` (measuring the present number), `up` or `down` (trying one
      more, or one less), `settled`.
    measured: throughput of the windows since the last decision, in examples a
      second.
    base: median throughput of the number that the trial is compared with.
    risen: whether one was added since the search began.
  """

  here: int
  phase: str = 'base'
  measured: tuple[float, ...] = ()
  base: float = 0.0
  risen: bool = False


def again(tuning: Tuning) -> Tuning:
  """Searches anew from the present number, for another batch size."""
  here = tuning.here
  if tuning.phase in ('up', 'down'):
    here += -1 if tuning.phase == 'up' else 1
  return Tuning(here)


def observe(tuning: Tuning, throughput: float, rule: TuningRule) -> Tuning:
  """The search after one more window.

  >>> rule = TuningRule(most=8, threshold=0.1, windows=1)
  >>> tuning = Tuning(here=1)
  >>> for throughput in (100.0, 150.0, 155.0):  # with 1, 2 and 3 replicas
  ...   tuning = observe(tuning, throughput, rule)
  >>> tuning.here, tuning.phase
  (2, 'settled')
  """
  if tuning.phase == 'settled':
    return tuning
  measured = (*tuning.measured, throughput)
  if len(measured) < rule.windows:
    return tuning._replace(measured=measured)
  median = statistics.median(measured)
  here, gain = tuning.here, rule.threshold

  if tuning.phase == 'base':
    return _try_more(Tuning(here, base=median), rule)
  if tuning.phase == 'up':
    if median > tuning.base * (1 + gain):
      return _try_more(Tuning(here, base=median, risen=True), rule)
    return _try_fewer(tuning._replace(here=here - 1, measured=()))
  if median * (1 + gain / 2) >= tuning.base:
    return _try_fewer(Tuning(here, base=median))
  return tuning._replace(here=here + 1, phase='settled', measured=())


def _try_more(tuning: Tuning, rule: TuningRule) -> Tuning:
  if tuning.here < rule.most:
    return tuning._replace(here=tuning.here + 1, phase='up')
  return _try_fewer(tuning)


def _try_fewer(tuning: Tuning) -> Tuning:
  if tuning.here > 1 and not tuning.risen:
    return tuning._replace(here=tuning.here - 1, phase='down')
  return tuning._replace(phase='settled')
