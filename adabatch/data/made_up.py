"""Data of a set's shape, at random, for where the set itself is not there."""

import numpy as np

from adabatch.data.arrays import Split, from_arrays
from adabatch.data.tokenizers import ByteTokenizer

# Height, width, channels and classes of well-known sets; None: of any size.
IMAGES = {
  'mnist': (28, 28, 1, 10),
  'fashion_mnist': (28, 28, 1, 10),
  'cifar10': (32, 32, 3, 10),
  'cifar100': (32, 32, 3, 100),
  'imagenet2012': (None, None, 3, 1000),
}


def made_up_images(
  name: str, examples: int, *, image_size: int, seed: int
) -> Split:
  """Images and labels shaped like those of a set.

  Args:
    name: of the set; of an unknown one images have 32 x 32 x 3 pixels and 10
      classes.
    examples: how many.
    image_size: height and width where those of the set differ.
    seed: of another split another one.

  >>> made_up_images('mnist', 2, image_size=64, seed=0).shapes['image'].shape
  (28, 28, 1)
  """
  *sides, classes = IMAGES.get(name, (32, 32, 3, 10))
  height, width, channels = (side or image_size for side in sides)
  rng = np.random.Generator(np.random.Philox(seed))
  shape = (examples, height, width, channels)
  images = rng.integers(0, 256, shape, np.uint8)
  labels = rng.integers(0, classes, examples)
  return from_arrays({'image': images, 'label': labels}, classes)


def made_up_text(examples: int, *, sequence_length: int, seed: int) -> Split:
  """Rows of bytes and ends of documents, one token more than are predicted."""
  end = ByteTokenizer.end_of_document
  rng = np.random.Generator(np.random.Philox(seed))
  shape = (examples, sequence_length + 1)
  tokens = rng.integers(0, end + 1, shape, np.uint16)
  weight = np.ones(examples, np.float32)
  return Split({'tokens': tokens, 'weight': weight}, end + 1)
