"""The long attacks in `benchmarks/` do what they say."""

import json
import pathlib
import random
import shutil
import sys
import time

import jax
import numpy as np
import pytest

from adabatch.config import ConfigError
from adabatch.train import train
from benchmarks import disturbances, flipped_bits, soak, torture
from benchmarks.disturbances import Away, Commands, Moment, Undisturbed
from benchmarks.torture_jobs import (
  JOBS,
  Setting,
  commands,
  differences,
  results,
  settings,
)
from tests.experiments import digits

KINDS = list(disturbances.KINDS)
ALONE = Setting('adadamp', 1)


def test_every_kind_meets_every_setting_that_it_fits():
  there = settings(list(JOBS))
  number = len(KINDS) * len(there)
  drawn = [torture.draw(0, i, KINDS, there) for i in range(number)]
  assert {kind for _, kind, _ in drawn[:8]} == set(KINDS)
  met = {(kind, setting) for setting, kind, _ in drawn}
  fitting = {(k, s) for k in KINDS for s in there if torture.fits(k, s)}
  assert met == fitting
  assert {s.processes for k, s in met if k == 'lost'} == {2}
  again = [torture.draw(0, i, KINDS, there)[:2] for i in range(number)]
  assert again == [d[:2] for d in drawn]
  assert again != [torture.draw(1, i, KINDS, there)[:2] for i in range(number)]


def test_a_moment_is_before_a_line_at_a_save_or_in_time(tmp_path):
  kinds = [('train', 4), ('train', 4), ('eval', None), ('train', 8)]
  lines = [{'kind': k} | ({'batch_size': b} if b else {}) for k, b in kinds]
  done = Undisturbed({}, 10.0, lines, 2)
  assert disturbances.places(done, 'step') == [1, 3]
  assert disturbances.places(done, 'evaluation') == [2]
  assert disturbances.places(done, 'decision') == [3]

  def come(where, share):
    moment = Moment(where, share, 0.0)
    return disturbances.watch(moment, done, tmp_path, time.monotonic())()

  assert not come('evaluation', 0.5)
  (tmp_path / 'metrics.jsonl').write_text('{}\n{}\n{')
  assert come('evaluation', 0.5)
  assert not come('decision', 0.5)
  assert come('anywhere', 0.0)
  assert not come('anywhere', 0.5)
  (tmp_path / 'checkpoints' / '20.being-written').mkdir(parents=True)
  assert come('save', 0.4)
  assert not come('save', 0.6)


@pytest.fixture
def sleeping(monkeypatch, tmp_path):
  """Two processes that only wait, as a job's."""
  script = 'import time; print("here", flush=True); time.sleep(60)'
  monkeypatch.setattr(
    disturbances, 'commands', lambda *_: [[sys.executable, '-c', script]] * 2
  )
  monkeypatch.setattr(disturbances, 'STOPPED', 0.0)
  monkeypatch.setattr(disturbances, 'PATIENCE', 0.3)
  return Commands(ALONE, tmp_path / 'try', tmp_path)


def gone(running):
  return not any(
    pathlib.Path(f'/proc/{process.pid}').exists()
    for process in running.processes
  )


def test_no_process_is_left_behind_where_something_raises(sleeping):
  def fails():
    with sleeping:
      assert sleeping.running()
      raise RuntimeError

  with pytest.raises(RuntimeError):
    fails()
  assert gone(sleeping)


@pytest.mark.parametrize(
  ('kind', 'status', 'ended'),
  [
    ('kill', {-9}, False),  # the other one goes on, and is ended
    ('kill_group', {-9}, True),
    ('term', {-15, -9}, False),
    ('stop', {-9}, False),
  ],
)
def test_what_a_disturbance_does(sleeping, kind, status, ended, tmp_path):
  with sleeping as running:
    while running.text().count('here') < 2:
      time.sleep(0.01)
    found = disturbances.disturb(
      kind, running, random.Random(0), 'tmpfs', tmp_path
    )
    assert found == (True, ended)
    assert set(running.status()) == status
  with Commands(ALONE, tmp_path / 'try', tmp_path) as running:
    running.processes[0].kill()
    running.processes[0].wait()
    again = disturbances.disturb(
      'kill_group', running, random.Random(0), 'tmpfs', tmp_path
    )
    assert again[0] is False, 'not all of them were running'


def test_a_limit_on_files_stands_for_a_full_disk(monkeypatch, tmp_path):
  script = f"""
print('here', flush=True)
with open({str(tmp_path / 'file')!r}, 'ab', buffering=0) as file:
  while True:
    file.write(b'x')
"""
  line = [sys.executable, '-c', script]
  monkeypatch.setattr(disturbances, 'commands', lambda *_: [line])
  with Commands(ALONE, tmp_path / 'try', tmp_path) as running:
    while 'here' not in running.text():
      time.sleep(0.01)
    rng = random.Random(0)
    found = disturbances.disturb('disk', running, rng, 'RLIMIT_FSIZE', tmp_path)
    assert found == (True, True)
    # 120 where Python cannot write its last words, which go to a file as well.
    assert running.status() in ([1], [120])


