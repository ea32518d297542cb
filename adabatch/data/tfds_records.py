"""TensorFlow Datasets on disk: found, checked, and opened as raw records.

A set is prepared as `array_record` beforehand; reading it needs no TensorFlow.
"""

from __future__ import annotations

import difflib
import functools
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from adabatch.data.image_formats import CorruptRecord, line

_NAME = re.compile(
  r'(?P<set>[a-z_]\w*)(/(?P<config>[\w.\-]+))?(:(?P<version>\d+\.\d+\.\d+))?',
  re.IGNORECASE,
)


# What reading a damaged or missing file raises.
_DAMAGED = (OSError, RuntimeError, IndexError)

# How much of a name must be right to be taken for a slip: 'cifar' is near
# 'cifar10', 'mnist' not near 'fashion_mnist'.
_NEAR = 0.75


class DatasetError(ValueError):
  """A data set that cannot be loaded; the message is one line."""


class NotPrepared(DatasetError):
  """A data set that is not there."""


class Shard(NamedTuple):
  """The part of one file that belongs to a split: [skip, skip + take)."""

  filename: str
  skip: int
  take: int
  examples_in_shard: int


class ImageSplit(NamedTuple):
  """One split of an image-classification set, not opened yet.

  Attributes:
    name: as it was asked for.
    version: 'MAJOR.MINOR.PATCH', the one found.
    split: as it was asked for.
    directory: DATA_DIR/NAME[/CONFIG]/VERSION.
    shards: where the records are, in order.
    num_examples: how many records there are, >= 1.
    num_classes: labels are in [0, num_classes).
    image_shape: (height, width, channels); None where images differ, or the
      set does not say.
    image_key, label_key: names of the two features.
  """

  name: str
  version: str
  split: str
  directory: str
  shards: tuple[Shard, ...]
  num_examples: int
  num_classes: int
  image_shape: tuple[int | None, int | None, int]
  image_key: str
  label_key: str

  # The order in which classes are numbered is the set's own.
  classes = None
  labels_may_be_wrong = True

  @property
  def open_files(self) -> int:
    return len(self.shards)

  @property
  def fingerprint(self) -> str:
    """What the data is, in short; reads the files' sizes."""
    size = sum(pathlib.Path(s.filename).stat().st_size for s in self.shards)
    return (
      f'{self.name} {self.version} {self.split}, {self.num_examples} examples, '
      f'{self.num_classes} classes, {size} bytes'
    )

  def open(self) -> Any:
    """The records; see `open_records`."""
    return open_records(self.shards)

  def parse(self, record: bytes | Exception) -> tuple[bytes, int]:
    """The encoded image and the label of one record; raises as `parse`."""
    return parse(record, self.image_key, self.label_key)


class Found(NamedTuple):
  """One split of a prepared set, not opened yet.

  Attributes:
    name, split: as they were asked for.
    directory: DATA_DIR/NAME[/CONFIG]/VERSION.
    info: TFDS's description of the set.
    features: what a record has, by name.
    shards: where the records are, in order.
    num_examples: how many records there are, >= 1.
  """

  name: str
  split: str
  directory: str
  info: Any
  features: dict[str, Any]
  shards: tuple[Shard, ...]
  num_examples: int


def find_split(
  name: str,
  split: str,
  data_dir: str | os.PathLike[str] | None = None,
  built_in: Iterable[str] = (),
) -> Found:
  """Finds one split of a set on disk.

  Args:
    name: a TFDS name, `NAME[/CONFIG][:VERSION]`; without a version, the newest
      on disk.
    split: 'train', 'train[:80%]', 'train[1000:]', 'train+test', ...
    data_dir: holds `NAME/VERSION/*.array_record*`; default: TFDS_DATA_DIR, else
      ~/tensorflow_datasets.
    built_in: other names that the caller knows, for the message.

  Raises:
    NotPrepared: if the set is not there.
    DatasetError: if it cannot be read, or has no such split.
  """
  directory = find(name, data_dir, built_in)
  # Here because importing it takes most of a second.
  import tensorflow_datasets as tfds

  try:
    # Not `tfds.data_source(name)`: that imports the set's own code and starts
    # to download it when it is not prepared.
    info: Any = tfds.builder_from_directory(directory).info
    given: Any = info.features
    features = (
      dict(given) if isinstance(given, tfds.features.FeaturesDict) else {}
    )
  # Whatever a damaged directory makes TFDS raise.
  except Exception as error:  # noqa: BLE001
    raise DatasetError(
      f"data set '{name}' in {directory} cannot be read: {line(error)}"
    ) from None
  if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise DatasetError(
      f"data set '{name}' in {directory} is not stored as array_record: "
      f'{how_to_prepare(name, data_dir)}'
    )
  try:
    shards = tuple(
      Shard(os.fspath(s.filename), s.skip, s.take, s.examples_in_shard)
      for s in info.splits[split].file_instructions
    )
  # TFDS raises ValueError, KeyError, AssertionError, ... for a wrong split.
  except Exception as error:  # noqa: BLE001
    if re.split(r'[\[+]', split)[0] not in info.splits:
      raise unknown_split(name, split, list(info.splits)) from None
    raise DatasetError(
      f"data set '{name}': split '{split}': {line(error)}"
    ) from None
  count = sum(shard.take for shard in shards)
  if not count:
    raise DatasetError(f"data set '{name}': split '{split}' holds no examples")
  return Found(name, split, os.fspath(directory), info, features, shards, count)


