"""Data sets, their one order, and augmentation on the device.

A set that fits in memory is a `Split` (`from_arrays`); one that is read while
it is trained on offers what `source.Source` says. Which of them a config opens
is decided in `adabatch.train.open_splits`.
"""

from adabatch.data.arrays import Split, from_arrays, same_data
from adabatch.data.augment import (
  draw_partners,
  position_halves,
  position_keys,
  random_crop_flip,
  random_erasing,
  seed_key,
  stream_of,
  to_float,
)
from adabatch.data.folders import PREFIX as FOLDER
from adabatch.data.images import ImageRecords, find_images, open_images
from adabatch.data.labels import check as check_classes
from adabatch.data.labels import check_same_classes
from adabatch.data.operations import randaugment
from adabatch.data.order import Order, process_positions, take
from adabatch.data.parquet_images import find_parquet_images, holds_images
from adabatch.data.resident import EMBEDDED, load
from adabatch.data.sequences import from_sequence
from adabatch.data.source import Chunk
from adabatch.data.statistics import channel_statistics
from adabatch.data.streaming import read_chunks
from adabatch.data.tables import is_table, load_tables
from adabatch.data.text import TokenRows, open_text
from adabatch.data.tfds_records import (
  DatasetError,
  NotPrepared,
  find_split,
)
from adabatch.data.tokenizers import ByteTokenizer

__all__ = [
  'EMBEDDED',
  'FOLDER',
  'ByteTokenizer',
  'Chunk',
  'DatasetError',
  'ImageRecords',
  'NotPrepared',
  'Order',
  'Split',
  'TokenRows',
  'channel_statistics',
  'check_classes',
  'check_same_classes',
  'draw_partners',
  'find_images',
  'find_parquet_images',
  'find_split',
  'from_arrays',
  'from_sequence',
  'holds_images',
  'is_table',
  'load',
  'load_tables',
  'open_images',
  'open_text',
  'position_halves',
  'position_keys',
  'process_positions',
  'randaugment',
  'random_crop_flip',
  'random_erasing',
  'read_chunks',
  'same_data',
  'seed_key',
  'stream_of',
  'take',
  'to_float',
]
