"""Streaming: what is read, in which sequence, by processes that end."""

import io
import multiprocessing
import os
import pathlib
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from adabatch.data import images, jpeg, labels, order, streaming
from adabatch.data.images import open_images
from adabatch.data.resident import load
from adabatch.data.source import Chunk, Shape
from adabatch.data.streaming import read_chunks
from adabatch.data.tfds_records import DatasetError
from tests.tfds_sets import PREPARED, encode_png, needs, write_tfds

ROOT = pathlib.Path(__file__).parents[2]
COUNT = 20
SIZE = 16


def encode_jpegs(count=COUNT):
  rng = np.random.default_rng(0)
  found = []
  for _ in range(count):
    height, width = (int(n) for n in rng.integers(30, 60, 2))
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    found.append(simplejpeg.encode_jpeg(pixels, colorsubsampling='420'))
  return found


def labels_of(count=COUNT):
  return [index % 3 for index in range(count)]


@pytest.fixture
def data_dir(tmp_path):
  write_tfds(tmp_path, encode_jpegs(), labels_of())
  return tmp_path


def opened(data_dir, split='train', **options):
  options = {'seed': 5, 'image_size': SIZE, 'eval_resize': 20} | options
  return open_images('tiny', split, data_dir, **options)


def joined(chunks):
  """All chunks as one, and their lengths."""
  with chunks:
    found = list(chunks)
  arrays = {
    key: np.concatenate([chunk.arrays[key] for chunk in found])
    for key in found[0].arrays
  }
  lengths = [len(chunk.arrays['weight']) for chunk in found]
  return arrays, sum((chunk.skipped for chunk in found), ()), lengths


def assert_equal(found, expected):
  assert found.keys() == expected.keys()
  for key, array in expected.items():
    np.testing.assert_array_equal(found[key], array, key)


class Numbers:
  """Examples that tell who they are; picklable."""

  num_examples = 10

  def read(self, indices, positions):
    places = -np.ones_like(indices) if positions is None else positions
    weight = np.ones(len(indices), np.float32)
    arrays = {'index': indices, 'position': places, 'weight': weight}
    return Chunk(arrays, ())


class Dying(Numbers):
  """Ends its process, or raises, at the twelfth position."""

  def __init__(self, raises=False):
    self.raises = raises

  def read(self, indices, positions):
    if positions.max() >= 12:
      if self.raises:
        raise LookupError('no such example')
      os.kill(os.getpid(), signal.SIGKILL)
    return super().read(indices, positions)


class Sized(Numbers):
  """Of 48 bytes each."""

  shapes = {'image': Shape((4, 4, 3), np.dtype(np.uint8))}  # noqa: RUF012


@pytest.mark.parametrize(
  ('workers', 'ahead', 'again', 'slots'),
  # A worker reads ahead as many chunks of 2 as it and grain hold, and 2 more.
  [(1, 8, False, 6), (2, 4, True, 4), (4, 32, False, 6), (4, 32, True, 4)],
)
def test_room_is_asked_for_all_that_readers_take(
  monkeypatch, workers, ahead, again, slots
):
  """An evaluation that begins later is not to fail for want of it."""
  asked = []

  class Enough(Exception):
    pass

  def start(part, each):
    raise Enough

  monkeypatch.setattr(streaming.segments, 'check_room', asked.append)
  monkeypatch.setattr(streaming, '_in_worker', start)
  blocks = []
  init = streaming._Blocks.__init__

  def noting(self, *args):
    blocks.append(self)
    init(self, *args)

  monkeypatch.setattr(streaming._Blocks, '__init__', noting)
  how = {'workers': workers, 'chunk': 2, 'read_ahead': ahead, 'again': again}
  with pytest.raises(Enough):
    read_chunks(Sized(), None, 0, **how)
  assert blocks[0].slots == slots
  assert asked == [workers * slots * 2 * 48]


# --- what an example is ---


