"""From a nominal batch size to what the hardware runs, without compiling anew.

A controller asks for any real number of examples. Compiled programs have fixed
shapes, so the sizes that are run lie on a geometric *ladder* from the smallest
batch size to B_max, and each rung has one *bucket*: how many examples a device
takes at once, how many such microbatches it accumulates, and on how many
devices.

The ladder depends on the batch sizes alone, never on the devices. A rung that
the devices cannot share out evenly leaves slots empty (weight 0), so the same
config trains with the same sequence of batch sizes on 1 device and on 256.
Where replicas train side by side, rungs are multiples of their number, and a
bucket says how one replica's share is run.
"""

import bisect
import math
from typing import NamedTuple

ROUNDINGS = ('up', 'exact', 'nearest')
MOST_RUNGS = 10_000


# Rules that smooth or divide may return 64.00000000000001 for 64, and
# 100 * 1.1 is 110.00000000000001.
_TOLERANCE = 1e-9


class Bucket(NamedTuple):
  """How the hardware runs a batch: one compiled program for each value.

  Attributes:
    microbatch_size: examples that one device processes at once.
    accumulation_steps: microbatches whose gradients are summed on a device.
    devices: devices that share the batch, or a replica's share of it.
  """

  microbatch_size: int
  accumulation_steps: int
  devices: int

  @property
  def slots_per_device(self) -> int:
    return self.microbatch_size * self.accumulation_steps

  @property
  def slots(self) -> int:
    """The most examples that this bucket can hold."""
    return self.slots_per_device * self.devices


class Plan(NamedTuple):
  """What the next update runs.

  Attributes:
    nominal: batch size that it stands for, in examples.
    batch_size: real examples; the remaining slots carry weight 0.
    damping: min(1, B_max / nominal batch size)^exponent, the factor on the
      learning rate that stands in for the batch that cannot be had; the
      exponent is the ladder's. See also `cut`.
    bucket: the program that runs it.
  """

  nominal: float
  batch_size: int
  damping: float
  bucket: Bucket


class Ladder(NamedTuple):
  """The batch sizes that can be run, in increasing order, and on what.

  And how much a batch beyond the largest damps the learning rate.
  """

  batch_sizes: tuple[int, ...]
  devices: int
  max_per_device: int | None
  rounding: str
  group_size: int | None = None
  replicas: int = 1
  min_microbatches: int = 1
  damping_exponent: float = 1.0
  min_per_device: int | None = None


def ladder(
  smallest: int,
  largest: int,
  *,
  devices: int,
  max_per_device: int | None = None,
  growth: float = 2.0,
  rounding: str = 'up',
  group_size: int | None = None,
  replicas: int = 1,
  min_microbatches: int = 1,
  damping_exponent: float = 1.0,
  min_per_device: int | None = None,
) -> Ladder:
  """The rungs smallest * growth**i below `largest`, then `largest`.

  They are rounded up to multiples of `replicas`, and differ.

  Args:
    smallest: the smallest batch size, in examples.
    largest: B_max, the largest batch size that may be run, in examples.
    devices: devices that share each batch, or each replica's share of it.
    max_per_device: most examples a device processes at once (its memory limit,
      or the size at which it is fastest); beyond it gradients are accumulated.
      None for no limit.
    growth: ratio of neighbouring rungs, above 1.
    rounding: `up` runs the smallest rung that holds the nominal size,
      `nearest` the rung whose ratio to it is closest to 1, `exact` as many
      examples as were asked for, in the bucket of the smallest rung that holds
      them.
    group_size: examples of a BatchNorm group, which must not be cut by the end
      of a microbatch; None where the network has none.
    replicas: that take equal shares of each batch.
    min_microbatches: how many microbatches, on one device or on several, hold
      an example of each share, where it has so many examples: 2 where the
      noise of the gradient is estimated from how they differ. Groups are then
      not spread over devices, whose gradients would not be of examples of
      their own, so that few groups leave devices idle.
    damping_exponent: of `Plan.damping`; 1, for SGD at a constant learning rate,
      is Algorithm 1 of AdaDamp, and `optim.damping_exponent` knows the others.
    min_per_device: examples that each device in use has at least; see
      `devices_for`. None: all devices are in use always.

  Raises:
    ValueError: for sizes below 1, smallest > largest, sizes that replicas
      cannot share, growth <= 1, an unknown rounding, groups that do not fit
      into what the devices take at once, or a share of several examples with
      fewer groups than there must be microbatches.

  >>> ladder(32, 300, devices=1).batch_sizes
  (32, 64, 128, 256, 300)
  """
  made = Ladder(
    (),
    devices,
    max_per_device,
    rounding,
    group_size,
    replicas,
    min_microbatches,
    damping_exponent,
    min_per_device,
  )
  _check_ladder(smallest, largest, growth, made)
  rungs = []
  size = float(smallest)
  while (rung := _whole(size * (1 - _TOLERANCE), replicas)) < largest:
    rungs.append(rung)
    if len(rungs) > MOST_RUNGS:
      raise ValueError(
        f'a ladder growth of {growth} makes more than {MOST_RUNGS} sizes from '
        f'{smallest} to {largest}: raise it'
      )
    size = max(size * growth, rung + 1.0)
  rungs.append(largest)
  made = made._replace(batch_sizes=tuple(rungs))
  for rung in rungs:
    bucket_for(rung, made)  # refuses groups that do not fit
  return made


