"""What a person sees while a run goes on: a bar on a terminal, else lines."""

import contextlib
import sys
import threading
import time
from typing import TextIO

from tqdm import tqdm

from adabatch.train.log_file import LogFile
from adabatch.train.time_left import TimeLeft

MOMENT = 0.5  # seconds that something takes before it is told
# Of an `eval` record.
NOT_METRICS = frozenset(('update', 'examples', 'epoch', 'seconds', 'split'))


class Console:
  """Progress and messages; silent where `enabled` is false.

  On a terminal: one bar with the time left. Piped to a file: a plain line now
  and then, because a bar would fill the file with control characters. All
  lines, those too that a bar stands for, are added to a log file.
  """

  def __init__(
    self,
    total_examples: int,
    *,
    enabled: bool = True,
    stream: TextIO | None = None,
    seconds_between_lines: float = 10.0,
    log: LogFile | None = None,
  ):
    """`stream` defaults to standard error; `start` shows the bar.

    Args:
      total_examples: of the run; 0: not known yet, see `expect`.
      enabled: whether anything but warnings is shown.
      stream: where.
      seconds_between_lines: at least, of the progress.
      log: what is said goes there as well; None: nowhere.
    """
    self._enabled = enabled
    self._stream = stream or sys.stderr
    self._terminal = self._stream.isatty()
    self._total = total_examples
    self._time: TimeLeft | None = None
    self._between = seconds_between_lines
    self._began = self._last_line = time.monotonic()
    self._bar = None
    self._log = log
    self._about = ''
    self._stages: list[str] = []  # at most one, that was not shown yet

  def expect(self, total_examples: int, time_left: TimeLeft) -> None:
    """How many examples there will be, and what tells how long they take."""
    self._total, self._time = total_examples, time_left

  def stage(self, doing: str) -> None:
    """What comes before the first update, and when it began.

    Shown a moment later, or before what is said next: of a run that is refused
    at once there is the one line that says so.
    """
    self._show_stage()
    if self._enabled:
      line = f'{time.monotonic() - self._began:6.1f} s  {doing}'
      self._stages.append(line)
      timer = threading.Timer(MOMENT, self._show_stage)
      timer.daemon = True
      timer.start()

  def about(self, network: str) -> None:
    """A line that is shown with the first record: no run is refused then."""
    self._about = network

  def _show_stage(self) -> None:
    # By whichever thread comes first, once.
    with contextlib.suppress(IndexError):
      self._warn(self._stages.pop())

  def start(self, examples: int) -> None:
    """Shows the bar; `examples` were done before (a resumed run)."""
    if self._log is not None:
      self._log.open()
    if self._enabled and self._terminal:
      self._bar = tqdm(
        total=self._total,
        initial=examples,
        unit='ex',
        unit_scale=True,
        dynamic_ncols=True,
        file=self._stream,
      )

  def say(self, message: str) -> None:
    """A line of its own."""
    if self._enabled:
      self.warn(message)

  def warn(self, message: str) -> None:
    """A line of its own, on whichever process."""
    self._show_stage()
    self._warn(message)

  def _warn(self, message: str) -> None:
    if self._log is not None:
      self._log.say(message)
    # A terminal that is gone, or a full disk, is no reason to end a run.
    with contextlib.suppress(OSError):
      if self._bar is not None:
        self._bar.write(message, file=self._stream)
      else:
        print(message, file=self._stream, flush=True)

  def show(self, kind: str, record: dict) -> None:
    """Shows a record: `train`, `eval`, `skipped` or `rollback`."""
    if self._time is not None:
      self._time.saw(kind, record)
    if self._about:
      self.say(self._about)
      self._about = ''
    if kind == 'train':
      self.progress(record)
    elif kind == 'eval':
      metrics = (
        f'{name} {value:.4f}'
        for name, value in record.items()
        if name not in NOT_METRICS
      )
      self.say(
        f'epoch {record["epoch"]:.2f}  update {record["update"]}  '
        f'{record["split"]}  ' + '  '.join(metrics)
      )
    elif kind == 'probe':
      said = 'from now on' if record['doubles'] else 'not yet'
      self.say(
        f'probe at update {record["update"]}: batches of {record["tried"]} '
        f'instead of {record["batch_size"]} cost {record["difference"]:.3g} ± '
        f'{record["half_width"]:.2g} over {record["ahead"]:,} examples: {said}'
      )
    elif kind == 'skipped':
      self.say(
        f'skipped update {record["update"]}: its {record["what"]} is not finite'
      )
    elif kind == 'rollback':
      self.say(
        f'{record["message"]}: back to update {record["update"] - 1}, with the '
        f'learning rate times {record["rate"]:g}'
      )

  def progress(self, record: dict) -> None:
    """Shows a `train` record."""
    if not self._enabled:
      return
    text = (
      f'epoch {record["epoch"]:.2f}  B {record["batch_size"]}  '
      f'lr {record["learning_rate"]:.3g}  loss {record["loss"]:.4f}'
    )
    if 'tokens' in record:
      text += f'  {record["tokens"]:,} tokens'
    if self._bar is not None:
      self._bar.set_postfix_str(text, refresh=False)
      with contextlib.suppress(OSError):
        self._bar.update(min(record['examples'], self._total) - self._bar.n)
    now = time.monotonic()
    if now - self._last_line < self._between:
      return
    self._last_line = now
    line = f'update {record["update"]}  {text}'
    if self._time is not None and (words := self._time.words(record)):
      line += f'  {words}'
    if self._bar is None:
      self.say(line)
    elif self._log is not None:
      self._log.say(line)

  def close(self) -> None:
    self._stages.clear()
    if self._bar is not None:
      with contextlib.suppress(OSError):
        self._bar.close()
