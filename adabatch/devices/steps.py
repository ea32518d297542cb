"""Pure per-device bodies of training updates.

A body sees its own device's share and agrees with the others through sums over
one named axis, so the same function runs under `shard_map` and `pmap`.
Everything is summed over examples of weight 1 and divided once by their global
number: k microbatches on d devices equal one big batch.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from adabatch.controllers.buckets import Bucket
from adabatch.data import position_halves
from adabatch.devices.parallel import DATA_AXIS, REPLICA_AXIS
from adabatch.devices.replicas import SyncState, agree
from adabatch.devices.train_state import TrainState
from adabatch.models import ROWS_STREAM, Rows, contract
from adabatch.models.tasks import Batch, Task
from adabatch.optim import gradient_noise
from adabatch.optim.sync import SyncRule

Data = dict[str, jax.Array]
# (data, indices [B], positions as two uint32 words [B] or None) -> batch.
# Positions key the augmentation; None asks for the plain examples. A batch may
# hold `weight` [B]: what each example counts, 0 for one that could not be read.
Load = Callable[[Data, jax.Array, tuple[jax.Array, jax.Array] | None], Batch]


class StepBatch(NamedTuple):
  """What `count` updates of equal batch size need beyond state and data.

  Two small integer arrays, because placing an array costs more time than what
  is in it; the numbers in them are those of `pack`.

  Attributes:
    rows: int32 [replicas, updates, 2 + slots per replica], each device's own:
      whether this process was asked to stop, the place in the batch of the
      first slot, then which example is in each slot.
    header: int32 [updates, 6], the same on every device: how many of the
      updates to run, then the bits of the other numbers.
  """

  rows: Any
  header: Any


def pack(
  indices: np.ndarray,
  *,
  first: np.ndarray,
  count: int,
  position: int,
  batch_size: int,
  damping: float,
  stop: bool,
) -> StepBatch:
  """The host's side of a batch, rows of all devices.

  Args:
    indices: which examples, int [devices, replicas on each, updates, slots].
    first: place in the batch of the first slot of each replica on each device,
      int [devices, replicas on each].
    count: how many of the updates to run, from the first.
    position: place of the first slot in the data order, which is also the
      number of examples trained on so far.
    batch_size: real examples in each batch; slots from there on are empty.
    damping: factor on the learning rate.
    stop: whether this process was asked to stop.
  """
  *which, updates, slots = indices.shape
  rows = np.empty((*which, updates, 2 + slots), np.int32)
  rows[..., 0] = stop
  rows[..., 1] = first[..., None]
  rows[..., 2:] = indices
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
  """The device's side: indices int32 [slots], stop and first int32 [],
  position uint32 [2] (high and low word), the others float32 []."""

  indices: Any
  stop: Any
  first: Any
  position: Any
  batch_size: Any
  damping: Any
  examples: Any


def _unpack(rows: jax.Array, header: jax.Array) -> _Batch:
  """One update's numbers from its row and header."""
  bits = jax.lax.bitcast_convert_type
  return _Batch(
    rows[2:],
    rows[0],
    rows[1],
    bits(header[1:3], jnp.uint32),
    *bits(header[3:], jnp.float32),
  )


class StepSignals(NamedTuple):
  """What one update reports: floats, the same on all devices of a replica.

  A program returns them in this order as one float32 array [replicas, updates,
  9], which is fetched at once; `combine` makes one of those of all replicas.

  Attributes:
    loss: mean training loss over the batch, before the update.
    gradient_norm_squared: |g|^2 of the mean gradient.
    learning_rate: effective learning rate, damping included.
    trace_covariance: estimate of tr Sigma; NaN where there is none.
    squared_norm: estimate of |G|^2; NaN where there is none.
    stop: number of devices whose process was asked to stop.
    weight: sum of the examples' weights: the batch size, less what could not be
      read.
    replica_squared_distance, mean_squared_distance: see `replicas.Distances`;
      NaN but at a sync.
  """

  loss: Any
  gradient_norm_squared: Any
  learning_rate: Any
  trace_covariance: Any
  squared_norm: Any
  stop: Any
  weight: Any
  replica_squared_distance: Any = math.nan
  mean_squared_distance: Any = math.nan


