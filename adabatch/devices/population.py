"""Many models that have nothing to do with one another in one program.

Members differ in their seeds and in a few values, which are arrays of the
program and not constants in it. So a program is compiled once for a batch size
and an optimizer, whatever the values are. Members are spread over the devices;
those of one device are a `vmap`.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from adabatch import data
from adabatch.controllers.buckets import Plan
from adabatch.devices import evaluation_steps, feeds
from adabatch.devices import layout as layouts
from adabatch.devices import state as state_lib
from adabatch.devices.evaluation import summary
from adabatch.devices.gathered import Gathered
from adabatch.devices.in_rows import place_split
from adabatch.devices.mesh import BY_REPLICA, WHOLE
from adabatch.devices.messages import Call, StepBatch, pack
from adabatch.devices.programs import CompiledOnce
from adabatch.devices.recipe import Recipe
from adabatch.devices.step import Variant, train_step


class Member(NamedTuple):
  """One model.

  Attributes:
    seed: of its parameters, its data order, augmentation and dropout.
    values: that its optimizer is made of.
  """

  seed: int
  values: tuple[float, ...]


@dataclasses.dataclass
class Group:
  """Members on the devices.

  Attributes:
    places: the member in each place where one is at work.
    orders: of the data, by place.
    seeds, values, state: of all places, on the devices.
  """

  places: dict[int, int]
  orders: list[data.Order]
  seeds: Any
  values: Any
  state: Any


def place_splits(recipe: Recipe) -> tuple[Any, Any]:
  """Both splits, whole on every device."""
  devices = recipe.devices.with_replicas(recipe.devices.size)
  return (
    place_split(recipe.inputs.train.arrays, devices),
    place_split(recipe.inputs.evaluation.arrays, devices),
  )


class Population:
  """Compiled programs for members of one recipe.

  Programs are compiled when they are first needed, for a number of members and
  of updates in a call, and kept.

  Attributes:
    plan: of an update of one member; one device runs the whole of it.
    devices: how many there are.
    arrays: both splits on the devices.
    compile_seconds: time spent compiling.
  """

  def __init__(
    self,
    recipe: Recipe,
    make_tx: Callable[[Any], Any],
    plan: Plan,
    arrays: tuple[Any, Any] | None = None,
  ):
    """What all members share.

    Args:
      recipe: of every member, but for the seed and the optimizer.
      make_tx: a member's values, traced -> its optimizer.
      plan: of each update, on one device.
      arrays: both splits on the devices, if they are there already.
    """
    self._recipe, self._make_tx, self.plan = recipe, make_tx, plan
    self.devices = recipe.devices.size
    self._all = recipe.devices.with_replicas(self.devices)
    self._place = self._all.placer(StepBatch(rows=BY_REPLICA, header=WHOLE))
    self._layout = layouts.resident(1, 1, 1)
    self.arrays = place_splits(recipe) if arrays is None else arrays
    self._examples = recipe.inputs.evaluation.num_examples
    self._slots = min(recipe.evaluated_at_once, self._examples)
    self._programs: dict[Any, CompiledOnce] = {}
    self.compile_seconds = 0.0

  # The programs.

  def _spmd(self, body, arguments, donate=()):
    return self._all.spmd(
      body, arguments=arguments, results=BY_REPLICA, donate=donate
    )

  def _member(self, seed: Any, values: Any) -> Recipe:
    return self._recipe._replace(seed=seed, tx=self._make_tx(values))

  def _create(self, seeds, values):
    shape = self._recipe.network_input

    def one(seed, values):
      recipe = self._member(seed, values)
      example = np.zeros(shape.shape, shape.dtype)
      rng = data.seed_key(seed)
      return state_lib.create(recipe.model, example, recipe.tx, rng)

    return jax.vmap(one)(seeds, values)

  def _train(self, seeds, values, state, arrays, rows, header):
    def one(seed, values, state, rows):
      body = train_step(
        self._member(seed, values),
        Variant(self.plan.bucket),
        self._layout,
        unroll=self._all.unroll,
        one_of_many=True,
      )
      return body(state, arrays, StepBatch(rows, header))

    state, reports = jax.vmap(one)(seeds, values, state, rows)
    return state, reports[:, 0]

  def _measure(self, state, arrays, sums, first):
    recipe = self._recipe
    body = evaluation_steps.evaluation_step(
      recipe.model,
      recipe.task,
      recipe.inputs.load,
      self._slots,
      self._examples,
    )
    state = state_lib.to_evaluate(state)
    return jax.vmap(body, in_axes=(0, 0, None, 0, None))(
      state.params, state.model_state, arrays, sums, first
    )

  @contextlib.contextmanager
  def _counted(self) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    self.compile_seconds += time.perf_counter() - begin

  def _program(self, key: Any, make: Callable[[], Any]) -> CompiledOnce:
    """The program of a key, which tells the shapes of its arguments."""
    if key not in self._programs:
      self._programs[key] = CompiledOnce(make(), self._counted)
    return self._programs[key]

  # Running them.

  def room(self, members: int) -> int:
    """Places of the smallest program for so many: devices x a power of 2."""
    each = -(-members // self.devices)
    return self.devices * 2 ** math.ceil(math.log2(each))

  def start(self, members: Sequence[Member]) -> Group:
    """Fresh members, in the first places of the smallest program."""
    room = self.room(len(members))
    # Idle places repeat the first member and train on nothing.
    padded = [*members, *[members[0]] * (room - len(members))]
    halves = [data.position_halves(m.seed) for m in padded]
    seeds = self._all.place(np.array(halves), BY_REPLICA)
    values = np.array([m.values for m in padded], np.float32).reshape(room, -1)
    values = self._all.place(values, BY_REPLICA)
    create = self._program(
      ('create', room),
      lambda: self._spmd(self._create, (BY_REPLICA, BY_REPLICA)),
    )
    num_examples = self._recipe.inputs.train.num_examples
    orders = [data.Order(num_examples, m.seed) for m in padded]
    places = {place: place for place in range(len(members))}
    return Group(places, orders, seeds, values, create.run(seeds, values))

  def batches(self, group: Group, call: Call, updates: int) -> StepBatch:
    """The batches of a call of every member, in arrays with room for more.

    Returns:
      rows [places, 1, updates, 2 + slots] and header [updates, 6].
    """
    plan, room = call.plan, len(group.orders)
    first = self._layout.first_places(
      call.examples, plan.bucket.microbatch_size
    )
    places = self._layout.places(first, plan.bucket).reshape(1, 1, -1)
    slots = places.shape[-1]
    indices = np.zeros((room, 1, updates, slots), np.int32)
    _, end = call.after(call.count)
    for place in group.places:
      taken = data.take(group.orders[place], call.examples, end)
      taken = taken.reshape(call.count, -1)
      indices[place] = feeds.slots(taken, places, updates)[0]
    first = np.zeros((room, 1), np.int32)
    packed = pack(call, indices, first, stop=False)
    return self._place(packed)

  def dispatch(self, group: Group, call: Call, updates: int) -> jax.Array:
    """Dispatches the updates of a call of all members at once.

    Args:
      group: of the members.
      call: of at most `updates` updates.
      updates: for which the program has room.

    Returns:
      Their reports [places, updates, 9], on their way; see `messages.Report`.
    """
    batch = self.batches(group, call, updates)
    program = self._program(
      ('train', *batch.rows.shape),
      lambda: self._spmd(
        self._train,
        (BY_REPLICA, BY_REPLICA, BY_REPLICA, WHOLE, BY_REPLICA, WHOLE),
        donate=(2,),
      ),
    )
    group.state, reports = program.run(
      group.seeds, group.values, group.state, self.arrays[0], *batch
    )
    return reports

  def evaluate(self, group: Group) -> tuple[list[dict[str, float]], list[bool]]:
    """Of each place, exact means over the evaluation split, and whether its
    state is finite: read together, as devices wait for the host meanwhile."""
    room, task = len(group.orders), self._recipe.task
    check = self._program(
      ('finite', room),
      lambda: self._spmd(jax.vmap(state_lib.is_finite), (BY_REPLICA,)),
    )
    finite = check.run(group.state)
    zeros = np.zeros(room, np.float32)
    sums = self._all.place(
      (dict.fromkeys(task.metric_names, zeros), zeros), BY_REPLICA
    )
    program = self._program(
      ('measure', room),
      lambda: self._spmd(self._measure, (BY_REPLICA, WHOLE, BY_REPLICA, WHOLE)),
    )
    places = group.places if task.whole else ()
    gathered = {place: Gathered(self._examples) for place in places}
    for start in range(0, self._examples, self._slots):
      first = self._all.place(np.int32(start))
      sums = program.run(group.state, self.arrays[1], sums, first)
      if task.whole is not None:
        sums, found = sums
        values, counts = jax.device_get(found)
        for i, one in gathered.items():
          one.add(jax.tree.map(lambda x, i=i: x[i], values), counts[i])
    (totals, weights), finite = jax.device_get((sums, finite))
    metrics = [
      summary(
        task,
        {name: total[i] for name, total in totals.items()},
        weights[i],
        gathered.get(i),
      )
      for i in range(room)
    ]
    return metrics, finite.tolist()

  def keep(self, group: Group) -> None:
    """Moves the members that are left to a smaller program, if one will do."""
    left = list(group.places)
    room = self.room(len(left))
    if room == len(group.orders):
      return
    index = [*left, *[left[0]] * (room - len(left))]
    program = self._program(
      ('keep', len(group.orders), room),
      lambda: jax.jit(
        lambda arrays, index: jax.tree.map(lambda x: x[index], arrays),
        out_shardings=self._all.shardings(BY_REPLICA),
      ),
    )
    arrays = group.seeds, group.values, group.state
    group.seeds, group.values, group.state = program.run(
      arrays, np.array(index, np.int32)
    )
    group.orders = [group.orders[place] for place in index]
    group.places = dict(enumerate(group.places.values()))
