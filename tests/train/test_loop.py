"""The loop: what it does when, on runs so small that only compiling counts."""

import math
import threading

import jax
import numpy as np
import pytest

from adabatch import data
from adabatch.devices import steps
from adabatch.devices.evaluate import Evaluator
from adabatch.devices.updates import Updates
from adabatch.train import assembly, experiment, inputs
from adabatch.train import loop as train_lib
from adabatch.train.clock import Clock
from adabatch.train.loop import Run, train
from adabatch.train.workdir import Workdir
from tests.experiments import column, digits, records

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


def run(workdir, *, devices=1, stop=None, splits=SPLITS, **overrides):
  return train(
    config(**overrides),
    workdir,
    devices=jax.devices()[:devices],
    splits=splits,
    stop=stop,
  )


@pytest.fixture
def events(monkeypatch):
  """What a run does, in order; during pauses nothing may be under way."""
  events = []

  def spy(name, method):
    def phase(self):
      assert list(self.in_flight.take()) == [], 'not all have reported'
      assert self.clock.seconds == self.clock.seconds, 'the clock runs on'
      events.append((name, self.progress.update))
      return method(self)

    return phase

  for name in ('evaluate', 'checkpoint'):
    monkeypatch.setattr(Run, name, spy(name, getattr(Run, name)))

  dispatch = Updates.run

  def run_updates(self, program, position, plan, count, *, stop):
    events.append(('run', position, count))
    return dispatch(self, program, position, plan, count, stop=stop)

  log = Run.log

  def log_update(self, done):
    events.append(('log', done.update))
    log(self, done)

  monkeypatch.setattr(Updates, 'run', run_updates)
  monkeypatch.setattr(Run, 'log', log_update)
  return events


def at(events, name):
  return [event[1] for event in events if event[0] == name]


@pytest.fixture
def scripted(monkeypatch):
  """Evaluations give what the list says; the last entry stays."""
  script = []

  def metrics(self, state):
    return dict(script.pop(0) if len(script) > 1 else script[0])

  monkeypatch.setattr(Evaluator, 'metrics', metrics)
  return script


# When things happen.


def test_everything_is_due_where_it_says(tmp_path, events):
  """Evaluations by examples, checkpoints by updates, and calls end there."""
  summary = run(
    tmp_path,
    updates_per_call=50,
    **{
      'eval.every_epochs': 0.6,
      'checkpoint.every_updates': 5,
      'controller.name': 'step_table',
      'controller.step_table.table': '0:16',
      'controller.every': 7,
    },
  )
  # 60 examples are reached with update 4, 120 with 8, 180 with 12, 240 with
  # 15; 250, the end, with 16.
  assert at(events, 'evaluate') == [4, 8, 12, 15, 16]
  assert at(events, 'checkpoint') == [5, 10, 15, 16]
  calls = [event[1:] for event in events if event[0] == 'run']
  ends = (0, 4, 5, 7, 8, 10, 12, 14, 15, 16)
  assert calls == [
    (16 * a, b - a) for a, b in zip(ends, ends[1:], strict=False)
  ]
  assert events.index(('evaluate', 15)) < events.index(('checkpoint', 15))
  # The last batch is cut, so that the epochs are exact.
  assert (summary['updates'], summary['examples']) == (16, 250)
  assert summary['epochs'] == 2.5
  lines = records(tmp_path, 'eval')
  assert [(line['update'], line['examples']) for line in lines] == [
    (u, min(16 * u, 250)) for u in (4, 8, 12, 15, 16)
  ]
  assert all(line['epoch'] == line['examples'] / EXAMPLES for line in lines)
  assert column(tmp_path, 'examples') == [*range(16, 241, 16), 250]
  assert column(tmp_path, 'batch_size') == [16] * 15 + [10]


def test_evaluations_where_floating_point_misses_the_multiple(tmp_path, events):
  """Every 35.2 examples, of which the fifth time falls on 176 exactly."""
  run(
    tmp_path,
    splits=(split(0, 88), split(1, 30)),
    **{'epochs': 3.0, 'eval.every_epochs': 0.4},
  )
  assert at(events, 'evaluate') == [3, 5, 7, 9, 11, 14, 16, 17]


@pytest.mark.parametrize(
  ('overrides', 'updates', 'calls'),
  [
    ({'max_updates': 9}, 9, [0]),
    ({'epochs': 0.96}, 6, [0]),  # exactly
    ({'epochs': 0.97}, 7, [0, 96]),  # a batch of one is another size
  ],
)
def test_the_end(tmp_path, events, overrides, updates, calls):
  summary = run(
    tmp_path, updates_per_call=50, **{'eval.every_epochs': 9.0} | overrides
  )
  assert summary['status'] == 'completed'
  assert summary['updates'] == updates
  assert column(tmp_path, 'update') == list(range(1, updates + 1))
  assert at(events, 'evaluate') == at(events, 'checkpoint') == [updates]
  assert at(events, 'run') == calls


