"""What is searched: the config of a workload, and of each of its trials."""

import json
import zlib
from typing import Any

import numpy as np

from adabatch import config as config_lib
from adabatch.config import Config, ConfigError, refusing
from adabatch.models.tasks import TOP_5_CLASSES
from adabatch.study.space import SAMPLERS, Parameter, make_space
from adabatch.study.trials import Goal, published_goal
from adabatch.train.tasks import make_task

# What may be searched: keys of these tables that hold a number. The others tell
# what a trial is measured on and for how long, which must be the same for all.
SEARCHED = (
  'buckets.',
  'controller.',
  'ema.',
  'learning_rate.',
  'model.',
  'optimizer.',
  'sync.',
  'task.',
)
_ADAM = frozenset(['adam', 'adamw', 'lamb', 'muon'])
# Optimizers that read a key; a space leaves it out for the others.
READ_BY = {
  'optimizer.momentum': frozenset(['momentum', 'nesterov', 'lars', 'muon']),
  'optimizer.beta1': _ADAM,
  'optimizer.beta2': _ADAM,
  'optimizer.beta2_min': _ADAM,
  'optimizer.epsilon': _ADAM,
  'optimizer.trust_coefficient': frozenset(['lars']),
}


# Numbers that are None by default.
OPTIONAL = frozenset(
  [
    'ema.half_life',
    'learning_rate.decay.length',
    'learning_rate.warmup.length',
    'optimizer.clip_norm',
  ]
)


def make_goal(config: Config, num_classes: int = TOP_5_CLASSES) -> Goal:
  """The config's target in the published names.

  >>> c = config_lib.default()
  >>> c.target.value = 0.9
  >>> make_goal(c)
  Goal(metric='val/classification_error', value=0.1)

  Args:
    config: the whole config.
    num_classes: of the data, if that is known.

  Raises:
    ConfigError: for a metric that the task has not, or no search records.
  """
  better = make_task(config, num_classes).higher_is_better
  with refusing('target.metric'):
    return published_goal(config.target.metric, config.target.value, better)


def search_space(config: Config) -> dict[str, Parameter]:
  """The space for this config's optimizer.

  Raises:
    ConfigError: for rows that are no ranges, or of keys that do not exist.
  """
  with refusing('search.space'):
    space = make_space(config.search.space)
  flat = config_lib.flatten(config)
  for key in space:
    if key not in flat:
      raise ConfigError(
        f'search.space has the unknown key {key!r}{config_lib.nearest(key)}'
      )
    _check_key(config, key, space[key])
  return {
    key: parameter
    for key, parameter in space.items()
    if key not in READ_BY or config.optimizer.name in READ_BY[key]
  }


def _check_key(config: Config, key: str, parameter: Parameter) -> None:
  # Of what is registered and of optax's optimizers the config itself tells.
  default = config_lib.flatten(config_lib.default()).get(key)
  if key.startswith(config_lib.ARGUMENTS) or config_lib.is_of_another(key):
    default = config_lib.flatten(config)[key]
  optional = key in OPTIONAL
  number = isinstance(default, int | float) and not isinstance(default, bool)
  if not key.startswith(SEARCHED) or not (number or optional):
    raise ConfigError(
      f'search.space cannot hold {key}: numbers of '
      f'{", ".join(name[:-1] for name in SEARCHED)} can be searched'
    )
  if isinstance(default, int) and parameter.scale not in (
    'integer',
    'discrete',
  ):
    raise ConfigError(
      f"search.space: {key} is a whole number, so its scale is 'integer' or "
      f"'discrete', got {parameter.scale!r}"
    )
  decay = config.learning_rate.decay.name
  if key.startswith('learning_rate.decay.') and decay == 'constant':
    raise ConfigError(
      f'search.space holds {key}, which learning_rate.decay.name='
      f'{decay!r} does not read'
    )


def check_search(config: Config) -> None:
  """Refuses what no search can be made of."""
  config_lib.choose(
    dict.fromkeys((*SAMPLERS, 'tpe')), config.search.sampler, 'search.sampler'
  )
  make_goal(config)
  if not search_space(config):
    raise ConfigError('search.space is empty: give it a row')


def trial_seed(config: Config, number: int) -> int:
  """Trial n (from 1) has the seed `seed + n`, so that no two share theirs.

  After the largest seed comes 0.

  >>> config = config_lib.default()
  >>> config.seed = 2**64 - 1
  >>> trial_seed(config, 1)
  0
  """
  return (config.seed + number) % 2**64


def trial_config(
  config: Config, number: int, parameters: dict[str, float]
) -> Config:
  """The config that a trial trains with."""
  trial = config.copy_and_resolve_references()
  flat = config_lib.flatten(config)
  values: dict[str, Any] = {
    'seed': trial_seed(config, number),
    'checkpoint.best': False,  # of a trial no checkpoint is kept
  }
  for key, value in parameters.items():
    values[key] = int(value) if isinstance(flat[key], int) else value
  if not config.search.early_stopping:
    values['target.value'] = None
  with trial.ignore_type():
    trial.update_from_flattened_dict(values)
  return trial


def own_seed(seed: int, optimizer: str, batch_size: int) -> int:
  """The seed of one search of a study, below 2^31.

  >>> own_seed(0, 'sgd', 32) == own_seed(0, 'sgd', 64)
  False
  """
  entropy = seed, zlib.crc32(optimizer.encode()), batch_size
  # Trials add their numbers to it.
  return int(np.random.SeedSequence(entropy).generate_state(1)[0]) >> 1


def at_batch_size(config: Config, optimizer: str, batch_size: int) -> Config:
  """The config of one search of a study.

  Each has a seed of its own, so that neither points nor initialisations are
  shared and one size's luck is not another's. The seed is the same for all
  workers, and part of what a storage knows a search by.

  Raises:
    ConfigError: where the learning rate would change with the batch size by
      itself.
  """
  if config.learning_rate.scaling != 'none':
    raise ConfigError(
      f'learning_rate.scaling={config.learning_rate.scaling!r}: a study tunes '
      "the learning rate at each batch size, so set it to 'none'"
    )
  one = config.copy_and_resolve_references()
  with one.ignore_type():
    one.update_from_flattened_dict(
      {
        'seed': own_seed(config.seed, optimizer, batch_size),
        'optimizer.name': optimizer,
        'learning_rate.reference_batch_size': batch_size,
        'controller.name': 'constant',
        'controller.initial_batch_size': batch_size,
        'controller.max_batch_size': batch_size,
        'controller.min_batch_size': None,
      }
    )
  return one


def identity(config: Config) -> dict[str, Any]:
  """What may not change while a search goes on, as JSON would have it."""
  flat = json.loads(json.dumps(config_lib.flatten(config.to_dict())))
  return {k: v for k, v in flat.items() if k not in config_lib.FREE}


def refuse_another(
  what: str, theirs: dict[str, Any], mine: dict[str, Any]
) -> None:
  """Refuses to go on with something of another identity.

  Raises:
    ConfigError: in one line that names the keys that differ.
  """
  keys = config_lib.differences(theirs, mine)
  if keys:
    shown = ', '.join(
      f'{k} ({theirs.get(k)!r} there, {mine.get(k)!r} here)' for k in keys[:3]
    )
    raise ConfigError(
      f'{what} has another config: {shown}; choose another --workdir or '
      'search.storage'
    )
