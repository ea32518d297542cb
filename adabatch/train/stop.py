"""A clean stop: signals become a flag that the loop looks at."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Stop(threading.Event):
  """A flag that also tells which signal set it; None if it was none."""

  signal: int | None = None


@contextlib.contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
  """SIGTERM and Ctrl-C ask for a clean stop; a second one is not caught."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  old = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

  def ask(number, frame):
    del frame
    if isinstance(stop, Stop):
      stop.signal = number
    stop.set()
    signal.signal(number, old[number])

  for number in old:
    signal.signal(number, ask)
  try:
    yield
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)
