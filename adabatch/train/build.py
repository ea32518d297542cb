"""From a config to the parts of a run: every name meets its function here."""

import inspect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adabatch import config as config_lib
from adabatch import data
from adabatch.config import Config, ConfigError, choose, refusing
from adabatch.config.ranges import check_numbers
from adabatch.controllers import BatchSizeController, parse_count
from adabatch.controllers.buckets import Ladder, bucket_for
from adabatch.data.source import Inputs
from adabatch.devices import layout
from adabatch.devices.mesh import BACKENDS, PRECISIONS, Devices, make_devices
from adabatch.devices.recipe import Recipe, Sync
from adabatch.models.tasks import TOP_5_CLASSES, Task
from adabatch.optim import sync
from adabatch.train import memory, noise, per_call
from adabatch.train.calls import Due, make_due
from adabatch.train.decisions import Decisions, Measure
from adabatch.train.inputs import open_inputs
from adabatch.train.networks import (
  DTYPES,
  LANGUAGE_MODELS,
  check_model,
  make_model,
)
from adabatch.train.open_splits import TextCache
from adabatch.train.optimizer import (
  learning_rate_drops,
  make_optimizer,
  unwarmed_rate,
)
from adabatch.train.profile import check_profile
from adabatch.train.register import registered
from adabatch.train.replicas import Replicas
from adabatch.train.rules import (
  check_devices,
  check_idle,
  check_min_replicas,
  count_replicas,
  make_controller,
  make_ladder,
)
from adabatch.train.run_end import (
  Extent,
  RunEnd,
  RunLength,
  make_end,
  run_length,
)
from adabatch.train.tasks import (
  check_task,
  example_batch,
  make_task,
  network_input,
)
from adabatch.train.trackers import check_writers
from adabatch.train.tuning import TuningRule

ON_NONFINITE = ('stop', 'skip', 'rollback')


class Parts(NamedTuple):
  """The parts of a run, all checked, nothing written or placed on a device.

  Attributes:
    config: the whole config.
    recipe: what the devices are given to do.
    controller: the batch-size rule.
    ladder: the sizes that are run.
    end: where it ends, if no target is reached before.
    extent: what its schedules are laid out over.
    length: how long it becomes.
    due: when what is due.
    learning_rate_drops: where the learning rate drops, in examples.
  """

  config: Config
  recipe: Recipe
  controller: BatchSizeController
  ladder: Ladder
  end: RunEnd
  extent: Extent
  length: RunLength
  due: Due
  learning_rate_drops: tuple[float, ...]

  @property
  def fingerprints(self) -> dict[str, str]:
    """Of the data."""
    inputs = self.recipe.inputs
    return {
      'training': inputs.train.fingerprint,
      'evaluation': inputs.evaluation.fingerprint,
    }


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

  with refusing(f'sync.{s.name}', Exception):
    rule(s.replicas)
  return Sync(rule, s.average_momentum)


def compiler_options(config: Config, platform: str) -> dict[str, Any]:
  """What XLA needs to be told."""
  if platform != 'cpu':
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


def check_values(config: Config) -> None:
  """Refuses keys and values that mean nothing, each by itself.

  Raises:
    ConfigError: in one line.
  """
  config_lib.check_keys(config, registered())
  config_lib.check_kinds(config)
  check_numbers(config, parse_count)
  check_profile(config)
  check_writers(config)


def check(config: Config, devices: int) -> None:
  """Refuses what can be refused without the data.

  Raises:
    ConfigError: in one line.
  """
  check_values(config)
  choose(
    dict.fromkeys(BACKENDS),
    config.parallel.backend,
    'parallel.backend',
  )
  choose(dict.fromkeys(ON_NONFINITE), config.on_nonfinite, 'on_nonfinite')
  choose(dict.fromkeys(PRECISIONS), config.model.precision, 'model.precision')
  choose(DTYPES, config.parallel.gradient_dtype, 'parallel.gradient_dtype')
  make_model(config, 1)
  name, of_text = config.model.name, make_task(config).labels == 'tokens'
  ours = not config_lib.is_of_another(f'model.{name}.any')
  if ours and of_text != (name in LANGUAGE_MODELS):
    raise ConfigError(
      f'model.name={name!r} and task.name={config.task.name!r} do not go '
      f'together: {" and ".join(LANGUAGE_MODELS)} are for tasks that predict '
      'tokens, such as language_modelling, and no others'
    )
  # Of a task without accuracy none is asked unless something is to be reached.
  if config.target.value is not None:
    _check_target(config, make_task(config, TOP_5_CLASSES))
  length = config.data.sequence_length if of_text else None
  make_end(config, 2**30, length)  # of how many examples is not known yet
  extent = Extent(1, 1, config.controller.max_batch_size, length)
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
  check_min_replicas(config)
  if config.sync.name != 'synchronous' and config.ema.half_life is not None:
    raise ConfigError(
      f'ema.half_life averages the weights of one model, and with sync.name='
      f'{config.sync.name!r} the anchor of the replicas is an average already: '
      'leave one of them out'
    )
  if config.parallel.backend == 'pmap':
    _check_pmap(config)
  check_devices(config)
  make_ladder(config, devices, processes=jax.process_count())
  noise.make_norm(config, make_controller(config, extent))
  make_optimizer(config, extent)
  if length is not None:
    # Known without the text, which may take long to turn into tokens.
    row = jax.ShapeDtypeStruct((1, length), jnp.int32)
    check_model(config, make_model(config, config.data.vocab_size), row)


