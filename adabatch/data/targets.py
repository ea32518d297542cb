"""What is to be predicted: classes, numbers, or flags."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from adabatch.data.labels import check_same_classes
from adabatch.data.tfds_records import DatasetError

KINDS = ('classes', 'numbers', 'flags')


class Targets(NamedTuple):
  """The labels of one split of a table.

  Attributes:
    values: int64 [N] of classes that are numbered, or names [N]; float32 [N, D]
      of numbers and flags.
    classes: the names, sorted; () of classes that are numbered.
  """

  values: np.ndarray
  classes: tuple[str, ...] = ()


def make_targets(
  name: str, split: str, columns: Mapping[str, np.ndarray], kind: str
) -> Targets:
  """The labels of one split.

  Args:
    name, split: of the set, for messages.
    columns: that hold them, each [N] or, if it is one alone, [N, D].
    kind: 'classes': whole numbers from 0, or names; 'numbers': any;
      'flags': 0 or 1 each, of which several may be 1.

  Raises:
    DatasetError: in one line, if they are something else.

  >>> make_targets('mine', 'train', {'y': np.array(['b', 'a', 'b'])}, 'classes')
  Targets(values=array(['b', 'a', 'b'], dtype='<U1'), classes=('a', 'b'))
  """
  keys = ', '.join(columns)
  where = f"data set '{name}', split '{split}': the label '{keys}'"
  for values in columns.values():
    if values.dtype.kind == 'O':
      raise DatasetError(f'{where} holds neither numbers nor names')
  if kind == 'classes':
    if len(columns) > 1 or next(iter(columns.values())).ndim != 1:
      raise DatasetError(
        f'{where} has several values for each example: for classes name one '
        "column, or set task.name='multi_label' or 'regression'"
      )
    return _classes(where, next(iter(columns.values())))
  for values in columns.values():
    if values.dtype.kind == 'U':
      raise DatasetError(
        f"{where} holds names, as classes have: set task.name='classification'"
      )
  arrays = [np.asarray(values, np.float32) for values in columns.values()]
  if len(arrays) > 1 and any(array.ndim != 1 for array in arrays):
    raise DatasetError(f'{where} holds lists beside others: name one column')
  table = arrays[0] if arrays[0].ndim == 2 else np.stack(arrays, -1)
  if table.ndim != 2:
    raise DatasetError(
      f'{where} has the shape {list(table.shape)}: give [N] or [N, D]'
    )
  if kind == 'flags' and not np.isin(table, (0, 1)).all():
    raise DatasetError(f'{where} holds more than 0 and 1, as flags have')
  return Targets(table)


def _classes(where: str, values: np.ndarray) -> Targets:
  found = np.unique(values)
  if values.dtype.kind == 'f' and (found != np.floor(found)).any():
    raise DatasetError(
      f'{where} holds fractions, which are no classes: set task.name='
      "'regression'"
    )
  if len(found) < 2:
    raise DatasetError(
      f'{where} has one class, {found[0]}: there is nothing to tell apart'
      if len(found)
      else f'{where} is empty: there is nothing to train on'
    )
  if values.dtype.kind == 'U':
    return Targets(values, tuple(found.tolist()))
  return Targets(values.astype(np.int64))


def number_of_outputs(targets: Targets) -> int:
  """Of the network: one for each class, number or flag.

  >>> number_of_outputs(Targets(np.array([0, 4, 1])))
  5
  """
  if targets.classes:
    return len(targets.classes)
  if targets.values.ndim == 1:
    return int(targets.values.max()) + 1
  return targets.values.shape[1]


def join(
  name: str, targets: Mapping[str, Targets], ours: Collection[str]
) -> tuple[np.ndarray, int]:
  """The labels of all splits, one after the other.

  Args:
    name: of the set, for messages.
    targets: of each split.
    ours: the splits that are trained on; they say which classes there are.

  Returns:
    (labels, outputs of the network). Labels are int64 [N] of classes, names as
    their places among the sorted names; float32 [N, D] of numbers and flags.

  Raises:
    DatasetError: if the splits have other classes, or widths.
  """
  first = next(targets[part] for part in targets if part in ours)
  for part, target in targets.items():
    check_same_classes(name, first.classes, target.classes, part)
  outputs = max(number_of_outputs(targets[part]) for part in ours)
  values = [target.values for target in targets.values()]
  if first.classes:
    return np.searchsorted(first.classes, np.concatenate(values)), outputs
  if len({array.shape[1:] for array in values}) > 1:
    raise DatasetError(f"data set '{name}': labels of splits differ in width")
  return np.concatenate(values), outputs
