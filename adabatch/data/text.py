"""Text sets as rows of tokens: tokenised once, packed without loss.

The tokens of a split are one stream, E d1 E d2 E ..., its documents in the
order in which they are stored, with E, the end of a document, before, between
and after them. Row i holds the T + 1 tokens from i T on, so neighbouring rows
share one and every token but the first E is predicted exactly once. The stream
is a flat file, made once and then only mapped into memory.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import shutil
import time
import zlib
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tqdm

from adabatch.config.files import write_whole, writing
from adabatch.data import streaming, tokenizers
from adabatch.data.arrays import Split
from adabatch.data.source import Chunk, Shape
from adabatch.data.text_records import Texts, open_texts, sample
from adabatch.data.tfds_records import DatasetError
from adabatch.data.tokenizers import TOKENIZERS, Tokenizer

# Text that is tokenised between two saves, and documents that are at most.
_RANGE_BYTES = 2**24
_RANGE_DOCUMENTS = 2**16
# Documents handled at once.
_DOCUMENTS = 1024
# How often a process that waits for a file looks for it.
_POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class TokenRows:
  """One split as rows of tokens, read from its file; can be pickled.

  Attributes:
    path: the flat file of tokens.
    dtype: of the tokens, 'uint16' or 'uint32'.
    tokens: tokens in the file.
    sequence_length: T, the tokens that a row predicts.
    num_classes: tokens are in [0, num_classes).
    end_of_document: E.
    fingerprint: another string for other rows.
    documents: in the file of tokens.
    skipped: records that could not be read: (place in the split, reason).
    tokenizer: made the tokens of a text.
  """

  path: pathlib.Path
  dtype: str
  tokens: int
  sequence_length: int
  num_classes: int
  end_of_document: int
  fingerprint: str
  documents: int = 0
  skipped: tuple[tuple[int, str], ...] = ()
  tokenizer: Tokenizer | None = dataclasses.field(default=None, compare=False)

  @property
  def num_examples(self) -> int:
    """Rows; in all but the last, every predicted token is real."""
    return -(-(self.tokens - 1) // self.sequence_length)

  @property
  def shapes(self) -> dict[str, Shape]:
    """Shape and dtype of one example's arrays."""
    return {
      'tokens': Shape((self.sequence_length + 1,), np.dtype(self.dtype)),
      'weight': Shape((), np.dtype(np.float32)),
    }

  def read(
    self, indices: np.ndarray, positions: np.ndarray | None = None
  ) -> Chunk:
    """Rows by their numbers.

    Args:
      indices: integers [n] in [0, num_examples).
      positions: places in the data order; text has no use for them.

    Returns:
      A chunk of 'tokens' [n, T + 1], the last row filled up with E, and
      'weight', float32 [n]: real predicted tokens of each row, over T.
    """
    del positions
    length = self.sequence_length
    starts = np.asarray(indices, np.int64) * length
    places = starts[:, None] + np.arange(length + 1)
    last = self.tokens - 1
    rows = self._stream[np.minimum(places, last)]
    # Behind the last token, which is E, its repetitions fill up the row.
    weight = np.minimum(length, last - starts) / length
    return Chunk({'tokens': rows, 'weight': weight.astype(np.float32)}, ())

  def resident(self) -> Split:
    """All rows, in memory."""
    chunk = self.read(np.arange(self.num_examples))
    return Split(chunk.arrays, self.num_classes)

  @functools.cached_property
  def _stream(self) -> np.ndarray:
    return np.memmap(self.path, self.dtype, 'r')

  def __getstate__(self) -> dict[str, Any]:
    # Without what is mapped: a pickle would hold a copy of the file.
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


