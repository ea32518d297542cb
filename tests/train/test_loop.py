"""The loop: what it yields and keeps, on runs so small that they take no time.

Their task, rule and data are the tests' own where something has to be known
beforehand.
"""

import json
import math
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch import data
from adabatch.config import ConfigError
from adabatch.config.files import WriteError, read_signed
from adabatch.devices.trainer import Trainer
from adabatch.train import train
from adabatch.train.build import build
from adabatch.train.checkpoints import Saved
from adabatch.train.inputs import Augmentation, make_load
from adabatch.train.loop import loop
from tests.experiments import digits, records

pytestmark = pytest.mark.usefixtures('compile_quickly')

EXAMPLES = 100  # in an epoch


def split(seed, examples=EXAMPLES):
  """Sorted by class, as some data sets are."""
  rng = np.random.default_rng(seed)
  arrays = {
    'image': rng.normal(seed, 1 + seed, (examples, 3, 3, 1)).astype(np.float32),
    'label': np.arange(examples) * 4 // examples,
  }
  return data.from_arrays(arrays, 4)


SPLITS = split(0), split(1, 30)


def config(**overrides):
  keys = {
    'epochs': 2.5,
    'model.mlp.hidden_sizes': (4,),
    'controller.name': 'constant',
  }
  return digits(**keys | overrides)


def make_parts(*, devices=1, splits=SPLITS, **overrides):
  return build(config(**overrides), jax.devices()[:devices], splits)


def with_recipe(parts, **changes):
  return parts._replace(recipe=parts.recipe._replace(**changes))


def scripted(parts, values):
  """Evaluations give what the list says; the last entry stays."""
  left = list(values)

  def summarize(means):
    assert means.keys() == left[0].keys()
    return dict(left.pop(0) if len(left) > 1 else left[0])

  return with_recipe(
    parts, task=parts.recipe.task._replace(summarize=summarize)
  )


class Ran:
  """A run, to its end.

  Attributes:
    events: in order, 'call' where updates are dispatched, the number of each
      train record, the names of the others, and 'save'.
    records: by their names.
    kept: checkpoints, as they would be restored.
    summary: the last record.
  """

  def __init__(self, parts, saved=None, *, asked=False, events=None, **how):
    """`asked`: whether it is asked to stop before it begins."""
    self.events = [] if events is None else events
    self.records, self.kept = {}, []

    class Stop(threading.Event):
      """Which is looked at with each call."""

      def is_set(event):  # noqa: N805
        self.events.append('call')
        return super().is_set()

    stop = Stop()
    if asked:
      stop.set()
    for kind, record in loop(parts, saved, self.save, stop=stop, **how):
      self.events.append(record['update'] if kind == 'train' else kind)
      self.records.setdefault(kind, []).append(record)
    (self.summary,) = self.records['summary']

  def save(self, update, state, host):
    self.events.append('save')
    # The next update reuses the arrays.
    state = jax.tree.map(jnp.copy, state)
    self.kept.append(Saved(update, state, json.loads(json.dumps(host))))

  def column(self, name, kind='train'):
    return [record[name] for record in self.records.get(kind, [])]

  @property
  def saves(self):
    return [saved.update for saved in self.kept]


# When things happen.


