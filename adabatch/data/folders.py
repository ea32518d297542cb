"""Images in folders, one for each class: `folder:PATH`.

`PATH/train/CLASS/*.jpg` and `PATH/val/CLASS/*.jpg` have the splits `train` and
`val`, or whatever the others are called; `PATH/CLASS/*.jpg` has one, `train`,
to be cut (`train[:90%]`, `train[90%:]`). A relative PATH lies in `data_dir`, if
that is given. Within a split examples lie in a fixed random order, because
folders are sorted by class. Classes are numbered in the order of their names.
"""

from __future__ import annotations

import os
import pathlib
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from adabatch.data import jpeg
from adabatch.data.image_formats import CorruptRecord, line
from adabatch.data.labels import check_same_classes
from adabatch.data.order import Order, take
from adabatch.data.splits import names_of, rows_of
from adabatch.data.tfds_records import DatasetError

PREFIX = 'folder:'
SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif')

# Images that are not read, and must not be left out silently.
OTHER_SUFFIXES = ('.tif', '.tiff', '.heic', '.heif', '.avif', '.jp2', '.ppm')

# Bytes in which most images tell their size.
_HEADER = 2**14


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


def find_folder(
  name: str, split: str, data_dir: str | os.PathLike[str] | None = None
) -> FolderSplit:
  """Finds one split of a set of folders.

  Args:
    name: 'folder:PATH'.
    split: see the module; sliced and added as those of TFDS.
    data_dir: of a relative PATH; None: the working directory.

  Raises:
    DatasetError: in one line, if there is nothing to train on, or something
      there would be left out.
  """
  path = pathlib.Path(name.removeprefix(PREFIX)).expanduser()
  root = pathlib.Path(data_dir or '') / path
  if not root.is_dir():
    raise DatasetError(
      f"data set '{name}': {root} is no folder: give {PREFIX}PATH, where PATH "
      'has a folder for each class'
    )
  found, classes = {}, {}
  rows, start = {}, 0
  asked = names_of(split)
  for part, folder in _splits(name, root).items():
    rows[part] = np.empty(0, np.int64)
    if part not in asked:
      continue  # and not listed
    classes[part] = tuple(_folders(folder))
    if len(classes[part]) < 2:
      has = f'one class, {classes[part][0]}' if classes[part] else 'no classes'
      raise DatasetError(
        f"data set '{name}': {folder} has {has}: there is nothing to tell "
        'apart; give PATH/CLASS/*.jpg or PATH/train/CLASS/*.jpg'
      )
    found[part] = _images(name, folder, classes[part], folder.relative_to(root))
    count = len(found[part].files)
    rows[part] = start + take(Order(count, seed=0), 0, count)
    start += count
  chosen = rows_of(name, split, rows)
  named = next(iter(classes.values()))
  for part, other in classes.items():
    check_same_classes(name, named, other, part)
  files, labels, sizes = (
    np.concatenate(arrays)[chosen]
    for arrays in zip(*found.values(), strict=True)
  )
  tells = zlib.crc32(files.tobytes() + labels.tobytes() + sizes.tobytes())
  result = FolderSplit(
    name=name,
    split=split,
    directory=os.fspath(root),
    files=files,
    labels=labels,
    classes=named,
    image_shape=(None, None, 3),
    fingerprint=f'{split}, {len(files)} images, {len(named)} classes, '
    f'{tells:08x}',
  )
  start = lambda index: _start(result.path(index))  # noqa: E731
  return result._replace(image_shape=one_shape(result, start))


class _Listed(NamedTuple):
  """Images of a split: paths below the root, labels, bytes of each."""

  files: np.ndarray
  labels: np.ndarray
  sizes: np.ndarray


def _folders(path: pathlib.Path) -> dict[str, pathlib.Path]:
  """Those in a folder, by their names; hidden ones are left alone."""
  folders = {}
  for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
    if entry.name.startswith('.'):
      continue
    if entry.is_dir():
      folders[entry.name] = pathlib.Path(entry.path)
    elif entry.is_symlink() and not os.path.exists(entry.path):
      raise DatasetError(
        f'{entry.path} is a link to nothing: mend or remove it'
      )
  return folders


def _splits(name: str, root: pathlib.Path) -> dict[str, pathlib.Path]:
  """The folder of each split."""
  inside = _folders(root)
  if 'train' not in inside or not _folders(inside['train']):
    return {'train': root}
  for folder in inside.values():
    loose = next(filter(_is_image, sorted(os.listdir(folder))), None)
    if loose is not None:
      raise DatasetError(
        f"data set '{name}': {root}/train holds folders, as a split does, and "
        f'{folder} the image {loose}, as a class does: give '
        'PATH/SPLIT/CLASS/*.jpg or PATH/CLASS/*.jpg'
      )
  return {key: folder for key, folder in inside.items() if _folders(folder)}


def _is_image(file: str) -> bool:
  return not file.startswith('.') and file.lower().endswith(SUFFIXES)


def _images(
  name: str,
  folder: pathlib.Path,
  classes: tuple[str, ...],
  below: pathlib.Path,
) -> _Listed:
  """All images, in the order of their names; `below` the root is the folder."""
  files, labels, sizes = [], [], []
  for label, class_name in enumerate(classes):
    path, others = folder / class_name, set()
    before = len(files)
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
      suffix = os.path.splitext(entry.name)[1].lower()
      if entry.name.startswith('.'):
        continue
      if entry.is_dir():
        raise DatasetError(
          f"data set '{name}': {entry.path} is a folder in what is taken for a "
          'class: classes hold images alone; splits are found where one of '
          "them is called 'train'"
        )
      if suffix in OTHER_SUFFIXES:
        raise DatasetError(
          f"data set '{name}': {entry.path} is an image that is not read: "
          f'convert it to one of {", ".join(SUFFIXES)}'
        )
      if not _is_image(entry.name):
        others.add(suffix or entry.name)
        continue
      try:
        sizes.append(entry.stat().st_size)
      except OSError as error:
        raise DatasetError(f"data set '{name}': {line(error)}") from None
      files.append(os.fsencode(below / class_name / entry.name))
      labels.append(label)
    if len(files) == before:
      seen = f' (but {", ".join(sorted(others))})' if others else ''
      raise DatasetError(
        f"data set '{name}': {path} holds no images{seen}: put some there "
        f'({", ".join(SUFFIXES)}), or remove the folder'
      )
  return _Listed(
    np.array(files), np.array(labels, np.int32), np.array(sizes, np.int64)
  )


def one_shape(
  split: Any, start: Callable[[int], bytes]
) -> tuple[int | None, int | None, int]:
  """The one size of a split's images, if they have one.

  All are looked at until two differ.

  Args:
    split: has `num_examples`, `name` and `split`.
    start: the number of an example -> bytes in which it tells its size.
  """
  first = None
  for index in range(split.num_examples):
    try:
      size = jpeg.image_size(start(index))
    except (CorruptRecord, OSError):
      continue  # counted when it is read
    first = first or size
    if size != first:
      return None, None, 3
  if first is None:
    raise DatasetError(
      f"data set '{split.name}', split '{split.split}': no image can be read"
    )
  return *first, 3


def _start(path: pathlib.Path) -> bytes:
  """As much of an image as tells its size."""
  with path.open('rb') as file:
    start = file.read(_HEADER)
    try:
      jpeg.image_size(start)
    except CorruptRecord:  # a long preview before it
      return start + file.read()
    return start
