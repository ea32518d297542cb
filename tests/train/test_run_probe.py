"""A run whose batch size follows branches of its own."""

import json
import threading

import jax
import numpy as np
import pytest

from adabatch.config import ConfigError
from adabatch.controllers import buckets
from adabatch.data.order import Order, indices
from adabatch.devices.trainer import Trainer
from adabatch.train import run_probe, train
from adabatch.train.build import build
from adabatch.train.calls import Progress
from adabatch.train.run_probe import calls_of, next_probe
from tests.experiments import digits, records

pytestmark = pytest.mark.usefixtures('compile_quickly')

# Probes at about 500, 1,000 and 2,000 examples, however many are evaluated on.
PROBING = {
  'epochs': 2.0,
  'controller.name': 'probe',
  'controller.every': 4,
  'controller.max_batch_size': 64,
  'controller.probe.repeats': 2,
  'controller.probe.updates': 2,
  'controller.probe.epsilon': 0.5,
  'controller.probe.cost': 4.0,
}


# What a run on one device is not another with.
CHANGE_NOTHING = {'buckets.min_per_device', 'data.placement', 'data.workers'}


def doubled(workdir):
  """Batch sizes of a run, each once, in the order in which they came."""
  sizes = [x['batch_size'] for x in records(workdir)]
  return list(dict.fromkeys(sizes))


@pytest.fixture(name='probing', scope='module')
def _probing(compile_quickly, tmp_path_factory):
  """The directory of a run on one device, and its summary."""
  workdir = tmp_path_factory.mktemp('probing')
  return workdir, train(digits(**PROBING), workdir, devices=jax.devices()[:1])


def test_doubles_where_it_costs_nothing_and_counts_what_that_cost(probing):
  workdir, summary = probing
  probes = records(workdir, 'probe')
  assert summary['probes'] == [
    {k: v for k, v in p.items() if k != 'kind'} for p in probes
  ]
  assert len(probes) >= 2
  assert doubled(workdir)[:3] == [16, 32, 64]
  for probe in probes:
    assert probe['tried'] == 2 * probe['batch_size']
    upper = probe['difference'] + probe['half_width']
    assert probe['doubles'] == (upper <= probe['epsilon'])
    assert probe['half_width'] > 0
    assert probe['probe_examples'] == 4 * probe['ahead']
    assert probe['ahead'] >= 2 * probe['tried']
  # Each before the record of the update it followed.
  lines = [
    json.loads(line)
    for line in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]
  for before, after in zip(lines, lines[1:], strict=False):
    if before['kind'] == 'probe':
      assert after['kind'] == 'train'
      assert after['update'] == before['update']
  for key in ('probe_examples', 'probe_evaluated_examples'):
    assert summary[key] == sum(p[key] for p in probes)
  assert 0 < summary['probe_seconds'] < summary['seconds']
  spent = summary['probe_examples'] + summary['probe_evaluated_examples']
  assert spent <= 4.0 * probes[-1]['examples']


def test_a_batch_that_costs_stays(tmp_path):
  """Half as many updates at a rate so low come half as far."""
  overrides = {'controller.probe.epsilon': 1e-3, 'learning_rate.base': 0.005}
  config = digits(**PROBING | overrides)
  train(config, tmp_path, devices=jax.devices()[:1])
  probes = records(tmp_path, 'probe')
  assert probes
  assert not any(p['doubles'] for p in probes)
  assert all(p['difference'] > p['half_width'] for p in probes)
  assert 32 not in doubled(tmp_path)


def test_a_probe_leaves_no_trace_but_the_size(probing, tmp_path):
  """The same losses as by a table that has its sizes."""
  lines = records(probing[0])
  sizes = [(x['examples'], x['batch_size']) for x in lines]
  steps = {0: sizes[0][1]}
  for (at, old), (_, new) in zip(sizes, sizes[1:], strict=False):
    if old != new:
      steps[at] = new
  table = ' '.join(f'{at}:{size}' for at, size in steps.items())
  given = {
    'controller.name': 'step_table',
    'controller.step_table.table': table,
  }
  train(digits(**PROBING | given), tmp_path, devices=jax.devices()[:1])
  losses = [x['loss'] for x in records(tmp_path)]
  assert losses == [x['loss'] for x in lines]
  assert len(steps) > 2


