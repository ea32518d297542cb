"""Examples that are read while they are trained on."""

import threading

import jax
import numpy as np
import pytest

from adabatch import data
from adabatch.controllers.buckets import Bucket, Plan
from adabatch.data.order import indices
from adabatch.devices.feeds import ResidentFeed
from adabatch.devices.mesh import make_devices
from adabatch.devices.messages import Call
from adabatch.devices.stream import StreamingFeed, Window
from adabatch.train import train
from tests.experiments import column, digits, records

pytestmark = pytest.mark.usefixtures('compile_quickly')

STREAMING = {'data.placement': 'streaming', 'data.workers': 0}


class Damaged:
  """The digits, some of whose records cannot be read."""

  def __init__(self, split, bad, delay=None):
    self._split, self.bad = split, frozenset(bad)
    self.num_examples, self.num_classes = split.num_examples, split.num_classes
    self.shapes, self.fingerprint = split.shapes, split.fingerprint

  def read(self, indices, positions=None):
    chunk = self._split.read(indices, positions)
    skipped = []
    for row, index in enumerate(indices.tolist()):
      if index in self.bad:
        # What a stream gives in place of a record must not matter.
        chunk.arrays['image'][row] = 255
        chunk.arrays['weight'][row] = 0
        skipped.append((index, 'made unreadable'))
    return data.Chunk(chunk.arrays, tuple(skipped))


@pytest.fixture(scope='module')
def splits():
  return data.load('digits', 'train'), data.load('digits', 'validation')


def run(workdir, splits, devices=1, stop=None, **overrides):
  config = digits(**STREAMING | {'controller.max_batch_size': 64} | overrides)
  devices = jax.devices()[:devices]
  return train(config, workdir, devices=devices, splits=splits, stop=stop)


def epoch(split, seed=0):
  """The records in the order of the first epoch."""
  return data.take(data.Order(split.num_examples, seed), 0, split.num_examples)


class Pieces:
  """Chunks of 1, 2, 3, ... numbers."""

  def __init__(self):
    self.taken, self.size = 0, 0

  def __next__(self):
    self.size += 1
    numbers = np.arange(self.taken, self.taken + self.size)
    self.taken += self.size
    weights = np.ones(self.size, np.float32)
    return data.Chunk({'x': numbers, 'weight': weights}, ())


def test_a_window_gives_any_part_that_is_not_forgotten():
  pieces = Pieces()
  window = Window(pieces, lambda record, reason: None)

  def copy(start, n):
    out = {'x': np.zeros(n, np.int64), 'weight': np.zeros(n, np.float32)}
    window.copy(start, out)
    assert out['x'].tolist() == list(range(start, start + n))

  copy(0, 1)
  copy(0, 12)
  copy(5, 3)
  window.forget(7)
  copy(7, 20)
  copy(7, 1)
  window.forget(26)
  copy(30, 2)
  # It reads no further than it has to, and keeps no more.
  assert pieces.taken == 36
  assert sum(map(len, (kept['x'] for kept in window._kept))) == 36 - 21


