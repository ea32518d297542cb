"""What is due, and how many updates come before it, against slow twins."""

import itertools
import json
import math
import random
from fractions import Fraction

import jax
import numpy as np
import pytest

from adabatch import data
from adabatch.config import default
from adabatch.train.build import build, make_decisions, make_replicas
from adabatch.train.calls import (
  Due,
  Progress,
  better,
  make_due,
  next_multiple,
  updates_until,
)
from adabatch.train.decisions import Measure
from adabatch.train.next_call import next_call
from adabatch.train.run_end import RunEnd
from tests.experiments import digits

NEVER = 10**9


# When an evaluation is due.


def slow_next_evaluation(examples, span, growth):
  """The first number of examples that is due, in exact arithmetic."""
  return next(
    later
    for later in itertools.count(examples + 1)
    if later // span > examples // span and later >= examples * growth
  )


@pytest.mark.parametrize('growth', ['1.0', '1.1', '1.5'])
@pytest.mark.parametrize('epochs', ['0.1', '0.3', '0.4', '0.7', '1.0', '1.25'])
@pytest.mark.parametrize('num_examples', [1, 7, 60, 88, 100])
def test_the_next_evaluation(num_examples, epochs, growth):
  """Decimal fractions are none in binary, and yet nothing is late."""
  config = default()
  config.eval.every_epochs = float(epochs)
  config.eval.growth = float(growth)
  config.checkpoint.every_updates, config.log.every_updates = 11, 13
  due = make_due(config, num_examples)
  assert due[2:] == (11, 13)
  span = Fraction(epochs) * num_examples
  for examples in range(3 * num_examples + 10):
    expected = slow_next_evaluation(examples, span, Fraction(growth))
    assert due.next_evaluation(examples) == expected
    if growth == '1.0':
      assert next_multiple(examples, due.evaluation_span) == expected


# Where a run is.


def test_best_is_a_number_if_there_is_one():
  for higher in (True, False):
    for values in ((0.5, math.nan), (math.nan, 0.5)):
      assert better(*values, higher=higher) == 0.5
  assert math.isnan(better(math.nan, math.nan, higher=True))


def target(metric, value):
  config = default()
  config.target.metric, config.target.value = metric, value
  return config.target


