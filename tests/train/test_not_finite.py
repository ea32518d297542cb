"""What becomes of a run where something is not finite; see `on_nonfinite`.

One pixel of one example is not a number: it is the 71st in the data order, in
the ninth batch of eight, of which checkpoints are kept after every third.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch import data
from adabatch.config import ConfigError
from adabatch.controllers.buckets import Bucket, Plan
from adabatch.devices import feeds
from adabatch.devices.mesh import make_devices
from adabatch.devices.messages import Call, Report, pack, unpack
from adabatch.devices.trainer import Trainer
from adabatch.report.page import build_page
from adabatch.report.summary import describe
from adabatch.search.population import why_not
from adabatch.train import train
from adabatch.train.build import build, make_replicas
from adabatch.train.calls import Progress
from adabatch.train.checkpoints import Saved
from adabatch.train.loop import loop
from adabatch.train.reports import Reports
from tests.experiments import digits

pytestmark = pytest.mark.usefixtures('compile_quickly')

EXAMPLES, CLASSES, BATCH = 100, 4, 8
ORDER = data.Order(EXAMPLES, 0)
BAD = int(data.take(ORDER, 70, 71)[0])
TIMING = {'seconds', 'examples_per_second'}


def split(seed, bad=()):
  rng = np.random.default_rng(seed)
  image = rng.normal(size=(EXAMPLES, 3, 3, 1)).astype(np.float32)
  image[list(bad), 1, 1, 0] = np.nan
  label = np.arange(EXAMPLES) * CLASSES // EXAMPLES
  return data.from_arrays({'image': image, 'label': label}, CLASSES)


def config(**overrides):
  keys = {
    'epochs': 1.0,
    'model.mlp.hidden_sizes': (4,),
    'controller.name': 'constant',
    'controller.initial_batch_size': BATCH,
    'controller.max_batch_size': BATCH,
    'data.mean': (0.0,),
    'data.std': (1.0,),
    'checkpoint.every_updates': 3,
  }
  return digits(**keys | overrides)


def make_parts(on_nonfinite, *, devices=1, bad=(BAD,), **overrides):
  c = config(on_nonfinite=on_nonfinite, **overrides)
  return build(c, jax.devices()[:devices], (split(0, bad), split(1)))


class Ran:
  """A run to its end: its lines as a file would hold them, and what is kept."""

  def __init__(self, parts, saved=None):
    self.lines, self.kept, self.cuts, self.best = [], [], [], []

    def restore():
      return self.copied(*self.kept[-1]) if self.kept else None

    for kind, record in loop(
      parts, saved, self.save, save_best=self.save_best, restore=restore
    ):
      update = record.get('update')
      if kind == 'cut':
        self.cuts.append(update)
        self.lines = [x for x in self.lines if x['update'] <= update]
      elif kind in ('train', 'eval', 'skipped', 'rollback'):
        line = {k: v for k, v in record.items() if k not in TIMING}
        self.lines.append({'kind': kind} | line)
    self.summary = record

  def save(self, *saved):
    self.kept.append(self.copied(*saved))

  def save_best(self, update, state, host):
    self.best.append(update)

  def copied(self, update, state, host):
    """The next update reuses the arrays."""
    host = json.loads(json.dumps(host))
    return Saved(update, jax.tree.map(jnp.copy, state), host)

  def of(self, kind):
    return [line for line in self.lines if line['kind'] == kind]


def calls(parts, *batches):
  plan = Plan(BATCH, BATCH, 1.0, Bucket(*parts))
  return [Call(i, i * BATCH, 1, plan) for i in batches]


def dispatch(trainer, calls):
  """The state after them, and their reports [updates, replicas, 9]."""
  reports = []
  for call in calls:
    if not trainer.ready(call):
      trainer.compile(call)
    reports.append(trainer.dispatch(call, stop=False)[:, 0])
  return jax.tree.map(np.array, jax.device_get(trainer.state)), reports


def same(a, b):
  leaves = jax.tree.leaves(a), jax.tree.leaves(b)
  return all(x.tobytes() == y.tobytes() for x, y in zip(*leaves, strict=True))


# Left out.


@pytest.mark.parametrize(
  ('devices', 'overrides'),
  [
    (1, {'parallel.backend': 'pmap'}),
    (
      2,
      {
        'model.name': 'strided_cnn',
        'model.strided_cnn.channels': (2,),
        'model.strided_cnn.hidden_size': 2,
        'model.strided_cnn.batch_norm_group': 2,
        'ema.half_life': 20.0,
      },
    ),
  ],
)
def test_a_skipped_update_is_as_if_it_had_not_been(devices, overrides):
  """Of two microbatches on a device; with statistics and averages of both."""
  overrides = {'optimizer.name': 'adam'} | overrides
  parts = make_parts('skip', devices=devices, **overrides)
  bucket = BATCH // 2 // devices, 2, devices
  trainer = Trainer(parts.recipe)
  state, reports = dispatch(trainer, calls(bucket, 0, 8, 9))
  assert [Report(*r[0]).finite for r in reports] == [True, False, True]
  trainer.go_on(None, 1)
  twin, _ = dispatch(trainer, calls(bucket, 0, 9))
  trainer.close()
  assert same(state, twin)


def test_of_replicas_each_skips_its_own():
  overrides = {
    'sync.name': 'local_sgd',
    'sync.replicas': 2,
    'sync.local_steps': 2,
  }
  rows = {}
  for bad in ((), (BAD,)):
    parts = make_parts('skip', bad=bad, **overrides)
    trainer = Trainer(parts.recipe)
    before, after = (
      dispatch(trainer, calls((BATCH // 2, 1, 1), i))[0].replicas
      for i in (0, 8)
    )
    trainer.close()
    rows[bad] = [
      jax.tree.map(lambda x, k=k: x[k], state)
      for state in (before, after)
      for k in (0, 1)
    ]
  (*_, a, b), (before, _, skipped, other) = rows.values()
  assert same(skipped, before)
  assert not same(a, before)
  assert same(other, b)


class Observed:
  """In place of a rule: what it is fed with."""

  measured, losses_below_minimum = True, 0

  def __init__(self):
    self.reports = []

  def observe(self, done):
    self.reports.append(done.report)


class Stands:
  seconds = 1.0


def test_a_rule_is_fed_with_what_is_finite():
  """And an update that no replica did is not shown to it at all."""
  at, observed = Progress(next_evaluation=10**9), Observed()
  reports = Reports(make_parts('skip', bad=()), at, observed, Stands())
  plan = Plan(BATCH, BATCH, 1.0, None)
  one = np.array([Report(2.0, 3.0, *[1.0] * 5)])
  nan = np.array([Report(np.nan, np.inf, *[1.0] * 5)])
  rows = [[one, one], [one, nan], [nan, nan], [nan, one]]
  for i, pair in enumerate(rows):
    reports.add(Call(i, i * BATCH, 1, plan), np.stack(pair, 0))
  kinds = [(kind, r['update']) for kind, r in reports.observe()]
  assert [x for x in kinds if x[0] == 'skipped'] == [
    ('skipped', 2), ('skipped', 3), ('skipped', 4)
  ]  # fmt: skip
  assert [(r.loss, r.weight) for r in observed.reports] == [(2.0, 2.0)] * 3
  assert (at.skipped_updates, at.skipped_in_a_row) == (3, 3)


@pytest.mark.parametrize('placement', ['resident', 'streaming'])
def test_a_run_skips_and_says_so(placement):
  parts = make_parts(
    'skip',
    **{
      'data.placement': placement,
      'controller.name': 'adadamp',
      'controller.adadamp.loss_source': 'ema',
      'controller.every': 3,  # so that a decision is due after the ninth
    },
  )
  ran = Ran(parts)
  (line,) = ran.of('skipped')
  assert line['what'] == f'data (example {BAD})'
  assert line['skipped_updates'] == ran.summary['skipped_updates'] == 1
  assert ran.summary['status'] == 'completed'
  assert ran.summary['examples'] == EXAMPLES
  assert all(np.isfinite(x['nominal_batch_size']) for x in ran.of('train'))
  updates = [x['update'] for x in ran.lines if x['kind'] != 'eval']
  assert sorted(updates) == list(range(1, ran.summary['updates'] + 1))


def test_too_many_in_a_row_end_the_run():
  order = data.take(ORDER, 0, EXAMPLES)
  many = {'nonfinite.skips': 2}
  # Two, one that is well, and then three.
  bad = order[[8, 16, 32, 40, 48]]
  ran = Ran(make_parts('skip', bad=bad, **many))
  assert ran.summary['status'] == 'diverged'
  assert ran.summary['diverged_update'] == 7
  assert ran.summary['message'].endswith(
    'of update 7 is not finite (nonfinite.skips=2 were skipped before it)'
  )
  assert [x['update'] for x in ran.of('skipped')] == [2, 3, 5, 6]
  # Where the run is stopped and goes on is no matter.
  again = Ran(make_parts('skip', bad=bad, **many), ran.kept[-1])
  assert again.summary['message'] == ran.summary['message']


def lowered(on_nonfinite):
  trainer = Trainer(make_parts(on_nonfinite, bad=()).recipe)
  (call,) = calls((BATCH, 1, 1), 0)
  text = trainer.lower(trainer.variant(call)).as_text()
  trainer.close()
  return text


def test_only_skipping_changes_the_program():
  texts = {name: lowered(name) for name in ('stop', 'skip', 'rollback')}
  assert texts['rollback'] == texts['stop'] != texts['skip']
  assert texts['stop'].count('is_finite') < texts['skip'].count('is_finite')


# Back to a checkpoint.


def test_a_call_jumps_over_what_is_left_out():
  plan = Plan(BATCH, BATCH, 0.5, Bucket(BATCH, 1, 1))
  call = Call(6, 48, 1, plan, left_out=24, rate=0.25)
  plain = Call(9, 72, 1, plan)
  first = np.zeros((1, 1), int)
  (header,) = pack(call, np.zeros((1, 1, 1, 4), int), first, stop=False).header
  got = unpack(jnp.zeros(4, jnp.int32), jnp.asarray(header))
  assert (got.position.tolist(), got.examples) == ([0, 72], 48)
  assert (got.batch_size, got.damping) == (8, 0.125)
  feed = feeds.ResidentFeed(
    split(0).arrays, ORDER, make_devices(jax.devices()[:1]), 1
  )
  rows = [feed.take(c, 1, stop=False)[1].rows for c in (call, plain)]
  assert np.array_equal(*rows)


@pytest.fixture(scope='module')
def rolled_back():
  return Ran(make_parts('rollback'))


def test_a_run_goes_back_and_on_over_other_examples(rolled_back):
  first, second = rolled_back.of('rollback')
  assert first == {
    'kind': 'rollback',
    'update': 7,
    'examples': 48,
    'diverged_update': 9,
    'message': f'the data (example {BAD}) of update 9 is not finite',
    'rollbacks': 1,
    'rate': 0.5,
    'left_out_examples': 24,
  }
  assert second['diverged_update'] == 13  # where the next epoch has it
  summary = rolled_back.summary
  assert (summary['status'], summary['examples']) == ('completed', EXAMPLES)
  assert (summary['rollbacks'], summary['skipped_updates']) == (2, 0)
  lines = rolled_back.of('train')
  assert [x['update'] for x in lines] == list(range(1, 14))
  rates = [x['learning_rate'] / 0.02 / x['damping'] for x in lines]
  expected = [1] * 6 + [0.5] * 6 + [0.25]
  assert rates == pytest.approx(expected, rel=1e-6)


def test_it_is_the_run_that_starts_there_with_half_the_rate(rolled_back):
  """By hand, from the checkpoint of update 6."""
  clean = Ran(make_parts('rollback', bad=(), max_updates=6)).kept[-1]
  clean.host['progress'] |= {'rollbacks': 1, 'rate': 0.5, 'left_out': 24}
  there = Ran(make_parts('rollback'), clean)
  later = [x for x in rolled_back.lines if x['update'] > 6]
  assert later[0]['kind'] == 'rollback'
  assert later[1:] == there.lines


def test_the_best_of_what_is_done_again_is_forgotten():
  """Evaluated at each update; better and better until it goes back."""
  accuracy = iter([*range(1, 9), *[0] * 9])

  def summarize(means):
    return means | {'accuracy': float(next(accuracy))}

  parts = make_parts('rollback', **{'eval.every_epochs': 0.08})
  task = parts.recipe.task._replace(summarize=summarize)
  ran = Ran(parts._replace(recipe=parts.recipe._replace(task=task)))
  assert ran.summary['best']['validation']['accuracy'] == 6
  # That of update 8 is gone; that of 6 is written before the next checkpoint.
  assert ran.best[0] == 6
  assert 8 not in ran.best


def test_a_stream_goes_back_as_well(rolled_back):
  ran = Ran(make_parts('rollback', **{'data.placement': 'streaming'}))
  kinds, losses = (
    [
      [line.get(key) for line in lines]
      for lines in (ran.lines, rolled_back.lines)
    ]
    for key in ('kind', 'loss')
  )
  assert kinds[0] == kinds[1]
  assert ran.of('rollback') == rolled_back.of('rollback')
  known = [[x for x in values if x is not None] for values in losses]
  assert known[0] == pytest.approx(known[1], rel=1e-5)


def test_without_a_checkpoint_it_goes_back_to_the_start():
  """The rule as well, which had come to another batch size."""
  overrides = {
    'controller.name': 'adadamp',
    'controller.adadamp.loss_source': 'ema',
    'controller.every': 2,
    'checkpoint.every_updates': 1000,
    'max_updates': 9,
  }
  parts = make_parts('rollback', **overrides)
  ran = Ran(parts)
  record = ran.of('rollback')[-1]
  assert (record['update'], record['examples']) == (1, 0)
  trainer = Trainer(parts.recipe)
  (call,) = calls((BATCH, 1, 1), 0)
  call = call._replace(left_out=record['left_out_examples'])
  _, ((report,),) = dispatch(trainer, [call])
  trainer.close()
  assert ran.of('train')[0]['loss'] == float(report[0])
  sizes = [line['nominal_batch_size'] for line in ran.of('train')]
  assert sizes[0] == BATCH
  assert max(sizes) > BATCH


def test_it_goes_back_only_so_often():
  """To one checkpoint: each time is recorded, and over other examples."""
  bad = data.take(ORDER, 24, EXAMPLES)  # all after the third batch
  ran = Ran(make_parts('rollback', bad=bad, **{'nonfinite.rollbacks': 2}))
  assert ran.cuts == [3, 3]
  assert [(x['rollbacks'], x['rate']) for x in ran.of('rollback')] == [
    (1, 0.5), (2, 0.25)
  ]  # fmt: skip
  assert [x['left_out_examples'] for x in ran.of('rollback')] == [8, 16]
  assert ran.summary['status'] == 'diverged'
  assert ran.summary['rollbacks'] == 2
  assert ran.summary['diverged_update'] == 4
  assert [saved.update for saved in ran.kept] == [3]


def test_a_run_that_went_back_is_stopped_and_goes_on(tmp_path):
  """Cut in the stretch that is done again, where no checkpoint was due."""
  c = config(on_nonfinite='rollback', **{'checkpoint.best': True})
  c.eval.every_epochs = 0.2
  found = []
  for name, cuts in (('whole', [None]), ('cut', [10, None])):
    for last_update in cuts:
      summary = train(
        c,
        tmp_path / name,
        devices=jax.devices()[:1],
        splits=(split(0, [BAD]), split(1)),
        last_update=last_update,
      )
    lines = (tmp_path / name / 'metrics.jsonl').read_text().splitlines()
    lines = [
      {k: v for k, v in json.loads(line).items() if k not in TIMING}
      for line in lines
    ]
    found.append((lines, summary['final'], summary['best']))
  assert found[0] == found[1]
  lines = found[0][0]
  updates = {
    kind: [x['update'] for x in lines if x['kind'] == kind]
    for kind in ('train', 'rollback')
  }
  assert updates == {'train': list(range(1, 14)), 'rollback': [7, 13]}


def test_a_period_of_the_learning_rate_follows_it():
  """H = (alpha / rate)^2 of QSR: four times as long at half the rate."""
  parts = make_parts(
    'rollback',
    bad=(),
    **{'sync.name': 'qsr', 'sync.replicas': 2, 'sync.local_steps': 1},
  )
  replicas, plan = make_replicas(parts), Plan(BATCH, BATCH, 1.0, None)
  before, replicas.rate = replicas.period(0, plan), 0.5
  assert (before, replicas.period(0, plan)) == (25, 100)


# What is refused, and what is run otherwise.


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'on_nonfinite': 'go on'}, "unknown on_nonfinite 'go on': choose one of"),
    ({'nonfinite.skips': 0}, 'nonfinite.skips must be at least 1'),
    ({'nonfinite.rate_factor': 2.0}, r'rate_factor must be in \(0, 1\]'),
  ],
)
def test_what_means_nothing_is_refused(overrides, message):
  with pytest.raises(ConfigError, match=message):
    make_parts(**{'on_nonfinite': 'stop'} | overrides)


def test_trials_that_go_on_are_runs_of_their_own():
  keys = ['learning_rate.base']
  assert why_not(make_parts('stop', bad=()), keys) is None
  for name in ('skip', 'rollback'):
    assert name in why_not(make_parts(name, bad=()), keys)


def test_pages_and_words_count_them():
  known = {
    'status': 'completed',
    'updates': 9,
    'examples': 72,
    'epochs': 0.72,
    'seconds': 1.0,
    'final': {},
    'skipped_updates': 3,
    'rollbacks': 0,
  }
  page = build_page('run', [], [], known, {})
  assert '<dt>skipped updates</dt>' in page
  assert '<dt>rollbacks</dt>' not in page
  assert describe(known).endswith('of training, skipped updates: 3')