def test_an_update_reports_while_the_next_one_runs(tmp_path, events):
  run(tmp_path, max_updates=4)
  order = [event[:2] for event in events if event[0] in ('run', 'log')]
  assert order[:8] == [
    ('run', 0),
    ('run', 16),
    ('log', 1),
    ('run', 32),
    ('log', 2),
    ('run', 48),
    ('log', 3),
    ('log', 4),
  ]


def test_decisions_act_on_the_next_update_and_are_logged(tmp_path, scripted):
  """F(x_0) = 1, then 1/2 after three updates and 1/8 after six."""
  scripted += [
    {'loss': x, 'accuracy': 0.0} for x in (1.0, 0.5, 0.125, 0.125, 0.1, 0.1)
  ]
  overrides = {
    'epochs': 100.0,
    'max_updates': 10,
    'controller.name': 'adadamp',
    'controller.every': 3,
    'eval.every_epochs': 100.0,
  }
  summary = run(tmp_path / 'all', **overrides)
  # No batch is larger than the set.
  sizes = [16] * 3 + [32] * 3 + [100] * 4
  assert column(tmp_path / 'all', 'batch_size') == sizes
  nominal = [16] * 3 + [32] * 3 + [128] * 4
  assert column(tmp_path / 'all', 'nominal_batch_size') == nominal
  # Before the first update and after updates 3, 6 and 9.
  assert summary['loss_evaluation_examples'] == 4 * EXAMPLES

  scripted[:] = [{'loss': 1.0, 'accuracy': 0.0}]
  run(tmp_path / 'some', **overrides | {'log.every_updates': 5})
  assert column(tmp_path / 'some', 'update') == [3, 5, 6, 9, 10]


def test_a_loss_that_is_not_above_the_minimum_is_said_once(
  tmp_path, scripted, capsys
):
  """F - F* is 1, 0.5 and then nothing: the size stays at twice the first."""
  scripted += [{'loss': loss, 'accuracy': 0.0} for loss in (2.0, 1.5, 1.0)]
  summary = run(
    tmp_path,
    max_updates=7,
    **{
      'controller.name': 'adadamp',
      'controller.adadamp.minimum_loss': 1.0,
      'controller.every': 2,
    },
  )
  assert column(tmp_path, 'nominal_batch_size') == [16.0] * 2 + [32.0] * 5
  assert summary['losses_below_minimum'] == 2
  said = [
    line
    for line in capsys.readouterr().err.splitlines()
    if 'adadamp.minimum_loss' in line
  ]
  assert len(said) == 1
  assert 'update 4' in said[0]
  assert 'stays at 32;' in said[0]


# Evaluations and the target.

SERIES = [(3.0, 0.2), (1.0, 0.5), (2.0, 0.5), (0.5, 0.6), (0.75, 0.25)]


def test_final_and_best(tmp_path, scripted):
  scripted += [{'loss': a, 'accuracy': b} for a, b in SERIES]
  summary = run(tmp_path, devices=2, **{'eval.every_epochs': 0.5})
  # The clock runs on between the two.
  assert summary['device_seconds'] >= 2 * summary['seconds']
  assert len(records(tmp_path, 'eval')) == len(SERIES)
  assert summary['final'] == {'validation': {'loss': 0.75, 'accuracy': 0.25}}
  assert summary['best'] == {'validation': {'loss': 0.5, 'accuracy': 0.6}}
  assert summary['target']['reached'] is False
  assert summary['target']['updates'] is None


@pytest.mark.parametrize(
  ('metric', 'value', 'evaluation'),
  [('accuracy', 0.5, 4), ('accuracy', 0.49, 2), ('loss', 1.0, 4)],
)
def test_the_target_is_to_be_beaten(
  tmp_path, scripted, metric, value, evaluation
):
  scripted += [{'loss': a, 'accuracy': b} for a, b in SERIES]
  summary = run(
    tmp_path,
    **{
      'eval.every_epochs': 0.5,
      'target.metric': metric,
      'target.value': value,
    },
  )
  assert summary['status'] == 'target_reached'
  lines = records(tmp_path, 'eval')
  assert len(lines) == evaluation
  target = summary['target']
  assert target['updates'] == summary['updates'] == lines[-1]['update']
  assert target['examples'] == summary['examples']
  assert target['seconds'] == pytest.approx(lines[-1]['seconds'])


def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path, monkeypatch):
  dispatch = Updates.run

  def run_updates(self, program, position, *args, **kwargs):
    reports = dispatch(self, program, position, *args, **kwargs)
    column = steps.StepSignals._fields.index('gradient_norm_squared')
    return reports.at[..., column].set(np.inf) if position == 48 else reports

  monkeypatch.setattr(Updates, 'run', run_updates)
  summary = run(tmp_path)
  assert summary['status'] == 'diverged'
  assert summary['diverged_update'] == 4
  assert column(tmp_path, 'update') == [1, 2, 3]


