"""What an update takes, as a rule is told it."""

import math

import jax
import numpy as np
import pytest

from adabatch.controllers import buckets
from adabatch.devices.messages import Call
from adabatch.train import update_times
from adabatch.train.build import build
from adabatch.train.calls import Progress
from adabatch.train.reports import Clock, Reports
from adabatch.train.update_times import UpdateTimes
from tests.experiments import digits

LADDER = buckets.ladder(8, 64, devices=1)


def call(size=8, count=1, *, decides=False):
  return Call(0, 0, count, buckets.plan(size, LADDER), decides=decides)


def test_it_is_the_mean_from_one_decision_to_the_next():
  times = UpdateTimes(1)
  got = [
    times.saw(call(count=count, decides=decides), seconds)
    for count, seconds, decides in (
      (4, 99.0, False),  # the first in its bucket
      (4, 1.0, False),
      (2, 0.0, False),  # read at once, as the one before came late
      (2, 0.6, True),
      (8, 7.0, False),
      (2, 1.0, True),
    )
  ]
  nan = math.nan
  np.testing.assert_allclose(got, [nan, nan, nan, 0.2, 0.2, 0.8])


def test_each_bucket_has_its_own_and_the_first_call_there_is_none():
  times = UpdateTimes(1)
  seconds = {8: 0.1, 16: 0.3}
  got = [
    times.saw(call(size, decides=True), seconds[size] + (k == 0))
    for size in (8, 16, 8)
    for k in range(3)
  ]
  nan = math.nan
  expected = [nan, 0.1, 0.1, nan, 0.3, 0.3, 0.1, 0.1, 0.1]
  np.testing.assert_allclose(got, expected)


def test_of_several_the_median_counts():
  """One that was disturbed is not believed; fewer tell nothing."""
  times = UpdateTimes(3)
  got = [
    times.saw(call(decides=True), seconds)
    for seconds in (9.0, 0.1, 5.0, 0.2, 0.3, 0.4)
  ]
  nan = math.nan
  np.testing.assert_allclose(got, [nan, nan, nan, 0.2, 0.3, 0.3])


def test_the_clock_of_the_first_process_counts(monkeypatch):
  """It is asked once at each decision, however many calls there are."""
  asked = []

  def of_first(value):
    asked.append(value)
    return 0.25

  monkeypatch.setattr(update_times, 'of_first_process', of_first)
  times = UpdateTimes(1)
  for _ in range(2):
    for k in range(4):
      got = times.saw(call(decides=k == 3), 0.5)
  assert (asked, got) == ([0.5, 0.5], 0.25)


class Observed:
  """In place of a rule: what it is fed with."""

  measured, follows, losses_below_minimum = True, True, 0
  pending = False

  def __init__(self):
    self.updates = []

  def observe(self, update):
    self.updates.append(update)


@pytest.mark.parametrize('name', ['goodput', 'noise_scale'])
def test_time_in_which_the_clock_stands_still_is_not_in_it(name, monkeypatch):
  """And nobody is asked where nobody reads."""
  if name != 'goodput':
    monkeypatch.setattr(update_times, 'of_first_process', None)
  config = digits(**{'controller.name': name, 'controller.goodput.windows': 1})
  parts = build(config, jax.devices()[:1])
  now = [0.0]
  clock, observed = Clock(now=lambda: now[0]), Observed()
  reports = Reports(parts, Progress(next_evaluation=10**9), observed, clock)
  for k in range(4):
    one = call(count=2, decides=True)._replace(update=2 * k)
    reports.add(one, np.zeros((1, 2, 9), np.float32))
    now[0] += 0.5
    list(reports.observe())
    with clock.paused():  # to compile, to evaluate, to save
      now[0] += 100.0
  got = [u.usual_seconds for u in observed.updates]
  known = 0.25 if name == 'goodput' else math.nan
  np.testing.assert_allclose(got, [math.nan] * 2 + [known] * 6)
