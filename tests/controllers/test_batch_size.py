"""A rule in somebody's own loop decides as it does in the trainer."""

import itertools
import json
import math
import sys
from collections import deque

import numpy as np
import pytest

import adabatch
from adabatch import controllers as c
from adabatch.controllers import buckets, pytorch
from adabatch.controllers.base import OF_UPDATES, PROGRESS
from adabatch.devices.messages import Report
from adabatch.train.calls import Update
from adabatch.train.decisions import NO_ESTIMATE, Decisions, Measure
from tests.controllers.test_controllers import ALL, B0, random_signals

N = 1000  # examples of an epoch
LADDER = buckets.ladder(B0, 512, devices=1, damping_exponent=0.5)
EXACT = buckets.ladder(1, 4096, devices=1, rounding='exact')


def measured(signals):
  """What a pass over the data says."""
  return {
    name: value
    for name, value in signals._asdict().items()
    if name.startswith(('full_', 'subset_', 'critical_'))
  }


def of_update(signals):
  """But for the batch size, which is known."""
  return {name: getattr(signals, name) for name in OF_UPDATES - {'batch_size'}}


def plans_of_trainer(controller, ladder, signals):
  """As `train.loop` and `train.reports` drive the rule."""
  now = [signals[0]]
  decisions = Decisions(
    controller,
    ladder,
    Measure(lambda update, examples: (measured(now[0]), 0)),
    initial_batch_size=B0,
    num_examples=N,
  )
  decisions.decide(0, 0)
  plans, examples = [], 0
  for k, s in enumerate(signals[1:], start=1):
    plan = decisions.plan()
    plans.append(plan)
    examples += plan.batch_size
    now[0] = s
    due = decisions.due(k)
    if not decisions.measured:
      if due:
        decisions.decide(k, examples)
      continue
    rate = s.learning_rate * plan.damping
    report = Report(s.loss, s.gradient_norm_squared, rate, 1.0, 1.0, 0.0, 1.0)
    noise = s.gradient_noise
    decisions.observe(
      Update(
        k,
        examples,
        0.0,
        plan,
        due,
        report,
        noise,
        usual_seconds=s.seconds_per_update,
      )
    )
  return plans, decisions


def begin(controller, ladder, first):
  batch_size = adabatch.BatchSize(controller, ladder, num_examples=N)
  if not batch_size.started:
    batch_size.start(**only(batch_size.needs, first))
  return batch_size


def only(names, signals):
  return {name: getattr(signals, name) for name in names}


def go(batch_size, signals):
  """Feeds what is needed and no more; the plans that were run."""
  plans = []
  for s in signals:
    plan = batch_size.plan
    plans.append(plan)
    s = s._replace(learning_rate=s.learning_rate * plan.damping / plan.damping)
    batch_size.observe(**only(batch_size.needs, s))
  return plans


@pytest.mark.parametrize('ladder', [LADDER, EXACT], ids=['ladder', 'exact'])
@pytest.mark.parametrize('name', ALL)
def test_sizes_are_those_of_the_trainer(name, ladder):
  signals = random_signals(3)
  theirs, decisions = plans_of_trainer(ALL[name](), ladder, signals)
  batch_size = begin(ALL[name](), ladder, signals[0])
  assert go(batch_size, signals[1:]) == theirs
  assert batch_size.plan == decisions.plan()
  assert batch_size.nominal == decisions.nominal
  assert batch_size.examples == sum(plan.batch_size for plan in theirs)
  host = json.loads(json.dumps(decisions.host()))
  assert batch_size.state_dict()['state'] == host['controller']


@pytest.mark.parametrize('name', ALL)
def test_what_is_not_needed_changes_nothing(name):
  """Not even its kind is looked at: a device need not be waited for."""
  signals = random_signals(3)
  plain = begin(ALL[name](), LADDER, signals[0])
  batch_size = begin(ALL[name](), LADDER, signals[0])
  for s in signals[1:]:
    needs = batch_size.needs
    given = of_update(s) | measured(s)
    hidden = {key: object() for key in given if key not in needs}
    go(plain, [s])
    batch_size.observe(**given | hidden)
    assert batch_size.plan == plain.plan
    cost = {key for key in needs if key.startswith(('full_', 'subset_'))}
    assert not cost or ALL[name]().due(batch_size.updates)


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('k', [0, 1, 23])
def test_a_restart_changes_nothing(name, k):
  signals = random_signals(4)
  whole = begin(ALL[name](), LADDER, signals[0])
  plans = go(whole, signals[1:])
  first = begin(ALL[name](), LADDER, signals[0])
  go(first, signals[1 : k + 1])
  saved = json.loads(json.dumps(first.state_dict(), allow_nan=False))
  again = adabatch.BatchSize(ALL[name](), LADDER, num_examples=N)
  again.load_state_dict(saved)
  assert go(again, signals[k + 1 :]) == plans[k:]
  assert again.state_dict() == whole.state_dict()


