"""When replicas agree, and how many of them a device trains."""

import json

import numpy as np
import pytest

from adabatch.controllers import buckets
from adabatch.controllers.buckets import Bucket, Plan
from adabatch.devices.messages import Call
from adabatch.optim import sync
from adabatch.train.calls import Progress
from adabatch.train.replicas import Replicas
from adabatch.train.reports import Clock
from adabatch.train.tuning import Tuning, TuningRule, again, observe

BATCH = 8
PLAN = Plan(BATCH, BATCH, 1.0, Bucket(BATCH, 1, 1))


def after(updates):
  """Where a run is whose batches were all alike."""
  examples = updates * BATCH
  return Progress(next_evaluation=10**9, update=updates, examples=examples)


def as_saved(replicas):
  return json.loads(json.dumps(replicas.host()))


def syncs(rule, updates, *, most=1):
  """Updates that end in a sync, as the loop would find them."""
  replicas = Replicas(rule, replicas=4)
  at, found, calls = after(0), [], []
  while at.update < updates:
    agree, count = replicas.next(at, PLAN, most=most, left=updates - at.update)
    assert 1 <= count <= most
    calls.append(count)
    if agree:
      found += range(at.update + 1, at.update + count + 1)
    call = Call(at.update, at.examples, count, PLAN, agree)
    replicas.dispatched(call, bytes_each=10)
    at.update, at.examples = call.after(count)
    # As if the run were resumed after each call.
    replicas = Replicas(rule, replicas=4, saved=as_saved(replicas))
  assert replicas.counts.syncs == len(found)
  assert replicas.counts.sync_bytes == 10 * len(found)
  return found, calls


@pytest.mark.parametrize('most', [1, 3, 100])
def test_every_period_and_the_last_update_end_in_a_sync(most):
  found, _ = syncs(sync.local_sgd(4), 18, most=most)
  assert found == [4, 8, 12, 16, 18]


@pytest.mark.parametrize('most', [1, 3, 100])
def test_post_local_begins_with_every_update(most):
  rule = sync.post_local_sgd(4, switch=5 * BATCH)
  found, _ = syncs(rule, 15, most=most)
  # The period after update 5 is the first long one.
  assert found == [1, 2, 3, 4, 5, 9, 13, 15]


def test_several_updates_in_a_call():
  _, calls = syncs(sync.local_sgd(6), 14, most=4)
  assert calls == [4, 1, 1, 4, 1, 1, 1, 1]
  _, calls = syncs(sync.local_sgd(1), 10, most=4)
  assert calls == [4, 4, 2]


def test_qsr_waits_longer_as_the_rate_falls():
  def rate(examples, batch_size):
    return 0.1 if examples < 8 * BATCH else 0.02

  found, _ = syncs(sync.qsr(4, 0.06, rate), 30)
  # The period that begins after update 8 is floor((0.06 / 0.02)^2).
  assert found == [4, 8, 17, 26, 30]
  # Damping is part of the learning rate.
  assert sync.qsr(4, 0.06, rate).period(0, BATCH, 0.2) == 9


def test_a_call_ends_where_the_rate_drops():
  """For replicas restart between two calls."""
  rule = sync.sma(1, 1.0, 0.9, replicas=4)
  replicas = Replicas(rule, replicas=4, drops=(3.5 * BATCH,))
  first = replicas.next(after(0), PLAN, most=9, left=20)
  later = replicas.next(after(4), PLAN, most=9, left=16)
  assert (first, later) == ((True, 4), (True, 9))


def test_a_period_ends_where_the_rate_drops():
  """Or what the replicas did in it would be lost."""
  rule = sync.sma(10, 1.0, 0.9, replicas=4)
  replicas = Replicas(rule, replicas=4, drops=(3.5 * BATCH,))
  assert replicas.next(after(0), PLAN, most=9, left=20) == (False, 3)
  assert replicas.next(after(3), PLAN, most=9, left=17) == (True, 1)


def test_one_model_agrees_at_every_update():
  replicas = Replicas(None, replicas=1)
  assert replicas.next(after(0), PLAN, most=7, left=9) == (False, 7)
  replicas.dispatched(Call(0, 0, 7, PLAN, False), bytes_each=10)
  assert (replicas.counts.syncs, replicas.counts.sync_bytes) == (7, 70)


def test_a_drop_restarts_once():
  rule = sync.sma(1, 1.0, 0.9, replicas=4)
  replicas = Replicas(rule, replicas=4, drops=(80.0, 160.0))
  due = [replicas.restart_due(e) for e in (0, 79, 80, 88, 159, 168, 400)]
  assert due == [False, False, True, False, False, True, False]
  still = sync.sma(1, 1.0, 0.9, replicas=4, restarts=False)
  assert not Replicas(still, replicas=4, drops=(80.0,)).restart_due(80)


# How many learners a device trains.

RULE = TuningRule(most=6, threshold=0.1, windows=5)


def settle(throughput, here=1, rule=RULE, noise=0.0, seed=0):
  """Numbers tried, the last of them for good."""
  rng = np.random.default_rng(seed)
  tuning, tried = Tuning(here), [here]
  for _ in range(1000):
    if tuning.phase == 'settled':
      return tried
    measured = throughput(tuning.here) * (1 + noise * rng.standard_normal())
    if rng.random() < 0.05 * bool(noise):
      measured /= 5  # somebody else was at work
    tuning = observe(tuning, measured, rule)
    if tuning.here != tried[-1]:
      tried.append(tuning.here)
  raise AssertionError('it never settles')


