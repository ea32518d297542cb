"""What a rule is fed, what is done with its answer, and in which order."""

import json

import jax
import numpy as np
import pytest

from adabatch import controllers
from adabatch.config import ConfigError
from adabatch.controllers import GradientNoise, Signals, buckets
from adabatch.devices.messages import Call, Report
from adabatch.train.build import build
from adabatch.train.calls import Progress, Update
from adabatch.train.decisions import Decisions, Measure
from adabatch.train.not_finite import Diverged
from adabatch.train.reports import Reports
from tests.experiments import digits


def measure(update, examples):
  """Evaluates 100 examples for a loss that nobody can round by accident."""
  return {'full_loss': 1.23456789}, 100


def make(controller, *, measure=measure, largest=64, devices=1, saved=None):
  return Decisions(
    controller,
    buckets.ladder(8, largest, devices=devices),
    Measure(measure),
    initial_batch_size=8,
    num_examples=200,
    saved=saved,
  )


def host(decisions):
  """As a checkpoint has it."""
  return json.loads(json.dumps(decisions.host()))


def recorder(every=2, needs=('full_loss', 'loss')):
  """A rule that keeps its signals and asks for 8, 9, 10 ... examples."""
  seen = []

  def update(state, signals):
    seen.append(signals)
    return 8.0 + len(seen), Signals(update=len(seen))

  controller = controllers.BatchSizeController(
    init=Signals,
    update=update,
    needs=frozenset(needs),
    due=lambda update: update % every == 0,
  )
  return controller, seen


REPORT = Report(0.123456, 98765.4, 0.0123456, 7.0, 8.0, 0.0, 1.0)
NOISE = GradientNoise(33333.333, 0.00123456)
PLAN = buckets.plan(8, buckets.ladder(8, 64, devices=1))


def done(
  update, examples, report=REPORT, noise=None, *, plan=PLAN, decides=False
):
  return Update(update, examples, 0.0, plan, decides, report, noise)


def test_signals_are_complete_and_as_they_were_measured():
  controller, seen = recorder()
  taken = []

  def measured(update, examples):
    taken.append(len(seen))
    return measure(update, examples)

  decisions = make(controller, measure=measured)
  decisions.decide(0, 0)
  for update, decides in ((1, False), (2, True)):
    decisions.observe(
      done(update, 50 * update, noise=NOISE, decides=decides)._replace(
        usual_seconds=0.0123
      )
    )
  reported = {
    'loss': 0.123456,
    'gradient_norm_squared': 98765.4,
    'learning_rate': 0.0123456,
    'gradient_noise': NOISE,
    'batch_size': 8,
    'seconds_per_update': 0.0123,
  }
  assert seen == [
    Signals(0, 0, 0.0, full_loss=1.23456789),
    Signals(1, 50, 0.25, **reported),
    Signals(2, 100, 0.5, **reported, full_loss=1.23456789),
  ]
  assert taken == [0, 2]  # only where a decision is due
  assert decisions.evaluated_examples == 200
  assert decisions.nominal == 11.0


def test_an_update_without_an_estimate_was_measured_in_vain():
  """Not None: a rule would take that for a loop that never measures."""
  controller, seen = recorder()
  decisions = make(controller)
  decisions.observe(done(1, 50))
  assert np.isnan(seen[0].gradient_noise).all()
  decisions = make(controllers.noise_scale(initial_batch_size=8))
  decisions.observe(done(1, 50))
  assert decisions.nominal == 8


def test_cabs_is_not_fed_the_damping_that_its_size_causes():
  """The same signals at each update, asking for 256 where 64 can be run."""
  controller = controllers.cabs(initial_batch_size=8, c=2.0)
  decisions = make(controllers.every(controller, updates=1), largest=64)
  sizes, rates = [], []
  for update in range(1, 20):
    plan = decisions.plan()
    rates.append(0.1 * plan.damping)
    report = REPORT._replace(loss=0.5, learning_rate=rates[-1])
    noise = GradientNoise(640.0, 1.0)
    decisions.observe(done(update, 8 * update, report, noise, plan=plan))
    sizes.append(decisions.nominal)
  assert sizes == [256.0] * 19
  assert rates == [0.1] + [0.1 * 64 / 256] * 18


def test_cabs_converges_where_the_rate_grows_as_the_root_of_the_size():
  """B <- a sqrt(B), whose fixed point is a^2."""
  controller = controllers.cabs(initial_batch_size=8)
  decisions = make(controller, largest=1024)
  for update in range(1, 40):
    size = decisions.nominal  # a ladder without gaps
    report = REPORT._replace(loss=0.5, learning_rate=0.01 * size**0.5)
    noise = GradientNoise(800.0, 1.0)
    decisions.observe(done(update, 8 * update, report, noise))
  assert decisions.nominal == pytest.approx((0.01 * 800 / 0.5) ** 2, rel=1e-3)


