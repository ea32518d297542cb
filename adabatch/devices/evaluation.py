"""Exact means over a whole split: metrics, and the gradient of the loss."""

import math
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np

from adabatch import data
from adabatch.devices import evaluation_steps
from adabatch.devices.gathered import Gathered
from adabatch.devices.mesh import BY_DEVICE, WHOLE
from adabatch.devices.pieces import Pieces, Skipped, whole_split
from adabatch.devices.programs import CompiledOnce, Compiling
from adabatch.devices.recipe import Recipe
from adabatch.devices.replicas import State
from adabatch.models import contract
from adabatch.models.tasks import Task
from adabatch.optim import gradient_noise


class Sums:
  """What a body sums up over all pieces of a split."""

  def __init__(
    self, body: Any, recipe: Recipe, pieces: Pieces, compiling: Compiling
  ):
    self._pieces, self._place = pieces, recipe.devices.placer()
    self._function = recipe.devices.spmd(
      body,
      arguments=(WHOLE, WHOLE, pieces.where, WHOLE, BY_DEVICE),
      donate=(3,),
    )
    self._program = CompiledOnce(self._function, compiling)

  def lower(self, state: State, zeros: Any) -> Any:
    """What is compiled, for a state or its shapes."""
    arrays, first = self._pieces.example
    sums = self._place(zeros)
    return self._function.lower(
      state.params, state.model_state, arrays, sums, first
    )

  def __call__(
    self, state: State, zeros: Any, gathered: Gathered | None = None
  ) -> Any:
    """The sums; `gathered` is given what else the body returns."""
    sums, pieces = self._place(zeros), self._pieces
    for arrays, first in pieces.open():
      if pieces.where == BY_DEVICE:
        # Pieces of a large split must not pile up in the devices' memory: one
        # is at work, and the next was read and sent meanwhile.
        jax.block_until_ready(sums)
      sums = self._program.run(
        state.params, state.model_state, arrays, sums, first
      )
      if gathered is not None:
        sums, found = sums
        gathered.add(*found)
    return sums


def zeros_like(tree: Any) -> Any:
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)


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


class Evaluator:
  """Means in evaluation mode over a split, each example counted once.

  Attributes:
    examples: how many there are.
    slots: how many a device takes at once.
    pieces: in which they are.
    skipped: how many of them could not be read, the last time.
    close: ends what reads between evaluations.
  """

  def __init__(
    self, recipe: Recipe, pieces: Pieces, compiling: Compiling = nullcontext
  ):
    """Programs are compiled within what `compiling` makes, once they are first
    used."""
    self._task = recipe.task
    self.examples, self.slots = pieces.examples, pieces.slots
    self.pieces, self.close = pieces, pieces.close
    self.skipped = 0
    body = recipe.model, recipe.task, recipe.inputs.load
    size = pieces.slots, pieces.limit
    self._metrics, self._gradient = (
      Sums(make(*body, *size), recipe, pieces, compiling)
      for make in (
        evaluation_steps.evaluation_step,
        evaluation_steps.gradient_step,
      )
    )
    self._norm = CompiledOnce(jax.jit(gradient_noise.squared_norm), compiling)

  def _count(self, weight: Any) -> None:
    self.skipped = self.examples - round(float(weight))
    if not weight > 0:
      raise data.DatasetError(
        f'none of the {self.examples} examples to be evaluated can be read'
      )

  def _no_metrics(self) -> Any:
    zeros = dict.fromkeys(self._task.metric_names, np.float32(0))
    return zeros, np.float32(0)

  def lower(self, state: State) -> Any:
    """What is compiled for `metrics`, of a state or its shapes."""
    return self._metrics.lower(state, self._no_metrics())

  def metrics(self, state: State) -> dict[str, float]:
    """What the task reports of the split."""
    gathered = Gathered(self.examples) if self._task.whole else None
    total = self._metrics(state, self._no_metrics(), gathered)
    sums, weight = jax.device_get(total)
    self._count(weight)
    return summary(self._task, sums, weight, gathered)

  def gradient_norm_squared(self, state: State) -> float:
    """|mean gradient|^2 of the evaluation-mode loss."""
    zeros = zeros_like(state.params), np.float32(0)
    total, weight = self._gradient(state, zeros)
    norm, weight = jax.device_get((self._norm.run(total), weight))
    self._count(weight)
    return float(norm) / float(weight) ** 2


def make_evaluator(
  recipe: Recipe, skipped: Skipped, compiling: Compiling
) -> Evaluator:
  """Of the evaluation split."""
  return Evaluator(recipe, whole_split(recipe, 1, None, skipped), compiling)
