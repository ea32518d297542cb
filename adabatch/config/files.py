"""Files written whole or not at all; of JSON, what is not finite is null.

And where those lie that outlive a run, and what is said of those that cannot be
written.
"""

import contextlib
import json
import math
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any


class WriteError(OSError):
  """What cannot be written and why, in one line that says what to do."""

  def __str__(self) -> str:
    return (
      f'cannot write {self.filename} ({self.strerror}): mend that and start '
      'the same command again'
    )


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
  """Raises what fails in it as a WriteError of `path`."""
  try:
    yield
  except WriteError:
    raise
  except OSError as error:
    # Libraries raise some with a text alone.
    reason = error.strerror or ' '.join(str(error).split())
    raise WriteError(error.errno or 0, reason, os.fspath(path)) from error


class GrowingFile:
  """A file that is appended to, with no buffer: what was written is there."""

  def __init__(self, path: pathlib.Path):
    """Opens it, where it is there at its end."""
    self._path = path
    with writing(path):
      self._file = path.open('ab', buffering=0)

  def append(self, content: bytes) -> None:
    """Writes all of it, or as much as there is room for.

    Raises:
      WriteError: if it is not all.
    """
    with writing(self._path):
      while content:
        content = content[self._file.write(content) :]

  def sync(self) -> None:
    """Returns when all is on the disk, which then may lose its power."""
    with writing(self._path):
      os.fsync(self._file.fileno())

  def close(self) -> None:
    with writing(self._path):
      self._file.close()


def cache_directory(name: str) -> pathlib.Path:
  """Where a user's things of a kind are kept between runs; not made here.

  Below XDG_CACHE_HOME, else ~/.cache.
  """
  root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(root) / 'adabatch' / name


def finite(value: Any) -> Any:
  """NaN and infinities as None: JSON has no word for them.

  >>> finite({'loss': float('nan'), 'sizes': (1, 2.5)})
  {'loss': None, 'sizes': [1, 2.5]}
  """
  if isinstance(value, dict):
    return {key: finite(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [finite(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def read_json(path: pathlib.Path) -> Any:
  """What is in a JSON file; None if there is none, or not a whole one."""
  try:
    return json.loads(path.read_text(encoding='utf-8', errors='replace'))
  except (FileNotFoundError, NotADirectoryError, ValueError):
    # A killed run, or a full disk.
    return None


def checksum(value: Any) -> int:
  """CRC-32 of a value as JSON has it.

  >>> checksum({'a': (1, 2.5)}) == checksum({'a': [1, 2.5]})
  True
  """
  return zlib.crc32(json.dumps(finite(value), sort_keys=True).encode())


def write_signed(path: pathlib.Path, value: dict[str, Any]) -> None:
  """`write_json`, and a checksum beside what is written."""
  write_json(path, value | {'checksum': checksum(value)})


def read_signed(path: pathlib.Path) -> dict[str, Any] | None:
  """What `write_signed` wrote; None if it is not there or something else."""
  value = read_json(path)
  if not isinstance(value, dict):
    return None
  signed = value.pop('checksum', None)
  return value if signed == checksum(value) else None


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file whole or not at all; see `write_whole`."""
  write_whole(path, (json.dumps(finite(value), indent=2) + '\n').encode())


def write_whole(path: pathlib.Path, content: bytes) -> None:
  """Writes a file whole or not at all, also beside others who write it.

  It is on the disk when this returns, whatever happens to the machine.

  Raises:
    WriteError: if it cannot be written.
  """
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  with writing(path):
    try:
      with temporary.open('wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
      _sync_directory(path.parent)
    finally:
      with contextlib.suppress(OSError):  # of another error, which is raised
        temporary.unlink()


def _sync_directory(path: pathlib.Path) -> None:
  directory = os.open(path, os.O_RDONLY)
  try:
    os.fsync(directory)
  finally:
    os.close(directory)
