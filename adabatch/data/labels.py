"""Labels and tokens that are no class: refused, and never trained on.

On the device they would not be noticed: what is looked up outside a table is
the table's last entry, and a cross-entropy of no class is 0 or NaN.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from adabatch.data import tfds_records
from adabatch.data.image_formats import CorruptRecord
from adabatch.data.tfds_records import DatasetError

# Labels are looked at before training as far as reading them costs about a
# second: all of small splits, of others those of records from all over.
READ_BYTES = 2**28
# Records that are read at once.
_RECORDS = 256


def refuse(what: str, value: int, where: str, num_classes: int) -> DatasetError:
  """The error for one number that is no class.

  >>> print(refuse('label', 3, 'record 7', 3))
  record 7 has the label 3, but there are 3 classes, 0 to 2: correct it, or \
leave it out (unlabelled records have -1), or declare more classes
  """
  remedy = (
    'correct it, or leave it out (unlabelled records have -1), or declare '
    'more classes'
    if what == 'label'
    else 'tokenise again, or declare more tokens'
  )
  return DatasetError(
    f'{where} has the {what} {value}, but there are {num_classes} classes, 0 '
    f'to {num_classes - 1}: {remedy}'
  )


def check(
  arrays: Mapping[str, np.ndarray],
  num_classes: int,
  where: Callable[[int], str],
) -> None:
  """Refuses labels and tokens that are no class.

  Args:
    arrays: of examples, all with leading axis n; only integers of 'label' and
      'tokens' are looked at, and not of examples of the weight 0.
    num_classes: they must be in [0, num_classes).
    where: what to call an example, by its row.

  Raises:
    DatasetError: for the first that is not.

  >>> check({'label': np.array([0, 2])}, 3, 'record {}'.format)
  """
  for key, what in (('label', 'label'), ('tokens', 'token')):
    values = arrays.get(key)
    if values is None or values.size == 0 or values.dtype.kind == 'f':
      continue  # numbers to be predicted have no range
    if int(values.min()) >= 0 and int(values.max()) < num_classes:
      continue
    wrong = (values < 0) | (values >= num_classes)
    weight = arrays.get('weight', np.ones(len(values)))
    wrong &= (weight > 0).reshape(-1, *[1] * (values.ndim - 1))
    places = np.argwhere(wrong)
    if len(places):
      first = tuple(places[0])
      raise refuse(what, int(values[first]), where(first[0]), num_classes)


def check_records(split: Any, records: Any) -> None:
  """Refuses a split on disk whose labels are no classes, before training.

  Images are not decoded. Of a split of more than `READ_BYTES` as many records
  are read as that much holds, evenly spread; the others are checked when they
  are trained on. What cannot be read is left for then, too.

  Args:
    split: the split.
    records: its records (`tfds_records.open_records`).

  Raises:
    DatasetError: for the first label that is no class.
  """
  files = {s.filename: s.examples_in_shard for s in split.shards}
  size = sum(pathlib.Path(name).stat().st_size for name in files)
  mean = size / max(1, sum(files.values()))
  count = max(1, min(split.num_examples, int(READ_BYTES / max(1.0, mean))))
  chosen = np.arange(count) * split.num_examples // count
  for start in range(0, count, _RECORDS):
    numbers = chosen[start : start + _RECORDS].tolist()
    read = tfds_records.read_records(records, numbers)
    for number, record in zip(numbers, read, strict=True):
      try:
        _, label = split.parse(record)
      except CorruptRecord:
        continue
      check_one(label, split, number)


def check_one(label: int, split: Any, number: int) -> None:
  """Refuses one label of a split on disk; raises as `check_records`."""
  if not 0 <= label < split.num_classes:
    where = f"data set '{split.name}', split '{split.split}', record {number}"
    raise refuse('label', label, where, split.num_classes)


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
