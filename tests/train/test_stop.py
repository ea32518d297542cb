"""SIGTERM and Ctrl-C become a flag, once."""

import signal
import threading

import pytest

from adabatch.train.stop import Stop, stop_on_signals

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def received():
  """The signals that reach the handlers of before."""
  received = []
  old = {
    number: signal.signal(number, lambda n, frame: received.append(n))
    for number in SIGNALS
  }
  yield received
  for number, handler in old.items():
    signal.signal(number, handler)


@pytest.mark.parametrize('number', SIGNALS)
def test_the_first_asks_and_the_second_gets_through(received, number):
  stop = threading.Event()
  with stop_on_signals(stop):
    assert not stop.is_set()
    signal.raise_signal(number)
    assert stop.is_set()
    assert received == []
    signal.raise_signal(number)
    assert received == [number]


@pytest.mark.usefixtures('received')
@pytest.mark.parametrize('number', SIGNALS)
def test_the_signal_is_noted(number):
  stop = Stop()
  assert stop.signal is None
  with stop_on_signals(stop):
    signal.raise_signal(number)
  assert stop.is_set()
  assert stop.signal == number


@pytest.mark.parametrize('fails', [False, True])
def test_the_handlers_of_before_return(received, fails):
  stop = threading.Event()
  try:
    with stop_on_signals(stop):
      if fails:
        raise KeyError
  except KeyError:
    pass
  for number in SIGNALS:
    signal.raise_signal(number)
  assert received == list(SIGNALS)
  assert not stop.is_set()


def test_another_thread_leaves_signals_alone(received):
  """Python allows handlers in the main thread only."""
  errors = []

  def work():
    try:
      with stop_on_signals(threading.Event()):
        pass
    except ValueError as error:
      errors.append(error)

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert errors == []
  signal.raise_signal(signal.SIGTERM)
  assert received == [signal.SIGTERM]
