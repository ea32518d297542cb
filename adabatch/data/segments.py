"""Shared memory whose names tell whose it is, so that nothing of it is left.

Readers hand their examples over in segments of `/dev/shm`. Where a whole group
of processes is killed, nobody is left to remove them; so the next run removes
those whose owner is dead (`sweep`). Names have the owner's process number, when
it was started, because numbers are used again, and where numbers mean that: in
another container they are others.
"""

from __future__ import annotations

import errno
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


def share(array: np.ndarray, owner: str) -> Any:
  """An array in a segment of its own, as grain hands it over.

  Args:
    array: not empty.
    owner: whose it is; who takes the array removes the segment.

  Raises:
    DatasetError: if there is no room for it.
  """
  from grain.multiprocessing import SharedMemoryArray

  size = array.nbytes
  segment = shared_memory.SharedMemory(
    f'{owner}-{secrets.token_hex(6)}', create=True, size=size
  )
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
  shared = SharedMemoryArray.from_shared_memory(
    segment, array.shape, array.dtype
  )
  np.copyto(shared, array)
  return shared


def _free() -> int:
  status = os.statvfs(DIRECTORY)
  return status.f_bavail * status.f_frsize


def _full(needed: int, free: int) -> DatasetError:
  return DatasetError(
    f'{DIRECTORY} has {free:,} bytes left of the {needed:,} in which readers '
    'hand their examples over: make it larger (docker run --shm-size=...), '
    'read with fewer processes, or with data.workers=0 in a thread'
  )
