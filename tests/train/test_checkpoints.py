"""A record comes back exactly, or the one before it does, and says so."""

import functools
import inspect
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import (
  Mesh,
  NamedSharding,
  PartitionSpec,
  SingleDeviceSharding,
)

from adabatch.devices import state as state_lib
from adabatch.train import checkpoints as checkpoints_lib
from adabatch.train.checkpoints import CheckpointError, Checkpoints


class State(NamedTuple):
  """Every kind of leaf that a train state may hold."""

  params: dict
  count: jax.Array
  key: jax.Array
  nothing: None
  inner: tuple


def make_state(value):
  """A state in which every array depends on `value`."""
  noise = np.random.Generator(np.random.Philox(int(value))).standard_normal
  return State(
    params={
      'kernel': jnp.asarray(noise((40, 30)), jnp.float32),
      'half': jnp.asarray(noise(7), jnp.bfloat16),
      'flag': jnp.array([True, value % 2 == 0]),
    },
    count=jnp.int32(value),
    key=jnp.array([2**32 - 1, int(value)], jnp.uint32),
    nothing=None,
    inner=(jnp.float32(math.nan), {'empty': ()}),
  )


def host(update):
  return {
    'examples': 2**40 + update,
    'nominal': 64.1 + update,
    'seconds': 0.1 + 0.2,
    'final': {'validation': {'loss': None}},
    'reached': None,
    'controller': [1, 1e-300, 'ema'],
  }


def assert_equal(got, expected):
  """Structure, dtypes and every bit."""
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
    assert isinstance(a, jax.Array)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def fill(directory, updates, keep=10):
  checkpoints = Checkpoints(directory, keep)
  for update in updates:
    checkpoints.save(update, make_state(update), host(update))
  checkpoints.close()
  return directory


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
  """What cannot be read is tried again without pauses."""
  monkeypatch.setattr(checkpoints_lib, 'PAUSES', (0, 0))


def names(directory):
  return sorted(p.name for p in directory.iterdir())


@pytest.fixture
def opened():
  """Opens checkpoints, and closes them after the test."""
  made = []

  def make(directory, keep=10):
    made.append(Checkpoints(directory, keep))
    return made[-1]

  yield make
  for checkpoints in made:
    checkpoints.close()


def test_a_record_comes_back_exactly(tmp_path, opened):
  checkpoints = opened(tmp_path / 'c')
  checkpoints.save(3, make_state(3), host(3))
  checkpoints.wait()
  for reader in (checkpoints, opened(tmp_path / 'c')):
    record = reader.restore(make_state(0), warn=pytest.fail)
    assert record.update == 3
    assert isinstance(record.state, State)
    assert_equal(record.state, make_state(3))
    assert record.host == host(3)


def test_numbers_that_are_not_finite_come_back(tmp_path, opened):
  checkpoints = opened(tmp_path / 'c')
  numbers = {'loss': math.nan, 'best': -math.inf, 'tiny': 5e-324}
  checkpoints.save(1, make_state(1), numbers)
  checkpoints.wait()
  got = checkpoints.restore(make_state(0)).host
  assert math.isnan(got.pop('loss'))
  assert got == {'best': -math.inf, 'tiny': 5e-324}


@pytest.mark.parametrize('keep_gradient', [False, True])
def test_a_train_state_comes_back_exactly(tmp_path, opened, keep_gradient):
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
      return nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))

  def make(seed):
    state = state_lib.create(
      Model(),
      jnp.ones((1, 4)),
      optax.chain(optax.clip(1.0), optax.adamw(0.1, mu_dtype=jnp.bfloat16)),
      jax.random.key(seed),
      keep_gradient=keep_gradient,
    )
    return jax.tree.map(lambda x: x + jnp.asarray(seed, x.dtype), state)

  checkpoints = opened(tmp_path / 'c')
  checkpoints.save(1, make(5), {})
  checkpoints.wait()
  assert_equal(checkpoints.restore(make(0)).state, make(5))


