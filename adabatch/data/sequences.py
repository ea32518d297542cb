"""Anything with `__len__` and `__getitem__` as a split of its own."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from adabatch.data.arrays import Split, from_arrays
from adabatch.data.source import Chunk, Shape
from adabatch.data.tables import INPUT_NAMES, LABEL_NAMES
from adabatch.data.tfds_records import DatasetError

# Examples that the fingerprint is made of, evenly spread.
_FINGERPRINT_EXAMPLES = 64

# Examples read at once on the way into memory.
_BLOCK = 256


def from_sequence(
  sequence: Any,
  *,
  num_classes: int | None = None,
  input_key: str | None = None,
  label_key: str | None = None,
) -> Sequence:
  """A split from a caller's own sequence, such as a Hugging Face or torch one.

  Items are pairs (input, label), or mappings that hold them. Inputs are
  pictures (PIL, or uint8 [H, W, C] or [H, W]) or arrays of numbers, all of one
  shape; labels are whole numbers, or numbers [D]. Which they are is read off
  the first item. A run whose splits fit on the devices reads each item once;
  others read on in a thread, or in `data.workers` processes, into which the
  sequence must then be picklable.

  Args:
    sequence: has `__len__` and `__getitem__`; the same item at each asking.
    num_classes: labels are below it; None: as the sequence itself says
      (`classes`, or `features[label_key].num_classes`). Of labels [D] it is D.
    input_key: of items that are mappings; None: one of `INPUT_NAMES`.
    label_key: likewise; None: one of `LABEL_NAMES`.

  Raises:
    DatasetError: in one line, for items that are something else.

  >>> pairs = [(np.full(3, float(i)), i % 2) for i in range(5)]
  >>> split = from_sequence(pairs, num_classes=2)
  >>> split.num_examples, split.shapes['features'].shape
  (5, (3,))
  """
  if not len(sequence):
    raise DatasetError('the sequence is empty: give at least one example')
  first = sequence[0]
  keys = _keys(first, input_key, label_key)
  inputs, label = _example(first, keys, 0)
  if num_classes is None:
    num_classes = _classes(sequence, keys, label)
  entry = 'image' if inputs.ndim == 3 else 'features'
  shapes = {
    entry: Shape(inputs.shape, inputs.dtype),
    'label': Shape(label.shape, label.dtype),
  }
  return Sequence(sequence, keys, shapes, num_classes)


class Sequence:
  """What `from_sequence` makes; see `source.Source`.

  Attributes:
    num_examples, num_classes, shapes, fingerprint: as of every split.
  """

  def __init__(
    self,
    sequence: Any,
    keys: Keys,
    shapes: dict[str, Shape],
    num_classes: int,
  ):
    self.num_examples = len(sequence)
    self.num_classes = num_classes
    self.shapes = shapes
    self._sequence, self._keys = sequence, keys

  @property
  def fingerprint(self) -> str:
    """What the data is, in short, judged by some of its examples."""
    count = min(self.num_examples, _FINGERPRINT_EXAMPLES)
    chosen = np.arange(count) * self.num_examples // count
    arrays = self.read(chosen).arrays
    entry, label = self.shapes
    crc = zlib.crc32(arrays[entry].tobytes() + arrays[label].tobytes())
    shape = 'x'.join(map(str, self.shapes[entry].shape))
    return (
      f'{self.num_examples} examples, {self.num_classes} classes, {entry} '
      f'{self.shapes[entry].dtype} {shape}, {crc:08x}'
    )

  def read(
    self, indices: np.ndarray, positions: np.ndarray | None = None
  ) -> Chunk:
    """Examples by their numbers; there is no randomness in them.

    Raises:
      DatasetError: for an item of another shape.
    """
    del positions
    arrays = {
      name: np.empty((len(indices), *shape.shape), shape.dtype)
      for name, shape in self.shapes.items()
    }
    for row, index in enumerate(indices.tolist()):
      example = _example(self._sequence[index], self._keys, index)
      for (name, shape), value in zip(
        self.shapes.items(), example, strict=True
      ):
        if (value.shape, value.dtype) != (shape.shape, shape.dtype):
          raise DatasetError(
            f'item {index}: {name} is {value.dtype} {list(value.shape)}, that '
            f'of item 0 {shape.dtype} {list(shape.shape)}: give all one shape'
          )
        arrays[name][row] = value
    ones = np.ones(len(indices), np.float32)
    return Chunk({'weight': ones} | arrays, ())

  def resident(self) -> Split:
    """All examples in memory."""
    blocks = [
      self.read(np.arange(start, min(start + _BLOCK, self.num_examples))).arrays
      for start in range(0, self.num_examples, _BLOCK)
    ]
    arrays = {
      name: np.concatenate([block[name] for block in blocks])
      for name in self.shapes
    }
    return from_arrays(arrays, self.num_classes)


class Keys(NamedTuple):
  """Of the input and the label in an item; 0 and 1 of a pair."""

  input: Any
  label: Any


def _keys(item: Any, input_key: str | None, label_key: str | None) -> Keys:
  if not isinstance(item, Mapping):
    if not isinstance(item, tuple | list) or len(item) != 2:
      raise DatasetError(
        f'item 0 is a {type(item).__name__}: give pairs (input, label), or '
        'mappings'
      )
    return Keys(0, 1)
  found = []
  for name, key, usual in (
    ('input_key', input_key, INPUT_NAMES),
    ('label_key', label_key, LABEL_NAMES),
  ):
    chosen = key or next((k for k in usual if k in item), None)
    if chosen not in item:
      raise DatasetError(
        f'{name}={key!r}: items hold {", ".join(map(str, item))}: name one'
      )
    found.append(chosen)
  return Keys(*found)


def _example(
  item: Any, keys: Keys, index: int
) -> tuple[np.ndarray, np.ndarray]:
  """Input and label as arrays."""
  inputs, label = np.asarray(item[keys.input]), np.asarray(item[keys.label])
  if inputs.dtype.kind not in 'biuf' or label.dtype.kind not in 'biuf':
    raise DatasetError(
      f'item {index} is no picture or array of numbers with a number as label '
      f'({inputs.dtype}, {label.dtype}): turn it into numbers'
    )
  if inputs.dtype == np.uint8 and inputs.ndim == 2:
    inputs = inputs[..., None]
  elif inputs.dtype != np.uint8 or inputs.ndim != 3:
    inputs = np.atleast_1d(inputs).astype(np.float32)
  if label.ndim == 0 and label.dtype.kind in 'biu':
    return inputs, label.astype(np.int32)
  return inputs, np.atleast_1d(label).astype(np.float32)


def _classes(sequence: Any, keys: Keys, label: np.ndarray) -> int:
  """As the sequence says, by the names that such sets have in common."""
  if label.dtype == np.float32:
    return len(label)
  asked: tuple[Callable[[], Any], ...] = (
    lambda: sequence.features[keys.label].num_classes,
    lambda: len(sequence.classes),
  )
  for ask in asked:
    try:
      return int(ask())
    except (AttributeError, KeyError, TypeError):
      continue
  raise DatasetError(
    'num_classes is not given, and the sequence does not say it: give it'
  )