def sizes(controller, **kwargs):
  return adabatch.BatchSize(controller, LADDER, **kwargs)


@pytest.mark.parametrize('name', [n for n in ALL if n != 'constant'])
def test_a_missing_signal_is_refused_and_nothing_counted(name):
  signals = random_signals(5)
  batch_size = begin(ALL[name](), LADDER, signals[0])
  while not batch_size.due:
    go(batch_size, [signals[batch_size.updates + 1]])
  before = batch_size.state_dict()
  for signal in batch_size.needs:
    s = signals[batch_size.updates + 1]
    given = only(batch_size.needs - {signal}, s)
    with pytest.raises(c.MissingSignal, match=repr(signal)) as error:
      batch_size.observe(**given)
    assert '\n' not in str(error.value)
    assert batch_size.state_dict() == before


def test_the_first_size_may_wait_for_a_measurement():
  rule = c.every(
    c.adadamp(initial_batch_size=B0, loss_source='full'), updates=2
  )
  batch_size = sizes(rule)
  assert batch_size.needs == {'full_loss'}
  for use in (lambda: batch_size.size, batch_size.observe, batch_size.take):
    with pytest.raises(c.MissingSignal, match=r'start\(full_loss=\.\.\.\)'):
      use()
  with pytest.raises(c.MissingSignal, match='update 0'):
    batch_size.start()
  batch_size.start(full_loss=np.float32(4.0))
  assert (batch_size.size, batch_size.needs) == (B0, frozenset())
  with pytest.raises(ValueError, match='known already'):
    batch_size.start(full_loss=4.0)
  batch_size.observe()
  assert batch_size.due
  assert batch_size.needs == {'full_loss'}
  batch_size.observe(full_loss=np.array(2.0))
  assert batch_size.size == 2 * B0
  again = sizes(rule)
  again.load_state_dict(batch_size.state_dict())  # no start
  assert again.size == 2 * B0


def test_a_rule_that_reads_progress_alone_is_asked_only_where_due():
  """One that integrates a schedule is dear to ask."""
  asked = []

  def schedule(examples):
    asked.append(examples)
    return 1 / (1 + examples)

  rule = c.from_lr_schedule(schedule, initial_batch_size=B0)
  batch_size = sizes(c.every(rule, updates=4))
  counts = []
  for _ in range(8):
    asked.clear()
    due = batch_size.due
    batch_size.observe()
    counts.append((due, bool(asked)))
  assert counts == 2 * [*3 * [(False, False)], (True, True)]


def test_epochs_are_counted_or_given():
  rule = c.geodamp(initial_batch_size=B0, delay_epochs=1)
  counting, told = sizes(rule, num_examples=B0), sizes(rule)
  assert (counting.epoch, told.epoch) == (0.0, None)
  counting.observe()
  told.observe(epoch=1.0)
  assert counting.size == told.size == 2 * B0
  assert counting.needs == frozenset()
  assert told.needs == {'epoch'}
  with pytest.raises(c.MissingSignal, match='epoch'):
    told.observe()
  with pytest.raises(ValueError, match='epoch'):
    counting.observe(epoch=1.0)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (
      lambda b: sizes(c.cabs(initial_batch_size=1)).observe(gradient_noise=1.0),
      'gradient_noise=1.0',
    ),
    (lambda b: b.observe(0, loss=1.0), 'examples=0.*at least 1'),
    (lambda b: b.observe(los=1.0), 'los=.*choose among epoch, loss,'),
    (lambda b: b.observe(update=1), 'update='),
    (lambda b: b.observe(batch_size=1), 'batch_size='),
    (lambda b: b.observe(loss=np.ones(3)), r'loss of shape \(3,\).*one number'),
    (lambda b: b.load_state_dict({'size': 3}), 'no state of a BatchSize'),
    (lambda b: b.load_state_dict(None), 'no state of a BatchSize'),
    (lambda b: sizes(c.constant(initial_batch_size=1), num_examples=0), '=0'),
    (lambda b: c.BatchSampler(b), 'num_examples=...'),
    (lambda b: pytorch.damp(b, b), 'BatchSize was given.*torch.optim'),
  ],
)
def test_mistakes_are_refused_in_one_line(call, message):
  batch_size = sizes(c.adadamp(initial_batch_size=B0))
  before = batch_size.state_dict()
  with pytest.raises(ValueError, match=message) as error:
    call(batch_size)
  assert '\n' not in str(error.value)
  assert batch_size.state_dict() == before


