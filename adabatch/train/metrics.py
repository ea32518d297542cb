"""The lines of `metrics.jsonl`, which other programs read, and their mark.

A checkpoint holds the mark of the file as it was then. Where a run goes on the
file is cut there; if it is another one, what is whole in it is kept, and what
is missing is taken from the events of TensorBoard.
"""

import json
import os
import pathlib
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from adabatch.config.files import GrowingFile, finite, write_whole, writing
from adabatch.train.events import EventsWriter, read_lines

METRICS = 'metrics.jsonl'
# The order of the records of one update; others come first.
RANKS = {'train': 1, 'eval': 2}


class Mark(NamedTuple):
  """How far a file has come.

  Attributes:
    lines: in it.
    size: in bytes.
    crc: CRC-32 of them.
  """

  lines: int = 0
  size: int = 0
  crc: int = 0

  def after(self, content: bytes) -> 'Mark':
    """Of the file when some lines were added."""
    return Mark(
      self.lines + content.count(b'\n'),
      self.size + len(content),
      zlib.crc32(content, self.crc),
    )


class MetricsWriter:
  """Appends records to `metrics.jsonl` and to TensorBoard event files.

  Attributes:
    mark: of `metrics.jsonl`.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    after_update: int,
    mark: Mark | None = None,
    say: Callable[[str], None] = print,
    *,
    events: bool = True,
  ):
    """Opens the files; records after `after_update` are dropped from them.

    Args:
      workdir: of the run.
      after_update: at which it goes on.
      mark: of the lines until then; None: not known.
      say: is told in one line if the lines are others.
      events: whether there are TensorBoard events as well.

    Raises:
      WriteError: if a file cannot be written.
    """
    path = workdir / METRICS
    if mark is not None and begins_with(path, mark):
      self.mark = _cut(path, mark)
    else:
      self.mark = mend(path, after_update, mark, say)
    self._file = GrowingFile(path)
    self._events = None
    if events:
      self._events = EventsWriter(workdir / 'tensorboard', after_update + 1)

  def write(self, kind: str, record: dict[str, Any]) -> None:
    """One record; `kind` is `train`, `eval` or `replicas`.

    Raises:
      WriteError: if it cannot be written.
    """
    line = json.dumps({'kind': kind, **finite(record)})
    content = line.encode() + b'\n'
    self._file.append(content)
    self.mark = self.mark.after(content)
    if self._events is not None:
      self._events.write(record['update'], numbers_of(kind, record), line)

  def sync(self) -> None:
    """Returns when all of it is on the disk."""
    self._file.sync()
    if self._events is not None:
      self._events.sync()

  def close(self) -> None:
    self._file.close()
    if self._events is not None:
      self._events.close()


def numbers_of(kind: str, record: Mapping[str, Any]) -> dict[str, float]:
  """The numbers of a record by their tags.

  >>> numbers_of('eval', {'update': 3, 'split': 'test', 'loss': 0.5})
  {'eval/test/loss': 0.5}
  """
  prefix = f'{kind}/{record["split"]}' if 'split' in record else kind
  return {
    f'{prefix}/{name}': value
    for name, value in record.items()
    if isinstance(value, int | float) and name != 'update'
  }


def begins_with(path: pathlib.Path, mark: Mark) -> bool:
  """Whether a file is what it was, and perhaps more."""
  if not path.exists():
    return not mark.size
  left, crc = mark.size, 0
  with writing(path), path.open('rb') as file:
    while left and (content := file.read(min(left, 2**20))):
      left -= len(content)
      crc = zlib.crc32(content, crc)
  return not left and crc == mark.crc


def _cut(path: pathlib.Path, mark: Mark) -> Mark:
  with writing(path):
    if path.exists() and path.stat().st_size > mark.size:
      os.truncate(path, mark.size)
  return mark


def mend(
  path: pathlib.Path,
  update: int,
  mark: Mark | None,
  say: Callable[[str], None],
) -> Mark:
  """Leaves the whole lines until an update, and those that the events hold.

  Args:
    path: of `metrics.jsonl`.
    update: the last.
    mark: of the lines until then; None: not known.
    say: is told in one line what was wrong, and what became of it.

  Returns:
    The mark of what there is.

  Raises:
    WriteError: if it cannot be written.
  """
  with writing(path):
    lines, damaged = _read(
      path.read_bytes() if path.exists() else b'', update, mark
    )
    kept = len(lines)
    events = (line for _, line in read_lines(path.with_name('tensorboard')))
    restored = _read(b'\n'.join(events), update, None)[0]
  # A damaged line may say that it is another one: that stands beside it then.
  content = _in_order(restored)
  if mark is None or Mark().after(content) != mark:
    lines |= restored
    content = _in_order(lines)
  else:
    lines = restored
  write_whole(path, content)
  now = Mark().after(content)
  if mark is not None or damaged or len(lines) > kept:
    say(f'{path} is damaged: {_difference(mark or now, now, kept, damaged)}')
  return now


def _in_order(lines: dict[tuple[int, int, str, str, int], bytes]) -> bytes:
  # A stable order: within an update and a kind they were written like this.
  return b''.join(
    lines[key] + b'\n' for key in sorted(lines, key=lambda key: key[:2])
  )


def _read(
  content: bytes, update: int, mark: Mark | None
) -> tuple[dict[tuple[int, int, str, str, int], bytes], int]:
  """The lines until an update by what they are of, and how many are damaged.

  A key ends in how many there were of the same before, such as changes of the
  number of replicas.

  The last line may be cut short, and so may any that came after the mark.
  """
  size = content.rfind(b'\n') + 1 if mark is None else mark.size
  lines, damaged, at = {}, 0, 0
  before: Counter[Any] = Counter()
  for line in content.split(b'\n'):
    try:
      record = json.loads(line)
      kind, of = record['kind'], record['update']
      key = of, RANKS.get(kind, 0), kind, str(record.get('split'))
      if of <= update:
        lines[*key, before[key]] = line
        before[key] += 1
    except (ValueError, TypeError, KeyError):
      damaged += at < size and line != b''
    at += len(line) + 1
  return lines, damaged


def _difference(mark: Mark, now: Mark, kept: int, damaged: int) -> str:
  """What was wrong with a file, and what became of it."""
  counts = {'missing': mark.lines - kept - damaged, 'unreadable': damaged}
  wrong = [f'{how} lines: {n}' for how, n in counts.items() if n > 0]
  if now == mark:
    then = 'all is restored from the TensorBoard events'
  else:
    then = f'{now.lines} of {mark.lines} lines are kept'
  return f'{", ".join(wrong) or "changed"}; {then}'
