"""Notices a run that does not move, and says what it waits for."""

import datetime
import faulthandler
import os
import pathlib
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from adabatch.devices.processes import RETRY

# How much longer what is no update may take; to read is part of an update.
WRITING = 30.0  # seconds that the stacks may take to be written
PATIENCE = {'compiling': 4, 'evaluating': 4, 'saving': 4}


class Watchdog:
  """A thread that looks, now and then, when the run last did something.

  Where that is too long ago the stacks of all threads are added to a file, once
  for each time that the run stands still.
  """

  def __init__(
    self,
    path: pathlib.Path,
    seconds: float,
    say: Callable[[str], None],
    *,
    abort: bool = False,
  ):
    """Looks from now on.

    Args:
      path: of the file.
      seconds: without an update before the run counts as standing still; of
        what takes longer a multiple, see PATIENCE. 0: nobody looks.
      say: is told in one line.
      abort: whether the process is then ended, with the status RETRY.
    """
    self._path, self._seconds = path, seconds
    self._say, self._abort = say, abort
    self._main = threading.get_ident()
    self._doing = 'starting', 'nothing', time.monotonic()
    self._closed = threading.Event()
    if seconds:
      threading.Thread(target=self._look, name='watchdog', daemon=True).start()

  def __call__(self, doing: str, done: str = 'nothing') -> None:
    """The run has done something.

    Args:
      doing: what is next: 'training', 'reading', or a key of PATIENCE.
      done: how far it is.
    """
    self._doing = doing, done, time.monotonic()

  def close(self) -> None:
    self._closed.set()

  def _look(self) -> None:
    told = None
    while not self._closed.wait(min(self._seconds / 4, 10.0)):
      found = self._doing
      doing, done, since = found
      still = time.monotonic() - since
      if found is not told and still > self._seconds * PATIENCE.get(doing, 1):
        told = found
        self._tell(doing, done, still)

  def _tell(self, doing: str, done: str, still: float) -> None:
    line = (
      f'no progress for {still:.0f} s (watchdog.seconds) while {doing}, after '
      f'{done}; waits in {waits_in(self._main)}'
    )
    if self._abort:
      # What hangs may be the disk of the file, or of standard error.
      late = threading.Timer(WRITING, os._exit, (RETRY,))
      late.daemon = True
      late.start()
    self._say(line)
    now = datetime.datetime.now().isoformat(timespec='seconds')
    try:
      with self._path.open('a') as file:
        print(f'{now} {line}', file=file, flush=True)
        faulthandler.dump_traceback(file, all_threads=True)
        print(file=file)
      self._say(f'the stacks of all threads are in {self._path}')
    except OSError as error:
      self._say(f'{self._path} cannot be written ({error.strerror})')
    if self._abort:
      self._end()

  def _end(self) -> NoReturn:
    self._say(f'error: watchdog.abort ends the process with status {RETRY}')
    sys.stdout.flush()
    os._exit(RETRY)


def waits_in(thread: int) -> str:
  """The innermost place of this package in which a thread is.

  >>> waits_in(0)
  'an unknown place'
  """
  frame = sys._current_frames().get(thread)
  package = os.sep + 'adabatch' + os.sep
  for call in reversed(traceback.extract_stack(frame) if frame else []):
    if package in call.filename:
      name = call.filename.rpartition(package)[2]
      return f'{name}:{call.lineno} ({call.line})'
  return 'an unknown place'
