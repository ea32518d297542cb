"""'train[:80%]+validation[10:]', in sets that TFDS does not know."""

import re
from collections.abc import Mapping

import numpy as np

from adabatch.data.tfds_records import DatasetError, unknown_split

_SLICE = re.compile(
  r'(?P<split>\w+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?'
)


def names_of(split: str) -> frozenset[str]:
  """The splits that one is made of.

  >>> sorted(names_of('train[:90%] + test'))
  ['test', 'train']
  """
  parts = split.replace(' ', '').split('+')
  return frozenset(part.split('[')[0] for part in parts)


def rows_of(
  name: str, split: str, splits: Mapping[str, np.ndarray]
) -> np.ndarray:
  """The rows of a split, with TFDS's own rounding.

  Args:
    name: of the set, for messages.
    split: 'train', 'train[:80%]', 'train[1000:]', 'train+test', ...
    splits: rows of each split that there is.

  Raises:
    DatasetError: if there is no such split, or it is empty.

  >>> rows_of('mine', 'train[50%:]', {'train': np.array([3, 0, 2, 1])})
  array([2, 1])
  """
  parts = []
  for part in split.replace(' ', '').split('+'):
    match = _SLICE.fullmatch(part)
    if not match:
      raise DatasetError(
        f"data set '{name}': split '{split}' is no split: "
        "write 'train', 'train[:80%]', 'train[1000:]' or a sum of such"
      )
    if match['split'] not in splits:
      raise unknown_split(name, split, list(splits))
    rows = splits[match['split']]
    bounds = []
    for text, default in ((match['start'], 0), (match['stop'], len(rows))):
      if text is None:
        bound = default
      elif text.endswith('%'):
        bound = round(float(text[:-1]) * len(rows) / 100)
      else:
        bound = int(text)
      if abs(bound) > len(rows):
        raise DatasetError(
          f"data set '{name}': split '{split}' reaches beyond the "
          f'{len(rows)} examples of {match["split"]}'
        )
      bounds.append(bound)
    parts.append(rows[bounds[0] : bounds[1]])
  rows = np.concatenate(parts)
  if len(rows) == 0:
    raise DatasetError(f"data set '{name}': split '{split}' holds no examples")
  return rows
