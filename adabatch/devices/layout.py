"""Which example stands in which slot of which device.

A batch of B examples is the positions p ... p + B - 1 of the one order. Dealt
like cards they fall on L *lanes*, position q on lane q mod L; a lane belongs to
one replica and, where data are streamed, to one process:

    lane    resident: one for each of the K replicas
            streamed: one for each of the K replicas or H processes, whichever
                      are more; process h reads the positions of its lanes alone

What falls on a lane is dealt to the C devices that share it (its *columns*), a
microbatch of S at a time, as often as gradients are accumulated. With L = 2,
C = 2, S = 2 and p = 0 the places in the batch (0 is the first example) are

                    lane 0                  lane 1
                column 0   column 1     column 0   column 1
      step 0     0  2       4  6         1  3       5  7
      step 1     8 10      12 14         9 11      13 15

so that neighbours in the order are processed together, and the place of slot s
in step t of column c of lane l is

    (l - p) mod L  +  L (S (C t + c) + s)

Slots whose place is B or beyond are empty. Nothing else says where an example
stands: the host fills the slots by this rule (NumPy), and the devices know by
it (jnp) which slots are real, which dropout mask and which BatchNorm group are
an example's own.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from adabatch.controllers.buckets import Bucket


class Layout(NamedTuple):
  """Lanes and columns of all devices, in the order of the mesh.

  Attributes:
    lanes: L.
    columns: C, devices that share a lane.
    lane: of each replica on each device, int [devices, replicas on each].
    column: of each device, int [devices].
  """

  lanes: int
  columns: int
  lane: np.ndarray
  column: np.ndarray

  def first_places(self, position: int, microbatch_size: int) -> np.ndarray:
    """Place of slot 0 in step 0; int [devices, replicas on each]."""
    lane = (self.lane - position) % self.lanes
    return lane + self.lanes * microbatch_size * self.column[:, None]

  def places(self, first: Any, bucket: Bucket, xp: Any = np) -> Any:
    """Places of all slots; int32 [..., steps, microbatch size].

    Args:
      first: place of slot 0 in step 0; int [...].
      bucket: how the slots are processed.
      xp: NumPy, or jax.numpy on the devices.
    """
    size, steps, _ = bucket
    step = xp.arange(steps, dtype=np.int32)[:, None]
    slot = xp.arange(size, dtype=np.int32)
    return xp.asarray(first)[..., None, None] + self.lanes * (
      size * self.columns * step + slot
    )


def resident(rows: int, devices: int, replicas: int) -> Layout:
  """Where every device has all examples: a lane is a replica.

  Args:
    rows: rows of the mesh, each of which trains replicas / rows models.
    devices: devices of a row.
    replicas: K.

  >>> resident(rows=1, devices=2, replicas=1).first_places(0, 4).tolist()
  [[0], [4]]
  """
  here = replicas // rows
  return Layout(
    replicas,
    devices,
    np.repeat(np.arange(replicas).reshape(rows, here), devices, axis=0),
    np.tile(np.arange(devices), rows),
  )


class Streamed(NamedTuple):
  """A layout for data of which each process reads a part.

  Attributes:
    layout: of the devices of all processes.
    residue: of each process: it reads the positions q with q mod H = residue.
  """

  layout: Layout
  residue: dict[int, int]


def streamed(processes: Sequence[Sequence[int]], replicas: int) -> Streamed:
  """Where process h of H reads every H-th example for its own devices.

  Either several processes share a replica, or a process has several replicas.

  Args:
    processes: of each device, by rows of the mesh.
    replicas: K.

  Raises:
    ValueError: if processes and replicas do not fit.

  >>> streamed([[0, 0], [1, 1]], replicas=2).residue
  {0: 0, 1: 1}
  """
  here = replicas // len(processes)
  members = [list(dict.fromkeys(row)) for row in processes]
  all_processes = list(dict.fromkeys(p for row in members for p in row))
  count = len(all_processes)
  if replicas % count and (count % replicas or here > 1):
    raise ValueError(
      f'{count} processes cannot read for {replicas} replicas: the number of '
      'one must divide that of the other'
    )
  if count >= replicas:
    # Lane `rank * K + row` is of the replica `row`, and of one process.
    residue = {
      process: rank * replicas + row
      for row, some in enumerate(members)
      for rank, process in enumerate(some)
    }
    lane = [[residue[p]] for row in processes for p in row]
    lanes = count
  else:
    if any(len(some) > 1 for some in members):
      raise ValueError('the devices of a process do not follow one another')
    residue = {process: i for i, process in enumerate(all_processes)}
    lanes, seen = replicas, dict.fromkeys(all_processes, 0)
    lane = []
    for row in processes:
      own = [seen[row[0]] + j for j in range(here)]
      seen[row[0]] += here
      lane += [[j * count + residue[row[0]] for j in own]] * len(row)
  column, columns = [], len(processes[0]) * replicas // lanes
  for row in processes:
    place: dict[int, int] = {}
    for process in row:
      place[process] = place.get(process, -1) + 1
      column.append(place[process])
  # Else a lane would have too few devices for its examples, or none.
  sharing = np.bincount(np.ravel(lane), minlength=lanes)
  if sharing.tolist() != [columns] * lanes:
    raise ValueError(
      'the processes must have equally many devices, which follow one another'
    )
  layout = Layout(lanes, columns, np.array(lane), np.array(column))
  return Streamed(layout, residue)
