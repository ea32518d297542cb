"""Rules that follow the clock as well."""

import bisect
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from adabatch.controllers.base import BatchSizeController, Signals, described
from adabatch.controllers.state import (
  Average,
  accept,
  check_choice,
  check_number,
  hold,
  reject,
  required,
  round_signal,
)

PER = ('second', 'device_second')
# What a clock may say of an update, in seconds.
SHORTEST, LONGEST = 1e-9, 1e9
LARGEST_SCALE = 1e15  # examples, beyond which a noise scale is as good as none
NEEDS = ('gradient_noise', 'batch_size', 'seconds_per_update')


class GoodputState(NamedTuple):
  """State of `goodput`.

  Attributes:
    batch_size: of the next update.
    times: of an update of each size, in seconds; 0 where none was measured.
    devices: that it was measured on, likewise.
    trace, norm: averages of tr Sigma and |G|^2.
    ignored: signals that could not be used.
  """

  batch_size: float
  times: tuple[float, ...]
  devices: tuple[float, ...]
  trace: Average = Average()
  norm: Average = Average()
  ignored: int = 0


class TimeModel(NamedTuple):
  """Seconds of an update: t = fixed + each * examples on a device.

  >>> TimeModel(0.5, 0.25).seconds(8)
  2.5
  """

  fixed: float
  each: float

  def seconds(self, share: float) -> float:
    return self.fixed + self.each * share


def fit_time(shares: Sequence[float], seconds: Sequence[float]) -> TimeModel:
  """The model nearest to what was measured, by relative error.

      minimise sum_j ((a + b x_j - t_j) / t_j)^2  over a, b >= 0

  Args:
    shares: x, examples on a device.
    seconds: t, of an update, above 0.

  >>> model = fit_time([8, 16, 32], [0.4, 0.6, 1.0])
  >>> round(model.fixed, 6), round(model.each, 6)
  (0.2, 0.025)
  >>> fit_time([8, 16], [0.5, 0.25])  # faster with more: nothing is per example
  TimeModel(fixed=0.3, each=0.0)
  """
  # In units of a share and a time, so that no product leaves what floats hold.
  unit, time = max(shares), max(seconds)
  u = [time / t for t in seconds]
  v = [x / unit * w for x, w in zip(shares, u, strict=True)]
  uu, uv, vv = (
    sum(p * q for p, q in zip(a, b, strict=True))
    for a, b in ((u, u), (u, v), (v, v))
  )
  su, sv = sum(u), sum(v)
  determinant = uu * vv - uv * uv
  fixed = each = -1.0
  if determinant > 1e-12 * uu * vv:
    fixed = (su * vv - sv * uv) / determinant
    each = (sv * uu - su * uv) / determinant
  if each < 0:
    fixed, each = su / uu, 0.0
  elif fixed < 0:
    fixed, each = 0.0, sv / vv
  return TimeModel(fixed * time, each * time / unit)


def on_one(batch_size: float) -> int:
  """All sizes run on one device, or on as many as any other.

  >>> on_one(64)
  1
  """
  del batch_size
  return 1


