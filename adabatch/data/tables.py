"""Tables and arrays in files: `npz:PATH`, `csv:PATH`, `parquet:PATH`.

PATH is a file, which has one split, `train`, to be cut (`train[:90%]`), or a
folder with a file for each split, `train.csv` and `val.csv`; those of one split
may be several, `train-0.csv`, `train-1.csv`. An npz file may hold several
splits itself: `x_train`, `y_train`, `x_test`, `y_test`. A relative PATH lies in
`data_dir`, if that is given.

Within a split examples lie in a fixed random order, because files are often
sorted by class. Everything is read into memory; what does not fit on the
devices is streamed from there.
"""

from __future__ import annotations

import os
import pathlib
import re
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adabatch.data.folders import check_same_classes
from adabatch.data.image_formats import line
from adabatch.data.order import Order, take
from adabatch.data.resident import Split, from_arrays
from adabatch.data.splits import names_of, rows_of
from adabatch.data.targets import join, make_targets, number_of_outputs
from adabatch.data.tfds_records import DatasetError, unknown_split

# prefix of a name -> ending of its files
FORMATS = {'npz:': '.npz', 'csv:': '.csv', 'parquet:': '.parquet'}

# Where `data.input_key` and `data.label_key` are not given, the first of these.
INPUT_NAMES = 'image', 'images', 'x', 'input', 'inputs', 'features', 'data'
LABEL_NAMES = 'label', 'labels', 'y', 'target', 'targets', 'class'

# In an npz file: x_train and so on.
_NPZ_SPLIT = re.compile(r'(?P<key>\w+?)_(?P<split>train|test|val|validation)')

Columns = dict[str, np.ndarray]


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
  found = _read(name, _asked(splits), data_dir)
  names = _names(name, found, input_key, label_key)
  inputs, targets, rows, start = {}, {}, {}, 0
  for part, columns in found.items():
    if not columns:
      rows[part] = np.empty(0, np.int64)
      continue
    inputs[part] = _inputs(name, part, columns, names[0])
    targets[part] = make_targets(
      name, part, {key: columns[key] for key in names[1]}, labels
    )
    count = len(inputs[part])
    if len(targets[part].values) != count:
      raise DatasetError(
        f"data set '{name}', split '{part}': {count} inputs and "
        f'{len(targets[part].values)} labels: give one label for each'
      )
    rows[part] = start + take(Order(count, seed=0), 0, count)
    start += count
  ours = [targets[part] for part in sorted(names_of(splits[0]))]
  for part, target in targets.items():
    check_same_classes(name, ours[0].classes, target.classes, part)
  label = join(name, list(targets.values()))
  outputs = max(number_of_outputs(target) for target in ours)
  image = _concatenate(name, list(inputs.values()))
  entry = 'image' if image.ndim == 4 else 'features'
  result = []
  for split in splits:
    chosen = rows_of(name, split, rows)
    with_names = {entry: image[chosen], 'label': label[chosen]}
    try:
      result.append(from_arrays(with_names, outputs))
    except DatasetError as error:
      raise DatasetError(
        f"data set '{name}', split '{split}': {error}"
      ) from None
  return result


def _asked(splits: Sequence[str]) -> frozenset[str]:
  return frozenset().union(*(names_of(split) for split in splits))


def _read(
  name: str,
  asked: frozenset[str],
  data_dir: str | os.PathLike[str] | None,
) -> dict[str, Columns]:
  """The columns of each split; none of one that is not asked for."""
  prefix = next(p for p in FORMATS if name.startswith(p))
  suffix = FORMATS[prefix]
  path = pathlib.Path(name.removeprefix(prefix)).expanduser()
  path = pathlib.Path(data_dir or '') / path
  if not path.exists():
    raise DatasetError(
      f"data set '{name}': {path} is not there: give {prefix}PATH of a "
      f'{suffix} file, or of a folder with train{suffix} and so on'
    )
  files = _files(name, path, suffix)
  found: dict[str, Columns] = {}
  for part, paths in files.items():
    if prefix == 'npz:' and list(files) == ['train'] and not path.is_dir():
      found = _npz_splits(name, paths[0], asked)
    elif part in asked:
      parts = [_columns(file, prefix) for file in paths]
      found[part] = _stack(name, paths, parts)
    else:
      found[part] = {}
  if missing := asked - found.keys():
    raise unknown_split(name, min(missing), list(found))
  return found


def _files(
  name: str, path: pathlib.Path, suffix: str
) -> dict[str, list[pathlib.Path]]:
  """The files of each split."""
  if path.is_file():
    return {'train': [path]}
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


def _columns(path: pathlib.Path, prefix: str) -> Columns:
  """What is in a file, by name."""
  if prefix == 'npz:':
    return _npz(path)
  import pyarrow as pa  # slow to import
  from pyarrow import csv, parquet

  try:
    if prefix == 'csv:':
      table = csv.read_csv(path)
    else:
      table = parquet.read_table(path)
  except (pa.ArrowException, OSError) as error:
    raise DatasetError(f'{path} cannot be read: {line(error)}') from None
  return {
    key: _array(path, key, column)
    for key, column in zip(table.column_names, table.columns, strict=True)
  }


