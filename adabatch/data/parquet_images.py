"""Encoded images in parquet files: `parquet:PATH`, as hubs of data keep them.

A column holds the bytes of each image, or `{bytes, path}`. Parquet cannot be
read row by row, so the bytes are copied once into files that can (Arrow's IPC
format), in the user's cache directory, and mapped into memory from there: all
processes of a machine share them.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adabatch.config.files import cache_directory
from adabatch.data import image_cache
from adabatch.data.folders import one_shape
from adabatch.data.image_formats import CorruptRecord, line
from adabatch.data.labels import refuse
from adabatch.data.order import Order, take
from adabatch.data.splits import names_of, rows_of
from adabatch.data.tables import (
  check_splits,
  choose_columns,
  columns,
  find_files,
  names_of_all,
)
from adabatch.data.targets import join, make_targets
from adabatch.data.tfds_records import DatasetError

# The one column of the files that are mapped.
_COLUMN = 'image'

# Images copied at once.
_BATCH = 256

# Images that the fingerprint looks into, evenly spread.
_FINGERPRINT_IMAGES = 64


class ParquetSplit(NamedTuple):
  """One split, not opened yet; as `ImageSplit`.

  Attributes:
    name, split: as they were asked for.
    files: that are mapped into memory, one for each parquet file.
    rows: int64 [N], in all files, one after the other.
    labels: int32 [N].
    classes: their names; () where they are numbered.
    num_classes: labels are below it.
    image_shape: (height, width, 3); None where images differ.
    fingerprint: lengths of the images, some of them, and labels in short.
  """

  name: str
  split: str
  files: tuple[str, ...]
  rows: np.ndarray
  labels: np.ndarray
  classes: tuple[str, ...]
  num_classes: int
  image_shape: tuple[int | None, int | None, int]
  fingerprint: str
  # All labels were read; a mapped file need not stay open.
  labels_may_be_wrong: bool = False
  open_files: int = 0

  @property
  def num_examples(self) -> int:
    return len(self.rows)

  def open(self) -> Any:
    """The records."""
    return Mapped(self)

  def parse(self, record: Any) -> tuple[bytes, int]:
    """The encoded image and the label of one record."""
    return record


class Mapped:
  """Records of a split: (encoded image, label) by number."""

  def __init__(self, split: ParquetSplit):
    import pyarrow as pa  # slow to import

    self._labels, self._rows = split.labels, split.rows
    self._columns = [
      pa.ipc.open_file(pa.memory_map(file)).read_all()[_COLUMN]
      for file in split.files
    ]
    self._ends = np.cumsum([len(column) for column in self._columns])

  def __len__(self) -> int:
    return len(self._rows)

  def encoded(self, index: int) -> bytes:
    """The bytes of an image."""
    row = int(self._rows[index])
    file = int(np.searchsorted(self._ends, row, 'right'))
    start = int(self._ends[file - 1]) if file else 0
    encoded = self._columns[file][row - start].as_py()
    if encoded is None:
      raise CorruptRecord('no image')
    return encoded

  def __getitem__(self, index: int) -> tuple[bytes, int]:
    return self.encoded(index), int(self._labels[index])

  def checksum(self) -> int:
    """Of the lengths of all images, and of the bytes of some."""
    from pyarrow import compute

    lengths = [
      compute.call_function('binary_length', [column]).to_numpy()
      for column in self._columns
    ]
    chosen = np.concatenate(lengths)[self._rows]
    tells = zlib.crc32(np.nan_to_num(chosen).astype(np.int64).tobytes())
    count = min(len(self), _FINGERPRINT_IMAGES)
    for index in np.arange(count) * len(self) // count:
      try:
        tells = zlib.crc32(self.encoded(int(index)), tells)
      except CorruptRecord:
        continue  # counted when it is read
    return tells

  def __getitems__(self, indices: list[int]) -> list[tuple[bytes, int]]:  # noqa: PLW3201
    return [self[index] for index in indices]


def holds_images(
  name: str,
  data_dir: str | os.PathLike[str] | None = None,
  input_key: str | None = None,
  label_key: str | None = None,
) -> bool:
  """Whether a table's inputs are encoded images, and not numbers."""
  if not name.startswith('parquet:'):
    return False
  schemas = _schemas(find_files(name, data_dir))
  inputs, _ = choose_columns(name, schemas, input_key, label_key)
  schema = next(iter(schemas.values()))[0]
  return any(_is_encoded(schema[key]) for key in inputs)


