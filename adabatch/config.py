"""Every key of a config, its default and what it means.

A config holds base values and the names of rules; no value is computed from
another, so that a command-line override never leaves a stale one behind. Where
a name chooses among rules (`model.name`, `controller.name`, ...), the rule's
own parameters stand in the sub-table of that name; the others are ignored.
None means: not set.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# A ConfigDict; its attributes have no static types.
Config = Any


class ConfigError(ValueError):
  """A config that cannot be run, in one line that says what to do."""


def default() -> Config:
  """The config that the files in `configs/` start from.

  >>> default().controller.name
  'adadamp'
  """
  c = ConfigDict()
  c.seed = 0  # of the initialisation, the data order and the augmentation
  c.epochs = 10.0  # stop once this many epochs' examples were trained on ...
  c.max_updates = placeholder(int)  # ... or after this many updates
  # Most updates in one call of a compiled program: more is faster for small
  # networks, up to controller.every. Not for convolutions on a CPU, which XLA
  # runs far slower in a loop. Losses differ by rounding.
  c.updates_per_call = 1
  c.compilation_cache = True  # keep compiled programs on disk between runs

  c.data = ConfigDict()
  c.data.name = 'digits'  # 'digits', or any TFDS image-classification set
  c.data.data_dir = placeholder(str)  # where TFDS sets lie; None: TFDS's own
  c.data.train_split = 'train'  # TFDS split syntax: 'train[:45000]' and so on
  c.data.eval_split = 'validation'  # never trained on
  c.data.crop_padding = 0  # pixels of padding of the random crop; 0: no crop
  c.data.flip = False  # random horizontal flips

  c.model = ConfigDict()
  c.model.name = 'mlp'  # 'mlp', 'strided_cnn', 'pooled_cnn'
  c.model.mlp = ConfigDict()
  c.model.mlp.hidden_sizes = (128,)  # units of each hidden layer
  c.model.strided_cnn = ConfigDict()
  c.model.strided_cnn.channels = (16, 32)  # of each 3x3 convolution, stride 2
  c.model.strided_cnn.hidden_size = 128  # units of the dense layer
  c.model.strided_cnn.batch_norm_group = 0  # examples in a group; 0: none
  c.model.pooled_cnn = ConfigDict()
  c.model.pooled_cnn.channels = (30, 60, 100)  # of the 5x5, 5x5, 3x3 layers
  c.model.pooled_cnn.hidden_size = 100  # units of the dense layer

  c.task = ConfigDict()
  c.task.label_smoothing = 0.0  # in the training loss only

  c.optimizer = ConfigDict()
  # 'sgd', 'momentum', 'nesterov', 'adam', 'adamw', 'lars', 'lamb'
  c.optimizer.name = 'momentum'
  c.optimizer.momentum = 0.9  # momentum, nesterov, lars
  c.optimizer.beta1 = 0.9  # adam, adamw, lamb
  c.optimizer.beta2 = 0.999  # adam, adamw, lamb
  c.optimizer.epsilon = 1e-8  # adam, adamw, lamb
  c.optimizer.beta2_in_examples = False  # keep beta2's half-life in examples
  c.optimizer.weight_decay = 0.0  # L2; decoupled for adamw and lamb
  c.optimizer.decay_norms_and_biases = False  # weight decay on those as well
  c.optimizer.trust_coefficient = 0.001  # lars

  c.learning_rate = ConfigDict()
  c.learning_rate.base = 0.1  # at the reference batch size
  c.learning_rate.reference_batch_size = 32  # B_ref of scaling and of beta2
  c.learning_rate.scaling = 'none'  # 'none', 'linear', 'sqrt', 'adascale'
  c.learning_rate.warmup = ConfigDict()
  c.learning_rate.warmup.kind = 'none'  # 'none', 'constant', 'gradual'
  c.learning_rate.warmup.epochs = 0.0  # length a of a + b B epochs ...
  c.learning_rate.warmup.epochs_per_example = 0.0  # ... and b, by batch size B
  c.learning_rate.decay = ConfigDict()
  # 'constant', 'piecewise', 'cosine', 'linear', 'polynomial'
  c.learning_rate.decay.name = 'constant'
  c.learning_rate.decay.unit = 'epochs'  # 'epochs', 'examples', 'updates'
  c.learning_rate.decay.length = placeholder(float)  # None: the whole run
  c.learning_rate.decay.boundaries = (30.0, 60.0, 80.0)  # piecewise, in `unit`
  c.learning_rate.decay.factor = 0.1  # piecewise, at each boundary
  c.learning_rate.decay.final = 0.0  # last multiplier of the others
  c.learning_rate.decay.power = 2.0  # polynomial

  c.controller = ConfigDict()
  # 'constant', 'adadamp', 'padadamp', 'geodamp', 'radadamp', 'adadamp_grad',
  # 'step_table', 'ramp_up', 'from_lr_schedule', 'noise_scale', 'norm_test',
  # 'cabs'
  c.controller.name = 'adadamp'
  c.controller.initial_batch_size = 32  # B_0
  c.controller.max_batch_size = 1024  # B_max; beyond it the rate is damped
  c.controller.min_batch_size = placeholder(int)  # None: B_0 is the floor
  c.controller.every = 20  # updates between two decisions
  c.controller.wait = 0  # updates before the first change
  c.controller.monotone = False  # never let the batch size fall
  c.controller.smooth = 0.0  # weight of the old size in each new one
  c.controller.growth_limit = placeholder(float)  # largest ratio per decision
  c.controller.hysteresis = placeholder(float)  # ignore smaller ratios
  c.controller.subset_size = 1024  # examples of loss_source 'subset'
  c.controller.adadamp = ConfigDict()
  c.controller.adadamp.loss_source = 'ema'  # 'full', 'subset', 'ema'
  c.controller.adadamp.minimum_loss = 0.0  # F*
  c.controller.adadamp.decay = 0.95  # of the moving average of 'ema'
  c.controller.padadamp = ConfigDict()
  c.controller.padadamp.rate = placeholder(float)  # None: the authors'
  c.controller.geodamp = ConfigDict()
  c.controller.geodamp.factor = 2.0  # growth at each step
  c.controller.geodamp.delay_epochs = 5.0  # between two steps
  c.controller.geodamp.lr_factor = 1.0  # AdaBatch: lr too, at the same epochs
  c.controller.radadamp = ConfigDict()
  c.controller.radadamp.rho = 0.2  # weight of the past in its averages
  c.controller.radadamp.window = 20  # updates in a window
  c.controller.radadamp.reduction = 'min'  # over the window
  c.controller.radadamp.minimum_loss = 0.0  # F*
  c.controller.adadamp_grad = ConfigDict()
  c.controller.adadamp_grad.gradient_source = 'ema'  # 'full', 'subset', 'ema'
  c.controller.adadamp_grad.decay = 0.95  # of the moving average of 'ema'
  c.controller.step_table = ConfigDict()
  c.controller.step_table.table = '0:32'  # 'count:size ...', K, M, B suffixes
  c.controller.step_table.unit = 'examples'  # of the counts, or 'epochs'
  c.controller.ramp_up = ConfigDict()
  c.controller.ramp_up.final_batch_size = 1024  # reached after `examples`
  c.controller.ramp_up.increment = 32  # in examples, of each step
  c.controller.ramp_up.examples = 10_000  # over which the size grows
  c.controller.from_lr_schedule = ConfigDict()  # reads learning_rate.decay
  c.controller.from_lr_schedule.exponent = 0.0  # q: 0 Smith, 0.5 Seesaw
  c.controller.noise_scale = ConfigDict()
  c.controller.noise_scale.c = 1.0  # batch size in units of the noise scale
  c.controller.noise_scale.decay = 0.99  # of both moving averages
  c.controller.norm_test = ConfigDict()
  c.controller.norm_test.eta = 0.5  # tolerated noise-to-signal ratio
  c.controller.norm_test.decay = 0.99  # of both moving averages
  c.controller.cabs = ConfigDict()
  c.controller.cabs.c = 1.0  # factor in front; 1 in the paper
  c.controller.cabs.minimum_loss = 0.0  # F*
  c.controller.cabs.decay = 0.95  # of both moving averages

  c.buckets = ConfigDict()
  c.buckets.max_per_device = 4096  # examples a device processes at once
  c.buckets.rounding = 'up'  # 'up', 'exact', 'nearest'
  c.buckets.growth = 2.0  # ratio of neighbouring buckets

  c.parallel = ConfigDict()
  c.parallel.backend = 'shard_map'  # 'shard_map', 'pmap'

  c.target = ConfigDict()
  c.target.metric = 'accuracy'  # of the evaluation split
  c.target.value = placeholder(float)  # stop once better than this

  c.checkpoint = ConfigDict()
  c.checkpoint.every_updates = 1000  # updates between two checkpoints
  c.checkpoint.keep = 3  # the newest that are kept

  c.log = ConfigDict()
  c.log.every_updates = 50  # and at every decision

  c.eval = ConfigDict()
  c.eval.every_epochs = 1.0  # epochs between two evaluations
  c.eval.max_per_device = 1024  # examples a device evaluates at once
  return c


def flatten(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
  """Dotted keys and plain values.

  >>> flatten(default())['optimizer.name']
  'momentum'
  """
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping | ConfigDict):
      flat.update({f'{key}.{k}': v for k, v in flatten(value).items()})
    else:
      flat[key] = value
  return flat


def check_keys(config: Config) -> None:
  """Refuses a config with keys that mean nothing, or without some that do.

  Raises:
    ConfigError: naming the keys, with the nearest that exists.
  """
  known, given = flatten(default()), flatten(config)
  for key in given.keys() - known.keys():
    raise ConfigError(f'unknown config key {key!r}{nearest(key)}')
  missing = sorted(known.keys() - given.keys())
  if missing:
    raise ConfigError(
      f'the config lacks {", ".join(missing)}: start from '
      'adabatch.config.default()'
    )


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
  """Keys of two flat configs whose values differ."""
  missing = object()
  return sorted(
    k for k in a.keys() | b.keys() if a.get(k, missing) != b.get(k, missing)
  )


def nearest(key: str, config: Config | None = None) -> str:
  """A hint for a key that does not exist.

  >>> nearest('learning_rate.bse')
  " (did you mean 'learning_rate.base'?)"
  """
  known = flatten(config or default())
  close = difflib.get_close_matches(key, known, n=1)
  return f' (did you mean {close[0]!r}?)' if close else ''