def test_no_record_is_none(tmp_path, opened):
  checkpoints = opened(tmp_path / 'new' / 'c')
  assert checkpoints.restore(make_state(0), warn=pytest.fail) is None


def test_the_newest_are_kept(tmp_path, opened):
  directory = fill(tmp_path / 'c', (1, 2, 10, 9999, 10000), keep=2)
  assert names(directory) == ['10000', '9999']
  assert opened(directory).restore(make_state(0)).update == 10000


def test_an_update_is_saved_once(tmp_path, opened):
  checkpoints = opened(tmp_path / 'c')
  checkpoints.save(1, make_state(1), {'first': True})
  checkpoints.save(1, make_state(2), {'first': False})
  checkpoints.wait()
  assert checkpoints.restore(make_state(0)).host == {'first': True}


def test_training_may_go_on_while_a_record_is_written(tmp_path, opened):
  """The next update overwrites the buffers of the state in place."""

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state):
    return jax.tree.map(lambda x: x + jnp.asarray(1, x.dtype), state)

  def large(value):
    return {'w': jnp.full((512, 512), value, jnp.float32)}

  update(large(0))
  checkpoints = opened(tmp_path / 'c')
  state = large(1)
  checkpoints.save(1, state, {})
  for _ in range(3):
    state = update(state)
  jax.block_until_ready(state)
  checkpoints.wait()
  assert_equal(checkpoints.restore(large(0)).state, large(1))


def test_a_state_is_placed_like_the_template(tmp_path, opened):
  """Written from one layout of the devices, read into another."""
  devices = np.array(jax.devices())
  mesh = Mesh(devices, ('data',))
  split = NamedSharding(mesh, PartitionSpec('data'))
  single = SingleDeviceSharding(devices[-1])
  replicated = NamedSharding(mesh, PartitionSpec())
  value = np.arange(8.0 * len(devices), dtype=np.float32)
  for update, (written, read) in enumerate(
    [(split, single), (single, replicated), (replicated, split)], 1
  ):
    checkpoints = opened(tmp_path / str(update))
    checkpoints.save(update, jax.device_put({'x': value}, written), {})
    checkpoints.wait()
    template = jax.device_put({'x': np.zeros_like(value)}, read)
    got = checkpoints.restore(template).state['x']
    assert got.sharding == read
    np.testing.assert_array_equal(got, value)


# Records that cannot be read.


@pytest.fixture(scope='module')
def three(tmp_path_factory):
  """Checkpoints of updates 1, 2 and 3, to be copied and damaged."""
  return fill(tmp_path_factory.mktemp('three') / 'c', (1, 2, 3))


def empty(path):
  path.write_bytes(b'')


def halve(path):
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])