def _check_ladder(
  smallest: int, largest: int, growth: float, ladder: Ladder
) -> None:
  if smallest < 1 or largest < smallest:
    raise ValueError(
      f'batch sizes must satisfy 1 <= smallest <= largest, got smallest='
      f'{smallest} and largest={largest}'
    )
  if ladder.devices < 1:
    raise ValueError(f'devices must be at least 1, got {ladder.devices}')
  most = ladder.max_per_device
  if most is not None and most < 1:
    raise ValueError(f'max_per_device must be at least 1, got {most}')
  if not growth > 1 or not math.isfinite(growth):
    raise ValueError(f'the ladder growth must be above 1, got {growth}')
  rounding, replicas = ladder.rounding, ladder.replicas
  if rounding not in ROUNDINGS:
    raise ValueError(
      f'unknown rounding {rounding!r}: choose one of {", ".join(ROUNDINGS)}'
    )
  for size in (smallest, largest):
    if size % replicas:
      raise ValueError(
        f'{replicas} replicas cannot share {size} examples equally: choose '
        f'{_whole(size, replicas)}'
      )


def _whole(size: float, replicas: int) -> int:
  """The next multiple of the number of replicas."""
  return replicas * math.ceil(size / replicas)


def _whole_groups(bucket: Bucket, group_size: int | None) -> bool:
  """Whether no group of consecutive examples is cut by a microbatch's end."""
  size, steps, devices = bucket
  if group_size is None or size % group_size == 0:
    return True
  if steps == 1 and (devices == 1 or size * devices <= group_size):
    return True
  if group_size % size:
    return False
  # Groups of several whole devices.
  return steps == 1 or size * devices % group_size == 0


def devices_for(batch_size: int, ladder: Ladder) -> int:
  """How many devices run a rung.

  The largest divisor of their number with which each has at least
  `min_per_device` examples; 1 where none has.

  >>> some = ladder(16, 512, devices=8, min_per_device=16)
  >>> [devices_for(size, some) for size in some.batch_sizes]
  [1, 2, 4, 8, 8, 8]
  """
  if ladder.min_per_device is None:
    return ladder.devices
  most = _smallest_share(batch_size, ladder) // ladder.min_per_device
  some = range(min(most, ladder.devices), 0, -1)
  return next((n for n in some if ladder.devices % n == 0), 1)


