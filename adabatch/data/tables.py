"""Tables and arrays in files: `npz:PATH`, `csv:PATH`, `parquet:PATH`.

PATH is a file, which has one split, `train`, to be cut (`train[:90%]`), or a
folder with a file for each split, `train.csv` and `val.csv`; those of one split
may be several, `train-0.csv`, `train-1.csv`. An npz file may hold several
splits itself: `x_train`, `y_train`, `x_test`, `y_test`. A relative PATH lies in
`data_dir`, if that is given.

Within a split examples lie in a fixed random order, because files are often
sorted by class. A split is read into memory; what does not fit on the devices
is streamed from there.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adabatch.data.arrays import Split, from_arrays
from adabatch.data.image_formats import line
from adabatch.data.npz import Npz, check_memory
from adabatch.data.order import Order, take
from adabatch.data.splits import names_of, rows_of
from adabatch.data.targets import join, make_targets
from adabatch.data.tfds_records import DatasetError, unknown_split

# prefix of a name -> ending of its files
FORMATS = {'npz:': '.npz', 'csv:': '.csv', 'parquet:': '.parquet'}

# Where `data.input_key` and `data.label_key` are not given, the first of these.
INPUT_NAMES = 'image', 'images', 'x', 'input', 'inputs', 'features', 'data'
LABEL_NAMES = 'label', 'labels', 'y', 'target', 'targets', 'class'

# In an npz file: x_train and so on.
_NPZ_SPLIT = re.compile(r'(?P<key>\w+?)_(?P<split>train|test|val|validation)')

# What a file holds, by name: NumPy arrays, or columns of Arrow.
File = Mapping[str, Any]


def is_table(name: str) -> bool:
  """Whether a data set is named as one of these.

  >>> is_table('csv:prices.csv'), is_table('mnist')
  (True, False)
  """
  return name.startswith(tuple(FORMATS))


def load_tables(
  name: str,
  splits: Sequence[str],
  data_dir: str | os.PathLike[str] | None = None,
  *,
  input_key: str | None = None,
  label_key: str | None = None,
  labels: str = 'classes',
) -> list[Split]:
  """Loads splits of one set; the first says which classes there are.

  Args:
    name: see the module.
    splits: 'train', 'train[:80%]', 'train+val', ...
    data_dir: of a relative PATH; None: the working directory.
    input_key: the column or array of the inputs, or several columns, separated
      by commas; None: one of `INPUT_NAMES`, or of a table all other columns.
    label_key: likewise; None: one of `LABEL_NAMES`.
    labels: what they are: 'classes', 'numbers' or 'flags'; see `make_targets`.

  Returns:
    The splits: 'image', uint8 or float32 [N, H, W, C], or 'features', float32
    [N, ...], and 'label'.

  Raises:
    DatasetError: in one line, for what cannot be read or trained on.
  """
  asked = names_of_all(splits)
  files = read_files(name, asked, data_dir)
  input_keys, label_keys = choose_columns(name, files, input_key, label_key)
  inputs, targets, rows, start = [], {}, {}, 0
  for part, found in files.items():
    if part not in asked:
      rows[part] = np.empty(0, np.int64)
      continue
    inputs.append(_inputs(name, part, columns(name, part, found, input_keys)))
    targets[part] = make_targets(
      name, part, columns(name, part, found, label_keys), labels
    )
    count = len(inputs[-1])
    if len(targets[part].values) != count:
      raise DatasetError(
        f"data set '{name}', split '{part}': {count} inputs and "
        f'{len(targets[part].values)} labels: give one label for each'
      )
    rows[part] = start + take(Order(count, seed=0), 0, count)
    start += count
  label, outputs = join(name, targets, names_of(splits[0]))
  classes = next(iter(targets.values())).classes
  image = _concatenate(name, inputs)
  entry = 'image' if image.ndim == 4 else 'features'
  result = []
  for split in splits:
    chosen = rows_of(name, split, rows)
    check_memory(
      f"data set '{name}', split '{split}'",
      len(chosen) * image[:1].nbytes,
    )
    arrays = {entry: _numbers(image[chosen]), 'label': label[chosen]}
    try:
      found = from_arrays(arrays, outputs)
      result.append(found._replace(classes=classes))
    except DatasetError as error:
      raise DatasetError(
        f"data set '{name}', split '{split}': {error}"
      ) from None
  return result


def names_of_all(splits: Sequence[str]) -> frozenset[str]:
  """The splits that several are made of."""
  return frozenset().union(*(names_of(split) for split in splits))


def find_files(
  name: str, data_dir: str | os.PathLike[str] | None
) -> dict[str, list[pathlib.Path]]:
  """The files of each split.

  Raises:
    DatasetError: in one line, if there are none.
  """
  prefix = next(p for p in FORMATS if name.startswith(p))
  suffix = FORMATS[prefix]
  path = pathlib.Path(name.removeprefix(prefix)).expanduser()
  path = pathlib.Path(data_dir or '') / path
  if path.is_file():
    return {'train': [path]}
  if not path.is_dir():
    raise DatasetError(
      f"data set '{name}': {path} is not there: give {prefix}PATH of a "
      f'{suffix} file, or of a folder with train{suffix} and so on'
    )
  files: dict[str, list[pathlib.Path]] = {}
  for file in sorted(path.glob(f'*{suffix}')):
    if not file.name.startswith('.'):
      part = file.name.removesuffix(suffix).partition('-')[0]
      files.setdefault(part, []).append(file)
  if not files:
    raise DatasetError(
      f"data set '{name}': {path} holds no {suffix} files: give train{suffix}, "
      f'val{suffix} and so on, or the path of one file'
    )
  return files


def read_files(
  name: str,
  asked: Collection[str],
  data_dir: str | os.PathLike[str] | None,
) -> dict[str, list[File]]:
  """What the files of each split hold; [] of one that is not asked for.

  Raises:
    DatasetError: in one line, if there is no such split, or a file is no good.
  """
  paths = find_files(name, data_dir)
  if name.startswith('npz:') and list(paths) == ['train']:
    found = _npz_splits(Npz(paths['train'][0]), asked)
  else:
    check_splits(name, asked, paths)
    read = Npz if name.startswith('npz:') else _arrow
    found = {
      part: [read(path) for path in paths[part]] if part in asked else []
      for part in paths
    }
  check_splits(name, asked, found)
  return found


def check_splits(
  name: str, asked: Collection[str], found: Collection[str]
) -> None:
  """Refuses splits that are not there."""
  if missing := {*asked} - {*found}:
    raise unknown_split(name, min(missing), list(found))


def _npz_splits(arrays: File, asked: Collection[str]) -> dict[str, list[File]]:
  """Those of one file: all that it holds, or x_train, x_test and so on."""
  found: dict[str, dict[str, str]] = {}
  for key in arrays:
    if match := _NPZ_SPLIT.fullmatch(key):
      found.setdefault(match['split'], {})[match['key']] = key
  if not found:
    return {'train': [arrays]}
  return {
    part: [_Renamed(arrays, names)] if part in asked else []
    for part, names in found.items()
  }


class _Renamed(Mapping[str, Any]):
  """Some of what a file holds, by other names."""

  def __init__(self, arrays: File, names: Mapping[str, str]):
    self._arrays, self._names = arrays, names

  def __getitem__(self, key: str) -> Any:
    return self._arrays[self._names[key]]

  def __iter__(self) -> Iterator[str]:
    return iter(self._names)

  def __len__(self) -> int:
    return len(self._names)


def _arrow(path: pathlib.Path) -> File:
  import pyarrow as pa  # slow to import
  from pyarrow import csv, parquet

  try:
    read = csv.read_csv if path.suffix == '.csv' else parquet.read_table
    table = read(path)
  except (pa.ArrowException, OSError) as error:
    raise DatasetError(f'{path} cannot be read: {line(error)}') from None
  return dict(zip(table.column_names, table.columns, strict=True))


def choose_columns(
  name: str,
  files: Mapping[str, Sequence[Collection[str]]],
  input_key: str | None,
  label_key: str | None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """The columns of inputs and of labels.

  Args:
    name: of the set.
    files: of each split, the names in each file.
    input_key, label_key: as for `load_tables`.

  Raises:
    DatasetError: in one line, if they are not there or cannot be guessed.
  """
  found = next(there[0] for there in files.values() if there)
  labels = (
    _split_keys(label_key)
    or tuple(key for key in LABEL_NAMES if key in found)[:1]
  )
  inputs = (
    _split_keys(input_key)
    or tuple(key for key in INPUT_NAMES if key in found and key not in labels)[
      :1
    ]
  )
  if not inputs and not name.startswith('npz:'):
    inputs = tuple(key for key in found if key not in labels)
  for key, what, chosen in (
    ('label_key', 'label', labels),
    ('input_key', 'input', inputs),
  ):
    if not chosen:
      raise DatasetError(
        f"data set '{name}': which of {', '.join(found)} is the {what}? Set "
        f'data.{key}'
      )
    for there in (file for part in files.values() for file in part):
      for column in chosen:
        if column not in there:
          raise DatasetError(
            f"data set '{name}': data.{key}: there is no '{column}', but "
            f'{", ".join(there)}'
          )
  return inputs, labels


def _split_keys(keys: str | None) -> tuple[str, ...]:
  parts = (part.strip() for part in (keys or '').split(','))
  return tuple(part for part in parts if part)


def columns(
  name: str, split: str, files: Sequence[File], keys: Sequence[str]
) -> dict[str, np.ndarray]:
  """Columns of all files of a split, one after the other.

  Raises:
    DatasetError: in one line, for gaps, and where shapes differ.
  """
  where = f"data set '{name}', split '{split}'"
  return {
    key: _concatenate(name, [_array(where, key, file[key]) for file in files])
    for key in keys
  }


def _array(where: str, key: str, column: Any) -> np.ndarray:
  """A column without gaps."""
  if isinstance(column, np.ndarray):
    return column
  import pyarrow as pa

  if column.null_count:
    row = column.is_null().to_numpy().argmax()
    raise DatasetError(
      f"{where}: column '{key}', row {row} is empty: fill it in, or name other "
      'columns with data.input_key and data.label_key'
    )
  kind = column.type
  if pa.types.is_dictionary(kind):
    column, kind = column.cast(kind.value_type), kind.value_type
  is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
  if is_list or pa.types.is_fixed_size_list(kind):
    lists = [np.asarray(row) for row in column.to_pylist()]
    if len({row.shape for row in lists}) != 1:
      raise DatasetError(
        f"{where}: lists of column '{key}' differ in length: give all the same"
      )
    return np.stack(lists)
  if pa.types.is_string(kind) or pa.types.is_large_string(kind):
    return np.array(column.to_pylist(), str)
  if pa.types.is_boolean(kind) or pa.types.is_primitive(kind):
    return column.to_numpy()
  return np.array(column.to_pylist(), object)


def _concatenate(name: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
  if len({array.shape[1:] for array in arrays}) != 1:
    shapes = ' and '.join(str(list(array.shape[1:])) for array in arrays)
    raise DatasetError(
      f"data set '{name}': examples differ in shape ({shapes}): give all the "
      'same'
    )
  return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _inputs(
  name: str, split: str, chosen: Mapping[str, np.ndarray]
) -> np.ndarray:
  """'image' [N, H, W, C] or 'features' [N, ...], not converted yet."""
  for key, values in chosen.items():
    if values.dtype.kind not in 'biuf':
      what = 'text' if values.dtype.kind == 'U' else 'no numbers'
      raise DatasetError(
        f"data set '{name}', split '{split}': column '{key}' holds {what}: "
        'turn it into numbers, or name the columns to be used with '
        'data.input_key'
      )
  if len(chosen) == 1:
    (values,) = chosen.values()
    if values.dtype == np.uint8 and values.ndim == 3:
      return values[..., None]  # grey images
    return values[:, None] if values.ndim == 1 else values
  for key, values in chosen.items():
    if values.ndim != 1:
      raise DatasetError(
        f"data set '{name}': column '{key}' holds lists of numbers beside "
        'other columns: name one of them with data.input_key'
      )
  return np.stack([v.astype(np.float32) for v in chosen.values()], -1)


def _numbers(values: np.ndarray) -> np.ndarray:
  """Of some examples: bytes of images, or float32."""
  if values.dtype == np.uint8 and values.ndim == 4:
    return np.asarray(values)
  return np.asarray(values, np.float32)
