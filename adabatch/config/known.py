"""Which keys a config may have, and which of them a run may go on with."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from adabatch.config.errors import Config, ConfigError
from adabatch.config.flat import flatten
from adabatch.config.keys import default

# The table of the arguments of another library's optimizer.
ARGUMENTS = 'optimizer.args.'


def check_keys(
  config: Config, registered: Mapping[str, Collection[str]] | None = None
) -> None:
  """Refuses a config with keys that mean nothing, or without some that do.

  Args:
    config: the whole config.
    registered: names of networks, rules, ... by table. What stands in the table
      of one that is not of this package is its own business.

  Raises:
    ConfigError: naming the keys, with the nearest that exists.
  """
  known, given = flatten(default()), flatten(config)
  for key in sorted(given.keys() - known.keys()):
    table, name = key.split('.')[:2] if key.count('.') > 1 else (key, '')
    theirs = is_of_another(key) and name in (registered or {}).get(table, ())
    if not (theirs or key.startswith(ARGUMENTS)):
      raise ConfigError(f'unknown config key {key!r}{nearest(key)}')
  missing = sorted(known.keys() - given.keys())
  if missing:
    raise ConfigError(
      f'the config lacks {", ".join(missing)}: start from '
      'adabatch.config.default()'
    )


# What a run may go on with: what changes nothing that is computed, and the
# number of replicas. That data elsewhere are the same, their fingerprint tells.
# How many examples a device takes at once changes the order of sums, as one
# update a call or several may, and with a rule that reads the gradient noise
# what it is estimated from, as another number of devices does: the estimates
# stay within their spread. Any other key, a new one too, makes a directory of
# before refuse to go on.
FREE = frozenset(
  [
    'buckets.grow_to',
    'buckets.max_per_device',
    'buckets.min_per_device',
    'checkpoint.best',
    'checkpoint.keep',
    'compilation.programs',
    'compilation_cache',
    'data.data_dir',
    'data.max_resident_bytes',
    'data.max_skipped',
    'data.max_skipped_fraction',
    'data.placement',
    'data.workers',
    'eval.max_per_device',
    'log.profile',
    'log.writers',
    'plan.loss',
    'plan.save',
    'plan.scaling',
    'plan.topology',
    'probe.at',
    'probe.directory',
    'probe.epsilon',
    'probe.evaluations',
    'probe.examples',
    'probe.factors',
    'probe.learning_rate',
    'probe.multipliers',
    'probe.noise_examples',
    'probe.repeats',
    'probe.warmup',
    'probe.workers',
    'processes.lost_seconds',
    'processes.rejoin_seconds',
    'processes.restarts',
    'processes.start_seconds',
    'search.grace',
    'search.max_trials',
    'search.members',
    'search.most_members',
    'search.storage',
    'search.trials',
    'search.updates_per_call',
    'search.widen',
    'study.batch_sizes',
    'study.optimizers',
    'sync.min_replicas',
    'sync.replicas',
    'updates_per_call',
    'watchdog.abort',
    'watchdog.seconds',
  ]
)


def of_json(values: Mapping[str, Any]) -> Config:
  """The config that was written as JSON; keys of today have their defaults.

  >>> c = of_json({'model': {'name': 'mine', 'mine': {'width': [8]}}})
  >>> c.model.mine.width, c.optimizer.name
  ((8,), 'momentum')
  >>> 'mine' in of_json({'sync': {'mine': {}}}).sync
  True
  """
  config = default()
  with config.unlocked(), config.ignore_type():
    _fill(config, values)
  return config


def _fill(table: Config, values: Mapping[str, Any]) -> None:
  for key, value in values.items():
    if isinstance(value, Mapping):
      if key not in table:
        table[key] = {}  # of something registered, which may have no keys
      _fill(table[key], value)
    else:
      table[key] = _tuples(value)


def _tuples(value: Any) -> Any:
  """JSON has no tuples."""
  if isinstance(value, list):
    return tuple(_tuples(part) for part in value)
  return value


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
  """Keys of two flat configs whose values differ, without the free ones."""
  missing = object()
  return sorted(
    k
    for k in (a.keys() | b.keys()) - FREE
    if a.get(k, missing) != b.get(k, missing)
  )


def is_of_another(key: str) -> bool:
  """Whether a key would be in the table of something registered.

  >>> is_of_another('model.mine.width'), is_of_another('model.nme')
  (True, False)
  """
  table, _, rest = key.partition('.')
  name, _, parameter = rest.partition('.')
  return (
    table in ('model', 'controller', 'task', 'sync')
    and bool(parameter)
    and name not in default()[table]
  )


def nearest(key: str) -> str:
  """A hint for a key that does not exist, if one that does is near.

  Near is a slip in each part of a key, or in its end where its beginning is
  left out.

  >>> nearest('learning_rate.bse'), nearest('learning_rate.foo')
  (" (did you mean 'learning_rate.base'?)", '')
  >>> nearest('max_batchsize')
  " (did you mean 'controller.max_batch_size'?)"
  >>> nearest('learning_rate')
  ' (a table, with learning_rate.base and others)'
  """
  known, given = list(flatten(default())), key.split('.')
  for name in known:
    if name.startswith(f'{key}.'):
      return f' (a table, with {name} and others)'

  def likeness(parts: list[str]) -> float:
    """Of the part that is least alike; whole keys come before ends of keys."""
    pairs = zip(given, parts[-len(given) :], strict=True)
    least = min(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
    return 0.0 if least < 0.7 else least + (len(parts) == len(given))

  close = [n for n in known if len(n.split('.')) >= len(given)]
  best = max(close, key=lambda n: likeness(n.split('.')), default='')
  found = best and likeness(best.split('.'))
  return f' (did you mean {best!r}?)' if found else ''
