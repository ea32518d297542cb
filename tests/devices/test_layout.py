"""Every example stands in one slot, of a device that may and can have it.

A slow twin deals the positions like cards, one by one; the layout only ever
computes places.
"""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from adabatch.controllers.buckets import Bucket
from adabatch.devices import layout as layouts


class Case(NamedTuple):
  """Devices by rows of the mesh, replicas and processes."""

  rows: int
  devices: int  # of a row
  replicas: int
  processes: int = 1

  @property
  def by_row(self):
    """The process of each device; those of one process follow one another."""
    each = self.rows * self.devices // self.processes
    flat = [i // each for i in range(self.rows * self.devices)]
    return [
      flat[row * self.devices : (row + 1) * self.devices]
      for row in range(self.rows)
    ]

  def replica(self, device, i):
    """The i-th replica on a device."""
    return device // self.devices * (self.replicas // self.rows) + i

  @property
  def fits(self):
    """Whether a process reads for whole replicas, or is of one."""
    few, many = sorted([self.processes, self.replicas])
    members = [len(set(row)) for row in self.by_row]
    if self.processes >= self.replicas:
      return many % few == 0 and self.rows == self.replicas
    return many % few == 0 and set(members) == {1}


RESIDENT = [
  Case(rows, devices, rows * here)
  for rows, devices, here in itertools.product((1, 2, 3, 4), repeat=3)
  if rows * devices <= 8
]
MESHES = [
  Case(case.rows, case.devices, case.replicas, processes)
  for case in RESIDENT
  for processes in range(1, 9)
  if case.rows * case.devices % processes == 0
]
STREAMED = [case for case in MESHES if case.fits]
REFUSED = [case for case in MESHES if not case.fits]
# From the start, from anywhere, and where 32 bits end.
POSITIONS = (0, 1, 7, 1000, 2**31 - 3, 2**32 - 5, 2**40 + 11)


def works(case, seed):
  """Some (position, batch size, bucket), batches that fill it and do not."""
  rng = np.random.default_rng(seed)
  for size, steps in itertools.product((1, 2, 5), (1, 3)):
    bucket = Bucket(size, steps, case.devices)
    room = case.replicas * bucket.slots
    for batch_size in (1, room, int(rng.integers(1, room + 1))):
      yield int(rng.choice(POSITIONS)), batch_size, bucket


def dealt(lane_of, turns, position, batch_size, bucket):
  """The twin: (lane, column, step, slot) -> position.

  Args:
    lane_of: position -> lane.
    turns: columns of a lane.
    position: of the first example.
    batch_size: examples.
    bucket: how slots are processed.
  """
  table, fallen = {}, {}
  for q in range(position, position + batch_size):
    lane = lane_of(q)
    before = fallen.get(lane, 0)
    fallen[lane] = before + 1
    microbatch, slot = divmod(before, bucket.microbatch_size)
    step, column = divmod(microbatch, turns)
    table[lane, column, step, slot] = q
  return table


def held(layout, position, batch_size, bucket):
  """What the layout says: (device, replica on it, step, slot) -> position."""
  first = layout.first_places(position, bucket.microbatch_size)
  places = layout.places(first, bucket)
  size, steps, _ = bucket
  assert places.shape == (*layout.lane.shape, steps, size)
  assert places.min() >= 0
  return {
    where: position + int(places[where])
    for where in np.ndindex(places.shape)
    if places[where] < batch_size
  }


def replicas_of(case, slots):
  """Position -> replica; each position stands in one slot."""
  found = {q: case.replica(*where[:2]) for where, q in slots.items()}
  assert len(found) == len(slots), 'a position stands in two slots'
  return found


def resident(case):
  return layouts.resident(case.rows, case.devices, case.replicas)


def streamed(case):
  return layouts.streamed(case.by_row, case.replicas)


def check(case, layout, lane_of, lanes, columns):
  """A layout against the twin.

  Args:
    case: whose it is.
    layout: to be checked.
    lane_of: position -> lane.
    lanes: (device, replica on it) -> lane.
    columns: which of the devices of its lanes each device is, and of how many.
  """
  column, turns = columns
  for position, batch_size, bucket in works(case, sum(case)):
    table = dealt(lane_of, turns, position, batch_size, bucket)
    got = held(layout, position, batch_size, bucket)
    for (device, i, step, slot), q in got.items():
      where = lanes[device, i], column[device], step, slot
      assert table.pop(where) == q
    assert not table, 'these positions stand nowhere'


@pytest.mark.parametrize('case', RESIDENT, ids=str)
def test_resident_examples_are_dealt_to_replicas(case):
  every = range(case.rows * case.devices)
  check(
    case,
    resident(case),
    lambda q: q % case.replicas,
    {
      (device, i): case.replica(device, i)
      for device in every
      for i in range(case.replicas // case.rows)
    },
    ([device % case.devices for device in every], case.devices),
  )


@pytest.mark.parametrize('case', STREAMED, ids=str)
def test_streamed_examples_are_dealt_to_replicas_and_processes(case):
  """Each lane is one of a replica and a process; the layout names it."""
  layout, _ = streamed(case)
  processes = [process for row in case.by_row for process in row]
  pairs, lanes, devices_of = {}, {}, {}
  for device, process in enumerate(processes):
    for i in range(case.replicas // case.rows):
      lane = int(layout.lane[device, i])
      lanes[device, i] = lane
      pair = case.replica(device, i), process
      assert pairs.setdefault(lane, pair) == pair
      devices_of.setdefault(lane, []).append(device)
  assert sorted(pairs) == list(range(max(case.replicas, case.processes)))
  assert len(set(pairs.values())) == len(pairs)
  columns = [
    devices_of[lanes[device, 0]].index(device)
    for device in range(len(processes))
  ]
  turns = len(processes) * (case.replicas // case.rows) // len(pairs)
  check(case, layout, lambda q: q % len(pairs), lanes, (columns, turns))


@pytest.mark.parametrize('case', STREAMED, ids=str)
def test_a_process_is_given_what_it_reads(case):
  layout, residue = streamed(case)
  processes = [process for row in case.by_row for process in row]
  assert sorted(residue) == sorted(set(processes))
  assert sorted(residue.values()) == list(range(case.processes))
  for work in works(case, 1):
    for (device, *_), q in held(layout, *work).items():
      assert q % case.processes == residue[processes[device]]


@pytest.mark.parametrize('case', STREAMED, ids=str)
def test_resident_and_streamed_give_a_replica_the_same(case):
  """Where a process has several replicas, they may go by other numbers."""
  names = {}
  for work in works(case, 2):
    ours = replicas_of(case, held(resident(case), *work))
    theirs = replicas_of(case, held(streamed(case).layout, *work))
    position, batch_size, _ = work
    assert sorted(ours) == list(range(position, position + batch_size))
    assert ours.keys() == theirs.keys()
    for q in ours:
      assert names.setdefault(theirs[q], ours[q]) == ours[q]
  assert len(set(names.values())) == len(names)
  if case.processes == 1 or case.processes >= case.replicas:
    assert all(k == v for k, v in names.items())


@pytest.mark.parametrize('position', POSITIONS)
def test_devices_compute_the_places_of_the_host(position):
  """Few shapes, because each is another program."""
  for case in (Case(2, 2, 4), Case(2, 2, 4, 2), Case(2, 2, 2, 4)):
    for layout in (resident(case), streamed(case).layout):
      for bucket in (Bucket(1, 1, 2), Bucket(2, 3, 2)):
        first = layout.first_places(position, bucket.microbatch_size)
        host = layout.places(first, bucket)
        devices = layout.places(jnp.asarray(first, jnp.int32), bucket, jnp)
        assert devices.dtype == jnp.int32
        np.testing.assert_array_equal(host, devices)


def test_the_table_of_the_docstring():
  """L = 2, C = 2, S = 2, p = 0."""
  layout = resident(Case(rows=2, devices=2, replicas=2))
  places = layout.places(layout.first_places(0, 2), Bucket(2, 2, 2))[:, 0]
  assert places[:, 0].tolist() == [[0, 2], [4, 6], [1, 3], [5, 7]]
  assert places[:, 1].tolist() == [[8, 10], [12, 14], [9, 11], [13, 15]]


@pytest.mark.parametrize('case', REFUSED, ids=str)
def test_processes_and_replicas_that_do_not_fit_are_refused(case):
  with pytest.raises(ValueError):
    streamed(case)


@pytest.mark.parametrize(
  ('processes', 'replicas', 'message'),
  [
    ([[0, 1, 2]], 2, '3 processes cannot read for 2 replicas: the number of'),
    ([[0, 0], [1, 1]], 3, '2 processes cannot read for 3 replicas'),
    # One device would train two replicas, but its process reads for one.
    ([[0, 1, 2, 3]], 2, '4 processes cannot read for 2 replicas'),
    ([[0, 1]], 4, 'the devices of a process do not follow one another'),
    ([[0, 1], [1, 0]], 4, 'the devices of a process do not follow one another'),
    # More of a process's devices than its lanes have room for.
    ([[0, 0, 0, 1]], 1, 'equally many devices'),
    ([[0], [0], [0], [1]], 4, 'equally many devices'),
    ([[0, 1], [0, 1]], 2, 'equally many devices'),
    ([[0, 0, 1]], 2, 'equally many devices'),
  ],
)
def test_what_is_refused_says_why(processes, replicas, message):
  with pytest.raises(ValueError, match=message):
    layouts.streamed(processes, replicas)
