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
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

import numpy as np

from adabatch.data import labels, order, segments
from adabatch.data.order import process_positions
from adabatch.data.source import Chunk, Shape, Source

# Examples a worker hands over at once: what handing over costs is small beside
# decoding them, and a chunk still fits in the processor's cache.
CHUNK = 32

# Examples that are ready, or nearly so, before they are asked for.
READ_AHEAD = 512

# Arrays up to this many bytes travel in a message, others in shared memory.
_MESSAGE_BYTES = 1024

# Beside the names of arrays: those that lie in a slot of shared memory.
_LENT = '(lent)'

# How long starting processes may take at most; they then start all the same.
_START_SECONDS = 10.0


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
  again: bool = False,
  beside: int | None = None,
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
    again: whether the first chunk comes after the last, without end, so that
      the processes need not be started for each pass. A thread ends.
    beside: how many other streams of such examples will be read beside this
      one, and must find room, too; None: one with an order, else none.

  Returns:
    An iterator of chunks. Close it, or use it in a `with` statement.

  Raises:
    ValueError: if a number is out of range.
    DatasetError: if there is too little shared memory; while iterating, also
      for a label or a token that is no class.

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
  streams = 1 + (order is not None if beside is None else beside)
  return Chunks(blocks, workers, read_ahead, again, streams)


class Chunks:
  """The iterator that `read_chunks` returns."""

  def __init__(
    self,
    blocks: _Blocks,
    workers: int,
    read_ahead: int,
    again: bool = False,
    streams: int = 1,
  ) -> None:
    import grain  # slow to import
    from absl import flags

    if not flags.FLAGS.is_parsed():
      # grain reads its flags, also in a program that has no command line.
      flags.FLAGS.mark_as_parsed()
    ahead = -(-read_ahead // blocks.size)  # chunks
    every = grain.MapDataset.source(blocks)
    self._workers = workers = min(workers, len(every))
    # Chunks after which the first worker has its turn again.
    self._pass = len(blocks) if again and workers else sys.maxsize
    self._borrowed = segments.Borrowed(blocks.segments)
    if workers:
      segments.sweep()
      parts = [every[worker::workers] for worker in range(workers)]
      if again:
        ahead = min(ahead, len(blocks))
        parts = [part.repeat() for part in parts]
      each = max(1, ahead // workers // 2)
      # What each has read ahead, is about to add, and has handed over.
      blocks.slots = 2 * each + 2
      needed = blocks.needed(workers * blocks.slots)
      # An evaluation will read beside training, and is not to fail by then.
      segments.check_room(needed * streams)
      self._iterators = [iter(_in_worker(part, each)) for part in parts]
    else:
      options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
      self._iterators = [iter(every.to_iter_dataset(options))]
    self._taken = 0
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
    turn = self._taken % self._pass % len(self._iterators)
    arrays, skipped = next(self._iterators[turn])
    self._taken += 1
    lent: Any = arrays.pop(_LENT, None)
    # Copied, so that the shared memory is free at once, however many examples
    # the caller keeps.
    arrays = {name: np.array(array) for name, array in arrays.items()}
    if lent is not None:
      arrays |= self._borrowed.take(lent)
    return Chunk(arrays, skipped)

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
    del iterators, closing
    if self._workers:
      # grain holds the last chunk of each of them, in cycles of references, and
      # with it shared memory. What a thread has read can wait for its turn.
      gc.collect()
      self._borrowed.close()


def _in_worker(dataset: Any, ahead: int) -> Any:
  """A part of the data set, read by a process of its own.

  Its queue holds `ahead` chunks, and so does grain's second buffer here.
  """
  import grain
  from grain import experimental, multiprocessing

  # The process reads in its main thread; its queue is the buffer.
  serial = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  options = experimental.DatasetOptions(min_shm_size=_MESSAGE_BYTES)
  return experimental.WithOptionsIterDataset(
    dataset.to_iter_dataset(serial), options
  ).mp_prefetch(
    multiprocessing.MultiprocessingOptions(
      num_workers=1, per_worker_buffer_size=ahead
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
    # Of what other processes, which get a copy of this, hand over.
    self._owner, self._pid = segments.owner(), os.getpid()
    self.segments, self.slots = f'{self._owner}-{segments.token()}', 0
    self._source: Any = source
    self._order = order
    self._positions = process_positions(start, stop, process, processes)

  def __len__(self) -> int:
    return -(-len(self._positions) // self.size)

  def __getitem__(self, index: int) -> Chunk:
    mine = self._positions[index * self.size : (index + 1) * self.size]
    indices = np.arange(mine.start, mine.stop, mine.step, dtype=np.int64)
    positions = None
    if self._order is not None:
      positions, indices = indices, order.indices(self._order, indices)
    if self._owner is None or os.getpid() == self._pid:
      return self._checked(self._source.read(indices, positions), indices)
    kinds = {
      k: ((len(indices), *s.shape), s.dtype) for k, s in self._kinds.items()
    }
    placed = self._own.place(kinds) if kinds else None
    if placed is not None:
      lent, arrays = placed
      skipped = self._source.read_into(indices, positions, arrays)
      self._checked(Chunk(arrays, skipped), indices)
      self._own.lend(lent)
      handed: Any = {_LENT: lent}
      return Chunk(handed, skipped)
    chunk = self._checked(self._source.read(indices, positions), indices)
    return chunk._replace(arrays=self._hand_over(chunk.arrays, self._owner))

  def _checked(self, chunk: Chunk, indices: np.ndarray) -> Chunk:
    classes = getattr(self._source, 'num_classes', None)
    if classes is not None:
      labels.check(chunk.arrays, classes, lambda row: f'record {indices[row]}')
    return chunk

  @functools.cached_property
  def _kinds(self) -> dict[str, Shape]:
    """Of the arrays that the source fills where they lie, if it does."""
    if not hasattr(self._source, 'read_into'):
      return {}
    return self._source.shapes | {'weight': Shape((), np.dtype(np.float32))}

  @functools.cached_property
  def _own(self) -> segments.Slots:
    """Of the process that reads."""
    return segments.Slots(f'{self.segments}x{os.getpid()}', self.slots)

  def _hand_over(
    self, arrays: dict[str, np.ndarray], owner: str
  ) -> dict[str, Any]:
    """Small arrays as they are, and where the others lie in shared memory."""
    large = {k: v for k, v in arrays.items() if v.nbytes >= _MESSAGE_BYTES}
    if not large:
      return arrays
    small = {k: v for k, v in arrays.items() if k not in large}
    placed = self._own.place({k: (v.shape, v.dtype) for k, v in large.items()})
    if placed is None:
      return small | {k: segments.share(v, owner) for k, v in large.items()}
    lent, places = placed
    for name, array in large.items():
      np.copyto(places[name], array)
    self._own.lend(lent)
    return small | {_LENT: lent}

  def needed(self, count: int) -> int:
    """Bytes of so many chunks; 0 if what they hold is not known."""
    shapes = getattr(self._source, 'shapes', {}).values()
    each = sum(math.prod(s.shape) * s.dtype.itemsize for s in shapes)
    return count * self.size * each


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
