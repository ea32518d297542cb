"""How noisy gradients are at one point, with the error of what is said."""

import math
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adabatch.devices import evaluation_steps
from adabatch.devices.in_rows import place_split
from adabatch.devices.mesh import BY_DEVICE, WHOLE
from adabatch.devices.pieces import Pieces, Skipped, drawn, resident_pieces
from adabatch.devices.programs import CompiledOnce, Compiling
from adabatch.devices.recipe import Recipe
from adabatch.devices.replicas import State
from adabatch.optim.gradient_noise import squared_norm

BATCHES = 32  # at least, into which the examples are put


class NoiseScale(NamedTuple):
  """tr Sigma / |G|^2, in examples.

  Attributes:
    value: its estimate; NaN where |G|^2 is not told from 0.
    low, high: ends of its interval of 95 %; `high` is infinite where |G|^2 may
      be 0.
    trace_covariance, squared_norm: the estimates of both.
  """

  value: float
  low: float
  high: float
  trace_covariance: float
  squared_norm: float


def noise_scale(
  norms: np.ndarray, products: np.ndarray, whole: float, size: float
) -> NoiseScale:
  """From gradients of batches of one size, which share no example.

      tr Sigma = b (sum_j |g_j|^2 - J |g|^2) / (J - 1)
      |G|^2    = |g|^2 - tr Sigma / (J b)

  The interval is that of the jackknife over the batches, in the logarithm.

  Args:
    norms: |g_j|^2 of each batch, [J].
    products: g_j . g with the mean g of all, [J].
    whole: |g|^2.
    size: b, examples of a batch.

  Returns:
    The noise scale. Both estimates are unbiased, and their ratio nearly so.

  Raises:
    ValueError: of fewer than three batches.

  >>> g = np.random.default_rng(0).normal(1.0, 2.0, (512, 30))  # 4 / 1
  >>> mean = g.mean(0)
  >>> found = noise_scale((g**2).sum(1), g @ mean, mean @ mean, 1)
  >>> f'{found.value:.1f} {found.low < 4 < found.high}'
  '3.9 True'
  """
  squares, dots = np.asarray(norms, float), np.asarray(products, float)
  count = len(squares)
  if count < 3:
    raise ValueError(f'a noise scale of {count} batches has no error: give 3')

  def estimate(total: Any, mean: Any, n: int) -> tuple[Any, Any]:
    trace = size * (total - n * mean) / (n - 1)
    return trace, mean - trace / (n * size)

  trace, norm = estimate(squares.sum(), whole, count)
  without = (count**2 * whole - 2 * count * dots + squares) / (count - 1) ** 2
  traces, rests = estimate(squares.sum() - squares, without, count - 1)
  trace, norm = float(trace), float(norm)
  # A trace that is 0 but for rounding says that there is no noise.
  if trace <= 1e-6 * size * whole:
    return NoiseScale(0.0, 0.0, 0.0, trace, norm)

  def error(values: np.ndarray) -> float:
    spread = np.sum((values - values.mean()) ** 2)
    return math.sqrt((count - 1) / count * spread)

  if norm <= 2 * error(rests):
    # Not told from 0: the noise scale has a lower end alone.
    most = norm + 2 * error(rests)
    least = max(trace - 2 * error(traces), 0.0)
    value = trace / norm if norm > 0 else math.nan
    low = least / most if most > 0 else math.inf
    return NoiseScale(value, low, math.inf, trace, norm)
  ratio = trace / norm
  half = 1.96 * error(np.log(np.abs(traces / rests)))
  low, high = ratio * math.exp(-half), ratio * math.exp(half)
  return NoiseScale(ratio, low, high, trace, norm)