def open_text(
  name: str,
  split: str,
  data_dir: str | os.PathLike[str] | None,
  *,
  tokenizer: str,
  vocab_size: int,
  sequence_length: int,
  cache_dir: str | os.PathLike[str],
  train_split: str,
  writer: bool = True,
  wait_seconds: float = 86_400.0,
) -> TokenRows:
  """The rows of one split of a text set; tokenises it the first time.

  Several processes tokenise at once, and an interrupted start goes on where it
  was. Records that cannot be read are left out and reported.

  Args:
    name: a TFDS name, `NAME[/CONFIG][:VERSION]`, of a set with a text.
    split: 'train', 'train[:80%]', ...
    data_dir: holds `NAME/VERSION/*.array_record*`; default: TFDS_DATA_DIR, else
      ~/tensorflow_datasets.
    tokenizer: 'bytes', or 'sentencepiece', which is trained the first time.
    vocab_size: pieces of sentencepiece; bytes have 257 tokens in any case.
    sequence_length: T, the tokens that a row predicts.
    cache_dir: where the files of tokens and of sentencepiece are kept.
    train_split: the split on which sentencepiece is trained.
    writer: whether this process makes the files; the others wait for them, in
      a directory that all share.
    wait_seconds: how long they wait; 0 where the files are to be there.

  Returns:
    The rows.

  Raises:
    DatasetError: if the set is unknown, not prepared or no text set, the split
      is none or holds nothing readable, the tokenizer cannot be had, or the
      files do not appear.
  """
  if tokenizer not in TOKENIZERS:
    raise DatasetError(
      f"tokenizer '{tokenizer}' is unknown: choose {' or '.join(TOKENIZERS)}"
    )
  if sequence_length < 1:
    raise DatasetError(f'sequence_length must be >= 1, got {sequence_length}')
  cache = pathlib.Path(cache_dir)
  wait = functools.partial(_wait_for, seconds=wait_seconds)
  texts = open_texts(name, split, data_dir)
  coder: Tokenizer
  if tokenizer == 'bytes':
    coder = tokenizers.ByteTokenizer()
  else:
    training = open_texts(name, train_split, data_dir)
    path = cache / f'{training.stem("sentencepiece")}.model'
    if writer:
      coder = tokenizers.open_sentencepiece(path, vocab_size, sample(training))
    else:
      wait(path)
      coder = tokenizers.load_sentencepiece(path, vocab_size)
  stem = cache / texts.stem(coder.fingerprint)
  record = stem.with_suffix('.json')
  if writer and not record.exists():
    _tokenize(texts, coder, stem)
  wait(record)
  return _rows(stem, sequence_length, coder)


def _rows(
  stem: pathlib.Path, sequence_length: int, coder: Tokenizer
) -> TokenRows:
  path = stem.with_suffix('.tokens')
  record = json.loads(stem.with_suffix('.json').read_text())
  size = record['tokens'] * coder.dtype.itemsize
  if not path.exists() or path.stat().st_size != size:
    raise DatasetError(
      f'{path} is not the file of {size} bytes that was written: remove it and '
      f'{stem.name}.json to tokenise again'
    )
  return TokenRows(
    path=path,
    dtype=coder.dtype.name,
    tokens=record['tokens'],
    sequence_length=sequence_length,
    num_classes=coder.vocab_size,
    end_of_document=coder.end_of_document,
    fingerprint=(
      f'{coder.vocab_size} classes, rows of {sequence_length} from '
      f'{record["tokens"]} tokens {coder.dtype.name} {record["checksum"]}'
    ),
    documents=record['documents'],
    skipped=tuple((index, reason) for index, reason in record['skipped']),
    tokenizer=coder,
  )


def _wait_for(path: pathlib.Path, seconds: float) -> None:
  stop = time.monotonic() + seconds
  while not path.exists():
    if not seconds:
      raise DatasetError(
        f'{path} is missing: start the run again, which makes it anew'
      )
    if time.monotonic() > stop:
      raise DatasetError(
        f'{path} did not appear within {seconds:g} s: the first process writes '
        'it, into a directory that all processes must share'
      )
    time.sleep(_POLL_SECONDS)


# --- the file of tokens ---


class _Range(NamedTuple):
  """Documents [start, stop), to be tokenised into a file; can be pickled."""

  texts: Texts
  coder: Tokenizer
  start: int
  stop: int
  path: pathlib.Path


