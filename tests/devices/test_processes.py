"""Processes meet, agree, and notice that one is missing.

What needs real processes is in tests/test_distributed.py.
"""

import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
import threading

import jax
import pytest

from adabatch.devices import processes, rendezvous
from adabatch.devices.rendezvous import Meeting, MissingProcess, Place, meet


@pytest.fixture
def address():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return f'localhost:{s.getsockname()[1]}'


@pytest.fixture(autouse=True)
def often(monkeypatch):
  monkeypatch.setattr(rendezvous, 'SAY_EVERY', 0.1)
  monkeypatch.setattr(rendezvous, 'RETRY_EVERY', 0.02)


def met(address, *calls, seconds=5.0, least=None, patience=0.0, knock=list):
  """What came of each call (process, number), a place or error; and lines."""
  said = {call: [] for call in calls}

  def one(call):
    try:
      process, number = call
      meeting = Meeting(number, seconds, least, patience)
      return meet(address, process, meeting, said[call].append, knock)
    except (MissingProcess, ValueError) as error:
      return error

  with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
    return list(pool.map(one, calls)), said


def test_they_meet_in_any_order(address):
  late = threading.Timer(0.5, lambda: found.append(met(address, (0, 3))))
  found = []
  late.start()
  others, said = met(address, (2, 3), (1, 3))
  late.join()
  assert others == [Place(2, 3), Place(1, 3)]
  assert found[0][0] == [Place(0, 3)]
  lines = set(said[2, 3])
  assert f'waiting for process 0 of 3 at {address}' in lines


def test_who_is_missing_is_named_on_every_process(address):
  (first, other), said = met(address, (0, 4), (2, 4), seconds=0.7)
  for error in (first, other):
    assert isinstance(error, MissingProcess)
    assert str(error).startswith(
      'processes 1, 3 of 4 did not come within 0.7 s'
    )
  assert 'waiting for processes 1, 3 of 4' in said[2, 4]
  (alone,), said = met(address, (1, 2), seconds=0.3)
  assert str(alone).startswith(f'process 0 of 2 at {address} did not come')


def test_one_that_was_ended_while_it_waited_is_missing(address):
  host, _, port = address.partition(':')

  def call_and_end():
    for _ in range(100):
      try:
        with socket.create_connection((host, int(port))) as caller:
          caller.sendall(b'{"process": 1, "of": 3}')
        return
      except OSError:
        threading.Event().wait(0.02)

  ended = threading.Thread(target=call_and_end)
  ended.start()
  (first,), _ = met(address, (0, 3), seconds=0.7)
  ended.join()
  assert 'processes 1, 2 of 3 did not come' in str(first)


def test_a_stranger_is_no_process(address):
  host, _, port = address.partition(':')
  lines = [b'GET / HTTP/1.1\r\n', b'[1]', b'{}']

  def call():
    for line in lines:
      try:
        with socket.create_connection((host, int(port))) as caller:
          caller.sendall(line)
      except OSError:
        threading.Event().wait(0.02)

  stranger = threading.Timer(0.2, call)
  stranger.start()
  (first,), _ = met(address, (0, 2), seconds=0.7)
  stranger.join()
  assert 'process 1 of 2 did not come' in str(first)


@pytest.mark.parametrize(
  ('second', 'says'),
  [
    ((1, 3), 'process 1 was told that there are 3 processes, process 0 that'),
    ((2, 3), 'give all the same --num_processes'),
  ],
)
def test_another_count_is_refused_on_both(second, says, address):
  errors, _ = met(address, (0, 2), second)
  for error in errors:
    assert isinstance(error, ValueError)
    assert says in str(error)


def test_two_with_one_number_are_refused(address):
  found = []
  other = threading.Timer(0.3, lambda: found.extend(met(address, (1, 3))[0]))
  other.start()
  errors, _ = met(address, (0, 3), (1, 3))
  other.join()
  for error in errors + found:
    assert 'two processes say that they are process 1' in str(error)


def test_some_go_on_without_those_that_do_not_come(address):
  """Their places have no gap; who comes later knocks."""
  (first, other), _ = met(
    address, (0, 4), (3, 4), least=2, patience=0.4, seconds=9.0
  )
  assert (first, other) == (Place(0, 2), Place(1, 2))
  knocks = []
  late, _ = met(address, (1, 4), seconds=0.3, knock=lambda: knocks.append(1))
  assert isinstance(late[0], MissingProcess)
  assert knocks


def test_too_few_do_not_go_on(address):
  errors, _ = met(address, (0, 4), (3, 4), least=3, patience=0.2, seconds=0.6)
  assert all(isinstance(error, MissingProcess) for error in errors)