@pytest.mark.parametrize(
  'overrides',
  [
    {'buckets.min_per_device': 8},
    {'data.placement': 'streaming', 'data.workers': 0},
    {'optimizer.name': 'adamw', 'learning_rate.base': 0.001},
    {
      'model.name': 'strided_cnn',
      'model.strided_cnn.channels': (4,),
      'model.strided_cnn.hidden_size': 8,
      'model.strided_cnn.batch_norm_group': 8,
      # Its statistics are made of 1,024 examples each time.
      'controller.probe.cost': 12.0,
    },
    {'updates_per_call': 20, 'ema.half_life': 300.0},
  ],
  ids=['devices as needed', 'streaming', 'adamw', 'batch norm', 'many a call'],
)
def test_the_same_on_eight_devices(probing, tmp_path, overrides):
  config = digits(**PROBING | overrides)
  one, eight = probing[0], tmp_path / '8'
  if not overrides.keys() <= CHANGE_NOTHING:
    one = tmp_path / '1'
    train(config, one, devices=jax.devices()[:1])
  train(config, eight, devices=jax.devices())
  a, b = records(one, 'probe'), records(eight, 'probe')
  assert len(a) >= 2
  for x, y in zip(a, b, strict=True):
    for key in ('update', 'batch_size', 'doubles', 'ahead'):
      assert x[key] == y[key]
    assert (
      abs(x['difference'] - y['difference'])
      < 1e-3 * abs(x['half_width'] + x['difference']) + 1e-5
    )
  assert doubled(one) == doubled(eight)


def test_told_to_stop_within_a_probe(probing, tmp_path, monkeypatch):
  """It is left at once, and made when the run goes on; nothing else is."""
  config, devices = digits(**PROBING), jax.devices()[:1]
  workdir, whole = probing
  (first, *_), stop, grown = whole['probes'], threading.Event(), []
  train_on = run_probe.train_on

  def told_to_stop(trainer, calls, pausing, stops):
    def some():
      for call in calls:
        yield call
        if len(grown) == 3:
          stop.set()

    grown.append(train_on(trainer, some(), pausing, stops))
    return grown[-1]

  monkeypatch.setattr(run_probe, 'train_on', told_to_stop)
  grown.append(True)  # so that it is within the third branch
  for _ in range(2):  # told at once again
    found = train(config, tmp_path, devices=devices, stop=stop)
    assert found['status'] == 'preempted'
    assert found['updates'] == first['update']
    assert found['probes'] == []
  assert grown == [True, True, True, False]  # and none that time
  monkeypatch.undo()
  found = train(config, tmp_path, devices=devices)
  assert found['probes'] == whole['probes']
  a, b = records(workdir), records(tmp_path)
  assert [x['loss'] for x in a] == [x['loss'] for x in b]


def test_resumed_between_probes(probing, tmp_path):
  """The same decisions, and none is made twice."""
  workdir, whole = probing
  config = digits(**PROBING | {'checkpoint.every_updates': 10})
  for last in (35, 50, 70, None):
    parts = train(config, tmp_path, devices=jax.devices()[:1], last_update=last)
  assert parts['probes'] == whole['probes']
  assert len(records(tmp_path, 'probe')) == len(whole['probes'])
  losses = [[x['loss'] for x in records(w)] for w in (workdir, tmp_path)]
  assert losses[0] == losses[1]


def test_probes_are_the_same_wherever_calls_end(tmp_path):
  """However many updates are in one, of the run and of its branches."""
  keys = ('update', 'examples', 'ahead', 'batch_size', 'doubles')
  found, costs = [], []
  for count in (1, 4):
    config = digits(**PROBING | {'updates_per_call': count})
    train(config, tmp_path / str(count), devices=jax.devices()[:1])
    probes = records(tmp_path / str(count), 'probe')
    found.append([[x[k] for k in keys] for x in probes])
    costs.append([x['difference'] for x in probes])
  assert found[0]
  assert found[0] == found[1]
  np.testing.assert_allclose(*costs, rtol=1e-3, atol=1e-5)


