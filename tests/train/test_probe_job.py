"""The probe of a run: what is made, by whom, and what is refused."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from adabatch.config import ConfigError, flatten
from adabatch.data import DatasetError, from_arrays
from adabatch.devices.trainer import Trainer
from adabatch.train import probe_workers, train
from adabatch.train.checkpoints import Checkpoints
from adabatch.train.probe_job import probe
from adabatch.train.probe_store import ProbeStore
from adabatch.train.register import REGISTRIES
from adabatch.train.workdir import Workdir
from tests import commands
from tests.experiments import digits
from tests.test_distributed import finish, start_two
from tests.tfds_sets import SMALL_LSTM, small_text

pytestmark = pytest.mark.usefixtures('compile_quickly')

RUN = {
  'model.mlp.hidden_sizes': (8,),
  'controller.name': 'constant',
  'controller.initial_batch_size': 8,
  'optimizer.name': 'adam',
  'learning_rate.base': 0.003,
  'max_updates': 12,
  'checkpoint.every_updates': 6,
  'probe.factors': (0.5, 1.0, 2.0),
  'probe.examples': 40,
  'probe.noise_examples': 64,
}
BRANCHES = 6  # of a point: three factors, two repeats
ONE = jax.devices()[:1]


def config(**overrides):
  return digits(**RUN | overrides)


def look(directory):
  """Names, contents and times of all that there is."""
  return {
    path.relative_to(directory): (
      path.stat().st_mtime_ns,
      hashlib.md5(path.read_bytes()).hexdigest() if path.is_file() else '',
    )
    for path in [directory, *directory.rglob('*')]
  }


@pytest.fixture(scope='module')
def run(compile_quickly, tmp_path_factory):
  """A run that is over; whatever is probed of it, it stays as it was."""
  workdir = tmp_path_factory.mktemp('of') / 'run'
  train(config(), workdir, devices=ONE)
  before = look(workdir)
  yield workdir
  assert look(workdir) == before
  assert not workdir.with_name('run-probe').exists()


@pytest.fixture(scope='module')
def probed(run, tmp_path_factory):
  """A probe of it, and what it returned."""
  place = tmp_path_factory.mktemp('probed')
  return place, ask(run, place)


@pytest.fixture
def copied(probed, tmp_path):
  """Its directory, to be changed."""
  shutil.copytree(probed[0], tmp_path / 'probe')
  return tmp_path / 'probe'


def ask(run, place, stop=None, devices=ONE, **overrides):
  keys = {'probe.directory': str(place)} | overrides
  return probe(config(**keys), run, devices=devices, stop=stop)


def branches(place):
  """Names and times of what is kept."""
  files = (place / 'branches').iterdir()
  return {path.name: path.stat().st_mtime_ns for path in files}


def without_times(found):
  """What a probe found, without what a clock told."""
  if isinstance(found, dict):
    gone = ('seconds', 'directory')
    return {k: without_times(v) for k, v in found.items() if k not in gone}
  if isinstance(found, list):
    return [without_times(x) for x in found]
  return found


def numbers(found):
  flat = flatten({'x': without_times(found['points'][0])})
  return {k: v for k, v in flat.items() if isinstance(v, float)}


def test_what_is_written(run, probed):
  place, found = probed
  assert json.loads((place / 'probe.json').read_text()) == found
  assert found['status'] == 'completed'
  (point,) = found['points']
  assert (point['update'], point['batch_size']) == (12, 8)
  assert [row['batch_size'] for row in point['table']] == [4, 8, 16]
  assert [row['updates'] for row in point['table']] == [10, 5, 3]
  np.testing.assert_allclose(
    [row['rate'] for row in point['table']], [0.5**0.5, 1, 2**0.5]
  )
  assert point['noise']['simple'].keys() == point['noise']['adam'].keys()
  kept = branches(place)
  assert len(kept) == BRANCHES + 1  # and the noise
  assert all(name.endswith('.npz') for name in kept)
  content = np.load(place / 'branches' / min(kept))  # anybody can read them
  assert {'losses', 'weights', 'seconds', 'about'} <= set(content)


def test_started_again_it_makes_nothing(run, copied, probed, monkeypatch):
  before = branches(copied)
  monkeypatch.delattr(Trainer, 'dispatch')
  found = ask(run, copied)
  assert without_times(found) == without_times(probed[1])
  assert found['points'][0]['cost'] == probed[1]['points'][0]['cost']
  assert branches(copied) == before
  # What changes no branch.
  other = ask(run, copied, **{'probe.epsilon': 0.5, 'probe.repeats': 1})
  assert branches(copied) == before
  assert other['points'][0]['repeats'] == 1


def test_more_is_made_beside_what_is_there(run, copied):
  before = branches(copied)
  keys = {'probe.factors': (0.5, 1.0, 2.0, 4.0), 'probe.repeats': 3}
  ask(run, copied, **keys)
  after = branches(copied)
  assert before.items() <= after.items()
  # A new factor, and a new repeat of all of them.
  assert len(after) == len(before) + 2 + 4


@pytest.mark.parametrize('damage', ['cut', 'empty', 'bit'])
def test_a_damaged_branch_is_made_anew(run, copied, probed, damage):
  path = max((copied / 'branches').glob('12-8-*.npz'))
  content = bytearray(path.read_bytes())
  if damage == 'bit':
    content[len(content) // 2] ^= 1
  path.write_bytes({'cut': content[:-20], 'empty': b''}.get(damage, content))
  before = branches(copied)
  found = ask(run, copied)
  changed = {k for k, v in branches(copied).items() if before[k] != v}
  assert changed == {path.name}
  assert numbers(found) == pytest.approx(numbers(probed[1]), nan_ok=True)


def test_another_state_of_the_same_update_is_another_point(
  probed, copied, tmp_path
):
  # Sums in another order, in which runs with one config may differ.
  other = {'buckets.max_per_device': 3}
  train(config(**other), tmp_path / 'other', devices=ONE)
  before = branches(copied)
  ask(tmp_path / 'other', copied)
  assert len(branches(copied)) == 2 * len(before)


def test_stopped_it_goes_on_where_it_was(run, probed, tmp_path, monkeypatch):
  stop, dispatch, count = threading.Event(), Trainer.dispatch, [0]

  def counted(self, call, **how):
    count[0] += 1
    if count[0] == 13:  # within the second branch
      stop.set()
    return dispatch(self, call, **how)

  monkeypatch.setattr(Trainer, 'dispatch', counted)
  found = ask(run, tmp_path, stop)
  assert found['status'] == 'preempted'
  assert found['points'] == []
  assert len(branches(tmp_path)) == 1
  assert count == [13]
  count[0] = 100
  found = ask(run, tmp_path)
  assert found['status'] == 'completed'
  assert without_times(found) == without_times(probed[1])
  assert count[0] - 100 == 2 * (10 + 5 + 3) - 10


def test_all_checkpoints_and_some(run, tmp_path):
  found = ask(run, tmp_path, **{'probe.at': 'all', 'probe.repeats': 1})
  assert [point['examples'] for point in found['points']] == [48, 96]
  names = branches(tmp_path)
  one = ask(run, tmp_path, **{'probe.at': '48', 'probe.repeats': 1})
  assert without_times(one['points'][0]) == without_times(found['points'][0])
  assert branches(tmp_path) == names


def test_its_examples_are_those_that_follow(run, tmp_path, monkeypatch):
  """All branches of a repeat have the same, the repeats others."""
  seen, take = [], Trainer.dispatch

  def spy(self, call, **how):
    start = call.examples + call.left_out
    size = call.plan.batch_size
    seen.append((call.update, range(start, start + call.count * size)))
    return take(self, call, **how)

  monkeypatch.setattr(Trainer, 'dispatch', spy)
  ask(run, tmp_path)
  runs, places = [], []
  for update, some in seen:
    if update == 12 and places:
      runs.append(places)
      places = []
    places = places + list(some)
  runs.append(places)
  first, second = list(range(96, 136)), list(range(136, 176))
  assert runs == [first] * 3 + [second] * 3


# Several at once.


def test_two_share_the_branches(run, probed, tmp_path):
  """Each is made once, and both say the same."""
  script = tmp_path / 'script.py'
  script.write_text(
    'import sys, json, pathlib\n'
    'from tests.train.test_probe_job import ask\n'
    'found = ask(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n'
    'pathlib.Path(sys.argv[3]).write_text(json.dumps(found))\n'
  )
  place, environment = (
    tmp_path / 'probe',
    os.environ | {'XLA_FLAGS': commands.QUICKLY},
  )
  said = [tmp_path / f'{i}.json' for i in range(2)]
  both = [
    commands.Process([script, run, place, path], environment) for path in said
  ]
  for process in both:
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
  one, other = (json.loads(path.read_text()) for path in said)
  assert one == other  # what it took as well
  assert without_times(one) == without_times(probed[1])
  assert len(branches(place)) == BRANCHES + 1


def test_what_another_made_meanwhile_is_not_made_again(
  run, copied, monkeypatch
):
  """Between the first look and the claim."""
  read, looked = ProbeStore.read, set()

  def late(self, about):
    key = json.dumps(about, sort_keys=True)
    if key in looked:
      return read(self, about)
    looked.add(key)
    return None

  monkeypatch.setattr(ProbeStore, 'read', late)
  monkeypatch.delattr(Trainer, 'dispatch')
  before = branches(copied)
  assert ask(run, copied)['status'] == 'completed'
  assert branches(copied) == before


def test_claims(tmp_path):
  """One at a time; the name may be another file's by then."""
  store, about = ProbeStore(tmp_path), {'update': 1, 'kind': 8}
  store.open()
  with store.claim(about) as mine, store.claim(about) as theirs:
    assert (mine, theirs) == (True, False)
  assert list((tmp_path / 'branches').iterdir()) == []
  opened = []

  def slow(path, *how):
    """Between opening a lock and locking it, who had it is done."""
    file = os_open(path, *how)
    opened.append(path)
    pathlib.Path(path).unlink()
    return file

  os_open = os.open
  with pytest.MonkeyPatch.context() as m:
    m.setattr(os, 'open', slow)
    with store.claim(about) as mine:
      assert not mine
  assert len(opened) == 1


