"""How long a run still takes, against one that is gone through."""

import io
import math

import jax
import numpy as np
import pytest

from adabatch import controllers
from adabatch.controllers import Signals, buckets
from adabatch.train.build import build
from adabatch.train.console import Console
from adabatch.train.run_end import RunEnd
from adabatch.train.time_left import (
  Stretch,
  TimeLeft,
  ahead,
  constantly,
  seconds_of,
)
from tests.experiments import digits

LADDER = buckets.ladder(16, 256, devices=1)
RULES = {
  'constant': controllers.constant(initial_batch_size=64),
  'step_table': controllers.step_table(table='0:16 2000:64 9000:256'),
  'every': controllers.every(
    controllers.step_table(table='0:16 2000:64 9000:256'), updates=7
  ),
  'rare': controllers.every(
    controllers.step_table(table='0:16 2000:64 9000:256'), updates=100
  ),
}


def slow_sizes(rule, end, num_examples):
  """(update, examples before it, size) of each update, one at a time."""
  state, update, examples, size, found = rule.init(), 0, 0, None, []
  while not end.over(update, examples):
    if rule.due(update):
      signals = Signals(update, examples, examples / num_examples)
      nominal, state = rule.update(state, signals)
      size = buckets.plan(nominal, LADDER).batch_size
    found.append((update, examples, size))
    update, examples = update + 1, min(examples + size, end.examples)
  return found


@pytest.mark.parametrize('end', [RunEnd(20_010), RunEnd(20_010, 150)], ids=str)
@pytest.mark.parametrize('name', RULES)
@pytest.mark.parametrize('part', [0.0, 0.3, 0.9])
def test_it_is_as_if_each_update_were_gone_through(name, end, part):
  rule = RULES[name]
  updates = slow_sizes(rule, end, 1000)
  first = int(part * len(updates))
  costs = {16: 3.0, 64: 2.0, 256: 1.0}
  expected = 0.0
  for _, examples, size in updates[first:]:
    expected += min(size, end.examples - examples) * costs[size]
  update, examples, _ = updates[first]
  size = updates[max(first - 1, 0)][2]
  for steps, off in ((10**6, 1e-9), (256, 0.02)):
    got = ahead(rule, LADDER, end, 1000, update, examples, size, steps)
    np.testing.assert_allclose(seconds_of(got, costs), expected, rtol=off)


def test_it_asks_a_long_run_seldom():
  asked = []
  rule = RULES['step_table']
  counted = rule._replace(
    update=lambda *given: asked.append(1) or rule.update(*given)
  )
  end = RunEnd(10**9)
  (first, *_, last) = ahead(counted, LADDER, end, 1000, 0, 0, 16)
  assert len(asked) < 600
  assert (first.batch_size, last.batch_size) == (16, 256)


def test_one_that_keeps_its_size():
  assert constantly(RunEnd(100), 3, 90, 16) == Stretch(16, 10)
  assert constantly(RunEnd(100, 4), 3, 48, 16) == Stretch(16, 16)
  assert constantly(RunEnd(100, 4), 5, 48, 16) == Stretch(16, 0)


def record(update, examples, seconds, size):
  return {
    'update': update,
    'examples': examples,
    'seconds': seconds,
    'epoch': 0.0,
    'learning_rate': 0.1,
    'loss': 1.0,
    'batch_size': size,
    'examples_per_second': math.nan,
  }


def time_left(**more):
  keys = {
    'epochs': 1000,
    'max_examples': 6400,
    'controller.initial_batch_size': 16,
    'controller.max_batch_size': 64,
  }
  return TimeLeft(build(digits(**keys, **more), jax.devices()[:1]))


def said(time, *records):
  words = []
  for one in records:
    time.saw('train', one)
    words.append(time.words(one))
  return words


def test_the_first_of_each_size_is_not_measured():
  """Nor what came before a rollback, or with other replicas."""
  time = time_left(
    **{'controller.name': 'noise_scale', 'eval.every_epochs': 100}
  )
  got = said(
    time,
    record(20, 320, 900.0, 16),  # with what the first one takes
    record(40, 640, 903.2, 16),
    record(41, 704, 1700.0, 64),
    record(61, 1984, 1706.4, 64),
  )
  assert got == [
    '',
    '100 examples/s  58 s left at this batch size',
    '57 s left at this batch size',
    '200 examples/s  22 s left at this batch size',
  ]
  time.saw('rollback', {'update': 41})
  assert said(time, record(41, 704, 1800.0, 64)) == ['']


def test_it_knows_that_the_batch_will_grow():
  time = time_left(
    **{
      'controller.name': 'step_table',
      'controller.step_table.table': '0:16 3200:64',
      'controller.every': 1,
    }
  )
  first, second = record(20, 320, 900.0, 16), record(40, 640, 903.2, 16)
  assert said(time, first, second)[-1] == '100 examples/s  58 s left'
  time._measured[64] = (100, 0.1)  # 1,000 examples/s
  # 2,560 examples at 100/s and 3,200 at 1,000/s.
  assert time.words(second) == '100 examples/s  29 s left'


def test_the_console_says_it():
  stream, time = io.StringIO(), time_left()
  console = Console(0, stream=stream, seconds_between_lines=0.0)
  console.expect(6400, time)
  console.start(0)
  console.show('train', record(20, 320, 900.0, 16))
  console.show('train', record(40, 640, 903.2, 16))
  first, second = stream.getvalue().splitlines()
  assert first.endswith('loss 1.0000')
  assert '100 examples/s  58 s left' in second
