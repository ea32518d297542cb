"""Image sets that fit in memory, each split as one contiguous array.

`load(name, split)` knows the sets in `EMBEDDED`, which ship with a dependency;
every other name is a TensorFlow Datasets image-classification set, prepared on
disk as `array_record` and read without TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from adabatch.data import images, jpeg, order
from adabatch.data.arrays import Split, from_arrays
from adabatch.data.image_formats import CorruptRecord, UnsupportedImage
from adabatch.data.splits import rows_of
from adabatch.data.tfds_records import DatasetError

# Records handled at once, so that memory stays near the result's.
_RECORDS = 1024


def load(
  name: str,
  split: str,
  data_dir: str | os.PathLike[str] | None = None,
  found: images.OnDisk | None = None,
) -> Split:
  """Loads one split of an image-classification set.

  Args:
    name: a key of `EMBEDDED`, or a TFDS name, `NAME[/CONFIG][:VERSION]`;
      without a version, the newest on disk.
    split: 'train', 'train[:80%]', 'train[1000:]', 'train+test', ...
    data_dir: holds `NAME/VERSION/*.array_record*`; default: TFDS_DATA_DIR, else
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
    split = from_arrays({'image': pixels, 'label': classes}, found.num_classes)
    return split._replace(classes=tuple(found.classes or ()))
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