def test_an_example_is_its_crop(data_dir):
  source = opened(data_dir)
  positions = np.array([0, 3, 10**12])
  indices = np.array([2, 19, 7])
  chunk = source.read(indices, positions)
  encoded = encode_jpegs()
  for row, (index, position) in enumerate(zip(indices, positions, strict=True)):
    words = jpeg.position_words(5, int(position))
    size = jpeg.image_size(encoded[index])
    box = jpeg.random_resized_box(*size, words)
    expected = jpeg.decode_crop(encoded[index], box, SIZE, 3)
    if jpeg.flips(words):
      expected = expected[:, ::-1]
    np.testing.assert_array_equal(chunk.arrays['image'][row], expected)
  assert chunk.arrays['label'].tolist() == [2, 1, 1]
  assert chunk.arrays['weight'].tolist() == [1, 1, 1]
  assert chunk.skipped == ()
  for key, shape in source.shapes.items():
    assert chunk.arrays[key].shape[1:] == shape.shape
    assert chunk.arrays[key].dtype == shape.dtype


def test_evaluation_cuts_the_middle(data_dir):
  source = opened(data_dir)
  chunk = source.read(np.arange(3), None)
  for row, encoded in enumerate(encode_jpegs()[:3]):
    box = jpeg.central_box(*jpeg.image_size(encoded), 20, SIZE)
    expected = jpeg.decode_crop(encoded, box, SIZE, 3)
    np.testing.assert_array_equal(chunk.arrays['image'][row], expected)


def test_randomness_is_keyed_by_seed_and_position(data_dir):
  def image(seed, position):
    source = opened(data_dir, seed=seed)
    chunk = source.read(np.array([4]), np.array([position]))
    return chunk.arrays['image'].tobytes()

  assert image(1, 8) == image(1, 8)
  assert len({image(1, 8), image(1, 9), image(2, 8)}) == 3


def test_min_area(data_dir):
  source = opened(data_dir, min_area=1.0)
  positions = np.arange(40)
  indices = np.zeros_like(positions)
  found = source.read(indices, positions).arrays['image']
  # Nearly all of the image, so all crops of it resemble each other.
  assert len({image.tobytes() for image in found}) < 10


def test_labels_that_are_none(tmp_path):
  """They are no damage: nothing of the kind is skipped."""
  write_tfds(tmp_path, encode_jpegs(3), [0, 3, -1])
  source = opened(tmp_path)
  for call in (source.check_labels, lambda: source.read(np.arange(3), None)):
    with pytest.raises(DatasetError) as caught:
      call()
    assert str(caught.value).startswith(
      "data set 'tiny', split 'train', record 1 has the label 3, but there are "
      '3 classes, 0 to 2: correct it'
    )
  with pytest.raises(DatasetError, match=r'record 2 has the label -1'):
    source.read(np.array([2]), np.array([5]))


