"""Exact means over a whole split: metrics, and the gradient's norm."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from adabatch import gradient_noise, parallel, steps
from adabatch.tasks import Task
from adabatch.train_state import TrainState


class Evaluator:
  """Metrics in evaluation mode over the first `limit` examples of a split.

  Examples are spread over the devices in chunks of one shape, the last one
  filled up with empty slots, so that every example counts exactly once.
  """

  def __init__(
    self,
    model: nn.Module,
    task: Task,
    load: steps.Load,
    data: steps.Data,
    *,
    limit: int,
    mesh: Mesh,
    backend: str,
    max_per_device: int,
  ):
    """`max_per_device` is the most examples a device takes at once."""
    self._data = data
    self.examples = limit
    slots = min(max_per_device, -(-limit // mesh.size))
    chunks = -(-limit // (slots * mesh.size))
    firsts = np.arange(chunks * mesh.size, dtype=np.int32) * slots
    self._firsts = [
      parallel.shard(row, mesh) for row in firsts.reshape(chunks, mesh.size)
    ]
    self._metric_names = tuple(task.higher_is_better)
    self._mesh = mesh

    def program(body):
      return parallel.spmd(
        body, mesh, layout=(*(False,) * 4, True), backend=backend, donate=(3,)
      )

    self._metrics = program(
      steps.evaluation_step(model, task, load, slots, limit)
    )
    self._gradient = program(
      steps.gradient_step(model, task, load, slots, limit)
    )

  def _sum(self, program: Callable[..., Any], state: TrainState, sums: Any):
    for first in self._firsts:
      sums = program(state.params, state.model_state, self._data, sums, first)
    return sums

  def metrics(self, state: TrainState) -> dict[str, float]:
    """Mean of each of the task's metrics."""
    zeros = parallel.replicate(
      {name: np.float32(0) for name in self._metric_names}, self._mesh
    )
    sums = jax.device_get(self._sum(self._metrics, state, zeros))
    return {
      name: float(sums[name]) / self.examples for name in self._metric_names
    }

  def gradient_norm_squared(self, state: TrainState) -> float:
    """|mean gradient|^2 of the evaluation-mode loss."""
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    total = self._sum(self._gradient, state, zeros)
    norm = gradient_noise.squared_norm(total)
    return float(jax.device_get(norm)) / self.examples**2


class Measurements:
  """The signals that cost a pass over data, for the rules that need them.

  `full_*` go over the whole training split, `subset_*` over a fixed part of it.
  """

  def __init__(
    self,
    needs: frozenset[str],
    evaluator: Callable[[steps.Data, int], Evaluator],
    *,
    full: steps.Data,
    subset: Callable[[], tuple[steps.Data, int]],
    num_examples: int,
  ):
    """Makes only the evaluators that `needs` asks for.

    Args:
      needs: the signals that the rule reads.
      evaluator: (data, how many of its examples) -> an evaluator of them.
      full: the training split, on the devices.
      subset: makes the fixed part and its size.
      num_examples: size of the training split.
    """
    self._needs = needs
    sources = {'full': lambda: (full, num_examples), 'subset': subset}
    self._evaluators = {
      source: evaluator(*make())
      for source, make in sources.items()
      if any(name.startswith(f'{source}_') for name in needs)
    }

  def take(self, state: TrainState) -> tuple[dict[str, float], int]:
    """The signals by name, and how many examples were evaluated for them."""
    values, cost = {}, 0
    for source, evaluator in self._evaluators.items():
      measures = {
        f'{source}_loss': lambda e=evaluator: e.metrics(state)['loss'],
        f'{source}_gradient_norm_squared': (
          lambda e=evaluator: e.gradient_norm_squared(state)
        ),
      }
      for name in self._needs & measures.keys():
        values[name] = measures[name]()
        cost += evaluator.examples
    return values, cost
