"""From a config to the batch-size rule and the sizes that it may ask for."""

import functools
import inspect
import math
from collections.abc import Iterator
from typing import Any

from adabatch import controllers
from adabatch.config import Config, ConfigError, choose, refusing
from adabatch.controllers import BatchSizeController, buckets
from adabatch.controllers.buckets import Ladder
from adabatch.train.noise import is_read
from adabatch.train.optimizer import damping_exponent, make_decay
from adabatch.train.own_rules import held_to_contract
from adabatch.train.run_end import Extent
from adabatch.train.tasks import is_of_here


def count_replicas(config: Config) -> int:
  """How many models are trained side by side."""
  return 1 if config.sync.name == 'synchronous' else config.sync.replicas


def _check_probe(config: Config) -> None:
  """Refuses a probe where it cannot be made.

  Raises:
    ConfigError: in one line.
  """
  c = config.controller
  if c.name != 'probe':
    return
  if config.sync.name != 'synchronous':
    raise ConfigError(
      f'sync.name={config.sync.name!r} shares a batch among models that '
      "differ, and controller.name='probe' asks one: choose another of the two"
    )
  for key in ('smooth', 'growth_limit', 'hysteresis'):
    if c[key]:
      raise ConfigError(
        f"controller.{key}={c[key]} does not go with controller.name='probe', "
        'which doubles or stays: leave it out'
      )
  if config.buckets.growth > 2:
    raise ConfigError(
      f'buckets.growth={config.buckets.growth:g} runs no batch of twice the '
      "size, which controller.name='probe' asks for: give at most 2"
    )
  if config.data.eval_split == config.data.train_split:
    raise ConfigError(
      f"data.eval_split='{config.data.eval_split}' is what is trained on, and "
      "controller.name='probe' compares losses on held-out examples: give "
      'another'
    )


def check_controller(config: Config, tokens_per_example: int | None) -> None:
  """Refuses rules that would ask for something else than they are to."""
  _check_probe(config)
  c, scaling = config.controller, config.learning_rate.scaling
  if c.name == 'cabs' and scaling in ('linear', 'adascale'):
    raise ConfigError(
      'controller.name=cabs takes a batch size in proportion to the learning '
      f'rate, which learning_rate.scaling={scaling!r} takes in proportion to '
      "the batch size, without an end: set it to 'none' or 'sqrt'"
    )
  if c.name == 'goodput':
    _check_goodput(config)
  # Rules that grow without an end are damped beyond the largest size; a size
  # that was written down is meant.
  sizes: dict[str, list[float]] = {}
  if c.name == 'step_table':
    with refusing('controller.step_table'):
      entries = controllers.read_table(
        c.step_table.table, c.step_table.unit, tokens_per_example
      )
    sizes = {'step_table.table': [size for _, size in entries]}
  if c.name == 'ramp_up':
    sizes = {'ramp_up.final_batch_size': [c.ramp_up.final_batch_size]}
  smallest, largest = c.initial_batch_size, c.max_batch_size
  for key, written in sizes.items():
    for size in written:
      if not smallest <= size <= largest:
        bound = 'initial' if size < smallest else 'max'
        raise ConfigError(
          f'controller.{key} asks for a batch of {size:g}, outside {smallest} '
          f'to {largest}: change it or controller.{bound}_batch_size'
        )


def _check_goodput(config: Config) -> None:
  if config.sync.tune.enabled:
    raise ConfigError(
      'controller.name=goodput chooses among the sizes of a ladder, and '
      'sync.tune.enabled changes them with the number of replicas: leave one '
      'of them out'
    )
  if (least := config.sync.min_replicas) is not None:
    raise ConfigError(
      'controller.name=goodput chooses among the sizes of a ladder, and sync.'
      f'min_replicas={least} lets them change: leave one of them out'
    )
  per = config.controller.goodput.per
  if per == 'device_second' and config.buckets.min_per_device is None:
    raise ConfigError(
      f"controller.goodput.per={per!r} differs from 'second' only where some "
      'devices idle: set buckets.min_per_device'
    )


