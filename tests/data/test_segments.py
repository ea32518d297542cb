"""Shared memory: nothing is left of a run that was killed, and none is full."""

import errno
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from adabatch.data import order, segments, streaming
from adabatch.data.source import Chunk, Shape
from adabatch.data.tfds_records import DatasetError
from tests.data.test_data_streaming import ROOT, wait_until

pytestmark = pytest.mark.skipif(
  segments.owner() is None, reason='there is no /dev/shm'
)

SCRIPT = """
import time
import numpy as np
from adabatch.data import Chunk, Order, read_chunks

class Source:
  num_examples = 10

  def read(self, indices, positions):
    return Chunk({'x': np.ones((len(indices), 4096))}, ())

chunks = read_chunks(Source(), Order(10, 0), 0, workers=1, chunk=2)
next(chunks)
print('started', flush=True)
time.sleep(100)
"""


FULL = os.statvfs_result((4096, 4096, 9, 0, 511, 9, 9, 9, 0, 255))


def names():
  return {path.name for path in segments.DIRECTORY.glob(f'{segments.PREFIX}-*')}


def test_a_group_that_is_killed_leaves_nothing_to_the_next_start(monkeypatch):
  process = subprocess.Popen(
    [sys.executable, '-c', SCRIPT],
    stdout=subprocess.PIPE,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    start_new_session=True,  # a group of its own
    text=True,
  )
  assert process.stdout
  assert process.stdout.readline() == 'started\n'
  numbers = segments.owner().rsplit('-', 2)[0]
  own = {n for n in names() if n.startswith(f'{numbers}-{process.pid}-')}
  assert own
  assert not own & set(segments.sweep())  # its owner lives
  os.killpg(process.pid, signal.SIGKILL)
  process.stdout.close()
  assert process.wait() == -signal.SIGKILL
  left = {n for n in names() if n.startswith(f'{numbers}-{process.pid}-')}
  assert left
  monkeypatch.setattr(os, 'statvfs', lambda path: FULL)  # nothing is started
  with pytest.raises(DatasetError):
    streaming.read_chunks(Rows(), order.Order(10, 0), 0, workers=1)
  assert not left & names()


class Rows:
  num_examples = 10
  shapes = {'x': Shape((1024,), np.dtype(np.float32))}

  def read(self, indices, positions):
    return Chunk({'x': np.ones((len(indices), 1024), np.float32)}, ())


def test_only_what_dead_owners_left_is_swept(tmp_path, monkeypatch):
  mine = segments.owner()
  numbers, pid, start = mine.rsplit('-', 2)
  monkeypatch.setattr(segments, 'DIRECTORY', tmp_path)
  elsewhere = f'{segments.PREFIX}-1-{pid}-{start}-a'  # another container
  kept = [f'{mine}-a', elsewhere, 'psm_12345678', f'{segments.PREFIX}-note']
  zombie = subprocess.Popen([sys.executable, '-c', ''])
  stat = pathlib.Path(f'/proc/{zombie.pid}/stat')
  wait_until(lambda: stat.read_text().rpartition(')')[2].split()[0] == 'Z')
  began = stat.read_text().rpartition(')')[2].split()[19]
  dead = [
    f'{numbers}-{pid}-{int(start) - 1}-a',  # its number is used again
    f'{numbers}-{2**22 + 1}-{start}-b',
    f'{numbers}-{zombie.pid}-{began}-c',
  ]
  for name in kept + dead:
    (tmp_path / name).touch()
  assert sorted(segments.sweep()) == sorted(dead)
  assert {path.name for path in tmp_path.iterdir()} == set(kept)
  zombie.wait()


