"""A short try of a config: all that it does, small, in a minute on a laptop."""

import copy
import re
from typing import Any

from adabatch.config.errors import Config
from adabatch.config.flat import flatten

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
  'model.resnet.depth': 10,
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


def shrink(config: Config) -> Config:
  """A copy with few updates of a narrow network in two batch sizes.

  >>> from adabatch import config as config_lib
  >>> config = config_lib.default()
  >>> config.model.mlp.hidden_sizes = (500, 8)
  >>> shrink(config).model.mlp.hidden_sizes
  (16, 8)
  """
  small = copy.deepcopy(config)
  flat = flatten(config)

  def least(value: Any, most: int) -> Any:
    if isinstance(value, tuple | list):
      return tuple(min(v, most) for v in value)
    return most if value is None else min(value, most)

  changes = {key: least(flat[key], most) for key, most in MOST.items()} | SET
  if config.data.image_size > 64:
    # The same share of the image is seen.
    if config.data.eval_resize is not None:
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