WORKERS = {'probe.workers': 2}


def test_workers_share_the_branches(run, probed, tmp_path, monkeypatch):
  """The other one makes some; here they are slow."""
  made, dispatch = [], Trainer.dispatch

  def slow(self, call, **how):
    made.append(call)
    time.sleep(0.3)
    return dispatch(self, call, **how)

  monkeypatch.setattr(Trainer, 'dispatch', slow)
  found = ask(run, tmp_path, **WORKERS)
  assert without_times(found['points']) == without_times(probed[1]['points'])
  assert len(branches(tmp_path)) == BRANCHES + 1
  assert 10 <= len(made) < 2 * (10 + 5 + 3)


def test_a_worker_that_fails_is_told_of(run, tmp_path, capfd, monkeypatch):
  """Its branches are made all the same."""
  other = tmp_path / 'python'
  other.write_text('#!/bin/sh\necho no such luck >&2\nexit 3\n')
  other.chmod(0o755)
  monkeypatch.setattr(sys, 'executable', str(other))
  found = ask(run, tmp_path / 'probe', **WORKERS)
  assert found['status'] == 'completed'
  line = (
    'worker 2 of probe.workers ended with status 3, and its branches are made '
    'by the others: no such luck'
  )
  assert capfd.readouterr().err.count(line) == 1


