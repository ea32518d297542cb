"""Updates on the devices: take a batch of the one order, run its bucket."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from adabatch.controllers.buckets import Bucket, Plan
from adabatch.devices import parallel, steps, train_state
from adabatch.devices import replicas as replicas_lib
from adabatch.devices.feeds import ResidentFeed, StreamingFeed, place
from adabatch.devices.replicas import State, SyncState
from adabatch.devices.step_cache import StepCache
from adabatch.devices.train_state import TrainState
from adabatch.models.tasks import Task
from adabatch.optim.sync import SyncRule

# XLA runs a convolution inside a loop on one CPU thread, far slower than
# outside; so on CPUs the accumulating loop is unrolled, as far as the compile
# time stays bearable.
CPU_UNROLL = 32


class Sync(NamedTuple):
  """What replicas need to agree.

  Attributes:
    rule: number of replicas -> how they agree.
    average_momentum: whether their optimizers' states are averaged as well.
  """

  rule: Callable[[int], SyncRule]
  average_momentum: bool


class Variant(NamedTuple):
  """What a program is compiled for.

  Attributes:
    bucket: how a replica's share is run.
    agree: whether the replicas agree after each update.
    replicas: how many there are.
  """

  bucket: Bucket
  agree: bool
  replicas: int


class Updates:
  """The train state on the devices, and one program for each variant.

  Attributes:
    state: at first fresh; `run` replaces it. A TrainState, or a SyncState where
      replicas are trained.
    replicas: how many; 1 of a TrainState.
    feed: where the examples come from.
    cache: the compiled programs.
    updates_per_call: most updates that one call of a program does.
    mesh: the devices, with an axis of replicas for a SyncState.
    sync_bytes: what a replica gives to an average; see `replicas.agreed_bytes`.
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
    sync: Sync | None = None,
    replicas: int = 1,
  ):
    """Initialises the state; see `steps.train_step` for most arguments.

    Args:
      network_input: shape and dtype of a batch of one of its inputs.
      keep_gradient: whether to carry the previous gradient in the state, for
        the differenced noise estimate.
      options: for the compiler.
      sync: how replicas agree; None for one model.
      replicas: how many there are at first.
    """
    self._model, self._task, self._tx, self._load = model, task, tx, load
    self._backend, self._sync = backend, sync
    self._estimate_noise, self._options = estimate_noise, options
    self.mesh, self.replicas, self.feed = mesh, replicas, feed
    self.updates_per_call = feed.most_updates or updates_per_call
    platform = mesh.devices.flat[0].platform
    self._unroll = CPU_UNROLL if platform == 'cpu' else 1
    self._rng = jax.random.key(seed)
    self.cache = StepCache(self._lower)

    def create(rng):
      example = np.zeros(network_input.shape, network_input.dtype)
      state = train_state.create(
        model, example, tx, rng, keep_gradient=keep_gradient
      )
      return self._replicated(state, replicas)

    self._create = create
    self._finite = jax.jit(train_state.is_finite, compiler_options=options)
    self.state: State = jax.jit(
      create, out_shardings=self._shardings, compiler_options=options
    )(self._rng)
    self.sync_bytes = replicas_lib.agreed_bytes(
      self.state, sync is not None and sync.average_momentum
    )

  def _replicated(self, state: TrainState, replicas: int):
    if self._sync is None:
      return state
    return replicas_lib.create(state, self._sync.rule(replicas), replicas)

  @property
  def _layout(self) -> Any:
    if self._sync is None:
      return False
    return SyncState(False, False, False, parallel.REPLICAS)

  @property
  def _shardings(self) -> Any:
    return parallel.shardings(self._layout, self.mesh)

  def variant(self, bucket: Bucket, agree: bool) -> Variant:
    """The program for a bucket with the replicas there are."""
    return Variant(bucket, agree, self.replicas)

  def _lower(self, variant: Variant):
    bucket, agree, replicas = variant
    several = None
    if self._sync is not None:
      several = steps.Replicas(
        replicas,
        self.feed.shares.here,
        self._sync.rule(replicas) if agree else None,
        self._sync.average_momentum,
      )
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
      replicas=several,
    )
    program = parallel.spmd(
      body,
      self.mesh,
      layout=(
        self._layout,
        self.feed.sharded,
        steps.StepBatch(rows=True, header=False),
      ),
      results=(self._layout, parallel.REPLICAS if several else False),
      backend=self._backend,
      donate=(0,),
      options=self._options,
    )
    # A batch of the right shapes, for what is in it does not matter.
    which = self.mesh.size, self.feed.shares.here
    slots = (*which, self.updates_per_call, bucket.slots_per_device)
    batch = steps.pack(
      np.zeros(slots, np.int32),
      first=np.zeros(which, np.int32),
      count=1,
      position=0,
      batch_size=1,
      damping=1.0,
      stop=False,
    )
    example = self.feed.example(bucket)
    if self._backend == 'pmap':
      example = parallel.zeros(example, self.mesh)  # shapes are not enough
    with jax.transfer_guard('allow'):
      return program.lower(self.state, example, place(batch, self.mesh))

  def run(
    self, program: Any, position: int, plan: Plan, count: int, *, stop: bool
  ) -> jax.Array:
    """Dispatches updates; returns their reports, which are still on their way.

    Args:
      program: the executable of the variant, from the cache.
      position: examples trained on so far.
      plan: what each of the updates runs.
      count: how many, at most `updates_per_call`.
      stop: whether this process was asked to stop.

    Returns:
      float32 [replicas, updates_per_call, 9], StepSignals in the first `count`
      rows of each.
    """
    arrays, batch = self.feed.take(
      position, plan, count, self.updates_per_call, stop=stop
    )
    with jax.transfer_guard('disallow'):
      self.state, reports = program(self.state, arrays, batch)
    return reports

  # What replicas need beside updates.

  def restart(self) -> None:
    """Replicas start from the anchor, and that from rest."""
    assert self._sync is not None
    rule = self._sync.rule(self.replicas)
    self.state = self._change(
      lambda state: replicas_lib.restart(rule, state), donate=True
    )

  def resize(self, replicas: int) -> None:
    """Goes on with another number of replicas; see `replicas.resize`."""
    self.state = self._change(
      lambda state: replicas_lib.resize(state, replicas)
    )
    self.replicas = replicas
    self.feed.share(replicas)
    self.cache.drop_unused()

  def restore(self, state: Any, saved: int, replicas: int) -> None:
    """Goes on from a state that was restored into `template(saved)`, with so
    many replicas."""
    self.state = state
    if {saved, replicas} != {self.replicas}:
      self.resize(replicas)

  def _change(
    self, change: Callable[[Any], Any], *, donate: bool = False
  ) -> Any:
    return jax.jit(
      change,
      out_shardings=self._shardings,
      donate_argnums=0 if donate else (),
      compiler_options=self._options,
    )(self.state)

  def template(self, replicas: int) -> Any:
    """Shapes and places of a state with so many replicas, to restore into."""
    if replicas == self.replicas:
      return self.state
    mesh = parallel.replica_mesh(self.mesh, replicas)

    def placed(how, tree, *size):
      sharding = parallel.shardings(how, mesh)
      return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
          (*size, *x.shape[len(size) :]), x.dtype, sharding=sharding
        ),
        tree,
      )

    state = jax.eval_shape(self._create, self._rng)
    return SyncState(
      params=placed(False, state.params),
      model_state=placed(False, state.model_state),
      outer_state=placed(False, state.outer_state),
      replicas=placed(parallel.REPLICAS, state.replicas, replicas),
    )

  def to_save(self) -> Any:
    """The state as arrays of all processes."""
    if self._backend == 'pmap':
      return parallel.as_global(self.state, self.mesh)
    return self.state

  def finite(self) -> bool:
    """Whether parameters, statistics and optimizers hold finite numbers."""
    return bool(self._finite(self.to_save()))

  def close(self) -> None:
    """Ends reading and compiling."""
    self.feed.close()
    self.cache.close()
