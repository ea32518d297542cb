"""From a config to the parts of a run: every name meets its function here."""

import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from adabatch import config as config_lib
from adabatch import controllers, data
from adabatch.config import Config, ConfigError, choose, refusing
from adabatch.config.ranges import check_numbers
from adabatch.controllers import BatchSizeController, buckets
from adabatch.controllers.buckets import Ladder
from adabatch.devices import parallel
from adabatch.devices.updates import Sync
from adabatch.models import MODELS, contract
from adabatch.models.tasks import Task, classification, language_modelling
from adabatch.optim import sync
from adabatch.train.inputs import Inputs, TextCache, open_inputs
from adabatch.train.optimization import (
  beta2_at_its_floor,
  damping_exponent,
  lasts_as_the_run,
  learning_rate_drops,
  make_decay,
  make_optimizer,
  unwarmed_rate,
)
from adabatch.train.run_end import (
  Extent,
  RunEnd,
  RunLength,
  make_end,
  run_length,
)

TASKS = {
  'classification': classification,
  'language_modelling': language_modelling,
}
LANGUAGE_MODELS = ('transformer', 'lstm')
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


class Experiment(NamedTuple):
  """The parts of a run, all checked, nothing written or placed on a device.

  Attributes:
    model, task, tx, controller, ladder: see their modules.
    inputs: the two splits and how to make batches of them.
    network_input: shape and dtype of a batch of one of the network's inputs.
    compiler_options: what the programs are compiled with.
    mesh: all devices.
    end: where it ends, if no target is reached before.
    extent: what its schedules are laid out over.
    length: how long it becomes.
    estimate_noise: whether a rule reads the gradient noise.
    sync: how replicas agree; None where one model is trained.
    replicas: how many there are; 1 of one model.
    learning_rate_drops: where the learning rate drops, in examples.
  """

  model: nn.Module
  task: Task
  tx: Any
  controller: BatchSizeController
  ladder: Ladder
  inputs: Inputs
  network_input: jax.ShapeDtypeStruct
  compiler_options: dict[str, Any]
  mesh: Mesh
  end: RunEnd
  extent: Extent
  length: RunLength
  estimate_noise: bool
  sync: Sync | None
  replicas: int
  learning_rate_drops: tuple[float, ...]


def count_replicas(config: Config) -> int:
  """How many models are trained side by side."""
  return 1 if config.sync.name == 'synchronous' else config.sync.replicas


def make_sync(config: Config, extent: Extent) -> Sync | None:
  """How replicas agree; None where one model is trained."""
  s = config.sync
  if s.name == 'synchronous':
    return None
  make = choose(sync.SYNC_RULES | {'synchronous': None}, s.name, 'sync.name')
  parameters: dict[str, Any] = dict(s[s.name]) if s.name in s else {}
  if s.name == 'post_local_sgd':
    drops = learning_rate_drops(config, extent)
    if parameters.pop('epoch') is not None:
      drops = (s.post_local_sgd.epoch * extent.epoch,)
    if not drops:
      raise ConfigError(
        'sync.name=post_local_sgd begins where a piecewise learning rate first '
        'drops, and this one does not: set sync.post_local_sgd.epoch'
      )
    parameters['switch'] = drops[0]
  if s.name == 'qsr':
    parameters['learning_rate'] = unwarmed_rate(config, extent)
  by_number = 'replicas' in inspect.signature(make).parameters

  def rule(replicas: int) -> sync.SyncRule:
    number = {'replicas': replicas} if by_number else {}
    return make(s.local_steps, **parameters, **number)

  with refusing(f'sync.{s.name}'):
    rule(s.replicas)
  return Sync(rule, s.average_momentum)


def check_controller(config: Config) -> None:
  """Refuses rules that would ask for something else than they are to."""
  c, scaling = config.controller, config.learning_rate.scaling
  if c.name == 'cabs' and scaling in ('linear', 'adascale'):
    raise ConfigError(
      'controller.name=cabs takes a batch size in proportion to the learning '
      f'rate, which learning_rate.scaling={scaling!r} takes in proportion to '
      "the batch size, without an end: set it to 'none' or 'sqrt'"
    )
  # Rules that grow without an end are damped beyond the largest size; a size
  # that was written down is meant.
  sizes: dict[str, list[float]] = {}
  if c.name == 'step_table':
    with refusing('controller.step_table'):
      entries = controllers.parse_table(c.step_table.table)
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


def make_controller(config: Config, extent: Extent) -> BatchSizeController:
  """The batch-size rule with its wrappers."""
  check_controller(config)
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
  if c.name == 'from_lr_schedule':
    with refusing('controller.every'):
      due = controllers.every_due(updates=c.every, wait=c.wait)
    parameters = {'schedule': make_decay(config, extent), 'due': due}
  accepted = inspect.signature(factory).parameters
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


