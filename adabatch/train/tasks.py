"""From a config to what its network is trained for."""

import inspect
from typing import Any

from adabatch.config import Config, ConfigError, choose, refusing
from adabatch.models.tasks import LABELS, TASKS, Task


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
  with refusing('task'):
    task = make(**parameters)
  choose(dict.fromkeys(LABELS), task.labels, f'task.name={name!r}: labels')
  return task
