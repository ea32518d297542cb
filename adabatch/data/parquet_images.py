"""Encoded images in parquet files: `parquet:PATH`, as hubs of data keep them.

A column holds the bytes of each image, or `{bytes, path}`. Parquet cannot be
read row by row, so the bytes are copied once into files that can (Arrow's IPC
format), in the user's cache directory, and mapped into memory from there: all
processes of a machine share them.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from adabatch.data import jpeg
from adabatch.data.image_formats import CorruptRecord, line
from adabatch.data.order import Order, take
from adabatch.data.splits import names_of, rows_of
from adabatch.data.tables import (
  column_names,
  read_columns,
  table_files,
)
from adabatch.data.targets import join, make_targets, number_of_outputs
from adabatch.data.tfds_records import DatasetError

# The one column of the files that are mapped.
_COLUMN = 'image'


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
    fingerprint: files and labels in short.
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

  def __getitem__(self, index: int) -> tuple[bytes, int]:
    row = int(self._rows[index])
    file = int(np.searchsorted(self._ends, row, 'right'))
    start = int(self._ends[file - 1]) if file else 0
    encoded = self._columns[file][row - start].as_py()
    if encoded is None:
      raise CorruptRecord('no image')
    return encoded, int(self._labels[index])

  def __getitems__(self, indices: list[int]) -> list[tuple[bytes, int]]:  # noqa: PLW3201
    return [self[index] for index in indices]


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
  asked = frozenset().union(*(names_of(split) for split in splits))
  files = table_files(name, data_dir, asked)
  keys = column_names(name, files, input_key, label_key)
  mapped, targets, rows, start, parts = [], [], {}, 0, []
  for part, paths in files.items():
    rows[part] = np.empty(0, np.int64)
    if part not in asked:
      continue
    labels = read_columns(name, paths, keys[1])
    target = make_targets(name, part, labels, 'classes')
    count = len(target.values)
    rows[part] = start + take(Order(count, seed=0), 0, count)
    start += count
    parts.append(part)
    targets.append(target)
    mapped += [_map(path, keys[0][0]) for path in paths]
  chosen = {split: rows_of(name, split, rows) for split in splits}
  values = join(name, targets).astype(np.int32)
  ours = [t for p, t in zip(parts, targets, strict=True) if p in names_of(splits[0])]
  outputs = max(map(number_of_outputs, ours))
  result = []
  for split in splits:
    labels = values[chosen[split]]
    tells = zlib.crc32(chosen[split].tobytes() + labels.tobytes())
    found = ParquetSplit(
      name=name,
      split=split,
      files=tuple(mapped),
      rows=chosen[split],
      labels=labels,
      classes=ours[0].classes,
      num_classes=outputs,
      image_shape=(None, None, 3),
      fingerprint=f'{split}, {len(labels)} images, {outputs} classes, '
      f'{tells:08x}',
    )
    result.append(found._replace(image_shape=_shape(found)))
  return result
