"""The values that each number of a config may take."""

import math
from collections.abc import Callable
from typing import Any

from adabatch.config.errors import Config, ConfigError, refusing
from adabatch.config.flat import flatten
from adabatch.config.keys import AUTOMATIC, COUNTED

# Rules that check their own arguments, such as the controllers, are left to do
# so.
POSITIVE = 'above 0', lambda x: 0 < x < math.inf
COUNT = 'at least 1', lambda x: 1 <= x < math.inf
NATURAL = 'at least 0', lambda x: 0 <= x < math.inf
FRACTION = 'in [0, 1)', lambda x: 0 <= x < 1
SHARE = 'in (0, 1]', lambda x: 0 < x <= 1
EXPONENT = 'in [-1, 2]', lambda x: -1 <= x <= 2
UNIT = 'in [0, 1]', lambda x: 0 <= x <= 1
FINITE = 'finite', math.isfinite
SEED = 'in [0, 2^64)', lambda x: 0 <= x < 2**64
# Layers are traced and compiled one by one, so that more would take for ever.
LAYERS = 'from 1 to 2,000', lambda x: 1 <= x <= 2000
WIDTH = 'from 1 to 2^31', lambda x: 1 <= x <= 2**31
PADDING = 'from 0 to 16,384', lambda x: 0 <= x <= 2**14
SIDE = 'from 1 to 16,384', lambda x: 1 <= x <= 2**14
TOKENS = 'from 1 to 2^24', lambda x: 1 <= x <= 2**24
TRIALS = 'from 1 to 1,000,000', lambda x: 1 <= x <= 10**6
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
  'seed': SEED,
  'epochs': POSITIVE,
  'max_updates': COUNT,
  'max_examples': COUNT,
  'max_tokens': COUNT,
  'updates_per_call': COUNT,
  'nonfinite.skips': COUNT,
  'nonfinite.rollbacks': COUNT,
  'nonfinite.rate_factor': SHARE,
  'data.max_resident_bytes': NATURAL,
  'data.workers': NATURAL,
  'data.max_skipped': NATURAL,
  'data.max_skipped_fraction': UNIT,
  'data.crop_padding': PADDING,
  'data.random_erasing': UNIT,
  'data.mixup': NATURAL,
  'data.image_size': SIDE,
  'data.eval_resize': SIDE,
  'data.min_area': SHARE,
  'data.vocab_size': TOKENS,
  'data.sequence_length': TOKENS,
  'model.mlp.hidden_sizes': WIDTH,
  'model.strided_cnn.channels': WIDTH,
  'model.strided_cnn.hidden_size': WIDTH,
  'model.strided_cnn.batch_norm_group': NATURAL,
  'model.pooled_cnn.channels': WIDTH,
  'model.pooled_cnn.hidden_size': WIDTH,
  'model.simple_cnn.channels': WIDTH,
  'model.simple_cnn.hidden_size': WIDTH,
  'model.cifar_resnet.depth': LAYERS,
  'model.cifar_resnet.width': WIDTH,
  'model.cifar_resnet.batch_norm_group': NATURAL,
  'model.resnet.depth': LAYERS,
  'model.resnet.width': WIDTH,
  'model.resnet.batch_norm_group': NATURAL,
  'model.wide_resnet.depth': LAYERS,
  'model.wide_resnet.widen_factor': WIDTH,
  'model.wide_resnet.width': WIDTH,
  'model.wide_resnet.batch_norm_group': NATURAL,
  'model.wide_resnet.dropout_rate': FRACTION,
  'model.densenet.depth': LAYERS,
  'model.densenet.growth_rate': WIDTH,
  'model.densenet.width': WIDTH,
  'model.densenet.batch_norm_group': NATURAL,
  'model.densenet.dropout_rate': FRACTION,
  'model.vgg.depth': LAYERS,
  'model.vgg.width': WIDTH,
  'model.vgg.dense_size': WIDTH,
  'model.vgg.batch_norm_group': NATURAL,
  'model.vgg.dropout_rate': FRACTION,
  'model.transformer.num_layers': LAYERS,
  'model.transformer.model_dim': WIDTH,
  'model.transformer.num_heads': WIDTH,
  'model.transformer.hidden_dim': WIDTH,
  'model.transformer.dropout_rate': FRACTION,
  'model.lstm.num_layers': LAYERS,
  'model.lstm.hidden_size': WIDTH,
  'model.lstm.embedding_size': WIDTH,
  'model.lstm.projection_size': NATURAL,
  'model.lstm.dropout_rate': FRACTION,
  'optimizer.momentum': FRACTION,
  'optimizer.beta1': FRACTION,
  'optimizer.beta2': FRACTION,
  'optimizer.beta2_min': FRACTION,
  'optimizer.epsilon': NATURAL,
  'optimizer.weight_decay': NATURAL,
  'optimizer.trust_coefficient': POSITIVE,
  'optimizer.clip_norm': POSITIVE,
  'ema.half_life': POSITIVE,
  'learning_rate.base': POSITIVE,
  'learning_rate.reference_batch_size': POSITIVE,
  'learning_rate.damping_exponent': EXPONENT,
  'learning_rate.warmup.start': FRACTION,
  'learning_rate.warmup.epochs': NATURAL,
  'learning_rate.warmup.epochs_per_example': NATURAL,
  'learning_rate.warmup.length': POSITIVE,
  'learning_rate.decay.length': POSITIVE,
  'learning_rate.decay.factor': POSITIVE,
  'learning_rate.decay.final': NATURAL,
  'learning_rate.decay.power': POSITIVE,
  'learning_rate.decay.cooldown': SHARE,
  'controller.initial_batch_size': COUNT,
  'controller.max_batch_size': COUNT,
  'controller.min_batch_size': COUNT,
  'controller.every': COUNT,
  'controller.wait': NATURAL,
  'controller.subset_size': COUNT,
  'controller.geodamp.lr_factor': POSITIVE,
  'controller.goodput.windows': COUNT,
  'controller.from_lr_schedule.exponent': UNIT,
  'controller.probe.updates': COUNT,
  'controller.probe.repeats': ('at least 2', lambda x: 2 <= x < math.inf),
  'controller.probe.epsilon': POSITIVE,
  'controller.probe.confidence': ('in (0, 1)', lambda x: 0 < x < 1),
  'controller.probe.growth': ('at least 1', lambda x: 1 <= x < math.inf),
  'controller.probe.cost': POSITIVE,
  'buckets.grow_to': COUNT,
  'buckets.max_per_device': COUNT,
  'buckets.min_per_device': COUNT,
  'search.trials': TRIALS,
  'search.max_trials': TRIALS,
  'search.widen': NATURAL,
  'search.grace': POSITIVE,
  'search.members': COUNT,
  'search.updates_per_call': COUNT,
  'search.most_members': COUNT,
  'study.batch_sizes': COUNT,
  'sync.replicas': COUNT,
  'sync.min_replicas': COUNT,
  'sync.local_steps': COUNT,
  'sync.post_local_sgd.epoch': NATURAL,
  'sync.qsr.alpha': POSITIVE,
  'sync.slowmo.momentum': FRACTION,
  'sync.slowmo.learning_rate': POSITIVE,
  'sync.diloco.momentum': FRACTION,
  'sync.diloco.learning_rate': POSITIVE,
  'sync.sma.momentum': FRACTION,
  'sync.tune.most': COUNT,
  'sync.tune.threshold': POSITIVE,
  'sync.tune.window': COUNT,
  'sync.tune.windows': COUNT,
  'target.value': FINITE,
  'checkpoint.every_updates': COUNT,
  'checkpoint.keep': COUNT,
  'log.every_updates': COUNT,
  'probe.factors': POSITIVE,
  'probe.examples': COUNT,
  'probe.multipliers': POSITIVE,
  'probe.epsilon': POSITIVE,
  'probe.evaluations': COUNT,
  'probe.repeats': COUNT,
  'probe.warmup': NATURAL,
  'probe.noise_examples': COUNT,
  'probe.workers': COUNT,
  'processes.start_seconds': POSITIVE,
  'processes.lost_seconds': POSITIVE,
  'processes.restarts': NATURAL,
  'processes.rejoin_seconds': POSITIVE,
  'watchdog.seconds': NATURAL,
  'eval.every_epochs': POSITIVE,
  'eval.growth': COUNT,
  'eval.max_per_device': COUNT,
}


def check_numbers(config: Config, read: Callable[[Any], Any]) -> None:
  """Refuses numbers that mean nothing, before anything is read or compiled.

  Args:
    config: the whole config.
    read: a number, or a text that stands for one -> the number.
  """
  flat = flatten(config)
  for key, (allowed, accepts) in RANGES.items():
    value = flat[key]
    if value is None or (key in AUTOMATIC and value == 'auto'):
      continue
    with refusing(key):
      for entry in value if isinstance(value, list | tuple) else [value]:
        if not accepts(read(entry) if key in COUNTED else entry):
          raise ConfigError(f'{key} must be {allowed}, got {value}')
