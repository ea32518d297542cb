"""Updates on the devices: take a batch of the one order, run its bucket."""

from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adabatch import parallel, steps, train_state
from adabatch.buckets import Bucket, Plan
from adabatch.feeds import ResidentFeed, StreamingFeed, place
from adabatch.step_cache import StepCache
from adabatch.tasks import Task
from adabatch.train_state import TrainState

# XLA runs a convolution inside a loop on one CPU thread, far slower than
# outside; so on CPUs the accumulating loop is unrolled, as far as the compile
# time stays bearable.
CPU_UNROLL = 32


class Updates:
  """The train state on the devices, and one program for each bucket.

  Attributes:
    state: the train state, at first fresh; `run` replaces it.
    feed: where the examples come from.
    cache: the compiled programs.
    updates_per_call: most updates that one call of a program does.
  """

  def __init__(
    self,
    model: nn.Module,
    task: Task,
    tx: Any,
    load: steps.Load,
    feed: ResidentFeed | StreamingFeed,
    *,
    network_input: Any,
    seed: int,
    mesh: Mesh,
    backend: str,
    estimate_noise: bool,
    keep_gradient: bool,
    updates_per_call: int,
    options: dict[str, Any] | None = None,
  ):
    """Initialises the state; see `steps.train_step` for most arguments.

    Args:
      network_input: shape and dtype of a batch of one of its inputs.
      keep_gradient: whether to carry the previous gradient in the state, for
        the differenced noise estimate.
      options: for the compiler.
    """
    self._model, self._task, self._tx, self._load = model, task, tx, load
    self._mesh, self._backend = mesh, backend
    self._estimate_noise, self._options = estimate_noise, options
    self.feed = feed
    self.updates_per_call = feed.most_updates or updates_per_call
    platform = mesh.devices.flat[0].platform
    self._unroll = CPU_UNROLL if platform == 'cpu' else 1
    self._rng = jax.random.key(seed)
    self.cache = StepCache(self._lower)

    def create(rng):
      example = np.zeros(network_input.shape, network_input.dtype)
      return train_state.create(
        model, example, tx, rng, keep_gradient=keep_gradient
      )

    replicated = NamedSharding(mesh, PartitionSpec())
    self.state: TrainState = jax.jit(
      create, out_shardings=replicated, compiler_options=options
    )(self._rng)

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
      place_stride=self.feed.place_stride,
    )
    program = parallel.spmd(
      body,
      self._mesh,
      layout=(
        False,
        self.feed.sharded,
        steps.StepBatch(rows=True, header=False),
      ),
      backend=self._backend,
      donate=(0,),
      options=self._options,
    )
    # A batch of the right shapes, for what is in it does not matter.
    slots = (bucket.devices, self.updates_per_call, bucket.slots_per_device)
    batch = steps.pack(
      np.zeros(slots, np.int32),
      first=np.zeros(bucket.devices, np.int32),
      count=1,
      position=0,
      batch_size=1,
      damping=1.0,
      stop=False,
    )
    example = self.feed.example(bucket)
    if self._backend == 'pmap':
      example = parallel.zeros(example, self._mesh)  # shapes are not enough
    with jax.transfer_guard('allow'):
      return program.lower(self.state, example, place(batch, self._mesh))

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
      float32 [updates_per_call, 7], StepSignals in the first `count` rows.
    """
    arrays, batch = self.feed.take(
      position, plan, count, self.updates_per_call, stop=stop
    )
    with jax.transfer_guard('disallow'):
      self.state, reports = program(self.state, arrays, batch)
    return reports

  def close(self) -> None:
    """Ends reading and compiling."""
    self.feed.close()
    self.cache.close()