def _npz(path: pathlib.Path) -> Columns:
  try:
    with np.load(path, allow_pickle=False) as file:
      return {key: file[key] for key in file.files}
  except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
    raise DatasetError(f'{path} cannot be read: {line(error)}') from None


def _npz_splits(
  name: str, path: pathlib.Path, asked: frozenset[str]
) -> dict[str, Columns]:
  """Those of one file: all that it holds, or x_train, x_test and so on."""
  arrays = _npz(path)
  found: dict[str, Columns] = {}
  for key, array in arrays.items():
    if match := _NPZ_SPLIT.fullmatch(key):
      found.setdefault(match['split'], {})[match['key']] = array
  if not found:
    return {'train': arrays}
  return {part: found[part] if part in asked else {} for part in found}


def _array(path: pathlib.Path, key: str, column: Any) -> np.ndarray:
  """A column of a table, without gaps."""
  import pyarrow as pa

  if column.null_count:
    row = column.is_null().to_numpy().argmax()
    raise DatasetError(
      f"{path}, column '{key}', row {row} is empty: fill it in, or name the "
      'columns to be used (data.input_key, data.label_key)'
    )
  kind = column.type
  if pa.types.is_dictionary(kind):
    column = column.cast(kind.value_type)
    kind = kind.value_type
  is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
  if is_list or pa.types.is_fixed_size_list(kind):
    rows = [np.asarray(row) for row in column.to_pylist()]
    if len({row.shape for row in rows}) != 1:
      raise DatasetError(
        f"{path}, column '{key}': its lists differ in length: give all the same"
      )
    return np.stack(rows)
  if pa.types.is_string(kind) or pa.types.is_large_string(kind):
    return np.array(column.to_pylist(), str)
  if pa.types.is_boolean(kind) or pa.types.is_primitive(kind):
    return column.to_numpy()
  return np.array(column.to_pylist(), object)


def _stack(
  name: str, paths: Sequence[pathlib.Path], parts: Sequence[Columns]
) -> Columns:
  """The columns of several files, one after the other."""
  for path, columns in zip(paths, parts, strict=True):
    if columns.keys() != parts[0].keys():
      raise DatasetError(
        f"data set '{name}': {path} has the columns {', '.join(columns)}, "
        f'{paths[0]} has {", ".join(parts[0])}: give all the same'
      )
  if len(parts) == 1:
    return parts[0]
  return {
    key: _concatenate(name, [columns[key] for columns in parts])
    for key in parts[0]
  }


def _concatenate(name: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
  if len({array.shape[1:] for array in arrays}) != 1:
    shapes = ' and '.join(str(list(array.shape[1:])) for array in arrays)
    raise DatasetError(
      f"data set '{name}': examples differ in shape ({shapes}): give all the "
      'same'
    )
  return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _names(
  name: str,
  found: Mapping[str, Columns],
  input_key: str | None,
  label_key: str | None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """The columns of inputs and of labels."""
  columns = next(columns for columns in found.values() if columns)
  for key, given in (('input_key', input_key), ('label_key', label_key)):
    for part in _split_keys(given):
      if part not in columns:
        raise DatasetError(
          f"data set '{name}': data.{key}='{given}': there is no '{part}', "
          f'but {", ".join(columns)}'
        )
  labels = _split_keys(label_key) or tuple(
    key for key in LABEL_NAMES if key in columns
  )[:1]
  if not labels:
    raise DatasetError(
      f"data set '{name}': which of {', '.join(columns)} is the label? Set "
      'data.label_key'
    )
  inputs = _split_keys(input_key) or tuple(
    key for key in INPUT_NAMES if key in columns and key not in labels
  )[:1]
  if not inputs and not name.startswith('npz:'):
    inputs = tuple(key for key in columns if key not in labels)
  if not inputs:
    raise DatasetError(
      f"data set '{name}': which of {', '.join(columns)} is the input? Set "
      'data.input_key'
    )
  for one, other in (('data.input_key', inputs), ('data.label_key', labels)):
    for part, table in found.items():
      if table and (missing := [key for key in other if key not in table]):
        raise DatasetError(
          f"data set '{name}': split '{part}' has no '{missing[0]}' ({one})"
        )
  return inputs, labels


def _split_keys(keys: str | None) -> tuple[str, ...]:
  parts = (part.strip() for part in (keys or '').split(','))
  return tuple(part for part in parts if part)


def _inputs(
  name: str, split: str, columns: Columns, keys: tuple[str, ...]
) -> np.ndarray:
  """'image' [N, H, W, C] or 'features' [N, ...]."""
  chosen = {key: columns[key] for key in keys}
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
    if values.dtype == np.uint8 and values.ndim == 4:
      return values
    values = values.astype(np.float32)
    return values[:, None] if values.ndim == 1 else values
  for key, values in chosen.items():
    if values.ndim != 1:
      raise DatasetError(
        f"data set '{name}': column '{key}' holds lists of numbers beside "
        'other columns: name one of them with data.input_key'
      )
  return np.stack([v.astype(np.float32) for v in chosen.values()], -1)
