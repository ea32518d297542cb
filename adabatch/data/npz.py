"""Arrays in npz files, each read when it is asked for.

An array that is not compressed (`numpy.savez`) is mapped into memory from where
it lies in the file, so that only the examples that are used are read. One that
is (`numpy.savez_compressed`) has to be read whole.
"""

from __future__ import annotations

import os
import pathlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from adabatch.data.image_formats import line
from adabatch.data.tfds_records import DatasetError

_MEMORY = pathlib.Path('/proc/meminfo')

# Of the header that stands before each member of a zip file.
_HEADER_BYTES = 30
_HEADERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}


class Npz(Mapping[str, np.ndarray]):
  """The arrays of a file by their names.

  Args:
    path: of the file.

  Raises:
    DatasetError: if it cannot be read; when an array is asked for, if that
      cannot be, or does not fit in memory.
  """

  def __init__(self, path: pathlib.Path):
    """Reads the names alone."""
    self._path = path
    try:
      with zipfile.ZipFile(path) as file:
        members = file.infolist()
    except (OSError, zipfile.BadZipFile) as error:
      raise DatasetError(f'{path} cannot be read: {line(error)}') from None
    self._members = {m.filename.removesuffix('.npy'): m for m in members}

  def __getitem__(self, key: str) -> np.ndarray:
    member = self._members[key]
    try:
      mapped = self._map(member)
      if mapped is not None:
        return mapped
      check_memory(f"{self._path}: '{key}'", member.file_size)
      with np.load(self._path, allow_pickle=False) as file:
        return file[key]
    except (
      ValueError,
      OSError,
      EOFError,
      MemoryError,  # a header may ask for more than the file says it holds
      RuntimeError,  # or for what zipfile does not know
      SyntaxError,
      tokenize.TokenError,
      zlib.error,
      zipfile.BadZipFile,
    ) as error:
      raise DatasetError(
        f'{self._path} cannot be read: {line(error)}'
      ) from None

  def __iter__(self) -> Iterator[str]:
    return iter(self._members)

  def __len__(self) -> int:
    return len(self._members)

  def _map(self, member: zipfile.ZipInfo) -> np.ndarray | None:
    """The array where it lies; None if it cannot be mapped."""
    if member.compress_type != zipfile.ZIP_STORED:
      return None
    with self._path.open('rb') as file:
      file.seek(member.header_offset)
      header = file.read(_HEADER_BYTES)
      if len(header) < _HEADER_BYTES:
        raise EOFError('it is cut short')
      file.seek(sum(struct.unpack('<HH', header[26:])), os.SEEK_CUR)
      read = _HEADERS.get(np.lib.format.read_magic(file))
      if read is None:
        return None
      shape, in_columns, dtype = read(file)
      if dtype.hasobject or 0 in shape or not shape:
        return None
      order = 'F' if in_columns else 'C'
      return np.memmap(file, dtype, 'r', file.tell(), shape, order)


def check_memory(what: str, size: int) -> None:
  """Refuses, before it is read, what cannot be.

  Raises:
    DatasetError: if `size` bytes are more than are free.
  """
  free = _free_memory()
  if size > free:
    raise DatasetError(
      f'{what} takes {size / 1e9:.3g} GB, and there are {free / 1e9:.3g} GB '
      "of free memory: take part of the split ('train[:10%]') of arrays that "
      'are not compressed (numpy.savez), or keep images in a folder or as '
      'parquet'
    )


def _free_memory() -> int:
  """Bytes that can be had without driving others out."""
  there = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if not _MEMORY.is_file():  # not Linux
    return there
  free = dict(row.split()[:2] for row in _MEMORY.read_text().splitlines())
  kibibytes = int(free['MemAvailable:']) + int(free['SwapFree:'])
  return min(there, 1024 * kibibytes)