def second_moment(opt_state: Any) -> Any:
  """Adam's, corrected for its start; None of an optimizer without one.

  >>> import optax
  >>> tx = optax.scale_by_adam(b2=0.5)
  >>> _, state = tx.update(jnp.array([2.0]), tx.init(jnp.ones(1)))
  >>> float(second_moment((state,))(0.5)[0])
  4.0
  """
  found = [
    node
    for node in jax.tree.leaves(
      opt_state, is_leaf=lambda n: hasattr(n, 'nu') and hasattr(n, 'mu')
    )
    if hasattr(node, 'nu')
  ]
  if len(found) != 1:
    return None
  node = found[0]

  def corrected(beta2: float) -> Any:
    weight = getattr(node, 'nu_weight', None)
    if weight is None:
      weight = 1 - jnp.asarray(beta2, jnp.float32) ** node.count
    return jax.tree.map(lambda v: v / weight, node.nu)

  return corrected


class PointNoise:
  """Gradients of batches of the training split, in evaluation mode.

  They are made twice, once for their mean and once for what each has in common
  with it, so that no more than two lie in memory.

  Attributes:
    examples: that are gone over.
  """

  def __init__(
    self,
    recipe: Recipe,
    examples: int,
    skipped: Skipped,
    compiling: Compiling = nullcontext,
  ):
    """Draws so many examples, or as many as there are."""
    chosen, arrays = drawn(recipe, skipped, 2, examples)
    order = np.argsort(np.argsort(chosen))
    arrays = {name: array[order] for name, array in arrays.items()}
    devices = recipe.devices
    batches = min(BATCHES, len(chosen))
    slots = max(len(chosen) // (batches * devices.size), 1)
    # More batches where a device cannot take so many examples at once.
    slots = min(slots, recipe.evaluated_at_once)
    self._size = slots * devices.size
    whole = len(chosen) // self._size * self._size
    self._pieces: Pieces = resident_pieces(
      place_split(arrays, devices), whole, devices, slots
    )
    self.examples = 2 * whole
    self._place = devices.placer()
    body = evaluation_steps.gradient_step(
      recipe.model, recipe.task, recipe.inputs.load, slots, whole
    )
    program = devices.spmd(
      body,
      arguments=(WHOLE, WHOLE, self._pieces.where, WHOLE, BY_DEVICE),
      donate=(3,),
    )
    self._gradient = CompiledOnce(program, compiling)
    self._products = CompiledOnce(devices.jit(_products), compiling)
    self._add = CompiledOnce(devices.jit(_add), compiling)

  def take(self, state: State, weights: Any = None) -> NoiseScale | None:
    """The noise scale of the gradient times `weights`, entry by entry.

    Args:
      state: of one model.
      weights: like the parameters; None: 1.

    Returns:
      None where there are fewer than three batches.
    """
    if weights is None:
      weights = jax.tree.map(jnp.ones_like, state.params)
    total, count = None, 0
    for gradient in self._gradients(state):
      total = gradient if total is None else self._add.run(total, gradient)
      # Those to come must not pile up in the devices' memory.
      jax.block_until_ready(total)
      count += 1
    if count < 3:
      return None
    mean = jax.tree.map(lambda x: x / count, total)
    rows = [
      jax.device_get(self._products.run(gradient, mean, weights))
      for gradient in self._gradients(state)
    ]
    found = np.asarray(rows, np.float64)
    return noise_scale(found[:, 0], found[:, 1], found[0, 2], self._size)

  def _gradients(self, state: State) -> Any:
    for arrays, first in self._pieces.open():
      zeros = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), (state.params, np.float32(0))
      )
      total, weight = self._gradient.run(
        state.params, state.model_state, arrays, self._place(zeros), first
      )
      yield jax.tree.map(lambda g, w=weight: g / w, total)


def _add(a: Any, b: Any) -> Any:
  return jax.tree.map(jnp.add, a, b)


def _products(gradient: Any, mean: Any, weights: Any) -> jax.Array:
  """|g|^2, g . mean and |mean|^2, of both times the weights."""
  a, b = (
    jax.tree.map(lambda x, w: (x * w).astype(jnp.float32), tree, weights)
    for tree in (gradient, mean)
  )
  dot = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
  return jnp.stack(
    [squared_norm(a), jnp.sum(jnp.stack(jax.tree.leaves(dot))), squared_norm(b)]
  )
