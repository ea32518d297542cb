"""The documents of a text set on disk, before they become tokens."""

from __future__ import annotations

import math
import os
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from adabatch.data import tfds_records, tokenizers
from adabatch.data.image_formats import CorruptRecord
from adabatch.data.tfds_records import DatasetError, Shard


class Texts(NamedTuple):
  """One split on disk; can be pickled.

  Attributes:
    name: of the set, as given.
    split: as given.
    directory: DATA_DIR/NAME[/CONFIG]/VERSION.
    shards: where the records are, in order.
    key: the name of the text among the set's features.
    documents: records in the split.
    mean_bytes: mean size of a record, about.
    identity: another string for other records.
  """

  name: str
  split: str
  directory: str
  shards: tuple[Shard, ...]
  key: str
  documents: int
  mean_bytes: float
  identity: str

  def stem(self, purpose: str) -> str:
    """A file name for what is made of these records."""
    readable = re.sub(r'\W+', '_', f'{self.name} {self.split}').strip('_')
    digest = zlib.crc32(f'{self.identity} {purpose}'.encode())
    return f'{readable}_{digest:08x}'

  def open(self) -> Any:
    """The records, for `read`."""
    return tfds_records.open_records(self.shards)

  def read(
    self, records: Any, start: int, stop: int
  ) -> tuple[list[bytes], list[tuple[int, str]]]:
    """Documents [start, stop), and (number, reason) of those left out."""
    numbers = list(range(start, stop))
    documents, skipped = [], []
    read = tfds_records.read_records(records, numbers)
    for number, record in zip(numbers, read, strict=True):
      try:
        documents.append(tfds_records.parse(record, self.key)[0])
      except CorruptRecord as error:
        skipped.append((number, str(error)))
    return documents, skipped


def open_texts(
  name: str, split: str, data_dir: str | os.PathLike[str] | None
) -> Texts:
  found = tfds_records.find_split(name, split, data_dir)
  import tensorflow_datasets as tfds

  info = found.info
  features = found.features
  keys = [k for k, v in features.items() if isinstance(v, tfds.features.Text)]
  if 'text' not in keys and len(keys) != 1:
    raise DatasetError(
      f"data set '{name}' is no text set: it must have one text, or one that "
      f"is called 'text', and has {', '.join(sorted(features))}"
    )
  sizes = [(k, v.num_examples, v.num_bytes) for k, v in info.splits.items()]
  return Texts(
    name=name,
    split=split,
    directory=found.directory,
    shards=found.shards,
    key='text' if 'text' in keys else keys[0],
    documents=found.num_examples,
    mean_bytes=sum(s[2] for s in sizes) / max(1, sum(s[1] for s in sizes)),
    identity=(
      f'{info.full_name} {split} {sorted(sizes)} {_stamps(found.shards)}'
    ),
  )


def _stamps(shards: tuple[Shard, ...]) -> int:
  """Another number for files that were repaired or replaced."""
  stamps = []
  for shard in shards:
    path = pathlib.Path(shard.filename)
    if path.exists():
      stamps.append((path.name, path.stat().st_size, path.stat().st_mtime_ns))
  return zlib.crc32(repr(stamps).encode())


def sample(texts: Texts) -> Iterator[bytes]:
  """Documents from all over the split, enough to train sentencepiece on."""
  wanted = math.ceil(tokenizers.SAMPLE_BYTES / max(1.0, texts.mean_bytes))
  # In short runs, which are faster to read than single records.
  run = 64
  stride = max(1, texts.documents // max(1, wanted)) * run
  records = texts.open()
  for start in range(0, texts.documents, stride):
    yield from texts.read(records, start, min(start + run, texts.documents))[0]
