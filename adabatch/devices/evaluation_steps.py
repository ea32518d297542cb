"""Pure per-device bodies of measurements over a split.

Each takes a chunk of the split, sums over its examples and the devices, and
adds that to running sums.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adabatch.data.source import Data, Load
from adabatch.devices.mesh import DATA_AXIS
from adabatch.devices.step import varying, weighted_sum
from adabatch.models import ROWS_STREAM, Rows, contract
from adabatch.models.scores import fitting
from adabatch.models.tasks import Batch, Task, evaluation_metrics


def _chunk(load: Load, data: Data, first, slots: int, limit: int):
  """The examples [first, first + slots) and what each of them counts."""
  indices = first + jnp.arange(slots, dtype=jnp.int32)
  real = (indices < limit).astype(jnp.float32)
  batch = load(data, jnp.minimum(indices, limit - 1), None)
  return batch, real * batch.get('weight', 1.0)


def _outputs(
  model: nn.Module, task: Task, params, model_state, batch: Batch
) -> Any:
  """The network in evaluation mode."""
  variables = {'params': params, **model_state}
  # Without `mutable` the result is the output alone, never a pair.
  return contract.apply(model, variables, task.inputs(batch), train=False)


def evaluation_step(
  model: nn.Module, task: Task, load: Load, slots: int, limit: int
):
  """The body that adds one chunk's metrics to running sums.

  Args:
    model: called in evaluation mode.
    task: metrics of examples.
    load: makes a batch from data on the device.
    slots: examples that one device evaluates in a call.
    limit: examples to evaluate, from the first.

  Returns:
    A body (params, model_state, data, sums, first) -> sums: `sums` is a pair, a
    dict with a weighted sum for each metric and the sum of the weights, float32
    scalars; `first` the first example of this device's share, int32 []. Of a
    task with metrics of the whole split, -> (sums, (gathered, weights)), the
    latter of the examples of all devices, [devices * slots, ...].
  """

  def body(params, model_state, data, sums, first):
    batch, weights = _chunk(load, data, first, slots, limit)
    outputs = _outputs(model, task, params, model_state, batch)
    values = evaluation_metrics(task, outputs, batch)
    chunk = {
      name: weighted_sum(contract.per_example(value, weights, name), weights)
      for name, value in values.items()
    }
    chunk = jax.lax.psum((chunk, jnp.sum(weights)), DATA_AXIS)
    sums = jax.tree.map(jnp.add, sums, chunk)
    if task.whole is None:
      return sums
    outputs = fitting(task.whole.gather, outputs)
    kept = contract.gathered(task.whole.gather(outputs, batch), weights)
    return sums, jax.lax.all_gather(
      (kept, weights), DATA_AXIS, tiled=True, to='invarying'
    )

  return body


def gradient_step(
  model: nn.Module, task: Task, load: Load, slots: int, limit: int
):
  """The body that adds one chunk's gradient of the evaluation-mode loss.

  Arguments as for `evaluation_step`; `sums` is a pair, the summed gradient with
  the structure of the parameters and the sum of the weights.
  """

  def body(params, model_state, data, sums, first):
    batch, weights = _chunk(load, data, first, slots, limit)

    def loss_sum(params):
      outputs = _outputs(model, task, params, varying(model_state), batch)
      losses = evaluation_metrics(task, outputs, batch)['loss']
      return weighted_sum(
        contract.per_example(losses, weights, 'loss'), weights
      )

    gradient = jax.grad(loss_sum)(varying(params))
    chunk = jax.lax.psum((gradient, jnp.sum(weights)), DATA_AXIS)
    return jax.tree.map(jnp.add, sums, chunk)

  return body


def calibration_step(
  model: nn.Module,
  task: Task,
  load: Load,
  slots: int,
  limit: int,
  *,
  devices: int,
  rng: jax.Array,
):
  """The body that adds what one chunk makes of running statistics.

  A running statistic is affine in its old value, s' = m s + (1 - m) b, with b
  that of the batch. From what becomes of zeros and of ones both m and b follow:
  b is what the statistics would be after many updates that changed no
  parameter. XLA computes b once for both.

  Arguments as for `evaluation_step`; `devices` are those that share a chunk,
  `rng` is for dropout. `sums` is a triple: the summed statistics from zeros and
  from ones, both with the structure of `model_state`, and the sum of the
  weights.
  """

  def body(params, model_state, data, sums, first):
    batch, weights = _chunk(load, data, first, slots, limit)
    weight = jnp.sum(weights)
    rows = Rows(
      weights=(weights > 0).astype(jnp.float32),
      places=first + jnp.arange(slots, dtype=jnp.int32),
      devices=devices,
      axis=DATA_AXIS,
    )

    def from_value(value):
      start = jax.tree.map(lambda x: jnp.full_like(x, value), model_state)
      _, new = contract.apply_in_training(
        model,
        {'params': params, **start},
        task.inputs(batch),
        train=True,
        rows=rows,
        mutable=list(model_state),
        rngs={'dropout': jax.random.fold_in(rng, first), ROWS_STREAM: rng},
      )
      return jax.tree.map(lambda x: x * weight, dict(new))

    chunk = jax.lax.psum((from_value(0), from_value(1), weight), DATA_AXIS)
    return jax.tree.map(jnp.add, sums, chunk)

  return body


def calibrated(model_state: Any, sums: Any) -> Any:
  """The statistics of the batches in `sums`; see `calibration_step`.

  A variable that is no running statistic, because training leaves it as it is
  or it is a whole number, keeps its value.
  """
  zeros, ones, weight = sums

  def one(old, zero, one):
    if not jnp.issubdtype(old.dtype, jnp.floating):
      return old
    new = 1 - (one - zero) / weight  # 1 - m
    return jnp.where(new > 1e-6, zero / weight / jnp.maximum(new, 1e-6), old)

  return jax.tree.map(one, model_state, zeros, ones)