@pytest.mark.parametrize('most', [50, 2])
def test_everything_is_due_where_it_says(most, monkeypatch):
  """Evaluations by examples, checkpoints by updates, and calls end there."""
  parts = make_parts(
    updates_per_call=most,
    **{
      'eval.every_epochs': 0.6,
      'checkpoint.every_updates': 5,
      'controller.name': 'step_table',
      'controller.step_table.table': '0:16',
      'controller.every': 7,
      'controller.max_batch_size': 64,
    },
  )
  calls, dispatch = [], Trainer.dispatch

  def dispatched(trainer, call, **how):
    calls.append(call)
    return dispatch(trainer, call, **how)

  monkeypatch.setattr(Trainer, 'dispatch', dispatched)
  ran = Ran(parts)
  # 60 examples are reached with update 4, 120 with 8, 180 with 12, 240 with
  # 15; 250, the end, with 16.
  assert ran.column('update', 'eval') == [4, 8, 12, 15, 16]
  assert ran.saves == [5, 10, 15, 16]
  ends = [4, 5, 7, 8, 10, 12, 14, 15, 16]
  if most == 2:
    ends = [2, *ends]  # all others are that near
  assert np.cumsum([call.count for call in calls]).tolist() == ends
  decides = [call.update + call.count for call in calls if call.decides]
  assert decides == [7, 14]
  # The other way round: all has reported that was dispatched before.
  done = [event for event in ran.events if event != 'call']
  assert done == [
    'start',
    *(1, 2, 3, 4, 'eval', 5, 'save', 6, 7, 8, 'eval', 9, 10, 'save'),
    *(11, 12, 'eval', 13, 14, 15, 'eval', 'save', 16, 'eval', 'save'),
    'summary',
  ]
  # The last batch is cut, so that the epochs are exact.
  assert (ran.summary['updates'], ran.summary['examples']) == (16, 250)
  assert ran.summary['epochs'] == 2.5
  assert ran.column('examples', 'eval') == [
    min(16 * u, 250) for u in (4, 8, 12, 15, 16)
  ]
  for line in ran.records['eval']:
    assert line['epoch'] == line['examples'] / EXAMPLES
  assert ran.column('examples') == [*range(16, 241, 16), 250]
  assert ran.column('batch_size') == [16] * 15 + [10]


def test_evaluations_where_floating_point_misses_the_multiple():
  """Every 35.2 examples, of which the fifth time falls on 176 exactly."""
  ran = Ran(
    make_parts(
      splits=(split(0, 88), split(1, 30)),
      **{'epochs': 3.0, 'eval.every_epochs': 0.4},
    )
  )
  assert ran.column('update', 'eval') == [3, 5, 7, 9, 11, 14, 16, 17]


@pytest.mark.parametrize(
  ('overrides', 'updates', 'calls'),
  [
    ({'max_updates': 9}, 9, 1),
    ({'epochs': 0.96}, 6, 1),  # exactly
    ({'epochs': 0.97}, 7, 2),  # a batch of one is another size
  ],
)
def test_the_end(overrides, updates, calls):
  ran = Ran(
    make_parts(updates_per_call=50, **{'eval.every_epochs': 9.0} | overrides)
  )
  assert ran.summary['status'] == 'completed'
  assert ran.summary['updates'] == updates
  assert ran.column('update') == list(range(1, updates + 1))
  assert ran.column('update', 'eval') == ran.saves == [updates]
  assert ran.events.count('call') == calls


def test_an_update_reports_while_the_next_ones_run():
  ran = Ran(make_parts(max_updates=4))
  assert ran.events[:9] == [
    *('start', 'call', 'call', 'call', 1, 'call', 2, 3, 4)
  ]


def test_a_run_that_is_cut_has_no_evaluation_of_its_own():
  """And goes on as one that was not cut."""
  parts = make_parts(max_updates=8, **{'eval.every_epochs': 0.6})
  cut = Ran(parts, cut=6)
  assert cut.summary['status'] == 'completed'
  assert cut.column('update', 'eval') == [4]
  assert cut.saves == [6]
  rest = Ran(parts, cut.kept[-1])
  (start,) = rest.records['start']
  assert start == {
    'update': 6, 'examples': 96, 'over': False, 'network': NETWORK,
  }  # fmt: skip
  whole = Ran(parts)
  assert cut.column('loss') + rest.column('loss') == whole.column('loss')
  assert rest.summary['final'] == whole.summary['final']


