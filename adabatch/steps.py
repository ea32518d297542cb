"""Pure per-device bodies: one training update, one evaluation, one gradient.

A body sees its own device's share and agrees with the others through sums over
one named axis, so the same function runs under `shard_map` and `pmap`.
Everything is summed over examples of weight 1 and divided once by their global
number: k microbatches on d devices equal one big batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from adabatch import gradient_noise
from adabatch.buckets import Bucket
from adabatch.data import position_halves
from adabatch.tasks import Batch, Task
from adabatch.train_state import TrainState

DATA_AXIS = 'data'

Data = dict[str, jax.Array]
# (data, indices [B], positions as two uint32 words [B] or None) -> batch.
# Positions key the augmentation; None asks for the plain examples.
Load = Callable[[Data, jax.Array, tuple[jax.Array, jax.Array] | None], Batch]


class StepBatch(NamedTuple):
  """What `count` updates of equal batch size need beyond state and data.

  Two small integer arrays, because placing an array costs more time than what
  is in it; the numbers in them are those of `pack`.

  Attributes:
    rows: int32 [updates, 1 + slots per device], sharded over devices: whether
      this process was asked to stop, then which example is in each slot.
    header: int32 [updates, 6], the same on every device: how many of the
      updates to run, then the bits of the other numbers.
  """

  rows: Any
  header: Any


def pack(
  indices: np.ndarray,
  *,
  count: int,
  position: int,
  batch_size: int,
  damping: float,
  stop: bool,
) -> StepBatch:
  """The host's side of a batch, rows of all devices.

  Args:
    indices: which examples, int [devices, updates, slots per device].
    count: how many of the updates to run, from the first.
    position: place of the first slot in the data order, which is also the
      number of examples trained on so far.
    batch_size: real examples in each batch; slots from there on are empty.
    damping: factor on the learning rate.
    stop: whether this process was asked to stop.
  """
  devices, updates, slots = indices.shape
  rows = np.empty((devices, updates, 1 + slots), np.int32)
  rows[..., 0] = stop
  rows[..., 1:] = indices
  positions = position + batch_size * np.arange(updates, dtype=np.int64)
  header = np.empty((updates, 6), np.int32)
  header[:, 0] = count
  for column, half in enumerate(position_halves(positions), start=1):
    header[:, column] = half.view(np.int32)
  numbers = np.empty((updates, 3), np.float32)
  numbers[:, 0], numbers[:, 1] = batch_size, damping
  numbers[:, 2] = positions
  header[:, 3:] = numbers.view(np.int32)
  return StepBatch(rows, header)


class _Batch(NamedTuple):
  """The device's side: indices int32 [slots per device], stop int32 [],
  position uint32 [2] (high and low word), the others float32 []."""

  indices: Any
  stop: Any
  position: Any
  batch_size: Any
  damping: Any
  examples: Any


def _unpack(rows: jax.Array, header: jax.Array) -> _Batch:
  """One update's numbers from its row and header."""
  bits = jax.lax.bitcast_convert_type
  return _Batch(
    rows[1:],
    rows[0],
    bits(header[1:3], jnp.uint32),
    *bits(header[3:], jnp.float32),
  )


class StepSignals(NamedTuple):
  """What one update reports: floats, the same on every device.

  A program returns them in this order as one float32 array [updates, 6], which
  is fetched at once.

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
  return jax.tree.map(lambda x: jax.lax.pcast(x, DATA_AXIS, to='varying'), tree)


def _zeros(shapes):
  return _varying(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))


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
) -> Callable[[TrainState, Data, StepBatch], tuple[TrainState, jax.Array]]:
  """The body of one or several updates in one bucket.

  A body maps (state, data, batch) to (state, reports): reports [updates, 6]
  hold StepSignals, and zeros after the last update that ran. Several updates
  run in a loop whose length is a number in the batch, so that one program does
  any number of them, with the same result to the bit.

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
      # `where` and not a product: 0 times an infinite loss is NaN.
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
      model_state=jax.tree.map(lambda x: x * weight, dict(new_model_state)),
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

  def update(state: TrainState, data: Data, batch: _Batch):
    local = _varying(
      (
        state.params,
        state.model_state,
        data,
        batch.position,
        batch.batch_size,
      )
    )
    params, model_state, data, position, batch_size = local
    sums = accumulate(
      params,
      model_state,
      data,
      batch._replace(position=position, batch_size=batch_size),
    )
    sums, stop = jax.lax.psum((sums, batch.stop), DATA_AXIS)

    def mean(total):
      return total / batch.batch_size

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
      previous_gradient=(None if state.previous_gradient is None else gradient),
    )
    signals = StepSignals(
      loss=mean(sums.loss),
      gradient_norm_squared=norm_squared,
      learning_rate=learning_rate * batch.damping,
      trace_covariance=estimate.trace_covariance,
      squared_norm=estimate.squared_norm,
      stop=stop.astype(jnp.float32),
    )
    return new_state, jnp.stack(signals)

  def body(state: TrainState, data: Data, batch: StepBatch):
    updates = batch.rows.shape[0]
    if updates == 1:
      state, report = update(
        state, data, _unpack(batch.rows[0], batch.header[0])
      )
      return state, report[None]

    def one(i, carry):
      state, reports = carry
      state, report = update(
        state, data, _unpack(batch.rows[i], batch.header[i])
      )
      return state, reports.at[i].set(report)

    reports = jnp.zeros((updates, len(StepSignals._fields)))
    return jax.lax.fori_loop(0, batch.header[0, 0], one, (state, reports))

  return body


def _chunk(load: Load, data: Data, first, slots: int, limit: int):
  """The examples [first, first + slots) and which of them there are."""
  indices = first + jnp.arange(slots, dtype=jnp.int32)
  weights = (indices < limit).astype(jnp.float32)
  return load(data, jnp.minimum(indices, limit - 1), None), weights


def _outputs(model: nn.Module, params, model_state, batch: Batch) -> jax.Array:
  """The network in evaluation mode."""
  variables = {'params': params, **model_state}
  # Without `mutable` the result is the output alone, never a pair.
  return cast(jax.Array, model.apply(variables, batch['image'], train=False))


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
    outputs = _outputs(model, params, model_state, batch)
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
      outputs = _outputs(model, params, _varying(model_state), batch)
      losses = task.metrics(outputs, batch)['loss']
      return jnp.sum(jnp.where(weights > 0, losses, 0.0))

    gradient = jax.grad(loss_sum)(_varying(params))
    return jax.tree.map(jnp.add, sums, jax.lax.psum(gradient, DATA_AXIS))

  return body
