"""Text to numbers and back: bytes, or pieces learnt from a sample."""

from __future__ import annotations

import itertools
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from adabatch.config.files import write_whole
from adabatch.data.tfds_records import DatasetError

TOKENIZERS = ('bytes', 'sentencepiece')

# Sentencepiece leaves out longer training sentences.
_SENTENCE_BYTES = 4096
# What sentencepiece is trained on at most.
SAMPLE_BYTES = 2**25


class Tokenizer(Protocol):
  """Maps text to token ids; can be pickled.

  Attributes:
    name: one of `TOKENIZERS`.
    model: what it was made of, besides; b'' if nothing.
    vocab_size: ids are in [0, vocab_size).
    end_of_document: the id that stands between documents and in no text.
    dtype: the smallest unsigned integers that hold every id.
    fingerprint: another string for another mapping.
  """

  @property
  def name(self) -> str: ...
  @property
  def model(self) -> bytes: ...
  @property
  def vocab_size(self) -> int: ...
  @property
  def end_of_document(self) -> int: ...
  @property
  def dtype(self) -> np.dtype: ...
  @property
  def fingerprint(self) -> str: ...

  def encode(self, text: bytes | str) -> np.ndarray:
    """The ids of one text, without an end of document."""
    ...

  def encode_documents(self, documents: Sequence[bytes]) -> np.ndarray:
    """The ids of all documents, the end of document after each."""
    ...

  def decode(self, ids: Iterable[int]) -> str:
    """The text; ends of documents are left out."""
    ...


class ByteTokenizer:
  """Each byte of UTF-8 is a token, and 256 the end of a document.

  >>> tokenizer = ByteTokenizer()
  >>> tokenizer.encode('né').tolist()
  [110, 195, 169]
  >>> tokenizer.decode([110, 195, 169, 256])
  'né'
  """

  name = 'bytes'
  model = b''
  vocab_size = 257
  end_of_document = 256
  dtype = np.dtype(np.uint16)
  fingerprint = 'bytes'

  def encode(self, text: bytes | str) -> np.ndarray:
    """One uint16 for each byte."""
    return np.frombuffer(_bytes(text), np.uint8).astype(self.dtype)

  def encode_documents(self, documents: Sequence[bytes]) -> np.ndarray:
    """One uint16 for each byte, 256 after each document."""
    # One pass over all of them, because calls cost more than bytes.
    ids = self.encode(b'\0'.join([*documents, b'']))
    lengths = np.array([len(document) for document in documents], np.int64)
    ids[np.cumsum(lengths + 1) - 1] = self.end_of_document
    return ids

  def decode(self, ids: Iterable[int]) -> str:
    """The text; bytes that are no UTF-8 become U+FFFD."""
    known = [int(i) for i in ids if i != self.end_of_document]
    return bytes(known).decode('utf-8', 'replace')


class SentencePieceTokenizer:
  """Pieces of a sentencepiece model, and its end of sentence between documents.

  Args:
    model: the model, as bytes.

  Reference: Kudo and Richardson, SentencePiece, 2018 (arXiv:1808.06226).
  """

  name = 'sentencepiece'

  def __init__(self, model: bytes):
    """Raises RuntimeError if the bytes are no model."""
    import sentencepiece  # slow to import, and an extra

    self.model = model
    self._processor: Any = sentencepiece.SentencePieceProcessor(
      model_proto=model
    )
    self.vocab_size: int = self._processor.vocab_size()
    self.end_of_document: int = self._processor.eos_id()
    self.dtype = np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)
    self.fingerprint = (
      f'sentencepiece {self.vocab_size} {zlib.crc32(model):08x}'
    )

  def __reduce__(self):
    return SentencePieceTokenizer, (self.model,)

  def encode(self, text: bytes | str) -> np.ndarray:
    """The ids of one text; bytes that are no UTF-8 become U+FFFD."""
    if isinstance(text, bytes):
      text = text.decode('utf-8', 'replace')
    return np.array(self._processor.encode(text), self.dtype)

  def encode_documents(self, documents: Sequence[bytes]) -> np.ndarray:
    """The ids of all documents, the end of document after each."""
    end = (self.end_of_document,)
    texts = [document.decode('utf-8', 'replace') for document in documents]
    pieces = self._processor.encode(texts)
    both = itertools.chain.from_iterable(zip(pieces, itertools.repeat(end)))
    return np.fromiter(itertools.chain.from_iterable(both), self.dtype)

  def decode(self, ids: Iterable[int]) -> str:
    """The text; ends of documents are left out."""
    return self._processor.decode(
      [int(i) for i in ids if i != self.end_of_document]
    )