@pytest.mark.parametrize('rule', ['constant', 'adadamp'])
def test_the_clock_stands_still_while_it_evaluates_and_keeps(rule):
  """But runs while something is measured for a decision."""
  nap, slept = 0.15, 0.0
  parts = make_parts(
    max_updates=4,
    **{
      'controller.name': rule,
      'controller.every': 2,
      'eval.every_epochs': 0.15,
      'checkpoint.every_updates': 1,
    },
  )

  def summarize(means):
    time.sleep(nap)
    return means

  task = parts.recipe.task._replace(summarize=summarize)
  stop = threading.Event()
  for kind, record in loop(
    with_recipe(parts, task=task),
    save=lambda *what: time.sleep(nap),
    stop=stop,
  ):
    slept += 2 * nap * (kind == 'eval')
    summary = record
  assert slept == 8 * nap
  if rule == 'constant':
    assert summary['seconds'] < slept / 2
  else:  # after updates 2 and 4; what comes before the first is no training
    assert 2 * nap <= summary['seconds'] < 2 * nap + slept / 2


# What the rule reads and says.


def test_decisions_act_on_the_next_update_and_are_logged():
  """F(x_0) = 1, then 1/2 after three updates and 1/8 after six."""
  overrides = {
    'epochs': 100.0,
    'max_updates': 10,
    'controller.name': 'adadamp',
    'controller.every': 3,
    'eval.every_epochs': 100.0,
  }
  values = [
    {'loss': x, 'accuracy': 0.0} for x in (1.0, 0.5, 0.125, 0.125, 0.1, 0.1)
  ]
  ran = Ran(scripted(make_parts(**overrides), values))
  # No batch is larger than the set.
  assert ran.column('batch_size') == [16] * 3 + [32] * 3 + [100] * 4
  assert ran.column('nominal_batch_size') == [16] * 3 + [32] * 3 + [128] * 4
  # Before the first update and after updates 3, 6 and 9.
  assert ran.summary['loss_evaluation_examples'] == 4 * EXAMPLES

  seldom = make_parts(**overrides | {'log.every_updates': 5})
  some = Ran(scripted(seldom, [{'loss': 1.0, 'accuracy': 0.0}]))
  assert some.column('update') == [3, 5, 6, 9, 10]


def test_a_loss_that_is_not_above_the_minimum_is_said_once():
  """F - F* is 1, 0.5 and then nothing: the size stays at twice the first."""
  parts = make_parts(
    max_updates=7,
    epochs=100.0,
    **{
      'controller.name': 'adadamp',
      'controller.adadamp.minimum_loss': 1.0,
      'controller.every': 2,
    },
  )
  losses = [{'loss': loss, 'accuracy': 0.0} for loss in (2.0, 1.5, 1.0)]
  ran = Ran(scripted(parts, losses))
  assert ran.column('nominal_batch_size') == [16.0] * 2 + [32.0] * 5
  assert ran.summary['losses_below_minimum'] == 2
  (said,) = [
    note
    for note in ran.records['note']
    if 'adadamp.minimum_loss' in note['text']
  ]
  assert said['update'] == 4
  assert 'update 4' in said['text']
  assert 'stays at 32;' in said['text']
  # Nor is it said again by a run that goes on.
  again = Ran(
    scripted(parts._replace(end=parts.end._replace(updates=11)), losses[-1:]),
    ran.kept[-1],
  )
  assert again.summary['losses_below_minimum'] == 4
  assert not any('minimum_loss' in n['text'] for n in again.records['note'])


# Evaluations and the target.

SERIES = [(3.0, 0.2), (1.0, 0.5), (2.0, 0.5), (0.5, 0.6), (0.75, 0.25)]
VALUES = [{'loss': a, 'accuracy': b} for a, b in SERIES]


