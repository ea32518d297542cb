"""A split on every device, each of its images as a row.

A TPU lays the last two axes of an array out in tiles of 8 x 128; of images with
three channels its compiler copies the whole set into another layout at every
update, to gather from it. Rows of a multiple of 128 entries stay as they are.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np

from adabatch.data.source import Data
from adabatch.devices.mesh import Devices

LANES = 128  # entries of a tile's side


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['rows'],
  meta_fields=['shape'],
)
@dataclasses.dataclass(frozen=True)
class InRows:
  """Examples [N, *shape] as rows, to be indexed as if they were those.

  Attributes:
    rows: [N, W], W the next multiple of LANES; what is beyond an example is 0.
    shape: of one.
  """

  rows: Any
  shape: tuple[int, ...]

  def __len__(self) -> int:
    return self.rows.shape[0]

  def __getitem__(self, indices: jax.Array) -> jax.Array:
    """The examples [*indices.shape, *shape]."""
    chosen = self.rows[indices][..., : math.prod(self.shape)]
    return chosen.reshape(*indices.shape, *self.shape)


def row_length(shape: tuple[int, ...]) -> int:
  """Entries of a row.

  >>> row_length((28, 28, 1)), row_length((32, 32, 3))
  (896, 3072)
  """
  return -(-math.prod(shape) // LANES) * LANES


def place_split(arrays: dict[str, Any], devices: Devices) -> Data:
  """All arrays of a split, WHOLE; those of images are `InRows`.

  >>> from adabatch.devices.mesh import make_devices
  >>> digits = {'image': np.ones((5, 8, 8, 1)), 'label': np.arange(5)}
  >>> placed = place_split(digits, make_devices(jax.devices()[:1]))
  >>> placed['image'].rows.shape, placed['image'][np.array([3, 1])].shape
  ((5, 128), (2, 8, 8, 1))
  """

  def one(array: Any) -> Any:
    if array.ndim < 3:
      return array
    length, shape = row_length(array.shape[1:]), array.shape[1:]
    whole = len(array), length
    if devices.abstract:
      return InRows(jax.ShapeDtypeStruct(whole, array.dtype), shape)
    rows = np.ascontiguousarray(array).reshape(len(array), -1)
    if rows.shape != whole:
      rows = np.pad(rows, ((0, 0), (0, length - rows.shape[1])))
    return InRows(rows, shape)

  return devices.place({name: one(array) for name, array in arrays.items()})


def bytes_of(arrays: dict[str, Any]) -> int:
  """What a split takes on each device."""
  return sum(
    x.dtype.itemsize
    * (math.prod(x.shape) if x.ndim < 3 else len(x) * row_length(x.shape[1:]))
    for x in arrays.values()
  )
