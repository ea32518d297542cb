"""Pure per-device bodies of training updates.

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

from adabatch import optim
from adabatch.controllers.buckets import Bucket
from adabatch.data.augment import seed_key
from adabatch.data.source import Data
from adabatch.devices.layout import Layout
from adabatch.devices.mesh import DATA_AXIS, REPLICA_AXIS
from adabatch.devices.messages import Report, StepBatch, Unpacked, unpack
from adabatch.devices.recipe import Recipe
from adabatch.devices.replicas import SyncState, agree
from adabatch.devices.state import TrainState
from adabatch.models import ROWS_STREAM, Rows, contract
from adabatch.models.tasks import training_loss
from adabatch.optim import gradient_noise


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


class Variant(NamedTuple):
  """What a program is compiled for.

  Attributes:
    bucket: how a batch, or a replica's share of it, is run.
    agree: whether the replicas agree after each update.
    replicas: how many there are.
  """

  bucket: Bucket
  agree: bool = False
  replicas: int = 1


def train_step(
  recipe: Recipe,
  variant: Variant,
  layout: Layout,
  *,
  unroll: int = 1,
  one_of_many: bool = False,
) -> Callable[[Any, Data, StepBatch], tuple[Any, jax.Array]]:
  """The body of one or several updates in one bucket.

  A body maps (state, data, batch) to (state, reports): reports [replicas,
  updates, 9] hold a Report of each replica on the device, and zeros after the
  last update that ran. Several updates run in a loop whose length is a number
  in the batch, so that one program does any number of them, with the same
  result to the bit.

  Args:
    recipe: what is trained; what `contract` says of the model is checked while
      it is traced. With `sync` the state is a SyncState, else a TrainState.
    variant: how.
    layout: which example stands in which slot.
    unroll: microbatches in one iteration of the accumulating loop.
    one_of_many: whether the model is one of many that have nothing to do with
      one another, along the mesh's axis of replicas.
  """
  contract.check_model(recipe.model)
  sync = recipe.sync
  many = one_of_many or sync is not None
  replica = (REPLICA_AXIS,) if many else ()
  # One device has nobody to agree with, and XLA would copy what it summed.
  between = (DATA_AXIS,) if variant.bucket.devices > 1 else ()
  accumulate = _accumulate(
    _microbatch(recipe, variant.bucket),
    variant.bucket,
    layout,
    unroll,
    replica + between,
  )
  update = _update(recipe, accumulate, replica, between)

  def by_replica(tree):
    # Some leaves, such as the learning rate, may come from the batch alone; a
    # loop wants all of them to differ by replica, as before.
    mark = varying(jnp.bool_(True), (REPLICA_AXIS,))
    return jax.tree.map(lambda x: jnp.where(mark, x, x), tree)

  def plain(state: TrainState, data: Data, rows, header):
    state, report = update(state, data, unpack(rows[0], header))
    return by_replica(state) if many else state, jnp.stack(report)[None]

  def several(state: SyncState, data: Data, rows, header):
    assert sync is not None
    here, done = len(rows), []
    # Unrolled: as a vmap the convolutions would be grouped ones, far slower.
    for i in range(here):
      one = jax.tree.map(lambda x, i=i: x[i], state.replicas)
      done.append(update(one, data, unpack(rows[i], header)))
    before = state.replicas.params
    new, report = jax.tree.map(lambda *x: jnp.stack(x), *done)
    state = state._replace(replicas=by_replica(new))
    if variant.agree:
      state, distances = agree(
        sync.rule(variant.replicas),
        state,
        before,
        learning_rate=report.learning_rate,
        average_momentum=sync.average_momentum,
        axis=REPLICA_AXIS,
      )
      report = report._replace(**distances._asdict())
    columns = [jnp.broadcast_to(x, here) for x in report]
    return state, jnp.stack(columns, 1)

  return _repeat(plain if sync is None else several, replica)


def _repeat(update, axes: tuple[str, ...]):
  """(state, data, batch) -> (state, reports) of as many updates as it says."""

  def body(state, data: Data, batch: StepBatch):
    learners, updates = batch.rows.shape[:2]
    if updates == 1:
      state, report = update(state, data, batch.rows[:, 0], batch.header[0])
      return state, report[:, None]

    def one(i, carry):
      state, reports = carry
      state, report = update(state, data, batch.rows[:, i], batch.header[i])
      return state, reports.at[:, i].set(report)

    shape = (learners, updates, len(Report._fields))
    reports = varying(jnp.zeros(shape), axes)
    return jax.lax.fori_loop(0, batch.header[0, 0], one, (state, reports))

  return body


def _microbatch(recipe: Recipe, bucket: Bucket):
  """(state, data, batch, indices, places) -> _Sums; see `_accumulate`."""
  model, task = recipe.model, recipe.task
  load, rng = recipe.inputs.load_train(recipe.seed), seed_key(recipe.seed)

  def microbatch(state, data, batch, indices, places) -> _Sums:
    params, model_state, opt_state = state
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
        training_loss(task, outputs, examples), weights, 'task.loss'
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
        recipe.noise_norm.of_microbatch(opt_state, gradient, weight)
        if recipe.estimate_noise
        else None
      ),
    )

  return microbatch


def _accumulate(
  microbatch,
  bucket: Bucket,
  layout: Layout,
  unroll: int,
  axes: tuple[str, ...],
):
  """(state, data, batch) -> _Sums of a device's share.

  The state is (params, model_state, opt_state), of which the last is only read
  by norms of the noise.
  """
  size, steps, _ = bucket

  def accumulate(state, data, batch) -> _Sums:
    places = layout.places(batch.first, bucket, jnp)
    shares = (batch.indices.reshape(steps, size), places)
    if steps == 1:
      indices, places = jax.tree.map(lambda x: x[0], shares)
      return microbatch(state, data, batch, indices, places)

    def add(sums, share):
      # One microbatch after the other, also where the loop is unrolled: that
      # is what keeps the memory of one microbatch.
      sums, share = jax.lax.optimization_barrier((sums, share))
      new = microbatch(state, data, batch, *share)
      return jax.tree.map(jnp.add, sums, new), None

    zeros = _zeros(
      jax.eval_shape(
        lambda: microbatch(state, data, batch, shares[0][0], shares[1][0])
      ),
      axes,
    )
    return jax.lax.scan(add, zeros, shares, unroll=unroll)[0]

  return accumulate


def _update(
  recipe: Recipe,
  accumulate,
  replica: tuple[str, ...],
  between: tuple[str, ...],
):
  """(state, data, batch) -> (state, Report) of one model."""

  def update(state: TrainState, data: Data, batch: Unpacked):
    params, model_state = varying((state.params, state.model_state), between)
    position, batch_size = varying(
      (batch.position, batch.batch_size), replica + between
    )
    here = batch._replace(position=position, batch_size=batch_size)
    sums = accumulate((params, model_state, state.opt_state), data, here)
    sums = sums._replace(
      gradient=_rounded(sums.gradient, recipe.gradient_dtype)
    )
    sums, stop = jax.lax.psum((sums, batch.stop), between)
    # Of a batch without a readable example everything is 0.
    share = 1 / jnp.maximum(sums.weight, jnp.finfo(jnp.float32).tiny)

    def mean(total):  # by a product, which XLA fuses with whatever reads it
      return total * share

    # Of a complex parameter JAX gives the conjugate of the way uphill. Back in
    # the dtypes of the parameters, which the sums had before.
    total = jax.tree.map(
      lambda g, p: jnp.conj(g.astype(p.dtype)), sums.gradient, state.params
    )
    gradient = jax.tree.map(mean, total)
    # Of the total, so that the mean has one reader fewer, mostly only one, and
    # need not lie in memory.
    norm_squared = mean(mean(gradient_noise.squared_norm(total)))
    estimate = gradient_noise.unknown()
    if recipe.estimate_noise:
      estimate = _noise(recipe, sums, gradient, norm_squared, state)
    updates, opt_state = recipe.tx.update(
      gradient,
      state.opt_state,
      state.params,
      batch_size=batch.batch_size,
      damping=batch.damping,
      examples=batch.examples,
      gradient_noise=estimate,
    )
    learning_rate = optax.tree_utils.tree_get(opt_state, 'learning_rate')
    new_model_state = jax.tree.map(
      lambda old, total: jnp.where(sums.weight > 0, mean(total), old),
      state.model_state,
      sums.model_state,
    )
    new_state = TrainState(
      params=optax.apply_updates(state.params, updates),
      model_state=new_model_state,
      opt_state=opt_state,
      previous=(
        None
        if state.previous is None
        else gradient_noise.Previous(gradient, sums.weight)
      ),
      averaged_state=optim.average_along(
        opt_state, state.averaged_state, new_model_state
      ),
    )
    report = Report(
      loss=mean(sums.loss),
      gradient_norm_squared=norm_squared,
      learning_rate=learning_rate * batch.damping,
      trace_covariance=estimate.trace_covariance,
      squared_norm=estimate.squared_norm,
      stop=stop,
      weight=sums.weight,
    )
    if recipe.skip:
      new_state = _where_finite(report, new_state, state)
    return new_state, report

  return update


def _noise(
  recipe: Recipe, sums: _Sums, gradient, norm_squared, state: TrainState
):
  """From within the batch where it has parts, else from the one before."""
  norm = recipe.noise_norm
  within = norm.from_microbatches(
    state.opt_state, sums.norms, gradient, sums.weight, norm_squared
  )
  if state.previous is None:
    return within
  between = norm.from_difference(
    state.opt_state, gradient, sums.weight, state.previous
  )
  return jax.tree.map(
    lambda w, b: jnp.where(sums.norms.count > 1, w, b), within, between
  )


FLOAT32_BITS = jnp.finfo(jnp.float32).nmant


def _rounded(gradient: Any, dtype: Any) -> Any:
  """What is wider and real, in a dtype; by the compiler left as it is.

  Not divided first: bfloat16 has the range of float32, and so the same relative
  error whatever the scale. Of one device too, where nothing is exchanged, so
  that a run does not depend on how many there are more than it must.
  """
  to = jnp.finfo(dtype)

  def one(g):
    real = jnp.issubdtype(g.dtype, jnp.floating)
    # Gradients of 64 bits keep them unless it is fewer than 32 that are wanted.
    if not real or min(jnp.finfo(g.dtype).nmant, FLOAT32_BITS) <= to.nmant:
      return g
    # XLA may leave out a mere conversion forth and back.
    return jax.lax.reduce_precision(g, to.nexp, to.nmant).astype(dtype)

  return jax.tree.map(one, gradient)


def _where_finite(report: Report, new: TrainState, old: TrainState):
  """All of the new one, counts and averages too, or as if nothing had been."""
  finite = jnp.isfinite(report.loss) & jnp.isfinite(
    report.gradient_norm_squared
  )
  return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
