"""A network, rule, task or sync rule of one's own, by one line in a config.

    import adabatch
    from adabatch import config

    def get_config():
      c = config.default()
      adabatch.register(c, 'model', 'mine', MyNetwork, width=64)
      return c

`width` is then a key, `model.mine.width`, to be overridden and searched.
"""

from collections.abc import Callable
from typing import Any

from adabatch.config import Config, ConfigError, choose
from adabatch.controllers import CONTROLLERS
from adabatch.models import MODELS
from adabatch.models.own import signature_of
from adabatch.models.tasks import TASKS
from adabatch.optim.sync import SYNC_RULES

# Table of the config -> its names, and what they are given that is no key.
REGISTRIES: dict[str, tuple[dict[str, Callable[..., Any]], frozenset[str]]] = {
  'model': (
    MODELS,
    frozenset(
      [
        'num_classes',
        'dtype',
        'end_of_document',
        'rngs',
        'key',
        'parent',
        'name',
      ]
    ),
  ),
  'controller': (
    CONTROLLERS,
    frozenset(
      ['initial_batch_size', 'initial_updates', 'floor', 'tokens_per_example']
    ),
  ),
  'task': (TASKS, frozenset(['label_smoothing', 'num_classes'])),
  'sync': (SYNC_RULES, frozenset(['local_steps', 'replicas'])),
}

# What a key can hold.
_VALUES = bool | int | float | str | tuple


def register(
  config: Config, table: str, name: str, make: Callable[..., Any], **values: Any
) -> None:
  """Adds what `make` makes to a table of names, and chooses it in a config.

  Args:
    config: gets `TABLE.name` and the table `TABLE.NAME`, which holds the
      arguments of `make` with their defaults. What a default cannot be a key
      for, such as a function, is no key.
    table: 'model': a class of linen (called as `model(x)`, with `train`,
      `training`, `deterministic` and `rows` if it takes them), NNX (the same;
      it is told to `train()` or `eval()`) or Equinox (called with one example,
      and with `key` if it takes one), or a function that makes a linen module;
      it is given `num_classes`, the outputs that the data ask for, and `dtype`,
      if it takes them. 'controller': makes a `controllers.BatchSizeController`
      and takes `initial_batch_size`. 'task': makes a `tasks.Task`. 'sync':
      makes a `sync.SyncRule` and takes `local_steps`.
    name: of it.
    make: makes it.
    **values: other values of its arguments than the defaults.

  Raises:
    ConfigError: for a name that is taken, or an argument that it has not.
  """
  registry, given = choose(REGISTRIES, table, 'table')
  if not name.isidentifier():
    raise ConfigError(
      f'{table}.name={name!r} is no name: give letters, digits and _'
    )
  if registry.get(name, make) is not make and name in config[table]:
    raise ConfigError(
      f'{table}.name={name!r} is that of another: give yours a name of its own'
    )
  keys = {
    key: parameter.default
    for key, parameter in signature_of(make).parameters.items()
    if key not in given and parameter.kind not in (2, 4)  # *args, **kwargs
  }
  for key in values:
    if key not in keys:
      raise ConfigError(
        f'{make.__name__} takes no {key!r} as a key: it takes '
        f'{", ".join(keys) or "none"}'
      )
    if not isinstance(values[key], _VALUES | None):
      raise ConfigError(
        f'{key}={values[key]!r} cannot be a key, which holds a number, text or '
        f'a tuple: make it a default of {make.__name__}'
      )
  registry[name] = make
  with config.unlocked():
    config[table][name] = {
      key: value for key, value in keys.items() if isinstance(value, _VALUES)
    } | values
    config[table].name = name


def registered() -> dict[str, frozenset[str]]:
  """The names in each table."""
  return {
    table: frozenset(registry) for table, (registry, _) in REGISTRIES.items()
  }
