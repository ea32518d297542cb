"""Where the processes of a run meet, before JAX's own service starts there.

Process 0 listens at the coordinator's address until everybody has called, and
tells all of them for whom they wait. So a process that never starts, starts
twice or counts otherwise is named at once, on every process, in one line.
"""

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Callable, Iterable

SAY_EVERY = 5.0  # seconds between two lines on who is missing
RETRY_EVERY = 0.2


class MissingProcess(RuntimeError):
  """Not all processes came in time; another try may find them."""


def meet(
  address: str,
  process: int,
  number: int,
  seconds: float,
  say: Callable[[str], None],
) -> None:
  """Returns when all processes of a run are there.

  Args:
    address: HOST:PORT of process 0.
    process: which one this is.
    number: how many there are.
    seconds: to wait at most.
    say: is told, now and then, for whom it waits.

  Raises:
    MissingProcess: naming those that did not come.
    ValueError: where two have one number, or count differently.
  """
  host, _, port = address.rpartition(':')
  if not host or not port.isdigit():
    raise ValueError(f'coordinator_address={address!r}: give HOST:PORT')
  ends = time.monotonic() + seconds
  if process == 0:
    _receive(int(port), number, ends, seconds, say)
  else:
    _call((host.strip('[]'), int(port)), process, number, ends, seconds, say)


def missing(absent: list[int], number: int) -> str:
  """The processes that are absent, in words.

  >>> missing([1], 2), missing([1, 3], 4)
  ('process 1 of 2', 'processes 1, 3 of 4')
  """
  some = ', '.join(map(str, absent[:8])) + ', ...' * (len(absent) > 8)
  return f'process{"es" * (len(absent) > 1)} {some} of {number}'


def _receive(port, number, ends, seconds, say) -> None:
  """Process 0: waits for the calls of all others and answers each."""
  here: dict[int, socket.socket] = {}
  with contextlib.ExitStack() as stack:
    listener = stack.enter_context(_listen(port))
    waiting = stack.enter_context(selectors.DefaultSelector())
    waiting.register(listener, selectors.EVENT_READ)
    told = time.monotonic()
    while absent := [i for i in range(1, number) if i not in here]:
      now = time.monotonic()
      if now >= ends:
        line = _too_late(missing(absent, number), seconds)
        _tell(here.values(), {'missing': line})
        raise MissingProcess(line)
      if now - told >= SAY_EVERY:
        told = now
        line = f'waiting for {missing(absent, number)}'
        say(line)
        _tell(here.values(), {'say': line})
      for key, _ in waiting.select(min(ends - now, SAY_EVERY)):
        if key.fileobj is listener:
          caller = stack.enter_context(listener.accept()[0])
          caller.settimeout(2.0)  # of one call, which is a short line
          waiting.register(caller, selectors.EVENT_READ)
        else:
          caller = key.fileobj
          waiting.unregister(caller)
          _answer(caller, number, here)
      for i in [i for i, caller in here.items() if _hung_up(caller)]:
        del here[i]  # it was ended while it waited
    _tell(here.values(), {'go': True})


def _listen(port: int) -> socket.socket:
  try:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    return socket.create_server(
      ('', port), family=family, dualstack_ipv6=dual, backlog=1024
    )
  except OSError as error:
    raise ValueError(
      f'process 0 cannot listen at port {port} ({error.strerror}): choose '
      'another --coordinator_address'
    ) from None


def _answer(caller, number: int, here: dict[int, socket.socket]) -> None:
  """Takes a caller in, or refuses it."""
  try:
    call = json.loads(caller.recv(1000))
    process, of = call['process'], call['of']
  except (OSError, ValueError, KeyError, TypeError):
    return  # not one of ours
  line = None
  if of != number:
    line = (
      f'process {process} was told that there are {of} processes, process 0 '
      f'that there are {number}: give all the same --num_processes'
    )
  elif process in here:
    line = (
      f'two processes say that they are process {process}: give each a '
      '--process_id of its own'
    )
  if line is None:
    here[process] = caller
    return
  _tell([caller, *here.values()], {'refuse': line})
  raise ValueError(line)


def _hung_up(caller: socket.socket) -> bool:
  caller.setblocking(False)
  try:
    return caller.recv(1, socket.MSG_PEEK) == b''
  except BlockingIOError:
    return False
  except OSError:
    return True


def _tell(callers: Iterable[socket.socket], message: dict) -> None:
  line = json.dumps(message).encode() + b'\n'
  for caller in callers:
    with contextlib.suppress(OSError):  # it is seen as missing
      caller.sendall(line)


def _call(address, process, number, ends, seconds, say) -> None:
  """Another process: calls process 0 until it answers that all are there."""
  place = f'{address[0]}:{address[1]}'
  told = time.monotonic()
  while (now := time.monotonic()) < ends:
    with contextlib.suppress(OSError, EOFError):
      with socket.create_connection(address, timeout=ends - now) as line:
        call = {'process': process, 'of': number}
        line.sendall(json.dumps(call).encode())
        # What process 0 says comes more often than this.
        line.settimeout(4 * SAY_EVERY)
        _listen_to(line, say)
      return
    if now - told >= SAY_EVERY:
      told = now
      say(f'waiting for {missing([0], number)} at {place}')
    time.sleep(RETRY_EVERY)
  raise MissingProcess(_too_late(f'{missing([0], number)} at {place}', seconds))


def _listen_to(line: socket.socket, say: Callable[[str], None]) -> None:
  """Raises EOFError where process 0 hangs up before it lets this one go."""
  with line.makefile() as messages:
    for text in messages:
      message = json.loads(text)
      if 'go' in message:
        return
      if 'say' in message:
        say(message['say'])
      elif 'missing' in message:
        raise MissingProcess(message['missing'])
      else:
        raise ValueError(message['refuse'])
  raise EOFError


def _too_late(who: str, seconds: float) -> str:
  return (
    f'{who} did not come within {seconds:g} s (processes.start_seconds): start '
    'all of them again'
  )