def test_all_workers_end_where_it_is_stopped(run, tmp_path, monkeypatch):
  """Also one that has not come to listen yet."""
  started, popen = [], subprocess.Popen

  def start(*arguments, **how):
    started.append(popen(*arguments, **how))
    return started[-1]

  monkeypatch.setattr(subprocess, 'Popen', start)

  def fail(self, call, **how):
    raise KeyboardInterrupt

  monkeypatch.setattr(Trainer, 'dispatch', fail)
  monkeypatch.setattr(probe_workers, 'SECONDS', 0.2)
  with pytest.raises(KeyboardInterrupt):
    ask(run, tmp_path, **WORKERS)
  (worker,) = started
  assert worker.returncode is not None


# What is refused, each in one line and before anything is written.

REFUSED = {
  'no one': ({'probe.factors': (0.5, 2.0)}, 'lacks 1, with which'),
  'twice': ({'probe.factors': (1.0, 2.0, 2.0)}, 'and each once'),
  'the same size': ({'probe.factors': (1.0, 1.01)}, '1 and 1.01 of a batch'),
  'no example': ({'probe.factors': (1.0, 0.1)}, 'is less than one example'),
  'too large': ({'probe.factors': (1.0, 200.0)}, 'above the 1438 examples'),
  'short': ({'probe.examples': 12}, 'is less than a batch of 16'),
  'long': (
    {'probe.examples': 800},
    'is more than the 1438 examples in an epoch after update 12: lower it, to '
    'at most 719',
  ),
  'long and large': (
    {'probe.examples': None, 'probe.factors': (1.0, 100.0)},
    'or leave out large probe.factors, which make batches of up to 800',
  ),
  'chosen': (
    {'probe.examples': None, 'probe.factors': (1.0, 100.0)},
    'probe.examples is None, so 800 was chosen (1 times a batch of 800), and ',
  ),
  'rate': ({'probe.learning_rate': 'rul'}, 'choose one of none, rule, tune'),
  'at': ({'probe.at': 'lst'}, "give 'last', 'all', or examples"),
  'at nothing': ({'probe.at': ''}, 'has no checkpoint of no examples'),
  'at another': (
    {'probe.at': '48 50'},
    "after 50 examples, but after 48, 96: give those, 'last' or 'all'",
  ),
  'another run': ({'optimizer.beta1': 0.8}, 'another config: optimizer.beta1'),
  'replicas': (
    {'sync.name': 'local_sgd', 'sync.replicas': 2},
    'another config: sync.name',
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused(run, tmp_path, name):
  overrides, line = REFUSED[name]
  with pytest.raises(ConfigError) as caught:
    ask(run, tmp_path / 'probe', **overrides)
  text = str(caught.value)
  assert line in text, text
  assert '\n' not in text
  assert not any(tmp_path.iterdir())


def test_places_that_are_refused(run, tmp_path):
  for inside in (run, run / 'probe', run.parent / 'run' / '..' / 'run' / 'a'):
    with pytest.raises(ConfigError, match='lies in the run'):
      ask(run, inside)
  (tmp_path / 'link').symlink_to(run)
  with pytest.raises(ConfigError, match='lies in the run'):
    ask(run, tmp_path / 'link' / 'probe')
  (tmp_path / 'file').write_text('')
  with pytest.raises(ConfigError, match='cannot write to'):
    ask(run, tmp_path / 'file')


def test_a_directory_that_may_not_be_written_to(tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'access', lambda path, how: False)
  with pytest.raises(ConfigError, match='give another probe.directory'):
    ProbeStore(tmp_path).open()


def test_no_run(tmp_path):
  with pytest.raises(ConfigError, match='holds no checkpoints: give --workdir'):
    ask(tmp_path / 'none', tmp_path / 'probe')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ConfigError, match='holds no checkpoints'):
    ask(tmp_path / 'empty', tmp_path / 'probe')


def test_a_run_whose_checkpoints_are_gone(run, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints')
  (tmp_path / 'run' / 'checkpoints').mkdir()
  (tmp_path / 'run' / 'best' / '3').mkdir(parents=True)
  with pytest.raises(ConfigError, match='holds no checkpoints'):
    ask(tmp_path / 'run', tmp_path / 'probe')
  assert not (tmp_path / 'probe').exists()


def test_of_replicas(tmp_path):
  keys = {'sync.name': 'local_sgd', 'sync.replicas': 2, 'max_updates': 1}
  train(config(**keys), tmp_path / 'run', devices=ONE)
  with pytest.raises(ConfigError, match="probe a run with sync.name='synchro"):
    ask(tmp_path / 'run', tmp_path / 'probe', **keys)


def test_optimizers_that_nobody_has_an_exponent_of(tmp_path):
  keys = {'optimizer.name': 'optax.lion', 'max_updates': 1}
  train(config(**keys), tmp_path / 'run', devices=ONE)
  with pytest.raises(ConfigError, match='set learning_rate.damping_exponent'):
    ask(tmp_path / 'run', tmp_path / 'probe', **keys)
  keys |= {'probe.learning_rate': 'none', 'probe.repeats': 1}
  found = ask(tmp_path / 'run', tmp_path / 'probe', **keys)
  (point,) = found['points']
  assert {row['rate'] for row in point['table']} == {1.0}
  assert 'adam' not in point['noise']


def test_a_rate_that_has_come_to_nothing(tmp_path):
  keys = {'learning_rate.decay.name': 'cosine'}
  train(config(**keys), tmp_path / 'run', devices=ONE)
  with pytest.raises(ConfigError, match='come to 0 after the 96 examples'):
    ask(tmp_path / 'run', tmp_path / 'probe', **keys)
  assert not (tmp_path / 'probe').exists()


def own(train_images, evaluated):
  def split(n, seed):
    images = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 1))
    labels = np.arange(n) % 2
    return from_arrays({'image': images.astype(np.uint8), 'label': labels}, 2)

  return split(train_images, 0), split(evaluated, evaluated)