def _check_pmap(config: Config) -> None:
  """Refuses what that backend cannot do."""
  if config.sync.name != 'synchronous':
    raise ConfigError(
      f'sync.name={config.sync.name!r} needs two axes of devices, and '
      "parallel.backend='pmap' has one: choose 'shard_map'"
    )
  if (directory := config.compilation.programs) is not None:
    raise ConfigError(
      f'compilation.programs={directory!r} has none of '
      "parallel.backend='pmap', whose programs cannot be kept: choose "
      "'shard_map', or leave it out"
    )


def _check_target(config: Config, task: Task) -> None:
  choose(task.higher_is_better, config.target.metric, 'target.metric')


def build(
  config: Config,
  devices: Sequence[Any] | None = None,
  splits: tuple[data.Split, data.Split] | None = None,
  cache: TextCache | None = None,
) -> Parts:
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
  made = make_devices(devices, backend=config.parallel.backend)
  # Before the data is read: a wrong name must not cost minutes.
  check(config, made.size)
  labels = make_task(config).labels
  inputs = open_inputs(config, splits, cache, labels=labels)
  return assemble(config, made, inputs)


def assemble(config: Config, made: Devices, inputs: Inputs) -> Parts:
  """The parts of a run, once its data are there; raises as `build`."""
  task = make_task(config, inputs.train.num_classes)
  if config.target.value is not None:
    _check_target(config, task)
  num_examples = inputs.train.num_examples
  processes = len({p for row in made.processes for p in row})
  ladder = make_ladder(config, made.size, num_examples, processes=processes)
  check_idle(ladder, streaming=inputs.streaming)
  batch = example_batch(inputs)
  example = network_input(config, task, batch)
  model = make_model(config, inputs.train.num_classes, inputs.end_of_document)
  variables = check_model(config, model, example)
  check_task(config, task, model, batch, inputs.train.num_classes)
  end = make_end(config, num_examples, inputs.tokens_per_example)
  extent = Extent(
    num_examples,
    end.examples,
    ladder.batch_sizes[-1],
    inputs.tokens_per_example,
  )
  length = run_length(
    end,
    num_examples,
    ladder,
    lambda run: make_controller(config, extent._replace(run=run), ladder),
    tuned=config.sync.tune.enabled,
  )
  extent = extent._replace(run=length.examples)
  controller = make_controller(config, extent, ladder)
  noisy, replicas = noise.is_read(config, controller), count_replicas(config)
  smallest = bucket_for(ladder.batch_sizes[0], ladder)
  looped = per_call.is_automatic(config) and per_call.is_looped(
    made.platform, model, variables, example, smallest
  )
  recipe = Recipe(
    model=model,
    task=task,
    tx=make_optimizer(config, extent),
    inputs=inputs,
    network_input=example,
    devices=made._replace(
      options=compiler_options(config, made.platform),
      precision=config.model.precision,
    ),
    seed=config.seed,
    needs=controller.needs,
    estimate_noise=noisy,
    noise_norm=noise.make_norm(config, controller, variables.get('params', {})),
    # Needed where a replica may train on a single example. That depends on the
    # config alone and never on the devices, so that a checkpoint fits any
    # number of them.
    keep_gradient=noisy and ladder.batch_sizes[0] == replicas,
    sync=make_sync(config, extent),
    replicas=replicas,
    skip=config.on_nonfinite == 'skip',
    updates_per_call=per_call.most_in_a_call(config, length.updates, looped),
    indices_per_call=(
      per_call.MOST_INDICES if per_call.is_automatic(config) else None
    ),
    evaluated_at_once=config.eval.max_per_device,
    subset_size=config.controller.subset_size,
    group_size=ladder.group_size,
    gradient_dtype=DTYPES[config.parallel.gradient_dtype],
    split_names=(config.data.train_split, config.data.eval_split),
  )
  _check_readers(config, recipe)
  memory.check_state(config, recipe, variables)
  memory.check_calls(recipe, ladder)
  return Parts(
    config=config,
    recipe=recipe,
    controller=controller,
    ladder=ladder,
    end=end,
    extent=extent,
    length=length,
    due=make_due(config, num_examples),
    learning_rate_drops=learning_rate_drops(config, extent),
  )


def _check_readers(config: Config, recipe: Recipe) -> None:
  """Refuses devices and replicas for which the processes cannot read."""
  if not recipe.inputs.streaming:
    return
  rows = recipe.devices.with_replicas(recipe.replicas).processes
  with refusing('sync.replicas' if recipe.sync else 'a streamed set'):
    readers = layout.streamed(rows, recipe.replicas).residue
  if config.sync.tune.enabled and recipe.replicas < len(readers):
    raise ConfigError(
      'sync.tune.enabled with a streamed set needs a replica for each process, '
      f'got sync.replicas={recipe.replicas} and {len(readers)} processes'
    )


def make_replicas(
  parts: Parts, saved: dict[str, Any] | None = None
) -> Replicas:
  """When replicas agree, and how their number changes."""
  recipe, tune = parts.recipe, parts.config.sync.tune
  return Replicas(
    None if recipe.sync is None else recipe.sync.rule(recipe.replicas),
    replicas=recipe.replicas,
    drops=parts.learning_rate_drops,
    tuning=(
      TuningRule(tune.most, tune.threshold, tune.windows)
      if tune.enabled
      else None
    ),
    window=tune.window,
    rows=math.gcd(recipe.replicas, recipe.devices.size),
    saved=saved,
  )


def make_decisions(
  parts: Parts,
  measure: Measure,
  saved: dict[str, Any] | None = None,
) -> Decisions:
  """The batch-size rule at work."""
  c = parts.config.controller
  return Decisions(
    parts.controller,
    parts.ladder,
    measure,
    initial_batch_size=c.initial_batch_size,
    num_examples=parts.extent.epoch,
    saved=saved,
    keys={key: f'controller.{c.name}.{key}' for key in c.get(c.name, ())},
  )