def test_a_file_is_away_until_somebody_looked(tmp_path, monkeypatch):
  monkeypatch.setattr(disturbances, 'AWAY', 0.0)
  record = tmp_path / 'checkpoints' / '20'
  record.mkdir(parents=True)
  (record / 'metadata').write_text('all')
  away = Away(record, tmp_path / 'aside', random.Random(0))
  away.look()
  assert not (record / 'metadata').exists()
  list(record.parent.iterdir())
  for _ in range(2):
    away.look()
    time.sleep(0.001)
  assert (record / 'metadata').read_text() == 'all'


def test_two_processes_are_given_one_address(tmp_path):
  two = commands(Setting('adadamp', 1, 2), tmp_path, tmp_path)
  assert [c[-1] for c in two] == ['--process_id=0', '--process_id=1']
  assert two[0][:-1] == two[1][:-1]
  assert len(commands(Setting('search', 1), tmp_path, tmp_path)) == 2


def test_what_differs_is_named(tmp_path):
  whole, other = tmp_path / 'whole', tmp_path / 'other'
  device = jax.devices()[:1]
  config = digits(max_updates=3, **{'model.mlp.hidden_sizes': (4,)})
  train(config, whole, devices=device)
  shutil.copytree(whole, other)
  found = results(whole)
  assert "checkpoints: ['params']['Dense_0']['kernel']" in found
  assert differences(results(other), found) == []
  metrics = other / 'metrics.jsonl'
  first, *rest = metrics.read_text().splitlines(keepends=True)
  line = json.loads(first) | {'seconds': -1.0}
  metrics.write_text(''.join([json.dumps(line) + '\n', *rest]))
  assert differences(results(other), found) == []
  line['loss'] += 1e-9
  metrics.write_text(''.join([json.dumps(line) + '\n', *rest]))
  summary = json.loads((other / 'summary.json').read_text())
  (other / 'summary.json').write_text(json.dumps(summary | {'examples': 0}))
  differ = ['metrics.jsonl: line 1', 'summary.json: examples']
  assert differences(results(other), found) == differ


def test_one_bit_is_flipped(tmp_path):
  before = bytes(range(200))
  (tmp_path / 'file').write_bytes(before)
  (tmp_path / 'empty').touch()
  disturbances.flip(tmp_path.iterdir(), random.Random(0))
  after = (tmp_path / 'file').read_bytes()
  assert len(after) == len(before)
  changed = np.bitwise_xor(
    *(np.frombuffer(b, np.uint8) for b in (before, after))
  )
  assert np.bitwise_count(changed).sum() == 1


@pytest.mark.parametrize(
  ('found', 'lines', 'outcome'),
  [
    ({'summary.json: updates': 3}, [], 'harmless'),
    ({'summary.json: updates': 3}, ['update 20 cannot be read'], 'fell back'),
    ({'summary.json: updates': 4}, ['update 20 cannot be read'], 'WRONG'),
    ({}, [], 'WRONG'),
    (
      {'summary.json: updates': 3, 'metrics.jsonl: line 2': 0},
      ['line 2 is damaged'],
      'noticed',
    ),
    ({'summary.json: updates': 3, 'metrics.jsonl: line 2': 0}, [], 'WRONG'),
    (ConfigError('one line'), [], 'refused'),
    (ConfigError('two\nlines'), [], 'TRACEBACK'),
    (KeyError('what'), [], 'TRACEBACK'),
    (TimeoutError(), [], 'CRASHED'),
  ],
)
def test_how_a_flipped_bit_is_judged(found, lines, outcome):
  expected = {'summary.json: updates': 3}, ['resumed']
  assert flipped_bits.judge(found, lines, *expected)[0] == outcome


def test_growth_is_seen_and_drawn():
  flat = {'resident_bytes': 4e8, 'open_files': 30, 'threads': 20}
  samples = [{'seconds': 5.0 * i, 'updates': 100 * i} | flat for i in range(90)]
  for i, one in enumerate(samples):
    one['resident_bytes'] += 1e6 * i
  found = soak.columns(samples)
  grown = {
    key: soak.growth(found[key], statistic)
    for key, (_, _, statistic) in soak.PANELS.items()
  }
  assert grown['resident_bytes'] == pytest.approx(100 * 60 / 426.1, 1e-3)
  assert grown['open_files'] == grown['updates_per_second'] == 0
  figure = soak.draw(found, grown)
  assert 'open files: +0.00 %' in figure.axes[1].get_title('left')
  highest = figure.axes[0].lines[0].get_ydata()
  assert max(np.asarray(highest)) == pytest.approx(489)
