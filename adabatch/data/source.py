"""What a set must offer, and what a run is given of it."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from adabatch.data.tokenizers import Tokenizer

# Arrays on the devices, by name.
Data = dict[str, jax.Array]
# (data, indices [B], positions as two uint32 words [B] or None) -> examples.
# Positions key the augmentation; None asks for the plain examples. They may
# hold `weight` [B]: what each example counts, 0 for one that could not be read.
Load = Callable[
  [Data, jax.Array, tuple[jax.Array, jax.Array] | None], dict[str, jax.Array]
]


class Chunk(NamedTuple):
  """Some examples, one after the other.

  Attributes:
    arrays: all with leading axis n; 'weight', float32 [n], is among them: 1,
      or 0 for a record that could not be used, whose other entries are 0.
    skipped: (record, reason) for each of the latter.
  """

  arrays: dict[str, np.ndarray]
  skipped: tuple[tuple[int, str], ...]


class Shape(NamedTuple):
  """Shape and dtype of one example's entry."""

  shape: tuple[int, ...]
  dtype: np.dtype


class Source(Protocol):
  """What `read_chunks` reads from; picklable, for other processes.

  A run also asks a split for `shapes` (a `Shape` by name of each entry),
  `num_classes` (labels or tokens are below it) and `fingerprint` (text that
  tells these data from others). A source with `shapes` may also have
  `read_into(indices, positions, arrays)`, which fills arrays of these shapes
  and their weights, and returns what was skipped: examples are then made where
  they are handed over.
  """

  @property
  def num_examples(self) -> int:
    """How many examples there are."""
    ...

  def read(self, indices: np.ndarray, positions: np.ndarray | None) -> Chunk:
    """Reads examples.

    Args:
      indices: int64 [n], which.
      positions: int64 [n], their places in the one order, the key of their
        randomness; None for no randomness.
    """
    ...


class Inputs(NamedTuple):
  """What is trained and evaluated on.

  Attributes:
    train, evaluation: the splits; where nothing is streamed they have `arrays`.
    streaming: whether they are read while they are trained on.
    workers: processes that read; 0 for a thread.
    load_train: seed -> what makes a training batch on the device, augmented.
    load: makes a batch for evaluation.
    tokens_per_example: predicted ones, of text; None for images.
    end_of_document: a token, of text.
    skipped_train, skipped_evaluation: documents of a text that could not be
      read: number, split and reason of each.
    statistics: mean and standard deviation of each channel; None of text.
    tokenizer: of a text; None where its tokens were given.
  """

  train: Any
  evaluation: Any
  streaming: bool
  workers: int
  load_train: Callable[[Any], Load]
  load: Load
  tokens_per_example: int | None = None
  end_of_document: int | None = None
  skipped_train: tuple[str, ...] = ()
  skipped_evaluation: tuple[str, ...] = ()
  statistics: tuple[np.ndarray, np.ndarray] | None = None
  tokenizer: Tokenizer | None = None