def test_splits_of_ones_own(tmp_path):
  """One held-out example is too few, and none may be of training."""
  splits = own(300, 1)
  train(config(), tmp_path / 'run', devices=ONE, splits=splits)
  given = config(**{'probe.directory': str(tmp_path / 'probe')})

  def refused(line, splits, config=given):
    with pytest.raises(ConfigError, match=line):
      probe(config, tmp_path / 'run', devices=ONE, splits=splits)
    assert not (tmp_path / 'probe').exists()

  refused('has 1 example, and differences', splits)
  refused('has the examples of the training', (splits[0], splits[0]))
  refused('trained on other evaluation data', own(300, 20))
  two = config(
    **{'probe.directory': str(tmp_path / 'probe'), 'probe.workers': 2}
  )
  refused('your own splits cannot be sent to another', own(300, 20), two)


def test_the_split_that_is_trained_on(tmp_path):
  keys = {'data.eval_split': 'train', 'max_updates': 1}
  train(config(**keys), tmp_path / 'run', devices=ONE)
  with pytest.raises(ConfigError, match='is what is trained on'):
    ask(tmp_path / 'run', tmp_path / 'probe', **keys)


# Beside a run that goes on.


def test_checkpoints_that_go_while_they_are_read(run, tmp_path, monkeypatch):
  """One of 'all' is left out, and one that was named is missed."""
  workdir, place = tmp_path / 'run', tmp_path / 'probe'
  read = Checkpoints.read

  def going(self, update, template):
    if template is not None and update == 6:
      shutil.rmtree(workdir / 'checkpoints' / '6', ignore_errors=True)
    return read(self, update, template)

  monkeypatch.setattr(Checkpoints, 'read', going)
  keys = {'probe.repeats': 1}
  shutil.copytree(run, workdir)
  found = ask(workdir, place, **keys | {'probe.at': 'all'})
  assert [point['update'] for point in found['points']] == [12]
  shutil.copytree(run / 'checkpoints' / '6', workdir / 'checkpoints' / '6')
  with pytest.raises(ConfigError, match='of update 6 has been removed by the'):
    ask(workdir, place, **keys | {'probe.at': '48'})