def test_final_and_best():
  parts = make_parts(devices=2, **{'eval.every_epochs': 0.5})
  ran = Ran(scripted(parts, VALUES))
  # The clock runs on between the two.
  assert ran.summary['device_seconds'] >= 2 * ran.summary['seconds']
  shown = zip(ran.column('loss', 'eval'), ran.column('accuracy', 'eval'),
              strict=True)  # fmt: skip
  assert list(shown) == SERIES
  assert set(ran.column('split', 'eval')) == {'validation'}
  assert ran.summary['final'] == {
    'validation': {'loss': 0.75, 'accuracy': 0.25}
  }
  assert ran.summary['best'] == {'validation': {'loss': 0.5, 'accuracy': 0.6}}
  assert ran.summary['target']['reached'] is False
  assert ran.summary['target']['updates'] is None


@pytest.mark.parametrize(
  ('metric', 'value', 'evaluation'),
  [('accuracy', 0.5, 4), ('accuracy', 0.49, 2), ('loss', 1.0, 4)],
)
def test_the_target_is_to_be_beaten(metric, value, evaluation):
  parts = make_parts(
    **{
      'eval.every_epochs': 0.5,
      'target.metric': metric,
      'target.value': value,
    }
  )
  ran = Ran(scripted(parts, VALUES))
  assert ran.summary['status'] == 'target_reached'
  lines = ran.records['eval']
  assert len(lines) == evaluation
  target = ran.summary['target']
  assert target['updates'] == ran.summary['updates'] == lines[-1]['update']
  assert target['examples'] == ran.summary['examples']
  assert target['seconds'] == pytest.approx(lines[-1]['seconds'])
  assert ran.saves == [ran.summary['updates']]


# Divergence.


def steep(parts, position):
  """The gradient of the example at a position of the run is far too large; its
  loss is not."""
  recipe = parts.recipe

  def load_train(seed):
    load = recipe.inputs.load_train(seed)

    def loaded(arrays, indices, positions):
      batch = load(arrays, indices, positions)
      return {**batch, 'steep': positions[1] == position}

    return loaded

  def loss(logits, batch):
    nothing = (logits - jax.lax.stop_gradient(logits)).sum(-1)
    added = jnp.where(batch['steep'], 1e30 * nothing, 0.0)
    return recipe.task.loss(logits, batch) + added

  return with_recipe(
    parts,
    inputs=recipe.inputs._replace(load_train=load_train),
    task=recipe.task._replace(loss=loss),
  )


@pytest.mark.parametrize('most', [1, 6])
def test_a_gradient_that_is_not_finite_ends_the_run(most):
  parts = make_parts(updates_per_call=most)
  ran = Ran(steep(parts, 50))
  assert ran.summary['status'] == 'diverged'
  assert ran.summary['diverged_update'] == 4
  assert ran.summary['message'] == 'the gradient of update 4 is not finite'
  assert ran.column('update') == [1, 2, 3]
  assert ran.column('loss') == Ran(parts).column('loss')[:3]
  assert ran.kept == []


LARGE = {'learning_rate.base': 1e30}  # the loss after an update overflows
INFINITE = {**LARGE, 'optimizer.weight_decay': 1e20}  # the update itself does


@pytest.mark.parametrize('overrides', [LARGE, INFINITE])
def test_a_last_update_that_diverges(overrides):
  """Its own loss and gradient are finite; what it leaves is not."""
  ran = Ran(make_parts(max_updates=1, **overrides))
  assert ran.summary['status'] == 'diverged'
  assert ran.summary['diverged_update'] == 1
  assert ran.summary['best'] == {}
  assert 'eval' not in ran.records
  assert ran.column('update') == [1]
  assert ran.kept == []


def test_a_result_that_is_not_finite_is_not_kept():
  """Where a checkpoint is due and no evaluation."""
  overrides = {**INFINITE, 'checkpoint.every_updates': 1}
  ran = Ran(make_parts(max_updates=5, **overrides))
  assert ran.summary['diverged_update'] == 1
  assert ran.kept == []


# Stopping and going on.


