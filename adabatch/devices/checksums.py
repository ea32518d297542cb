"""Checksums of a state, one for each array.

It is the CRC-32 of the sums of its pages, as many as there are whole ones, and
of the bytes after them: a sum is several times faster than a CRC, any flipped
bit changes that of its page, and the CRC sees where the page is.

An array that is whole on every device has one. One that is spread over the
devices, and one of replicas however it lies, has one for each of its rows: a
process may see only some of them, and after a resume others.
"""

import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from adabatch.devices.agreed import Differ
from adabatch.devices.replicas import SyncState

PAGE = 4096  # bytes, summed as words of 64 bits
# Bytes whose sums take longer than to start a thread for them.
WORTH_A_THREAD = 2**24
# Of an array, or of each of its rows, by the array's name.
Checksums = dict[str, int | list[int]]


class _Piece(NamedTuple):
  """What of an array lies in one place."""

  name: str
  start: int  # the row that is its first
  data: Any
  by_row: bool


def checksums(state: Any) -> Checksums:
  """The checksums of a state; every process has to ask for them.

  Args:
    state: arrays of all processes, or of the host.

  Raises:
    ValueError: for an array that is spread along another axis than its first.
    Differ: where two processes see different bytes of one array.

  >>> checksums({'w': np.zeros(3, np.uint8)}) == {'w': zlib.crc32(bytes(3))}
  True
  """
  replicas = isinstance(state, SyncState)
  arrays = dict(_named(state))
  by_row = {
    name: not _is_whole(x) or (replicas and name.startswith('replicas/'))
    for name, x in arrays.items()
  }
  seen = _seen(arrays, by_row)
  keys = [
    (name, row)
    for name, x in arrays.items()
    for row in range(len(x) if by_row[name] else 1)
  ]
  found: dict[str, list[int]] = {name: [] for name in arrays}
  each = _of_all_processes([seen.get(key, 0) for key in keys])
  sums = each.max(0)
  other = sorted(
    {keys[i][0] for _, i in np.argwhere((each != sums) & (each > 0))}
  )
  if other:
    more = f' and {len(other) - 1} other arrays' if other[1:] else ''
    raise Differ(
      f'the processes differ in their state: {other[0]}{more} has other values '
      'on one than on another; go on from the last checkpoint'
    )
  for (name, _), crc in zip(keys, sums.tolist(), strict=True):
    found[name].append(crc)
  return {n: crcs if by_row[n] else crcs[0] for n, crcs in found.items()}


def differing(state: Any, expected: Checksums) -> list[str]:
  """Names of the arrays whose bytes, as far as seen here, are others.

  Args:
    state: placed anyhow.
    expected: what `checksums` gave of what it is to be.
  """
  arrays = dict(_named(state))
  if arrays.keys() != expected.keys():
    return sorted(arrays.keys() ^ expected.keys())
  wanted = {
    (name, row): crc
    for name, crcs in expected.items()
    for row, crc in enumerate(crcs if isinstance(crcs, list) else [crcs])
  }
  by_row = {name: isinstance(crcs, list) for name, crcs in expected.items()}
  seen = _seen(arrays, by_row)
  return sorted({key[0] for key, crc in seen.items() if crc != wanted[key]})


def _named(state: Any) -> Iterator[tuple[str, Any]]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    yield jax.tree_util.keystr(path, simple=True, separator='/'), leaf


def _is_whole(array: Any) -> bool:
  return not isinstance(array, jax.Array) or array.is_fully_replicated


def _seen(
  arrays: dict[str, Any], by_row: dict[str, bool]
) -> dict[tuple[str, int], int]:
  """By name and row, or 0: of what this process sees."""
  pieces = [p for name, x in arrays.items() for p in _pieces(name, x, by_row)]
  for piece in pieces:
    if isinstance(piece.data, jax.Array) and not _on_host(piece.data):
      # JAX keeps the copy, so that whoever writes the array needs no other.
      piece.data.copy_to_host_async()
  size = sum(piece.data.nbytes for piece in pieces)
  number = max(1, min(8, os.cpu_count() or 1, size // WORTH_A_THREAD))
  mine, *others = (pieces[i::number] for i in range(number))
  with ThreadPoolExecutor(number) as pool:
    theirs = [pool.submit(_sums, share) for share in others]
    found = _sums(mine)
    for sums in theirs:
      found |= sums.result()
  return found


def _on_host(array: jax.Array) -> bool:
  return all(device.platform == 'cpu' for device in array.devices())


def _pieces(name: str, x: Any, by_row: dict[str, bool]) -> list[_Piece]:
  if not isinstance(x, jax.Array):
    return [_Piece(name, 0, x, by_row[name])]
  shards = x.addressable_shards
  if not by_row[name]:
    return [_Piece(name, 0, shards[0].data if _is_whole(x) else x, False)]
  if any(shard.data.shape[1:] != x.shape[1:] for shard in shards):
    raise ValueError(f'{name} is spread along another axis than its first')
  starts = {shard.index[0].start or 0: shard.data for shard in shards}
  return [_Piece(name, start, data, True) for start, data in starts.items()]


def _sums(pieces: list[_Piece]) -> dict[tuple[str, int], int]:
  return {
    (piece.name, piece.start + row): _sum(part)
    for piece in pieces
    for row, part in enumerate(
      np.asarray(piece.data) if piece.by_row else [np.asarray(piece.data)]
    )
  }


def _sum(part: np.ndarray) -> int:
  raw = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
  whole = raw.size // PAGE * PAGE
  words = raw[:whole].view('<u8').reshape(-1, PAGE // 8)
  # Modulo 2^64, the same however they are added.
  pages = words.sum(1, dtype='<u8')
  return zlib.crc32(raw[whole:].data, zlib.crc32(pages.data))


def _of_all_processes(sums: list[int]) -> np.ndarray:
  """[processes, sums]: 0 stands for what a process does not see."""
  own = np.array(sums, np.uint32)
  if jax.process_count() == 1:
    return own[None]
  return np.asarray(multihost_utils.process_allgather(own))