def make_controller(
  config: Config, extent: Extent, ladder: Ladder | None = None
) -> BatchSizeController:
  """The batch-size rule with its wrappers.

  Args:
    config: the whole config.
    extent: what its schedules are laid out over.
    ladder: the sizes that are run, for rules that choose among them; None: it
      is not known yet, and the rule is asked only what it needs.
  """
  check_controller(config, extent.tokens_per_example)
  c = config.controller
  factory = choose(controllers.CONTROLLERS, c.name, 'controller.name')
  parameters: dict[str, Any] = dict(c[c.name]) if c.name in c else {}
  if c.name == 'padadamp' and c.padadamp.rate is None:
    parameters['rate'] = controllers.padadamp_rate(
      initial_batch_size=c.initial_batch_size,
      max_batch_size=extent.max_batch_size,
      epochs=extent.run / extent.epoch,
      num_examples=extent.epoch,
    )
  if c.name == 'geodamp':
    del parameters['lr_factor']
  if c.name == 'probe':
    parameters = {}  # the others are of the measurement
  if c.name == 'from_lr_schedule':
    with refusing('controller.every'):
      due = controllers.every_due(updates=c.every, wait=c.wait)
    parameters = {'schedule': make_decay(config, extent), 'due': due}
  if c.name == 'ramp_up':
    with refusing('controller.ramp_up.examples'):
      parameters['examples'] = controllers.parse_count(c.ramp_up.examples)
  if c.name == 'ramp_up' and parameters.pop('megatron') is not None:
    with refusing('controller.ramp_up.megatron'):
      start, *ramp = controllers.parse_ramp(c.ramp_up.megatron)
    if start != c.initial_batch_size:
      raise ConfigError(
        f'controller.ramp_up.megatron starts with a batch of {start:g}, not '
        f'with controller.initial_batch_size={c.initial_batch_size}: set that '
        f'to {start:g}'
      )
    parameters |= dict(zip(('increment', 'examples'), ramp, strict=True))
  if c.name == 'goodput':
    del parameters['windows']  # for `UpdateTimes`
    parameters['sizes'] = (c.initial_batch_size,)
    if ladder is not None:
      parameters['sizes'] = ladder.batch_sizes
      parameters['devices'] = functools.partial(
        buckets.devices_for, ladder=ladder
      )
  accepted = inspect.signature(factory).parameters
  if 'tokens_per_example' in accepted:
    parameters['tokens_per_example'] = extent.tokens_per_example
  if c.min_batch_size is not None:
    if 'floor' not in accepted:
      raise ConfigError(
        f'controller.min_batch_size={c.min_batch_size} has no meaning for '
        f'controller.name={c.name!r}, whose size never falls below its own '
        'schedule: leave it unset'
      )
    parameters['floor'] = False
  if 'initial_updates' in accepted:
    # What comes before the first decision tells where the run began.
    parameters['initial_updates'] = c.wait or c.every
  with refusing(f'controller.{c.name}'):
    if not is_of_here(factory):
      factory = held_to_contract(factory, f'controller.{c.name}')
    controller = factory(initial_batch_size=c.initial_batch_size, **parameters)
  with refusing('controller.every'):
    controller = controllers.every(controller, updates=c.every, wait=c.wait)
  # Around `every`, so that they see decisions and not the updates between.
  if c.smooth:
    with refusing('controller.smooth'):
      controller = controllers.smooth(controller, c.smooth)
  if c.monotone:
    controller = controllers.monotone(controller)
  if c.growth_limit is not None:
    with refusing('controller.growth_limit'):
      controller = controllers.limit_growth(controller, c.growth_limit)
  if c.hysteresis is not None:
    with refusing('controller.hysteresis'):
      controller = controllers.hysteresis(controller, c.hysteresis)
  return controller


def finds_limit(config: Config) -> bool:
  """Whether a run finds how many examples a device takes at once."""
  return config.buckets.max_per_device == 'auto'


