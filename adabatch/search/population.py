"""Many trials of one batch size in one compiled program.

The members of a population differ in their seeds and in a few metaparameters,
which are arrays of the program and not constants in it. So a program is
compiled once for a batch size and an optimizer, whatever the trials are; one
that holds a single member is how trials run one after the other. Members have
nothing to do with one another: each is the run that `train` would make of its
config, and one that diverges disturbs nobody.

Members are spread over the devices; those of one device are a `vmap`.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from adabatch import data
from adabatch.config import Config
from adabatch.controllers import buckets
from adabatch.devices import evaluation_steps, parallel, steps, train_state
from adabatch.devices.parallel import REPLICAS
from adabatch.devices.updates import CPU_UNROLL
from adabatch.train.experiment import Experiment
from adabatch.train.loop import next_evaluation
from adabatch.train.optimization import make_optimizer

# What may differ between the members of a population.
TRACED = frozenset(
  [
    'learning_rate.base',
    'learning_rate.decay.final',
    'learning_rate.decay.length',
    'optimizer.momentum',
    'optimizer.beta1',
    'optimizer.beta2',
    'optimizer.epsilon',
    'optimizer.weight_decay',
  ]
)


class Mode(NamedTuple):
  """How trials are run.

  Attributes:
    members: trials that a device trains side by side.
    updates_per_call: most updates in one call of the program.
  """

  members: int
  updates_per_call: int


class Member(NamedTuple):
  """A trial of a population.

  Attributes:
    seed: of its initialisation, data order and augmentation.
    values: of the metaparameters, in the order of the population's keys.
  """

  seed: int
  values: tuple[float, ...]


class Evaluation(NamedTuple):
  """What one evaluation measured.

  Attributes:
    update, examples: how far the member was.
    seconds: of training up to here, shared equally among the members that
      trained side by side.
    metrics: of the evaluation split.
  """

  update: int
  examples: int
  seconds: float
  metrics: dict[str, float]


class Outcome(NamedTuple):
  """How a member ended.

  Attributes:
    updates: that it took, or so far.
    diverged: whether the loss or the gradient of the last was not finite.
    evaluations: in order.
  """

  updates: int
  diverged: bool
  evaluations: tuple[Evaluation, ...]

  def measured(
    self, update: int, examples: int, seconds: float, metrics: dict[str, float]
  ) -> 'Outcome':
    """After one more evaluation; `seconds` have passed since the one before."""
    before = self.evaluations[-1].seconds if self.evaluations else 0.0
    new = Evaluation(update, examples, before + seconds, metrics)
    return Outcome(update, self.diverged, (*self.evaluations, new))


def why_not(
  config: Config, experiment: Experiment, keys: Sequence[str]
) -> str | None:
  """Why trials cannot be run as a population; None if they can."""
  others = sorted(set(keys) - TRACED)
  if others:
    return f'{others[0]} is searched'
  if config.controller.name != 'constant':
    return f'controller.name={config.controller.name!r}'
  if experiment.estimate_noise:
    return f'learning_rate.scaling={config.learning_rate.scaling!r}'
  if config.sync.name != 'synchronous':
    return f'sync.name={config.sync.name!r}'
  if experiment.inputs.streaming:
    return 'the data are streamed'
  if jax.process_count() > 1:
    return 'there are several processes'
  return None


def overlay(config: Config, values: Mapping[str, Any]) -> Any:
  """The config with some of its values replaced, by traced arrays perhaps.

  >>> from adabatch.config import default
  >>> overlay(default(), {'optimizer.momentum': 0.5}).optimizer.momentum
  0.5
  """

  def copy(node: ConfigDict, path: str) -> SimpleNamespace:
    fields = {}
    for key, value in node.items():
      name = f'{path}{key}'
      if isinstance(value, ConfigDict):
        fields[key] = copy(value, f'{name}.')
      else:
        fields[key] = values.get(name, value)
    return SimpleNamespace(**fields)

  return copy(config, '')


class Population:
  """Compiled programs for the trials of one config.

  Programs are compiled when they are first needed, for a number of members and
  of updates in a call, and kept.
  """

  def __init__(
    self,
    config: Config,
    experiment: Experiment,
    keys: Sequence[str],
    arrays: tuple[Any, Any] | None = None,
  ):
    """What all members share.

    Args:
      config: of every member, but for the seed and the keys.
      experiment: built from it.
      keys: of the config that members differ in; all in TRACED.
      arrays: both splits on the devices, if they are there already.
    """
    self._config, self._experiment = config, experiment
    self._keys = tuple(keys)
    self.devices = experiment.mesh.size
    self._mesh = parallel.replica_mesh(experiment.mesh, self.devices)
    inputs = experiment.inputs
    if arrays is None:
      arrays = place_splits(experiment)
    self.arrays = arrays
    size = config.controller.initial_batch_size
    # One device runs the whole batch of its members.
    self._ladder = buckets.ladder(
      size,
      size,
      devices=1,
      max_per_device=config.buckets.max_per_device,
      rounding='exact',
      group_size=experiment.ladder.group_size,
      damping_exponent=experiment.ladder.damping_exponent,
    )
    self.plan = buckets.plan(size, self._ladder)
    self.num_examples = inputs.train.num_examples
    self._end = experiment.end
    self.total_updates = self._end.left(0, 0, size)
    self._eval_examples = inputs.evaluation.num_examples
    self._eval_slots = min(config.eval.max_per_device, self._eval_examples)
    self._programs: dict[Any, Any] = {}
    self.compile_seconds = 0.0

  # The programs.

  def _jit(self, body, layout, donate=()):
    return parallel.spmd(
      body,
      self._mesh,
      layout=layout,
      results=REPLICAS,
      donate=donate,
      options=self._experiment.compiler_options,
    )

  def _tx(self, values):
    replaced = dict(zip(self._keys, values, strict=True))
    return make_optimizer(
      overlay(self._config, replaced), self._experiment.extent
    )

  def _create(self, seeds, values):
    e = self._experiment
    example = np.zeros(e.network_input.shape, e.network_input.dtype)

    def one(seed, values):
      rng = jax.random.key(seed)
      return train_state.create(e.model, example, self._tx(values), rng)

    return jax.vmap(one)(seeds, values)

  def _train(self, seeds, values, state, arrays, rows, header):
    e = self._experiment
    platform = self._mesh.devices.flat[0].platform

    def one(seed, values, state, rows):
      body = steps.train_step(
        e.model,
        e.task,
        self._tx(values),
        e.inputs.load_train(seed),
        self.plan.bucket,
        rng=jax.random.key(seed),
        unroll=CPU_UNROLL if platform == 'cpu' else 1,
        one_of_many=True,
      )
      return body(state, arrays, steps.StepBatch(rows, header))

    state, reports = jax.vmap(one)(seeds, values, state, rows)
    return state, reports[:, 0]

  def _measure(self, state, arrays, sums, first):
    e = self._experiment
    body = evaluation_steps.evaluation_step(
      e.model, e.task, e.inputs.load, self._eval_slots, self._eval_examples
    )
    return jax.vmap(body, in_axes=(0, 0, None, 0, None))(
      state.params, state.model_state, arrays, sums, first
    )

  def _program(self, key, make, *args):
    """The compiled program of a key, made for arguments like these."""
    if key not in self._programs:
      begin = time.perf_counter()
      self._programs[key] = make().lower(*args).compile()
      self.compile_seconds += time.perf_counter() - begin
    return self._programs[key]

  def _place(self, rows):
    return jax.device_put(rows, parallel.shardings(REPLICAS, self._mesh))

  # Running them.

  def room(self, members: int) -> int:
    """Places of the smallest program for so many: devices x a power of 2."""
    each = -(-members // self.devices)
    return self.devices * 2 ** math.ceil(math.log2(each))

  def start(self, members: Sequence[Member]) -> 'Group':
    """Fresh members, in the first places of the smallest program."""
    room = self.room(len(members))
    # Idle places repeat the first member and train on nothing.
    padded = [*members, *[members[0]] * (room - len(members))]
    seeds = self._place(np.array([m.seed for m in padded], np.uint32))
    values = self._place(
      np.array([m.values for m in padded], np.float32).reshape(room, -1)
    )
    create = self._program(
      ('create', room),
      lambda: self._jit(self._create, (REPLICAS, REPLICAS)),
      seeds,
      values,
    )
    places = {place: place for place in range(len(members))}
    orders = [data.Order(self.num_examples, m.seed) for m in padded]
    return Group(places, orders, seeds, values, create(seeds, values))

  def examples(self, update: int) -> int:
    """Trained on after so many updates."""
    return min(update * self.plan.batch_size, self._end.examples)

  def batches(
    self, group: 'Group', position: int, count: int, most: int
  ) -> steps.StepBatch:
    """The next `count` batches of every member, in arrays with room for more.

    One batch, if it is the one that the end of the run cuts.

    Returns:
      rows [places, 1, most, 2 + slots] and header [most, 6].
    """
    size = self._end.cut(position, self.plan.batch_size)
    plan = buckets.cut(self.plan, size, self._ladder)
    slots = self.plan.bucket.slots_per_device
    room = len(group.orders)
    indices = np.zeros((room, 1, most, slots), np.int32)
    for place in group.places:
      order = group.orders[place]
      taken = data.take(order, position, position + count * size)
      indices[place, 0, :count, :size] = taken.reshape(count, size)
    packed = steps.pack(
      indices,
      first=np.zeros((room, 1), np.int32),
      count=count,
      position=position,
      batch_size=size,
      damping=plan.damping,
      stop=False,
    )
    return steps.StepBatch(
      self._place(packed.rows), parallel.replicate(packed.header, self._mesh)
    )

  def train_call(
    self, group: 'Group', position: int, count: int, most: int
  ) -> jax.Array:
    """Dispatches `count` updates of all members in one call.

    Returns:
      Their reports [places, most, 9], on their way; see `steps.StepSignals`.
    """
    batch = self.batches(group, position, count, most)
    layout = (REPLICAS, REPLICAS, REPLICAS, False, REPLICAS, False)
    args = (group.seeds, group.values, group.state, self.arrays[0], *batch)
    program = self._program(
      ('train', *batch.rows.shape),
      lambda: self._jit(self._train, layout, donate=(2,)),
      *args,
    )
    group.state, reports = program(*args)
    return reports

  def finite(self, group: 'Group') -> list[bool]:
    """Whether the state in each place is finite."""
    program = self._program(
      ('finite', len(group.orders)),
      lambda: self._jit(jax.vmap(train_state.is_finite), (REPLICAS,)),
      group.state,
    )
    return np.asarray(program(group.state)).tolist()

  def metrics(self, group: 'Group') -> list[dict[str, float]]:
    """Exact means over the evaluation split, of each place."""
    room = len(group.orders)
    task = self._experiment.task
    zeros = np.zeros(room, np.float32)
    sums = self._place((dict.fromkeys(task.metric_names, zeros), zeros))
    for first in range(0, self._eval_examples, self._eval_slots):
      first = parallel.replicate(np.int32(first), self._mesh)
      args = (group.state, self.arrays[1], sums, first)
      program = self._program(
        ('measure', room),
        lambda: self._jit(self._measure, (REPLICAS, False, REPLICAS, False)),
        *args,
      )
      sums = program(*args)
    totals, weights = jax.device_get(sums)
    return [
      task.summarize(
        {n: float(totals[n][i]) / float(weights[i]) for n in totals}
      )
      for i in range(room)
    ]

  def keep(self, group: 'Group') -> None:
    """Moves the members that are left to a smaller program, if one will do."""
    left = list(group.places)
    room = self.room(len(left))
    if room == len(group.orders):
      return
    index = [*left, *[left[0]] * (room - len(left))]
    arrays = group.seeds, group.values, group.state
    args = arrays, np.array(index, np.int32)
    program = self._program(
      ('keep', len(group.orders), room),
      lambda: jax.jit(
        lambda arrays, index: jax.tree.map(lambda x: x[index], arrays),
        out_shardings=parallel.shardings(REPLICAS, self._mesh),
      ),
      *args,
    )
    group.seeds, group.values, group.state = program(*args)
    group.orders = [group.orders[place] for place in index]
    group.places = dict(enumerate(group.places.values()))

  def run(
    self,
    members: Sequence[Member],
    mode: Mode,
    *,
    limit: Callable[[int, Mapping[int, Outcome]], int | None],
    stop: Callable[[], bool] = lambda: False,
  ) -> Iterator[tuple[int, Outcome]]:
    """Trains members side by side; yields each as it ends.

    Args:
      members: which.
      mode: how they are run.
      limit: (a member, what is known of all) -> updates after which it need not
        go on; None: to the end. Asked after every evaluation.
      stop: whether to give up; those that are left are not yielded.

    Yields:
      A member, by its place among the members, and how it ended.
    """
    group, size = self.start(members), self.plan.batch_size
    e, update = self._config.eval, 0
    known = {i: Outcome(0, False, ()) for i in range(len(members))}
    while group.places and not stop():
      due = next_evaluation(
        self.examples(update), e.every_epochs * self.num_examples, e.growth
      )
      until = min(math.ceil(due / size), self.total_updates)
      begin, compiled = time.perf_counter(), self.compile_seconds
      diverged = self._advance(group, update, until, mode.updates_per_call)
      seconds = time.perf_counter() - begin - self.compile_seconds + compiled
      each, update = seconds / len(group.places), until
      metrics, finite = self.metrics(group), self.finite(group)
      for place, i in group.places.items():
        if not (finite[place] and math.isfinite(metrics[place]['loss'])):
          diverged.setdefault(place, update)
        known[i] = (
          known[i]._replace(updates=diverged[place], diverged=True)
          if place in diverged
          else known[i].measured(
            update, self.examples(update), each, metrics[place]
          )
        )
      ended = []
      for place, i in group.places.items():
        last = limit(i, known)
        end = self.total_updates if last is None else last
        if known[i].diverged or update >= min(end, self.total_updates):
          ended.append((place, i))
      for place, i in ended:
        del group.places[place]
        yield i, known[i]
      if group.places:
        self.keep(group)

  def _advance(
    self, group: 'Group', update: int, until: int, most: int
  ) -> dict[int, int]:
    """Trains to an update; places that diverged, and in which update."""
    diverged: dict[int, int] = {}
    pending: list[tuple[int, int, jax.Array]] = []
    while update < until or pending:
      if update < until:
        position, size = self.examples(update), self.plan.batch_size
        whole = max(self._end.whole(position, size), 1)
        count = min(most, until - update, whole)
        reports = self.train_call(group, position, count, most)
        pending.append((update, count, reports))
        update += count
      # One call behind, so that the devices need not wait for the host.
      if len(pending) > 1 or update >= until:
        first, count, reports = pending.pop(0)
        signals = steps.StepSignals(*np.moveaxis(np.asarray(reports), -1, 0))
        finite = np.isfinite(signals.loss + signals.gradient_norm_squared)
        for place in group.places:
          if place not in diverged and not finite[place, :count].all():
            diverged[place] = first + int(finite[place].argmin()) + 1
    return diverged


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


def place_splits(experiment: Experiment) -> tuple[Any, Any]:
  """Both splits, whole on every device."""
  inputs, mesh = experiment.inputs, experiment.mesh
  mesh = parallel.replica_mesh(mesh, mesh.size)
  return (
    parallel.replicate(inputs.train.arrays, mesh),
    parallel.replicate(inputs.evaluation.arrays, mesh),
  )
