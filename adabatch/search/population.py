"""Many trials of one batch size side by side, as the members of a population.

Each member is the run that `train` would make of its config, and one that
diverges disturbs nobody. One that holds a single member is how trials run one
after the other.
"""

import collections
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from adabatch.config import Config
from adabatch.controllers import buckets
from adabatch.controllers.buckets import Ladder
from adabatch.devices.messages import Call, Report
from adabatch.devices.population import Group, Member, Population
from adabatch.train.build import Parts
from adabatch.train.calls import Progress, updates_until
from adabatch.train.optimizer import make_optimizer

# What may differ between the members of a population.
TRACED = frozenset(
  [
    'learning_rate.base',
    'learning_rate.decay.final',
    'learning_rate.decay.length',
    'learning_rate.decay.cooldown',
    'optimizer.momentum',
    'optimizer.beta1',
    'optimizer.beta2',
    'optimizer.epsilon',
    'optimizer.weight_decay',
    'optimizer.clip_norm',
    'ema.half_life',
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


def why_not(parts: Parts, keys: Sequence[str]) -> str | None:
  """Why trials cannot be run as a population; None if they can."""
  config, recipe = parts.config, parts.recipe
  others = sorted(set(keys) - TRACED)
  if others:
    return f'{others[0]} is searched'
  if config.init_from is not None:
    return 'init_from'
  if config.controller.name != 'constant':
    return f'controller.name={config.controller.name!r}'
  if recipe.estimate_noise:
    return f'learning_rate.scaling={config.learning_rate.scaling!r}'
  if config.sync.name != 'synchronous':
    return f'sync.name={config.sync.name!r}'
  if config.on_nonfinite != 'stop':
    return f'on_nonfinite={config.on_nonfinite!r}'
  if recipe.inputs.streaming:
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


def make_population(
  parts: Parts, keys: Sequence[str], arrays: tuple[Any, Any] | None = None
) -> Population:
  """The programs of all trials of a config.

  Args:
    parts: of every trial, but for the seed and the keys.
    keys: of the config that trials differ in; all in TRACED.
    arrays: both splits on the devices, if they are there already.
  """
  config = parts.config

  def make_tx(values: Any) -> Any:
    replaced = dict(zip(keys, values, strict=True))
    return make_optimizer(overlay(config, replaced), parts.extent)

  size = config.controller.initial_batch_size
  plan = buckets.plan(size, one_device(parts))
  return Population(parts.recipe, make_tx, plan, arrays)


def one_device(parts: Parts) -> Ladder:
  """The one size of all trials, the whole of which a device runs."""
  size = parts.config.controller.initial_batch_size
  return buckets.ladder(
    size,
    size,
    devices=1,
    max_per_device=parts.config.buckets.max_per_device,
    rounding='exact',
    group_size=parts.ladder.group_size,
    damping_exponent=parts.ladder.damping_exponent,
  )


def run(
  population: Population,
  parts: Parts,
  members: Sequence[Member],
  mode: Mode,
  *,
  limit: Callable[[int, Mapping[int, Outcome]], int | None],
  stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, Outcome]]:
  """Trains members side by side; yields each as it ends.

  Args:
    population: their programs.
    parts: of every member.
    members: which.
    mode: how they are run.
    limit: (a member, what is known of all) -> updates after which it need not
      go on; None: to the end. Asked after every evaluation.
    stop: whether to give up; those that are left are not yielded.

  Yields:
    A member, by its place among the members, and how it ended.
  """
  group, due = population.start(members), parts.due
  at = Progress(next_evaluation=due.next_evaluation(0))
  known = {i: Outcome(0, False, ()) for i in range(len(members))}
  while group.places and not stop():
    begin, compiled = time.perf_counter(), population.compile_seconds
    diverged = _advance(population, parts, group, at, mode.updates_per_call)
    at.next_evaluation = due.next_evaluation(at.examples)
    seconds = time.perf_counter() - begin - population.compile_seconds
    each = (seconds + compiled) / len(group.places)
    metrics, finite = population.evaluate(group)
    for place, i in group.places.items():
      if not (finite[place] and math.isfinite(metrics[place]['loss'])):
        diverged.setdefault(place, at.update)
      known[i] = (
        known[i]._replace(updates=diverged[place], diverged=True)
        if place in diverged
        else known[i].measured(at.update, at.examples, each, metrics[place])
      )
    ended = []
    for place, i in group.places.items():
      last = limit(i, known)
      reached = last is not None and at.update >= last
      if known[i].diverged or reached or at.over(parts.end):
        ended.append((place, i))
    for place, i in ended:
      del group.places[place]
      yield i, known[i]
    if group.places:
      population.keep(group)


def _advance(
  population: Population, parts: Parts, group: Group, at: Progress, most: int
) -> dict[int, int]:
  """Trains to the next evaluation; places that diverged, in which update."""
  end = parts.end
  due = parts.due._replace(checkpoint=sys.maxsize)  # there are none
  diverged: dict[int, int] = {}
  pending: collections.deque[tuple[Call, jax.Array]] = collections.deque()
  while True:
    there = at.over(end) or at.examples >= at.next_evaluation
    if not there:
      size = end.cut(at.examples, population.plan.batch_size)
      plan = buckets.cut(population.plan, size, parts.ladder)
      count = updates_until(at, size, end, due, most=most)
      call = Call(at.update, at.examples, count, plan)
      pending.append((call, population.dispatch(group, call, most)))
      at.update, at.examples = call.after(count)
    # One call behind, so that the devices need not wait for the host.
    if len(pending) > 1 or (there and pending):
      call, reports = pending.popleft()
      report = Report(*np.moveaxis(np.asarray(reports), -1, 0))
      finite = report.finite
      for place in group.places:
        if place not in diverged and not finite[place, : call.count].all():
          diverged[place] = call.after(int(finite[place].argmin()) + 1)[0]
    elif there:
      return diverged