OTHERS = {
  'another value': lambda: c.adadamp(initial_batch_size=B0, decay=0.9),
  'another rule': lambda: c.adadamp_grad(initial_batch_size=B0),
  'a wrapper': lambda: c.monotone(c.adadamp(initial_batch_size=B0)),
}


def test_a_state_of_another_rule_or_ladder_is_refused():
  saved = sizes(c.adadamp(initial_batch_size=B0)).state_dict()
  for make in OTHERS.values():
    other = sizes(make())
    before = other.state_dict()
    with pytest.raises(ValueError, match='of the rule adadamp') as error:
      other.load_state_dict(saved)
    assert other.state_dict() == before
    assert '\n' not in str(error.value)
  same = c.adadamp(initial_batch_size=float(B0))
  other = adabatch.BatchSize(same, LADDER._replace(damping_exponent=1.0))
  with pytest.raises(ValueError, match='of the ladder'):
    other.load_state_dict(saved)
  # Devices change what is run at once, and no size.
  devices = LADDER._replace(devices=8, max_per_device=4)
  adabatch.BatchSize(same, devices).load_state_dict(saved)


def test_every_rule_says_how_it_was_made():
  rules = [make().rule for make in ALL.values()]
  assert len(set(rules)) == len(rules)
  for name, rule in zip(ALL, rules, strict=True):
    assert rule.startswith(name.split()[0]) or name == 'all wrappers'
    assert rule == ALL[name]().rule
    assert '0x' not in rule


class Prefetching:
  """Batches that are made ready `ahead` of their updates, as by workers."""

  def __init__(self, sampler, ahead):
    self.sampler, self.ahead = sampler, ahead

  def __iter__(self):
    source = iter(self.sampler)
    ready = deque(itertools.islice(source, self.ahead))
    while ready:
      rows = ready.popleft()
      ready.extend(itertools.islice(source, 1))
      yield rows


def growing(seed=0):
  rule = c.padadamp(initial_batch_size=4, rate=1.0)
  ladder = buckets.ladder(4, 32, devices=1, rounding='exact')
  batch_size = adabatch.BatchSize(rule, ladder, num_examples=100)
  return batch_size, c.BatchSampler(batch_size, seed=seed)


def passes(batch_size, sampler, ahead, updates):
  """The batches of so many updates, the last not followed by a request."""
  batches = []
  while True:
    for rows in Prefetching(sampler, ahead):
      batches.append(rows)
      batch_size.observe()
      if len(batches) == updates:
        return batches