def find_parquet_images(
  name: str,
  splits: Sequence[str],
  data_dir: str | os.PathLike[str] | None = None,
  *,
  input_key: str | None = None,
  label_key: str | None = None,
) -> list[ParquetSplit]:
  """Finds splits of a set of encoded images; as `tables.load_tables`.

  Raises:
    DatasetError: in one line, for what cannot be read or trained on.
  """
  files = find_files(name, data_dir)
  asked = names_of_all(splits)
  check_splits(name, asked, files)
  inputs, label_keys = choose_columns(
    name, _schemas(files), input_key, label_key
  )
  image, *others = inputs
  if others:
    raise DatasetError(
      f"data set '{name}': {', '.join(inputs)} hold images and more: name one "
      'with data.input_key'
    )
  targets, rows, start = {}, {}, 0
  for part, paths in files.items():
    rows[part] = np.empty(0, np.int64)
    if part in asked:
      read = [_read(path, label_keys) for path in paths]
      targets[part] = make_targets(
        name, part, columns(name, part, read, label_keys), 'classes'
      )
      count = len(targets[part].values)
      rows[part] = start + take(Order(count, seed=0), 0, count)
      start += count
  values, outputs = join(name, targets, names_of(splits[0]))
  chosen = [rows_of(name, split, rows) for split in splits]
  mapped = _map_all([p for part in targets for p in files[part]], image)
  result = []
  for split, some in zip(splits, chosen, strict=True):
    labels = values[some].astype(np.int32)
    if labels.min() < 0 or labels.max() >= outputs:
      row = int(((labels < 0) | (labels >= outputs)).argmax())
      where = f"data set '{name}', split '{split}', record {row}"
      raise refuse('label', int(labels[row]), where, outputs)
    found = ParquetSplit(
      name=name,
      split=split,
      files=mapped,
      rows=some,
      labels=labels,
      classes=targets[next(iter(targets))].classes,
      num_classes=outputs,
      image_shape=(None, None, 3),
      fingerprint='',
    )
    records = found.open()
    encoded = lambda index, records=records: records.encoded(index)  # noqa: E731
    tells = zlib.crc32(labels.tobytes(), records.checksum())
    result.append(
      found._replace(
        image_shape=one_shape(found, encoded),
        fingerprint=f'{split}, {len(labels)} images, {outputs} classes, '
        f'{tells:08x}',
      )
    )
  return result


def _schemas(
  files: Mapping[str, Sequence[pathlib.Path]],
) -> dict[str, list[dict[str, Any]]]:
  """The types of the columns of each file."""
  import pyarrow as pa
  from pyarrow import parquet

  found: dict[str, list[dict[str, Any]]] = {}
  for part, paths in files.items():
    for path in paths:
      try:
        schema = parquet.read_schema(path)
      except (pa.ArrowException, OSError) as error:
        raise DatasetError(f'{path} cannot be read: {line(error)}') from None
      types = dict(zip(schema.names, schema.types, strict=True))
      found.setdefault(part, []).append(types)
  return found


def _is_encoded(kind: Any) -> bool:
  """Whether a column holds bytes, or {bytes, path}."""
  import pyarrow as pa

  if pa.types.is_struct(kind):
    return kind.get_field_index('bytes') >= 0
  return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _read(path: pathlib.Path, keys: Sequence[str]) -> dict[str, Any]:
  import pyarrow as pa
  from pyarrow import parquet

  try:
    table = parquet.read_table(path, columns=list(keys))
  except (pa.ArrowException, OSError) as error:
    raise DatasetError(f'{path} cannot be read: {line(error)}') from None
  return dict(zip(table.column_names, table.columns, strict=True))


def _map_all(paths: Sequence[pathlib.Path], key: str) -> tuple[str, ...]:
  """The bytes of a column in files of their own; made if they are not there.

  Beyond `image_cache.MOST_BYTES` what was not used for longest is removed.
  """
  directory = cache_directory('images')
  names = [_name_of(path, key) for path in paths]
  try:
    image_cache.claim(directory, names, _is_current)
  except OSError as error:
    raise DatasetError(
      f'{directory} cannot be used for images: {line(error)}; set '
      'XDG_CACHE_HOME to another directory'
    ) from None
  for path, name in zip(paths, names, strict=True):
    if not (directory / name).exists():
      _copy(path, key, directory / name)
  return tuple(os.fspath(directory / name) for name in names)


def _name_of(path: pathlib.Path, key: str) -> str:
  """Another name for another column, or a file that has changed."""
  status = path.stat()
  tells = f'{path.resolve()} {status.st_size} {status.st_mtime_ns} {key}'
  return f'{hashlib.sha256(tells.encode()).hexdigest()[:32]}.arrow'


def _is_current(copy: pathlib.Path) -> bool:
  """Whether what it was made of is there, unchanged."""
  import pyarrow as pa

  try:
    with pa.memory_map(os.fspath(copy)) as file:
      told = pa.ipc.open_file(file).schema.metadata or {}
    if b'path' not in told:
      return True  # of an earlier version, which did not say
    path, key = (told[name].decode() for name in (b'path', b'key'))
    return _name_of(pathlib.Path(path), key) == copy.name
  except (pa.ArrowException, OSError):
    return False


def _copy(path: pathlib.Path, key: str, target: pathlib.Path) -> None:
  import pyarrow as pa
  from pyarrow import parquet

  directory, told = target.parent, {'path': str(path.resolve()), 'key': key}
  schema = pa.schema([(_COLUMN, pa.large_binary())], metadata=told)
  try:
    with tempfile.NamedTemporaryFile(
      dir=directory, suffix='.partial', delete=False
    ) as file:
      try:
        with pa.ipc.new_file(file, schema) as writer:
          for batch in parquet.ParquetFile(path).iter_batches(
            _BATCH, columns=[key]
          ):
            values = batch.column(0)
            if pa.types.is_struct(values.type):
              values = values.field('bytes')
            column = values.cast(pa.large_binary())
            writer.write_batch(pa.record_batch([column], schema=schema))
        # Whole or not at all, however many processes make it.
        pathlib.Path(file.name).rename(target)
      finally:
        pathlib.Path(file.name).unlink(missing_ok=True)
  except (pa.ArrowException, OSError) as error:
    raise DatasetError(
      f'{path} cannot be copied to {directory}: {line(error)}'
    ) from None
