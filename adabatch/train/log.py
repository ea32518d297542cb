"""Where the records of a run go while it trains.

`metrics.jsonl` is the record that other programs read; TensorBoard events hold
the same numbers. A resumed run goes on where its checkpoint was: lines of
updates after it are removed before they are written again.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from adabatch.config import Config
from adabatch.train.console import Console
from adabatch.train.metrics import (
  METRICS,
  Mark,
  MetricsWriter,
  begins_with,
  mend,
  numbers_of,
)
from adabatch.train.trackers import FILES, TRACKERS, Tracker
from adabatch.train.workdir import Workdir


class Log:
  """Where the records of a run go: files, TensorBoard, console.

  Nothing is written before the first record, which says that everything was
  accepted.
  """

  def __init__(
    self,
    config: Config,
    files: Workdir,
    console: Console,
    *,
    about: dict[str, Any],
    tokenizer: bytes = b'',
    enabled: bool,
  ):
    """`about` and `tokenizer` are what `Workdir.open` writes.

    Silent where `enabled` is false: only one process writes.
    """
    self._config, self._files, self._console = config, files, console
    self._about, self._tokenizer = about, tokenizer
    self._mark: Mark | None = None
    self._enabled = enabled
    self._writer: MetricsWriter | None = None
    self._trackers: dict[str, Tracker] = {}
    self._ended = False

  def write(self, kind: str, record: dict[str, Any]) -> None:
    """One record of `loop`."""
    if not self._enabled:
      if kind == 'start':
        self._console.start(record['examples'])  # its own lines, in a file
      return
    if kind == 'start':
      if not record['over']:
        self._files.open(self._config, self._about, self._tokenizer)
      self._writer = self._open(record['update'])
      if not record['over']:
        self._trackers = {
          name: TRACKERS[name](self._config, self._files.path)
          for name in self._config.log.writers
          if name not in FILES
        }
        self._console.about(record['network'])
      self._console.start(record['examples'])
    elif kind == 'note':
      self._console.say(record['text'])
    elif kind == 'cut':
      self._close_writer()
      self._writer = self._open(record['update'])
    elif kind == 'summary':
      self._files.write_summary(record)
      self._ended = record['status'] not in ('preempted', 'grow')
    else:
      assert self._writer is not None, 'the first record is `start`'
      self._writer.write(kind, record)
      numbers = numbers_of(kind, record)
      finite = {tag: x for tag, x in numbers.items() if math.isfinite(x)}
      for name, tracker in list(self._trackers.items()):
        with self._without(name):
          tracker.write(record['update'], finite)
      self._console.show(kind, record)

  @contextlib.contextmanager
  def _without(self, name: str) -> Iterator[None]:
    """The run goes on without a tracker that fails."""
    try:
      yield
    # Whatever it is: their libraries raise errors of their own, and those of
    # what they stand on (sqlalchemy, requests), of which none is named here.
    except Exception as error:  # noqa: BLE001
      tracker = self._trackers.pop(name, None)
      what = ' '.join(f'{type(error).__name__}: {error}'.split())
      self._console.warn(
        f'log.writers: {name} failed ({what}) and is no longer written; the '
        f'run goes on, and {METRICS} has all numbers'
      )
      if tracker is not None:
        # It was said once that it fails.
        with contextlib.suppress(Exception):
          tracker.close(False)

  def _open(self, update: int) -> MetricsWriter:
    return MetricsWriter(
      self._files.path,
      update,
      self._mark,
      self._console.say,
      events='tensorboard' in self._config.log.writers,
    )

  def restored(self, mark: Mark | None) -> None:
    """A run goes on from a checkpoint that has this mark; None: not known."""
    self._mark = mark

  def check(self, update: int) -> None:
    """Mends the lines of a run that was over at an update.

    Raises:
      WriteError: if they are damaged and cannot be written.
    """
    path, mark = self._files.path / METRICS, self._mark
    if self._enabled and mark is not None and not begins_with(path, mark):
      mend(path, update, mark, self._console.say)

  def saving(self) -> dict[str, Any]:
    """What a checkpoint holds of the log, all of which is on the disk then.

    Raises:
      WriteError: if the disk is full, or the directory no longer there.
    """
    if self._writer is None:
      return {}
    self._files.check_in_place()
    self._writer.sync()
    return {'metrics': self._writer.mark._asdict()}

  def close(self) -> None:
    self._close_writer()
    for name, tracker in list(self._trackers.items()):
      del self._trackers[name]
      with self._without(name):
        tracker.close(self._ended)

  def _close_writer(self) -> None:
    if self._writer is not None:
      self._writer.close()