def test_losses_below_the_minimum_are_counted():
  controller = controllers.every(
    controllers.adadamp(initial_batch_size=8, minimum_loss=0.1), updates=1
  )
  decisions = make(controller)
  for update, loss in enumerate([1.1, 0.6, 0.0, 0.0]):
    decisions.observe(done(update, 8, REPORT._replace(loss=loss)))
  assert decisions.losses_below_minimum == 0
  for _ in range(2):
    decisions.observe(done(5, 8, REPORT._replace(loss=-2.0)))
  held = decisions.nominal
  assert decisions.losses_below_minimum == 2
  again = make(controller, saved=host(decisions))
  again.observe(done(7, 8, REPORT._replace(loss=-2.0)))
  assert (again.losses_below_minimum, again.nominal) == (3, held)
  assert make(recorder()[0]).losses_below_minimum == 0


def test_what_was_saved_is_taken_up_again():
  first = make(recorder()[0])
  for update in range(3):
    first.decide(update, 10 * update)
  again = make(recorder()[0], saved=host(first))
  assert again.host() == first.host()
  assert (again.nominal, again.evaluated_examples) == (11.0, 300)
  fresh = make(recorder()[0]).host()
  assert again.host()['controller'] != fresh['controller']


def test_a_rule_that_cannot_go_on_is_an_error_of_the_config():
  controller = controllers.adadamp(
    initial_batch_size=8, loss_source='full', minimum_loss=50.0
  )
  with pytest.raises(ConfigError, match='minimum_loss'):
    make(controller).decide(0, 0)


@pytest.mark.parametrize(
  ('needs', 'measured'),
  [
    ((), False),
    (('update', 'examples', 'epoch'), False),
    (('examples', 'loss'), True),
    (('subset_loss',), True),
  ],
)
def test_only_some_rules_wait_for_the_devices(needs, measured):
  assert make(recorder(needs=needs)[0]).measured == measured


def test_a_measured_rule_will_likely_want_the_next_rung():
  decisions = make(recorder()[0], devices=2)
  likely = [buckets.Bucket(size, 1, 2) for size in (8, 16, 32)]
  assert decisions.likely_next(0, 0, 50) == likely[:2]
  decisions.nominal = 17.0
  assert decisions.likely_next(0, 0, 50) == likely[2:]
  decisions.nominal = 33.0
  assert decisions.likely_next(0, 0, 50) == []


def test_a_rule_that_grew_fast_will_likely_do_so_again():
  for before, now, slots in (
    (8, 8, [16, 32]),
    (8, 16, [32, 64]),
    (4, 16, [64, 32]),
  ):
    controller = recorder()[0]._replace(
      update=lambda s, _, n=now: (float(n), s)
    )
    decisions = make(controller)
    decisions.nominal = float(before)
    decisions.decide(0, 0)
    found = decisions.likely_next(0, 0, 50)
    assert [bucket.slots for bucket in found] == slots