def bucket_for(batch_size: int, ladder: Ladder) -> Bucket:
  """The bucket that runs `batch_size` examples in the fewest microbatches.

  Of those, the one with the fewest empty slots. Microbatches are of equal size:
  a device with 300 examples and room for 256 runs 2 x 150, not 256 and a mostly
  empty second one.

  Raises:
    ValueError: if no bucket keeps the groups whole.

  >>> bucket_for(300, ladder(1, 300, devices=1, max_per_device=256))
  Bucket(microbatch_size=150, accumulation_steps=2, devices=1)
  >>> groups = ladder(1, 300, devices=1, max_per_device=256, group_size=32)
  >>> bucket_for(300, groups)
  Bucket(microbatch_size=160, accumulation_steps=2, devices=1)
  """
  share = -(-batch_size // ladder.replicas)
  devices = devices_for(batch_size, ladder)
  per_device = -(-share // devices)
  group = ladder.group_size
  # No microbatch need be larger than a share filled up to whole groups.
  limit = ladder.max_per_device or per_device + (group or 0)
  fewest = _smallest_share(batch_size, ladder)
  between = min(ladder.min_microbatches, fewest) - 1
  if between:
    # All but the last are full, and that one is not empty.
    limit = min(limit, (fewest - 1) // between)
  for steps in range(-(-per_device // limit), per_device + 1):
    smallest = -(-per_device // steps)
    largest = min(limit, smallest + (group or 0))
    for size in range(smallest, largest + 1):
      bucket = Bucket(size, steps, devices)
      if between and group is not None and size % group:
        continue
      if _whole_groups(bucket, group):
        return bucket
  if between and group is not None and between * group >= fewest:
    raise ValueError(
      f'gradient noise is measured between BatchNorm groups, and a share of '
      f'{fewest} examples holds too few groups of {group}: begin with more '
      f'than {between * group} examples for each replica, or make the group '
      'smaller'
    )
  raise ValueError(
    f'a BatchNorm group of {group} examples cannot be kept whole: '
    f'{devices} devices take {limit} examples each at once; raise '
    'max_per_device to at least the group, or make the group smaller'
  )


def _smallest_share(batch_size: int, ladder: Ladder) -> int:
  """The fewest examples of a replica that run in the bucket of a rung."""
  share = -(-batch_size // ladder.replicas)
  below = bisect.bisect_left(ladder.batch_sizes, batch_size)
  if ladder.rounding != 'exact' or not below:
    return share
  return ladder.batch_sizes[below - 1] // ladder.replicas + 1


def _nearest(size: float, rungs: tuple[int, ...]) -> int:
  above = rungs[bisect.bisect_left(rungs, size)]
  below = rungs[max(bisect.bisect_left(rungs, size) - 1, 0)]
  return below if below < size and size / below < above / size else above


def plan(nominal_batch_size: float, ladder: Ladder) -> Plan:
  """What to run for a nominal batch size, which may lie beyond the ladder.

  Args:
    nominal_batch_size: what the controller asks for, in examples; finite.
    ladder: the sizes that can be run.

  Raises:
    ValueError: if the nominal size is below 1 or not finite.

  >>> rungs = ladder(32, 256, devices=8, max_per_device=16)
  >>> plan(33.0, rungs)  # doctest: +NORMALIZE_WHITESPACE
  Plan(nominal=33.0, batch_size=64, damping=1.0,
       bucket=Bucket(microbatch_size=8, accumulation_steps=1, devices=8))
  >>> plan(1024.0, rungs)  # doctest: +NORMALIZE_WHITESPACE
  Plan(nominal=1024.0, batch_size=256, damping=0.25,
       bucket=Bucket(microbatch_size=16, accumulation_steps=2, devices=8))
  >>> plan(1024.0, ladder(32, 256, devices=1, damping_exponent=0.5)).damping
  0.5
  """
  if not 1 <= nominal_batch_size < math.inf:
    raise ValueError(
      f'a nominal batch size must be finite and at least 1, got '
      f'{nominal_batch_size}'
    )
  smallest, largest = ladder.batch_sizes[0], ladder.batch_sizes[-1]
  asked = nominal_batch_size * (1 - _TOLERANCE)
  wanted = min(max(asked, float(smallest)), float(largest))
  rung = ladder.batch_sizes[bisect.bisect_left(ladder.batch_sizes, wanted)]
  if ladder.rounding == 'nearest':
    rung = _nearest(wanted, ladder.batch_sizes)
  exact = ladder.rounding == 'exact'
  batch_size = _whole(wanted, ladder.replicas) if exact else rung
  damping = min(1.0, largest / nominal_batch_size) ** ladder.damping_exponent
  return Plan(nominal_batch_size, batch_size, damping, bucket_for(rung, ladder))


def cut(plan: Plan, batch_size: int, ladder: Ladder) -> Plan:
  """What to run where fewer examples are left than a plan has.

  The update stands for a whole one, as that of B_max does for one beyond it:
  the learning rate is damped by (batch size / planned size)^exponent, and is
  no larger than so few examples allow.

  Args:
    plan: of the whole batch.
    batch_size: examples that are left, or more.
    ladder: whose exponent counts.

  >>> rungs = ladder(32, 256, devices=1)
  >>> cut(plan(256, rungs), 64, rungs)  # doctest: +NORMALIZE_WHITESPACE
  Plan(nominal=256, batch_size=64, damping=0.25,
       bucket=Bucket(microbatch_size=256, accumulation_steps=1, devices=1))
  """
  if batch_size >= plan.batch_size:
    return plan
  damping = (batch_size / plan.batch_size) ** ladder.damping_exponent
  return plan._replace(batch_size=batch_size, damping=plan.damping * damping)


def next_rung(batch_size: int, ladder: Ladder) -> int | None:
  """The rung above the one that holds `batch_size`; None at the top.

  >>> next_rung(64, ladder(32, 256, devices=1))
  128
  """
  above = bisect.bisect_left(ladder.batch_sizes, batch_size) + 1
  return ladder.batch_sizes[above] if above < len(ladder.batch_sizes) else None
