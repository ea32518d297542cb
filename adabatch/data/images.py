"""Images on disk that are read while training goes on, a few at a time."""

from __future__ import annotations

import functools
import multiprocessing
import os
import resource
from collections.abc import Iterable
from typing import Any

import numpy as np

from adabatch.data import folders, jpeg, labels, parquet_images, tfds_records
from adabatch.data.image_formats import CorruptRecord, UnsupportedImage, line
from adabatch.data.source import Chunk, Shape
from adabatch.data.tfds_records import DatasetError

# Files that a process has open beside its records.
_OTHER_FILES = 512


# A split that is found on disk, not opened yet.
OnDisk = (
  tfds_records.ImageSplit | folders.FolderSplit | parquet_images.ParquetSplit
)


def find_images(
  name: str,
  split: str,
  data_dir: str | os.PathLike[str] | None = None,
  built_in: Iterable[str] = (),
) -> OnDisk:
  """Finds one split of a set of images: of TFDS, or `folder:PATH`.

  Arguments and errors as for `tfds_records.find_images`.
  """
  if name.startswith(folders.PREFIX):
    return folders.find_folder(name, split, data_dir)
  return tfds_records.find_images(name, split, data_dir, built_in)


def damaged(
  split: OnDisk, error: Exception, data_dir: str | os.PathLike[str] | None
) -> DatasetError:
  """A file is missing or no good."""
  if not isinstance(split, tfds_records.ImageSplit):
    return DatasetError(f"data set '{split.name}': {line(error)}")
  return tfds_records.damaged(split, error, data_dir)


class ImageRecords:
  """One split of an image-classification set on disk; see `open_images`.

  Attributes:
    num_examples: how many records there are.
    num_classes: labels are in [0, num_classes).
    classes: their names, where they are known.
    fingerprint: what the data is, in short; another string for other data.
    shapes: of one example: 'image', uint8 [S, S, C], and 'label', int32 [].
    cropped: whether images are cut to squares here.
  """

  def __init__(
    self,
    split: OnDisk,
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
    self.classes = tuple(split.classes or ())
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
    n = len(indices)
    arrays = {
      name: np.empty((n, *shape.shape), shape.dtype)
      for name, shape in self.shapes.items()
    }
    arrays['weight'] = np.empty(n, np.float32)
    return Chunk(arrays, self.read_into(indices, positions, arrays))

  def read_into(
    self,
    indices: np.ndarray,
    positions: np.ndarray | None,
    arrays: dict[str, np.ndarray],
  ) -> tuple[tuple[int, str], ...]:
    """As `read`, into arrays that there are; returns what was skipped."""
    images, classes, weights = (arrays[k] for k in ('image', 'label', 'weight'))
    weights[:] = 1
    skipped = []
    for row, index in enumerate(indices.tolist()):
      position = None if positions is None else int(positions[row])
      try:
        classes[row] = self._example(index, position, images[row])
      # array_record raises RuntimeError or IndexError for a damaged file.
      except (CorruptRecord, RuntimeError, IndexError) as error:
        images[row], classes[row], weights[row] = 0, 0, 0
        skipped.append((index, line(error)))
    return tuple(skipped)

  def check_labels(self) -> None:
    """Refuses labels that are no classes, as far as that is cheap.

    Raises:
      DatasetError: for the first one.
    """
    if self._split.labels_may_be_wrong:
      labels.check_records(self._split, self._records)

  @functools.cached_property
  def _records(self) -> Any:
    if multiprocessing.parent_process():
      import cv2  # of an extra

      cv2.setNumThreads(1)  # one core for each worker
    _allow_open_files(self._split.open_files)
    return self._split.open()

  def _example(self, index: int, position: int | None, out: np.ndarray) -> int:
    """Fills `out` and returns the label."""
    # One record at a time: a damaged one does not spoil its neighbours, and
    # array_record starts a thread for each file when asked for several.
    encoded, label = self._split.parse(self._records[index])
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
  found: OnDisk | None = None,
) -> ImageRecords:
  """Opens one split of a TFDS image-classification set, to be read in parts.

  Args:
    name: a TFDS name, `NAME[/CONFIG][:VERSION]`; without a version, the newest
      on disk.
    split: 'train', 'train[:80%]', 'train[1000:]', 'train+test', ...
    data_dir: holds `NAME/VERSION/*.array_record*`; default: TFDS_DATA_DIR, else
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
    found: what `find_images` gave, if it was asked already.

  Raises:
    DatasetError: if the set is not prepared, has no such split, is no
      image-classification set, or does not fit the other arguments.
  """
  import cv2  # noqa: F401  # of an extra, before processes that read start
  import simplejpeg  # noqa: F401

  if image_size is not None and not 1 <= image_size <= eval_resize:
    raise DatasetError(
      f'image_size={image_size}: give 1 <= image_size <= '
      f'eval_resize={eval_resize}'
    )
  if not 0 < min_area <= 1:
    raise DatasetError(f'min_area={min_area}: give 0 < min_area <= 1')
  if not 0 <= seed < 2**64:
    raise DatasetError(f'seed={seed}: give 0 <= seed < 2**64')
  found = found or find_images(name, split, data_dir)
  try:
    fingerprint = found.fingerprint
  except OSError as error:
    raise damaged(found, error, data_dir) from None
  channels = found.image_shape[-1]
  if image_size is not None:
    shape = image_size, image_size, channels
  else:
    shape = _stored_shape(found, data_dir)
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
  split: OnDisk, data_dir: str | os.PathLike[str] | None
) -> tuple[int, int, int]:
  """The shape of the images; of the first, where the set does not say."""
  height, width, channels = split.image_shape
  if height is not None and width is not None:
    return height, width, channels
  records = split.open()
  ends = []
  index = 0
  try:
    for index in (0, len(records) - 1):
      encoded, _ = split.parse(records[index])
      ends.append((*jpeg.image_size(encoded), channels))
  except UnsupportedImage as error:
    raise DatasetError(
      f"data set '{split.name}', split '{split.split}', record {index}: {error}"
    ) from None
  except (CorruptRecord, RuntimeError, IndexError) as error:
    raise damaged(split, error, data_dir) from None
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