def test_a_schedule_is_asked_what_it_will_want():
  """A table is read at the examples ahead, at an update where it decides."""
  table = controllers.step_table(table='0:8 1000:64')
  decisions = make(controllers.every(table, updates=20))
  decisions.decide(0, 0)
  before = decisions.host()
  for examples, ahead, likely in ((0, 999, []), (0, 1000, [64]), (900, 99, [])):
    found = decisions.likely_next(examples // 8, examples, ahead)
    assert [bucket.slots for bucket in found] == likely
  assert decisions.host() == before

  # However far ahead they are, the next two come first.
  table = controllers.step_table(table='0:8 1000:16 9000:32 30000:64')
  decisions = make(controllers.every(table, updates=20))
  decisions.decide(0, 0)
  for ahead in (100_000, 10**7):
    found = decisions.likely_next(0, 0, ahead)
    assert [bucket.slots for bucket in found] == [16, 32]

  # Where it decides seldom, too.
  table = controllers.step_table(table='0:8 30000:16')
  decisions = make(controllers.every(table, updates=1001))
  decisions.decide(0, 0)
  found = decisions.likely_next(0, 0, 10**6)
  assert [bucket.slots for bucket in found] == [16]

  # By updates: 200 examples ahead are 25 updates of 8, and 40 is the next due.
  pad = controllers.padadamp(initial_batch_size=8, rate=1.0)
  decisions = make(controllers.every(pad, updates=20))
  decisions.decide(0, 0)
  slots = [bucket.slots for bucket in decisions.likely_next(0, 0, 200)]
  assert slots == [32, 64]
  assert decisions.likely_next(0, 0, 1)[0].slots == 32  # 28 at update 20


# Updates in flight.


class FakeClock:
  seconds = 10.0


def dispatched(update, count, rows, plan=PLAN):
  """A call with a decision after the last, and what its updates report."""
  reports = np.arange(9 * rows, dtype=np.float32).reshape(1, rows, 9)
  call = Call(update, 8 * update, count, plan, decides=True)
  return call, reports + update


class Observed:
  """In place of a rule: what it is fed with."""

  measured, follows, losses_below_minimum = True, True, 0
  pending = False

  def __init__(self):
    self.updates = []

  def waits(self, update, examples):
    return True

  def observe(self, update):
    self.updates.append(update)


def reports_to(observed, clock):
  config = digits(**{'log.every_updates': 10**9})
  parts = build(config, jax.devices()[:1])
  return Reports(parts, Progress(next_evaluation=10**9), observed, clock)


def test_updates_come_back_in_order():
  clock, observed = FakeClock(), Observed()
  reports, got = reports_to(observed, clock), observed.updates
  for update, count in ((0, 1), (1, 4), (5, 2)):
    reports.add(*dispatched(update, count, rows=4))
  assert list(reports.observe(keep=3)) == got == []
  clock.seconds = 12.0
  records = list(reports.observe(keep=2))
  assert len(got) == 1
  clock.seconds = 20.0
  records += reports.observe()
  assert list(reports.observe()) == []
  assert [u.update for u in got] == list(range(1, 8))
  assert [u.examples for u in got] == list(range(8, 64, 8))
  # The call of four took from 12 to 20; the last was ready at once.
  assert [u.seconds for u in got] == [12, 14, 16, 18, 20, 20, 20]
  assert {u.plan for u in got} == {PLAN}
  assert [u.update for u in got if u.decides] == [1, 5, 7]
  assert [u.report.loss for u in got] == [0, 1, 10, 19, 28, 5, 14]
  assert got[2].report == Report(*range(10, 19))
  # A decision is recorded.
  assert [(kind, r['update']) for kind, r in records] == [
    ('train', 1), ('train', 5), ('train', 7)
  ]  # fmt: skip
  assert list(reports.log_last()) == []


def test_a_decision_is_recorded_while_the_next_call_runs():
  reports = reports_to(observed := Observed(), FakeClock())
  assert list(reports.follow(*dispatched(0, 2, rows=2))) == []
  assert [u.update for u in observed.updates] == [1, 2]  # and it decided
  told = reports.follow(*dispatched(2, 2, rows=2))
  assert next(told)[1]['update'] == 2
  assert len(observed.updates) == 2  # before anything is waited for
  assert list(told) == []
  # Before a checkpoint all of it is there.
  assert [r['update'] for _, r in reports.observe()] == [4]
  assert list(reports.observe()) == []


def test_an_estimate_that_is_not_finite_is_none():
  observed = Observed()
  reports = reports_to(observed, FakeClock())
  for column in (3, 4):
    call, rows = dispatched(1, 1, rows=1)
    rows[0, 0, column] = np.nan
    reports.add(call, rows)
  reports.add(*dispatched(2, 1, rows=1))
  list(reports.observe())
  got = [u.noise for u in observed.updates]
  assert got == [None, None, GradientNoise(5, 6)]


@pytest.mark.parametrize(('column', 'what'), [(0, 'loss'), (1, 'gradient')])
def test_a_loss_or_gradient_that_is_not_finite_ends_it(column, what):
  reports = reports_to(Observed(), FakeClock())
  call, rows = dispatched(1, 1, rows=1)
  rows[0, 0, column] = np.nan
  reports.add(call, rows)
  with pytest.raises(Diverged, match=f'the {what} of update 2 is not finite'):
    list(reports.observe())


def test_between_decisions_only_rules_that_follow_updates_are_asked():
  for needs, asked in ((('full_loss',), [0, 2]), (('loss',), [0, 1, 2])):
    controller, seen = recorder(needs=needs)
    decisions = make(controller)
    decisions.decide(0, 0)
    decisions.observe(done(1, 8))
    decisions.observe(done(2, 16, decides=True))
    assert [signals.update for signals in seen] == asked


def test_updates_until_the_next_decision():
  decisions = make(recorder(every=7)[0])
  for update in range(20):
    for most in (1, 3, 30):
      later = range(update + 1, update + most)
      slow = next((k - update for k in later if k % 7 == 0), most)
      assert decisions.until_due(update, most) == slow


def test_guessing_costs_little_on_a_long_run():
  """A rule that never decides again is not searched to the end of the run."""
  asked = []

  def due(update):
    asked.append(update)
    return update == 0

  controller = controllers.constant(initial_batch_size=8)._replace(due=due)
  decisions = make(controller)
  assert decisions.likely_next(0, 0, ahead=10**12) == []
  assert len(asked) < 2000