def test_while_the_run_goes_on(tmp_path):
  """Each checkpoint goes with the next one; its lock is the run's."""
  keys = {
    'max_updates': 100_000,
    'epochs': 10_000.0,
    'checkpoint.keep': 1,
    'checkpoint.every_updates': 5,
    'log.every_updates': 1000,
    'probe.repeats': 1,
    'probe.factors': (1.0, 2.0),
    'probe.noise_examples': 3,
  }
  workdir, stop, failed = tmp_path / 'run', threading.Event(), []

  def go_on():
    try:
      train(config(**keys), workdir, devices=ONE, stop=stop)
    except BaseException as error:  # noqa: BLE001
      failed.append(error)

  thread = threading.Thread(target=go_on)
  thread.start()
  try:
    while not any(p.name.isdigit() for p in workdir.glob('checkpoints/*')):
      assert thread.is_alive(), failed
      time.sleep(0.02)
    found = [
      ask(workdir, tmp_path / 'probe', **keys | {'probe.at': at})
      for at in ('last', 'all', 'last')
    ]
  finally:
    stop.set()
    thread.join()
  assert failed == []
  updates = [point['update'] for one in found for point in one['points']]
  assert len(updates) >= 3
  assert updates == sorted(updates)
  assert updates[-1] > updates[0]