def test_a_resumed_run_keeps_its_accounts():
  parts = make_parts(
    max_updates=9, **{'controller.name': 'adadamp', 'controller.every': 3}
  )
  first = Ran(parts, asked=True)
  assert first.summary['status'] == 'preempted'
  assert 0 < first.summary['updates'] < 9
  assert first.saves == [first.summary['updates']]
  # At first and after update 3, when the stop is not known yet.
  assert first.summary['loss_evaluation_examples'] == 2 * EXAMPLES
  # The clock of the first start showed a thousand seconds more.
  first.kept[-1].host['progress']['seconds'] += 1000
  last = Ran(parts, first.kept[-1])
  assert last.summary['status'] == 'completed'
  assert last.summary['loss_evaluation_examples'] == 4 * EXAMPLES
  assert first.column('update') + last.column('update') == list(range(1, 10))
  seconds = last.column('seconds')
  assert seconds == sorted(seconds)
  assert last.summary['seconds'] >= seconds[-1] >= seconds[0] >= 1000
  # Since the last update before, not since the start of all.
  assert min(last.column('examples_per_second')) > 0.5


def test_updates_are_counted_however_the_run_ends():
  """Also in the middle of many that are alike."""
  parts = make_parts(updates_per_call=2, **{'eval.every_epochs': 9.0})
  for ran in (
    Ran(parts),
    Ran(parts, cut=5),
    Ran(parts, asked=True),
    Ran(steep(parts, 50)),
  ):
    assert 0 < ran.summary['updates'] <= 16
    assert ran.summary['sync_count'] == ran.summary['updates']


def test_another_number_of_replicas_takes_no_time_of_training():
  """Making the programs of a resumed run is not training."""

  def replicas(number):
    return make_parts(
      max_updates=4,
      **{'sync.name': 'local_sgd', 'sync.replicas': number},
    )

  one = Ran(replicas(1), cut=2)
  saved = one.kept[-1]
  began = loop(replicas(2), saved)
  assert next(began) == (
    'start',
    {'update': 2, 'examples': 32, 'over': False, 'network': NETWORK},
  )
  time.sleep(0.5)  # opening the files
  kinds, (_, told) = next(began), next(began)
  assert kinds[1]['text'].startswith('update 2: 1 -> 2 replicas')
  assert told['update'] == 3
  assert 0 <= told['seconds'] - saved.host['progress']['seconds'] < 0.5
  *_, (_, summary) = began
  assert (summary['replicas'], summary['updates']) == (2, 4)


# The generator itself.


@pytest.fixture
def threads():
  """Asserts that no threads were left behind."""
  before = set(threading.enumerate())
  yield
  deadline = time.monotonic() + 20  # some are about to end
  while left := set(threading.enumerate()) - before:
    assert time.monotonic() < deadline, left
    time.sleep(0.01)


NETWORK = 'mlp: 60 parameters, fed with 3 x 3 x 1, on 1 device'
STREAM = {'data.placement': 'streaming', 'data.workers': 0}


@pytest.mark.usefixtures('threads')
def test_the_first_record_comes_before_anything_and_the_last_is_the_summary():
  kept = []
  records = loop(
    make_parts(max_updates=2, **STREAM, **{'checkpoint.every_updates': 1}),
    save=lambda update, state, host: kept.append(update),
  )
  kind, record = next(records)
  assert kind == 'start'
  assert record == {
    'update': 0, 'examples': 0, 'over': False, 'network': NETWORK,
  }  # fmt: skip
  assert kept == []
  kinds = [kind for kind, _ in records]
  assert kinds == ['train', 'train', 'eval', 'summary']
  assert kept == [1, 2]


@pytest.mark.usefixtures('threads')
def test_what_is_refused_is_refused_before_the_first_record(tmp_path):
  parts = make_parts(
    **{
      'controller.name': 'adadamp',
      'controller.adadamp.minimum_loss': 1000.0,
    }
  )
  key = r'^controller\.adadamp\.minimum_loss=1000'
  with pytest.raises(ConfigError, match=key):
    next(loop(parts))
  with pytest.raises(ConfigError, match=key):
    train(parts.config, tmp_path / 'run', splits=SPLITS)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures('threads')