def estimates_noise(config: Config, controller: BatchSizeController) -> bool:
  """Whether anything reads the gradient noise."""
  adascale = config.learning_rate.scaling == 'adascale'
  return adascale or 'gradient_noise' in controller.needs


def make_ladder(
  config: Config, devices: int, num_examples: int | None = None
) -> Ladder:
  """The batch sizes that can be run; their parts tell the gradient noise.

  None is larger than the training split of `num_examples`: a batch would hold
  examples twice, and a run of few epochs would be over with it.
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
  rule = make_controller(config, Extent(1, 1, c.max_batch_size))
  # A constant size needs no ladder, and no program compiled for the next rung.
  largest = smallest if c.name == 'constant' else largest
  for key, size in (('initial', smallest), ('max', largest)):
    if size % replicas:
      key = 'min' if size == c.min_batch_size else key
      raise ConfigError(
        f'controller.{key}_batch_size={size} cannot be shared equally by '
        f'sync.replicas={replicas}: choose {-(-size // replicas) * replicas}'
      )
  with refusing('buckets'):
    return buckets.ladder(
      smallest,
      largest,
      devices=devices // math.gcd(devices, replicas),
      max_per_device=b.max_per_device,
      growth=b.growth,
      rounding=b.rounding,
      group_size=_group_size(config),
      replicas=replicas,
      min_microbatches=2 if estimates_noise(config, rule) else 1,
      damping_exponent=damping_exponent(config),
    )


def remarks(config: Config, e: Experiment) -> Iterator[str]:
  """Lines on what a run makes of its config that may not be expected."""
  top, asked = e.ladder.batch_sizes[-1], config.controller.max_batch_size
  if config.controller.name != 'constant' and top < asked:
    yield (
      f'controller.max_batch_size={asked} is capped at {top}: the training '
      f'split has {e.extent.epoch} examples'
    )
  if (line := beta2_at_its_floor(config, top)) is not None:
    yield line
  if not e.length.exact and lasts_as_the_run(config):
    tuned = config.sync.tune.enabled
    name = f'controller.name={config.controller.name!r}'
    decides = 'sync.tune' if tuned else name
    yield (
      f'max_updates={config.max_updates} may end the run before the '
      f'{e.length.examples} examples over which learning_rate.decay is laid '
      f'out: nobody knows before what {decides} will decide; to be sure set '
      'learning_rate.decay.length'
    )


def _group_size(config: Config) -> int | None:
  """Examples of the network's BatchNorm groups, if it has any."""
  parameters = config.model[config.model.name]
  groups = 'batch_norm_group' in parameters and parameters.batch_norm_group
  return groups or None


def make_model(
  config: Config, num_classes: int, end_of_document: int | None = None
) -> nn.Module:
  """The network with its own table of parameters.

  Raises:
    ConfigError: if it lacks what every network has; see `adabatch.models`.
  """
  name, dtype = config.model.name, config.model.dtype
  make = choose(MODELS, name, 'model.name')
  if name not in config.model:
    raise ConfigError(
      f'model.name={name!r} has no table of parameters in this config: give it '
      f'one, c.model.{name} = ConfigDict()'
    )
  parameters = {
    'num_classes': num_classes,
    'dtype': choose(DTYPES, dtype, 'model.dtype'),
    **config.model[name],
  }
  if name in LANGUAGE_MODELS:
    parameters['end_of_document'] = end_of_document
  with refusing(
    f'model.{name} ({make.__name__}) takes {", ".join(parameters)}'
  ):
    inspect.signature(make).bind(**parameters)
  model = make(**parameters)
  call = inspect.signature(model.__call__)
  with refusing(f'model.{name} is called as model(x, train=..., rows=...)'):
    call.bind('x', train=False, rows=None)
  return model


def check_model(
  config: Config, model: nn.Module, example: jax.ShapeDtypeStruct
) -> None:
  """Refuses a network that cannot be made or trained, or not on such inputs."""
  with refusing(f'model.{config.model.name}'):
    jax.eval_shape(lambda x: contract.init_in_training(model, x), example)


def network_input(task: Task, inputs: Inputs) -> jax.ShapeDtypeStruct:
  """What the network is fed, as a batch of one."""
  arrays = {
    name: jax.ShapeDtypeStruct((1, *shape.shape), shape.dtype)
    for name, shape in inputs.train.shapes.items()
  }
  index = jax.ShapeDtypeStruct((1,), jnp.int32)
  return jax.eval_shape(
    lambda arrays, index: task.inputs(inputs.load(arrays, index, None)),
    arrays,
    index,
  )