@pytest.mark.parametrize('ahead', [1, 4])
def test_batches_follow_one_order(ahead):
  batch_size, sampler = growing()
  batches = passes(batch_size, sampler, ahead, 30)
  counts = [len(rows) for rows in batches]
  assert counts[0] == 4
  assert counts[-1] == 32
  assert batch_size.examples == sum(counts)
  rows = sum(batches, [])
  for epoch in range(len(rows) // 100):
    assert sorted(rows[100 * epoch : 100 * (epoch + 1)]) == list(range(100))
  assert rows[:100] != rows[100:200]
  assert rows[:100] != sum(passes(*growing(seed=1), 1, 30), [])[:100]
  # Words of 32 bits in a row would make these two one.
  late, long = (
    sum(passes(*growing(seed=s), 1, 30), []) for s in (5, 2**32 + 5)
  )
  assert late[100:200] != long[:100]


@pytest.mark.parametrize('ahead', [1, 4])
@pytest.mark.parametrize('k', [1, 5, 8, 13, 29])
def test_a_restart_within_an_epoch_gives_the_same_batches(ahead, k):
  whole = passes(*growing(), ahead, 30)
  batch_size, sampler = growing()
  first = passes(batch_size, sampler, ahead, k)
  saved = json.loads(json.dumps(batch_size.state_dict()))
  batch_size, sampler = growing()
  batch_size.load_state_dict(saved)
  assert first + passes(batch_size, sampler, ahead, 30 - k) == whole


def test_a_batch_may_hold_fewer_examples_than_were_taken():
  """A record that could not be read; the next batch keeps its own size."""
  batch_size, sampler = growing()
  source = iter(sampler)
  next(source)
  batch_size.observe(3)
  assert batch_size.examples == 3
  assert batch_size.taken == ()
  batch_size.take()
  batch_size.take()
  batch_size.observe(5 + 5)  # two at once
  assert batch_size.taken == ()


def test_a_look_at_the_first_batch_costs_nothing():
  batch_size, sampler = growing()
  assert next(iter(sampler)) == next(iter(sampler))
  assert batch_size.taken == (4,)


def test_a_loop_that_never_observes_is_told():
  _, sampler = growing()
  assert len(list(sampler)) == 25
  with pytest.raises(ValueError, match='no update was observed'):
    next(iter(sampler))


class Optimizer:
  """The part of torch's that is needed."""

  def __init__(self, *rates):
    self.param_groups = [{'lr': rate} for rate in rates]
    self.hooks, self.used = {}, []

  def register_step_pre_hook(self, hook):
    return self.register('pre', hook)

  def register_step_post_hook(self, hook):
    return self.register('post', hook)

  def register(self, when, hook):
    self.hooks[when] = hook
    handle = type('Handle', (), {})()
    handle.remove = lambda: self.hooks.pop(when)
    return handle

  def step(self, *, fail=False):
    self.hooks.get('pre', lambda *step: None)(self, (), {})
    self.used.append([group['lr'] for group in self.param_groups])
    if fail:
      raise RuntimeError
    self.hooks.get('post', lambda *step: None)(self, (), {})


def test_damping_lasts_for_a_step_and_reaches_all_groups():
  table = c.step_table(table=f'0:{B0} {B0}:2048 {2 * B0}:64')
  batch_size = sizes(table)
  optimizer = Optimizer(0.1, 0.3)
  wrapped = type('Accelerated', (), {'optimizer': optimizer})()
  end = pytorch.damp(wrapped, batch_size)
  rates = [0.1, 0.3]

  def now():
    return [group['lr'] for group in optimizer.param_groups]

  optimizer.step()
  assert optimizer.used[-1] == rates == now()
  batch_size.observe()
  assert batch_size.damping == 0.5
  with pytest.raises(RuntimeError):
    optimizer.step(fail=True)
  optimizer.step()  # damped once, although the last was not undone
  assert optimizer.used[-2:] == [[0.05, 0.15]] * 2
  assert now() == rates
  end()
  optimizer.step()
  assert optimizer.used[-1] == rates


def test_what_is_not_installed_is_named_in_one_line(monkeypatch):
  batch_size = sizes(c.constant(initial_batch_size=B0))
  for make, package in (
    (pytorch.hugging_face_callback, 'transformers'),
    (pytorch.lightning_callback, 'lightning'),
  ):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=f'pip install {package}'):
      make(batch_size)


def test_signals_that_are_neither_counted_nor_of_updates_take_a_pass():
  """What `needs` leaves out between two decisions."""
  for name in set(c.Signals._fields) - PROGRESS - OF_UPDATES:
    assert name.startswith(('full_', 'subset_', 'critical_'))
  assert all(math.isnan(value) for value in NO_ESTIMATE)


def test_a_rule_that_waits_for_what_never_comes():
  rule = c.constant(initial_batch_size=16)._replace(needs=frozenset({'los'}))
  with pytest.raises(
    ValueError, match="needs 'los', which is no signal: .* loss"
  ):
    c.BatchSize(rule, buckets.ladder(16, 16, devices=1))


def test_a_state_of_another_set_is_refused():
  rule, ladder = (
    c.constant(initial_batch_size=16),
    buckets.ladder(16, 16, devices=1),
  )
  saved = c.BatchSize(rule, ladder, num_examples=500).state_dict()
  with pytest.raises(ValueError, match='num_examples 500, but .* has 1797'):
    c.BatchSize(rule, ladder, num_examples=1797).load_state_dict(saved)
