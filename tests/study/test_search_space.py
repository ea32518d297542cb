import math
from collections import Counter

import numpy as np
import pytest

from adabatch.config import ConfigError, default
from adabatch.search import workload
from adabatch.search.survey import limits
from adabatch.study.space import Parameter, make_space, near_edges, points
from adabatch.study.trials import (
  COMPLETE,
  ERROR,
  INCOMPLETE,
  INFEASIBLE,
  Goal,
  Trial,
  columns,
  judge,
)

OWN_SEED = 339664683
SPACE = make_space(
  [
    ('a', 'log', 1e-4, 10.0),
    ('b', 'reverse_log', 0.9, 0.9999),
    ('c', 'linear', -1.0, 3.0),
    ('d', 'integer', 3, 7),
    ('e', 'discrete', 0.0, 0.01, 0.1),
    ('f', 'integer', -3, 2),
  ]
)


def slow_at(parameter, u):
  """The definitions, with powers in place of logarithms."""
  if parameter.scale == 'discrete':
    return parameter.values[int(u * len(parameter.values))]
  low, high = parameter.values
  if parameter.scale == 'log':
    return low * (high / low) ** u
  if parameter.scale == 'reverse_log':
    return 1 - (1 - low) * ((1 - high) / (1 - low)) ** u
  if parameter.scale == 'integer':
    return range(low, high + 1)[int(u * (high - low + 1))]
  return low + u * (high - low)


@pytest.mark.parametrize('key', SPACE)
def test_scales(key):
  parameter = SPACE[key]
  for u in np.random.default_rng(0).uniform(size=200).tolist():
    value = parameter.at(u)
    assert value == pytest.approx(slow_at(parameter, u), rel=1e-12)
    assert parameter.at(parameter.place(value)) == pytest.approx(value)


@pytest.mark.parametrize('sampler', ['halton', 'sobol'])
@pytest.mark.parametrize('seed', [0, 1])
def test_points_are_written_down_in_advance(sampler, seed):
  many = points(SPACE, sampler, seed, 100)
  for count in (1, 2, 3, 17, 64):
    assert points(SPACE, sampler, seed, count) == many[:count]
  assert points(SPACE, sampler, seed + 1, 100) != many
  assert len({p['a'] for p in many}) == 100


@pytest.mark.parametrize('sampler', ['halton', 'sobol'])
def test_points_fill_the_space_on_its_own_scales(sampler):
  found = points(SPACE, sampler, 3, 256)
  # Equally many in each decade of a, and of 1 - b.
  decades = [math.floor(math.log10(p['a'])) for p in found]
  assert {d: decades.count(d) for d in set(decades)} == pytest.approx(
    dict.fromkeys((-4, -3, -2, -1, 0), 256 / 5), abs=3
  )
  decades = [math.floor(-math.log10(1 - p['b'])) for p in found]
  assert decades.count(1) == pytest.approx(256 / 3, abs=3)
  assert {p['d'] for p in found} == {3, 4, 5, 6, 7}
  assert Counter(p['f'] for p in found) == pytest.approx(
    dict.fromkeys(range(-3, 3), 256 / 6), abs=3
  )
  assert {p['e'] for p in found} == {0.0, 0.01, 0.1}


def test_near_edges():
  at = {'a': 9.0, 'b': 0.901, 'c': 0.0, 'd': 3, 'e': 0.0}
  assert near_edges(SPACE, at) == [('a', 'high'), ('b', 'low')]
  assert near_edges(SPACE, at | {'a': 1.0, 'b': 0.99}) == []
  assert near_edges(SPACE, {'other': 1.0}) == []


@pytest.mark.parametrize('side', ['low', 'high'])
def test_widened(side):
  for key in 'ac' if side == 'low' else 'abc':
    parameter = SPACE[key]
    wider = parameter.widened(side)
    inner = wider.place(parameter.values[0]), wider.place(parameter.values[1])
    expected = (1 / 3, 1) if side == 'low' else (0, 2 / 3)
    assert inner == pytest.approx(expected, abs=1e-9)
  assert SPACE['d'].widened(side) == SPACE['d']
  assert Parameter('linear', (0.0, 1.0)).widened('low').values == (0.0, 1.0)
  assert SPACE['b'].widened('low').values == (0.0, 0.9999)


@pytest.mark.parametrize(
  ('row', 'reason'),
  [
    (('a', 'log', 0.0, 1.0), 'low > 0'),
    (('a', 'linear', 2.0, 1.0), 'low < high'),
    (('a', 'log', 1.0), 'no row|low < high'),
    (('a', 'reverse_log', 0.5, 1.0), 'high < 1'),
    (('a', 'square', 0.5, 1.0), 'unknown scale'),
    (('a', 'integer', 0.5, 1.0), 'whole numbers'),
    (('a', 'log', '1', 2.0), 'numbers'),
    (('a', 'log', 1.0, math.nan), 'numbers'),
    ('learning_rate.base', 'no row'),
    (5, 'no row'),
  ],
)
def test_bad_rows_are_refused(row, reason):
  with pytest.raises(ValueError, match=reason):
    make_space([row])


def test_keys_that_mean_nothing_are_refused():
  c = default()
  c.search.space = (('learning_rate.bse', 'log', 0.1, 1.0),)
  with pytest.raises(ConfigError, match=r'mean .learning_rate\.base'):
    workload.search_space(c)
  for key in ('search.trials', 'seed', 'epochs', 'data.crop_padding',
              'data.workers', 'model.mlp.hidden_sizes', 'target.value',
              'optimizer.decay_norms_and_biases'):  # fmt: skip
    c.search.space = ((key, 'integer', 1, 9),)
    with pytest.raises(ConfigError, match=f'cannot hold {key}'):
      workload.search_space(c)
  c.search.space = (('controller.every', 'log', 1, 9),)
  with pytest.raises(ConfigError, match='is a whole number'):
    workload.search_space(c)
  c.search.space = (('learning_rate.decay.final', 'log', 0.1, 0.9),)
  with pytest.raises(ConfigError, match='does not read'):
    workload.search_space(c)


