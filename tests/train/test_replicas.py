"""Replicas in the whole loop: what they send, and how their number changes."""

import math
import re
import shutil

import jax
import numpy as np
import pytest

from adabatch.config import ConfigError
from adabatch.controllers import buckets
from adabatch.devices import mesh
from adabatch.devices.messages import Call
from adabatch.devices.trainer import Trainer
from adabatch.train import train
from adabatch.train.build import build
from tests.experiments import column, digits, records
from tests.train.test_resume import stopped

pytestmark = pytest.mark.usefixtures('compile_quickly')

FIXED = {
  'epochs': 100.0,
  'controller.name': 'constant',
  'controller.initial_batch_size': 24,
  'controller.max_batch_size': 24,
  'optimizer.weight_decay': 1e-3,
  'sync.name': 'local_sgd',
  'sync.replicas': 4,
  'sync.local_steps': 4,
}


def run(workdir, devices=2, **overrides):
  config = digits(**{**FIXED, **overrides})
  return train(config, workdir, devices=jax.devices()[:devices])


def run_until(workdir, after, **overrides):
  """Only the beginning, with a checkpoint two updates later."""
  return stopped(digits(**{**FIXED, **overrides}), workdir, 2, after)


# What is sent.

OTHERS = re.compile(
  r'= .* (all-to-all|reduce-scatter|collective-\w+)(-start)?\('
)


def groups_of_devices(line):
  """Of an exchange; JAX 0.10 and 0.12 print them in different forms."""
  if listed := re.search(r'replica_groups=\{\{([\d,{}]*)\}\}', line):
    groups = listed[1].split('},{')
    return [[int(i) for i in group.split(',')] for group in groups]
  if mesh := re.search(r'replica_groups=mesh\[(.*?)\] \{(.*?)\}', line):
    axes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    summed = re.findall(r"'(\w+)'", mesh[2])
    order = [name for name in axes if name not in summed] + summed
    ids = np.arange(math.prod(map(int, axes.values())))
    ids = ids.reshape([int(n) for n in axes.values()])
    ids = ids.transpose([list(axes).index(name) for name in order])
    return ids.reshape(-1, math.prod(int(axes[n]) for n in summed)).tolist()
  iota = re.search(
    r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', line
  )
  assert iota, line
  shape, dims, order = (
    [int(i) for i in part.split(',')] if part else None
    for part in iota.groups()
  )
  ids = np.arange(math.prod(dims)).reshape(dims)
  return ids.transpose(order).reshape(shape).tolist()


def reductions(text):
  """Groups of devices and bytes of each sum, or gathering, in a program."""
  found = []
  for line in text.splitlines():
    if not re.search(r'= .* all-(reduce|gather)(-start)?\(', line):
      assert not OTHERS.search(line)
      continue
    groups = groups_of_devices(line)
    result = re.split(' all-(?:reduce|gather)', line.split('= ', 1)[1])[0]
    size = sum(
      4 * math.prod(int(n) for n in dims.split(',') if n)
      for dims in re.findall(r'f32\[([\d,]*)\]', result)
    )
    found.append((groups, size))
  return found


