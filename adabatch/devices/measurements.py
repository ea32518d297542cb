"""What batch-size rules read that costs a pass over data."""

from contextlib import nullcontext

import numpy as np

from adabatch import data
from adabatch.data.source import Data
from adabatch.devices import evaluation_steps
from adabatch.devices.evaluation import Evaluator, Sums, zeros_like
from adabatch.devices.in_rows import place_split
from adabatch.devices.pieces import (
  Pieces,
  Skipped,
  drawn,
  in_memory,
  whole_split,
)
from adabatch.devices.programs import CompiledOnce, Compiling
from adabatch.devices.recipe import Recipe
from adabatch.devices.replicas import State


class Calibration:
  """Running statistics as they would be at the parameters there are.

  Those in the state lag behind, and before the first update they are whatever
  they were initialised with; the loss in evaluation mode then says nothing of
  the parameters.

  Attributes:
    examples: that a calibration goes over.
  """

  def __init__(
    self, recipe: Recipe, pieces: Pieces, compiling: Compiling = nullcontext
  ):
    """`pieces` hold whole BatchNorm groups of examples in random order."""
    self.examples = pieces.examples
    body = evaluation_steps.calibration_step(
      recipe.model,
      recipe.task,
      recipe.inputs.load,
      pieces.slots,
      pieces.limit,
      devices=recipe.devices.size,
      rng=data.seed_key(recipe.seed),
    )
    self._sum = Sums(body, recipe, pieces, compiling)
    finish = recipe.devices.jit(evaluation_steps.calibrated)
    self._finish = CompiledOnce(finish, compiling)

  def __call__(self, state: State) -> State:
    """The same state with calibrated statistics; the given one stays."""
    zeros = zeros_like(state.model_state)
    sums = self._sum(state, (zeros, zeros, np.float32(0)))
    return state._replace(model_state=self._finish.run(state.model_state, sums))


def make_calibration(
  recipe: Recipe, skipped: Skipped, compiling: Compiling = nullcontext
) -> Calibration:
  """From a part of the training split.

  Args:
    recipe: what is trained.
    skipped: is told of records that cannot be read.
    compiling: makes what is entered while a program is compiled.
  """
  # In the order drawn: a group of one class would not be one of training.
  chosen, arrays = drawn(recipe, skipped, 1)
  order = np.argsort(np.argsort(chosen))
  placed = place_split(
    {name: array[order] for name, array in arrays.items()}, recipe.devices
  )
  pieces = in_memory(recipe, placed, len(chosen), recipe.group_size or 1)
  return Calibration(recipe, pieces, compiling)


class Measurements:
  """The signals that cost a pass over data, for the rules that need them.

  `full_*` go over the whole training split, `subset_*` over a fixed part of it,
  in evaluation mode with calibrated statistics.
  """

  def __init__(
    self,
    recipe: Recipe,
    train_arrays: Data | None,
    skipped: Skipped,
    compiling: Compiling,
    *,
    has_statistics: bool,
  ):
    """Makes only what `recipe.needs` asks for.

    No rule reads metrics of a whole split, so nothing is gathered for them.

    Args:
      recipe: what is trained.
      train_arrays: the training split on the devices; None if it is a stream.
      skipped: is told of records that cannot be read.
      compiling: makes what is entered while a program is compiled.
      has_statistics: whether the model has any, such as BatchNorm's.
    """
    recipe = recipe._replace(task=recipe.task._replace(whole=None))
    self._recipe, self._skipped = recipe, skipped
    self._needs = recipe.needs
    sources = {
      'full': lambda: whole_split(recipe, 0, train_arrays, skipped),
      'subset': self._subset,
    }
    self._evaluators = {
      source: Evaluator(recipe, make(), compiling)
      for source, make in sources.items()
      if any(name.startswith(f'{source}_') for name in self._needs)
    }
    self._calibration = None
    if self._evaluators and has_statistics:
      self._calibration = make_calibration(recipe, skipped, compiling)

  def _subset(self) -> Pieces:
    chosen, arrays = drawn(self._recipe, self._skipped, 0)
    arrays = place_split(arrays, self._recipe.devices)
    return in_memory(self._recipe, arrays, len(chosen))

  def take(self, state: State) -> tuple[dict[str, float], int]:
    """The signals by name, and how many examples were evaluated for them."""
    values, cost = {}, 0
    if self._calibration is not None:
      state = self._calibration(state)
      cost += self._calibration.examples
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

  def close(self) -> None:
    """Ends what reads between measurements."""
    for evaluator in self._evaluators.values():
      evaluator.close()
