"""How many trials side by side, how many updates in a call: by measuring.

No rule says it: a CPU scans small batches several times faster than it is
called for each, and does large ones no faster; an accelerator has room for many
small models at once; convolutions in a loop crawl on a CPU.
"""

import time
from collections.abc import Sequence

import jax

from adabatch.devices.messages import Call
from adabatch.devices.population import Group, Member, Population
from adabatch.search.population import Mode

UPDATES_PER_CALL = 64  # beyond which a call's own cost is not seen any more
MAX_INDEX_BYTES = 64 * 2**20  # of the indices that one call is given
WINDOW_SECONDS = 0.05  # of one timing of one mode
ROUNDS = 3  # timings of each mode, in turn, of which the least counts
PROBE, PROBES = 4, 2  # updates in a first call, and how many of those
HOPELESS = 4.0  # times slower than the best in the first calls: not timed again
LONG_SECONDS = 0.05  # an update so long that the cost of a call does not matter
# As members end, the rest has programs of its own to compile: side by side they
# must gain more than this.
MARGIN = 0.05


def candidates(
  population: Population,
  total_updates: int,
  most_members: int,
  fixed: tuple[int | None, ...],
) -> list[Mode]:
  """The modes worth measuring.

  Args:
    population: of the trials.
    total_updates: of a trial.
    most_members: for each device.
    fixed: members and updates in a call, where they are not free to choose.
  """
  slots = population.plan.bucket.slots_per_device
  members, updates = fixed
  found = []
  for m in [1, most_members] if members is None else [members]:
    room = population.room(m * population.devices)
    most = max(MAX_INDEX_BYTES // (4 * slots * room), 1)
    most = min(updates or UPDATES_PER_CALL, most, total_updates)
    for u in [1, most] if updates is None else [most]:
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
    updates = Call(0, 0, count, population.plan)
    jax.block_until_ready(
      population.dispatch(groups[mode], updates, mode.updates_per_call)
    )
    return time.perf_counter() - begin

  # One update in a call tells whether calls can cost anything to speak of.
  single: dict[int, float] = {}
  for mode in sorted(modes, key=lambda mode: mode.updates_per_call):
    if single.get(mode.members, 0.0) > LONG_SECONDS:
      continue
    size = mode.members * population.devices
    repeated = [members[i % len(members)] for i in range(size)]
    few = min(PROBE, mode.updates_per_call)
    try:
      groups[mode] = population.start(repeated)
      call(mode, 1)  # compiles
      # More than an update costs in a full call, so it condemns nobody wrongly.
      seconds = min(call(mode, few) for _ in range(PROBES))
    except jax.errors.JaxRuntimeError:  # so many have no room on the device
      groups.pop(mode, None)
      if mode.members == min(m.members for m in modes):
        raise
      continue
    least[mode] = seconds / (few * size)
    if few == 1:
      single[mode.members] = seconds
  best = min(least.values())
  alive = [mode for mode in least if least[mode] <= HOPELESS * best]
  groups = {mode: groups[mode] for mode in alive}
  for turn in range(ROUNDS):
    for mode in alive:
      size = mode.members * population.devices
      count = mode.updates_per_call
      calls = int(WINDOW_SECONDS / (least[mode] * size * count)) or 1
      begin = time.perf_counter()
      for _ in range(calls):
        call(mode, count)
      seconds = (time.perf_counter() - begin) / (calls * count * size)
      least[mode] = seconds if turn == 0 else min(least[mode], seconds)
  return least


def choose(measured: dict[Mode, float]) -> Mode:
  """The fastest, but a single member where it is hardly slower.

  >>> choose({Mode(1, 1): 9.0, Mode(1, 64): 3.0, Mode(16, 64): 2.9})
  Mode(members=1, updates_per_call=64)
  """
  best = min(measured, key=lambda mode: measured[mode])
  close = [m for m in measured if measured[m] <= measured[best] * (1 + MARGIN)]
  return min(close, key=lambda mode: (mode.members, measured[mode]))