@described
def goodput(
  *,
  initial_batch_size: float,
  sizes: Sequence[float],
  devices: Callable[[float], int] = on_one,
  per: str = 'second',
  gain: float = 1.05,
  decay: float = 0.99,
  floor: bool = True,
) -> BatchSizeController:
  """The size with the best expected progress per second, or device-second.

    goodput(B) = B / t(B) E(B),  E(B) = (phi + B_0) / (phi + B)
    B_k = argmax goodput, if that is above gain goodput(B_{k-1}), else B_{k-1}

  B / t is the throughput in examples per second; per device-second it is over
  the devices in use as well. E is how much an example brings in a batch of B,
  relative to one of B_0, if the learning rate is the best of each: phi = tr
  Sigma / |G|^2 is the noise scale, numerator and denominator smoothed apart. t
  is what was measured where that size was run, elsewhere a + b B / devices,
  fitted to all that was. No size is tried that is beyond the next above the
  largest that was run, for a line is only good nearby. Until two sizes were
  measured there is none: the next one is tried, the one above if there is one.

  Without a change of devices, and with t = a + b B for all sizes, the best is
  sqrt(a phi / b). Where the smoothed tr Sigma or |G|^2 is not positive the size
  is kept. The size that B_{k-1} stands for is the one that was run, whatever
  wrappers made of what was asked for.

  It follows the clock: two runs of one config differ. A state goes on as it
  was, and with the same signals takes the same decisions; measured times are
  dropped where a size has other devices than it had.

  Args:
    initial_batch_size: B_0, examples, until there is a decision.
    sizes: that can be run, increasing, examples.
    devices: size -> how many devices run it.
    per: 'second' or 'device_second'.
    gain: least ratio of the goodputs for a change, at least 1.
    decay: of both bias-corrected moving averages, per update.
    floor: whether B_0 is the smallest size; if not, the first of `sizes` is.

  Returns:
    A controller that needs `gradient_noise`, `batch_size` and
    `seconds_per_update`, of which the newest counts: let it be an average.

  Raises:
    ValueError: an argument is out of range.

  >>> from adabatch.controllers import GradientNoise
  >>> controller = goodput(initial_batch_size=8, sizes=[8, 16, 32, 64, 128])
  >>> size, state = controller.update(controller.init(), Signals())
  >>> for k in range(1, 6):  # a = 0.1, b = 0.01, phi = 640: the best is 80
  ...   size, state = controller.update(state, Signals(
  ...     update=k, gradient_noise=GradientNoise(640.0, 1.0),
  ...     batch_size=size, seconds_per_update=0.1 + 0.01 * size))
  ...   print(size)
  16.0
  32.0
  64.0
  64.0
  64.0

  Reference: Qiao et al., Pollux: Co-adaptive Cluster Scheduling for
  Goodput-Optimized Deep Learning, 2021 (arXiv:2008.12260).
  """
  check_number('initial_batch_size', initial_batch_size, at_least=1)
  check_number('gain', gain, at_least=1)
  check_number('decay', decay, at_least=0, below=1)
  check_choice('per', per, PER)
  _check_sizes(sizes)
  runs = tuple(map(float, sizes))
  first = bisect.bisect_left(runs, initial_batch_size) if floor else 0
  first = min(first, len(runs) - 1)
  counts = tuple(float(devices(size)) for size in sizes)
  shares = [size / count for size, count in zip(runs, counts, strict=True)]
  cost = counts if per == 'device_second' else (1.0,) * len(runs)

  def measured(state: GoodputState, size: float, seconds: float):
    """The state with one more time, and where that stands; None: nowhere."""
    here = bisect.bisect_left(runs, size * (1 - 1e-9))
    if here == len(runs):  # of no program of this ladder
      return state, None
    now, on = list(state.times), list(state.devices)
    now[here], on[here] = seconds, counts[here]
    state = state._replace(times=tuple(now), devices=tuple(on))
    return state._replace(batch_size=max(runs[here], runs[first])), here

  def update(state: GoodputState, signals: Signals):
    values = required('goodput', signals, NEEDS)
    if values is None:
      return hold(state)
    noise, size, seconds = values
    usable = SHORTEST <= seconds <= LONGEST and 1 <= size < math.inf
    if not usable or not all(map(math.isfinite, noise)):
      return reject(state)
    state = state._replace(
      trace=state.trace.add(noise.trace_covariance, decay=decay),
      norm=state.norm.add(noise.squared_norm, decay=decay),
    )
    state, here = measured(state, size, seconds)
    if here is None:
      return hold(state)
    known = {
      i: time
      for i, time in enumerate(state.times)
      if time > 0 and state.devices[i] == counts[i]
    }
    if len(known) < 2:
      next_one = _neighbour(here, first, len(runs))
      return accept(state, runs[next_one], smallest=runs[first])
    trace, norm = state.trace.value, state.norm.value
    if trace <= 0 or norm <= 0:
      return hold(state)
    phi = min(round_signal(trace) / round_signal(norm), LARGEST_SCALE)
    model = fit_time([shares[i] for i in known], list(known.values()))

    def progress(i: int) -> float:
      seconds = known.get(i) or model.seconds(shares[i])
      # B_0 alone would not change which is best; it keeps E a share of 1.
      efficiency = (phi + initial_batch_size) / (phi + runs[i])
      return runs[i] / seconds * efficiency / cost[i]

    candidates = range(first, min(max(known) + 2, len(runs)))
    best = max(candidates, key=progress, default=here)
    if here >= first and progress(best) <= gain * progress(here):
      best = here
    return accept(state, runs[best], smallest=runs[first])

  nothing = (0.0,) * len(runs)
  return BatchSizeController(
    init=lambda: GoodputState(float(initial_batch_size), nothing, nothing),
    update=update,
    needs=frozenset(NEEDS),
  )


def _neighbour(here: int, first: int, count: int) -> int:
  """The next size above; below at the top; itself where it is the only one."""
  if here + 1 < count:
    return here + 1
  return max(here - 1, first)


def _check_sizes(sizes: Sequence[float]) -> None:
  if not sizes:
    raise ValueError('sizes=() was given; give at least one batch size')
  for size in sizes:
    check_number('sizes', size, at_least=1)
  if any(b <= a for a, b in zip(sizes, sizes[1:], strict=False)):
    raise ValueError(f'sizes={tuple(sizes)} was given; give them increasing')