def compiler_options(config: Config, mesh: Mesh) -> dict[str, Any]:
  """What XLA needs to be told."""
  if mesh.devices.flat[0].platform != 'cpu':
    return {}
  options: dict[str, Any] = {}
  if config.smoke:
    # Compiles ten times faster, which is most of such a run.
    options['xla_backend_optimization_level'] = 0
  if config.model.dtype == 'bfloat16':
    if config.parallel.backend == 'pmap':
      raise ConfigError(
        'model.dtype=bfloat16 on a CPU needs a compiler option that '
        "parallel.backend='pmap' does not take: use shard_map or float32"
      )
    # These fusions return NaN for some products of bfloat16 (JAX 0.10, 0.12).
    options['xla_cpu_experimental_ynn_fusion_type'] = ''
  return options


def make_task(config: Config) -> Task:
  """Losses and metrics."""
  make = choose(TASKS, config.task.name, 'task.name')
  with refusing('task'):
    return make(config.task.label_smoothing)


def check(config: Config, devices: int) -> None:
  """Refuses what can be refused without the data.

  Raises:
    ConfigError: in one line.
  """
  config_lib.check_keys(config, models=MODELS)
  check_numbers(config)
  choose(
    dict.fromkeys(parallel.BACKENDS),
    config.parallel.backend,
    'parallel.backend',
  )
  make_model(config, 1)
  name, task_name = config.model.name, config.task.name
  task = make_task(config)
  if (name in LANGUAGE_MODELS) != (task_name == 'language_modelling'):
    raise ConfigError(
      f'model.name={name!r} and task.name={task_name!r} do not go together: '
      f'{" and ".join(LANGUAGE_MODELS)} are for language_modelling, the others '
      'for classification'
    )
  choose(task.higher_is_better, config.target.metric, 'target.metric')
  extent = Extent(1, 1, config.controller.max_batch_size)
  rules = make_sync(config, extent)
  if config.sync.tune.enabled:
    if rules is None:
      raise ConfigError(
        'sync.tune.enabled tunes a number of replicas, and there are none '
        f'with sync.name={config.sync.name!r}: choose another sync.name, or '
        'leave it out'
      )
    with refusing('sync.tune: a device may come to train one replica, where'):
      rules.rule(math.gcd(config.sync.replicas, devices))
  if config.sync.name != 'synchronous' and config.parallel.backend == 'pmap':
    raise ConfigError(
      f'sync.name={config.sync.name!r} needs two axes of devices, and '
      "parallel.backend='pmap' has one: choose 'shard_map'"
    )
  make_ladder(config, devices)
  make_controller(config, extent)
  make_optimizer(config, extent)
  if task_name == 'language_modelling':
    # Known without the text, which may take long to turn into tokens.
    row = jax.ShapeDtypeStruct((1, config.data.sequence_length), jnp.int32)
    check_model(config, make_model(config, config.data.vocab_size), row)


def build(
  config: Config,
  devices: Sequence[Any] | None = None,
  splits: tuple[data.Split, data.Split] | None = None,
  cache: TextCache | None = None,
) -> Experiment:
  """Checks the whole config and makes the parts of the run.

  Args:
    config: see `adabatch.config.default`.
    devices: devices to use; None for all of all processes.
    splits: training and evaluation split of a caller's own arrays
      (`data.from_arrays`); None to load what `config.data` names.
    cache: for the tokens of a text set.

  Raises:
    ConfigError: for anything that cannot be run, in one line.
    data.DatasetError: for a data set that is not there.
  """
  mesh = parallel.make_mesh(devices)
  # Before the data is read: a wrong name must not cost minutes.
  check(config, mesh.size)
  task = make_task(config)
  inputs = open_inputs(config, splits, cache)
  num_examples = inputs.train.num_examples
  ladder = make_ladder(config, mesh.size, num_examples)
  example = network_input(task, inputs)
  model = make_model(config, inputs.train.num_classes, inputs.end_of_document)
  check_model(config, model, example)
  end = make_end(config, num_examples)
  extent = Extent(num_examples, end.examples, ladder.batch_sizes[-1])
  length = run_length(
    end,
    num_examples,
    ladder,
    lambda run: make_controller(config, extent._replace(run=run)),
    tuned=config.sync.tune.enabled,
  )
  extent = extent._replace(run=length.examples)
  controller = make_controller(config, extent)
  return Experiment(
    model=model,
    task=task,
    tx=make_optimizer(config, extent),
    controller=controller,
    ladder=ladder,
    inputs=inputs,
    network_input=example,
    compiler_options=compiler_options(config, mesh),
    mesh=mesh,
    end=end,
    extent=extent,
    length=length,
    estimate_noise=estimates_noise(config, controller),
    sync=make_sync(config, extent),
    replicas=count_replicas(config),
    learning_rate_drops=learning_rate_drops(config, extent),
  )
