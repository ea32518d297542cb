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
from typing import NamedTuple

SAY_EVERY = 5.0  # seconds between two lines on who is missing
RETRY_EVERY = 0.2


class MissingProcess(RuntimeError):
  """Not all processes came in time; another try may find them."""


class Place(NamedTuple):
  """Which process this is of those that are there, and how many they are."""

  process: int
  number: int


class Meeting(NamedTuple):
  """Who is to come.

  Attributes:
    number: how many processes there are to be.
    seconds: to wait for them at most.
    least: how many are enough, once `patience` is over; None: all.
    patience: seconds.
  """

  number: int
  seconds: float
  least: int | None = None
  patience: float = 0.0

  def over(self, here: int, waited: float) -> bool:
    """Whether those who are here go on.

    >>> some = Meeting(4, 300.0, least=2, patience=30.0)
    >>> some.over(4, 1.0), some.over(3, 1.0), some.over(3, 31.0)
    (True, False, True)
    """
    few = self.least is not None and here >= self.least
    return here == self.number or (few and waited >= self.patience)


def meet(
  address: str,
  process: int,
  meeting: Meeting,
  say: Callable[[str], None],
  knock: Callable[[], None] = lambda: None,
) -> Place:
  """Returns when enough processes of a run are there.

  Args:
    address: HOST:PORT of process 0.
    process: which one this is.
    meeting: who is to come.
    say: is told, now and then, for whom it waits.
    knock: is called, now and then, while the others are at work without it.

  Raises:
    MissingProcess: naming those that did not come.
    ValueError: where two have one number, or count differently.
  """
  host, _, port = address.rpartition(':')
  if not host or not port.isdigit() or not 0 < int(port) < 2**16:
    raise ValueError(f'coordinator_address={address!r}: give HOST:PORT')
  if process == 0:
    return _receive(int(port), meeting, say)
  return _call((host.strip('[]'), int(port)), process, meeting, say, knock)


def missing(absent: list[int], number: int) -> str:
  """The processes that are absent, in words.

  >>> missing([1], 2), missing([1, 3], 4)
  ('process 1 of 2', 'processes 1, 3 of 4')
  """
  some = ', '.join(map(str, absent[:8])) + ', ...' * (len(absent) > 8)
  return f'process{"es" * (len(absent) > 1)} {some} of {number}'


def _receive(port: int, meeting: Meeting, say: Callable[[str], None]) -> Place:
  """Process 0: waits for the calls of the others and answers each."""
  here: dict[int, socket.socket] = {}
  began = told = time.monotonic()
  with contextlib.ExitStack() as stack:
    listener = stack.enter_context(_listen(port))
    waiting = stack.enter_context(selectors.DefaultSelector())
    waiting.register(listener, selectors.EVENT_READ)
    while not meeting.over(1 + len(here), time.monotonic() - began):
      absent = [i for i in range(1, meeting.number) if i not in here]
      now = time.monotonic()
      if now - began >= meeting.seconds:
        line = _too_late(missing(absent, meeting.number), meeting.seconds)
        _tell(here.values(), {'missing': line})
        raise MissingProcess(line)
      if now - told >= SAY_EVERY:
        told = now
        line = f'waiting for {missing(absent, meeting.number)}'
        say(line)
        _tell(here.values(), {'say': line})
      for key, _ in waiting.select(min(SAY_EVERY, 0.5)):
        if key.fileobj is listener:
          caller = stack.enter_context(listener.accept()[0])
          caller.settimeout(2.0)  # of one call, which is a short line
          waiting.register(caller, selectors.EVENT_READ)
        else:
          caller = key.fileobj
          waiting.unregister(caller)
          _answer(caller, meeting.number, here)
      for i in [i for i, caller in here.items() if _hung_up(caller)]:
        del here[i]  # it was ended while it waited
    number = 1 + len(here)
    for place, (_, caller) in enumerate(sorted(here.items()), 1):
      _tell([caller], {'go': Place(place, number)})
  return Place(0, number)


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


def _call(
  address: tuple[str, int],
  process: int,
  meeting: Meeting,
  say: Callable[[str], None],
  knock: Callable[[], None],
) -> Place:
  """Another process: calls process 0 until it answers that it may go on."""
  place = f'{address[0]}:{address[1]}'
  absent = f'{missing([0], meeting.number)} at {place}'
  began = told = time.monotonic()
  while (now := time.monotonic()) - began < meeting.seconds:
    with contextlib.suppress(OSError, EOFError):
      with socket.create_connection(address, timeout=5.0) as line:
        call = {'process': process, 'of': meeting.number}
        line.sendall(json.dumps(call).encode())
        # What process 0 says comes more often than this.
        line.settimeout(4 * SAY_EVERY)
        found = _hear(line, say)
      if found is not None:
        return found
    knock()  # nobody is there, or JAX's own service
    if now - told >= SAY_EVERY:
      told = now
      say(f'waiting for {absent}')
    time.sleep(RETRY_EVERY)
  raise MissingProcess(_too_late(absent, meeting.seconds))


def _hear(line: socket.socket, say: Callable[[str], None]) -> Place | None:
  """What process 0 says in the end; None where nobody speaks as we do.

  Raises EOFError where process 0 hangs up before it lets this one go.
  """
  with line.makefile('rb') as messages:
    for text in messages:
      try:
        message = json.loads(text)
      except ValueError:
        return None
      if 'go' in message:
        return Place(*message['go'])
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
