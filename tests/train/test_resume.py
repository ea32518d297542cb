"""A run that is killed or stopped goes on exactly where it was."""

import contextlib
import json
import os
import shutil
import signal
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from adabatch.train import checkpoints as checkpoints_lib
from adabatch.train import train
from adabatch.train.build import build
from adabatch.train.checkpoints import Checkpoints, VersionError
from adabatch.train.console import Console
from adabatch.train.log import Log
from adabatch.train.loop import loop
from adabatch.train.reports import Clock
from adabatch.train.workdir import Workdir
from tests import commands, tfds_sets
from tests.experiments import digits, records
from tests.tfds_sets import needs

pytestmark = pytest.mark.usefixtures('compile_quickly')

SCRIPT = """
import sys
from adabatch.train import train
from tests.experiments import digits
import jax
config = digits(**eval(sys.argv[2]))
summary = train(config, sys.argv[1], devices=jax.devices()[:1])
print(summary['status'])
"""
# About 300 updates, of 16, 32 and 64 examples: a program for each.
OVERRIDES = {
  'epochs': 12.0,
  'checkpoint.every_updates': 50,
  'controller.max_batch_size': 64,
  'controller.adadamp.loss_source': 'ema',
}
RULES = {
  'adadamp': {},
  'noise_scale': {
    'updates_per_call': 20,
    'controller.name': 'noise_scale',
    'optimizer.name': 'adam',
    'learning_rate.base': 0.001,
    'data.crop_padding': 1,
  },
  'probe': {
    'updates_per_call': 5,
    'controller.name': 'probe',
    'controller.probe.repeats': 2,
    'controller.probe.epsilon': 0.5,
    'controller.probe.cost': 1.0,
  },
}


def start(workdir, overrides):
  script = workdir / 'script.py'
  script.write_text(SCRIPT)
  environment = os.environ | {'XLA_FLAGS': commands.QUICKLY}
  return commands.Process([script, workdir, overrides], environment)


def wait_for_updates(process, workdir, updates):
  """Returns once the log shows that many updates and a checkpoint exists."""
  metrics = workdir / 'metrics.jsonl'
  deadline = time.monotonic() + 120
  while time.monotonic() < deadline:
    assert process.poll() is None, process.communicate()
    saved = any(
      child.name.isdigit() for child in (workdir / 'checkpoints').glob('*')
    )
    if saved and metrics.read_bytes().count(b'\n') > updates:
      return
    time.sleep(0.005)
  raise AssertionError('the run never got that far')


def parameters(workdir):
  manager = ocp.CheckpointManager(workdir / 'checkpoints')
  step = manager.latest_step()
  state = manager.restore(
    step, args=ocp.args.Composite(state=ocp.args.StandardRestore())
  )['state']
  manager.close()
  return step, [np.asarray(x) for x in jax.tree.leaves(state)]


def same_results(a, b):
  step_a, leaves_a = parameters(a)
  step_b, leaves_b = parameters(b)
  assert step_a == step_b
  for x, y in zip(leaves_a, leaves_b, strict=True):
    assert x.tobytes() == y.tobytes()
  timing = {'seconds', 'examples_per_second', 'tokens_per_second'}
  for kind in ('train', 'eval'):
    for x, y in zip(records(a, kind), records(b, kind), strict=True):
      assert x.keys() == y.keys()
      assert all(x[k] == y[k] for k in x.keys() - timing), (x, y)
  summaries = [json.loads((w / 'summary.json').read_text()) for w in (a, b)]
  for key in ('updates', 'examples', 'final', 'best', 'status'):
    assert summaries[0][key] == summaries[1][key]


def stopped(config, workdir, devices, after):
  """The summary of a run that is asked to stop after a record of an update.

  Two calls later it does: one was dispatched when the record was yielded, and
  the next says that a stop was asked for, which is read after another one.
  """
  stop, files, record = threading.Event(), Workdir(workdir), {}
  parts = build(config, jax.devices()[:devices])
  checkpoints = Checkpoints(workdir / 'checkpoints', config.checkpoint.keep)
  log = Log(config, files, Console(0, enabled=False), about={}, enabled=True)
  with contextlib.ExitStack() as stack:
    for close in (files.unlock, checkpoints.close, log.close):
      stack.callback(close)
    for kind, record in loop(parts, save=checkpoints.save, stop=stop):
      log.write(kind, record)
      if kind == 'train' and record['update'] == after:
        stop.set()
  assert record['status'] == 'preempted'
  return record