def test_branches_see_the_same_examples(tmp_path, monkeypatch):
  """And the run goes on with those that it would have had."""
  seen, dispatch = [], Trainer.dispatch

  def spy(self, call, *, stop):
    seen.append(call)
    return dispatch(self, call, stop=stop)

  monkeypatch.setattr(Trainer, 'dispatch', spy)
  train(digits(**PROBING), tmp_path, devices=jax.devices()[:1])
  probe = records(tmp_path, 'probe')[0]
  at = next(
    i for i, call in enumerate(seen) if call.examples == probe['examples']
  )
  of_probe, spent = [], 0
  while spent < probe['probe_examples']:
    call = seen[at + len(of_probe)]
    of_probe.append(call)
    spent += call.count * call.plan.batch_size
  assert spent == probe['probe_examples']
  order, stretches = Order(1438, 0), {}
  for call in of_probe:
    first = call.examples + call.left_out
    places = np.arange(first, first + call.count * call.plan.batch_size)
    key = call.left_out, call.plan.bucket
    stretches.setdefault(key, []).extend(indices(order, places).tolist())
  assert len(stretches) == 4
  by_offset = {}
  for (offset, _), examples in stretches.items():
    by_offset.setdefault(offset, []).append(examples)
  for one, other in by_offset.values():
    assert one == other
    assert len(one) == probe['ahead']
  assert sorted(by_offset) == [0, probe['ahead']]
  assert seen[at + len(of_probe)].examples == probe['examples']


def test_default_keys_cost_less_than_a_fifth(tmp_path):
  config = digits(
    **{
      'epochs': 60.0,
      'controller.name': 'probe',
      'controller.initial_batch_size': 8,
      'updates_per_call': 20,
      'eval.every_epochs': 60.0,
      'log.every_updates': 1000,
    }
  )
  summary = train(config, tmp_path, devices=jax.devices()[:1])
  assert summary['probes']
  spent = summary['probe_examples'] + summary['probe_evaluated_examples']
  assert spent < 0.2 * summary['examples']


def test_when_the_next_probe_is_due():
  parts = build(digits(**PROBING), jax.devices()[:1])

  def due(nominal=16, evaluated=100, **at):
    return next_probe(parts, Progress(0, **at), nominal, evaluated)

  assert due(examples=0) is None
  # 4 x examples = 2 x 2 branches of Delta and the evaluation.
  found = due(examples=500)
  assert found.examples == (500 - 100) // 32 * 32
  assert [p.batch_size for p in found.plans] == [16, 32]
  assert due(examples=160) is None  # less than two updates
  before = [{'examples': 300}]
  assert due(examples=500, probes=before) is None  # not twice as many
  assert due(examples=600, probes=before).examples == 480
  assert due(examples=600, probes=before, probe_examples=2300) is None
  assert due(nominal=64, examples=500) is None  # no larger batch
  end = parts.end.examples
  # All branches together have no more than the run has left.
  assert due(examples=end - 250) is None
  assert due(examples=end - 260).examples == 64


@pytest.mark.parametrize('size', [16, 24, 64])
def test_calls_of_a_branch(size):
  ladder = buckets.ladder(8, 64, devices=1)
  plan = buckets.plan(size, ladder)
  calls = list(calls_of(Progress(0, 5, 100), plan, 200, 40, ladder, room=3))
  assert sum(c.count * c.plan.batch_size for c in calls) == 200
  for one, other in zip(calls, calls[1:], strict=False):
    assert other[:2] == one.after(one.count)
  assert calls[0][:2] == (5, 100)
  assert {c.left_out for c in calls} == {40}
  rest = 200 % plan.batch_size
  if rest:
    assert calls[-1].plan.batch_size == rest
    assert calls[-1].plan.damping == rest / plan.batch_size


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    (
      {'sync.name': 'local_sgd', 'sync.replicas': 2},
      "sync.name='local_sgd' shares a batch among models that differ",
    ),
    (
      {'data.eval_split': 'train'},
      "data.eval_split='train' is what is trained on",
    ),
    (
      {'controller.probe.repeats': 1},
      'controller.probe.repeats must be at least 2',
    ),
    (
      {'controller.probe.confidence': 1.0},
      'controller.probe.confidence must be in',
    ),
  ],
)
def test_refused(tmp_path, overrides, message):
  with pytest.raises(ConfigError, match=message) as error:
    train(digits(**PROBING | overrides), tmp_path / 'run')
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'run').exists()
