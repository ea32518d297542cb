"""Data sets, their one order, and augmentation on the device."""

from adabatch.data.augment import (
  position_halves,
  position_keys,
  random_crop_flip,
  to_float,
)
from adabatch.data.order import Order, take
from adabatch.data.resident import (
  DatasetError,
  Split,
  channel_statistics,
  fingerprint,
  from_arrays,
  load,
)

__all__ = [
  'DatasetError',
  'Order',
  'Split',
  'channel_statistics',
  'fingerprint',
  'from_arrays',
  'load',
  'position_halves',
  'position_keys',
  'random_crop_flip',
  'take',
  'to_float',
]