def find_images(
  name: str,
  split: str,
  data_dir: str | os.PathLike[str] | None = None,
  built_in: Iterable[str] = (),
) -> ImageSplit:
  """Finds one split of an image-classification set on disk.

  Arguments and errors as for `find_split`, and a DatasetError if it is no such
  set.
  """
  found = find_split(name, split, data_dir, built_in)
  image_key, label_key = _feature_keys(found)
  features = found.features
  if not features[label_key].num_classes:
    raise DatasetError(
      f"data set '{name}' in {found.directory} does not say how many classes "
      f"its '{label_key}' has: write numClasses into its features.json"
    )
  return ImageSplit(
    name=name,
    version=str(found.info.version),
    split=split,
    directory=found.directory,
    shards=found.shards,
    num_examples=found.num_examples,
    num_classes=features[label_key].num_classes,
    image_shape=features[image_key].shape,
    image_key=image_key,
    label_key=label_key,
  )


def open_records(shards: Any) -> Any:
  """Records as bytes, by index; files are opened when read.

  It has `len`, `[index]` and `__getitems__(indices)`, which raise RuntimeError
  for what cannot be read.
  """
  from array_record.python import array_record_data_source

  # A class with the attributes of a `Shard` is all that it asks for.
  return array_record_data_source.ArrayRecordDataSource(shards)


def read_records(records: Any, numbers: list[int]) -> list[bytes | Exception]:
  """Records by number, with the error in place of those that have one."""
  try:
    return records.__getitems__(numbers)
  except _DAMAGED:  # somewhere among them: one by one
    return [_read_one(records, number) for number in numbers]


def _read_one(records: Any, number: int) -> bytes | Exception:
  try:
    return records[number]
  except _DAMAGED as error:
    return error


def parse(
  record: bytes | Exception, data_key: str, label_key: str | None = None
) -> tuple[bytes, int]:
  """The image or text, and the label if there is one, of a record.

  Raises:
    CorruptRecord: if it could not be read, is no record, or one is missing.
  """
  from google.protobuf import message

  # Parsing it ourselves: TFDS's own decoding takes 200 µs longer a record.
  from tensorflow_datasets.proto import tf_example_pb2

  example_pb2: Any = tf_example_pb2  # generated code, without types
  try:
    if isinstance(record, Exception):
      raise record
    feature = example_pb2.Example.FromString(record).features.feature
    label = feature[label_key].int64_list.value[0] if label_key else 0
    return feature[data_key].bytes_list.value[0], label
  except (*_DAMAGED, message.DecodeError) as error:
    raise CorruptRecord(line(error)) from None


def damaged(
  split: ImageSplit,
  error: Exception,
  data_dir: str | os.PathLike[str] | None,
) -> DatasetError:
  """A file or a field of a prepared set is missing or no good."""
  return DatasetError(
    f"data set '{split.name}' in {split.directory} is damaged: {line(error)}; "
    f'remove it and {how_to_prepare(split.name, data_dir)}'
  )


def unknown_split(name: str, split: str, known: list[str]) -> DatasetError:
  """The set has no such split."""
  cut = ''
  if len(known) == 1:
    cut = f", which can be cut, '{known[0]}[:90%]' and '{known[0]}[90%:]'"
  return DatasetError(
    f"data set '{name}' has no split '{split}': it has {', '.join(known)}{cut}"
  )