def saturating(best):
  """Throughput that grows by a half a learner up to some number."""
  return lambda here: 100 * 1.5 ** min(here, best)


def test_learners_are_added_while_that_pays():
  assert settle(saturating(4)) == [1, 2, 3, 4, 5, 4]
  assert settle(saturating(9)) == [1, 2, 3, 4, 5, 6]
  assert settle(saturating(1)) == [1, 2, 1]


def test_learners_are_given_up_where_they_bring_nothing():
  assert settle(saturating(2), here=4) == [4, 5, 3, 2, 1, 2]
  assert settle(lambda here: 100.0, here=3) == [3, 4, 2, 1]


def test_neither_at_a_gain_between_the_thresholds():
  """Of 7 %: too little for one more, too much for one less."""
  assert settle(lambda here: 100 * 1.07**here, here=3) == [3, 4, 2, 3]


@pytest.mark.parametrize('seed', range(20))
def test_noise_does_not_change_the_decision(seed):
  tried = settle(saturating(3), noise=0.02, seed=seed)
  assert tried[-1] == 3


def test_another_batch_size_begins_anew():
  tuning = Tuning(3, 'up', (1.0,), base=90.0, risen=True)
  assert again(tuning) == Tuning(2)
  assert again(tuning._replace(phase='down')) == Tuning(4)
  assert again(Tuning(3, 'settled')) == Tuning(3)


class Search:
  """A run of 100 examples a second, whatever the number of replicas."""

  def __init__(self, *, rows, saved=None):
    self.replicas = Replicas(
      sync.local_sgd(4),
      replicas=4,
      tuning=RULE,
      window=3,
      rows=rows,
      saved=saved,
    )
    self.at = after(0)
    self.clock = Clock(now=lambda: self.at.examples / 100)

  def train(self, updates, plan=PLAN):
    call = Call(self.at.update, self.at.examples, updates, plan, True)
    self.replicas.dispatched(call, bytes_each=10)
    self.at.update, self.at.examples = call.after(updates)

  def tune(self, plan=PLAN):
    return self.replicas.tune(self.at, plan, self.clock.seconds)

  def windows(self, count):
    """So many are measured; how each of them changed the number."""
    changes = []
    for _ in range(count):
      self.tune()
      self.train(3)
      changes.append(self.tune())
    return changes


def test_windows_follow_one_another():
  """They end after three updates; the next one begins an update later."""
  search, due = Search(rows=2), []
  for _ in range(9):
    due.append(search.replicas.tuning_due(search.at, PLAN))
    if due[-1]:
      assert search.tune() is None
    search.train(1)
  assert due == [True, False, False, True, True, False, False, True, True]


def test_a_window_ends_with_another_batch_size():
  """And what was tried is taken back; also where nothing is tried any more."""
  search = Search(rows=2)
  assert search.windows(5)[-1] == (4, 6, '100 examples/s')
  search.tune()
  search.train(1)
  assert not search.replicas.tuning_due(search.at, PLAN)
  larger = PLAN._replace(bucket=Bucket(2 * BATCH, 1, 1))
  assert search.replicas.tuning_due(search.at, larger)
  assert search.tune(larger) == (6, 4, 'another batch size')
  search.train(3, larger)
  search.tune(larger)
  assert search.replicas.counts.tuning['measured'] == (100.0,)

  search.windows(20)
  assert search.replicas.settled
  search.train(9)
  assert not search.replicas.tuning_due(search.at, PLAN)
  assert search.replicas.tuning_due(search.at, larger)
  search.tune(larger)
  assert not search.replicas.settled


def test_the_search_is_kept_in_checkpoints():
  search = Search(rows=2)
  search.windows(7)
  other = Search(rows=2, saved=as_saved(search.replicas))
  assert other.replicas.counts == search.replicas.counts
  assert other.replicas.counts.replicas == 6  # three on each of two rows
  assert other.windows(5) == search.windows(5)


@pytest.mark.parametrize(
  ('rows', 'replicas', 'here'), [(4, 4, 1), (1, 6, 6), (2, 6, 3)]
)
def test_a_search_goes_on_with_other_devices(rows, replicas, here):
  """As near as can be to the number there was."""
  search = Search(rows=2)
  search.windows(7)
  assert search.replicas.counts.replicas == 6
  other = Search(rows=rows, saved=as_saved(search.replicas)).replicas
  assert other.counts.replicas == replicas
  assert other.counts.tuning['here'] == here


# What replicas do to the ladder.


@pytest.mark.parametrize('replicas', [2, 3, 4])
def test_rungs_are_multiples_of_the_replicas(replicas):
  rungs = buckets.ladder(
    12, 1200, devices=1, growth=1.3, replicas=replicas
  ).batch_sizes
  assert rungs[0] == 12
  assert rungs[-1] == 1200
  assert all(rung % replicas == 0 for rung in rungs)
  assert all(a < b for a, b in zip(rungs, rungs[1:], strict=False))


def test_a_bucket_is_for_one_share():
  rungs = buckets.ladder(
    12, 48, devices=2, rounding='exact', replicas=3, max_per_device=4
  )
  plan = buckets.plan(25.0, rungs)
  assert plan.batch_size == 27
  assert plan.bucket == buckets.Bucket(4, 2, 2)  # 16 examples for each of three


def test_sizes_that_replicas_cannot_share_are_refused():
  with pytest.raises(ValueError, match='choose 12'):
    buckets.ladder(8, 24, devices=1, replicas=6)