LARGE = {'learning_rate.base': 1e30}  # the loss after an update overflows
INFINITE = {**LARGE, 'optimizer.weight_decay': 1e20}  # the update itself does


@pytest.mark.parametrize('overrides', [LARGE, INFINITE])
def test_a_last_update_that_diverges(tmp_path, overrides):
  """Its own loss and gradient are finite; what it leaves is not."""
  summary = run(tmp_path, max_updates=1, **overrides)
  assert summary['status'] == 'diverged'
  assert summary['diverged_update'] == 1
  assert summary['best'] == {}
  assert records(tmp_path, 'eval') == []
  assert column(tmp_path, 'update') == [1]
  assert not list((tmp_path / 'checkpoints').glob('[0-9]*'))


def test_a_result_that_is_not_finite_is_not_kept(tmp_path):
  """Where a checkpoint is due and no evaluation."""
  overrides = {**INFINITE, 'checkpoint.every_updates': 1}
  summary = run(tmp_path, max_updates=5, **overrides)
  assert summary['diverged_update'] == 1
  assert not list((tmp_path / 'checkpoints').glob('[0-9]*'))


def test_best_is_a_number_if_there_is_one():
  for higher in (True, False):
    for values in ((0.5, math.nan), (math.nan, 0.5)):
      assert train_lib.better(*values, higher=higher) == 0.5


# Stopping and going on.


def test_a_resumed_run_keeps_its_accounts(tmp_path, monkeypatch):
  overrides = {
    'max_updates': 9,
    'controller.name': 'adadamp',
    'controller.every': 3,
  }
  stop = threading.Event()
  stop.set()
  # The clock of the first start shows a thousand seconds more.
  with monkeypatch.context() as m:
    m.setattr(train_lib, 'Clock', lambda seconds=0.0: Clock(seconds + 1000))
    first = run(tmp_path, stop=stop, **overrides)
  assert first['status'] == 'preempted'
  assert 0 < first['updates'] < 9
  assert first['loss_evaluation_examples'] == EXAMPLES
  last = run(tmp_path, **overrides)
  assert last['status'] == 'completed'
  assert last['loss_evaluation_examples'] == 4 * EXAMPLES
  assert column(tmp_path, 'update') == list(range(1, 10))
  seconds = column(tmp_path, 'seconds')
  assert seconds == sorted(seconds)
  assert last['seconds'] >= seconds[-1] >= 1000
  # Since the last update before, not since the start of all.
  assert min(column(tmp_path, 'examples_per_second')[first['updates'] :]) > 0.5


# What the parts are made of.


def make_run(tmp_path, **overrides):
  c = config(**overrides)
  parts = experiment.build(c, jax.devices()[:1], SPLITS)
  return Run(c, parts, Workdir(tmp_path), threading.Event())


def test_inputs_are_standardised_by_the_training_split(tmp_path, monkeypatch):
  made = []

  def make_load(statistics, **how):
    made.append((statistics, how))
    return original(statistics, **how)

  original = inputs.make_load
  monkeypatch.setattr(inputs, 'make_load', make_load)
  make_run(tmp_path, seed=5, **{'data.crop_padding': 1, 'data.flip': True})
  for statistics, _ in made:
    np.testing.assert_array_equal(
      statistics, data.channel_statistics(SPLITS[0])
    )
  hows = sorted((how for _, how in made), key=len)
  assert hows == [{}, {'seed': 5, 'padding': 1, 'flip': True}]


def test_what_is_evaluated_on(tmp_path, monkeypatch):
  """The evaluation split to report, the training split to decide."""
  made = []

  def make(model, task, load, pieces, **_):
    arrays, _ = next(pieces.open())
    images = np.asarray(arrays['image'])
    assert (len(images), pieces.slots) == (pieces.examples, 7)
    made.append((images, np.asarray(arrays['label'])))

  monkeypatch.setattr(assembly, 'Evaluator', make)

  def evaluators(source, **overrides):
    made.clear()
    overrides |= {
      'controller.name': 'adadamp',
      'controller.adadamp.loss_source': source,
      'eval.max_per_device': 7,
    }
    make_run(tmp_path, **overrides)
    np.testing.assert_array_equal(made[-1][0], SPLITS[1].arrays['image'])
    return made[:-1]

  assert evaluators('ema') == []
  ((images, _),) = evaluators('full')
  np.testing.assert_array_equal(images, SPLITS[0].arrays['image'])
  ((images, _),) = evaluators('subset', **{'controller.subset_size': 1000})
  np.testing.assert_array_equal(images, SPLITS[0].arrays['image'])

  drawn = []
  for seed in (0, 0, 1):
    ((images, labels),) = evaluators(
      'subset', seed=seed, **{'controller.subset_size': 40}
    )
    assert len(images) == 40
    assert set(labels) == {0, 1, 2, 3}
    drawn.append(images.ravel().tolist())
  assert drawn[0] == drawn[1] != drawn[2]