def test_a_run_that_is_over_says_so_and_does_nothing():
  parts = make_parts(max_updates=2)
  done = Ran(parts)
  again = Ran(parts, done.kept[-1])
  assert again.records['start'][0] == {
    'update': 2, 'examples': 32, 'over': True, 'network': NETWORK,
  }  # fmt: skip
  assert again.events == ['start', 'save', 'summary']
  assert again.summary['final'] == done.summary['final']


@pytest.mark.usefixtures('threads')
@pytest.mark.parametrize('last', ['start', 'train', 'eval', 'summary', None])
def test_closing_it_ends_the_run_where_it_is(last):
  kept, seen = [], []
  records = loop(
    make_parts(
      **STREAM,
      **{
        'max_updates': 6,
        'checkpoint.every_updates': 1,
        'eval.every_epochs': 0.3,  # after updates 2, 4 and 6
        # Another program is compiled ahead.
        'controller.name': 'geodamp',
        'controller.max_batch_size': 64,
      },
    ),
    save=lambda update, state, host: kept.append(update),
  )
  while last is not None:
    kind, record = next(records)
    seen.append(kind)
    if kind == last:
      break
  records.close()
  assert (
    seen
    == {
      None: [],
      'start': ['start'],
      'train': ['start', 'train'],
      'eval': ['start', 'train', 'train', 'eval'],
      'summary': [
        *('start', 'train', 'train', 'eval', 'train', 'train', 'eval'),
        *('train', 'train', 'eval', 'summary'),
      ],
    }[last]
  )
  # An evaluation comes before the checkpoint of the same update.
  assert kept == list(range(1, {'eval': 2, 'summary': 7}.get(last, 1)))
  assert list(records) == []


@pytest.mark.usefixtures('threads')
def test_a_checkpoint_that_cannot_be_kept_ends_it():
  def save(update, state, host):
    raise OSError('the disk is full')

  with pytest.raises(OSError, match='full'):
    list(loop(make_parts(max_updates=2, **STREAM), save=save))


@pytest.mark.usefixtures('threads')
def test_records_that_cannot_be_written_end_it(tmp_path):
  class Stop(threading.Event):
    def is_set(self):  # at the first update
      (tmp_path / 'summary.json').mkdir(exist_ok=True)
      return super().is_set()

  with pytest.raises(WriteError, match=r'summary\.json \(Is a directory\)'):
    train(config(max_updates=2, **STREAM), tmp_path, splits=SPLITS, stop=Stop())


def test_a_directory_holds_what_was_yielded(tmp_path):
  overrides = {
    'max_updates': 6,
    'eval.every_epochs': 0.4,
    'checkpoint.every_updates': 4,
  }
  ran = Ran(make_parts(**overrides))
  devices = jax.devices()[:1]
  summary = train(config(**overrides), tmp_path, devices=devices, splits=SPLITS)
  assert read_signed(tmp_path / 'summary.json') == summary
  timing = {'seconds', 'examples_per_second'}
  for kind in ('train', 'eval'):
    written = records(tmp_path, kind)
    for line, record in zip(written, ran.records[kind], strict=True):
      assert line.keys() == {'kind', *record}
      assert all(line[k] == record[k] for k in record.keys() - timing)
  same = ('status', 'updates', 'examples', 'final', 'best', 'sync_count')
  assert {k: summary[k] for k in same} == {k: ran.summary[k] for k in same}
  names = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
  assert names == set(map(str, ran.saves))


# What is trained and evaluated on.


