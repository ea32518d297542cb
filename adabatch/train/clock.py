"""The training clock: it stands still while the run does something else."""

import contextlib
import time
from collections.abc import Callable, Iterator


class Clock:
  """Seconds of training, without evaluation, checkpoints and compilation.

  >>> now = iter([0.0, 2.0, 7.0, 8.0]).__next__
  >>> clock = Clock(now=now)
  >>> with clock.paused():  # from 2.0 to 7.0
  ...   pass
  >>> clock.seconds  # at 8.0
  3.0
  """

  def __init__(
    self, seconds: float = 0.0, now: Callable[[], float] = time.perf_counter
  ):
    """`seconds` is where a resumed clock goes on."""
    self._now = now
    self._before = seconds
    self._since: float | None = now()

  @property
  def seconds(self) -> float:
    running = 0.0 if self._since is None else self._now() - self._since
    return self._before + running

  @property
  def running(self) -> bool:
    return self._since is not None

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Stops the clock; a pause inside a pause changes nothing."""
    if self._since is None:
      yield
      return
    self._before = self.seconds
    self._since = None
    try:
      yield
    finally:
      self._since = self._now()
