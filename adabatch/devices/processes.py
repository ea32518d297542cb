"""The processes of a run: how they meet, and notice that one is lost.

Each process shows in JAX's coordination service that it lives, process 0 looks
at all, and what it finds every process reads. Where one is lost the others end,
or start again with those that are left.
"""

import atexit
import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import jax
from jax.errors import JaxRuntimeError

from adabatch.config.command_line import say as _say
from adabatch.devices.agreed import PREFIX, read, store
from adabatch.devices.rendezvous import (
  Meeting,
  MissingProcess,
  meet,
  missing,
)

# Exit status of what another try may mend (EX_TEMPFAIL): a scheduler restarts.
RETRY = 75


class Patience(NamedTuple):
  """How long is waited for others, and what is done where one is lost.

  Attributes:
    start_seconds: to wait for all to start.
    lost_seconds: without a sign of life before a process counts as lost.
    restarts: how often those that are left start again by themselves.
    rejoin_seconds: they then wait for those that are lost.
    least: how many processes are enough to go on; None: all.
    knock: called while the others are at work without this process.
  """

  start_seconds: float = 300.0
  lost_seconds: float = 30.0
  restarts: int = 0
  rejoin_seconds: float = 30.0
  least: int | None = None
  knock: Callable[[], None] = lambda: None

  def meeting(self, number: int, *, again: bool) -> Meeting:
    """Of so many processes, at the start or when they start again."""
    start = self.start_seconds
    patience = min(self.rejoin_seconds, start) if again else start
    return Meeting(number, start, self.least, patience)


def join(
  distributed: bool,
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  patience: Patience | None = None,
) -> None:
  """Joins the other processes of a run, if it is a distributed one.

  Without the arguments the processes find each other by themselves, on a TPU
  pod or a cluster that JAX knows (SLURM, Open MPI, Kubernetes). Waits until all
  are there, and says on standard error for whom. From then on a process that is
  lost ends the others, with status RETRY, or has them start again.

  Args:
    distributed: whether it is.
    coordinator_address, num_processes, process_id: all of them, or none.
    patience: with the others.

  Raises:
    ValueError: if only some are given, or the processes cannot be found.
    MissingProcess: if not all come in time.
  """
  arguments = (coordinator_address, num_processes, process_id)
  given = sum(value is not None for value in arguments)
  if given and not (distributed and given == len(arguments)):
    raise ValueError(
      'several processes need --distributed and all of --coordinator_address, '
      '--num_processes and --process_id'
    )
  if not distributed:
    return
  patience = patience or Patience()
  if num_processes is None or process_id is None:
    _say('waiting for the other processes of the cluster that JAX finds')
    try:
      _initialize(patience)
    except ValueError as error:
      raise ValueError(
        f'JAX finds no cluster ({error}): give --coordinator_address, '
        '--num_processes and --process_id'
      ) from error
  else:
    if not 0 <= process_id < num_processes:
      raise ValueError(
        f'process_id={process_id} of num_processes={num_processes}: give 0 to '
        f'{num_processes - 1}'
      )
    _say(
      f'process {process_id}, from 0, of {num_processes} waits for the others '
      f'at {coordinator_address}'
    )
    assert coordinator_address is not None, 'all are given'
    again = patience.meeting(num_processes, again=_losses() is not None)
    place = meet(coordinator_address, process_id, again, _say, patience.knock)
    if place.number < num_processes:
      _say(f'{place.number} of {num_processes} processes go on')
    if place.number > 1:
      _initialize(patience, coordinator_address, place.number, place.process)
  if jax.process_count() > 1:
    _begin(patience)


def _initialize(patience: Patience, *arguments: Any) -> None:
  # Of a process that is missing then JAX may say no more than a page.
  before = _at_abort(lambda number: _missing(patience))
  try:
    jax.distributed.initialize(
      *arguments,
      initialization_timeout=int(patience.start_seconds) + 1,
      # Ours come first: they say it in one line.
      heartbeat_timeout_seconds=int(2 * patience.lost_seconds) + 60,
    )
  except JaxRuntimeError as error:
    raise MissingProcess(
      f'the other processes did not come within {patience.start_seconds:g} s '
      f'(processes.start_seconds): {str(error).splitlines()[0]}'
    ) from error
  finally:
    _c_signal()(signal.SIGABRT, before)
  # JAX has a handler of its own, with which SIGTERM would do nothing at all.
  signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _missing(patience: Patience) -> NoReturn:
  line = (
    'JAX aborted this process: another one was lost before all had met, or did '
    f'not come within {patience.start_seconds:g} s (processes.start_seconds)'
  )
  if (_losses() or 0) < patience.restarts:
    start_again(line, lost=True)
  os.write(2, f'error: {line}: start all of them again\n'.encode())
  os._exit(RETRY)