def test_momentum_is_left_out_where_there_is_none():
  c = default()
  c.optimizer.name = 'nesterov'
  assert 'optimizer.momentum' in workload.search_space(c)
  c.optimizer.name = 'sgd'
  assert list(workload.search_space(c)) == ['learning_rate.base']


def test_a_goal_reached_exactly_is_not_reached():
  c = default()
  higher = {'loss': False, 'accuracy': True}
  for correct in range(1, 1000):
    c.target.value = correct / 1000
    goal = workload.make_goal(c)
    exactly = columns({'loss': 1.0, 'accuracy': correct / 1000}, higher)
    better = columns({'loss': 1.0, 'accuracy': (correct + 1) / 1000}, higher)
    assert not exactly[goal.metric] < goal.value
    assert better[goal.metric] < goal.value


def trial(number, errors, status=COMPLETE, every=10):
  steps = np.arange(1, len(errors) + 1) * every
  last = int(steps[-1]) if len(errors) else 0
  last += every if status == INFEASIBLE else 0
  columns = {'step': steps, ERROR: np.array(errors, float)}
  return Trial(number, {}, status, last, columns)


def test_later_trials_are_cut_where_an_earlier_one_was_done():
  trials = [
    trial(1, [0.5] * 9),
    trial(2, [0.5, 0.4, 0.3, 0.2, 0.1]),
    trial(3, [0.5] * 5, INFEASIBLE),
    trial(4, [0.5, 0.1, 0.1]),
    trial(5, [0.6], INFEASIBLE),
    trial(6, [0.5] * 3, INFEASIBLE),
    trial(7, [0.5] * 9, INCOMPLETE),
  ]
  judged = judge(trials, ERROR, 0.25)
  # 2 reaches the goal in 40 steps, so 3 is stopped before it diverges; 4 in 20.
  assert [(t.number, t.status, t.steps) for t in judged] == [
    (1, COMPLETE, 90),
    (2, COMPLETE, 40),
    (3, COMPLETE, 40),
    (4, COMPLETE, 20),
    (5, INFEASIBLE, 20),
    (6, COMPLETE, 20),
    (7, INCOMPLETE, 20),
  ]
  assert all(t.measurements['step'].max() <= t.steps for t in judged)
  assert judge(trials, ERROR, None) == trials


def test_a_later_trial_ends_no_earlier_one():
  goal = Goal(ERROR, 0.25)
  trials = [
    trial(2, [0.5, 0.5, 0.5, 0.2]),
    trial(3, [0.5] * 9),
    trial(5, [0.5, 0.2]),
    trial(6, [0.5, 0.5, 0.2], INFEASIBLE),
  ]
  # Point 1 is trial 2; it ends itself, and points before it go on.
  expected = [None, None, 40, 40, 40, 20, 20]
  assert limits(trials, goal, range(7)) == expected
  assert limits(trials[::-1], goal, range(7)) == expected
  assert limits([], goal, [3]) == [None]
  # What `judge` makes of trials is what they would have been, so ended.
  whole = [trial(i, [0.5] * 9) for i in range(1, 8)]
  ends = [limit or 90 for limit in expected]
  for t in trials[::2]:
    whole[t.number - 1] = trial(t.number, [*t.measurements[ERROR], 0.1, 0.1])
  judged = judge(whole, ERROR, 0.25)
  ends[1], ends[4] = 40, 20
  assert [t.steps for t in judged] == ends


def test_searches_of_a_study_share_no_luck():
  c = default()
  c.seed = 3
  sizes, optimizers = (8, 16, 32), ('sgd', 'nesterov')
  found = {
    (optimizer, size): workload.at_batch_size(c, optimizer, size).seed
    for optimizer in optimizers
    for size in sizes
  }
  assert len(set(found.values())) == 6
  assert all(0 <= seed < 2**31 for seed in found.values())
  # Every worker has the same, today and with the next version.
  assert found['sgd', 8] == workload.own_seed(3, 'sgd', 8) == OWN_SEED
  assert workload.own_seed(4, 'sgd', 8) != OWN_SEED
  tried = [
    p['a'] for s in found.values() for p in points(SPACE, 'halton', s, 9)
  ]
  assert len(set(tried)) == len(tried)


def test_judging_twice_changes_nothing():
  rng = np.random.default_rng(0)
  for _ in range(50):
    trials = [
      trial(i, rng.uniform(size=9), [COMPLETE, INFEASIBLE][rng.integers(2)])
      for i in range(1, 9)
    ]
    once = judge(trials, ERROR, 0.1)
    twice = judge(once, ERROR, 0.1)
    assert [t[:4] for t in twice] == [t[:4] for t in once]


def test_where_a_trial_stopped_by_itself_does_not_matter():
  """A worker may have let a trial run further than it needed to."""
  rng = np.random.default_rng(1)
  for _ in range(50):
    whole = [trial(i, rng.uniform(size=20)) for i in range(1, 7)]
    judged = judge(whole, ERROR, 0.05)
    some = [
      t._replace(
        steps=(n := int(rng.integers(j.steps // 10, 21))) * 10,
        measurements={k: v[:n] for k, v in t.measurements.items()},
      )
      for t, j in zip(whole, judged, strict=True)
    ]
    again = judge(some, ERROR, 0.05)
    assert [t[:4] for t in again] == [t[:4] for t in judged]
