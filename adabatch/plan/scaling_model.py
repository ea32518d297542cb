"""What a run would take on fewer and on more chips: a model.

From what the compiler says of the batch sizes of one machine of N0 chips, for N
chips of its kind; nothing is measured, and chips never wait for one another:

    seconds of an update of B examples = T(m, k) + exchange(N)
    seconds of a run = sum over batch sizes of updates * seconds of an update
    chip-hours = N * seconds / 3600
    efficiency = seconds(1) / (N * seconds(N))

Strong scaling keeps the batch sizes: `bucket_for` says m and k for ceil(B / N)
examples a chip, and where B < N the chips beyond B are idle. A chip takes at
most as many at once as the run allows, and as it has memory for. Weak scaling
keeps m and k: batches have N / N0 as many examples, and there are N0 / N as
many updates. T is that of `step_times`; the exchange that of `figures`.
Exchanges among a part of the chips are those of BatchNorm's groups, as often as
there are microbatches; those among all come once an update.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from adabatch.controllers.buckets import Bucket, Ladder, bucket_for
from adabatch.plan import torus
from adabatch.plan.figures import all_reduce_seconds
from adabatch.plan.hlo import Collective
from adabatch.plan.step_times import Point, StepTimes
from adabatch.plan.topology import Topology

CHIPS = tuple(2**i for i in range(13))
WIN = 0.9  # of the time of the smallest batch


class Rung(NamedTuple):
  """A batch size whose program was compiled.

  Attributes:
    batch_size: in examples.
    bucket: on the machine that was compiled for.
    seconds: of an update on a chip, by the compiler.
    collectives: of an update.
    updates: that the schedule makes with it.
    memory: bytes of a chip at its peak.
  """

  batch_size: int
  bucket: Bucket
  seconds: float
  collectives: tuple[Collective, ...]
  updates: int = 0
  memory: float = 0.0


class Update(NamedTuple):
  """One update on some chips.

  Attributes:
    seconds: it takes.
    outside: 'fewer' or 'more' examples at once than any that was compiled, or
      ''.
  """

  seconds: float
  outside: str


class Model(NamedTuple):
  """All that a prediction needs.

  Attributes:
    machine: that was compiled for.
    ladder: of the run; its limit of examples at once holds everywhere.
    rungs: of it, those that fit.
    times: of microbatches.
    programs: by m and k, whose exchanges are known.
  """

  machine: Topology
  ladder: Ladder
  rungs: Sequence[Rung]
  times: StepTimes
  programs: Mapping[tuple[int, int], tuple[Collective, ...]]


def make(
  machine: Topology,
  ladder: Ladder,
  rungs: Sequence[Rung],
  extra: Iterable[Rung] = (),
) -> Model:
  """A model from what was compiled.

  Args:
    machine: in one slice.
    ladder: of the run. Its limit of examples at once is lowered to what fits.
    rungs: at least one.
    extra: compiled only to know more.
  """
  programs = {
    (rung.bucket.microbatch_size, rung.bucket.accumulation_steps): rung
    for rung in (*extra, *rungs)
  }
  times = StepTimes(Point(m, k, r.seconds) for (m, k), r in programs.items())
  fit = most_at_once(machine.chip.memory, programs.values())
  most = min(ladder.max_per_device or fit, fit)
  ladder = ladder._replace(max_per_device=most)
  exchanged = {key: rung.collectives for key, rung in programs.items()}
  return Model(machine, ladder, rungs, times, exchanged)


def most_at_once(memory: float, programs: Iterable[Rung]) -> int:
  """Examples at once that a chip has memory for.

  By the line through the two largest that were compiled; at least as many as
  they. Where it does not rise, or there is one alone, of more nothing is known.
  """
  peaks: dict[int, float] = {}
  for rung in programs:
    size = rung.bucket.microbatch_size
    peaks[size] = max(rung.memory, peaks.get(size, 0.0))
  sizes = sorted(peaks)
  if len(sizes) == 1 or peaks[sizes[-1]] <= peaks[sizes[-2]]:
    return sizes[-1]
  low, high = sizes[-2:]
  each = (peaks[high] - peaks[low]) / (high - low)
  return high + max(int((memory - peaks[high]) / each), 0)


def strong(model: Model, rung: Rung, chips: int) -> Update | None:
  """An update of the same batch on so many chips.

  None where they cannot share it, or nothing is known of so many.
  """
  try:
    bucket = bucket_for(rung.batch_size, model.ladder._replace(devices=chips))
  except ValueError:  # BatchNorm's groups would be cut
    return None
  return _update(model, bucket, chips)


def weak(model: Model, rung: Rung, chips: int) -> Update | None:
  """An update of a batch with as many examples on each of so many chips.

  None where that is less than one example, or nothing is known of so many.
  """
  if rung.batch_size * chips < len(model.machine.devices):
    return None
  return _update(model, rung.bucket, chips)


def _update(model: Model, bucket: Bucket, chips: int) -> Update | None:
  size, steps, _ = bucket
  exchange = exchange_seconds(model, size, steps, chips)
  if exchange is None:
    return None
  sizes = model.times.sizes
  outside = 'fewer' if size < sizes[0] else 'more' if size > sizes[-1] else ''
  return Update(model.times(size, steps) + exchange, outside)


def exchange_seconds(
  model: Model, size: int, steps: int, chips: int
) -> float | None:
  """What chips exchange in an update; None where nothing is known of so many.

  Of a program that was not compiled it is that with the next smaller
  microbatch, which exchanges no less: the smaller they are, the more of them
  share a group of BatchNorm.
  """
  where = torus.place(model.machine, chips)
  if where is None:
    return None
  known = min(
    model.programs,
    key=lambda p: (p[0] > size, abs(p[0] - size), abs(p[1] - steps)),
  )
  own, within = len(model.machine.devices), chips // where.slices
  collectives = []
  for c in model.programs[known]:
    if c.devices is None or c.devices == own:
      c = c._replace(devices=None)
    else:
      c = c._replace(
        bytes=c.bytes * steps / known[1], devices=min(c.devices, within)
      )
    collectives.append(c)
  machine = model.machine._replace(
    shape=where.shape, slices=where.slices, devices=(None,) * chips
  )
  return all_reduce_seconds(tuple(collectives), machine)


def total(
  updates: Mapping[int, float], of: Callable[[int], Update | None]
) -> Update | None:
  """A whole run.

  Args:
    updates: by batch size.
    of: an update of a batch size.
  """
  seconds, outside = 0.0, set()
  for size, number in updates.items():
    update = of(size)
    if update is None:
      return None
    seconds += number * update.seconds
    outside.add(update.outside)
  # An upper bound says less than a line that goes on.
  return Update(seconds, max(outside, key=('', 'more', 'fewer').index))


def predict(
  model: Model, examples: int, *, schedule: bool
) -> dict[str, list[dict[str, Any]]]:
  """Rows of `strong` and `weak` scaling by the number of chips; plain numbers.

  Args:
    model: of the run.
    examples: that each run is shown.
    schedule: whether the rungs' updates are those of a schedule.
  """
  first, last = model.rungs[0].batch_size, model.rungs[-1].batch_size
  runs: dict[str, dict[int, float]] = {
    'smallest': {first: examples / first},
    'largest': {last: examples / last},
  }
  if schedule:
    runs['schedule'] = {
      r.batch_size: r.updates for r in model.rungs if r.updates
    }
  own = len(model.machine.devices)
  found = {}
  for kind, one in (('strong', strong), ('weak', weak)):
    rows = []
    for chips in sorted({*CHIPS, own}):
      where = torus.place(model.machine, chips)
      fewer = own / chips if kind == 'weak' else 1.0
      updates = {r.batch_size: one(model, r, chips) for r in model.rungs}
      row: dict[str, Any] = {
        'chips': chips,
        'shape': None if where is None else list(where.shape),
        'slices': None if where is None else where.slices,
      }
      for name, run in runs.items():
        run = {size: number * fewer for size, number in run.items()}
        row[name] = _plain(total(run, updates.get), chips)
      rows.append(row)
    found[kind] = _compare(rows, runs)
  return found


def _plain(update: Update | None, chips: int) -> dict[str, Any] | None:
  if update is None:
    return None
  hours = update.seconds * chips / 3600
  return {**update._asdict(), 'chip_hours': hours}


def _compare(
  rows: list[dict[str, Any]], runs: Iterable[str]
) -> list[dict[str, Any]]:
  """Adds the efficiency against one chip, and shares of the smallest's time."""
  for name in runs:
    alone = rows[0][name]
    for row in rows:
      if (run := row[name]) is None:
        continue
      run['efficiency'] = (
        None if alone is None else alone['chip_hours'] / run['chip_hours']
      )
      if row['smallest'] is not None:
        run['of_smallest'] = run['seconds'] / row['smallest']['seconds']
  return rows


