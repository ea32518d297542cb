"""Damage to a checkpoint is noticed, and never makes anything worse."""

import json
import random
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import adabatch
from adabatch.devices.trainer import template
from adabatch.train import checkpoints as checkpoints_lib
from adabatch.train import train
from adabatch.train.build import build
from adabatch.train.checkpoints import (
  VERSION,
  CheckpointError,
  Checkpoints,
  VersionError,
)
from tests.experiments import digits

pytestmark = pytest.mark.usefixtures('compile_quickly')


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
  """What cannot be read is tried again without pauses."""
  monkeypatch.setattr(checkpoints_lib, 'PAUSES', (0,))


def names(directory):
  return sorted(p.name for p in directory.iterdir())


def flip(path, bit):
  content = bytearray(path.read_bytes())
  content[bit // 8] ^= 1 << bit % 8
  path.write_bytes(content)


def arrays(record):
  """Its largest file, which holds most of the arrays."""
  return max(record.glob('state/ocdbt*/d/*'), key=lambda p: p.stat().st_size)


def restored(directory, state, keep=3):
  """What is restored, and the warnings."""
  warnings, checkpoints = [], Checkpoints(directory, keep)
  try:
    return checkpoints.restore(state, warn=warnings.append), warnings
  finally:
    checkpoints.close()


def same(a, b):
  leaves = zip(*(jax.tree.leaves(x.state) for x in (a, b)), strict=True)
  values = all(
    np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves
  )
  return a.update == b.update and a.host == b.host and values


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The workdir of a small run, what it is restored into, and its records."""
  config = digits(
    max_updates=2,
    **{
      'controller.name': 'constant',
      'optimizer.name': 'momentum',
      'checkpoint.every_updates': 1,
    },
  )
  workdir, device = tmp_path_factory.mktemp('run'), jax.devices()[:1]
  train(config, workdir, devices=device)
  recipe = build(config, device).recipe

  def state(host):
    return template(recipe, host['replicas']['replicas'])

  reader = Checkpoints(workdir / 'checkpoints', None)
  records = {update: reader.read(update, state) for update in (1, 2)}
  reader.close()
  return workdir, state, records


@pytest.fixture
def copied(run, tmp_path):
  """Its checkpoints, to be damaged."""
  shutil.copytree(run[0] / 'checkpoints', tmp_path / 'checkpoints')
  return tmp_path / 'checkpoints'


@pytest.mark.parametrize('what', ['arrays', 'host', 'any file'])
def test_a_flipped_bit_never_gives_another_run(run, copied, what):
  """It is noticed, or changes nothing."""
  _, state, records = run
  draw, noticed = random.Random(0), 0
  whole, flips = copied / '2', 12
  files = [p for p in whole.rglob('*') if p.is_file() and p.stat().st_size]
  for _ in range(flips):
    file = {
      'arrays': arrays(whole),
      'host': whole / 'host' / 'metadata',
      'any file': draw.choice(sorted(files)),
    }[what]
    bit = draw.randrange(8 * file.stat().st_size)
    flip(file, bit)
    record, warnings = restored(copied, state)
    assert same(record, records[2 - len(warnings)]), (file, bit)
    if warnings:
      noticed += 1
      (copied / '2.unreadable').rename(whole)
    flip(file, bit)
  assert same(restored(copied, state)[0], records[2])
  assert noticed >= {'arrays': flips // 2, 'host': flips, 'any file': 1}[what]


@pytest.mark.parametrize('key', ['progress', 'decisions', 'replicas', 'data'])
@pytest.mark.parametrize('damage', ['missing', 'another type'])
def test_a_host_that_was_not_written_so(run, copied, key, damage):
  _, state, records = run
  file = copied / '2' / 'host' / 'metadata'
  record = json.loads(file.read_text())
  if damage == 'missing':
    del record['host'][key]
  else:
    record['host'][key] = ['x']
  file.write_text(json.dumps(record))
  found, (warning,) = restored(copied, state)
  assert same(found, records[1])
  assert 'checkpoint of update 2 cannot be read' in warning


def test_who_only_reads_notices_too(run, tmp_path):
  workdir = shutil.copytree(run[0], tmp_path / 'run')
  record = workdir / 'checkpoints' / '2'
  reader = Checkpoints(workdir / 'checkpoints', None)
  flip(arrays(record), 8000)
  with pytest.raises(CheckpointError, match='update 2 in .* cannot be read'):
    adabatch.load(workdir)
  assert reader.read(2, None).host == run[2][2].host
  flip(record / 'host' / 'metadata', 8 * 100)
  with pytest.raises(CheckpointError, match='update 2 in .* cannot be read'):
    reader.read(2, None)
  reader.close()
  assert names(workdir / 'checkpoints') == ['1', '2']


def test_one_passing_error_changes_nothing(run, copied, monkeypatch):
  _, state, records = run
  errors, read = [OSError(5, 'Input/output error')], ocp.Checkpointer.restore

  def fails_once(self, *args, **kwargs):
    if errors:
      raise errors.pop()
    return read(self, *args, **kwargs)

  monkeypatch.setattr(ocp.Checkpointer, 'restore', fails_once)
  record, warnings = restored(copied, state)
  assert not errors
  assert same(record, records[2])
  assert (warnings, names(copied)) == ([], ['1', '2'])


def test_nothing_unreadable_is_ever_removed(run, copied):
  _, state, records = run
  (copied / '2.unreadable').mkdir()
  flip(arrays(copied / '2'), 8000)
  assert same(restored(copied, state)[0], records[1])
  assert names(copied) == ['1', '2.unreadable', '2.unreadable-2']
  again = Checkpoints(copied, 1)
  assert same(again.restore(state), records[1])
  again.save(*records[2])
  again.close()
  assert names(copied) == ['2', '2.unreadable', '2.unreadable-2']
  assert same(restored(copied, state)[0], records[2])


def test_all_processes_take_the_one_that_each_can_read(
  run, copied, monkeypatch
):
  """All can be read here; another process says that it cannot read one."""
  said = [True, False, False]
  monkeypatch.setattr(
    checkpoints_lib, 'any_process', lambda own: own or said.pop(0)
  )
  record, (warning,) = restored(copied, run[1])
  assert same(record, run[2][1])
  assert 'update 2 cannot be read (by another process)' in warning
  assert names(copied) == ['1', '2.unreadable']


@pytest.mark.parametrize('first', [[1], [1, 2, 3], []])
def test_all_processes_look_at_what_the_first_sees(
  run, copied, monkeypatch, first
):
  """A directory that is shared may look older, or newer, to another."""
  said = []
  monkeypatch.setattr(checkpoints_lib, 'decide', lambda own: first)
  monkeypatch.setattr(checkpoints_lib, 'is_first_process', lambda: False)
  monkeypatch.setattr(
    checkpoints_lib, 'any_process', lambda own: said.append(own) or own
  )
  record, _ = restored(copied, run[1])
  if first:
    # Of update 3 there is nothing here: it counts as one that is unreadable.
    assert said[:1] == [3 in first]
    assert same(record, run[2][min(max(first), 2)])
  else:
    assert record is None


def test_what_a_run_goes_back_to_keeps_its_best(run, tmp_path):
  """The best since then, which may be on its way to disk, goes alone."""
  _, state, host = run[2][2]
  best = Checkpoints(tmp_path / 'best', 1)
  for update in (4, 5):
    best.save(update, state, host)
    best.wait()
  best.spare = 5  # the newest checkpoint calls it the best
  for update in (7, 8):
    best.save(update, state, host)
  best.drop_after(6)
  assert names(tmp_path / 'best') == ['5']
  best.spare = None
  best.save(9, state, host)
  best.close()
  assert names(tmp_path / 'best') == ['9']


def test_another_version_is_refused_in_one_line(run, tmp_path, monkeypatch):
  """It is whole: not taken for a damaged one."""
  _, state, records = run
  checkpoints = Checkpoints(tmp_path / 'c', 3)
  checkpoints.save(*records[1])
  checkpoints.wait()
  monkeypatch.setattr(checkpoints_lib, 'VERSION', VERSION + 1)
  checkpoints.save(*records[2])
  checkpoints.wait()
  monkeypatch.undo()
  match = f'of version {VERSION + 1}, and .* {VERSION}: '
  for read in (checkpoints.restore, lambda state: checkpoints.read(2, state)):
    with pytest.raises(VersionError, match=match) as error:
      read(state)
    assert '\n' not in str(error.value)
  checkpoints.close()
  assert names(tmp_path / 'c') == ['1', '2']


def test_old_ones_stay_until_the_new_one_was_read_back(
  run, copied, monkeypatch
):
  """One that cannot be is set aside, and the next that can lets them go."""
  read, warnings = Checkpoints._read_once, []

  def damages(self, update, state):
    if update == 3 and (copied / '3').exists():
      arrays(copied / '3').write_bytes(b'')
    return read(self, update, state)

  monkeypatch.setattr(Checkpoints, '_read_once', damages)
  checkpoints = Checkpoints(copied, 1, warnings.append)
  _, state, host = run[2][2]
  checkpoints.save(3, state, host)
  checkpoints.wait()
  (warning,) = warnings
  assert 'update 3 cannot be read back' in warning
  assert 'as 3.unreadable, and' in warning
  assert '\n' not in warning
  assert names(copied) == ['1', '2', '3.unreadable']
  checkpoints.save(4, state, host)
  checkpoints.close()
  assert names(copied) == ['3.unreadable', '4']


def test_reading_back_takes_no_memory_of_the_devices(run, tmp_path):
  """Also of a state that lies on them."""
  placed = []

  class Watched(Checkpoints):
    def _read_once(self, update, template):
      saved = super()._read_once(update, template)
      placed.extend(jax.tree.leaves(saved.state))
      return saved

  checkpoints = Watched(tmp_path / 'c', 1)
  for update in (1, 2):
    checkpoints.save(*run[2][update])
  checkpoints.close()
  assert placed
  assert not any(isinstance(x, jax.Array) for x in placed)
