"""How many trials side by side, how many updates in a call: by measuring.

No rule says it: a CPU scans small batches several times faster than it is
called for each, and does large ones no faster; an accelerator has room for many
small models at once; convolutions in a loop crawl on a CPU.
"""

import time
from collections.abc import Sequence

import jax

from adabatch.search.population import Group, Member, Mode, Population

UPDATES_PER_CALL = 64  # beyond which a call's own cost is not seen any more
MAX_INDEX_BYTES = 64 * 2**20  # of the indices that one call is given
WINDOW_SECONDS = 0.05  # of one timing of one mode
ROUNDS = 3  # timings of each mode, in turn, of which the least counts
PROBE = 4  # updates in the call that tells what one more of them costs
HOPELESS = 4.0  # times slower than the best in the first calls: not timed again
LONG_SECONDS = 0.05  # an update so long that the cost of a call does not matter
# Members side by side wait for the slowest, and run on where one after the
# other would have learnt from each other: they must gain more than this.
MARGIN = 0.05


def candidates(
  population: Population, most_members: int, fixed: tuple[int | None, ...]
) -> list[Mode]:
  """The modes worth measuring.

  Args:
    population: of the trials.
    most_members: for each device.
    fixed: members and updates in a call, where they are not free to choose.
  """
  slots = population.plan.bucket.slots_per_device
  members, updates = fixed
  found = []
  for m in [1, most_members] if members is None else [members]:
    room = population.room(m * population.devices)
    most = max(MAX_INDEX_BYTES // (4 * slots * room), 1)
    most = min(UPDATES_PER_CALL, most, population.total_updates)
    for u in [1, most] if updates is None else [updates]:
      found.append(Mode(m, u))
  return list(dict.fromkeys(found))


def seconds_per_update(
  population: Population, members: Sequence[Member], modes: Sequence[Mode]
) -> dict[Mode, float]:
  """Seconds of all devices for one update of one member, by mode.

  Modes take turns, so that a disturbance does not fall on one of them alone.

  Args:
    population: of the trials.
    members: as many as there are; they are repeated where a mode has more.
    modes: to be compared.
  """
  groups: dict[Mode, Group] = {}
  least: dict[Mode, float] = {}

  def call(mode: Mode, count: int) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(
      population.train_call(groups[mode], 0, count, mode.updates_per_call)
    )
    return time.perf_counter() - begin

  # The first, which does one update of one member in a call, tells whether
  # calls can cost anything to speak of.
  longest = 0.0
  for mode in sorted(modes, key=lambda mode: mode.updates_per_call):
    if mode.updates_per_call > 1 and longest > LONG_SECONDS:
      continue
    size = mode.members * population.devices
    repeated = [members[i % len(members)] for i in range(size)]
    groups[mode] = population.start(repeated)
    call(mode, 1)  # compiles
    first, few = call(mode, 1), min(PROBE, mode.updates_per_call)
    longest = max(longest, first)
    each = (call(mode, few) - first) / (few - 1) if few > 1 else first
    whole = first + (mode.updates_per_call - 1) * max(each, 0.0)
    least[mode] = whole / (mode.updates_per_call * size)
  best = min(least.values())
  alive = [mode for mode in least if least[mode] <= HOPELESS * best]
  for _ in range(ROUNDS):
    for mode in alive:
      size = mode.members * population.devices
      count = mode.updates_per_call
      calls = int(WINDOW_SECONDS / (least[mode] * size * count)) or 1
      begin = time.perf_counter()
      for _ in range(calls):
        call(mode, count)
      seconds = (time.perf_counter() - begin) / (calls * count * size)
      least[mode] = min(least[mode], seconds)
  return least


def choose(measured: dict[Mode, float]) -> Mode:
  """The fastest, but a single member where it is hardly slower.

  >>> choose({Mode(1, 1): 9.0, Mode(1, 64): 3.0, Mode(16, 64): 2.9})
  Mode(members=1, updates_per_call=64)
  """
  best = min(measured, key=lambda mode: measured[mode])
  close = [m for m in measured if measured[m] <= measured[best] * (1 + MARGIN)]
  return min(close, key=lambda mode: (mode.members, measured[mode]))
