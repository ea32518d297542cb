"""A checksum is of the values, wherever they lie, and of each row apart."""

import zlib

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adabatch.devices import checksums as checksums_lib
from adabatch.devices.agreed import Differ
from adabatch.devices.checksums import checksums, differing
from adabatch.devices.mesh import make_devices
from adabatch.devices.replicas import SyncState
from adabatch.devices.trainer import BY_REPLICA, WHOLE

WHERE = SyncState(WHOLE, WHOLE, WHOLE, BY_REPLICA)


def make_state(replicas=4):
  noise = np.random.default_rng(0).standard_normal((5, 3))
  anchor = {'w': noise.astype(jax.numpy.bfloat16)}
  rows = np.stack([noise + i for i in range(replicas)])
  counts = np.arange(replicas, dtype=np.int32)
  return SyncState(anchor, {}, (), {'w': rows, 'count': counts, 'flag': {}})


def placed(state, devices):
  mesh = make_devices(jax.devices()[:devices]).with_replicas(4)
  return mesh.place(state, WHERE)


@pytest.mark.parametrize('devices', [1, 2, 8])
def test_the_same_on_any_devices(devices):
  state = make_state()
  state.replicas['w'] = state.replicas['w'].astype(np.float32)
  expected = checksums(state)
  w = state.replicas['w']
  assert expected['params/w'] == zlib.crc32(state.params['w'].tobytes())
  assert expected['replicas/w'] == [zlib.crc32(row.tobytes()) for row in w]
  there = placed(state, devices)
  assert checksums(there) == expected
  assert differing(there, expected) == []


def test_any_bit_is_seen_in_the_row_that_a_process_has():
  state = make_state()
  expected = checksums(state)
  state.replicas['w'].view(np.uint8)[2, 4, 7] ^= 1
  assert differing(state, expected) == ['replicas/w']
  # One that sees the first two rows alone finds nothing wrong with them.
  state.replicas['w'] = state.replicas['w'][:2]
  assert differing(state, expected) == []


@pytest.mark.parametrize('bytes_', [0, 7, 4096, 3 * 4096 + 13, 2**17 + 8])
def test_large_ones_by_their_pages(bytes_):
  noise = np.random.default_rng(bytes_)
  x = noise.integers(0, 256, bytes_ + 1, np.uint8)[1:]  # lies anywhere
  sums, rest = b'', x.tobytes()
  while len(rest) >= 4096:
    page, rest = rest[:4096], rest[4096:]
    words = (page[i : i + 8] for i in range(0, 4096, 8))
    total = sum(int.from_bytes(word, 'little') for word in words)
    sums += (total % 2**64).to_bytes(8, 'little')
  assert checksums({'x': x}) == {'x': zlib.crc32(sums + rest)}
  whole = x.reshape(-1)
  for bit in noise.integers(0, 8 * bytes_, 50 if bytes_ else 0):
    whole[bit // 8] ^= 1 << bit % 8
    assert differing({'x': x}, {'x': zlib.crc32(sums + rest)}) == ['x']
    whole[bit // 8] ^= 1 << bit % 8
  if bytes_ > 2 * 4096:  # pages that changed places
    swapped = np.concatenate([x[4096:8192], x[:4096], x[8192:]])
    assert differing({'x': swapped}, checksums({'x': x})) == ['x']


def test_arrays_that_are_missing_or_too_many():
  expected = checksums({'a': np.zeros(2), 'b': np.zeros(3)})
  assert differing({'a': np.zeros(2)}, expected) == ['b']
  assert differing({'a': np.zeros(2), 'b': np.zeros(3), 'c': 0}, expected) == [
    'c'
  ]


def test_columns_apart_are_refused():
  mesh = Mesh(np.array(jax.devices()[:2]), ('data',))
  sharding = NamedSharding(mesh, PartitionSpec(None, 'data'))
  x = jax.device_put(np.zeros((2, 4)), sharding)
  with pytest.raises(ValueError, match='w is spread along another axis'):
    checksums({'w': x})


def test_processes_with_other_values_are_noticed(monkeypatch):
  """Three processes, of which each sees the first array and some rows."""
  state = {'a': np.zeros(2), 'b': np.ones(3)}
  own = np.array(list(checksums(state).values()), np.uint32)

  def of_three(sums):
    assert sums == own.tolist()
    return np.array([own, own * [1, 0], own * [1, 1] + [0, others]], np.uint32)

  monkeypatch.setattr(checksums_lib, '_of_all_processes', of_three)
  others = 0
  assert list(checksums(state).values()) == own.tolist()
  others = 1
  with pytest.raises(Differ, match='in their state: b has other values'):
    checksums(state)