def flip(path, bit):
  content = bytearray(path.read_bytes())
  content[bit // 8 % len(content)] ^= 1 << bit % 8
  path.write_bytes(content)


def delete(path):
  shutil.rmtree(path) if path.is_dir() else path.unlink()


def biggest(directory):
  """The file of a record that holds most of the arrays."""
  return max(directory.rglob('ocdbt*/d/*'), key=lambda p: p.stat().st_size)


DAMAGES = {
  'array data emptied': lambda d: empty(biggest(d)),
  'array data cut short': lambda d: halve(biggest(d)),
  'array data deleted': lambda d: delete(biggest(d)),
  'array index emptied': lambda d: empty(d / 'state' / 'manifest.ocdbt'),
  'array index deleted': lambda d: delete(d / 'state' / 'manifest.ocdbt'),
  'arrays deleted': lambda d: delete(d / 'state' / 'ocdbt.process_0'),
  'tree emptied': lambda d: empty(d / 'state' / '_METADATA'),
  'tree cut short': lambda d: halve(d / 'state' / '_METADATA'),
  'state deleted': lambda d: delete(d / 'state'),
  'host emptied': lambda d: empty(d / 'host' / 'metadata'),
  'host cut short': lambda d: halve(d / 'host' / 'metadata'),
  'host file deleted': lambda d: delete(d / 'host' / 'metadata'),
  'host deleted': lambda d: delete(d / 'host'),
  'everything deleted': lambda d: [delete(p) for p in d.iterdir()],
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_broken_record_gives_way_to_the_one_before(
  three, tmp_path, opened, damage
):
  directory = tmp_path / 'c'
  shutil.copytree(three, directory)
  DAMAGES[damage](directory / '3')
  warnings = []
  checkpoints = opened(directory)
  record = checkpoints.restore(make_state(0), warn=warnings.append)
  assert record.update == 2
  assert_equal(record.state, make_state(2))
  assert record.host == host(2)
  (warning,) = warnings
  assert warning.startswith('checkpoint of update 3 cannot be read (')
  assert '\n' not in warning
  # The broken one is set aside, and training comes by update 3 again.
  assert names(directory) == ['1', '2', '3.unreadable']
  checkpoints.save(3, make_state(33), host(33))
  checkpoints.wait()
  record = opened(directory).restore(make_state(0), warn=pytest.fail)
  assert record.update == 3
  assert_equal(record.state, make_state(33))
  assert record.host == host(33)


def test_emptying_any_file_never_gives_a_wrong_state(three, tmp_path, opened):
  """What the file was needed for is either not needed or given up."""
  given_up = 0
  files = sorted(p.relative_to(three) for p in (three / '3').rglob('*'))
  for i, file in enumerate(f for f in files if (three / f).is_file()):
    directory = tmp_path / str(i)
    shutil.copytree(three, directory)
    empty(directory / file)
    warnings = []
    record = opened(directory).restore(make_state(0), warn=warnings.append)
    assert record.update == 3 - len(warnings)
    assert_equal(record.state, make_state(record.update))
    assert record.host == host(record.update)
    given_up += len(warnings)
  assert given_up >= 3


def test_nothing_else_is_said(three, tmp_path):
  """In a process of its own, because complaints come until its end."""
  directory = tmp_path / 'c'
  shutil.copytree(three, directory)
  delete(directory / '3' / 'state' / 'ocdbt.process_0')
  flip(directory / '2' / 'state' / 'manifest.ocdbt', 150)
  flip(directory / '1' / '_CHECKPOINT_METADATA', 8)
  code = f"""
import gc, pathlib
from adabatch.train import checkpoints as lib
from tests.train.test_checkpoints import make_state
lib.PAUSES = ()
checkpoints = lib.Checkpoints(pathlib.Path({str(directory)!r}), 3)
assert checkpoints.restore(make_state(0)).update == 1
checkpoints.close()
gc.collect()
"""
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=Path(__file__).parents[2],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.count('\n') == 2
  for word in ('Exception', 'Traceback', 'ERROR'):
    assert word not in done.stderr


def test_other_complaints_are_still_heard(three, tmp_path, opened, monkeypatch):
  said = []
  monkeypatch.setattr(sys, 'unraisablehook', lambda u: said.append(u.object))

  class Complains:
    def __del__(self):
      raise KeyError('deleted')

  directory = tmp_path / 'c'
  shutil.copytree(three, directory)
  before = sys.unraisablehook
  opened(directory).restore(make_state(0), warn=pytest.fail)
  assert sys.unraisablehook is before
  empty(directory / '3' / 'host' / 'metadata')
  opened(directory).restore(make_state(0), warn=lambda message: None)
  Complains()
  # Reads that an earlier test abandoned may be collected at any time.
  heard = [what for what in said if not inspect.iscoroutine(what)]
  assert heard == [Complains.__del__]


def test_two_broken_records(three, tmp_path, opened):
  directory = tmp_path / 'c'
  shutil.copytree(three, directory)
  empty(biggest(directory / '3'))
  delete(directory / '2' / 'host')
  warnings = []
  record = opened(directory).restore(make_state(0), warn=warnings.append)
  assert record.update == 1
  assert_equal(record.state, make_state(1))
  assert [w.split()[3] for w in warnings] == ['3', '2']
  assert names(directory) == ['1', '2.unreadable', '3.unreadable']


def test_only_broken_records_are_an_error_and_stay(three, tmp_path, opened):
  directory = tmp_path / 'c'
  shutil.copytree(three, directory)
  for update in '123':
    empty(directory / update / 'host' / 'metadata')
  warnings = []
  with pytest.raises(CheckpointError, match='none of the checkpoints in'):
    opened(directory).restore(make_state(0), warn=warnings.append)
  assert len(warnings) == 3
  assert names(directory) == ['1', '2', '3']


def test_a_state_of_another_shape_is_not_taken(three, tmp_path, opened):
  directory = tmp_path / 'c'
  shutil.copytree(three, directory)
  state = make_state(0)
  other = state._replace(params=state.params | {'half': jnp.zeros(8)})
  with pytest.raises(CheckpointError):
    opened(directory).restore(other, warn=lambda message: None)


def test_a_half_written_directory_is_no_record(three, tmp_path, opened):
  """What a process that was killed while it saved leaves behind."""
  directory = tmp_path / 'c'
  shutil.copytree(three, directory)
  half = directory / '9.orbax-checkpoint-tmp'
  shutil.copytree(directory / '3', half)
  delete(half / 'host')
  checkpoints = opened(directory)
  record = checkpoints.restore(make_state(0), warn=pytest.fail)
  assert record.update == 3
  checkpoints.save(4, make_state(4), host(4))
  checkpoints.wait()
  assert names(directory) == ['1', '2', '3', '4']
  assert opened(directory).restore(make_state(0)).update == 4


def test_nothing_but_a_half_written_directory_is_no_record(tmp_path, opened):
  directory = tmp_path / 'c'
  (directory / '1.orbax-checkpoint-tmp' / 'state').mkdir(parents=True)
  assert opened(directory).restore(make_state(0), warn=pytest.fail) is None


def test_foreign_files_do_no_harm(three, tmp_path, opened):
  directory = tmp_path / 'c'
  shutil.copytree(three, directory)
  (directory / 'notes.txt').write_text('copied from the cluster')
  (directory / 'old').mkdir()
  record = opened(directory).restore(make_state(0), warn=pytest.fail)
  assert record.update == 3


def test_only_large_arrays_are_split_among_devices(tmp_path, monkeypatch):
  """Each slice of each shape is a program to compile."""
  sliced = []
  slice_in_dim = jax.lax.slice_in_dim

  def counted(x, *arguments, **how):
    sliced.append(x.shape)
    return slice_in_dim(x, *arguments, **how)

  monkeypatch.setattr(jax.lax, 'slice_in_dim', counted)
  everywhere = NamedSharding(Mesh(jax.devices()[:2], 'd'), PartitionSpec())
  arrays = {'small': jnp.ones(64), 'large': jnp.arange(2.0**19)}
  state = jax.device_put(arrays, everywhere)
  checkpoints = Checkpoints(tmp_path, 1)
  checkpoints.save(1, state, {})
  checkpoints.wait()
  assert sliced == [(2**19,)] * 2
  assert_equal(checkpoints.read(None, state).state, state)
  checkpoints.close()


def test_who_only_reads_sees_what_another_removes(tmp_path, monkeypatch):
  """Orbax looks at each record that it lists, which may be gone by then."""
  for name in ('10', '5', '12.orbax-checkpoint-tmp-3', '7.unreadable'):
    (tmp_path / name).mkdir()
  monkeypatch.delattr(checkpoints_lib.ocp, 'CheckpointManager')
  there = Checkpoints(tmp_path, keep=None)
  assert there.updates() == [5, 10]
  (tmp_path / '5').rmdir()
  assert there.updates() == [10]
  there.close()