def combine(reports: np.ndarray) -> StepSignals:
  """One report of all replicas: host floats.

  Loss is the mean over examples, weight and stop are sums, everything else is
  the mean over replicas; so gradient norms are those of one replica's share of
  the batch.

  Args:
    reports: [replicas, 9].
  """
  if len(reports) == 1:
    return StepSignals(*reports[0].tolist())
  each = StepSignals(*reports.T.astype(np.float64))
  weight = float(each.weight.sum())
  means = StepSignals(*reports.mean(0, dtype=np.float64).tolist())
  return means._replace(
    loss=float((each.loss * each.weight).sum()) / weight if weight else 0.0,
    stop=float(each.stop.sum()),
    weight=weight,
  )


def varying(tree, axes: tuple[str, ...] = (DATA_AXIS,)):
  """Marks replicated values as differing by device.

  Without it, differentiation inside `shard_map` sums gradients over the axis by
  itself, and per-device gradients (for the noise scale) could not be had.
  """

  if not axes:
    return tree
  return jax.tree.map(lambda x: jax.lax.pcast(x, axes, to='varying'), tree)


def weighted_sum(values: jax.Array, weights: jax.Array) -> jax.Array:
  """Of what counts: 0 times an infinite value is NaN."""
  return jnp.sum(jnp.where(weights > 0, values * weights, 0.0))


def _zeros(shapes, axes: tuple[str, ...]):
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return varying(zeros, axes)


def _positions(first: jax.Array, places: jax.Array):
  """The 64-bit positions first + places, as (high, low) uint32 words."""
  low = first[1] + places.astype(jnp.uint32)
  carry = (low < first[1]).astype(jnp.uint32)
  return first[0] + carry, low


class _Sums(NamedTuple):
  """What microbatches add up to, on one device and then over all."""

  loss: Any
  weight: Any
  gradient: Any
  model_state: Any
  norms: Any