@pytest.mark.parametrize(
  ('replicas', 'devices', 'average_momentum'),
  [
    pytest.param(4, 8, False, marks=pytest.mark.quick),
    (2, 8, True),
    (4, 4, False),
  ],
)
def test_only_a_sync_sends_between_replicas(
  replicas, devices, average_momentum
):
  config = digits(
    **{
      **FIXED,
      'model.name': 'strided_cnn',
      'model.strided_cnn.channels': (4,),
      'model.strided_cnn.batch_norm_group': 8,
      'sync.replicas': replicas,
      'sync.average_momentum': average_momentum,
    }
  )
  parts = build(config, jax.devices()[:devices])
  trainer = Trainer(parts.recipe)
  plan = buckets.plan(24, parts.ladder)
  row = devices // replicas

  def crossing(agree):
    call = Call(0, 0, 1, plan, agree)
    text = trainer.programs.get(trainer.variant(call)).as_text()
    return [
      size
      for groups, size in reductions(text)
      if any(len({i // row for i in group}) > 1 for group in groups)
    ]

  assert crossing(False) == []
  # Beside the average, the mean squared distance.
  assert sum(crossing(True)) == trainer.sync_bytes + 4
  trainer.close()


def test_bytes_fall_by_the_period(tmp_path):
  summaries = {
    name: run(
      tmp_path / name,
      max_updates=24,
      **{'sync.name': method, 'sync.local_steps': steps},
    )
    for name, method, steps in (
      ('every', 'local_sgd', 1),
      ('eighth', 'local_sgd', 8),
      ('plain', 'synchronous', 8),
    )
  }
  assert summaries['every']['sync_count'] == 24
  assert summaries['eighth']['sync_count'] == 3
  parameters = 4 * (64 * 32 + 32 + 32 * 10 + 10)
  assert summaries['eighth']['sync_bytes'] == 3 * parameters
  for name in ('every', 'plain'):
    assert summaries[name]['sync_bytes'] == 24 * parameters


def test_distances_are_logged(tmp_path):
  run(tmp_path, max_updates=10)
  lines = records(tmp_path)
  assert not any('replica_squared_distance' in line for line in lines[:3])
  for line in lines[3:]:
    # The mean of squares is above the square of the mean.
    assert line['replica_squared_distance'] > line['mean_squared_distance'] > 0
  at = [lines[i]['replica_squared_distance'] for i in (3, 4, 6, 7, 8, 9)]
  assert at[0] == at[1] == at[2] != at[3] == at[4] != at[5]


# Cut short, and gone on with.

CUT = {
  'epochs': 0.3,  # 431 examples: 17 updates of 24, and one of 23
  'model.mlp.hidden_sizes': (4,),
  'learning_rate.decay.name': 'piecewise',
  'learning_rate.decay.unit': 'run',
  'learning_rate.decay.boundaries': (0.5,),
  'sync.local_steps': 5,
  'sync.replicas': 2,
  'updates_per_call': 3,
}


# Seen after the update and before it; with restarts; of a period that grows.
# The schedule of the others is that of the first.
@pytest.mark.parametrize('name', ['local_sgd', 'sma', 'qsr'])
def test_a_cut_changes_nothing(tmp_path, name):
  """Wherever it is: no sync that there would not have been."""
  overrides = {**CUT, 'sync.name': name}
  config = digits(**{**FIXED, **overrides})
  whole = run(tmp_path / 'whole', devices=1, **overrides)
  for last in (7, None):  # within a period
    cut = train(
      config, tmp_path / 'cut', devices=jax.devices()[:1], last_update=last
    )
  for key in ('updates', 'examples', 'sync_count', 'sync_bytes', 'final'):
    assert cut[key] == whole[key]
  assert whole['examples'] == 431
  for key in ('loss', 'batch_size', 'learning_rate'):
    ours, theirs = (
      column(tmp_path / 'cut', key),
      column(tmp_path / 'whole', key),
    )
    assert ours == theirs


# Their number.


@pytest.mark.parametrize(
  ('name', 'before', 'after'),
  [('local_sgd', 4, 3), ('sma', 3, 4)],
)
def test_another_number_at_resume(tmp_path, name, before, after):
  overrides = {'max_updates': 20, 'sync.name': name}
  run_until(tmp_path, 8, **overrides, **{'sync.replicas': before})
  summary = run(tmp_path, **overrides, **{'sync.replicas': after})
  assert summary['status'] == 'completed'
  assert summary['replicas'] == after
  (line,) = records(tmp_path, 'replicas')
  assert (line['before'], line['replicas']) == (before, after)
  assert 10 <= line['update'] <= 12
  assert column(tmp_path, 'update') == list(range(1, 21))
  assert set(column(tmp_path, 'batch_size')) == {24}
  losses = column(tmp_path, 'loss')
  assert np.mean(losses[-4:]) < np.mean(losses[5:9])


def test_a_change_is_logged_once(tmp_path):
  """Also if the run is killed before its next checkpoint, and resumed."""
  overrides = {'max_updates': 12}
  run_until(tmp_path / 'a', 4, **overrides)
  shutil.copytree(tmp_path / 'a', tmp_path / 'b')
  overrides['sync.replicas'] = 2
  run(tmp_path / 'a', **overrides)
  shutil.copy(tmp_path / 'a/metrics.jsonl', tmp_path / 'b/metrics.jsonl')
  run(tmp_path / 'b', **overrides)
  (line,) = records(tmp_path / 'b', 'replicas')
  assert (line['before'], line['replicas']) == (4, 2)


def test_an_unstable_number_at_resume_is_refused(tmp_path):
  """And nothing is lost."""
  overrides = {'max_updates': 8, 'sync.name': 'sma', 'sync.sma.rho': 2.0}
  run_until(tmp_path, 2, **overrides)
  with pytest.raises(ConfigError, match='sync.sma: rho=2.0 is not stable'):
    run(tmp_path, **overrides, **{'sync.replicas': 1})
  assert run(tmp_path, **overrides)['status'] == 'completed'


def test_a_finished_run_is_left_as_it_is(tmp_path):
  run(tmp_path, max_updates=6)
  names = 'config.json', 'metrics.jsonl', 'summary.json'
  before = [(tmp_path / name).read_bytes() for name in names]
  summary = run(tmp_path, max_updates=6, **{'sync.replicas': 2})
  assert summary['replicas'] == 4
  assert [(tmp_path / name).read_bytes() for name in names] == before


TUNED = {
  'max_updates': 50,
  'sync.name': 'sma',
  'sync.local_steps': 1,
  'sync.replicas': 2,
  'sync.tune.enabled': True,
  'sync.tune.most': 3,
  'sync.tune.window': 2,
  'sync.tune.windows': 3,
}


@pytest.fixture
def two_are_best(monkeypatch):
  """Sets a directory; throughputs say two learners on each of two devices."""
  directory = []

  def of_first_process(value):
    assert value > 0
    changes = records(directory[-1], 'replicas')
    replicas = changes[-1]['replicas'] if changes else TUNED['sync.replicas']
    return 100.0 * min(replicas // 2, 2)

  monkeypatch.setattr(mesh, 'of_first_process', of_first_process)
  return directory.append


def test_the_number_of_learners_is_found(tmp_path, two_are_best):
  two_are_best(tmp_path / 'whole')
  summary = run(tmp_path / 'whole', **TUNED)
  assert summary['replicas'] == 4
  lines = records(tmp_path / 'whole', 'replicas')
  assert [line['replicas'] for line in lines] == [4, 6, 4]
  # Each keeps its share of 12 examples, so the batch is larger.
  sizes = column(tmp_path / 'whole', 'batch_size')
  assert sorted(set(sizes)) == [24, 48, 72]
  assert sizes[-1] == 48
  assert column(tmp_path / 'whole', 'nominal_batch_size') == sizes

  # Windows begin anew where a run is resumed; the decisions are the same.
  two_are_best(tmp_path / 'cut')
  run_until(tmp_path / 'cut', 12, **TUNED)
  run(tmp_path / 'cut', **TUNED)
  lines = records(tmp_path / 'cut', 'replicas')
  assert [line['replicas'] for line in lines] == [4, 6, 4]


def test_a_search_resumes_on_other_devices(tmp_path, two_are_best):
  """Two learners on each of two devices become four on one."""
  two_are_best(tmp_path)
  run_until(tmp_path, 8, **TUNED)
  summary = run(tmp_path, devices=1, **TUNED)
  assert summary['status'] == 'completed'


def test_the_number_is_found_by_real_measurements(tmp_path):
  """Whatever it is; the run goes on to its end."""
  summary = run(tmp_path, **TUNED)
  assert summary['status'] == 'completed'
  assert summary['replicas'] in (2, 4, 6)


# Refusals.


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'sync.name': 'localsgd'}, "unknown sync.name 'localsgd'.*local_sgd"),
    ({'sync.replicas': 0}, 'sync.replicas must be at least 1'),
    ({'sync.local_steps': 0}, 'sync.local_steps must be at least 1'),
    ({'sync.replicas': 5}, 'initial_batch_size=24 cannot be shared.*choose 25'),
    (
      {'controller.name': 'adadamp', 'controller.max_batch_size': 30},
      'max_batch_size=30 cannot be shared.*choose 32',
    ),
    ({'sync.name': 'post_local_sgd'}, 'set sync.post_local_sgd.epoch'),
    (
      {'sync.name': 'qsr', 'learning_rate.scaling': 'adascale'},
      'qsr reads the learning rate',
    ),
    ({'parallel.backend': 'pmap'}, "choose 'shard_map'"),
    (
      {'sync.name': 'sma', 'sync.sma.rho': 2.58},
      r'rho=2.58 is not stable with 4 replicas.*below 2.57627',
    ),
    ({'sync.name': 'easgd', 'sync.easgd.rho': 1.7}, 'below 1.6'),
    ({'sync.name': 'easgd', 'sync.easgd.rho': -0.1}, 'above 0'),
  ],
)
def test_refusals(tmp_path, overrides, message):
  with pytest.raises(ConfigError, match=message) as refused:
    run(tmp_path / 'run', **overrides)
  assert '\n' not in str(refused.value)
  assert not (tmp_path / 'run').exists()


