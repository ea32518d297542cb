"""Images in folders, one for each class: `folder:PATH`.

`PATH/train/CLASS/*.jpg` and `PATH/val/CLASS/*.jpg` have the splits `train` and
`val`, or whatever the others are called; `PATH/CLASS/*.jpg` has one, `train`,
to be cut (`train[:90%]`, `train[90%:]`). Within a split examples lie in a fixed
random order, because folders are sorted by class. Classes are numbered in the
order of their names.
"""

from __future__ import annotations

import os
import pathlib
import zlib
from typing import Any, NamedTuple

import numpy as np

from adabatch.data import jpeg
from adabatch.data.image_formats import CorruptRecord, line
from adabatch.data.order import Order, take
from adabatch.data.splits import rows_of
from adabatch.data.tfds_records import DatasetError

PREFIX = 'folder:'
SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif')

# Images whose sizes are looked at before training.
_MEASURED = 1000


class Files:
  """Records of a split: (encoded image, label) by number, read when asked."""

  def __init__(self, split: FolderSplit):
    self._split = split

  def __len__(self) -> int:
    return self._split.num_examples

  def __getitem__(self, index: int) -> tuple[bytes, int]:
    split = self._split
    path = split.path(index)
    try:
      return path.read_bytes(), int(split.labels[index])
    except OSError as error:
      raise CorruptRecord(line(error)) from None

  def __getitems__(self, indices: list[int]) -> list[tuple[bytes, int]]:  # noqa: PLW3201
    return [self[index] for index in indices]


class FolderSplit(NamedTuple):
  """One split of a set of folders, not opened yet; as `ImageSplit`.

  Attributes:
    name, split: as they were asked for.
    directory: PATH.
    files: bytes [N], paths below it.
    labels: int32 [N].
    classes: their names.
    image_shape: (height, width, 3); None where images differ.
    fingerprint: names, sizes and labels in short.
  """

  name: str
  split: str
  directory: str
  files: np.ndarray
  labels: np.ndarray
  classes: tuple[str, ...]
  image_shape: tuple[int | None, int | None, int]
  fingerprint: str
  # Labels are the folders, so that none is wrong; one file is open at a time.
  labels_may_be_wrong: bool = False
  open_files: int = 1

  @property
  def num_examples(self) -> int:
    return len(self.files)

  @property
  def num_classes(self) -> int:
    return len(self.classes)

  def path(self, index: int) -> pathlib.Path:
    return pathlib.Path(self.directory, os.fsdecode(bytes(self.files[index])))

  def open(self) -> Any:
    """The records."""
    return Files(self)

  def parse(self, record: Any) -> tuple[bytes, int]:
    """The encoded image and the label of one record."""
    if isinstance(record, Exception):
      raise CorruptRecord(line(record)) from None
    return record


def find_folder(name: str, split: str) -> FolderSplit:
  """Finds one split of a set of folders.

  Args:
    name: 'folder:PATH'.
    split: see the module; sliced and added as those of TFDS.

  Raises:
    DatasetError: in one line, if there is nothing to train on.
  """
  root = pathlib.Path(name.removeprefix(PREFIX)).expanduser()
  if not root.is_dir():
    raise DatasetError(
      f"data set '{name}': {root} is no folder: give {PREFIX}PATH, where PATH "
      'has a folder for each class'
    )
  inside = _folders(root)
  splits = {child.name: child for child in inside if _folders(child)}
  if 'train' not in splits:
    splits = {'train': root}
  found = {}
  rows, start, classes = {}, 0, {}
  # Only those are listed.
  asked = {part.split('[')[0].strip() for part in split.split('+')}
  for part, folder in splits.items():
    if part not in asked:
      rows[part] = np.empty(0, np.int64)
      continue
    classes[part] = tuple(sorted(child.name for child in _folders(folder)))
    found[part] = _images(name, root, folder, classes[part])
    count = len(found[part][0])
    rows[part] = start + take(Order(count, seed=0), 0, count)
    start += count
  chosen = rows_of(name, split, rows)
  named = next(iter(classes.values()))
  for part, other in classes.items():
    check_same_classes(name, named, other, part)
  if len(named) < 2:
    raise DatasetError(
      f"data set '{name}' has one class, {named[0]}: there is nothing to tell "
      'apart; give PATH/CLASS/*.jpg or PATH/SPLIT/CLASS/*.jpg'
    )
  files = np.concatenate([f for f, _ in found.values()])[chosen]
  labels = np.concatenate([ys for _, ys in found.values()])[chosen]
  result = FolderSplit(
    name, split, os.fspath(root), files, labels, named, (None, None, 3), ''
  )
  shape, sizes = _measure(result)
  tells = zlib.crc32(files.tobytes() + labels.tobytes() + sizes.tobytes())
  return result._replace(
    image_shape=shape,
    fingerprint=f'{split}, {len(files)} images, {len(named)} classes, '
    f'{tells:08x}',
  )


def check_same_classes(
  name: str, one: tuple[str, ...], other: tuple[str, ...], split: str
) -> None:
  """Refuses a split whose classes are others.

  Raises:
    DatasetError: in one line.
  """
  missing, more = sorted({*one} - {*other}), sorted({*other} - {*one})
  if missing or more:
    what = ', '.join(
      f'{verb} {", ".join(names[:5])}'
      for verb, names in (('lacks', missing), ('adds', more))
      if names
    )
    raise DatasetError(
      f"data set '{name}': the classes of split '{split}' differ from those of "
      f'training, it {what}: give both the same folders'
    )


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
  return sorted(
    pathlib.Path(entry.path)
    for entry in os.scandir(path)
    if entry.is_dir() and not entry.name.startswith('.')
  )


def _images(
  name: str, root: pathlib.Path, folder: pathlib.Path, classes: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
  """Paths below the root, and labels, in the order of their names."""
  files, labels, others = [], [], set()
  for label, class_name in enumerate(classes):
    before = len(files)
    for directory, _, names in sorted(os.walk(folder / class_name)):
      for file in sorted(names):
        suffix = os.path.splitext(file)[1].lower()
        if suffix in SUFFIXES and not file.startswith('.'):
          path = os.path.relpath(os.path.join(directory, file), root)
          files.append(os.fsencode(path))
        else:
          others.add(suffix)
    if len(files) == before:
      seen = f' (but {", ".join(sorted(others))})' if others else ''
      raise DatasetError(
        f"data set '{name}': {folder / class_name} holds no images{seen}: put "
        f'some there ({", ".join(SUFFIXES)}), or remove the folder'
      )
    labels += [label] * (len(files) - before)
  return np.array(files), np.array(labels, np.int32)


def _measure(
  split: FolderSplit,
) -> tuple[tuple[int | None, int | None, int], np.ndarray]:
  """The one size of the images, if they have one, and the files' lengths.

  Of many images those of an evenly spread part are looked at.
  """
  count = min(_MEASURED, split.num_examples)
  chosen = np.arange(count) * split.num_examples // count
  lengths, shapes = [], set()
  records = split.open()
  for index in chosen.tolist():
    try:
      encoded, _ = records[index]
      lengths.append(len(encoded))
      shapes.add(jpeg.image_size(encoded))
    except CorruptRecord:
      continue  # counted when it is read
  if not shapes:
    raise DatasetError(
      f"data set '{split.name}', split '{split.split}': none of {count} images "
      'can be read'
    )
  height, width = shapes.pop()
  shape = (None, None, 3) if shapes else (height, width, 3)
  return shape, np.array(lengths, np.int64)