def test_labels_of_a_large_split_are_looked_at_from_all_over(
  tmp_path, monkeypatch
):
  images = encode_jpegs(20)
  write_tfds(tmp_path / 'good', images, labels_of(20))
  write_tfds(tmp_path / 'late', images, [*labels_of(18), 3, 0])
  write_tfds(tmp_path / 'damaged', [b'x'] * 20, labels_of(20))
  (file,) = tmp_path.glob('late/**/*.array_record*')
  monkeypatch.setattr(labels, '_RECORDS', 4)
  for share, seen in ((1.0, 20), (0.5, 10), (0.0, 1)):
    monkeypatch.setattr(
      labels, 'READ_BYTES', share * file.stat().st_size + share
    )
    asked = []
    source = opened(tmp_path / 'good')

    class Counted:
      def __getitems__(self, numbers, records=source._records, asked=asked):
        asked += numbers
        return records.__getitems__(numbers)

    labels.check_records(source._split, Counted())
    assert asked == list(range(0, 20, 20 // seen))
    opened(tmp_path / 'damaged').check_labels()
    if seen > 1:
      with pytest.raises(DatasetError, match='record 18 has the label 3'):
        opened(tmp_path / 'late').check_labels()


class Labelled(Numbers):
  """Labels 0 to 9 and tokens alike; picklable."""

  def __init__(self, key, num_classes, weight=1.0):
    self.key, self.num_classes, self.weight = key, num_classes, weight

  def read(self, indices, positions):
    values = indices if self.key == 'label' else np.stack([indices] * 3, -1)
    weight = np.full(len(indices), self.weight, np.float32)
    return Chunk({self.key: values, 'weight': weight}, ())


@pytest.mark.parametrize(
  ('key', 'message'),
  [
    ('label', 'record 7 has the label 7, but there are 7 classes'),
    ('tokens', 'record 7 has the token 7, but .*: tokenise again'),
  ],
)
def test_classes_of_any_source_are_checked(key, message):
  with read_chunks(Labelled(key, 7), None, 0, chunk=4) as chunks:
    next(chunks)
    with pytest.raises(DatasetError, match=message):
      next(chunks)
  # Nor of what does not count.
  with read_chunks(Labelled(key, 7, 0.0), None, 0, chunk=4) as chunks:
    assert len(list(chunks)) == 3


def test_records_that_cannot_be_used(tmp_path):
  good = encode_jpegs(8)
  broken = list(good)
  broken[1] = good[1][: len(good[1]) // 2]
  broken[3] = b'no image at all'
  broken[4] = b''
  cut = bytearray(good[6])
  start = cut.index(b'\xff\xda') + 100
  cut[start : start + 60] = b'\xff\xc5' * 30
  broken[6] = bytes(cut)
  write_tfds(tmp_path / 'good', good, labels_of(8))
  write_tfds(tmp_path / 'broken', broken, labels_of(8))
  for positions in (None, np.arange(8)):
    expected = opened(tmp_path / 'good').read(np.arange(8), positions)
    found = opened(tmp_path / 'broken').read(np.arange(8), positions)
    assert found.arrays['weight'].tolist() == [1, 0, 1, 0, 0, 1, 0, 1]
    used = found.arrays['weight'] == 1
    for key in ('image', 'label'):
      array = found.arrays[key]
      np.testing.assert_array_equal(array[used], expected.arrays[key][used])
      assert not array[~used].any()
    assert [index for index, _ in found.skipped] == [1, 3, 4, 6]
    for _, reason in found.skipped:
      assert reason
      assert '\n' not in reason


def test_records_that_cannot_be_read(data_dir):
  source = opened(data_dir)
  (records,) = data_dir.rglob('*.array_record*')
  content = bytearray(records.read_bytes())
  # In the middle of a record, whose checksum is wrong from now on.
  at = content.index(b'\xff\xd8\xff', len(content) // 8) + 200
  content[at : at + 20] = bytes(20)
  records.write_bytes(content)
  arrays, skipped, _ = joined(read_chunks(source, None, 0, chunk=7))
  assert len(skipped) == 1
  index = skipped[0][0]
  assert 0 < index < COUNT - 1
  assert np.flatnonzero(arrays['weight'] == 0).tolist() == [index]


# --- images as stored ---


@pytest.mark.parametrize('shape', [(9, 8, 3), (None, None, 3)])
def test_stored_images_are_the_resident_ones(tmp_path, shape):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (10, 9, 8, 3), dtype=np.uint8)
  write_tfds(tmp_path, images, labels_of(10), shape)
  resident = load('tiny', 'train[2:]', tmp_path)
  source = opened(tmp_path, 'train[2:]', image_size=None)
  assert source.num_classes == resident.num_classes
  arrays, _, _ = joined(read_chunks(source, None, 0, chunk=3))
  assert (arrays.pop('weight') == 1).all()
  assert_equal(arrays, resident.arrays)
  # The same in training: crops of such images are made on the device.
  trained = order.Order(8, 0)
  arrays, _, _ = joined(read_chunks(source, trained, 5, stop=21, chunk=3))
  rows = order.take(trained, 5, 21)
  np.testing.assert_array_equal(arrays['image'], resident.arrays['image'][rows])


def test_an_image_of_another_size_is_skipped(tmp_path):
  images = [np.zeros((5, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)]
  write_tfds(tmp_path, [images[0], images[1], images[0]], [0, 1, 2])
  chunk = opened(tmp_path, image_size=None).read(np.arange(3), None)
  assert chunk.skipped == ((1, 'images differ in size (5x4 and 4x4)'),)
  write_tfds(tmp_path / 'ends', images, [0, 1])
  with pytest.raises(DatasetError, match='set image_size'):
    opened(tmp_path / 'ends', image_size=None)


@needs('cifar10')
def test_cifar10_streamed_is_cifar10_resident():
  resident = load('cifar10', 'train[45000:47000]', PREPARED)
  source = open_images('cifar10', 'train[45000:47000]', PREPARED)
  arrays, skipped, _ = joined(read_chunks(source, None, 0, chunk=500))
  assert skipped == ()
  assert (arrays.pop('weight') == 1).all()
  assert_equal(arrays, resident.arrays)


# --- opening ---


@pytest.mark.parametrize(
  ('options', 'part'),
  [
    ({'split': 'test'}, 'it has train'),
    ({'image_size': 21}, 'image_size=21'),
    ({'image_size': 0}, 'image_size=0'),
    ({'min_area': 0.0}, 'min_area=0.0'),
    ({'seed': -1}, 'seed=-1'),
  ],
)
def test_what_cannot_be_opened(data_dir, options, part):
  with pytest.raises(DatasetError) as caught:
    opened(data_dir, **options)
  assert part in str(caught.value)
  assert '\n' not in str(caught.value)


def test_missing_sets_and_files(data_dir):
  for name, advice in (
    ('mnist', r'adabatch\[prepare\]'),
    ('other', "write it to .*/other/VERSION .* has no 'other' to prepare"),
  ):
    with pytest.raises(DatasetError, match=advice):
      open_images(name, 'train', data_dir)
  (records,) = data_dir.rglob('*.array_record*')
  records.unlink()
  with pytest.raises(DatasetError, match='damaged'):
    opened(data_dir)


def test_fingerprint(data_dir, tmp_path):
  first = opened(data_dir).fingerprint
  assert first.startswith('tiny 1.0.0 train, 20 examples, 3 classes, ')
  others = [opened(data_dir, 'train[:50%]').fingerprint]
  write_tfds(tmp_path / 'b', encode_jpegs()[::-1] + [b'x'], labels_of(21))
  others.append(opened(tmp_path / 'b').fingerprint)
  assert len({first, *others}) == 3
  # Not where it lies, and not how it is cropped.
  (tmp_path / 'c').mkdir()
  (data_dir / 'tiny').rename(tmp_path / 'c' / 'tiny')
  assert opened(tmp_path / 'c', seed=1).fingerprint == first


def test_a_source_is_picklable_after_it_was_read(data_dir):
  source = opened(data_dir)
  expected = source.read(np.arange(4), None)
  copy = pickle.loads(pickle.dumps(source))
  assert_equal(copy.read(np.arange(4), None).arrays, expected.arrays)


# --- the sequence ---


@pytest.mark.parametrize('processes', [1, 3])
@pytest.mark.parametrize('chunk', [1, 4, 100])
@pytest.mark.parametrize('start', [0, 7, 25])
def test_positions_and_their_examples(processes, chunk, start):
  followed = order.Order(10, 3)
  everything = []
  for process in range(processes):
    arrays, skipped, lengths = joined(
      read_chunks(
        Numbers(),
        followed,
        start,
        stop=41,
        process=process,
        processes=processes,
        chunk=chunk,
      )
    )
    expected = order.process_positions(start, 41, process, processes)
    np.testing.assert_array_equal(arrays['position'], expected)
    np.testing.assert_array_equal(
      arrays['index'], order.indices(followed, np.array(expected, np.int64))
    )
    assert skipped == ()
    assert all(length == chunk for length in lengths[:-1])
    everything.append(arrays['position'])
  union = np.sort(np.concatenate(everything))
  np.testing.assert_array_equal(union, np.arange(start, 41))


def test_without_an_order_every_example_once():
  arrays, _, _ = joined(read_chunks(Numbers(), None, 0, chunk=4))
  assert arrays['index'].tolist() == list(range(10))
  assert (arrays['position'] == -1).all()
  arrays, _, _ = joined(
    read_chunks(Numbers(), None, 0, process=1, processes=4, chunk=2)
  )
  assert arrays['index'].tolist() == [1, 5, 9]


def test_without_a_stop_there_is_no_end():
  with read_chunks(Numbers(), order.Order(10, 0), 2**61, chunk=6) as chunks:
    for turn in range(5):
      first = next(chunks).arrays['position'][0]
      assert first == 2**61 + 6 * turn


def test_nothing_to_read():
  for workers in (0, 2):
    with read_chunks(Numbers(), None, 3, stop=3, workers=workers) as chunks:
      assert list(chunks) == []


@pytest.mark.parametrize(
  'options',
  [
    {'workers': -1},
    {'chunk': 0},
    {'read_ahead': 0},
    {'process': 2, 'processes': 2},
    {'stop': -1},
  ],
)
def test_wrong_numbers_are_refused(options):
  with pytest.raises(ValueError, match='give '):
    read_chunks(Numbers(), None, 0, **options)


# --- workers ---


def test_workers_chunks_and_restarts_change_nothing(data_dir):
  source = opened(data_dir)
  followed = order.Order(COUNT, 1)
  expected, _, _ = joined(read_chunks(source, followed, 0, stop=60, chunk=60))
  assert len({image.tobytes() for image in expected['image']}) == 60
  for workers, chunk, start in ((1, 7, 33), (2, 4, 0)):
    found, _, _ = joined(
      read_chunks(
        source, followed, start, stop=60, workers=workers, chunk=chunk
      )
    )
    assert_equal(found, {k: v[start:] for k, v in expected.items()})


def children():
  return {child.pid for child in multiprocessing.active_children()}


def threads():
  return {thread.name for thread in threading.enumerate()}


def wait_until(condition, seconds=20):
  end = time.monotonic() + seconds
  while not condition() and time.monotonic() < end:
    time.sleep(0.02)
  assert condition()


def test_close_ends_processes_and_threads():
  # The first time, grain starts a few threads that stay for good.
  joined(read_chunks(Numbers(), None, 0, workers=1))
  before = children(), threads()
  for workers, taken in ((0, 0), (0, 3), (2, 1)):
    chunks = read_chunks(
      Numbers(), order.Order(10, 0), 0, workers=workers, chunk=2
    )
    assert len(children() - before[0]) == workers
    for _ in range(taken):
      next(chunks)
    began = time.monotonic()
    chunks.close()
    assert time.monotonic() - began < 20
    chunks.close()  # once more does no harm
    assert children() <= before[0]
    wait_until(lambda: threads() <= before[1])
    with pytest.raises(StopIteration):
      next(chunks)


class Readers(Numbers):
  """Examples that tell which process read them."""

  def read(self, indices, positions):
    chunk = super().read(indices, positions)
    pid = np.full(len(indices), os.getpid())
    return chunk._replace(arrays=chunk.arrays | {'pid': pid})


def test_the_same_processes_read_every_pass():
  with read_chunks(
    Readers(), None, 0, workers=2, chunk=2, again=True
  ) as chunks:
    started = children()
    # Five chunks a pass, so that it ends amid the workers' turns.
    passes = [[next(chunks).arrays for _ in range(5)] for _ in range(3)]
    assert children() == started
  for chunks in passes:
    indices = np.concatenate([chunk['index'] for chunk in chunks])
    assert indices.tolist() == list(range(10))
    pids = [int(chunk['pid'][0]) for chunk in chunks]
    assert pids == [int(chunk['pid'][0]) for chunk in passes[0]]
    assert len(set(pids)) == 2
    assert set(pids) <= started


def drain(chunks):
  for _ in range(100):
    next(chunks)


@pytest.mark.parametrize('workers', [1, 2])
def test_a_dead_worker_raises(workers):
  with read_chunks(
    Dying(), order.Order(10, 0), 0, workers=workers, chunk=2
  ) as chunks:
    began = time.monotonic()
    with pytest.raises(RuntimeError, match='terminated unexpectedly'):
      drain(chunks)
    assert time.monotonic() - began < 20
  assert children() == set()


@pytest.mark.parametrize('workers', [0, 1])
def test_an_error_in_a_worker_is_raised_here(workers):
  with (
    read_chunks(
      Dying(raises=True), order.Order(10, 0), 0, workers=workers, chunk=2
    ) as chunks,
    pytest.raises(LookupError, match='no such example'),
  ):
    drain(chunks)


SCRIPT = """
import os, sys, time
import numpy as np
from adabatch.data import Chunk, Order, read_chunks

print('main', flush=True)

class Source:
  num_examples = 10

  def read(self, indices, positions):
    pids = np.full(len(indices), os.getpid())
    devices = sys.modules.get('jax._src.xla_bridge')
    started = bool(devices and devices._backends)
    return Chunk({'pid': pids, 'started': np.full(len(pids), started)}, ())

chunks = read_chunks(Source(), Order(10, 0), 0, workers=2, chunk=1)
found = [next(chunks).arrays for _ in range(4)]
assert not any(f['started'].any() for f in found), 'JAX has started'
pids = sorted({int(f['pid'][0]) for f in found})
del found
print(*pids, flush=True)
"""


def alive(pid):
  try:
    status = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except FileNotFoundError:
    return False
  return status.rpartition(')')[2].split()[0] != 'Z'


def write_script(tmp_path, ending):
  path = tmp_path / 'script.py'
  path.write_text(SCRIPT + ending)
  python_path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
  return subprocess.Popen(
    [sys.executable, str(path)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env=os.environ | {'PYTHONPATH': python_path},
    text=True,
  )


def test_a_plain_script_runs_once(tmp_path):
  """Without flags, and without `if __name__ == '__main__'`."""
  process = write_script(tmp_path, 'chunks.close()\n')
  output, errors = process.communicate(timeout=60)
  assert process.returncode == 0, errors
  lines = output.splitlines()
  assert lines[0] == 'main'
  assert len(lines) == 2
  assert len(lines[1].split()) == 2
  assert str(process.pid) not in lines[1].split()


@pytest.mark.skipif(
  not pathlib.Path('/proc/self/stat').exists(), reason='there is no /proc'
)
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
  process = write_script(tmp_path, 'time.sleep(100)\n')
  assert process.stdout
  assert process.stdout.readline() == 'main\n'
  pids = [int(pid) for pid in process.stdout.readline().split()]
  assert len(pids) == 2
  assert all(alive(pid) for pid in pids)
  process.kill()
  process.communicate()
  wait_until(lambda: not any(alive(pid) for pid in pids))


def test_many_files_may_be_open(monkeypatch):
  asked = []
  monkeypatch.setattr(resource, 'getrlimit', lambda which: (1024, 4096))
  monkeypatch.setattr(
    resource, 'setrlimit', lambda which, limits: asked.append(limits)
  )
  for count in (10, 1024, 10_000):
    images._allow_open_files(count)
  assert asked == [(1536, 4096), (4096, 4096)]


def test_png_and_cmyk_among_the_records(tmp_path):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
  cmyk = io.BytesIO()
  Image.fromarray(pixels).convert('CMYK').save(cmyk, 'JPEG')
  write_tfds(tmp_path, [encode_png(pixels), cmyk.getvalue()], [0, 1])
  chunk = opened(tmp_path).read(np.arange(2), np.arange(2))
  assert chunk.skipped == ()
  assert chunk.arrays['image'].any((1, 2, 3)).all()
