"""A train state on the devices, and all that is done with it."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.errors import JaxRuntimeError

from adabatch import data
from adabatch.controllers.buckets import Bucket, Plan
from adabatch.devices import replicas as replicas_lib
from adabatch.devices import state as state_lib
from adabatch.devices.evaluation import make_evaluator
from adabatch.devices.feeds import BATCH, ResidentFeed
from adabatch.devices.measurements import Measurements
from adabatch.devices.mesh import BY_REPLICA, WHOLE, Devices
from adabatch.devices.messages import Call, StepBatch, pack
from adabatch.devices.pieces import Skipped
from adabatch.devices.programs import Compiling, Programs, Stored, memory_of
from adabatch.devices.recipe import Recipe
from adabatch.devices.replicas import State, SyncState
from adabatch.devices.step import Variant, train_step
from adabatch.devices.stream import StreamingFeed


class Restored(NamedTuple):
  """A state to go on from.

  Attributes:
    state: as `template` has it.
    replicas: that it holds.
  """

  state: Any
  replicas: int


def _devices(recipe: Recipe, replicas: int) -> Devices:
  if recipe.sync is None:
    return recipe.devices
  return recipe.devices.with_replicas(replicas)


def _where(recipe: Recipe) -> Any:
  if recipe.sync is None:
    return WHOLE
  return SyncState(WHOLE, WHOLE, WHOLE, BY_REPLICA)


def _create(
  recipe: Recipe, replicas: int, rng: jax.Array, initial: Any = None
) -> State:
  example = np.zeros(recipe.network_input.shape, recipe.network_input.dtype)
  state = state_lib.create(
    recipe.model,
    example,
    recipe.tx,
    rng,
    keep_gradient=recipe.keep_gradient,
    initial=initial,
  )
  if recipe.sync is None:
    return state
  return replicas_lib.create(state, recipe.sync.rule(replicas), replicas)


def template(recipe: Recipe, replicas: int) -> Any:
  """Shapes and places of a state with so many replicas, to restore into."""
  shapes = jax.eval_shape(
    lambda rng: _create(recipe, replicas, rng), data.seed_key(recipe.seed)
  )
  devices = _devices(recipe, replicas)

  def placed(where, tree):
    sharding = devices.shardings(where)
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )

  return jax.tree.map(placed, _where(recipe), shapes)


class Trainer:
  """The train state, and one program for each variant.

  Attributes:
    state: a TrainState, or a SyncState where replicas are trained.
    replicas: how many; 1 of a TrainState.
    devices: with an axis of replicas for a SyncState.
    in_use: how many of them the state lies on, the first ones.
    feed: where the examples come from.
    programs: the compiled programs.
    updates_per_call: most updates that one call does in any bucket.
    calls_in_flight: how many may be under way.
    evaluates: whether it is evaluating, or failed at it.
    apart: whether a process sees the reports of its own replicas alone.
    sync_bytes: what a replica gives to an average; see
      `replicas.agreed_bytes`.
  """

  def __init__(
    self,
    recipe: Recipe,
    restored: Restored | None = None,
    *,
    replicas: int | None = None,
    skipped: Skipped = lambda split: lambda record, reason: None,
    compiling: Compiling = nullcontext,
    stored: Stored | None = None,
  ):
    """Starts from fresh parameters, or from what was restored.

    Args:
      recipe: what is trained.
      restored: a state to go on from.
      replicas: with how many to go on; None: as the recipe says.
      skipped: is told of records that cannot be read.
      compiling: makes what is entered while a program for measurements is
        compiled.
      stored: where programs may be that were compiled before.
    """
    self._recipe, self._where = recipe, _where(recipe)
    # Rows of the mesh are as the recipe says, however many train now.
    self.devices = _devices(recipe, recipe.replicas)
    self._size = self.devices.size
    self.replicas = recipe.replicas
    self.feed = _make_feed(recipe, self.devices, skipped)
    self._feeds = {self._size: self.feed}
    self.updates_per_call = self.feed.most_updates or recipe.updates_per_call
    self.calls_in_flight = self.devices.calls_in_flight
    if recipe.inputs.streaming:
      # Each of them holds a batch in the devices' memory.
      self.calls_in_flight = min(self.calls_in_flight, 2)
    # Where replicas lie with several processes, their reports travel only when
    # somebody wants to read them, so that they need not wait for one another.
    self.apart = recipe.replicas > 1 and jax.process_count() > 1
    self.programs = Programs(self.lower, stored)
    self._bucket = self._program = None  # of the last call
    self._room = 1  # of it
    self._guard = (
      nullcontext
      if self.devices.is_one  # to which batches go with the call
      else partial(jax.transfer_guard, 'disallow')
    )
    self.evaluates = False
    self._finite = self.devices.jit(state_lib.is_finite)
    self.go_on(restored, recipe.replicas if replicas is None else replicas)
    self.sync_bytes = replicas_lib.agreed_bytes(
      self.state, recipe.sync is not None and recipe.sync.average_momentum
    )
    self.evaluator = make_evaluator(recipe, skipped, compiling)
    self._measurements = Measurements(
      recipe,
      self.feed.data,
      skipped,
      compiling,
      has_statistics=bool(jax.tree.leaves(self.state.model_state)),
    )

  def go_on(self, restored: Restored | None, replicas: int) -> None:
    """From another state, with the same programs.

    Args:
      restored: None: from fresh parameters.
      replicas: with how many.
    """
    recipe, have = self._recipe, self._recipe.replicas
    self.state: State
    self.in_use, self._bucket = self._size, None
    if self.devices.abstract:
      self.state = template(recipe, replicas)
      return
    if restored is None:
      self.state = self.devices.jit(
        lambda rng, initial: _create(recipe, recipe.replicas, rng, initial),
        out_shardings=self.devices.shardings(self._where),
      )(data.seed_key(recipe.seed), recipe.initial)
    else:
      self.state, have = restored
    if {have, replicas} != {self.replicas}:
      self.resize(replicas)

  def release(self) -> None:
    """Frees the state, so that there is room for another one."""
    with suppress(JaxRuntimeError):  # an update that failed, and left nothing
      jax.block_until_ready(self.state)
    jax.tree.map(lambda x: x.delete(), self.state)

  # Updates.

  def variant(self, call: Call) -> Variant:
    """The program that runs a call."""
    return Variant(call.plan.bucket, call.agree, self.replicas)

  def room(self, bucket: Bucket) -> int:
    """Most updates of a call in a bucket."""
    return self.feed.most_updates or self._recipe.room(bucket)

  def ready(self, call: Call) -> bool:
    """Whether nothing has to be compiled for a call, or looked for ahead."""
    variant = self.variant(call)
    if not self.programs.ready(variant) or call.plan.bucket != self._bucket:
      return False
    self._program = self.programs[variant]
    return True

  def compile(self, call: Call, ahead: Sequence[Variant] = ()) -> None:
    """Waits for the program of a call; those that may come next are begun."""
    self._bucket, self._room = call.plan.bucket, self.room(call.plan.bucket)
    self._program = self.programs.get(self.variant(call), *ahead)
    self._use(self._bucket)

  def dispatch(self, call: Call, *, stop: bool) -> jax.Array:
    """Dispatches the updates of a call.

    Args:
      call: of at most `room` updates, of the kind that `ready` or `compile`
        was last asked for.
      stop: whether this process was asked to stop.

    Returns:
      Their reports, still on their way: float32 [replicas, room, 9], a Report
      in each of the first `count` rows.
    """
    assert self._program is not None, 'compile() fetches it'
    feed = self._feeds[self.in_use]
    arrays, batch = feed.take(call, self._room, stop=stop)
    # Nothing else is to be copied, such as a state that lay on the host.
    with self._guard():
      self.state, reports = self._program(self.state, arrays, batch)
    return reports

  # On as many devices as a bucket needs.

  def _on(self, bucket: Bucket) -> tuple[Devices, Any]:
    """The devices that run a bucket, and their feed; of replicas, all."""
    if self._recipe.sync is not None or bucket.devices == self._size:
      return self.devices, self.feed
    some = self.devices.first(bucket.devices)
    if some.size not in self._feeds:
      assert isinstance(self.feed, ResidentFeed), 'a stream uses all devices'
      self._feeds[some.size] = self.feed.on(some)
    return some, self._feeds[some.size]

  def _use(self, bucket: Bucket) -> None:
    """The state lies where a bucket needs it; it moves if it did not."""
    devices, _ = self._on(bucket)
    if devices.size != self.in_use:
      self.state, self.in_use = devices.place(self.state), devices.size

  def _everywhere(self, state: Any) -> Any:
    """What is evaluated, on all devices; the state itself stays."""
    if self.in_use == self._size:
      return state
    params, statistics = self.devices.place((state.params, state.model_state))
    return state._replace(params=params, model_state=statistics)

  @contextmanager
  def set_aside(self) -> Iterator[None]:
    """Within, a copy of the state is trained; afterwards it is as it was."""
    kept = self.state, self.in_use
    self.state = _copied(self.state)
    try:
      yield
    finally:
      self.state, self.in_use = kept
      self._bucket = None

  def wait(self) -> None:
    """Until the devices have done all that was dispatched."""
    jax.block_until_ready(self.state)

  # Whether a program can be run at all.

  def memory(self, variant: Variant) -> int | None:
    """Bytes of a program on each device; None: the compiler does not say.

    Raises:
      JaxRuntimeError: if it refuses.
    """
    return memory_of(self.programs.look(variant), self.devices.platform)

  def try_out(self, variant: Variant, times: int = 1) -> float:
    """Seconds of an update, the least of several; the state is spent."""
    program = self.programs.look(variant)
    self._use(variant.bucket)
    data, batch = self._made_up(variant.bucket, place=True)
    least = math.inf
    for _ in range(times):
      begin = time.perf_counter()
      self.state, reports = program(self.state, data, batch)
      jax.block_until_ready(reports)
      least = min(least, time.perf_counter() - begin)
    return least

  def _made_up(self, bucket: Bucket, *, place: bool) -> tuple[Any, StepBatch]:
    """What a program is given, of the right shapes."""
    devices, feed = self._on(bucket)
    first = feed.layout.lane
    slots = *first.shape, self.room(bucket), bucket.slots_per_device
    call = Call(0, 0, 1, Plan(1.0, 1, 1.0, bucket))
    batch = pack(call, np.zeros(slots, np.int32), first, stop=False)
    example = feed.example(bucket)
    if place:
      example = devices.zeros(example)
    with jax.transfer_guard('allow'):
      return example, devices.place(batch, BATCH)

  def lower(self, variant: Variant) -> Any:
    """What is compiled for a variant."""
    recipe, bucket = self._recipe, variant.bucket
    devices, feed = self._on(bucket)
    body = train_step(recipe, variant, feed.layout, unroll=devices.unroll)
    several = recipe.sync is not None
    program = devices.spmd(
      body,
      arguments=(
        self._where,
        feed.where,
        BATCH,
      ),
      results=(self._where, BY_REPLICA if several else WHOLE),
      donate=(0,),
    )
    # To `pmap` shapes are not enough.
    made_up = self._made_up(bucket, place=devices.backend == 'pmap')
    state = self.state
    if devices.size != self.in_use:  # where it will be
      state = devices._replace(abstract=True).place(state)
    with jax.transfer_guard('allow'):
      return program.lower(state, *made_up)

  def lower_evaluation(self) -> Any:
    """What is compiled to evaluate; of devices that are not there."""
    shapes = jax.eval_shape(state_lib.to_evaluate, self.state)
    return self.evaluator.lower(self.devices.place(shapes))

  # What replicas need beside updates.

  def restart(self) -> None:
    """Replicas start from the anchor, and that from rest."""
    assert self._recipe.sync is not None
    rule = self._recipe.sync.rule(self.replicas)
    self._change(lambda state: replicas_lib.restart(rule, state), donate=True)

  def resize(self, replicas: int) -> None:
    """Goes on with another number of replicas; see `replicas.resize`."""
    self._change(lambda state: replicas_lib.resize(state, replicas))
    self.replicas = replicas
    self.feed.share(replicas)
    self.programs.drop_unused()

  def _change(
    self, change: Callable[[Any], Any], *, donate: bool = False
  ) -> None:
    self.state = self.devices.jit(
      change,
      out_shardings=self.devices.shardings(self._where),
      donate_argnums=0 if donate else (),
    )(self.state)

  # What is measured.

  def to_evaluate(self) -> State:
    """The state on all devices, with averaged parameters if there are."""
    return self._everywhere(state_lib.to_evaluate(self.state))

  def everywhere(self) -> State:
    """The state itself on all devices."""
    return self._everywhere(self.state)

  def evaluate(self) -> dict[str, float]:
    """Metrics of the evaluation split, of averaged parameters if there are."""
    self.evaluates = True
    found = self.evaluator.metrics(self.to_evaluate())
    self.evaluates = False
    return found

  def measure(self) -> tuple[dict[str, float], int]:
    """The signals that cost a pass over data; see `Measurements`."""
    self.evaluates = True
    found = self._measurements.take(self._everywhere(self.state))
    self.evaluates = False
    return found

  def finite(self) -> bool:
    """Whether parameters, statistics and optimizers hold finite numbers."""
    return bool(self._finite(self.to_save()))

  def to_save(self) -> Any:
    """The state as arrays of all processes."""
    return self.devices.of_all_processes(self.state)

  def close(self) -> None:
    """Ends reading and compiling."""
    self.feed.close()
    self.evaluator.close()
    self._measurements.close()
    self.programs.close()


@jax.jit
def _copied(state: Any) -> Any:
  return jax.tree.map(jnp.copy, state)


def _make_feed(
  recipe: Recipe, devices: Devices, skipped: Skipped
) -> ResidentFeed | StreamingFeed:
  split = recipe.inputs.train
  order = data.Order(split.num_examples, recipe.seed)
  if not recipe.inputs.streaming:
    return ResidentFeed(split.arrays, order, devices, recipe.replicas)
  return StreamingFeed(
    split,
    order,
    devices,
    recipe.replicas,
    workers=recipe.inputs.workers,
    skipped=skipped(recipe.split_names[0]),
    # Of the evaluation, and of what a rule asks of the whole split.
    beside=1 + any(name.startswith('full_') for name in recipe.needs),
  )
