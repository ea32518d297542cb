"""From sums and gathered examples to what a task reports, on the host."""

import math
from typing import Any

import jax
import numpy as np

from adabatch.models import contract
from adabatch.models.tasks import Task


class Gathered:
  """What a task gathers of each example that counts, on the host."""

  def __init__(self, examples: int):
    """`examples` are the most that there can be."""
    self._examples, self._count = examples, 0
    self._arrays: Any = None
    self._last: Any = None

  def add(self, values: Any, weights: Any) -> None:
    """One more piece, on its way from the devices.

    Args:
      values: arrays [slots, ...].
      weights: what each slot counts; those of weight 0 are left out.
    """
    # One behind, so that the devices need not wait for the host.
    self._fetch()
    self._last = values, weights

  def _fetch(self) -> None:
    if self._last is None:
      return
    values, weights = jax.device_get(self._last)
    self._last, keep = None, weights > 0
    if self._arrays is None:
      self._arrays = jax.tree.map(
        lambda x: np.empty((self._examples, *x.shape[1:]), x.dtype), values
      )
    rows = slice(self._count, self._count + np.count_nonzero(keep))
    for array, value in zip(
      *map(jax.tree.leaves, (self._arrays, values)), strict=True
    ):
      array[rows] = value[keep]
    self._count = rows.stop

  def all(self) -> Any:
    """Arrays [examples that count, ...]."""
    self._fetch()
    return jax.tree.map(lambda x: x[: self._count], self._arrays)


def summary(
  task: Task, sums: Any, weight: Any, gathered: Gathered | None
) -> dict[str, float]:
  """What a task reports.

  Args:
    task: it.
    sums: weighted, of each metric of examples.
    weight: the sum of the weights.
    gathered: of all examples; None where the task wants nothing of the kind.
  """
  # Device results come back sorted by name.
  means = {n: float(sums[n]) / float(weight) for n in task.metric_names}
  found = task.summarize(means)
  if task.whole is None or gathered is None:
    return found
  names = [name for name in task.higher_is_better if name not in found]
  if not math.isfinite(means['loss']):  # nobody's order means anything
    return found | dict.fromkeys(names, math.nan)
  return found | contract.named(task.whole.metrics(gathered.all()), names)
