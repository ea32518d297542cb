"""From a config to what its network is trained for."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from adabatch.config import Config, ConfigError, choose, refusing
from adabatch.data.source import Inputs
from adabatch.models import MODELS, contract
from adabatch.models.tasks import LABELS, TASKS, Batch, Task, training_loss


def make_task(config: Config, num_classes: int | None = None) -> Task:
  """Losses and metrics, with the task's own table of parameters."""
  name, smoothing = config.task.name, config.task.label_smoothing
  make = choose(TASKS, name, 'task.name')
  parameters: dict[str, Any] = {}
  if name in config.task:  # a table of its own
    parameters |= config.task[name]
  takes = inspect.signature(make).parameters
  if 'label_smoothing' in takes:
    parameters['label_smoothing'] = smoothing
  elif smoothing:
    raise ConfigError(
      f'task.label_smoothing={smoothing} has no effect on task.name={name!r}: '
      'set it to 0'
    )
  if 'num_classes' in takes:
    parameters['num_classes'] = num_classes
  with refusing('task', Exception):
    task = make(**parameters)
  choose(dict.fromkeys(LABELS), task.labels, f'task.name={name!r}: labels')
  return task


def example_batch(inputs: Inputs) -> dict[str, jax.ShapeDtypeStruct]:
  """A batch of one, as a task is given it."""
  arrays = {
    name: jax.ShapeDtypeStruct((1, *shape.shape), shape.dtype)
    for name, shape in inputs.train.shapes.items()
  }
  index = jax.ShapeDtypeStruct((1,), jnp.int32)
  return jax.eval_shape(
    lambda arrays, index: inputs.load(arrays, index, None), arrays, index
  )


def network_input(
  config: Config, task: Task, batch: dict[str, jax.ShapeDtypeStruct]
) -> jax.ShapeDtypeStruct:
  """What the network is fed of a batch."""
  with _of_task(config, batch):
    return jax.eval_shape(task.inputs, batch)


def check_task(
  config: Config,
  task: Task,
  model: Any,
  batch: dict[str, jax.ShapeDtypeStruct],
  num_classes: int,
) -> None:
  """Refuses a task or a network of one's own whose shapes do not fit.

  Those of this package are known to, and are not traced for it.

  Raises:
    ConfigError: in one line.
  """
  name = config.task.name
  if is_of_here(TASKS[name]) and is_of_here(MODELS[config.model.name]):
    return

  def values(batch: Batch) -> None:
    inputs, weights = task.inputs(batch), jnp.zeros(1)
    variables = contract.init_in_training(model, inputs)
    outputs = model.apply(variables, inputs, train=False)
    shape = jnp.shape(outputs)
    if name == 'classification' and shape != (1, num_classes):
      raise ValueError(
        f'the network makes outputs of the shape {shape} of one example, and '
        f'there are {num_classes} classes: make them [B, {num_classes}]'
      )
    contract.per_example(
      training_loss(task, outputs, batch), weights, 'task.loss'
    )
    found = task.metrics(outputs, batch)
    if found.keys() != {*task.metric_names}:
      raise ValueError(
        f'metrics gives {", ".join(sorted(found))}, and metric_names '
        f'{", ".join(sorted(task.metric_names))}: make them the same'
      )
    for metric, value in found.items():
      contract.per_example(value, weights, f'the metric {metric}')

  with _of_task(config, batch):
    jax.eval_shape(values, batch)


def is_of_here(make: Any) -> bool:
  """Whether a function or class is of this package."""
  return make.__module__.partition('.')[0] == 'adabatch'


@contextlib.contextmanager
def _of_task(config: Config, batch: Any) -> Iterator[None]:
  """One line about what a task does with a batch."""
  name = f'task.name={config.task.name!r}'
  with refusing(name, Exception):
    try:
      yield
    except KeyError as error:
      raise ConfigError(
        f'{name}: there is no {error}; a batch has {", ".join(sorted(batch))}'
      ) from error
