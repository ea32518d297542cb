"""Which examples a loop of one's own trains on, with a size that moves."""

from collections.abc import Iterator

import numpy as np

from adabatch.controllers.batch_size import BatchSize


class BatchSampler:
  """Lists of indices for one epoch after the other; torch's `batch_sampler`.

  There is one order of all examples for a seed, whatever the sizes: place i of
  epoch e is place i + e N. A pass begins where the updates that were observed
  end, so `BatchSize.state_dict` holds the place in the data as well, also
  within an epoch and with workers that prefetch. It ends with the batch that
  completes the epoch, which is filled up from the next one.

  It has no length: nobody knows the number of batches in advance.

  >>> from adabatch.controllers import buckets, constant
  >>> batch_size = BatchSize(
  ...   constant(initial_batch_size=2), buckets.ladder(2, 4, devices=1),
  ...   num_examples=5)
  >>> sampler = BatchSampler(batch_size, shuffle=False)
  >>> for rows in sampler:
  ...   batch_size.observe()
  ...   print(rows)
  [0, 1]
  [2, 3]
  [4, 0]
  >>> next(iter(sampler))
  [1, 2]
  """

  def __init__(
    self, batch_size: BatchSize, *, seed: int = 0, shuffle: bool = True
  ):
    """Of `batch_size.num_examples` examples.

    Args:
      batch_size: says how many, and counts them.
      seed: of the orders of all epochs.
      shuffle: if not, each epoch has the examples in their own order.

    Raises:
      ValueError: `num_examples` is not known.
    """
    if batch_size.num_examples is None:
      raise ValueError(
        'a sampler has to know how many examples there are: give BatchSize('
        'controller, ladder, num_examples=...)'
      )
    self._batch_size = batch_size
    self._num_examples = batch_size.num_examples
    self._seed, self._shuffle = seed, shuffle
    self._ended_at: int | None = None

  def __iter__(self) -> Iterator[list[int]]:
    """The batches of what is left of the epoch.

    Raises:
      ValueError: the last pass came to its end without an update observed.
    """
    start = self._batch_size.examples
    if start == self._ended_at and self._batch_size.taken:
      raise ValueError(
        'no update was observed in the last pass over the data: call '
        'BatchSize.observe once after each update'
      )
    end = (start // self._num_examples + 1) * self._num_examples
    place = start
    # Those that a loader had made ready when it was stopped come again.
    for size in self._batch_size.taken:
      yield self._rows(place, place + size)
      place += size
    while place < end:
      size = self._batch_size.take()
      yield self._rows(place, place + size)
      place += size
    self._ended_at = start

  def _rows(self, start: int, stop: int) -> list[int]:
    rows = []
    while start < stop:
      epoch, first = divmod(start, self._num_examples)
      last = min(first + stop - start, self._num_examples)
      rows += self._order(epoch)[first:last].tolist()
      start += last - first
    return rows

  def _order(self, epoch: int) -> np.ndarray:
    if not self._shuffle:
      return np.arange(self._num_examples)
    # Words of 32 bits; `[seed, epoch]` would let a long seed run into epochs.
    words = [self._seed % 2**32, epoch, self._seed >> 32]
    rng = np.random.default_rng(words)
    return rng.permutation(self._num_examples)