def train_sentencepiece(documents: Iterable[bytes], vocab_size: int) -> bytes:
  """Learns pieces from the documents, as many as asked for.

  What is not in the vocabulary is spelt in bytes, and nothing is normalised, so
  that text comes back as it was; only U+2581, by which sentencepiece marks
  spaces, comes back as a space.

  Args:
    documents: UTF-8 text, of which the first `SAMPLE_BYTES` bytes are read.
    vocab_size: pieces, among them 256 for bytes, one for unknown and one for
      the end of a document.

  Returns:
    The model, for `SentencePieceTokenizer`.

  Raises:
    DatasetError: if so many pieces cannot be had from these documents.
  """
  import io

  import sentencepiece

  trainer: Any = sentencepiece.SentencePieceTrainer
  model = io.BytesIO()
  try:
    trainer.train(
      sentence_iterator=_sentences(documents),
      model_writer=model,
      vocab_size=vocab_size,
      model_type='unigram',
      byte_fallback=True,
      normalization_rule_name='identity',
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      unk_id=0,
      eos_id=1,
      bos_id=-1,
      pad_id=-1,
      num_threads=os.cpu_count() or 1,
      minloglevel=2,
    )
  except RuntimeError as error:
    # Behind the place in the library's source, in brackets.
    reason = ' '.join(str(error).split()).rpartition('] ')[2]
    raise DatasetError(
      f'sentencepiece cannot learn vocab_size={vocab_size}: {reason}'
    ) from None
  return model.getvalue()


def open_sentencepiece(
  path: pathlib.Path, vocab_size: int, documents: Iterable[bytes]
) -> SentencePieceTokenizer:
  """The tokenizer in a file, which is made first if it is not there.

  Args:
    path: the model's file.
    vocab_size: pieces that the model must have.
    documents: what a new model is trained on.

  Raises:
    DatasetError: if the file holds another model than asked for, or none.
  """
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, train_sentencepiece(documents, vocab_size))
  return load_sentencepiece(path, vocab_size)


def load_sentencepiece(
  path: pathlib.Path, vocab_size: int | None = None
) -> SentencePieceTokenizer:
  """The tokenizer in a file; raises as `open_sentencepiece`.

  None: with as many pieces as it has.
  """
  try:
    tokenizer = SentencePieceTokenizer(path.read_bytes())
  except RuntimeError:
    raise DatasetError(
      f'{path} is no sentencepiece model: remove it to train a new one'
    ) from None
  except FileNotFoundError:
    raise DatasetError(f'{path} is not there: copy it from the run') from None
  if vocab_size not in (None, tokenizer.vocab_size):
    raise DatasetError(
      f'{path} has vocab_size={tokenizer.vocab_size}, asked for {vocab_size}: '
      'take that size, or remove the file to train a new one'
    )
  return tokenizer


def _bytes(text: bytes | str) -> bytes:
  return text.encode('utf-8') if isinstance(text, str) else text


def _sentences(documents: Iterable[bytes]) -> Iterator[str]:
  """Lines of bounded length, until there are enough."""
  left = SAMPLE_BYTES
  for document in documents:
    for line in document[:left].splitlines():
      for start in range(0, len(line), _SENTENCE_BYTES):
        # A character cut in two is left out.
        part = line[start : start + _SENTENCE_BYTES]
        yield part.decode('utf-8', 'ignore')
    left -= len(document)
    if left <= 0:
      return