def test_a_replica_that_diverges_ends_the_run(tmp_path):
  summary = run(tmp_path, max_updates=50, **{'learning_rate.base': 1e30})
  assert summary['status'] == 'diverged'


def test_adaptive_rules_see_all_replicas(tmp_path):
  """The batch grows alike with replicas that agree at each update."""
  overrides = {
    'max_updates': 45,
    'controller.name': 'adadamp',
    'controller.initial_batch_size': 16,
    'controller.max_batch_size': 64,
    'controller.adadamp.loss_source': 'ema',
    'sync.local_steps': 1,
  }
  run(tmp_path / 'plain', **overrides | {'sync.name': 'synchronous'})
  run(tmp_path / 'apart', **overrides)
  sizes = column(tmp_path / 'plain', 'batch_size')
  assert sizes == column(tmp_path / 'apart', 'batch_size')
  assert len(set(sizes)) > 2
  np.testing.assert_allclose(
    column(tmp_path / 'apart', 'loss'),
    column(tmp_path / 'plain', 'loss'),
    rtol=1e-4,
  )


def test_rules_that_read_noise(tmp_path):
  overrides = {
    'max_updates': 30,
    'controller.name': 'noise_scale',
    'controller.initial_batch_size': 16,
    'controller.max_batch_size': 32,
    'sync.local_steps': 5,
  }
  summary = run(tmp_path, **overrides)
  assert summary['status'] == 'completed'
  assert all(size % 4 == 0 for size in column(tmp_path, 'batch_size'))
  assert 'gradient_noise_scale' in records(tmp_path)[-1]