def test_inputs_are_standardised_by_the_training_split():
  parts = make_parts(seed=5, **{'data.crop_padding': 1, 'data.flip': True})
  inputs, statistics = parts.recipe.inputs, data.channel_statistics(SPLITS[0])
  assert parts.recipe.seed == 5
  indices = jnp.arange(30)
  positions = jnp.zeros(30, jnp.uint32), indices.astype(jnp.uint32)
  augmented = make_load(statistics, Augmentation(padding=1, flip=True), seed=5)
  for load, expected, where in (
    (inputs.load_train(5), augmented, positions),
    (inputs.load, make_load(statistics), None),
  ):
    for one in SPLITS:
      arrays = jax.tree.map(jnp.asarray, one.arrays)
      got, wanted = (f(arrays, indices, where) for f in (load, expected))
      for name in wanted:
        np.testing.assert_array_equal(got[name], wanted[name])
  arrays = jax.tree.map(jnp.asarray, SPLITS[0].arrays)
  other = inputs.load_train(6)(arrays, indices, positions)
  mine = inputs.load_train(5)(arrays, indices, positions)
  assert (other['image'] != mine['image']).any()


TRAINING, EVALUATION = list(range(24)), list(range(24, 34))


def labelled(labels):
  """Each example has a class of its own, by which it is known."""
  rng = np.random.default_rng(0)
  arrays = {
    'image': rng.normal(size=(len(labels), 2, 2, 1)).astype(np.float32),
    'label': np.array(labels),
  }
  return data.from_arrays(arrays, len(TRAINING + EVALUATION))


def measured(source, *, to_the_end=False, **overrides):
  """The examples of each pass over data, in order.

  To decide about the first update, and then to report on the only one.
  """
  parts = make_parts(
    splits=(labelled(TRAINING), labelled(EVALUATION)),
    max_updates=1,
    **{
      'controller.name': 'adadamp',
      'controller.adadamp.loss_source': source,
      'eval.max_per_device': 7,
    }
    | overrides,
  )
  task, seen = parts.recipe.task, []
  names = list(map(str, TRAINING + EVALUATION))

  def metrics(logits, batch):
    assert len(logits) == 7
    which = jax.nn.one_hot(batch['label'], len(names)).T
    return task.metrics(logits, batch) | dict(zip(names, which, strict=True))

  def summarize(means):
    found = {int(name): means.pop(name) for name in names}
    found = {label: share for label, share in found.items() if share}
    # Each counts once.
    assert list(found.values()) == pytest.approx([1 / len(found)] * len(found))
    seen.append(list(found))
    return means

  records = loop(
    with_recipe(
      parts,
      task=task._replace(
        metrics=metrics,
        summarize=summarize,
        metric_names=(*task.metric_names, *names),
      ),
    )
  )
  if to_the_end:
    list(records)
  else:
    next(records)
    records.close()
  return seen


def test_what_is_evaluated_on():
  """The evaluation split to report, the training split to decide."""
  assert measured('ema', to_the_end=True) == [EVALUATION]
  assert measured('full', to_the_end=True) == [TRAINING, EVALUATION]
  assert measured('subset', **{'controller.subset_size': 1000}) == [TRAINING]
  drawn = []
  for seed in (0, 0, 1, 2**32):
    (some,) = measured('subset', seed=seed, **{'controller.subset_size': 12})
    assert len(some) == 12
    # From all over a set that is sorted.
    assert {label // 6 for label in some} == {0, 1, 2, 3}
    drawn.append(some)
  assert drawn[0] == drawn[1] != drawn[2] != drawn[3] != drawn[0]


def test_a_loss_of_the_evaluation_that_is_not_finite_ends_the_run():
  values = [
    {'loss': 1.0, 'accuracy': 0.5},
    {'loss': math.inf, 'accuracy': 0.5},
  ]
  ran = Ran(scripted(make_parts(**{'eval.every_epochs': 0.5}), values))
  assert ran.summary['status'] == 'diverged'
  assert ran.summary['diverged_update'] == 7
  assert ran.summary['message'] == (
    'the validation loss of update 7 is not finite'
  )
  assert ran.summary['final'] == {'validation': values[0]}
  assert ran.kept == []