def test_too_little_is_refused_before_anything_is_started(monkeypatch):
  monkeypatch.setattr(os, 'statvfs', lambda path: FULL)
  with pytest.raises(DatasetError) as error:
    streaming.read_chunks(Rows(), order.Order(10, 0), 0, workers=1)
  # 512 examples ahead, a chunk about to be added and one that was handed over;
  # for training and for an evaluation beside it.
  assert str(error.value).startswith(
    f'{segments.DIRECTORY} has 2,093,056 bytes left of the 4,718,592 in which '
  )
  assert 'data.workers=0' in str(error.value)
  assert '\n' not in str(error.value)
  with streaming.read_chunks(Rows(), order.Order(10, 0), 0) as chunks:
    next(chunks)  # a thread needs none


def kinds(*arrays):
  return {str(i): (a.shape, a.dtype) for i, a in enumerate(arrays)}


def test_slots_are_used_again():
  before, prefix = names(), f'{segments.owner()}-test'
  slots = segments.Slots(f'{prefix}x1', 2)
  borrowed = segments.Borrowed(prefix)
  arrays = np.arange(5, dtype=np.int16), np.ones((3, 4)), np.zeros((0, 2))
  out = []
  for number in range(2):
    lent, places = slots.place(kinds(*arrays))
    for place, array in zip(places.values(), arrays, strict=True):
      place[...] = array + number
    slots.lend(lent)
    out.append(lent)
  del places, place
  assert slots.place(kinds(np.ones(1))) is None  # both are lent
  for number in (1, 0, 1):
    found = borrowed.take(out[number])
    for value, array in zip(found.values(), arrays, strict=True):
      np.testing.assert_array_equal(value, array + number)
      assert value.dtype == array.dtype
  assert slots.place(kinds(np.ones(100))) is None  # larger than the first
  assert slots.place(kinds(np.ones(1)))[0].slot == 0
  assert len(names() - before) == 1
  borrowed.close()
  assert names() == before


def test_what_finds_no_slot_is_handed_over_all_the_same():
  source = Rows()
  blocks = streaming._Blocks(source, None, 0, None, 0, 1, size=4)
  blocks._pid, blocks.slots = -1, 1  # as another process has it
  before = names()
  handed = [blocks[0].arrays, blocks[1].arrays]
  borrowed = segments.Borrowed(blocks.segments)
  (lent,) = handed[0].values()
  expected = source.read(range(4), None).arrays['x']
  np.testing.assert_array_equal(borrowed.take(lent)['x'], expected)
  np.testing.assert_array_equal(handed[1]['x'], expected)
  handed[1]['x'].unlink_on_del()
  del handed
  assert list(blocks[2].arrays.values())[0].slot == 0
  borrowed.close()
  wait_until(lambda: names() == before)


def test_a_source_fills_its_slot(monkeypatch):
  class Filling(Rows):
    def read_into(self, indices, positions, arrays):
      arrays['x'][:], arrays['weight'][:] = indices[:, None], 1
      return ((3, 'damaged'),)

  blocks = streaming._Blocks(Filling(), None, 0, None, 0, 1, size=4)
  blocks._pid, blocks.slots = -1, 1
  monkeypatch.setattr(Filling, 'read', None)
  chunk = blocks[1]
  borrowed = segments.Borrowed(blocks.segments)
  arrays = borrowed.take(*chunk.arrays.values())
  borrowed.close()
  assert arrays['x'][:, 0].tolist() == [4, 5, 6, 7]
  assert arrays['weight'].tolist() == [1] * 4
  assert chunk.skipped == ((3, 'damaged'),)


def test_a_segment_for_which_there_is_no_room_is_no_bus_error(monkeypatch):
  def full(file, offset, size):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'posix_fallocate', full)
  before = names()
  with pytest.raises(DatasetError, match='of the 8,192 in which readers'):
    segments.share(np.ones(1024), segments.owner())
  slots = segments.Slots(f'{segments.owner()}-test', 3)
  with pytest.raises(DatasetError, match='of the 24,640 in which readers'):
    slots.place(kinds(np.ones(1024)))
  assert names() == before
