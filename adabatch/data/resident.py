"""Image sets that fit in memory, each split as one contiguous array.

`load(name, split)` knows the sets in `EMBEDDED`, which ship with a dependency;
every other name is a TensorFlow Datasets image-classification set, prepared on
disk as `array_record` and read without TensorFlow.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from adabatch.data import images, jpeg, labels, order
from adabatch.data.image_formats import CorruptRecord, UnsupportedImage
from adabatch.data.source import Chunk
from adabatch.data.splits import rows_of
from adabatch.data.tfds_records import DatasetError

# Records handled at once, so that memory stays near the result's.
_RECORDS = 1024


class Split(NamedTuple):
  """One split of a data set, in memory.

  Attributes:
    arrays: 'image', uint8 or float32 [N, H, W, C], or 'features', float32 [N,
      ...], and 'label', int32 [N], or float32 [N, D]; or 'tokens', unsigned
      integers [N, T + 1], and 'weight', float32 [N]; perhaps others, all with
      leading axis N.
    num_classes: labels, or tokens, are in [0, num_classes); D of numbers.
  """

  arrays: dict[str, np.ndarray]
  num_classes: int

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
    return ', '.join([f'{self.num_classes} classes', *parts])

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


def load(
  name: str,
  split: str,
  data_dir: str | os.PathLike[str] | None = None,
  found: images.OnDisk | None = None,
) -> Split:
  """Loads one split of an image-classification set.

  Args:
    name: a key of `EMBEDDED`, or a TFDS name, 'NAME[/CONFIG][:VERSION]';
      without a version, the newest on disk.
    split: 'train', 'train[:80%]', 'train[1000:]', 'train+test', ...
    data_dir: holds NAME/VERSION/*.array_record*; default: TFDS_DATA_DIR, else
      ~/tensorflow_datasets.
    found: what `find_images` gave, if it was asked already.

  Returns:
    The split, images in the order in which they are stored.

  Raises:
    DatasetError: if the set is unknown or not prepared, has no such split, or
      is not an image-classification set whose images have one size.

  >>> digits = load('digits', 'train[:80%]')
  >>> digits.arrays['image'].shape, digits.num_classes
  ((1150, 8, 8, 1), 10)
  """
  if name in EMBEDDED:
    arrays, num_classes, splits = EMBEDDED[name]()
    rows = rows_of(name, split, splits)
    return from_arrays({k: v[rows] for k, v in arrays.items()}, num_classes)
  found = found or images.find_images(name, split, data_dir, EMBEDDED)
  return _load_images(found, data_dir)


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


# --- sets that ship with a dependency ---


def _digits() -> tuple[dict[str, np.ndarray], int, dict[str, np.ndarray]]:
  """scikit-learn's 1,797 digits, 8 x 8; 1,438 to train, 359 to validate."""
  from sklearn import datasets  # slow to import

  digits: Any = datasets.load_digits()
  # 0..16 becomes 0..255, the range that uint8 images have everywhere else.
  images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = digits.target.astype(np.int32)
  # The file is sorted by writer, so the split follows a fixed permutation.
  shuffled = order.take(order.Order(len(labels), seed=0), 0, len(labels))
  cut = round(0.8 * len(labels))
  splits = {'train': shuffled[:cut], 'validation': shuffled[cut:]}
  return {'image': images, 'label': labels}, 10, splits


# name -> function that gives (arrays, num_classes, {split: rows})
EMBEDDED: dict[
  str,
  Callable[[], tuple[dict[str, np.ndarray], int, dict[str, np.ndarray]]],
] = {
  'digits': _digits,
}


# --- encoded images on disk ---


def _load_images(
  found: images.OnDisk, data_dir: str | os.PathLike[str] | None
) -> Split:
  try:
    pixels, classes = _decode(found)
    return from_arrays({'image': pixels, 'label': classes}, found.num_classes)
  except DatasetError as error:
    raise DatasetError(
      f"data set '{found.name}', split '{found.split}': {error}"
    ) from None
  # A file or a field is missing, or bytes are no image.
  except (CorruptRecord, OSError, RuntimeError, IndexError) as error:
    raise images.damaged(found, error, data_dir) from None


def _decode(split: images.OnDisk) -> tuple[np.ndarray, np.ndarray]:
  """All records of a split, as two arrays."""
  # Decoding takes 30 µs an image of 28 x 28: 60,000 images need no cache on
  # disk.
  source = split.open()
  channels = split.image_shape[-1]
  images = np.empty((0, 0, 0, channels), np.uint8)
  # As they are stored: none becomes another one before it is checked.
  classes = np.empty(len(source), np.int64)
  for start in range(0, len(source), _RECORDS):
    rows = range(start, min(start + _RECORDS, len(source)))
    for row, record in zip(rows, source.__getitems__(list(rows)), strict=True):
      encoded, classes[row] = split.parse(record)
      try:
        pixels = jpeg.decode(encoded, channels)
      except UnsupportedImage as error:
        raise DatasetError(f'record {row}: {error}') from None
      if row == 0:
        images = np.empty((len(source), *pixels.shape), np.uint8)
      elif pixels.shape != images.shape[1:]:
        first, other = (
          'x'.join(map(str, a.shape[:2])) for a in (images[0], pixels)
        )
        raise DatasetError(
          f'images differ in size ({first} and {other}): '
          'resident sets need one image size; stream this set instead'
        )
      images[row] = pixels
  return images, classes
