"""Examples that are read while training goes on, by processes of their own.

A source reads any examples by number: `source.read(indices, positions)` gives
a `Chunk`. `read_chunks` has grain's workers do so ahead of time, in the one
order (`order.py`), so the state of all this is one integer: reading from
position p onwards is the continuation of whatever stopped there.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing
import os
import pathlib
import resource
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from adabatch.data import jpeg, labels, order, tfds_records
from adabatch.data.formats import CorruptRecord, UnsupportedImage
from adabatch.data.order import process_positions
from adabatch.data.tfds_records import DatasetError

# Examples a worker hands over at once: what handing over costs is small beside
# decoding them, and a chunk still fits in the processor's cache.
CHUNK = 32

# Examples that are ready, or nearly so, before they are asked for.
READ_AHEAD = 512

# Arrays up to this many bytes travel in a message, others in shared memory.
_MESSAGE_BYTES = 1024

_SHARED_MEMORY = pathlib.Path('/dev/shm')

# Files that a process has open beside its records.
_OTHER_FILES = 512

# How long starting processes may take at most; they then start all the same.
_START_SECONDS = 10.0


class Chunk(NamedTuple):
  """Some examples, one after the other.

  Attributes:
    arrays: all with leading axis n; 'weight', float32 [n], is among them: 1,
      or 0 for a record that could not be used, whose other entries are 0.
    skipped: (record, reason) for each of the latter.
  """

  arrays: dict[str, np.ndarray]
  skipped: tuple[tuple[int, str], ...]


class Shape(NamedTuple):
  """Shape and dtype of one example's entry."""

  shape: tuple[int, ...]
  dtype: np.dtype


class Source(Protocol):
  """What `read_chunks` reads from; picklable, for other processes.

  Where it has `num_classes`, its labels or tokens are in [0, num_classes).
  """

  @property
  def num_examples(self) -> int:
    """How many examples there are."""
    ...

  def read(self, indices: np.ndarray, positions: np.ndarray | None) -> Chunk:
    """Reads examples.

    Args:
      indices: int64 [n], which.
      positions: int64 [n], their places in the one order, the key of their
        randomness; None for no randomness.
    """
    ...


class ImageRecords:
  """One split of an image-classification set on disk; see `open_images`.

  Attributes:
    num_examples: how many records there are.
    num_classes: labels are in [0, num_classes).
    fingerprint: what the data is, in short; another string for other data.
    shapes: of one example: 'image', uint8 [S, S, C], and 'label', int32 [].
    cropped: whether images are cut to squares here.
  """

  def __init__(
    self,
    split: tfds_records.ImageSplit,
    fingerprint: str,
    image_shape: tuple[int, int, int],
    *,
    seed: int,
    crop: bool,
    flip: bool,
    eval_resize: int,
    min_area: float,
  ) -> None:
    self.num_examples = split.num_examples
    self.num_classes = split.num_classes
    self.fingerprint = fingerprint
    self.shapes = {
      'image': Shape(image_shape, np.dtype(np.uint8)),
      'label': Shape((), np.dtype(np.int32)),
    }
    self._split = split
    self._seed = seed
    self.cropped = crop
    self._flip = flip
    self._eval_resize = eval_resize
    self._min_area = min_area

  def __getstate__(self) -> dict[str, Any]:
    # Open files stay in their process.
    return {k: v for k, v in self.__dict__.items() if k != '_records'}

  def read(
    self, indices: np.ndarray, positions: np.ndarray | None = None
  ) -> Chunk:
    """Decodes examples.

    Args:
      indices: int64 [n], records in [0, num_examples).
      positions: int64 [n], the places in the one order, for a random crop and
        flip that follow from (seed, position) alone; None for the crop in the
        middle. Images of a set opened without `image_size` are always as
        stored.

    Returns:
      'image', uint8 [n, S, S, C]; 'label', int32 [n]; 'weight', float32 [n].

    Raises:
      DatasetError: for a label that is no class.
    """
    from google.protobuf import message

    n = len(indices)
    images = np.empty((n, *self.shapes['image'].shape), np.uint8)
    classes = np.zeros(n, np.int32)
    weights = np.ones(n, np.float32)
    skipped = []
    for row, index in enumerate(indices.tolist()):
      position = None if positions is None else int(positions[row])
      try:
        classes[row] = self._example(index, position, images[row])
      # array_record raises RuntimeError for a damaged file, `parse` the others
      # for a damaged record.
      except (
        CorruptRecord,
        RuntimeError,
        IndexError,
        message.DecodeError,
      ) as error:
        images[row], classes[row], weights[row] = 0, 0, 0
        skipped.append((index, tfds_records.line(error)))
    arrays = {'image': images, 'label': classes, 'weight': weights}
    return Chunk(arrays, tuple(skipped))

  def check_labels(self) -> None:
    """Refuses labels that are no classes, as far as that is cheap.

    Raises:
      DatasetError: for the first one.
    """
    labels.check_records(self._split, self._records)

  @functools.cached_property
  def _records(self) -> Any:
    if multiprocessing.parent_process():
      cv2.setNumThreads(1)  # one core for each worker
    _allow_open_files(len(self._split.shards))
    return tfds_records.open_records(self._split)

  def _example(self, index: int, position: int | None, out: np.ndarray) -> int:
    """Fills `out` and returns the label."""
    # One record at a time: a damaged one does not spoil its neighbours, and
    # array_record starts a thread for each file when asked for several.
    encoded, label = tfds_records.parse(self._records[index], self._split)
    labels.check_one(label, self._split, index)
    size, _, channels = out.shape
    if not self.cropped:
      pixels = jpeg.decode(encoded, channels)
      if pixels.shape != out.shape:
        raise CorruptRecord(_other_size(pixels.shape, out.shape))
      out[:] = pixels
      return label
    height, width = jpeg.image_size(encoded)
    flip = False
    if position is None:
      box = jpeg.central_box(height, width, self._eval_resize, size)
    else:
      words = jpeg.position_words(self._seed, position)
      flip = self._flip and jpeg.flips(words)
      box = jpeg.random_resized_box(
        height, width, words, min_area=self._min_area
      )
    jpeg.decode_crop(encoded, box, size, channels, flip=flip, out=out)
    return label


