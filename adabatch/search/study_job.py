"""A study: metaparameters searched anew at each batch size."""

import os
from collections.abc import Sequence
from typing import Any

from adabatch.config import Config, ConfigError
from adabatch.search.bench import Task
from adabatch.search.job import run_job, shrink_search, task_name
from adabatch.search.workload import (
  at_batch_size,
  check_search,
  make_goal,
  search_space,
)
from adabatch.study.table import summarize, to_json
from adabatch.study.trials import Goal, Search


def study(
  config: Config, workdir: str | os.PathLike[str], **options: Any
) -> dict[str, Any]:
  """Searches anew at each batch size and for each optimizer; see `run_job`."""

  def make_tasks(config: Config) -> list[Task]:
    check_search(config)
    if make_goal(config).value is None:
      raise ConfigError('a study needs a goal: set target.value')
    s = config.study
    for key, values in (
      ('batch_sizes', s.batch_sizes),
      ('optimizers', s.optimizers),
    ):
      if not values or len(set(values)) < len(values):
        raise ConfigError(
          f'study.{key}={tuple(values)}: give at least one, and each once'
        )
    if config.smoke:
      config = shrink_search(config)
    tasks = []
    for optimizer in config.study.optimizers:
      for batch_size in config.study.batch_sizes:
        one = at_batch_size(config, optimizer, batch_size)
        name = task_name(one, str(batch_size))
        space = search_space(one)
        if not space:
          raise ConfigError(
            f'search.space has nothing that optimizer.name={optimizer!r} reads'
          )
        tasks.append(Task(name, one, space))
    return tasks

  return run_job('study', config, workdir, make_tasks, conclude, **options)


def conclude(goal: Goal, searches: Sequence[Search]) -> dict[str, Any]:
  """The steps-to-result table and fit of every workload."""
  assert goal.value is not None
  some = [search for search in searches if search.trials]
  return {'workloads': to_json(summarize(some, goal.metric, goal.value))}
