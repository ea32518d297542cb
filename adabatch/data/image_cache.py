"""Where images that were copied out of other files are kept, and for how long.

Every process says in a file of its own what it uses, and keeps that locked for
as long as it lives. What nobody uses goes when it is of no more use, because
what it was made of is gone or has changed, or when there is too much: what was
not used for longest first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator

# What is kept of all sets together, besides what is in use.
MOST_BYTES = 50 * 10**9

# After which a file that nobody goes on writing was given up.
_GIVEN_UP_SECONDS = 86_400.0

# directory -> the file in which this process says what it uses of it.
_OURS: dict[pathlib.Path, int] = {}


def claim(
  directory: pathlib.Path,
  names: Collection[str],
  is_current: Callable[[pathlib.Path], bool],
) -> None:
  """Keeps files for this process, whether they are there yet or not.

  Args:
    directory: of the cache; made if it is not there.
    names: of the files, which end in '.arrow'.
    is_current: whether a file is what would be made anew.

  Raises:
    OSError: if the directory cannot be written, or not be locked.
  """
  directory.mkdir(parents=True, exist_ok=True)
  with _alone(directory):
    if directory not in _OURS:
      # Open, and with that locked, until the process ends.
      _OURS[directory], _ = tempfile.mkstemp(dir=directory, suffix='.uses')
      fcntl.flock(_OURS[directory], fcntl.LOCK_EX)
    os.write(_OURS[directory], ''.join(f'{n}\n' for n in names).encode())
    for name in names:
      with contextlib.suppress(FileNotFoundError):
        os.utime(directory / name)
    _tidy(directory, is_current)


@contextlib.contextmanager
def _alone(directory: pathlib.Path) -> Iterator[None]:
  with (directory / '.lock').open('w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _in_use(directory: pathlib.Path) -> set[str]:
  """By processes that live; what others said is removed."""
  names: set[str] = set()
  for path in directory.glob('*.uses'):
    with path.open() as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        names.update(file.read().splitlines())
      else:
        path.unlink(missing_ok=True)
  return names


def _tidy(
  directory: pathlib.Path, is_current: Callable[[pathlib.Path], bool]
) -> None:
  """Removes what is of no more use or too much; says so."""
  used = _in_use(directory)
  sizes = {
    path: (status.st_mtime, status.st_size)
    for path in directory.glob('*.arrow')
    if (status := path.stat())
  }
  left = sum(size for _, size in sizes.values())
  unused = sorted(
    (path for path in sizes if path.name not in used), key=sizes.__getitem__
  )
  gone = [path for path in unused if not is_current(path)]
  left -= sum(sizes[path][1] for path in gone)
  for path in unused:
    if left > MOST_BYTES and path not in gone:
      gone.append(path)
      left -= sizes[path][1]
  for path in directory.glob('*.partial'):
    if path.stat().st_mtime < time.time() - _GIVEN_UP_SECONDS:
      path.unlink(missing_ok=True)
  for path in gone:
    path.unlink(missing_ok=True)
  if gone:
    size = sum(sizes[path][1] for path in gone) / 1e9
    print(
      f'removed {len(gone)} file(s) of {size:.3g} GB from {directory}: copies '
      'of images that changed or went away, or were not used for longest',
      file=sys.stderr,
    )