def open_images(
  name: str,
  split: str,
  data_dir: str | os.PathLike[str] | None = None,
  *,
  seed: int = 0,
  image_size: int | None = None,
  flip: bool = True,
  eval_resize: int = 256,
  min_area: float = 0.08,
) -> ImageRecords:
  """Opens one split of a TFDS image-classification set, to be read in parts.

  Args:
    name: a TFDS name, 'NAME[/CONFIG][:VERSION]'; without a version, the newest
      on disk.
    split: 'train', 'train[:80%]', 'train[1000:]', 'train+test', ...
    data_dir: holds NAME/VERSION/*.array_record*; default: TFDS_DATA_DIR, else
      ~/tensorflow_datasets.
    seed: of the crops and flips, 0 <= seed < 2**64.
    image_size: images become squares of this many pixels, cropped at random
      for training, cut from the middle for evaluation. None for images as
      they are stored, which must then have one size.
    flip: whether half of the random crops are mirrored.
    eval_resize: for evaluation, the shorter side is resized to this many
      pixels before the square is cut, so that image_size / eval_resize of it
      are seen.
    min_area: the smallest share of an image that a random crop shows.

  Raises:
    DatasetError: if the set is not prepared, has no such split, is no
      image-classification set, or does not fit the other arguments.
  """
  if image_size is not None and not 1 <= image_size <= eval_resize:
    raise DatasetError(
      f'image_size={image_size}: give 1 <= image_size <= '
      f'eval_resize={eval_resize}'
    )
  if not 0 < min_area <= 1:
    raise DatasetError(f'min_area={min_area}: give 0 < min_area <= 1')
  if not 0 <= seed < 2**64:
    raise DatasetError(f'seed={seed}: give 0 <= seed < 2**64')
  found = tfds_records.find_images(name, split, data_dir)
  try:
    sizes = [pathlib.Path(s.filename).stat().st_size for s in found.shards]
  except OSError as error:
    raise tfds_records.damaged(found, error, data_dir) from None
  channels = found.image_shape[-1]
  if image_size is not None:
    shape = image_size, image_size, channels
  else:
    shape = _stored_shape(found, data_dir)
  fingerprint = (
    f'{name} {found.version} {split}, {found.num_examples} examples, '
    f'{found.num_classes} classes, {sum(sizes)} bytes'
  )
  return ImageRecords(
    found,
    fingerprint,
    shape,
    seed=seed,
    crop=image_size is not None,
    flip=flip,
    eval_resize=eval_resize,
    min_area=min_area,
  )


