"""What a probe has found, on disk: each branch is made once."""

import contextlib
import fcntl
import io
import json
import os
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from adabatch.config import ConfigError
from adabatch.config.files import write_whole, writing
from adabatch.devices.agreed import digest
from adabatch.devices.losses import ExampleLosses

Arrays = dict[str, np.ndarray]
CHECKSUM = 4  # bytes, after those of the arrays


class Made(NamedTuple):
  """A branch that has been made.

  Attributes:
    losses: of the held-out examples.
    seconds: that it took.
  """

  losses: ExampleLosses
  seconds: float


class ProbeStore:
  """Arrays by what makes them what they are, as `.npz`.

  Several processes may share a directory: who makes something holds its lock,
  which goes with the process.
  """

  def __init__(self, directory: pathlib.Path):
    """Nothing is written yet."""
    self.directory = directory
    self._branches = directory / 'branches'

  def open(self) -> None:
    """Makes the directory if it is not there.

    Raises:
      ConfigError: if it cannot be, or nothing can be written to it.
    """
    try:
      self._branches.mkdir(parents=True, exist_ok=True)
      for path in (self.directory, self._branches):
        if not os.access(path, os.W_OK | os.X_OK):
          raise PermissionError(0, 'it may not be written to')
    except OSError as error:
      raise ConfigError(
        f'cannot write to {self.directory} ({error.strerror}): give another '
        'probe.directory'
      ) from None

  def _path(self, about: Mapping[str, Any]) -> pathlib.Path:
    name = f'{about["update"]}-{about["kind"]}-{digest(about)}'
    return self._branches / f'{name}.npz'

  def read(self, about: Mapping[str, Any]) -> Arrays | None:
    """What was made; None if it was not, or is not what was written.

    Args:
      about: what makes it what it is, plain data; `update` and `kind`, which
        stand in the file's name, among it.
    """
    try:
      content = self._path(about).read_bytes()
    except FileNotFoundError:
      return None
    whole, sum_ = content[:-CHECKSUM], content[-CHECKSUM:]
    if not whole or zlib.crc32(whole).to_bytes(CHECKSUM) != sum_:
      return None  # a disk that was full, or a file that was cut
    with np.load(io.BytesIO(whole)) as found:
      return {name: found[name] for name in found if name != 'about'}

  def write(self, about: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Keeps what was made.

    Raises:
      WriteError: if it cannot be written.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, about=json.dumps(about), **arrays)
    whole = buffer.getvalue()
    sum_ = zlib.crc32(whole).to_bytes(CHECKSUM)
    write_whole(self._path(about), whole + sum_)

  @contextlib.contextmanager
  def claim(self, about: Mapping[str, Any]) -> Iterator[bool]:
    """Whether nobody else is making this; none will while it lasts.

    Who has the claim has to look once more whether it is there: somebody may
    have made it since.

    Raises:
      WriteError: if the lock cannot be had for another reason.
    """
    path = self._path(about).with_suffix('.lock')
    with writing(path):
      file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    mine = False
    try:
      with writing(path):
        mine = _lock(file, path)
      yield mine
    finally:
      if mine:
        path.unlink(missing_ok=True)
      os.close(file)


def _lock(file: int, path: pathlib.Path) -> bool:
  """Whether it is ours, and still the file of that name."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return os.path.samestat(os.fstat(file), os.stat(path))
  except (BlockingIOError, FileNotFoundError):
    return False
