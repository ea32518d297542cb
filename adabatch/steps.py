"""Pure per-device bodies: one training update, one evaluation, one gradient.

A body sees its own device's share and agrees with the others through sums over
one named axis, so the same function runs under `shard_map` and `pmap`.
Everything is summed over examples of weight 1 and divided once by their global
number: k microbatches on d devices equal one big batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from adabatch import gradient_noise
from adabatch.buckets import Bucket
from adabatch.tasks import Batch, Task
from adabatch.train_state import TrainState

DATA_AXIS = 'data'

Data = dict[str, jax.Array]
# (data, indices [B], positions as two uint32 words [B] or None) -> batch.
# Positions key the augmentation; None asks for the plain examples.
Load = Callable[[Data, jax.Array, tuple[jax.Array, jax.Array] | None], Batch]


class StepBatch(NamedTuple):
  """What one update needs beyond the state and the resident data.

  Attributes:
    indices: which examples, int32 [slots per device]; sharded over devices.
    stop: 1 where this process was asked to stop, float32 []; sharded, so that
      all processes learn of it in the same update.
    position: position of the first slot in the data order, two uint32 words
      (high, low), uint32 [2].
    batch_size: real examples in the batch, float32 []; slots from there on are
      empty.
    damping: factor on the learning rate, float32 [].
    examples: examples trained on before this update, float32 [].
  """

  indices: Any
  stop: Any
  position: Any
  batch_size: Any
  damping: Any
  examples: Any


class StepSignals(NamedTuple):
  """What one update reports: the same float32 scalars on every device.

  Attributes:
    loss: mean training loss over the batch, before the update.
    gradient_norm_squared: |g|^2 of the mean gradient.
    learning_rate: effective learning rate, damping included.
    trace_covariance: estimate of tr Sigma; NaN where there is none.
    squared_norm: estimate of |G|^2; NaN where there is none.
    stop: number of devices whose process was asked to stop.
  """

  loss: Any
  gradient_norm_squared: Any
  learning_rate: Any
  trace_covariance: Any
  squared_norm: Any
  stop: Any


def _varying(tree):
  """Marks replicated values as differing by device.

  Without it, differentiation inside `shard_map` sums gradients over the axis by
  itself, and per-device gradients (for the noise scale) could not be had.
  """
  return jax.tree.map(
    lambda x: jax.lax.pcast(x, DATA_AXIS, to='varying'), tree
  )


def _zeros(shapes):
  return _varying(
    jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  )


def _positions(first: jax.Array, slots: jax.Array):
  """The 64-bit positions first + slots, as (high, low) uint32 words."""
  low = first[1] + slots.astype(jnp.uint32)
  carry = (low < first[1]).astype(jnp.uint32)
  return first[0] + carry, low


class _Sums(NamedTuple):
  """What microbatches add up to, on one device and then over all."""

  loss: Any
  gradient: Any
  model_state: Any
  norms: Any


def train_step(
  model: nn.Module,
  task: Task,
  tx: optax.GradientTransformationExtraArgs,
  load: Load,
  bucket: Bucket,
  *,
  rng: jax.Array,
  estimate_noise: bool = False,
  unroll: int = 1,
) -> Callable[[TrainState, Data, StepBatch], tuple[TrainState, StepSignals]]:
  """The body of one update in one bucket.

  Args:
    model: called as `model.apply(variables, image, train=, weights=)`.
    task: losses of examples.
    tx: optimizer; its update takes `batch_size`, `damping`, `examples` and
      `gradient_noise`, and its state holds `learning_rate`.
    load: makes a batch from resident data on the device.
    bucket: microbatches, accumulation steps and devices.
    rng: key from which dropout keys are derived.
    estimate_noise: whether to estimate the gradient noise.
    unroll: microbatches in one iteration of the accumulating loop.
  """

  def microbatch(params, model_state, data, batch, indices, slots) -> _Sums:
    weights = (slots < batch.batch_size).astype(jnp.float32)
    weight = jnp.sum(weights)
    high, low = _positions(batch.position, slots)
    examples = load(data, indices, (high, low))
    dropout = jax.random.fold_in(jax.random.fold_in(rng, high[0]), low[0])

    def loss_sum(params):
      outputs, new_model_state = model.apply(
        {'params': params, **model_state},
        examples['image'],
        train=True,
        weights=weights,
        mutable=list(model_state),
        rngs={'dropout': dropout},
      )
      losses = task.loss(outputs, examples)
      # `where` and not a product: an empty slot must not spread a NaN.
      total = jnp.sum(jnp.where(weights > 0, losses, 0.0))
      return total, new_model_state

    (loss, new_model_state), gradient = jax.value_and_grad(
      loss_sum, has_aux=True
    )(params)
    return _Sums(
      loss=loss,
      gradient=gradient,
      # Every microbatch starts from the same statistics, so their weighted
      # mean is one update of the running statistics, however it is split.
      model_state=jax.tree.map(
        lambda x: x * weight, dict(new_model_state)
      ),
      norms=(
        gradient_noise.of_microbatch(gradient, weight)
        if estimate_noise
        else None
      ),
    )

  def accumulate(params, model_state, data, batch) -> _Sums:
    first = jax.lax.axis_index(DATA_AXIS) * bucket.slots_per_device
    slots = first + jnp.arange(bucket.slots_per_device, dtype=jnp.int32)
    if bucket.accumulation_steps == 1:
      return microbatch(params, model_state, data, batch, batch.indices, slots)
    shape = (bucket.accumulation_steps, bucket.microbatch_size)

    def add(sums, share):
      # One microbatch after the other, also where the loop is unrolled: that
      # is what keeps the memory of one microbatch.
      sums, share = jax.lax.optimization_barrier((sums, share))
      new = microbatch(params, model_state, data, batch, *share)
      return jax.tree.map(jnp.add, sums, new), None

    shares = (batch.indices.reshape(shape), slots.reshape(shape))
    zeros = _zeros(
      jax.eval_shape(
        lambda: microbatch(
          params, model_state, data, batch, shares[0][0], shares[1][0]
        )
      )
    )
    return jax.lax.scan(add, zeros, shares, unroll=unroll)[0]

  def noise(sums, gradient, norm_squared, state, batch):
    if not estimate_noise:
      return gradient_noise.unknown()
    if bucket.devices * bucket.accumulation_steps > 1:
      return gradient_noise.from_microbatches(
        sums.norms, norm_squared, batch.batch_size
      )
    return gradient_noise.from_difference(
      gradient, state.previous_gradient, batch.batch_size
    )

  def body(state: TrainState, data: Data, batch: StepBatch):
    params, model_state, local = _varying(
      (state.params, state.model_state, (data, batch._replace(
        indices=None, stop=None)))
    )
    data, local = local
    local = local._replace(indices=batch.indices)
    sums = accumulate(params, model_state, data, local)
    sums, stop = jax.lax.psum((sums, batch.stop), DATA_AXIS)
    mean = lambda x: x / batch.batch_size  # noqa: E731
    gradient = jax.tree.map(mean, sums.gradient)
    norm_squared = gradient_noise.squared_norm(gradient)
    estimate = noise(sums, gradient, norm_squared, state, batch)
    updates, opt_state = tx.update(
      gradient,
      state.opt_state,
      state.params,
      batch_size=batch.batch_size,
      damping=batch.damping,
      examples=batch.examples,
      gradient_noise=estimate,
    )
    learning_rate = optax.tree_utils.tree_get(opt_state, 'learning_rate')
    new_state = TrainState(
      params=optax.apply_updates(state.params, updates),
      model_state=jax.tree.map(mean, sums.model_state),
      opt_state=opt_state,
      previous_gradient=(
        None if state.previous_gradient is None else gradient
      ),
    )
    return new_state, StepSignals(
      loss=mean(sums.loss),
      gradient_norm_squared=norm_squared,
      learning_rate=learning_rate * batch.damping,
      trace_covariance=estimate.trace_covariance,
      squared_norm=estimate.squared_norm,
      stop=stop,
    )

  return body


def _chunk(load: Load, data: Data, first, slots: int, limit: int):
  """The examples [first, first + slots) and which of them there are."""
  indices = first + jnp.arange(slots, dtype=jnp.int32)
  weights = (indices < limit).astype(jnp.float32)
  return load(data, jnp.minimum(indices, limit - 1), None), weights


def evaluation_step(
  model: nn.Module, task: Task, load: Load, slots: int, limit: int
):
  """The body that adds one chunk's metrics to running sums.

  Args:
    model: called in evaluation mode.
    task: metrics of examples.
    load: makes a batch from resident data on the device.
    slots: examples that one device evaluates in a call.
    limit: examples to evaluate, from the first.

  Returns:
    A body (params, model_state, data, sums, first) -> sums: `sums` is a dict of
    float32 scalars, a sum for each metric; `first` the first example of this
    device's share, int32 [].
  """

  def body(params, model_state, data, sums, first):
    batch, weights = _chunk(load, data, first, slots, limit)
    outputs = model.apply(
      {'params': params, **model_state}, batch['image'], train=False
    )
    values = task.metrics(outputs, batch)
    chunk = {
      name: jnp.sum(jnp.where(weights > 0, value, 0.0))
      for name, value in values.items()
    }
    chunk = jax.lax.psum(chunk, DATA_AXIS)
    return jax.tree.map(jnp.add, sums, chunk)

  return body


def gradient_step(
  model: nn.Module, task: Task, load: Load, slots: int, limit: int
):
  """The body that adds one chunk's gradient of the evaluation-mode loss.

  Arguments as for `evaluation_step`; `sums` has the structure of the
  parameters.
  """

  def body(params, model_state, data, sums, first):
    batch, weights = _chunk(load, data, first, slots, limit)

    def loss_sum(params):
      outputs = model.apply(
        {'params': params, **_varying(model_state)},
        batch['image'],
        train=False,
      )
      losses = task.metrics(outputs, batch)['loss']
      return jnp.sum(jnp.where(weights > 0, losses, 0.0))

    gradient = jax.grad(loss_sum)(_varying(params))
    return jax.tree.map(jnp.add, sums, jax.lax.psum(gradient, DATA_AXIS))

  return body