def test_tokens_are_those_of_the_run(tmp_path):
  """Its lock is somebody else's, and nothing is made anew."""
  keys = small_text(tmp_path) | SMALL_LSTM
  keys |= {'probe.repeats': 1, 'probe.factors': (1.0,), 'max_updates': 2}
  workdir = tmp_path / 'run'
  train(config(**keys), workdir, devices=ONE)
  before, lock = look(workdir), Workdir(workdir)
  lock.lock()
  found = ask(workdir, tmp_path / 'probe', **keys)
  lock.unlock()
  assert found['tokens_per_example'] == 10
  assert look(workdir) == before
  shutil.rmtree(workdir / 'text')
  with pytest.raises(DatasetError, match='is missing: start the run again'):
    ask(workdir, tmp_path / 'other', **keys)


TWO = """
import json, pathlib, sys
from adabatch.devices import processes

_, address, number, run, place = sys.argv
processes.join(True, address, 2, int(number))
from adabatch.train import probe_job, probe_store
from tests.train.test_probe_job import ask

def fail(*arguments):
  raise AssertionError('only the first process writes')

if number == '1':
  probe_store.write_whole = probe_job.write_json = fail
  probe_store.ProbeStore.open = probe_store.ProbeStore.claim = fail
for _ in range(2):
  found = ask(pathlib.Path(run), pathlib.Path(place), devices=None)
print(json.dumps(found))
"""


def test_two_processes_say_what_one_does(run, probed, tmp_path):
  """And once more, when there is nothing left to be made."""
  script = tmp_path / 'script.py'
  script.write_text(TWO)
  place = tmp_path / 'probe'
  (out, _), (other, _) = finish(
    start_two(lambda address, i: [script, address, i, run, place])
  )
  found = json.loads(out.splitlines()[-1])
  assert json.loads(other.splitlines()[-1]) == {
    'job': 'probe',
    'status': 'completed',
  }
  assert json.loads((place / 'probe.json').read_text()) == found
  (ours,), (theirs,) = (f['points'] for f in (found, probed[1]))
  for a, b in zip(ours['table'], theirs['table'], strict=True):
    assert a['loss'] == pytest.approx(b['loss'], rel=1e-5)
    for name in ('difference', 'error'):
      assert a[name] == pytest.approx(b[name], abs=1e-5)
  noise = [p['noise']['simple']['trace_covariance'] for p in (ours, theirs)]
  assert noise[0] == pytest.approx(noise[1], rel=0.3)  # of other batches
  assert len(branches(place)) == BRANCHES + 1


def test_what_no_other_process_can_do():
  """Not a network of one's own, nor a device that there is once."""

  def told(platform='cpu', **overrides):
    c = config(**{'probe.workers': 3} | overrides)
    devices = types.SimpleNamespace(platform=platform)
    recipe = types.SimpleNamespace(devices=devices)
    parts = types.SimpleNamespace(config=c, recipe=recipe)
    try:
      probe_workers.check_workers(parts, None)
    except ConfigError as error:
      return str(error)
    return None

  assert told() is None
  assert told('tpu', **{'probe.workers': 1}) is None
  assert 'probe.workers=3 is for CPUs' in told('tpu')
  with pytest.MonkeyPatch.context() as m:
    m.setitem(REGISTRIES['model'][0], 'mine', type('Mine', (), {}))
    line = told(**{'model.name': 'mine'})
  assert "model.name='mine' cannot be sent to another process" in line
  assert 'start the same command several times' in line


def test_no_memory_for_a_branch_is_said(run, tmp_path, monkeypatch):
  def full(self, call, **how):
    raise JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating')

  monkeypatch.setattr(Trainer, 'dispatch', full)
  with pytest.raises(ConfigError, match='no memory for a branch with batches'):
    ask(run, tmp_path)


def test_a_limit_that_the_run_found_holds(tmp_path, monkeypatch):
  """Of branches as well, which are larger than its batches."""
  keys = {'buckets.max_per_device': 'auto', 'probe.repeats': 1}
  most, kept = [], Checkpoints.save

  def save(self, update, state, host):
    host['at_once']['most'] = 5
    return kept(self, update, state, host)

  monkeypatch.setattr(Checkpoints, 'save', save)
  train(config(**keys), tmp_path / 'run', devices=ONE)
  dispatch = Trainer.dispatch

  def spy(self, call, **how):
    most.append(call.plan.bucket.microbatch_size)
    return dispatch(self, call, **how)

  monkeypatch.setattr(Trainer, 'dispatch', spy)
  ask(tmp_path / 'run', tmp_path / 'probe', **keys)
  assert max(most) <= 5