class Replicas(NamedTuple):
  """How several replicas are trained by one program.

  Attributes:
    total: replicas on all devices.
    here: replicas on each device, trained one after the other.
    rule: how they agree at the end of each update; None: not at all.
    average_momentum: whether their optimizers' states are averaged as well.
  """

  total: int
  here: int
  rule: SyncRule | None = None
  average_momentum: bool = False


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
  place_stride: int = 1,
  replicas: Replicas | None = None,
  one_of_many: bool = False,
) -> Callable[[Any, Data, StepBatch], tuple[Any, jax.Array]]:
  """The body of one or several updates in one bucket.

  A body maps (state, data, batch) to (state, reports): reports [replicas,
  updates, 9] hold StepSignals of each replica on the device, and zeros after
  the last update that ran. Several updates run in a loop whose length is a
  number in the batch, so that one program does any number of them, with the
  same result to the bit.

  Args:
    model: called as `model.apply(variables, inputs, train=, rows=)`; what
      `contract` says of it is checked while it is traced.
    task: inputs and losses of examples.
    tx: optimizer; its update takes `batch_size`, `damping`, `examples` and
      `gradient_noise`, and its state holds `learning_rate`.
    load: makes a batch from data on the device.
    bucket: microbatches, accumulation steps and devices of one replica.
    rng: key from which dropout keys are derived.
    estimate_noise: whether to estimate the gradient noise.
    unroll: microbatches in one iteration of the accumulating loop.
    place_stride: distance in the batch of two neighbouring slots of a device:
      1, or the number of replicas, or of processes where each reads every H-th
      example.
    replicas: for a SyncState; None for one model, a TrainState.
    one_of_many: whether the model is one of many that have nothing to do with
      one another, along the mesh's axis of replicas.
  """
  contract.check_model(model)
  many = one_of_many or replicas is not None
  axes = (REPLICA_AXIS, DATA_AXIS) if many else (DATA_AXIS,)
  update = _update(
    tx,
    _accumulate(
      _microbatch(model, task, load, bucket, rng, estimate_noise),
      bucket,
      unroll=unroll,
      place_stride=place_stride,
      replicas=1 if replicas is None else replicas.total,
      axes=axes,
    ),
    estimate_noise,
    axes,
  )

  def plain(state: TrainState, data: Data, rows, header):
    state, signals = update(state, data, _unpack(rows[0], header))
    return state, jnp.stack(signals)[None]

  def several(state: SyncState, data: Data, rows, header):
    assert replicas is not None
    done = []
    # Unrolled: as a vmap the convolutions would be grouped ones, far slower.
    for i in range(replicas.here):
      one = jax.tree.map(lambda x, i=i: x[i], state.replicas)
      done.append(update(one, data, _unpack(rows[i], header)))
    before = state.replicas.params
    new, signals = jax.tree.map(lambda *x: jnp.stack(x), *done)
    # Some leaves, such as the learning rate, were computed from the batch
    # alone; a loop wants all of them to differ by replica, as before.
    mark = varying(jnp.bool_(True), (REPLICA_AXIS,))
    new = jax.tree.map(lambda x: jnp.where(mark, x, x), new)
    state = state._replace(replicas=new)
    if replicas.rule is not None:
      state, distances = agree(
        replicas.rule,
        state,
        before,
        learning_rate=signals.learning_rate,
        average_momentum=replicas.average_momentum,
        axis=REPLICA_AXIS,
      )
      signals = signals._replace(**distances._asdict())
    columns = [jnp.broadcast_to(x, replicas.here) for x in signals]
    return state, jnp.stack(columns, 1)

  update_all = plain if replicas is None else several

  def body(state, data: Data, batch: StepBatch):
    learners, updates = batch.rows.shape[:2]
    if updates == 1:
      state, report = update_all(state, data, batch.rows[:, 0], batch.header[0])
      return state, report[:, None]

    def one(i, carry):
      state, reports = carry
      state, report = update_all(state, data, batch.rows[:, i], batch.header[i])
      return state, reports.at[:, i].set(report)

    shape = (learners, updates, len(StepSignals._fields))
    reports = varying(jnp.zeros(shape), axes[:-1])
    return jax.lax.fori_loop(0, batch.header[0, 0], one, (state, reports))

  return body


