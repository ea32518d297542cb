"""A split in memory, each of its arrays contiguous."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from adabatch.data import labels
from adabatch.data.source import Chunk
from adabatch.data.tfds_records import DatasetError

# In a fingerprint, of what was read and what was found in it.
SEPARATOR = ' / '
# Examples looked at at once.
_RECORDS = 1024


class Split(NamedTuple):
  """One split of a data set, in memory.

  Attributes:
    arrays: 'image', uint8 or float32 [N, H, W, C], or 'features', float32 [N,
      ...], and 'label', int32 [N], or float32 [N, D]; or 'tokens', unsigned
      integers [N, T + 1], and 'weight', float32 [N]; perhaps others, all with
      leading axis N.
    num_classes: labels, or tokens, are in [0, num_classes); D of numbers.
    classes: their names, where they are known.
    source: fingerprint of what it was read from, '' where that is not known.
  """

  arrays: dict[str, np.ndarray]
  num_classes: int
  classes: tuple[str, ...] = ()
  source: str = ''

  @property
  def num_examples(self) -> int:
    return len(next(iter(self.arrays.values())))

  @property
  def shapes(self) -> dict[str, Any]:
    """One example's arrays, of which only shape and dtype matter."""
    return {name: array[0] for name, array in self.arrays.items()}

  @property
  def fingerprint(self) -> str:
    """What the data is, in short: another string for other data.

    >>> image = np.zeros((2, 1, 1, 1), np.uint8)
    >>> Split({'image': image, 'label': np.zeros(2, np.int32)}, 3).fingerprint
    '3 classes, image uint8 2x1x1x1 41d912ff, label int32 2 6522df69'
    """
    parts = [
      f'{name} {array.dtype} {"x".join(map(str, array.shape))} '
      f'{zlib.crc32(np.ascontiguousarray(array).data):08x}'
      for name, array in sorted(self.arrays.items())
    ]
    content = ', '.join([f'{self.num_classes} classes', *parts])
    return f'{self.source}{SEPARATOR}{content}' if self.source else content

  def read(
    self, indices: np.ndarray, positions: np.ndarray | None = None
  ) -> Chunk:
    """Examples by their numbers, as a stream reads them.

    Args:
      indices: integers [n] in [0, num_examples).
      positions: places in the data order; what lies in memory is augmented on
        the device.
    """
    del positions
    ones = np.ones(len(indices), np.float32)
    chosen = {name: array[indices] for name, array in self.arrays.items()}
    return Chunk({'weight': ones} | chosen, ())


def same_data(one: str, other: str) -> bool:
  """Whether two fingerprints may be of the same data, held differently.

  >>> same_data('set, 3 bytes', 'set, 3 bytes / 9 classes')
  True
  >>> same_data('set, 3 bytes / 8 classes', 'set, 3 bytes / 9 classes')
  False
  """
  parts = one.split(SEPARATOR), other.split(SEPARATOR)
  return all(a == b for a, b in zip(*parts, strict=False))


def from_arrays(arrays: Mapping[str, np.ndarray], num_classes: int) -> Split:
  """A split from a caller's own arrays, checked.

  Args:
    arrays: 'image', uint8 or float32 [N, H, W, C], or 'features', float32 [N,
      ...]; and 'label': integers [N], which become int32, or float32 [N, D]
      where numbers or flags are predicted; others may follow, with leading
      axis N.
    num_classes: labels must be in [0, num_classes); D of those that are
      float32.

  Returns:
    The split. Arrays are copied only where they are not contiguous.

  Raises:
    DatasetError: if the arrays do not fit this description.

  >>> images = np.zeros((2, 8, 8, 1), np.uint8)
  >>> split = from_arrays({'image': images, 'label': np.array([0, 1])}, 2)
  >>> split.arrays['label'].dtype
  dtype('int32')
  """
  given = {key: np.asarray(value) for key, value in arrays.items()}
  if ('image' in given) + ('features' in given) != 1 or 'label' not in given:
    raise DatasetError(
      f"arrays has {sorted(given)}: it needs 'image' or 'features', and 'label'"
    )
  _check_inputs(given)
  label = given['label']
  numbers = label.dtype == np.float32 and label.ndim == 2
  if not numbers and (label.ndim != 1 or label.dtype.kind not in 'iu'):
    raise DatasetError(
      f'label is {label.dtype} {list(label.shape)}: '
      'give integers [N] or float32 [N, D]'
    )
  lengths = {k: v.shape[0] if v.ndim else None for k, v in given.items()}
  if len(set(lengths.values())) != 1:
    raise DatasetError(f'leading axes differ: {lengths}')
  if len(label) == 0:
    raise DatasetError('arrays hold no examples: give at least one')
  if numbers:
    _check_finite('label', label)
    if label.shape[1] != num_classes:
      raise DatasetError(
        f'label is float32 {list(label.shape)}, and num_classes={num_classes}: '
        'give the width of the labels'
      )
  else:
    labels.check(given, num_classes, 'record {}'.format)
    given['label'] = label.astype(np.int32)
  return Split(
    {k: np.ascontiguousarray(v) for k, v in given.items()}, num_classes
  )


def _check_inputs(given: Mapping[str, np.ndarray]) -> None:
  if 'image' in given:
    image = given['image']
    if image.ndim != 4 or image.dtype not in (np.uint8, np.float32):
      raise DatasetError(
        f'image is {image.dtype} {list(image.shape)}: '
        'give uint8 or float32 [N, H, W, C]'
      )
  else:
    features = given['features']
    if features.ndim < 2 or features.dtype != np.float32:
      raise DatasetError(
        f'features is {features.dtype} {list(features.shape)}: give float32 '
        '[N, ...]'
      )
    _check_finite('features', features)


def _check_finite(name: str, values: np.ndarray) -> None:
  """Refuses what would turn every parameter into NaN."""
  for start in range(0, len(values), _RECORDS):
    wrong = ~np.isfinite(values[start : start + _RECORDS])
    if wrong.any():
      place = [int(i) for i in np.argwhere(wrong)[0]]
      place[0] += start
      raise DatasetError(
        f'{name} of record {place[0]} is '
        f'{values[tuple(place)]}: give finite numbers'
      )