@pytest.fixture(scope='module', params=sorted(RULES))
def uninterrupted(request, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  overrides = OVERRIDES | RULES[request.param]
  process = start(workdir, overrides)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  return workdir, overrides


def test_killed_at_any_moment(uninterrupted, tmp_path):
  whole, overrides = uninterrupted
  total = len(records(whole))
  process = start(tmp_path, overrides)
  wait_for_updates(process, tmp_path, total // 3)
  process.kill()
  process.communicate()
  process = start(tmp_path, overrides)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  assert 'resumed at update' in err
  same_results(whole, tmp_path)


def test_sigterm_checkpoints_and_stops(uninterrupted, tmp_path):
  whole, overrides = uninterrupted
  process = start(tmp_path, overrides)
  wait_for_updates(process, tmp_path, len(records(whole)) // 4)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=120)
  assert (process.returncode, out.strip()) == (0, 'preempted'), err
  summary = json.loads((tmp_path / 'summary.json').read_text())
  assert summary['status'] == 'preempted'
  assert parameters(tmp_path)[0] == summary['updates']
  process = start(tmp_path, overrides)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  assert f'resumed at update {summary["updates"]}' in err
  same_results(whole, tmp_path)


@needs('tiny_shakespeare')
def test_a_text_is_probed_alike_after_a_kill(tmp_path):
  keys = {
    'data.data_dir': tfds_sets.PREPARED,
    'model.transformer.num_layers': 1,
    'model.transformer.model_dim': 16,
    'model.transformer.num_heads': 1,
    'model.transformer.hidden_dim': 32,
    'controller.name': 'probe',
    'controller.every': 1,
    'controller.probe.cost': 1.0,
    'controller.probe.epsilon': 0.1,
    'eval.max_per_device': 512,
    'checkpoint.every_updates': 100,
    'max_examples': 8_000,
  }
  flags = [f'--config.{key}={value}' for key, value in keys.items()]
  environment = os.environ | {'XLA_FLAGS': commands.QUICKLY}

  def begin(workdir):
    config = '--config=configs/transformer_shakespeare.py'
    command = ['launch.py', config, *flags, f'--workdir={workdir}']
    return commands.Process(command, environment)

  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  process = begin(whole)
  err = process.communicate()[1]
  assert process.returncode == 0, err
  probes = records(whole, 'probe')
  assert [probe['doubles'] for probe in probes[:2]] == [True, True]
  process = begin(killed)
  wait_for_updates(process, killed, len(records(whole)) // 2)
  process.kill()
  process.communicate()
  process = begin(killed)
  err = process.communicate()[1]
  assert process.returncode == 0, err
  assert 'resumed at update' in err
  assert records(killed, 'probe') == probes
  same_results(whole, killed)


@pytest.mark.parametrize('rule', ['adadamp', 'norm_test'])
def test_resumed_on_other_devices(tmp_path, rule):
  """One device, then eight: the same losses to rounding.

  And the same batch sizes, unless the rule reads the gradient noise, which on
  one device is estimated otherwise than on eight.
  """
  overrides = {'max_updates': 100, 'controller.name': rule}
  config = digits(**OVERRIDES | overrides)
  stop = threading.Event()
  stop.set()
  moved = tmp_path / 'moved'
  first = train(config, moved, devices=jax.devices()[:1], stop=stop)
  assert first['status'] == 'preempted'
  assert 0 < first['updates'] < 10
  last = train(config, moved, devices=jax.devices())
  assert last['status'] == 'completed'
  if rule != 'adadamp':
    return
  train(config, tmp_path / 'whole', devices=jax.devices()[:1])
  a, b = records(tmp_path / 'whole'), records(moved)
  assert [x['batch_size'] for x in a] == [x['batch_size'] for x in b]
  np.testing.assert_allclose(
    [x['loss'] for x in a], [x['loss'] for x in b], rtol=1e-5
  )


def test_resumed_with_less_room_on_the_device(tmp_path):
  """Accumulation, and a place for the data that is not looked at: no result
  changes, with BatchNorm's groups of examples neither."""
  overrides = {
    'max_updates': 12,
    'controller.every': 2,
    'controller.max_batch_size': 16,
    'controller.adadamp.loss_source': 'ema',
    'controller.adadamp.decay': 0.5,
    'learning_rate.base': 0.1,
    'model.name': 'strided_cnn',
    'model.strided_cnn.channels': (4,),
    'model.strided_cnn.hidden_size': 8,
    'model.strided_cnn.batch_norm_group': 8,
  }
  elsewhere = {
    'buckets.max_per_device': 8,
    'checkpoint.keep': 1,
    'eval.max_per_device': 16,
    'data.data_dir': str(tmp_path),
  }
  whole, moved = tmp_path / 'whole', tmp_path / 'moved'
  device = jax.devices()[:1]
  train(digits(**overrides), whole, devices=device)
  train(digits(**overrides), moved, devices=device, last_update=2)
  train(digits(**overrides, **elsewhere), moved, devices=device)
  a, b = records(whole), records(moved)
  sizes = [x['nominal_batch_size'] for x in a]
  assert sizes == [x['nominal_batch_size'] for x in b]
  assert len(set(sizes)) > 2
  np.testing.assert_allclose(
    [x['loss'] for x in a], [x['loss'] for x in b], rtol=1e-5
  )


def test_the_clock_stands_still_while_anything_compiles(tmp_path, monkeypatch):
  """Also while a resumed run compiles its first measurement."""
  config = digits(
    max_updates=5,
    **{
      'controller.name': 'adadamp_grad',
      'controller.adadamp_grad.gradient_source': 'subset',
      'controller.every': 4,
      'controller.max_batch_size': 16,
    },
  )
  train(config, tmp_path, devices=jax.devices()[:1], last_update=2)
  clocks, compiled = [], []
  create = Clock.__init__

  def created(self, *args, **kwargs):
    create(self, *args, **kwargs)
    clocks.append(self)

  def compiles(event, seconds, **kwargs):
    # Programs that come next compile in threads while the run goes on.
    here = threading.current_thread() is threading.main_thread()
    if here and 'backend_compile' in event and clocks:
      compiled.append((clocks[-1], clocks[-1].running))

  monkeypatch.setattr(Clock, '__init__', created)
  jax.monitoring.register_event_duration_secs_listener(compiles)
  try:
    train(config, tmp_path, devices=jax.devices()[:1])
  finally:
    jax.monitoring.unregister_event_duration_listener(compiles)
  running = [running for clock, running in compiled if clock is clocks[-1]]
  assert running
  assert not any(running)


def test_a_complete_run_is_left_alone(tmp_path):
  config = digits(max_updates=30)
  first = train(config, tmp_path, devices=jax.devices()[:1])
  files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
  again = train(config, tmp_path, devices=jax.devices()[:1])
  assert again == json.loads(json.dumps(first))
  untouched = {
    p
    for p, when in files.items()
    if p.exists() and p.stat().st_mtime_ns == when
  }
  assert tmp_path / 'summary.json' in untouched
  assert tmp_path / 'checkpoints' / '30' in {p.parent for p in untouched} | {
    p.parent.parent for p in untouched
  }


def test_a_truncated_checkpoint_falls_back(tmp_path, monkeypatch, capfd):
  monkeypatch.setattr(checkpoints_lib, 'PAUSES', (0,))
  config = digits(max_updates=60, **{'checkpoint.every_updates': 20})
  whole = tmp_path / 'whole'
  train(config, whole, devices=jax.devices()[:1])
  broken = tmp_path / 'broken'
  shutil.copytree(whole, broken)
  newest = broken / 'checkpoints' / '60'
  largest = max(
    (p for p in newest.rglob('*') if p.is_file()),
    key=lambda p: p.stat().st_size,
  )
  with largest.open('r+b') as file:
    file.truncate(largest.stat().st_size // 2)
  summary = train(config, broken, devices=jax.devices()[:1])
  assert 'update 60 cannot be read' in capfd.readouterr().err
  assert summary['status'] == 'completed'
  same_results(whole, broken)


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path, capfd):
  """In one line; it is not taken for a damaged one, which would be removed."""
  config = digits(max_updates=30)
  counts = {'replicas': 1, 'next_sync': 0, 'syncs': 20, 'sync_bytes': 0}
  old = {
    'progress': {'next_evaluation': 1437, 'update': 20, 'examples': 320},
    'decisions': {'nominal': 16.0, 'evaluated_examples': 0, 'controller': []},
    'agreement': counts | {'drops': 0, 'tuning': None},
    'configured_replicas': 1,
    'data': {'training': 'some', 'evaluation': 'others'},
  }
  files = Workdir(tmp_path)
  files.open(config, {})
  files.unlock()
  manager = ocp.CheckpointManager(tmp_path / 'checkpoints')
  state = ocp.args.StandardSave({'params': np.zeros(3)})
  args = ocp.args.Composite(state=state, host=ocp.args.JsonSave(old))
  for update in (10, 20):
    manager.save(update, args=args)
  manager.close()
  before = sorted(tmp_path.rglob('*'))
  with pytest.raises(VersionError, match='an earlier version') as refused:
    train(config, tmp_path, devices=jax.devices()[:1])
  assert 'start in another workdir' in str(refused.value)
  assert '\n' not in str(refused.value)
  assert 'cannot be read' not in capfd.readouterr().err
  assert sorted(tmp_path.rglob('*')) == before