@pytest.mark.parametrize(
  'given', ['host', 'host:', ':12', 'host:port', 'h:99999']
)
def test_an_address_without_host_or_port(given):
  with pytest.raises(ValueError, match='give HOST:PORT'):
    meet(given, 0, Meeting(2, 1.0), print)


def test_a_port_in_use_is_one_line(address):
  with socket.create_server(('', int(address.rpartition(':')[2]))):
    (error,), _ = met(address, (0, 2))
  assert 'choose another --coordinator_address' in str(error)


def test_joining_says_whom_it_waits_for(monkeypatch, capsys):
  """Before it waits, which may take long."""
  said, patiences = [], []

  def initialize(*arguments, **times):
    said.append((arguments, capsys.readouterr().err))
    patiences.append(times)

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  monkeypatch.setattr(processes, 'meet', lambda *arguments: Place(1, 3))
  patience = processes.Patience(start_seconds=7, lost_seconds=5)
  processes.join(True, 'host:1234', 3, 1, patience)
  arguments, line = said.pop()
  assert arguments == ('host:1234', 3, 1)
  assert line == 'process 1, from 0, of 3 waits for the others at host:1234\n'
  # JAX's own patience is longer, so that ours says it.
  assert patiences[0]['initialization_timeout'] > 7
  assert patiences[0]['heartbeat_timeout_seconds'] > 2 * 5
  processes.join(True)
  assert said.pop()[1].count('\n') == 1
  processes.join(False)
  assert said == []


@pytest.mark.parametrize('process', [-1, 3])
def test_a_process_beyond_the_last_is_refused(process, monkeypatch):
  monkeypatch.setattr(jax.distributed, 'initialize', pytest.fail)
  with pytest.raises(ValueError, match=f'process_id={process}.*give 0 to 2'):
    processes.join(True, 'host:1234', 3, process)


def test_no_cluster_is_said_with_the_flags_that_help(monkeypatch):
  def fail(**patience):
    raise ValueError('coordinator_address should be defined.')

  monkeypatch.setattr(jax.distributed, 'initialize', fail)
  with pytest.raises(ValueError, match='no cluster.*--num_processes'):
    processes.join(True, None, None, None)


def test_a_stop_is_heard_once_all_have_met(monkeypatch):
  """JAX takes SIGTERM for itself, in C, and does nothing with it."""

  def initialize(*arguments, **times):
    ignore = 1
    processes._c_signal()(signal.SIGTERM, ignore)

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  heard, before = [], signal.getsignal(signal.SIGTERM)
  signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
  try:
    processes.join(True)
    os.kill(os.getpid(), signal.SIGTERM)
  finally:
    signal.signal(signal.SIGTERM, before)
  assert heard == [signal.SIGTERM]


@pytest.mark.parametrize('restarts', [0, 1])
def test_an_abort_before_all_have_met_is_one_line(restarts):
  """JAX says a page, and has no exception for it."""
  code = (
    'import jax, os, sys\n'
    'from adabatch.devices.processes import Patience, join\n'
    'jax.distributed.initialize = lambda *a, **k: os.abort()\n'
    f'join(True, patience=Patience(start_seconds=3, restarts={restarts}))\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert done.returncode == processes.RETRY
  assert 'did not come within 3 s' in done.stderr.splitlines()[-1]
  assert done.stderr.count('starts again') == restarts


def test_a_first_process_that_does_not_answer_is_lost(monkeypatch):
  """Calls to it may hang, for as long as it is stopped."""
  ended, hangs = threading.Event(), threading.Event()
  watch, found = processes._Watch(seconds=0.3), []
  monkeypatch.setattr(watch, 'show', lambda beat: hangs.wait(20))
  monkeypatch.setattr(
    watch, '_end_with', lambda *line: (found.append(line), ended.set())
  )
  monkeypatch.setattr(watch, '_look', lambda: None)
  monkeypatch.setattr(watch, '_number', 3)
  watch.start()
  assert ended.wait(10)
  ((line, status),) = found
  assert 'lost process 0 of 3' in line
  assert status == processes.RETRY
  hangs.set()
  watch.join(10)


def test_a_lost_process_is_named():
  """The times at which process 0 saw the beats of three processes."""
  watch = processes._Watch(seconds=0.2)
  watch._number = 3
  beats = {0: '1', 1: '1', 2: '1'}
  assert watch._absent(beats) == []
  threading.Event().wait(0.3)
  assert watch._absent({0: '2', 1: '1', 2: processes._LEFT}) == [1]
  assert 'lost process 1 of 3' in watch._lost([1])
  # One that never showed itself is lost as well.
  other = processes._Watch(seconds=0.2)
  other._number = 2
  other._absent({0: '1'})
  threading.Event().wait(0.3)
  assert other._absent({0: '2'}) == [1]