def make_ladder(
  config: Config,
  devices: int,
  num_examples: int | None = None,
  *,
  processes: int = 1,
) -> Ladder:
  """The batch sizes that can be run; their parts tell the gradient noise.

  None is larger than the training split of `num_examples`: a batch would hold
  examples twice, and a run of few epochs would be over with it. Of several
  `processes` none can idle, so all devices are in use always.
  """
  c, b = config.controller, config.buckets
  if c.max_batch_size < c.initial_batch_size:
    raise ConfigError(
      f'controller.initial_batch_size={c.initial_batch_size} is above '
      f'controller.max_batch_size={c.max_batch_size}: lower the first or raise '
      'the second'
    )
  smallest = c.initial_batch_size
  if c.min_batch_size is not None:
    if c.min_batch_size > smallest:
      raise ConfigError(
        f'controller.min_batch_size={c.min_batch_size} is above '
        f'controller.initial_batch_size={smallest}: lower the first or raise '
        'the second'
      )
    smallest = c.min_batch_size
  replicas = count_replicas(config)
  largest = c.max_batch_size
  if num_examples is not None:
    if c.initial_batch_size > num_examples:
      raise ConfigError(
        f'controller.initial_batch_size={c.initial_batch_size} is above the '
        f'{num_examples} examples of the training split: lower it'
      )
    largest = min(largest, num_examples // replicas * replicas)
  # What it reads does not depend on how long anything is.
  rule = make_controller(config, Extent(1, 1, c.max_batch_size, 1))
  # A constant size needs no ladder, and no program compiled for the next rung.
  largest = smallest if c.name == 'constant' else largest
  if config.sync.min_replicas is not None:
    # Those that are left after a loss take equal shares of a little more.
    smallest, largest = (
      -(-n // replicas) * replicas for n in (smallest, largest)
    )
  for key, size in (('initial', smallest), ('max', largest)):
    if size % replicas:
      key = 'min' if size == c.min_batch_size else key
      raise ConfigError(
        f'controller.{key}_batch_size={size} cannot be shared equally by '
        f'sync.replicas={replicas}: choose {-(-size // replicas) * replicas}'
      )
  noise = is_read(config, rule)
  if noise and finds_limit(config):
    raise ConfigError(
      "buckets.max_per_device='auto' may be another number each time, and what "
      'is told of the gradient noise depends on it: give a number'
    )
  with refusing('buckets'):
    return buckets.ladder(
      smallest,
      largest,
      devices=devices // math.gcd(devices, replicas),
      max_per_device=None if finds_limit(config) else b.max_per_device,
      growth=b.growth,
      rounding=b.rounding,
      group_size=_group_size(config),
      replicas=replicas,
      min_microbatches=2 if noise else 1,
      damping_exponent=damping_exponent(config),
      min_per_device=b.min_per_device if processes == 1 else None,
    )


def check_devices(config: Config) -> None:
  """Refuses fewer devices, or more, where they have no meaning."""
  least, most = config.buckets.min_per_device, config.buckets.grow_to
  if least is None:
    if most is not None:
      raise ConfigError(
        f'buckets.grow_to={most} has no effect unless a device is to have at '
        'least so many examples: set buckets.min_per_device'
      )
    return
  if config.sync.name != 'synchronous':
    raise ConfigError(
      f'buckets.min_per_device={least} lets devices idle, and with sync.name='
      f'{config.sync.name!r} each trains replicas: leave one of them out'
    )
  if config.parallel.backend == 'pmap':
    raise ConfigError(
      f"buckets.min_per_device={least} is not for parallel.backend='pmap': "
      "choose 'shard_map'"
    )


def check_min_replicas(config: Config) -> None:
  """Refuses to go on without some where that has no effect."""
  least = config.sync.min_replicas
  if least is None:
    return
  if config.sync.name == 'synchronous' or least > config.sync.replicas:
    raise ConfigError(
      f'sync.min_replicas={least} with sync.name={config.sync.name!r} and '
      f'sync.replicas={config.sync.replicas}: give at least as many replicas'
    )
  if not config.processes.restarts:
    raise ConfigError(
      f'sync.min_replicas={least} has no effect unless the processes that are '
      'left may start again: set processes.restarts'
    )


def check_idle(ladder: Ladder, *, streaming: bool) -> None:
  """Refuses devices that idle while others read their share of a stream."""
  if streaming and ladder.min_per_device is not None:
    raise ConfigError(
      f'buckets.min_per_device={ladder.min_per_device} is for examples in '
      'memory, and these are streamed: set data.placement=resident, if they '
      'fit, or leave it out'
    )


def idle_remarks(config: Config, ladder: Ladder) -> Iterator[str]:
  """A line where none does, of several processes; or what it changes."""
  b = config.buckets
  grows = (b.grow_to or 0) > ladder.devices
  if b.min_per_device and not (ladder.min_per_device or grows):
    yield (
      f'buckets.min_per_device={b.min_per_device} has no effect: no process of '
      'several can idle, but with buckets.grow_to they ask for more devices'
    )
  if ladder.min_per_device and ladder.min_microbatches > 1:
    yield (
      f'buckets.min_per_device={ladder.min_per_device}: the gradient noise is '
      'estimated from other microbatches than on all devices, within its '
      'spread; batch sizes that follow it may differ'
    )


def _group_size(config: Config) -> int | None:
  """Examples of the network's BatchNorm groups, if it has any."""
  parameters = config.model[config.model.name]
  groups = 'batch_norm_group' in parameters and parameters.batch_norm_group
  return groups or None