@pytest.mark.parametrize('replicas', [1, 2, 8])
def test_both_feeds_fill_the_slots_with_the_same_examples(splits, replicas):
  """In the one order; also where the batch changes or training jumps."""
  split, _ = splits
  order = data.Order(split.num_examples, 3)
  devices = make_devices(jax.devices()[:4]).with_replicas(replicas)
  resident = ResidentFeed(split.arrays, order, devices, replicas)
  stream = StreamingFeed(
    split, order, devices, replicas, workers=0, skipped=pytest.fail
  )
  here = replicas // devices.rows
  position = split.num_examples - 60  # the epoch ends within
  for size, steps, batch_size, jump in (
    (4, 2, 8 * replicas, 0),
    (4, 2, 8 * replicas, 0),
    (3, 2, 5 * replicas + 1, 0),
    (3, 1, 3 * replicas, -30),
  ):
    position += jump
    bucket = Bucket(size, steps, 4 // devices.rows)
    call = Call(0, position, 1, Plan(batch_size, batch_size, 1.0, bucket))
    arrays, batch = jax.device_get(resident.take(call, 1, stop=False))
    streamed, others = jax.device_get(stream.take(call, 1, stop=False))
    np.testing.assert_array_equal(batch.header, others.header)
    np.testing.assert_array_equal(batch.rows[..., :2], others.rows[..., :2])
    layout = resident.layout
    places = layout.places(layout.first_places(position, size), bucket)
    places = places.reshape(4, here * bucket.slots_per_device)
    real = places < batch_size
    assert real.sum() == batch_size
    chosen = indices(order, position + places[real])
    rows = batch.rows[..., 2:].reshape(places.shape)
    assert rows[real].tolist() == chosen.tolist()
    assert not rows[~real].any()
    own = others.rows[..., 2:].reshape(places.shape)
    assert own.tolist() == [list(range(places.shape[1]))] * 4
    for name, array in arrays.items():
      np.testing.assert_array_equal(array[chosen], streamed[name][real])
    np.testing.assert_array_equal(streamed['weight'], real)
    position += batch_size
  resident.close()
  stream.close()


def test_a_run_that_was_stopped_goes_on_where_it_was(splits, tmp_path):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  overrides = {'max_updates': 60, 'epochs': 100.0}
  overrides['checkpoint.every_updates'] = 25
  run(whole, splits, **overrides)

  class StopAt(threading.Event):
    asked = 0

    def is_set(self):
      self.asked += 1
      return self.asked > 33

  summary = run(cut, splits, stop=StopAt(), **overrides)
  assert summary['status'] == 'preempted'
  assert 30 < summary['updates'] < 60
  assert run(cut, splits, **overrides)['status'] == 'completed'
  for key in ('update', 'loss', 'batch_size', 'learning_rate'):
    assert column(whole, key) == column(cut, key)
  assert len(set(column(whole, 'batch_size'))) > 1


def test_records_that_cannot_be_read_do_not_count(splits, tmp_path, capfd):
  """The loss of a batch is the mean over the others."""
  whole, evaluation = splits
  first = epoch(whole)[:16]
  bad = first[[2, 9]].tolist()
  fixed = {'data.mean': (0.25,), 'data.std': (0.5,)}
  fixed |= {'max_updates': 1, 'controller.name': 'constant'}
  damaged = Damaged(whole, bad)
  workdir = tmp_path / 'bad'
  summary = run(workdir, (damaged, evaluation), 3, **fixed)
  assert summary['skipped_records'] == 2
  told = capfd.readouterr().err
  for record in bad:
    line = f'skipped record {record} of train: made unreadable\n'
    assert told.count(line) == 1
  # At the same parameters, the 14 others by themselves.
  good = np.setdiff1d(first, bad)
  others = data.Split({k: v[good] for k, v in whole.arrays.items()}, 10)
  apart = {'data.placement': 'resident', 'controller.initial_batch_size': 14}
  run(tmp_path / 'good', (others, evaluation), **fixed | apart)
  for key in ('loss', 'learning_rate'):
    assert column(workdir, key) == pytest.approx(
      column(tmp_path / 'good', key), rel=1e-5
    )


def test_too_many_of_them_stop_the_run(splits, tmp_path):
  whole, evaluation = splits
  damaged = Damaged(whole, epoch(whole)[10:300:10].tolist())
  overrides = {'epochs': 2.0, 'checkpoint.every_updates': 1}
  overrides |= {
    'controller.name': 'constant',
    'controller.initial_batch_size': 64,
  }
  with pytest.raises(
    data.DatasetError, match='allow 5 of its 1438 in an epoch'
  ):
    run(tmp_path, (damaged, evaluation), **overrides | {'data.max_skipped': 5})
  # Both limits hold: 14 are 1 % of the 1,438.
  with pytest.raises(data.DatasetError, match='fraction=0.01 allow 14 of its'):
    run(tmp_path, (damaged, evaluation), **overrides | {'data.max_skipped': 29})
  # Higher limits, and it goes on; nothing is counted twice. Each epoch has its
  # own allowance: the second meets the same records again.
  overrides |= {'data.max_skipped': 29, 'data.max_skipped_fraction': 0.03}
  summary = run(tmp_path, (damaged, evaluation), **overrides)
  assert summary['status'] == 'completed'
  assert summary['skipped_records'] == 2 * 29


def test_evaluation_skips_them_too(splits, tmp_path):
  whole, evaluation = splits
  bad = [3, 200, 358]
  good = np.setdiff1d(np.arange(evaluation.num_examples), bad)
  without = data.Split({k: v[good] for k, v in evaluation.arrays.items()}, 10)
  overrides = {'max_updates': 5, 'eval.max_per_device': 50}
  splits = whole, Damaged(evaluation, bad)
  summary = run(tmp_path / 'bad', splits, 3, **overrides)
  assert summary['skipped_evaluation_records'] == 3
  assert summary['skipped_records'] == 0
  run(tmp_path / 'without', (whole, without), 3, **overrides)
  a, b = (records(tmp_path / name, 'eval')[-1] for name in ('bad', 'without'))
  assert a['loss'] == pytest.approx(b['loss'], rel=1e-5)
  assert a['accuracy'] == pytest.approx(b['accuracy'], rel=1e-6)


def test_a_batch_of_nothing_is_refused(splits, tmp_path):
  """It must not count as a loss of 0."""
  whole, evaluation = splits
  damaged = Damaged(whole, epoch(whole)[32:64].tolist())
  with pytest.raises(data.DatasetError, match='none of the 16 records'):
    run(tmp_path, (damaged, evaluation), **{'controller.name': 'constant'})


def test_an_evaluation_of_nothing_is_refused(splits, tmp_path):
  whole, evaluation = splits
  nothing = Damaged(evaluation, range(evaluation.num_examples))
  with pytest.raises(data.DatasetError, match='none of the 359 examples'):
    run(tmp_path, (whole, nothing), max_updates=1)


def test_too_many_in_an_evaluation_stop_the_run(splits, tmp_path):
  whole, evaluation = splits
  damaged = Damaged(evaluation, range(4))
  for limit, allowed in ((2, 2), (100, 3)):  # 3 are just under 1 % of the 359
    message = f'4 records of validation .* allow {allowed} of its 359'
    with pytest.raises(data.DatasetError, match=message):
      run(
        tmp_path,
        (whole, damaged),
        max_updates=1,
        **{'data.max_skipped': limit},
      )


class Mislabelled(Damaged):
  """The digits, with another label for some."""

  def read(self, indices, positions=None):
    chunk = self._split.read(indices, positions)
    chunk.arrays['label'][np.isin(indices, list(self.bad))] = 10
    return chunk


@pytest.mark.parametrize('which', [0, 1])
def test_a_label_that_is_no_class_ends_the_run(splits, tmp_path, which):
  """It is no damage, however many of those are allowed."""
  bad = [int(epoch(splits[which])[5])]
  given = list(splits)
  given[which] = Mislabelled(splits[which], bad)
  with pytest.raises(
    data.DatasetError, match=f'record {bad[0]} has the label 10, but there are'
  ):
    run(tmp_path, given, max_updates=1)


def test_a_stream_is_read_update_by_update(splits, tmp_path):
  """Whatever `updates_per_call` says."""
  for per_call in (1, 20):
    run(
      tmp_path / str(per_call),
      splits,
      max_updates=30,
      updates_per_call=per_call,
    )
  assert column(tmp_path / '1', 'loss') == column(tmp_path / '20', 'loss')


def test_a_reader_that_fails_ends_the_run(splits, tmp_path):
  class Broken(Damaged):
    def read(self, indices, positions=None):
      if positions is not None and positions[-1] > 300:
        raise OSError('the disk is gone')
      return super().read(indices, positions)

  whole, evaluation = splits
  with pytest.raises(data.DatasetError, match='failed: .*the disk is gone'):
    run(tmp_path, (Broken(whole, []), evaluation))
