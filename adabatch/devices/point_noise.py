"""How noisy gradients are at one point, with the error of what is said."""

import functools
import math
from collections.abc import Iterable, Mapping
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
from adabatch.devices.state import TrainState
from adabatch.optim.gradient_noise import squared_norm
from adabatch.optim.noise_norms import NoiseNorm

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
    norms: Mapping[str, NoiseNorm],
    compiling: Compiling = nullcontext,
  ):
    """Draws so many examples, or as many as there are; `norms` are l2."""
    self._norms = dict(norms)
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
      place_split(arrays, devices), max(whole, 1), devices, slots
    )
    # Of fewer examples than devices nothing is told.
    self._some = whole > 0
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
    products = functools.partial(_products, tuple(norms.values()))
    self._products = CompiledOnce(devices.jit(products), compiling)
    self._add = CompiledOnce(devices.jit(_add), compiling)

  def take(self, state: TrainState) -> dict[str, NoiseScale | None]:
    """The noise scale in each norm, of one model.

    Returns:
      By name; None where there are fewer than three batches.
    """
    total, count = None, 0
    if not self._some:
      return dict.fromkeys(self._norms)
    for gradient in self._gradients(state):
      total = gradient if total is None else self._add.run(total, gradient)
      # Those to come must not pile up in the devices' memory.
      jax.block_until_ready(total)
      count += 1
    if count < 3:
      return dict.fromkeys(self._norms)
    mean = jax.tree.map(lambda x: x / count, total)
    rows = [
      jax.device_get(self._products.run(gradient, mean, state.opt_state))
      for gradient in self._gradients(state)
    ]
    found = np.asarray(rows, np.float64)
    return {
      name: noise_scale(one[:, 0], one[:, 1], one[0, 2], self._size)
      for name, one in zip(self._norms, found.swapaxes(0, 1), strict=True)
    }

  def _gradients(self, state: TrainState) -> Any:
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


def _products(
  norms: Iterable[NoiseNorm], gradient: Any, mean: Any, opt_state: Any
) -> jax.Array:
  """|g|^2, g . mean and |mean|^2 as each norm sees them, [norms, 3]."""

  def of(norm: NoiseNorm) -> jax.Array:
    look = norm.view(opt_state)
    a, b = look(gradient), look(mean)
    dots = jax.tree.map(_dot, a, b)
    dot = sum(jax.tree.leaves(dots), start=jnp.float32(0))
    return jnp.stack([squared_norm(a), dot, squared_norm(b)])

  return jnp.stack([of(norm) for norm in norms])


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
  """Real part of a . b."""
  return jnp.sum((a * b.conj()).real.astype(jnp.float32))
