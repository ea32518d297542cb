"""Mean and standard deviation of what a network is fed, channel by channel."""

from typing import Any

import numpy as np

from adabatch.data.tfds_records import DatasetError

# Examples are measured until they hold so many bytes: all of most sets.
MEASURED_BYTES = 2**28

# Bytes read at once.
_BLOCK = 2**22


def channel_statistics(source: Any) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of each channel, over examples and pixels.

  For uint8 images, of the values divided by 255; exact: from whole numbers.
  A set of more than `MEASURED_BYTES` is measured on as many of its examples as
  that holds, always the same, wherever the set lies.

  Args:
    source: a split, in memory or read from disk; its 'image' [H, W, C] or
      'features' [..., C] are measured.

  Returns:
    (mean, std), float32 [C] each. The std of a constant channel is 1, so that
    dividing by it is harmless.

  Raises:
    DatasetError: if none of the examples can be read.

  >>> from adabatch.data.arrays import from_arrays
  >>> images = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
  >>> split = from_arrays({'image': images, 'label': np.array([0, 0])}, 1)
  >>> [value.tolist() for value in channel_statistics(split)]
  [[0.5], [0.5]]
  """
  name = 'image' if 'image' in source.shapes else 'features'
  shape = source.shapes[name]
  channels = shape.shape[-1]
  size = max(1, int(np.prod(shape.shape)) * np.dtype(shape.dtype).itemsize)
  chosen = np.arange(source.num_examples)
  if source.num_examples > MEASURED_BYTES // size:
    rng = np.random.Generator(np.random.Philox(0))
    count = max(1, MEASURED_BYTES // size)
    chosen = np.sort(rng.choice(source.num_examples, count, replace=False))
  measured = (_Levels if shape.dtype == np.uint8 else _Moments)(channels)
  skipped = []
  rows = max(1, _BLOCK // size)
  for start in range(0, len(chosen), rows):
    chunk = source.read(chosen[start : start + rows], None)
    skipped += chunk.skipped
    values = chunk.arrays[name][chunk.arrays['weight'] > 0]
    measured.add(values.reshape(-1, channels))
  if not measured.count:
    raise DatasetError(
      f'none of {len(chosen)} records can be read (record {skipped[0][0]}: '
      f'{skipped[0][1]})'
    )
  mean, std = measured.result()
  std = np.where(std == 0, 1.0, std)
  return np.asarray(mean, np.float32), np.asarray(std, np.float32)


class _Levels:
  """Of uint8: how often each channel has each of the 256 values."""

  def __init__(self, channels: int):
    self._counts = np.zeros((channels, 256), np.int64)

  @property
  def count(self) -> int:
    return int(self._counts[0].sum())

  def add(self, pixels: np.ndarray) -> None:
    for channel, values in enumerate(pixels.T):
      self._counts[channel] += np.bincount(values, minlength=256)

  def result(self) -> tuple[np.ndarray, np.ndarray]:
    levels, count = np.arange(256), self.count
    total = self._counts @ levels
    # n Σx² - (Σx)², in Python's unbounded integers: no cancellation.
    spread = [
      count * int(squares) - int(one) ** 2
      for squares, one in zip(self._counts @ levels**2, total, strict=True)
    ]
    std = np.sqrt([float(s) for s in spread]) / count / 255
    return total / count / 255, std


class _Moments:
  """Of floats: the mean and the sum of squares around it, merged block by block
  (Chan, Golub and LeVeque, 1983)."""

  def __init__(self, channels: int):
    self.count = 0
    self._mean, self._squares = np.zeros((2, channels))
    self._least = np.full(channels, np.inf)
    self._most = np.full(channels, -np.inf)

  def add(self, values: np.ndarray) -> None:
    if not len(values):
      return
    values = values.astype(np.float64)
    mean, count = values.mean(0), self.count + len(values)
    apart = mean - self._mean
    self._squares += np.square(values - mean).sum(0)
    self._squares += np.square(apart) * self.count * len(values) / count
    self._mean += apart * len(values) / count
    self.count = count
    self._least = np.minimum(self._least, values.min(0))
    self._most = np.maximum(self._most, values.max(0))

  def result(self) -> tuple[np.ndarray, np.ndarray]:
    std = np.sqrt(self._squares / self.count)
    # A constant that is no exact mean of itself must still count as constant.
    return self._mean, np.where(self._least == self._most, 0.0, std)