# Starting again.

_LOSSES = 'ADABATCH_LOSSES'  # in the environment of a process that did


def _losses() -> int | None:
  """After how many this process started again; None: it did not."""
  found = os.environ.get(_LOSSES)
  return None if found is None else int(found)


def start_again(why: str, *, lost: bool = False) -> NoReturn:
  """Becomes the same command anew, which goes on from the last checkpoint.

  Args:
    why: for the user.
    lost: whether that counts as a restart.
  """
  _say(f'{why}: starts again')
  _flush()
  if not lost and _watch is not None:
    _watch.leave()  # process 0 is the last
  for name in os.listdir('/proc/self/fd'):
    with contextlib.suppress(OSError):  # the listing's own is closed already
      if int(name) > 2:
        os.set_inheritable(int(name), False)
  # A thread of JAX, or a handler, has some blocked, which would be passed on.
  signal.pthread_sigmask(signal.SIG_SETMASK, [])
  losses = (_losses() or 0) + lost
  os.execve(
    sys.executable,
    [sys.executable, *sys.orig_argv[1:]],
    os.environ | {_LOSSES: str(losses)},
  )


def _flush() -> None:
  with contextlib.suppress(OSError):  # a full disk, or nobody who reads
    sys.stdout.flush()
    sys.stderr.flush()


# Who is there.


class _Watch(threading.Thread):
  """Shows that this process lives, and ends it where another does not.

  Process 0 compares the beats of all. Whoever finds something wrong writes it
  under `verdict`, where every process looks.

  Attributes:
    seconds: without a beat before a process counts as lost.
    ended: set where this process says itself how it ends.
  """

  def __init__(self, seconds: float, restarts: int = 0):
    """`restarts`: how often the process starts again where one is lost."""
    super().__init__(name='watch over the processes', daemon=True)
    self.seconds, self.ended = seconds, threading.Event()
    self.every = min(2.0, seconds / 5)
    self._again = (_losses() or 0) < restarts
    self._here, self._number = jax.process_index(), jax.process_count()
    self._beats: dict[int, tuple[str, float]] = {}
    self._gone: list[int] = []  # as process 0 found
    self._answers = 0  # of process 0
    self._status: int | None = None  # with which this process is to end

  def run(self) -> None:
    clock = threading.Thread(target=self._count, daemon=True)
    clock.start()
    beat = 0
    while not self.ended.wait(self.every):
      beat += 1
      with contextlib.suppress(JaxRuntimeError):  # it does not answer
        self.show(str(beat))
        self._look()
        self._answers += 1

  def _count(self) -> None:
    """Ends this process where process 0 does not answer; calls may hang then.

    Counted, because this process itself may be stopped for a time.
    """
    seen = silent = 0
    while not self.ended.wait(self.every):
      silent = 0 if self._answers != seen else silent + 1
      seen = self._answers
      if silent * self.every > self.seconds:
        self.ended.set()
        self._end_with(self._lost([0]), RETRY)

  def show(self, beat: str) -> None:
    store().key_value_set(
      f'{PREFIX}/lives/{self._here}', beat, allow_overwrite=True
    )

  def judge(self, line: str, status: int) -> None:
    """Ends all processes; the first word counts."""
    verdict = json.dumps({'line': line, 'status': status})
    with contextlib.suppress(JaxRuntimeError):
      store().key_value_set(f'{PREFIX}/verdict', verdict)

  def leave(self) -> None:
    """Before this process ends while others go on; process 0 is the last."""
    self.ended.set()
    with contextlib.suppress(JaxRuntimeError):
      self.show(_LEFT)
      ends = time.monotonic() + 4 * self.every
      while self._here == 0 and time.monotonic() < ends:
        # Also for those that have not shown themselves yet.
        beats = self._of_all()
        waited_for = set(range(self._number)) - set(self._gone)
        if all(beats.get(i) == _LEFT for i in waited_for):
          break
        time.sleep(0.1)

  def _of_all(self) -> dict[int, str]:
    found = store().key_value_dir_get(f'{PREFIX}/lives/')
    return {int(key.rpartition('/')[2]): beat for key, beat in found}

  def _look(self) -> None:
    verdict = read(f'{PREFIX}/verdict')
    if verdict is None and self._here == 0:
      self._gone = self._absent(self._of_all())
      if self._gone:
        self.judge(self._lost(self._gone), RETRY)
        verdict = read(f'{PREFIX}/verdict')
    # It may be about to say the same itself.
    if verdict is not None and not self.ended.wait(self.every / 2):
      self._end_with(**json.loads(verdict))

  def _absent(self, beats: dict[int, str]) -> list[int]:
    now = time.monotonic()
    for process in range(self._number):
      beat, before = beats.get(process, ''), self._beats.get(process)
      if before is None or beat != before[0] or beat == _LEFT:
        self._beats[process] = beat, now
    return [
      process
      for process, (_, since) in sorted(self._beats.items())
      if now - since > self.seconds
    ]

  def _lost(self, absent: list[int]) -> str:
    return (
      f'lost {missing(absent, self._number)}: no sign of life for '
      f'{self.seconds:g} s (processes.lost_seconds); started again all go on '
      'from the newest checkpoint, or begin where there is none'
    )

  def _end_with(self, line: str, status: int) -> None:
    """Ends this process, whatever its other threads wait for."""
    again = status == RETRY and self._again
    if not again:
      _say(f'error: {line}')
    self.end(status, again=again, line=line)

  def end(
    self, status: int, *, again: bool = False, line: str = ''
  ) -> NoReturn:
    """Leaves, and ends the process, or starts it again with a line."""
    _flush()
    if not again:
      self._status = status
    if not self.ended.is_set():
      self.leave()
    if again:
      start_again(line, lost=True)
    os._exit(status)  # JAX would wait for the others

  def abort(self, number: int) -> None:
    """Where JAX aborts the process: its service, or a partner, is gone."""
    del number
    self.ended.set()
    if self._status is not None:  # it was to end, and all is said
      os._exit(self._status)
    if self._again:
      start_again(_ABORTED, lost=True)
    os.write(2, f'error: {_ABORTED}\n'.encode())
    os._exit(RETRY)