def _microbatch(
  model: nn.Module,
  task: Task,
  load: Load,
  bucket: Bucket,
  rng: jax.Array,
  estimate_noise: bool,
):
  """(params, model_state, data, batch, indices, places) -> _Sums."""

  def microbatch(params, model_state, data, batch, indices, places) -> _Sums:
    examples = load(data, indices, _positions(batch.position, places))
    real = (places < batch.batch_size).astype(jnp.float32)
    weights = real * examples.get('weight', 1.0)
    weight = jnp.sum(weights)
    rows = Rows(
      weights=(weights > 0).astype(jnp.float32),
      places=places,
      devices=bucket.devices,
      axis=DATA_AXIS,
    )
    key = jax.random.fold_in(
      jax.random.fold_in(rng, batch.position[0]), batch.position[1]
    )
    # `Dropout` of ours draws by place, from a key that all microbatches share;
    # any other layer gets another key in each of them.
    rngs = {'dropout': jax.random.fold_in(key, places[0]), ROWS_STREAM: key}

    def loss_sum(params):
      outputs, new_model_state = contract.apply_in_training(
        model,
        {'params': params, **model_state},
        task.inputs(examples),
        train=True,
        rows=rows,
        mutable=list(model_state),
        rngs=rngs,
      )
      losses = contract.per_example(
        task.loss(outputs, examples), weights, 'task.loss'
      )
      return weighted_sum(losses, weights), new_model_state

    (loss, new_model_state), gradient = jax.value_and_grad(
      loss_sum, has_aux=True
    )(params)
    return _Sums(
      loss=loss,
      weight=weight,
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

  return microbatch


def _accumulate(
  microbatch,
  bucket: Bucket,
  *,
  unroll: int,
  place_stride: int,
  replicas: int,
  axes: tuple[str, ...],
):
  """(params, model_state, data, batch) -> _Sums of a device's share."""

  def accumulate(params, model_state, data, batch) -> _Sums:
    size, steps, devices = bucket
    # Step by step and in each step device by device, so that neighbours in the
    # batch are processed together.
    places = batch.first + (
      replicas * size * devices * jnp.arange(steps, dtype=jnp.int32)[:, None]
      + place_stride * jnp.arange(size, dtype=jnp.int32)
    )
    shares = (batch.indices.reshape(steps, size), places)
    if steps == 1:
      indices, places = jax.tree.map(lambda x: x[0], shares)
      return microbatch(params, model_state, data, batch, indices, places)

    def add(sums, share):
      # One microbatch after the other, also where the loop is unrolled: that
      # is what keeps the memory of one microbatch.
      sums, share = jax.lax.optimization_barrier((sums, share))
      new = microbatch(params, model_state, data, batch, *share)
      return jax.tree.map(jnp.add, sums, new), None

    zeros = _zeros(
      jax.eval_shape(
        lambda: microbatch(
          params, model_state, data, batch, shares[0][0], shares[1][0]
        )
      ),
      axes,
    )
    return jax.lax.scan(add, zeros, shares, unroll=unroll)[0]

  return accumulate


def _update(
  tx: optax.GradientTransformationExtraArgs,
  accumulate,
  estimate_noise: bool,
  axes: tuple[str, ...],
):
  """(state, data, batch) -> (state, StepSignals) of one model."""

  def noise(sums, gradient, norm_squared, state):
    if not estimate_noise:
      return gradient_noise.unknown()
    within = gradient_noise.from_microbatches(
      sums.norms, norm_squared, sums.weight
    )
    if state.previous is None:
      return within
    between = gradient_noise.from_difference(
      gradient, sums.weight, state.previous
    )
    return jax.tree.map(
      lambda w, b: jnp.where(sums.norms.count > 1, w, b), within, between
    )

  def update(state: TrainState, data: Data, batch: _Batch):
    params, model_state = varying((state.params, state.model_state))
    position, batch_size = varying((batch.position, batch.batch_size), axes)
    sums = accumulate(
      params,
      model_state,
      data,
      batch._replace(position=position, batch_size=batch_size),
    )
    sums, stop = jax.lax.psum((sums, batch.stop), DATA_AXIS)

    # Of a batch without a readable example everything is 0.
    weight = jnp.maximum(sums.weight, jnp.finfo(jnp.float32).tiny)

    def mean(total):
      return total / weight

    # Of a complex parameter JAX gives the conjugate of the way uphill.
    gradient = jax.tree.map(lambda g: mean(jnp.conj(g)), sums.gradient)
    norm_squared = gradient_noise.squared_norm(gradient)
    estimate = noise(sums, gradient, norm_squared, state)
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
      model_state=jax.tree.map(
        lambda old, total: jnp.where(sums.weight > 0, mean(total), old),
        state.model_state,
        sums.model_state,
      ),
      opt_state=opt_state,
      previous=(
        None
        if state.previous is None
        else gradient_noise.Previous(gradient, sums.weight)
      ),
    )
    signals = StepSignals(
      loss=mean(sums.loss),
      gradient_norm_squared=norm_squared,
      learning_rate=learning_rate * batch.damping,
      trace_covariance=estimate.trace_covariance,
      squared_norm=estimate.squared_norm,
      stop=stop.astype(jnp.float32),
      weight=sums.weight,
    )
    return new_state, signals

  return update
