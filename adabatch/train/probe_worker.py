"""One of `probe.workers`, as a command: see `probe_workers`."""

import json
import os
import pathlib
import sys
import threading

from adabatch import config as config_lib
from adabatch.train.probe_job import share
from adabatch.train.stop import Stop, stop_on_signals


def _stop_with_the_first(stop: threading.Event) -> None:
  # Not `sys.stdin.read`, which would hold a lock when the worker is done.
  while os.read(sys.stdin.fileno(), 1):
    pass
  stop.set()


def main() -> None:
  """What a worker does."""
  given = json.loads(sys.stdin.readline())
  stop = Stop()
  threading.Thread(
    target=_stop_with_the_first, args=(stop,), daemon=True
  ).start()
  with stop_on_signals(stop):
    share(
      config_lib.of_json(given['config']),
      given['workdir'],
      pathlib.Path(given['directory']),
      given['updates'],
      devices=given['devices'],
      stop=stop,
    )


if __name__ == '__main__':
  main()
