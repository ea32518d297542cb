"""Data of which a plan knows the counts and the shapes alone."""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from adabatch import data
from adabatch.config import Config
from adabatch.data.made_up import IMAGES
from adabatch.data.source import Shape
from adabatch.data.splits import rows_of
from adabatch.data.tokenizers import ByteTokenizer

# Examples of well-known sets, by split, as TFDS has them.
EXAMPLES = {
  'mnist': {'train': 60_000, 'test': 10_000},
  'fashion_mnist': {'train': 60_000, 'test': 10_000},
  'cifar10': {'train': 50_000, 'test': 10_000},
  'cifar100': {'train': 50_000, 'test': 10_000},
  'imagenet2012': {'train': 1_281_167, 'validation': 50_000},
}
# Tokens; with a vocabulary of its own about as many as here.
TOKENS = {
  'lm1b': {'train': 1_100_000_000, 'test': 9_000_000},
  'tiny_shakespeare': {
    'train': 1_003_855,
    'validation': 55_771,
    'test': 55_771,
  },
}


class Outline(NamedTuple):
  """A split that cannot be read.

  Attributes:
    examples: how many there are.
    shapes: `Shape` of each entry of an example.
    num_classes: labels are below it.
    source: what it stands for.
  """

  examples: int
  shapes: dict[str, Shape]
  num_classes: int
  source: str

  @property
  def num_examples(self) -> int:
    return self.examples

  @property
  def fingerprint(self) -> str:
    return f'outline of {self.source}'

  @property
  def arrays(self) -> dict[str, Any]:
    """Of the whole split, for what nothing is computed of."""
    return {
      name: jax.ShapeDtypeStruct((self.examples, *shape.shape), shape.dtype)
      for name, shape in self.shapes.items()
    }

  def resident(self) -> 'Outline':
    return self


def outline(config: Config, labels: str) -> tuple[Any, Any] | None:
  """Both splits of a well-known set; None of any other.

  Args:
    config: the whole config; where `data.mean` and `data.std` are None they
      are set to what needs no data.
    labels: what the task predicts.
  """
  d, text = config.data, labels == 'tokens'
  counts = (TOKENS if text else EXAMPLES).get(d.name)
  if counts is None:
    return None
  # Of text about: it is cut between documents.
  every = 1000 if text else 1
  rows = {name: np.arange(count // every) for name, count in counts.items()}
  train, evaluation = (
    (_text if text else _images)(
      config, split, len(rows_of(d.name, split, rows)) * every
    )
    for split in (d.train_split, d.eval_split)
  )
  return train, evaluation


def _images(config: Config, split: str, examples: int) -> Outline:
  d = config.data
  height, width, channels, classes = IMAGES[d.name]
  for key, value in (('mean', 0.0), ('std', 1.0)):
    if d[key] is None:
      d[key] = (value,) * channels
  shape = height or d.image_size, width or d.image_size, channels
  shapes = {
    'image': Shape(shape, np.dtype(np.uint8)),
    'label': Shape((), np.dtype(np.int32)),
  }
  return Outline(examples, shapes, classes, f'{d.name} {split}')


def _text(config: Config, split: str, tokens: int) -> data.TokenRows:
  d = config.data
  end = ByteTokenizer.end_of_document if d.tokenizer == 'bytes' else 1
  return data.TokenRows(
    path=pathlib.Path(f'{d.name} is not prepared'),
    dtype='uint16' if d.vocab_size <= 2**16 else 'uint32',
    tokens=tokens,
    sequence_length=d.sequence_length,
    num_classes=end + 1 if d.tokenizer == 'bytes' else d.vocab_size,
    end_of_document=end,
    fingerprint=f'outline of {d.name} {split}',
  )
