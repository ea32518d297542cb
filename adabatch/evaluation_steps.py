"""Pure per-device bodies of measurements over a split.

Each takes a chunk of the split, sums over its examples and the devices, and
adds that to running sums.
"""

from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from adabatch import contract
from adabatch.models import ROWS_STREAM, Rows
from adabatch.steps import DATA_AXIS, Data, Load, varying, weighted_sum
from adabatch.tasks import Batch, Task


def _chunk(load: Load, data: Data, first, slots: int, limit: int):
  """The examples [first, first + slots) and what each of them counts."""
  indices = first + jnp.arange(slots, dtype=jnp.int32)
  real = (indices < limit).astype(jnp.float32)
  batch = load(data, jnp.minimum(indices, limit - 1), None)
  return batch, real * batch.get('weight', 1.0)


def _outputs(
  model: nn.Module, task: Task, params, model_state, batch: Batch
) -> jax.Array:
  """The network in evaluation mode."""
  variables = {'params': params, **model_state}
  # Without `mutable` the result is the output alone, never a pair.
  return cast(
    jax.Array, model.apply(variables, task.inputs(batch), train=False)
  )


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
    scalars; `first` the first example of this device's share, int32 [].
  """

  def body(params, model_state, data, sums, first):
    batch, weights = _chunk(load, data, first, slots, limit)
    outputs = _outputs(model, task, params, model_state, batch)
    values = task.metrics(outputs, batch)
    chunk = {
      name: weighted_sum(contract.per_example(value, weights, name), weights)
      for name, value in values.items()
    }
    chunk = jax.lax.psum((chunk, jnp.sum(weights)), DATA_AXIS)
    return jax.tree.map(jnp.add, sums, chunk)

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
      losses = task.metrics(outputs, batch)['loss']
      return weighted_sum(
        contract.per_example(losses, weights, 'loss'), weights
      )

    gradient = jax.grad(loss_sum)(varying(params))
    chunk = jax.lax.psum((gradient, jnp.sum(weights)), DATA_AXIS)
    return jax.tree.map(jnp.add, sums, chunk)

  return body


def calibration_step(
  model: nn.Module, task: Task, load: Load, slots: int, limit: int
):
  """The body that adds one chunk's statistics, as training would take them.

  A moving average becomes m old + (1 - m) s in training mode, s the statistics
  of the examples at hand. Two old values tell m and s, whatever the network
  calls them; the compiler sees that all else is the same. A variable that is no
  moving average (m = 1) stays as it is.

  Arguments as for `evaluation_step`; `sums` is a pair, the statistics s times
  the weights, with the structure of the model state, and the sum of the
  weights. Groups of BatchNorm are of consecutive examples of a device.
  """

  def body(params, model_state, data, sums, first):
    batch, weights = _chunk(load, data, first, slots, limit)
    weight = jnp.sum(weights)
    places = first + jnp.arange(slots, dtype=jnp.int32)
    rows = Rows((weights > 0).astype(jnp.float32), places)
    key = jax.random.key(0)

    def after(old):
      _, new = contract.apply_in_training(
        model,
        {'params': params, **old},
        task.inputs(batch),
        train=True,
        rows=rows,
        mutable=list(old),
        rngs={'dropout': jax.random.fold_in(key, first), ROWS_STREAM: key},
      )
      return dict(new)

    zeros = jax.tree.map(jnp.zeros_like, model_state)
    from_zero = after(zeros)
    # As large as what is added to it, so that little is lost to rounding.
    old = jax.tree.map(lambda x: (1 + jnp.abs(x)).astype(x.dtype), from_zero)
    from_old = after(old)

    def statistics(value, zero, old, new):
      if not jnp.issubdtype(value.dtype, jnp.inexact):
        return value.astype(jnp.float32)
      share = 1 - (new - zero) / old
      known = jnp.abs(share) > 1e-5
      return jnp.where(known, zero / jnp.where(known, share, 1), value)

    chunk = jax.tree.map(statistics, model_state, from_zero, old, from_old)
    chunk = jax.tree.map(lambda x: jnp.where(weight > 0, weight * x, 0), chunk)
    chunk = jax.lax.psum((chunk, weight), DATA_AXIS)
    return jax.tree.map(jnp.add, sums, chunk)

  return body