_LEFT = 'left'
_ABORTED = (
  'JAX aborted this process, as it does where another one is lost; started '
  'again all go on from the newest checkpoint, or begin where there is none'
)
_watch: _Watch | None = None  # one for a process, as its place among the others


def _begin(patience: Patience) -> None:
  global _watch
  _watch = _Watch(patience.lost_seconds, patience.restarts)
  _at_abort(_watch.abort)
  _watch.start()
  atexit.register(_watch.leave)  # before JAX waits for the others


@contextlib.contextmanager
def telling() -> Iterator[None]:
  """Where this process fails, the others end as well, and say why.

  An error of a collective whose partner is gone waits for the word of the
  watch, which says it in one line.
  """
  try:
    yield
  except BaseException as error:
    if _watch is None or (isinstance(error, SystemExit) and not error.code):
      raise
    if isinstance(error, SystemExit):
      cause, status = error.__context__ or error, error.code
    else:
      cause, status = error, 1
      if isinstance(error, JaxRuntimeError) or 'Gloo' in str(error):
        time.sleep(_watch.seconds + 4 * _watch.every)
      with contextlib.suppress(OSError):
        traceback.print_exc()
    status = status if isinstance(status, int) else 1
    line = (str(cause).splitlines() or [type(cause).__name__])[0][:300]
    _watch.judge(f'process {jax.process_index()}: {line}', status)
    _watch.end(status)


def _at_abort(end: Callable[[int], None]) -> int | None:
  """Has C call it: Python's own handlers wait for the main thread.

  Returns what was called before.
  """
  handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
  _kept.append(handler)
  return _c_signal()(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))


def _c_signal() -> Any:
  function = ctypes.CDLL(None).signal
  function.argtypes = [ctypes.c_int, ctypes.c_void_p]
  function.restype = ctypes.c_void_p
  return function


_kept: list[Any] = []  # what C code points to
