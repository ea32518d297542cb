"""A short try of a config: all that it does, small, in a minute on a laptop."""

import copy
import re
import sys
from typing import Any

import numpy as np

from adabatch import config as config_lib
from adabatch import data, parallel
from adabatch.config import Config

# Largest values; of a tuple, of each entry. Smaller ones stay.
MOST = {
  'max_updates': 3,
  'sync.replicas': 2,
  'sync.local_steps': 2,
  'data.workers': 1,
  'data.vocab_size': 512,
  'data.sequence_length': 16,
  'model.mlp.hidden_sizes': 16,
  'model.strided_cnn.channels': 4,
  'model.strided_cnn.hidden_size': 16,
  'model.pooled_cnn.channels': 4,
  'model.pooled_cnn.hidden_size': 16,
  'model.simple_cnn.channels': 4,
  'model.simple_cnn.hidden_size': 16,
  'model.cifar_resnet.depth': 8,
  'model.cifar_resnet.width': 4,
  'model.resnet.depth': 18,
  'model.resnet.width': 4,
  'model.wide_resnet.depth': 10,
  'model.wide_resnet.width': 4,
  'model.densenet.depth': 10,
  'model.densenet.growth_rate': 4,
  'model.densenet.width': 4,
  'model.vgg.width': 4,
  'model.vgg.dense_size': 16,
  'model.transformer.num_layers': 2,
  'model.transformer.model_dim': 16,
  'model.transformer.num_heads': 2,
  'model.transformer.hidden_dim': 32,
  'model.lstm.num_layers': 2,
  'model.lstm.hidden_size': 16,
  'model.lstm.embedding_size': 16,
  'model.lstm.projection_size': 16,
}

# A batch of 4, then batches of 8, whatever the rule would ask for.
SET = {
  'controller.name': 'step_table',
  'controller.step_table.table': '0:4 4:8',
  'controller.step_table.unit': 'examples',
  'controller.initial_batch_size': 4,
  'controller.max_batch_size': 8,
  'controller.min_batch_size': None,
  'controller.every': 1,
  'controller.wait': 0,
  'controller.monotone': False,
  'controller.smooth': 0.0,
  'controller.growth_limit': None,
  'controller.hysteresis': None,
  'target.value': None,
}

# Examples of each split.
EXAMPLES = 64

# Height, width, channels and classes of well-known sets, where they are made
# up; None: `data.image_size`.
IMAGES = {
  'mnist': (28, 28, 1, 10),
  'fashion_mnist': (28, 28, 1, 10),
  'cifar10': (32, 32, 3, 10),
  'cifar100': (32, 32, 3, 100),
  'imagenet2012': (None, None, 3, 1000),
}


def shrink(config: Config) -> Config:
  """A copy with few updates of a narrow network in two batch sizes.

  >>> config = config_lib.default()
  >>> config.model.mlp.hidden_sizes = (500, 8)
  >>> shrink(config).model.mlp.hidden_sizes
  (16, 8)
  """
  small = copy.deepcopy(config)
  flat = config_lib.flatten(config)

  def least(value: Any, most: int) -> Any:
    if isinstance(value, tuple | list):
      return tuple(min(v, most) for v in value)
    return most if value is None else min(value, most)

  changes = {key: least(flat[key], most) for key, most in MOST.items()} | SET
  if config.data.image_size > 64:
    # The same share of the image is seen.
    changes['data.eval_resize'] = round(
      64 * config.data.eval_resize / config.data.image_size
    )
    changes['data.image_size'] = 64
  with small.ignore_type():
    small.update_from_flattened_dict(changes)
  return small


def shorten(split: str, examples: int) -> str:
  """The first examples of a split; sums and per cents are left as they are.

  Args:
    split: in TFDS's syntax.
    examples: how many the split has.

  >>> shorten('train[45000:]', 5000), shorten('test', 10), shorten('a+b', 99)
  ('train[45000:45064]', 'test', 'a+b')
  """
  match = re.fullmatch(r'(\w+)(?:\[(\d*):(\d*)\])?', split.replace(' ', ''))
  if not match or examples <= EXAMPLES:
    return split
  start = int(match[2] or 0)
  return f'{match[1]}[{start}:{start + EXAMPLES}]'


def open_splits(
  config: Config,
) -> tuple[Config, tuple[data.Split, data.Split] | None]:
  """The shortened splits of a set, or made-up ones.

  Args:
    config: the shrunk config.

  Returns:
    The config with shorter splits, and None; or made-up training and evaluation
    splits, if the set is not there.

  Raises:
    data.DatasetError: if the set is there and no good.
  """
  d = config.data
  if d.name in data.EMBEDDED:
    return config, None
  try:
    counts = [
      data.find_split(d.name, split, d.data_dir).num_examples
      for split in (d.train_split, d.eval_split)
    ]
  except data.NotPrepared:
    if parallel.is_first_process():
      print(
        f'smoke: {d.name} is not prepared, so data of its shape is made up',
        file=sys.stderr,
      )
    text = config.task.name == 'language_modelling'
    make = _made_up_text if text else _made_up_images
    return config, (make(config, 0), make(config, 1))
  short = copy.deepcopy(config)
  short.data.train_split = shorten(d.train_split, counts[0])
  short.data.eval_split = shorten(d.eval_split, counts[1])
  return short, None


def _made_up_images(config: Config, seed: int) -> data.Split:
  *sides, classes = IMAGES.get(config.data.name, (32, 32, 3, 10))
  height, width, channels = (side or config.data.image_size for side in sides)
  rng = np.random.Generator(np.random.Philox(seed))
  shape = (EXAMPLES, height, width, channels)
  images = rng.integers(0, 256, shape, np.uint8)
  labels = rng.integers(0, classes, EXAMPLES)
  return data.from_arrays({'image': images, 'label': labels}, classes)


def _made_up_text(config: Config, seed: int) -> data.Split:
  end = data.ByteTokenizer.end_of_document
  rng = np.random.Generator(np.random.Philox(seed))
  shape = (EXAMPLES, config.data.sequence_length + 1)
  tokens = rng.integers(0, end + 1, shape, np.uint16)
  weight = np.ones(EXAMPLES, np.float32)
  return data.Split({'tokens': tokens, 'weight': weight}, end + 1)
