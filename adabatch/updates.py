"""Updates on the devices: take a batch of the one order, run its bucket."""

from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adabatch import data, parallel, steps, train_state
from adabatch.buckets import Bucket, Plan
from adabatch.step_cache import StepCache
from adabatch.tasks import Task
from adabatch.train_state import TrainState

_LAYOUT = (False, False, steps.StepBatch(rows=True, header=False))

# XLA runs a convolution inside a loop on one CPU thread, far slower than
# outside; so on CPUs the accumulating loop is unrolled, as far as the compile
# time stays bearable.
CPU_UNROLL = 32


class Updates:
  """The training split on the devices, and one program for each bucket.

  Attributes:
    state: the train state, at first fresh; `run` replaces it.
    arrays: the training split, on every device.
    order: position -> example.
    cache: the compiled programs.
    updates_per_call: most updates that one call of a program does.
  """

  def __init__(
    self,
    model: nn.Module,
    task: Task,
    tx: Any,
    load: steps.Load,
    split: data.Split,
    *,
    seed: int,
    mesh: Mesh,
    backend: str,
    estimate_noise: bool,
    keep_gradient: bool,
    updates_per_call: int,
  ):
    """`load` makes a batch on the device; `keep_gradient` carries the previous
    gradient in the state, for the differenced noise estimate."""
    self._model, self._task, self._tx, self._load = model, task, tx, load
    self._mesh, self._backend = mesh, backend
    self._estimate_noise = estimate_noise
    self.updates_per_call = updates_per_call
    platform = mesh.devices.flat[0].platform
    self._unroll = CPU_UNROLL if platform == 'cpu' else 1
    self._rng = jax.random.key(seed)
    self.order = data.Order(len(split.arrays['label']), seed)
    self.arrays = parallel.replicate(split.arrays, mesh)
    self.cache = StepCache(self._lower)

    def create(rng):
      image = np.zeros((1, *split.arrays['image'].shape[1:]), np.float32)
      return train_state.create(
        model, image, tx, rng, keep_gradient=keep_gradient
      )

    replicated = NamedSharding(mesh, PartitionSpec())
    self.state: TrainState = jax.jit(create, out_shardings=replicated)(
      self._rng
    )

  def _lower(self, bucket: Bucket):
    body = steps.train_step(
      self._model,
      self._task,
      self._tx,
      self._load,
      bucket,
      rng=self._rng,
      estimate_noise=self._estimate_noise,
      unroll=self._unroll,
    )
    program = parallel.spmd(
      body,
      self._mesh,
      layout=_LAYOUT,
      backend=self._backend,
      donate=(0,),
    )
    # A batch of the right shapes, for what is in it does not matter.
    batch = self._place(0, Plan(bucket, 1, 1.0), 1, stop=False)
    with jax.transfer_guard('allow'):
      return program.lower(self.state, self.arrays, batch)

  def _place(
    self, position: int, plan: Plan, count: int, *, stop: bool
  ) -> steps.StepBatch:
    """The next batches: slots filled in the order of positions, device by
    device. Empty slots repeat example 0 and carry weight 0."""
    slots = np.zeros((self.updates_per_call, plan.bucket.slots), np.int32)
    slots[:count, : plan.batch_size] = data.take(
      self.order, position, position + count * plan.batch_size
    ).reshape(count, plan.batch_size)
    by_device = slots.reshape(len(slots), plan.bucket.devices, -1)
    packed = steps.pack(
      by_device.swapaxes(0, 1),
      count=count,
      position=position,
      batch_size=plan.batch_size,
      damping=plan.damping,
      stop=stop,
    )
    return steps.StepBatch(
      rows=parallel.shard(packed.rows, self._mesh),
      header=parallel.replicate(packed.header, self._mesh),
    )

  def run(
    self, program: Any, position: int, plan: Plan, count: int, *, stop: bool
  ) -> jax.Array:
    """Dispatches updates; returns their reports, which are still on their way.

    Args:
      program: the executable of `plan.bucket`, from the cache.
      position: examples trained on so far.
      plan: what each of the updates runs.
      count: how many, at most `updates_per_call`.
      stop: whether this process was asked to stop.

    Returns:
      float32 [updates_per_call, 6], StepSignals in the first `count` rows.
    """
    batch = self._place(position, plan, count, stop=stop)
    with jax.transfer_guard('disallow'):
      self.state, reports = program(self.state, self.arrays, batch)
    return reports
