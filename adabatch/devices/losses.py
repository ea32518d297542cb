"""The loss of each example of a split, to compare models example by example."""

from contextlib import nullcontext
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adabatch.devices import evaluation_steps
from adabatch.devices.evaluation import Sums
from adabatch.devices.gathered import Gathered
from adabatch.devices.pieces import Pieces
from adabatch.devices.programs import Compiling
from adabatch.devices.recipe import Recipe
from adabatch.devices.replicas import State
from adabatch.models.scores import takes_scores
from adabatch.models.tasks import Batch, Task, Whole, evaluation_metrics


class ExampleLosses(NamedTuple):
  """Of the examples that could be read, always in the same order.

  Attributes:
    losses: float32 [N], in evaluation mode.
    weights: what each counts, float32 [N]; of text, how much of a row is real.
  """

  losses: np.ndarray
  weights: np.ndarray

  @property
  def mean(self) -> float:
    """What an evaluation calls the loss.

    >>> ExampleLosses(np.array([1.0, 4.0]), np.array([1.0, 0.5])).mean
    2.0
    """
    return float(
      np.average(self.losses.astype(np.float64), weights=self.weights)
    )


def _keeping_losses(task: Task) -> Task:
  """A task of which nothing but the loss is looked at, of each example."""

  @takes_scores  # or not: `evaluation_metrics` asks
  def gather(outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    losses = evaluation_metrics(task, outputs, batch)['loss']
    weights = batch.get('weight', jnp.ones_like(losses))
    return {'loss': losses, 'weight': weights.astype(jnp.float32)}

  return task._replace(whole=Whole(gather, lambda everything: {}))


class Losses:
  """Evaluates a split, each example counted once.

  Attributes:
    examples: how many there are.
  """

  def __init__(
    self, recipe: Recipe, pieces: Pieces, compiling: Compiling = nullcontext
  ):
    """`pieces` are those of the split."""
    self.examples = pieces.examples
    task = _keeping_losses(recipe.task)
    self._names = task.metric_names
    body = evaluation_steps.evaluation_step(
      recipe.model, task, recipe.inputs.load, pieces.slots, pieces.limit
    )
    self._sums = Sums(body, recipe, pieces, compiling)

  def take(self, state: State) -> ExampleLosses:
    """Of the parameters and statistics of a state."""
    zeros = dict.fromkeys(self._names, np.float32(0)), np.float32(0)
    gathered = Gathered(self.examples)
    self._sums(state, zeros, gathered)
    found = gathered.all()
    return ExampleLosses(found['loss'], found['weight'])
