"""The one order in which a data set is read.

Position `p = 0, 1, 2, ...` counts the examples that training has consumed, and
`indices(order, p)` is the example that stands there. It follows from
(seed, epoch, p) alone, with `epoch = p // num_examples`, so the state of the
data pipeline is one integer: a batch of B examples is the positions `[p, p+B)`
whatever B was before and however many devices or processes share the work.

Each epoch is a permutation, made in one of two ways:

- up to `max_in_memory` examples: every example draws a 64-bit word from NumPy's
  Philox generator, keyed by (seed, epoch), and the examples are sorted by their
  words. The permutations of the latest epochs are kept.
- beyond: `grain.experimental.index_shuffle`, which needs no memory and about
  2 microseconds an index.
"""

from __future__ import annotations

import collections
import dataclasses
import operator
import threading

import numpy as np

# 2**27 examples: half a GiB for each epoch kept, and about 15 s to make it.
MAX_IN_MEMORY = 2**27

# How many permutations are kept (train and evaluation sets, concurrent trials),
# and what they may occupy together. The latest two always stay, whatever their
# size, because a batch or a prefetcher can straddle two epochs.
_CACHE_ENTRIES = 128
_CACHE_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Order:
  """An endless order over `num_examples` examples, epoch after epoch.

  Attributes:
    num_examples: examples in one epoch, 1 <= num_examples <= 2**32.
    seed: 0 <= seed < 2**64.
    max_in_memory: up to this many examples an epoch's permutation is held in
      memory. It is part of the order's definition: the two ways of making a
      permutation give different ones.

  Raises:
    ValueError: if a value is out of range.

  >>> order = Order(num_examples=10, seed=0)
  >>> sorted(take(order, 0, 10).tolist())
  [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
  """

  num_examples: int
  seed: int
  max_in_memory: int = MAX_IN_MEMORY

  def __post_init__(self) -> None:
    for name in ('num_examples', 'seed', 'max_in_memory'):
      # Also turns NumPy integers into plain ones: equal orders hash alike.
      object.__setattr__(self, name, operator.index(getattr(self, name)))
    if not 1 <= self.num_examples <= 2**32:
      raise ValueError(
        f'num_examples={self.num_examples}: give 1 <= num_examples <= 2**32'
      )
    if not 0 <= self.seed < 2**64:
      raise ValueError(f'seed={self.seed}: give 0 <= seed < 2**64')


def indices(order: Order, positions: np.ndarray) -> np.ndarray:
  """The examples that stand at `positions`.

  Args:
    order: the order.
    positions: int64 [B], any non-negative positions, in any sequence.

  Returns:
    int64 [B], example indices in [0, num_examples).

  Raises:
    ValueError: if positions are not integers, or negative.

  >>> order = Order(num_examples=10, seed=0)
  >>> indices(order, np.array([3, 4, 12])).tolist()
  [1, 8, 7]
  """
  positions = np.asarray(positions)
  if positions.size == 0:
    return np.zeros(positions.shape, np.int64)
  if positions.dtype.kind not in 'iu':
    raise ValueError(f'positions are {positions.dtype}: give integers')
  flat = positions.astype(np.int64).ravel()
  if flat.min() < 0:
    raise ValueError(f'position {flat.min()}: give positions >= 0')
  epochs, offsets = np.divmod(flat, order.num_examples)
  if epochs[0] == epochs[-1] and np.all(epochs == epochs[0]):
    found = _within_epoch(order, int(epochs[0]), offsets)
    return found.reshape(positions.shape)
  # One visit for each epoch, however often the positions jump between epochs.
  found = np.empty(flat.shape, np.int64)
  by_epoch = np.argsort(epochs, kind='stable')
  starts = np.flatnonzero(np.diff(epochs[by_epoch], prepend=-1))
  for where in np.split(by_epoch, starts[1:]):
    epoch = int(epochs[where[0]])
    found[where] = _within_epoch(order, epoch, offsets[where])
  return found.reshape(positions.shape)


def take(order: Order, start: int, stop: int) -> np.ndarray:
  """The examples at positions `[start, stop)`: one batch.

  The same as `indices(order, np.arange(start, stop))`, but copies a slice of
  the epoch's permutation. The range may straddle epochs or be longer than one.

  Args:
    order: the order.
    start: first position, >= 0.
    stop: position after the last, >= start.

  Returns:
    int64 [stop - start], example indices in [0, num_examples).

  Raises:
    ValueError: unless 0 <= start <= stop.

  >>> order = Order(num_examples=10, seed=0)
  >>> take(order, 8, 13).tolist()
  [6, 7, 5, 3, 7]
  """
  _check_range(start, stop)
  found = np.empty(stop - start, np.int64)
  position = start
  while position < stop:
    epoch, first = divmod(position, order.num_examples)
    last = min(order.num_examples, first + stop - position)
    if order.num_examples <= order.max_in_memory:
      part = _permutations.get(order, epoch)[first:last]
    else:
      part = _shuffled(order, epoch, np.arange(first, last))
    found[position - start : position - start + last - first] = part
    position += last - first
  return found