def _tokenize(texts: Texts, coder: Tokenizer, stem: pathlib.Path) -> None:
  """Writes STEM.tokens and then STEM.json, by way of files of parts."""
  size = int(_RANGE_BYTES / max(1.0, texts.mean_bytes))
  size = min(max(1, size), _RANGE_DOCUMENTS)
  # The size is in the name so that parts of another size are not mixed in.
  parts = stem.with_name(f'{stem.name}.parts_of_{size}')
  with writing(parts):
    parts.mkdir(parents=True, exist_ok=True)
  ranges = [
    _Range(
      texts,
      coder,
      start,
      min(start + size, texts.documents),
      parts / f'{start:012d}.tokens',
    )
    for start in range(0, texts.documents, size)
  ]
  missing = [part for part in ranges if not part.path.exists()]
  done = texts.documents - sum(part.stop - part.start for part in missing)
  with tqdm.tqdm(
    desc=f'tokenising {texts.name} {texts.split}',
    total=texts.documents,
    initial=done,
    unit=' documents',
    unit_scale=True,
    # Not for small sets, nor in a log file.
    disable=True if len(ranges) == 1 else None,
  ) as bar:
    for count in _in_parallel(missing):
      bar.update(count)
  _join(texts, coder, stem, [part.path for part in ranges])
  shutil.rmtree(parts)


def _in_parallel(ranges: list[_Range]) -> Iterator[int]:
  """Tokenises ranges; gives the number of documents of each when it is done."""
  workers = min(_cores(), len(ranges))
  if workers <= 1:
    yield from map(_tokenize_range, ranges)
    return
  # Not forked: a fork copies the locks of the threads that JAX has started.
  pool = concurrent.futures.ProcessPoolExecutor(
    workers, multiprocessing.get_context('spawn')
  )
  try:
    with streaming.unseen_main():
      counts = pool.map(_tokenize_range, ranges)  # starts the processes
    yield from counts
  except BrokenProcessPool:
    raise DatasetError(
      f"data set '{ranges[0].texts.name}': a process that tokenised it ended "
      'at once or was killed (is there enough memory?): start again to go on '
      'where it was'
    ) from None
  finally:
    pool.shutdown(cancel_futures=True)


def _cores() -> int:
  return len(os.sched_getaffinity(0))


def _tokenize_range(part: _Range) -> int:
  """Writes the tokens of a range; the file is whole or not there."""
  tokens, skipped = [], []
  records = part.texts.open()
  for start in range(part.start, part.stop, _DOCUMENTS):
    stop = min(start + _DOCUMENTS, part.stop)
    documents, left_out = part.texts.read(records, start, stop)
    if documents:
      tokens.append(part.coder.encode_documents(documents))
    skipped.extend(left_out)
  flat = np.concatenate(tokens) if tokens else np.zeros(0, part.coder.dtype)
  # First, because a part counts as done when there is a file of its tokens.
  write_whole(part.path.with_suffix('.json'), json.dumps(skipped).encode())
  write_whole(part.path, flat.tobytes())
  return part.stop - part.start


def _join(
  texts: Texts, coder: Tokenizer, stem: pathlib.Path, parts: list[pathlib.Path]
) -> None:
  skipped = [
    entry
    for part in parts
    for entry in json.loads(part.with_suffix('.json').read_text())
  ]
  if len(skipped) == texts.documents:
    raise DatasetError(
      f"data set '{texts.name}' in {texts.directory} is damaged: no record of "
      f"split '{texts.split}' can be read: {skipped[0][1]}"
    )
  path = stem.with_suffix('.tokens')
  partial = path.with_suffix('.partial')
  with writing(path), partial.open('wb') as file:
    first = np.array([coder.end_of_document], coder.dtype).tobytes()
    file.write(first)
    checksum = zlib.crc32(first)
    for part in parts:
      checksum = _append(part, file, checksum)
    tokens = file.tell() // coder.dtype.itemsize
    file.flush()
    os.fsync(file.fileno())
  partial.replace(path)
  record = {
    'data': texts.identity,
    'tokenizer': coder.fingerprint,
    'documents': texts.documents - len(skipped),
    'tokens': tokens,
    'dtype': coder.dtype.name,
    'end_of_document': coder.end_of_document,
    'checksum': f'{checksum:08x}',
    'skipped': skipped,
  }
  # Last, because it tells the other processes that all is there.
  write_whole(stem.with_suffix('.json'), json.dumps(record, indent=2).encode())


def _append(part: pathlib.Path, file: BinaryIO, checksum: int) -> int:
  with part.open('rb') as source:
    while block := source.read(2**22):
      file.write(block)
      checksum = zlib.crc32(block, checksum)
  return checksum
