"""What a run leaves behind while it trains: lines, events, a summary.

`metrics.jsonl` is the record that other programs read; TensorBoard events hold
the same numbers. A resumed run goes on where its checkpoint was: lines of
updates after it are removed before they are written again.
"""

import json
import os
import pathlib
from typing import Any

from tensorboardX import SummaryWriter

from adabatch.config import Config
from adabatch.config.files import finite
from adabatch.train.console import Console
from adabatch.train.workdir import Workdir


def _keep_lines_until(path: pathlib.Path, update: int) -> None:
  """Removes lines of later updates, and a line that was cut short."""
  if not path.exists():
    return
  temporary = path.with_name(path.name + '.tmp')
  with path.open() as old, temporary.open('w') as new:
    for line in old:
      if not line.endswith('\n'):
        break
      if json.loads(line)['update'] <= update:
        new.write(line)
  os.replace(temporary, path)


class MetricsWriter:
  """Appends records to `metrics.jsonl` and to TensorBoard event files."""

  def __init__(self, workdir: pathlib.Path, after_update: int, cuts: int = 0):
    """Opens the files; records after `after_update` are dropped from them.

    `cuts` tells apart the times that one process opens them.
    """
    path = workdir / 'metrics.jsonl'
    _keep_lines_until(path, after_update)
    self._file = path.open('a', buffering=1)
    # An events file is named after the second it was opened in; the suffix
    # keeps a run that is resumed within it from overwriting the file.
    self._events = SummaryWriter(
      str(workdir / 'tensorboard'),
      purge_step=after_update + 1,
      filename_suffix=f'.{after_update}' + (f'.{cuts}' if cuts else ''),
    )

  def write(self, kind: str, record: dict[str, Any]) -> None:
    """One record; `kind` is `train`, `eval` or another of `records`."""
    line = {'kind': kind, **finite(record)}
    self._file.write(json.dumps(line) + '\n')
    prefix = f'{kind}/{record["split"]}' if 'split' in record else kind
    for name, value in record.items():
      if isinstance(value, int | float) and name != 'update':
        self._events.add_scalar(f'{prefix}/{name}', value, record['update'])

  def close(self) -> None:
    self._file.close()
    self._events.close()


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
    self._enabled = enabled
    self._writer: MetricsWriter | None = None
    self._cuts = 0

  def write(self, kind: str, record: dict[str, Any]) -> None:
    """One record of `loop`."""
    if not self._enabled:
      return
    if kind == 'start':
      if not record['over']:
        self._files.open(self._config, self._about, self._tokenizer)
      self._writer = MetricsWriter(self._files.path, record['update'])
      self._console.start(record['examples'])
    elif kind == 'note':
      self._console.say(record['text'])
    elif kind == 'cut':
      self.close()
      self._cuts += 1
      path = self._files.path
      self._writer = MetricsWriter(path, record['update'], self._cuts)
    elif kind == 'summary':
      self._files.write_summary(record)
    else:
      assert self._writer is not None, 'the first record is `start`'
      self._writer.write(kind, record)
      self._console.show(kind, record)

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()