def process_positions(
  start: int, stop: int, process: int, processes: int
) -> range:
  """The positions in `[start, stop)` that one process reads.

  Process h of H reads the positions p with p = h (mod H), so its stream does
  not depend on the batch sizes to come and can be read ahead arbitrarily far.

  Args:
    start: first position, >= 0.
    stop: position after the last, >= start.
    process: this process, 0 <= process < processes.
    processes: number of processes, >= 1.

  Returns:
    At most ceil((stop - start) / processes) positions, ascending.

  Raises:
    ValueError: if an argument is out of range.

  >>> list(process_positions(5, 12, process=0, processes=3))
  [6, 9]
  >>> list(process_positions(5, 12, process=2, processes=3))
  [5, 8, 11]
  """
  _check_range(start, stop)
  if not 0 <= process < processes:
    raise ValueError(
      f'process={process} of processes={processes}: '
      'give 0 <= process < processes'
    )
  return range(start + (process - start) % processes, stop, processes)


def _check_range(start: int, stop: int) -> None:
  if not 0 <= start <= stop:
    raise ValueError(f'positions [{start}, {stop}): give 0 <= start <= stop')


def _within_epoch(order: Order, epoch: int, offsets: np.ndarray) -> np.ndarray:
  if order.num_examples <= order.max_in_memory:
    return _permutations.get(order, epoch)[offsets].astype(np.int64)
  return _shuffled(order, epoch, offsets)


def _philox(order: Order, epoch: int) -> np.random.Philox:
  # The key holds both numbers in full, so that no two (seed, epoch) collide.
  return np.random.Philox(key=np.array([order.seed, epoch], np.uint64))


def _permutation(order: Order, epoch: int) -> np.ndarray:
  """The permutation of one epoch, uint32 [num_examples]."""
  # `Generator.permutation` may change between NumPy versions (NEP 19), the raw
  # words of a bit generator may not: so sort the words. The example's number
  # replaces the low bits of its word, which breaks ties and makes one plain
  # sort of uint64 do (twice as fast as argsort, and no stable sort is needed).
  low = np.uint64((order.num_examples - 1).bit_length())
  words = _philox(order, epoch).random_raw(order.num_examples)
  words >>= low
  words <<= low
  words |= np.arange(order.num_examples, dtype=np.uint64)
  words.sort()
  words &= (np.uint64(1) << low) - np.uint64(1)
  permutation = words.astype(np.uint32)
  permutation.flags.writeable = False  # every caller shares it
  return permutation


def _shuffled(order: Order, epoch: int, offsets: np.ndarray) -> np.ndarray:
  """The examples at `offsets` of one epoch, without the whole permutation."""
  # Here because grain is slow to import and few data sets are this large.
  from grain import experimental

  # grain takes a seed of 32 bits; sequential seeds would make seed 0's epoch 1
  # the same as seed 1's epoch 0.
  seed = int(_philox(order, epoch).random_raw()) >> 32
  last = order.num_examples - 1
  found = (
    experimental.index_shuffle(offset, last, seed, 4)
    for offset in offsets.tolist()
  )
  return np.fromiter(found, np.int64, count=len(offsets))


class _Permutations:
  """The latest permutations, shared by threads, within a bound on memory."""

  def __init__(self, max_entries: int, max_bytes: int) -> None:
    self._max_entries = max_entries
    self._max_bytes, self._bytes = max_bytes, 0
    self._lock = threading.Lock()
    self._kept: collections.OrderedDict[tuple[Order, int], np.ndarray] = (
      collections.OrderedDict()
    )

  def get(self, order: Order, epoch: int) -> np.ndarray:
    key = (order, epoch)
    # Made under the lock: a second thread that wants the same epoch waits for
    # it instead of making it again.
    with self._lock:
      if key in self._kept:
        self._kept.move_to_end(key)
        return self._kept[key]
      self._kept[key] = made = _permutation(order, epoch)
      self._bytes += made.nbytes
      while len(self._kept) > 2 and (
        len(self._kept) > self._max_entries or self._bytes > self._max_bytes
      ):
        self._bytes -= self._kept.popitem(last=False)[1].nbytes
      return made


_permutations = _Permutations(_CACHE_ENTRIES, _CACHE_BYTES)
