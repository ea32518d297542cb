"""`log.txt`: what a process said while it trained, with the time."""

import contextlib
import datetime
import pathlib


class LogFile:
  """Lines at the end of a file.

  They wait until `open`, so that a run which is refused writes nothing, and as
  long as there is no directory. A disk that is full ends no run.
  """

  def __init__(self, path: pathlib.Path):
    """Writes nothing yet."""
    self._path = path
    self._waiting: list[str] = []
    self._open = False

  def open(self) -> None:
    """From now on lines are written, and those that waited."""
    self._open = True
    self._write()

  def say(self, message: str) -> None:
    """A line, with the time of now."""
    now = datetime.datetime.now().isoformat(' ', 'seconds')
    self._waiting.append(f'{now}  {message}\n')
    if self._open:
      self._write()

  def _write(self) -> None:
    if self._waiting and self._path.parent.is_dir():
      with contextlib.suppress(OSError), self._path.open('a') as file:
        file.writelines(self._waiting)
        self._waiting.clear()
