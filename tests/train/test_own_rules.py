"""Mistakes in a batch-size rule of one's own are one line each."""

import math
import threading

import pytest

import adabatch
from adabatch.config import ConfigError
from adabatch.controllers import CONTROLLERS, BatchSizeController, Signals
from adabatch.train import rules
from adabatch.train.run_end import Extent
from tests.experiments import digits

SIZE = r'update: ValueError: it returned the size .*: return \(size, state\)'
MISTAKES = {
  'NaN': ({'update': lambda state, signals: (math.nan, state)}, SIZE),
  'infinity': ({'update': lambda state, signals: (math.inf, state)}, SIZE),
  'text': ({'update': lambda state, signals: ('32', state)}, SIZE),
  'no size': ({'update': lambda state, signals: (None, state)}, SIZE),
  'zero': ({'update': lambda state, signals: (0, state)}, SIZE),
  'nothing': ({'update': lambda state, signals: None}, 'update: TypeError'),
  'a division by zero': (
    {'update': lambda state, signals: (1 / signals.update, state)},
    'update: ZeroDivisionError: division by zero',
  ),
  'no such entry': (
    {'update': lambda state, signals: ({}['size'], state)},
    "update: KeyError: 'size'",
  ),
  'no such signal': (
    {'update': lambda state, signals: (signals.losses, state)},
    'update: AttributeError',
  ),
  'a state that no checkpoint holds': (
    {'update': lambda state, signals: (8.0, threading.Event())},
    'update: ValueError: a controller state holds',
  ),
  'a beginning': ({'init': lambda: {}[0]}, 'init: KeyError'),
  'a time': ({'due': lambda update: 1 / update}, 'due: ZeroDivisionError'),
}


def made(make):
  """A rule of the config, with what is around it."""
  c = digits(**{'controller.smooth': 0.5, 'controller.every': 1})
  adabatch.register(c, 'controller', 'mine', make)
  try:
    return rules.make_controller(c, Extent(100, 100, 128))
  finally:
    del CONTROLLERS['mine']


def rule(**changes):
  plain = BatchSizeController(
    init=tuple, update=lambda state, signals: (8.0, state), needs=frozenset()
  )
  return lambda initial_batch_size: plain._replace(**changes)


def ask(make):
  controller = made(make)
  state = controller.init()
  for update in range(2):
    controller.due(update)
    _, state = controller.update(state, Signals(update))


@pytest.mark.parametrize('name', MISTAKES)
def test_is_refused(name):
  changes, message = MISTAKES[name]
  with pytest.raises(ConfigError, match=f'controller.mine: {message}') as error:
    ask(rule(**changes))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda initial_batch_size: None, 'returned None: return a BatchSizeCo'),
    (lambda initial_batch_size: {}['x'], "KeyError: 'x'"),
    (lambda: None, 'TypeError.*initial_batch_size'),
    (rule(needs=frozenset(['losses'])), "needs 'losses', which is no signal"),
  ],
)
def test_what_is_no_rule_is_refused(make, message):
  with pytest.raises(ConfigError, match=f'controller.mine: .*{message}'):
    made(make)


def test_a_good_one_is_asked_as_it_is():
  ask(rule())
