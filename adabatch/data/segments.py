"""Shared memory whose names tell whose it is, so that nothing of it is left.

Readers hand their examples over in segments of `/dev/shm`. Where a whole group
of processes is killed, nobody is left to remove them; so the next run removes
those whose owner is dead (`sweep`). A reader uses one segment over and over
(`Slots`): making one and touching its memory for the first time takes longer
than copying the examples. Names have the owner's process number, when
it was started, because numbers are used again, and where numbers mean that: in
another container they are others.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import pathlib
import secrets
from multiprocessing import shared_memory
from typing import Any

import numpy as np

from adabatch.data.tfds_records import DatasetError

DIRECTORY = pathlib.Path('/dev/shm')
PROCESSES = pathlib.Path('/proc')
PREFIX = 'adabatch'

# What starting readers takes beside the examples, in small segments.
LEAST_BYTES = 2**20

# Where arrays in a slot begin.
_ALIGNED = 64


def owner() -> str | None:
  """This process, as names tell it; None where there is no such directory."""
  numbers = PROCESSES / 'self/ns/pid'
  if not (DIRECTORY.is_dir() and numbers.exists()):
    return None
  pid = os.getpid()
  return f'{PREFIX}-{numbers.stat().st_ino}-{pid}-{_start_of(pid)}'


def _start_of(pid: int | str) -> str | None:
  """When a process was started; None if it is not alive."""
  try:
    text = (PROCESSES / str(pid) / 'stat').read_text()
  except (FileNotFoundError, ProcessLookupError):
    return None
  # Behind the name, which may hold anything: the state, and 19 further on when.
  fields = text.rpartition(')')[2].split()
  return None if fields[0] in 'ZX' else fields[19]


def sweep() -> list[str]:
  """Removes what dead owners left; the names of it."""
  here, swept = owner(), []
  if here is None:
    return swept
  numbers = here.rsplit('-', 2)[0]
  for path in DIRECTORY.glob(f'{numbers}-*-*-*'):
    _, _, pid, start, _ = path.name.split('-')
    if _start_of(pid) != start:
      try:
        path.unlink(missing_ok=True)
      except PermissionError:
        continue  # another user's, who will
      swept.append(path.name)
  return swept


def check_room(needed: int) -> None:
  """Refuses to begin where readers would not get far.

  Args:
    needed: bytes of all that may wait to be taken.

  Raises:
    DatasetError: if there is less.
  """
  if DIRECTORY.is_dir():
    free = _free()
    needed = max(needed, LEAST_BYTES)
    if free < needed:
      raise _full(needed, free)


@dataclasses.dataclass(frozen=True)  # no tuple, which grain would look into
class Lent:
  """Arrays in a slot of a segment, until who takes them gives it back.

  Attributes:
    segment: its name.
    slot: number of the slot.
    arrays: of each its name, where it begins, shape and kind.
  """

  segment: str
  slot: int
  arrays: tuple[tuple[str, int, tuple[int, ...], np.dtype], ...]

  def views(self, memory: Any) -> dict[str, np.ndarray]:
    """The arrays in the memory of the segment."""
    return {
      name: np.ndarray(shape, dtype, memory, at)
      for name, at, shape, dtype in self.arrays
    }


class Slots:
  """A segment with places for so many chunks of examples, used in turns.

  It begins with a byte for each slot, which is 1 while the slot is lent.
  """

  def __init__(self, name: str, count: int) -> None:
    """Nothing is made before the first chunk tells how large a slot is."""
    self._name, self._count, self._size = name, count, 0
    self._segment: Any = None

  def place(
    self, kinds: dict[str, tuple[tuple[int, ...], np.dtype]]
  ) -> tuple[Lent, dict[str, np.ndarray]] | None:
    """Arrays in a free slot, to be filled and then lent.

    Args:
      kinds: shape and kind of each.

    Returns:
      What to hand over, and the arrays; None if there is no slot that is free
      and large enough.

    Raises:
      DatasetError: if there is no room for the segment.
    """
    places, size = [], 0
    for name, (shape, dtype) in kinds.items():
      places.append((name, size, shape, dtype))
      each = math.prod(shape) * dtype.itemsize
      size += -(-each // _ALIGNED) * _ALIGNED
    head = -(-self._count // _ALIGNED) * _ALIGNED
    if self._segment is None:
      self._size = size
      self._segment = _create(self._name, head + self._count * size)
    state: Any = self._segment.buf
    slot = bytes(state[: self._count]).find(0)
    if slot < 0 or size > self._size:
      return None
    begin = head + slot * self._size
    lent = Lent(
      self._name, slot, tuple((n, begin + at, *rest) for n, at, *rest in places)
    )
    return lent, lent.views(state)

  def lend(self, lent: Lent) -> None:
    """The slot is not free from now on."""
    state: Any = self._segment.buf
    state[lent.slot] = 1


class Borrowed:
  """The other end of `Slots`, of all readers of a stream."""

  def __init__(self, prefix: str) -> None:
    """Their names begin with `prefix`."""
    self._prefix, self._segments = prefix, {}

  def take(self, lent: Lent) -> dict[str, np.ndarray]:
    """Copies of the arrays; the slot is free again."""
    segment = self._segments.get(lent.segment)
    if segment is None:
      segment = shared_memory.SharedMemory(lent.segment)
      self._segments[lent.segment] = segment
    state: Any = segment.buf
    arrays = {name: np.array(v) for name, v in lent.views(state).items()}
    state[lent.slot] = 0
    return arrays

  def close(self) -> None:
    """Removes the segments; once no reader is left."""
    segments, self._segments = self._segments, {}
    # Also those of which nothing was taken.
    for path in DIRECTORY.glob(f'{self._prefix}*'):
      if path.name not in segments:
        segments[path.name] = shared_memory.SharedMemory(path.name)
    for segment in segments.values():
      segment.close()
      segment.unlink()


def share(array: np.ndarray, owner: str) -> Any:
  """An array in a segment of its own, as grain hands it over.

  Args:
    array: not empty.
    owner: whose it is; who takes the array removes the segment.

  Raises:
    DatasetError: if there is no room for it.
  """
  from grain.multiprocessing import SharedMemoryArray

  segment = _create(f'{owner}-{token()}', array.nbytes)
  shared = SharedMemoryArray.from_shared_memory(
    segment, array.shape, array.dtype
  )
  np.copyto(shared, array)
  return shared


def token() -> str:
  """What tells the segments of one owner apart."""
  return secrets.token_hex(6)


def _create(name: str, size: int) -> shared_memory.SharedMemory:
  segment = shared_memory.SharedMemory(name, create=True, size=size)
  try:
    # Or the first to write where there is no room dies of a bus error.
    with (DIRECTORY / segment.name).open('r+b') as file:
      os.posix_fallocate(file.fileno(), 0, size)
  except OSError as error:
    segment.close()
    segment.unlink()
    if error.errno != errno.ENOSPC:
      raise
    raise _full(size, _free()) from None
  return segment


def _free() -> int:
  status = os.statvfs(DIRECTORY)
  return status.f_bavail * status.f_frsize


def _full(needed: int, free: int) -> DatasetError:
  return DatasetError(
    f'{DIRECTORY} has {free:,} bytes left of the {needed:,} in which readers '
    'hand their examples over: make it larger (docker run --shm-size=...), '
    'read with fewer processes, or with data.workers=0 in a thread'
  )
