"""The processes of a run: how they meet, agree, and notice that one is lost.

All goes through JAX's coordination service, a small store of keys that process
0 holds: each process shows there that it lives, process 0 looks at all, and
what it finds every process reads. Nothing here touches a device, so that it
works while the devices wait for somebody who is gone.
"""

import atexit
import contextlib
import ctypes
import hashlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax._src import distributed  # the store has no public name
from jax.errors import JaxRuntimeError

from adabatch.devices.rendezvous import MissingProcess, meet, missing

# Exit status of what another try may mend (EX_TEMPFAIL): a scheduler restarts.
RETRY = 75
START_SECONDS, LOST_SECONDS = 300.0, 30.0
_PREFIX = 'adabatch'
_SERVICE_SECONDS = 60  # of JAX's own patience beyond ours


class Differ(RuntimeError):
  """Processes of one run that are not at the same thing."""


def join(
  distributed: bool,
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  start_seconds: float = START_SECONDS,
  lost_seconds: float = LOST_SECONDS,
) -> None:
  """Joins the other processes of a run, if it is a distributed one.

  Without the arguments the processes find each other by themselves, on a TPU
  pod or a cluster that JAX knows (SLURM, Open MPI, Kubernetes). Waits until all
  are there, and says on standard error for whom. From then on a process that is
  lost ends the others, with status RETRY.

  Args:
    distributed: whether it is.
    coordinator_address, num_processes, process_id: all of them, or none.
    start_seconds: to wait for the others.
    lost_seconds: without a sign of life before a process counts as lost.

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
  patience: dict[str, Any] = {
    'initialization_timeout': int(start_seconds) + 1,
    # Ours come first: they say it in one line.
    'heartbeat_timeout_seconds': int(2 * lost_seconds) + _SERVICE_SECONDS,
  }
  if num_processes is None or process_id is None:
    _say('waiting for the other processes of the cluster that JAX finds')
    try:
      jax.distributed.initialize(**patience)
    except ValueError as error:
      raise ValueError(
        f'JAX finds no cluster ({error}): give --coordinator_address, '
        '--num_processes and --process_id'
      ) from error
    except JaxRuntimeError as error:
      raise MissingProcess(
        f'the other processes did not come within {start_seconds:g} s '
        f'(processes.start_seconds): {str(error).splitlines()[0]}'
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
    meet(coordinator_address, process_id, num_processes, start_seconds, _say)
    jax.distributed.initialize(*arguments, **patience)
  if jax.process_count() > 1:
    _begin(lost_seconds)


def _say(message: str) -> None:
  print(message, file=sys.stderr, flush=True)


def _store() -> Any:
  return distributed.global_state.client


# What all agree on.

_rounds: dict[str, int] = {}


def digest(value: Any) -> str:
  """Of plain data, the same on every process and in every version of Python.

  >>> digest({'a': 1, 'b': (2.5, None)}) == digest({'b': [2.5, None], 'a': 1})
  True
  """
  text = json.dumps(value, sort_keys=True, default=str)
  return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def agree(what: str, values: Mapping[str, Any], seconds: float = 600.0) -> None:
  """Refuses to go on where a process has other values than the first.

  The same call has to be made on every process. A process that differs says in
  what; where none does, no process reads more than process 0's values.

  Args:
    what: is compared, for the message.
    values: by name, plain data.
    seconds: to wait for a process that is at something else.

  Raises:
    Differ: on every process, naming the values and the processes.
  """
  if jax.process_count() == 1:
    return
  store, here = _store(), jax.process_index()
  _rounds[what] = _rounds.get(what, -1) + 1
  place = f'{_PREFIX}/agree/{what}/{_rounds[what]}'
  wait = int(1000 * seconds)
  own = {name: _shown(value) for name, value in values.items()}
  if here == 0:
    store.key_value_set(f'{place}/first', json.dumps(own))
    first = own
  else:
    first = json.loads(store.blocking_key_value_get(f'{place}/first', wait))
  names = sorted(
    k for k in own.keys() | first.keys() if own.get(k) != first.get(k)
  )
  if names:
    found = {k: (first.get(k), own.get(k)) for k in names}
    store.key_value_set(f'{place}/differ/{here}', json.dumps(found))
  store.wait_at_barrier(f'{place}/all', wait)
  differ = {
    int(key.rpartition('/')[2]): json.loads(text)
    for key, text in store.key_value_dir_get(f'{place}/differ/')
  }
  if differ:
    # None may end, and with it the store, before all have read.
    store.wait_at_barrier(f'{place}/read', wait)
    raise Differ(_difference(what, differ))
  if here == 0:
    store.key_value_delete(f'{place}/')


def _shown(value: Any) -> str:
  """A value, or what stands for it where that is long."""
  text = json.dumps(value, sort_keys=True, default=str)
  return text if len(text) <= 60 else digest(value)


def _difference(what: str, differ: dict[int, dict[str, list]]) -> str:
  """One line.

  >>> _difference('config', {2: {'seed': ['0', '1']}})
  'the processes differ in their config: seed is 0 on process 0, 1 on process 2'
  """
  parts = []
  for name in sorted({name for found in differ.values() for name in found}):
    others = [
      f'{found[name][1]} on process {process}'
      for process, found in sorted(differ.items())
      if name in found
    ]
    first = next(f[name][0] for f in differ.values() if name in f)
    shown = others[:3] + ['...'] * (len(others) > 3)
    parts.append(f'{name} is {first} on process 0, {", ".join(shown)}')
  more = f'; and {len(parts) - 5} more' if len(parts) > 5 else ''
  return f'the processes differ in their {what}: ' + '; '.join(parts[:5]) + more


# Who is there.


class _Watch(threading.Thread):
  """Shows that this process lives, and ends it where another does not.

  Process 0 compares the beats of all. Whoever finds something wrong writes it
  under `verdict`, where every process looks.

  Attributes:
    seconds: without a beat before a process counts as lost.
    ended: set where this process says itself how it ends.
  """

  def __init__(self, seconds: float):
    super().__init__(name='watch over the processes', daemon=True)
    self.seconds, self.ended = seconds, threading.Event()
    self.every = min(2.0, seconds / 5)
    self._here, self._number = jax.process_index(), jax.process_count()
    self._beats: dict[int, tuple[str, float]] = {}

  def run(self) -> None:
    beat, sign = 0, time.monotonic()
    while not self.ended.wait(self.every):
      beat += 1
      try:
        self.show(str(beat))
        self._look()
        sign = time.monotonic()
      except JaxRuntimeError:  # process 0 does not answer
        if time.monotonic() - sign > self.seconds:
          self._end_with(self._lost([0]), RETRY)

  def show(self, beat: str) -> None:
    _store().key_value_set(
      f'{_PREFIX}/lives/{self._here}', beat, allow_overwrite=True
    )

  def judge(self, line: str, status: int) -> None:
    """Ends all processes; the first word counts."""
    verdict = json.dumps({'line': line, 'status': status})
    with contextlib.suppress(JaxRuntimeError):
      _store().key_value_set(f'{_PREFIX}/verdict', verdict)

  def leave(self) -> None:
    """Before this process ends while others go on; process 0 is the last."""
    self.ended.set()
    with contextlib.suppress(JaxRuntimeError):
      self.show(_LEFT)
      ends = time.monotonic() + 4 * self.every
      while self._here == 0 and time.monotonic() < ends:
        if all(beat == _LEFT for beat in self._of_all().values()):
          break
        time.sleep(0.1)

  def _of_all(self) -> dict[int, str]:
    found = _store().key_value_dir_get(f'{_PREFIX}/lives/')
    return {int(key.rpartition('/')[2]): beat for key, beat in found}

  def _look(self) -> None:
    verdict = _read(f'{_PREFIX}/verdict')
    if verdict is None and self._here == 0:
      lost = self._absent(self._of_all())
      if lost:
        self.judge(self._lost(lost), RETRY)
        verdict = _read(f'{_PREFIX}/verdict')
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
      f'{self.seconds:g} s (processes.lost_seconds): start all of them again '
      'to go on from the last checkpoint'
    )

  def _end_with(self, line: str, status: int) -> None:
    """Ends this process, whatever its other threads wait for."""
    _say(f'error: {line}')
    sys.stdout.flush()
    self.leave()
    os._exit(status)


_LEFT = 'left'
_watch: _Watch | None = None  # one for a process, as its place among the others


def _begin(lost_seconds: float) -> None:
  global _watch
  _exit_at_abort()
  _watch = _Watch(lost_seconds)
  _watch.start()
  atexit.register(_watch.leave)  # before JAX waits for the others


def _read(key: str) -> str | None:
  try:
    return _store().key_value_try_get(key)
  except JaxRuntimeError as error:
    if 'NOT_FOUND' in str(error):
      return None
    raise


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
      traceback.print_exc()
    status = status if isinstance(status, int) else 1
    line = (str(cause).splitlines() or [type(cause).__name__])[0][:300]
    _watch.judge(f'process {jax.process_index()}: {line}', status)
    sys.stdout.flush()
    sys.stderr.flush()
    _watch.leave()
    os._exit(status)  # JAX would wait for the others


def _exit_at_abort() -> None:
  """JAX aborts the process where process 0 is gone: that is worth a retry.

  The handler of Python runs in the main thread alone, which may wait for a
  collective; so it is one of C that ends the process.
  """

  def end(number: int) -> None:
    del number
    os.write(2, b'error: lost process 0, which JAX needs: start all again\n')
    os._exit(RETRY)

  handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
  _kept.append(handler)
  ctypes.CDLL(None).signal(signal.SIGABRT, handler)


_kept: list[Any] = []  # what C code points to