def find(
  name: str,
  data_dir: str | os.PathLike[str] | None,
  built_in: Iterable[str] = (),
) -> pathlib.Path:
  """The directory DATA_DIR/NAME[/CONFIG]/VERSION, newest version first.

  Args:
    name: `NAME[/CONFIG][:VERSION]`.
    data_dir: see `find_images`.
    built_in: other names that the caller knows, for the message.

  Raises:
    DatasetError: if there is none, or none that is meant for sure.
  """
  known = ', '.join(built_in)
  root = _data_dir(data_dir)
  match = _NAME.fullmatch(name)
  if not match:
    raise DatasetError(
      f"data set '{name}' is no name: give NAME[/CONFIG][:VERSION]"
      + (f' or one of {known}' if known else '')
      + _nearest(name, root, built_in)
    )
  base = root / match['set']
  if match['config']:
    base = base / match['config']
  versions = _versions(base, match['version'])
  if versions:
    return versions[-1]
  if base.is_dir() and not match['config']:
    configs = sorted(
      child.name
      for child in base.iterdir()
      if child.is_dir() and _versions(child, match['version'])
    )
    if len(configs) == 1:
      return _versions(base / configs[0], match['version'])[-1]
    if configs:
      raise DatasetError(
        f"data set '{name}' in {root} has several configs: name one of "
        f'{", ".join(match["set"] + "/" + config for config in configs)}'
      )
  there = [path.name for path in _versions(base, None)]
  raise NotPrepared(
    f"data set '{name}' is not prepared"
    + (f' in {root}' if root.is_dir() else f': data_dir {root} does not exist')
    + (f', which has version {", ".join(there)}' if there else '')
    + ('' if in_tfds(name) else _nearest(name, root, built_in))
    + f'; {how_to_prepare(name, data_dir)}'
    + (f'; built in, without a download: {known}' if known else '')
  )


def how_to_prepare(name: str, data_dir: str | os.PathLike[str] | None) -> str:
  """The command that puts a set there, if there is one."""
  directory = str(_data_dir(data_dir))
  if not in_tfds(name):
    base = re.split('[/:]', name)[0]
    return (
      f'write it to {directory}/{base}/VERSION as array_record (TensorFlow '
      f"Datasets has no '{base}' to prepare)"
    )
  # Not `tfds build`: its command line also imports apache_beam.
  return (
    "prepare it with: pip install 'adabatch[prepare]' && python -c "
    f'"import tensorflow_datasets as tfds; tfds.builder({name!r}, '
    f"data_dir={directory!r}, file_format='array_record')"
    '.download_and_prepare()"'
  )


def in_tfds(name: str) -> bool:
  """Whether TFDS itself has such a set; needs no TensorFlow.

  >>> in_tfds('mnist:3.0.1'), in_tfds('my_own')
  (True, False)
  """
  return re.split('[/:]', name)[0] in _tfds_names()


@functools.cache
def _tfds_names() -> frozenset[str]:
  import tensorflow_datasets as tfds

  # A tenth of a second, and only for a message.
  return frozenset(tfds.list_builders(with_community_datasets=False))


def _nearest(name: str, root: pathlib.Path, built_in: Iterable[str]) -> str:
  """A hint for a name that is nearly right; nothing for others."""
  base = re.split('[/:]', name)[0]
  known = [*_present(root), *built_in, *sorted(_tfds_names())]
  near = difflib.get_close_matches(base, known, n=1, cutoff=_NEAR)
  return f" (did you mean '{near[0]}'?)" if near else ''


def _present(root: pathlib.Path) -> list[str]:
  """Names of the sets that are prepared there."""
  if not root.is_dir():
    return []
  return sorted(
    child.name
    for child in root.iterdir()
    if child.is_dir()
    and (
      _versions(child, None)
      or any(_versions(config, None) for config in child.iterdir())
    )
  )


def _data_dir(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
  if data_dir is None:  # the same default as TFDS
    data_dir = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  return pathlib.Path(data_dir).expanduser()


def _versions(base: pathlib.Path, version: str | None) -> list[pathlib.Path]:
  """Prepared versions below `base`, oldest first."""
  if not base.is_dir():
    return []
  found = [
    child
    for child in base.iterdir()
    if re.fullmatch(r'\d+\.\d+\.\d+', child.name)
    and version in (None, child.name)
    and (child / 'dataset_info.json').is_file()
    and (child / 'features.json').is_file()
  ]
  return sorted(found, key=lambda path: [int(n) for n in path.name.split('.')])


def _feature_keys(found: Found) -> tuple[str, str]:
  """The names of the image and the label among the set's features."""
  import tensorflow_datasets as tfds

  features, keys = found.features, found.info.supervised_keys
  if not (isinstance(keys, tuple) and len(keys) == 2):
    keys = ('image', 'label')
  chosen: list[Any] = [
    features.get(key) if isinstance(key, str) else None for key in keys
  ]
  image, label = chosen
  images: Any = tfds.features.Image
  if (
    not isinstance(image, images)
    or not isinstance(label, tfds.features.ClassLabel)
    or image.np_dtype != np.uint8
    or image.shape[-1] not in (1, 3, 4)
  ):
    names = ', '.join(
      f'{key}: {type(features[key]).__name__}' for key in sorted(features)
    )
    raise DatasetError(
      f"data set '{found.name}' is no image-classification set with uint8 "
      f'images of 1, 3 or 4 channels and a class label: it has {names}'
    )
  return keys