def _stored_shape(
  split: tfds_records.ImageSplit, data_dir: str | os.PathLike[str] | None
) -> tuple[int, int, int]:
  """The shape of the images; of the first, where the set does not say."""
  height, width, channels = split.image_shape
  if height is not None and width is not None:
    return height, width, channels
  from google.protobuf import message

  records = tfds_records.open_records(split)
  ends = []
  index = 0
  try:
    for index in (0, len(records) - 1):
      encoded, _ = tfds_records.parse(records[index], split)
      ends.append((*jpeg.image_size(encoded), channels))
  except UnsupportedImage as error:
    raise DatasetError(
      f"data set '{split.name}', split '{split.split}', record {index}: {error}"
    ) from None
  except (
    CorruptRecord,
    RuntimeError,
    IndexError,
    message.DecodeError,
  ) as error:
    raise tfds_records.damaged(split, error, data_dir) from None
  if ends[0] != ends[1]:
    raise DatasetError(
      f"data set '{split.name}', split '{split.split}': "
      f'{_other_size(ends[1], ends[0])}: set image_size'
    )
  return ends[0]


def _other_size(found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
  return (
    f'images differ in size ({wanted[0]}x{wanted[1]} and {found[0]}x{found[1]})'
  )


def read_chunks(
  source: Source,
  order: order.Order | None,
  start: int,
  *,
  stop: int | None = None,
  process: int = 0,
  processes: int = 1,
  workers: int = 0,
  chunk: int = CHUNK,
  read_ahead: int = READ_AHEAD,
) -> Chunks:
  """Reads the positions from `start` on that belong to one process.

  These are the positions p with p = process (mod processes), in sequence; what
  stands there does not depend on any argument but `source` and `order`.

  Args:
    source: where examples come from.
    order: which example stands at which position; None for example p at
      position p, without randomness, as for evaluation.
    start: the first position, >= 0.
    stop: the position after the last; None for no end (with an order) or for
      all examples once (without).
    process: this process, 0 <= process < processes.
    processes: number of processes, >= 1.
    workers: how many processes read for this one; 0 for a thread in it.
    chunk: examples in each `Chunk`; the last may be shorter.
    read_ahead: about how many examples may wait until they are asked for.

  Returns:
    An iterator of chunks. Close it, or use it in a `with` statement.

  Raises:
    ValueError: if a number is out of range.
    DatasetError: while iterating, for a label or a token that is no class.

  >>> class Squares:
  ...   num_examples = 5
  ...
  ...   def read(self, indices, positions):
  ...     return Chunk({'square': indices**2, 'weight': np.ones(3)}, ())
  >>> with read_chunks(Squares(), None, 0, chunk=3) as chunks:
  ...   [c.arrays['square'].tolist() for c in chunks]
  [[0, 1, 4], [9, 16]]
  """
  if workers < 0 or chunk < 1 or read_ahead < 1:
    raise ValueError(
      f'workers={workers}, chunk={chunk}, read_ahead={read_ahead}: give '
      'workers >= 0, chunk >= 1, read_ahead >= 1'
    )
  blocks = _Blocks(source, order, start, stop, process, processes, chunk)
  return Chunks(blocks, workers, read_ahead)


class Chunks:
  """The iterator that `read_chunks` returns."""

  def __init__(self, blocks: _Blocks, workers: int, read_ahead: int) -> None:
    import grain  # slow to import
    from absl import flags

    if not flags.FLAGS.is_parsed():
      # grain reads its flags, also in a program that has no command line.
      flags.FLAGS.mark_as_parsed()
    ahead = -(-read_ahead // blocks.size)  # chunks
    every = grain.MapDataset.source(blocks)
    workers = min(workers, len(every))
    if workers:
      self._iterators = [
        iter(_in_worker(every[worker::workers], ahead // workers))
        for worker in range(workers)
      ]
    else:
      options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
      self._iterators = [iter(every.to_iter_dataset(options))]
    self._turn = 0
    with unseen_main(), _signals_blocked():
      others = set(multiprocessing.active_children())
      for iterator in self._iterators:
        iterator.get_state()  # or there is nothing to be started yet
        iterator.start_prefetch()
      # A thread of grain's starts the processes.
      deadline = time.monotonic() + _START_SECONDS
      while (
        len(set(multiprocessing.active_children()) - others) < workers
        and time.monotonic() < deadline
      ):
        time.sleep(0.001)

  def __iter__(self) -> Iterator[Chunk]:
    return self

  def __next__(self) -> Chunk:
    if not self._iterators:
      raise StopIteration
    # Workers are dealt the chunks in turn, so the first that has no more is
    # the end.
    arrays, skipped = next(self._iterators[self._turn])
    self._turn = (self._turn + 1) % len(self._iterators)
    # Copied, so that the shared memory is free at once, however many examples
    # the caller keeps.
    return Chunk({k: np.array(v) for k, v in arrays.items()}, skipped)

  def __enter__(self) -> Chunks:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends the processes and threads that read ahead."""
    iterators, self._iterators = self._iterators, []
    # Side by side, because each waits for its process.
    closing = [threading.Thread(target=it.close) for it in iterators]
    for thread in closing:
      thread.start()
    for thread in closing:
      thread.join()
    # grain holds the last chunk of each worker, in cycles of references, and
    # with it shared memory.
    del iterators, closing
    gc.collect()


def _in_worker(dataset: Any, ahead: int) -> Any:
  """A part of the data set, read by a process of its own."""
  import grain
  from grain import experimental, multiprocessing

  # The process reads in its main thread; its queue is the buffer, and grain
  # has a second one of the same length in this process.
  serial = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  options = experimental.DatasetOptions(min_shm_size=_MESSAGE_BYTES)
  return experimental.WithOptionsIterDataset(
    dataset.to_iter_dataset(serial), options
  ).mp_prefetch(
    multiprocessing.MultiprocessingOptions(
      num_workers=1, per_worker_buffer_size=max(1, ahead // 2)
    ),
    worker_init_fn=_start_worker,
  )


class _Blocks:
  """All chunks of one process by number, as grain wants them."""

  def __init__(
    self,
    source: Source,
    order: order.Order | None,
    start: int,
    stop: int | None,
    process: int,
    processes: int,
    size: int,
  ) -> None:
    if stop is None:
      # Without an end, so many that the last position still is an int64.
      stop = 2**62 if order else source.num_examples
    self.size = size
    self._source = source
    self._order = order
    self._positions = process_positions(start, stop, process, processes)

  def __len__(self) -> int:
    return -(-len(self._positions) // self.size)

  def __getitem__(self, index: int) -> Chunk:
    mine = self._positions[index * self.size : (index + 1) * self.size]
    positions = np.arange(mine.start, mine.stop, mine.step, dtype=np.int64)
    if self._order is None:
      indices = positions
      chunk = self._source.read(indices, None)
    else:
      indices = order.indices(self._order, positions)
      chunk = self._source.read(indices, positions)
    classes = getattr(self._source, 'num_classes', None)
    if classes is not None:
      labels.check(chunk.arrays, classes, lambda row: f'record {indices[row]}')
    if multiprocessing.parent_process():
      _check_shared_memory(chunk)
    return chunk


def _allow_open_files(count: int) -> None:
  """Raises the limit of this process, where `count` more files need it.

  ImageNet has 1,024 files, array_record keeps all of them open, and 1,024 is
  what many systems allow unless they are asked.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = count + _OTHER_FILES
  if hard != resource.RLIM_INFINITY:
    wanted = min(wanted, hard)
  if soft != resource.RLIM_INFINITY and soft < wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _check_shared_memory(chunk: Chunk) -> None:
  """Raises an error where writing would end the process with a bus error.

  Containers often have 64 MB.
  """
  if not _SHARED_MEMORY.is_dir():
    return
  status = os.statvfs(_SHARED_MEMORY)
  free = status.f_bavail * status.f_frsize
  # Others may be about to write as well.
  needed = 2 * sum(array.nbytes for array in chunk.arrays.values())
  if free < needed:
    raise MemoryError(
      f'{_SHARED_MEMORY} has {free:,} bytes left, and workers hand over their '
      'examples there: make it larger (docker run --shm-size=...), read less '
      'far ahead, or with fewer workers'
    )


def _start_worker(index: int, count: int) -> None:
  """Runs in each worker process before it reads."""
  del index, count
  # grain's workers wait forever for a parent that was killed.
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  parent = multiprocessing.parent_process()
  if parent:
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
  """Processes and threads that are started meanwhile never get these signals.

  A Ctrl-C, or a scheduler's SIGTERM, reaches the whole group: the main process
  then needs its workers to come to a clean end.
  """
  # Starting it would unblock them again.
  resource_tracker.ensure_running()
  signals = {signal.SIGINT, signal.SIGTERM}
  before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


_main_lock = threading.Lock()


@contextlib.contextmanager
def unseen_main() -> Iterator[None]:
  """Processes that are started meanwhile do not import the main program.

  Python's spawned processes begin by running the main program's file again,
  which brings along all that it imports, and does everything twice where the
  file has no `if __name__ == '__main__'`. Workers need none of it.
  """
  with _main_lock:
    main = sys.modules['__main__']
    sys.modules['__main__'] = types.ModuleType('__main__')
    try:
      yield
    finally:
      sys.modules['__main__'] = main