BETTER = {'loss': False, 'accuracy': True}
VALUES = (0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize(
  ('metric', 'value'),
  [('accuracy', None), ('accuracy', 0.5), ('loss', 0.5), ('loss', 2.0)],
)
def test_an_evaluation_is_taken_down(metric, value):
  """Final, best, where the target was reached first, and what is due next."""
  rng = random.Random(0)
  due = Due(10, 1.2, 1, 1)
  for _ in range(50):
    at, seen, reached = Progress(next_evaluation=10), [], None
    for _ in range(rng.randrange(1, 6)):
      at.update += rng.randrange(1, 5)
      at.examples += rng.randrange(1, 20)
      at.seconds += 1.5
      metrics = {
        'loss': rng.choice(VALUES),
        'accuracy': rng.choice((*VALUES, math.nan)),
      }
      at.evaluated_with('test', metrics, BETTER, due, target(metric, value))
      seen.append(metrics)
      beaten = value is not None and (
        metrics['loss'] < value
        if metric == 'loss'
        else metrics['accuracy'] > value
      )
      if beaten and reached is None:
        reached = {
          'updates': at.update,
          'examples': at.examples,
          'seconds': at.seconds,
        }
      assert at.evaluated == at.update
      assert at.next_evaluation == due.next_evaluation(at.examples)
      assert at.final == {'test': seen[-1]}
      best = at.best['test']
      assert best['loss'] == min(m['loss'] for m in seen)
      numbers = [m['accuracy'] for m in seen if m['accuracy'] > 0]
      assert best['accuracy'] == pytest.approx(
        max(numbers, default=math.nan), nan_ok=True
      )
      assert at.reached == reached
      for end in (RunEnd(NEVER), RunEnd(at.examples), RunEnd(NEVER, at.update)):
        over = end != RunEnd(NEVER) or reached is not None
        assert at.over(end) == over
      assert metrics == seen[-1]  # which `best` must not change


def test_another_split_has_a_best_of_its_own():
  at, none = Progress(next_evaluation=1), target('loss', None)
  for split, loss in (('a', 1.0), ('b', 2.0), ('a', 3.0)):
    metrics = {'loss': loss, 'accuracy': 0.5}
    at.evaluated_with(split, metrics, BETTER, Due(1, 1.0, 1, 1), none)
  assert {k: v['loss'] for k, v in at.final.items()} == {'a': 3.0, 'b': 2.0}
  assert {k: v['loss'] for k, v in at.best.items()} == {'a': 1.0, 'b': 2.0}


def test_progress_comes_back_from_a_checkpoint():
  at = Progress(
    next_evaluation=7,
    update=3,
    examples=48,
    seconds=1.25,
    evaluated=2,
    skipped_records=5,
    skipped_evaluation_records=1,
    distances={'mean_squared_distance': 0.5},
  )
  metrics = {'loss': 1.0, 'accuracy': 0.5}
  at.evaluated_with(
    'test', metrics, BETTER, Due(9, 1.0, 1, 1), target('loss', 2.0)
  )
  host = json.loads(json.dumps(at.host()))
  assert Progress(**host) == at
  at.final['test']['loss'] = 9.0
  assert host['final']['test']['loss'] == 1.0


# How many updates may be done at once.


def slow_updates_until(at, size, end, due, *, most, cut):
  """Does one after the other, and looks whether anything is due."""
  update, examples, count = at.update, at.examples, 0
  while not count or not (
    end.over(update, examples)
    or examples >= at.next_evaluation
    or update % due.checkpoint == 0
    or update >= cut
    or count >= most
    or end.examples - examples < size  # another size
  ):
    update, examples, count = update + 1, examples + size, count + 1
  return count


def test_updates_until_anything_is_due():
  rng = random.Random(0)
  counts = []
  for _ in range(3000):
    examples = rng.randrange(200)
    at = Progress(
      next_evaluation=examples + rng.randrange(1, 300),
      update=rng.randrange(40),
      examples=examples,
    )
    end = RunEnd(
      examples + rng.randrange(1, 400),
      rng.choice([math.inf, at.update + rng.randrange(1, 40)]),
    )
    # What the end cuts was cut before.
    size = min(rng.randrange(1, 40), end.examples - examples)
    due = Due(100, 1.0, rng.choice([1, 5, 30, 1000]), 1)
    how = {
      'most': rng.choice([1, 4, math.inf]),
      'cut': rng.choice([math.inf, at.update + rng.randrange(1, 40)]),
    }
    count = updates_until(at, size, end, due, **how)
    assert count == slow_updates_until(at, size, end, due, **how)
    assert isinstance(count, int)
    counts.append(count)
  # Some of every kind were among them.
  assert min(counts) == 1
  assert max(counts) > 25


def splits():
  rng = np.random.default_rng(0)
  arrays = {
    'image': rng.normal(size=(100, 2, 2, 1)).astype(np.float32),
    'label': np.arange(100) % 2,
  }
  split = data.from_arrays(arrays, 2)
  return split, split


def way(parts, most):
  """The calls of a whole run whose rule reads nothing but its progress."""
  at = Progress(next_evaluation=parts.due.next_evaluation(0))
  decisions = make_decisions(parts, Measure(lambda update, examples: ({}, 0)))
  replicas = make_replicas(parts)
  decisions.decide(0, 0)
  calls = []
  while not at.over(parts.end):
    if at.examples >= at.next_evaluation:
      at.next_evaluation = parts.due.next_evaluation(at.examples)
    call = next_call(at, parts, decisions, replicas, most=most)
    calls.append(call)
    for update in range(call.update + 1, call.update + call.count + 1):
      at.update, at.examples = update, at.examples + call.plan.batch_size
    if call.decides:
      decisions.decide(at.update, at.examples)
    replicas.dispatched(call, 0)
  return calls


@pytest.mark.parametrize(
  'overrides',
  [
    {},
    {'max_updates': 13},
    {'sync.name': 'local_sgd', 'sync.replicas': 2, 'sync.local_steps': 3},
    {
      'sync.name': 'post_local_sgd',
      'sync.replicas': 2,
      'sync.local_steps': 4,
      'sync.post_local_sgd.epoch': 0.7,
    },
    {'sync.name': 'sma', 'sync.replicas': 2, 'sync.local_steps': 1},
  ],
)
def test_updates_alike_are_those_that_come_one_by_one(overrides):
  """Sizes, syncs and decisions do not depend on how many are done at once."""
  parts = build(
    digits(
      **{
        'epochs': 2.5,
        'controller.name': 'step_table',
        'controller.step_table.table': '0:8 60:16 150:32',
        'controller.initial_batch_size': 8,
        'controller.max_batch_size': 32,
        'controller.every': 3,
        'checkpoint.every_updates': 7,
        'eval.every_epochs': 0.45,
      }
      | overrides
    ),
    jax.devices()[:1],
    splits(),
  )
  slow = way(parts, most=1)
  assert {call.count for call in slow} == {1}
  for most in (2, 5, math.inf):
    calls = way(parts, most)
    assert max(call.count for call in calls) > 1
    one_by_one = [
      call._replace(
        update=call.update + i,
        examples=call.examples + i * call.plan.batch_size,
        count=1,
        decides=call.decides and i == call.count - 1,
      )
      for call in calls
      for i in range(call.count)
    ]
    assert one_by_one == slow
  # The largest calls end nowhere but where something is due or changes.
  for call, later in itertools.pairwise(calls):
    update, examples = later.update, later.examples
    span = parts.due.evaluation_span
    assert (
      update % 7 == 0
      or call.decides
      or call.agree != later.agree
      or call.plan != later.plan
      or examples // span > call.examples // span
    )