def wins_from(rows: Sequence[Mapping[str, Any]]) -> int | None:
  """Chips from which on the schedule takes `WIN` of the smallest's time.

  Only rows count in which nothing is a mere upper bound.
  """
  found = None
  for row in rows:
    ours, theirs = row.get('schedule'), row['smallest']
    if ours is None or theirs is None:
      continue
    if 'fewer' in (ours['outside'], theirs['outside']):
      continue
    won = ours['seconds'] <= WIN * theirs['seconds']
    found = (found or row['chips']) if won else None
  return found


def between(sizes: Iterable[int], can: Callable[[int], bool]) -> list[int]:
  """At most two microbatch sizes to compile as well.

  The smallest that can be run, and, where that makes two, the one in the middle
  by ratio.

  Args:
    sizes: that are compiled anyway.
    can: whether a size can be run.

  >>> between([32], lambda size: True), between([1, 8, 64], lambda size: True)
  ([1, 6], [])
  """
  known = set(sizes)
  smallest = next((m for m in range(1, min(known)) if can(m)), None)
  more = [] if smallest is None else [smallest]
  if len(ends := sorted({*known, *more})) == 2:
    middle = round(math.sqrt(math.prod(ends)))
    if middle not in ends and can(middle):
      more.append(middle)
  return more
