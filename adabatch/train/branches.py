"""Branches of a run: trained on from one point, over the same examples.

A branch has a constant batch size and the learning rate of the run at that
point, times a factor. Branches that begin at the same place of the data order
see the same examples in the same order, and the learning rate schedule runs on
as it would have, so that they differ in the batch size alone. Their states are
copies; the run's own is left as it was.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adabatch import optim
from adabatch.config import Config, ConfigError, refusing
from adabatch.controllers import buckets
from adabatch.controllers.buckets import Ladder, Plan
from adabatch.devices.losses import ExampleLosses, Losses
from adabatch.devices.measurements import make_calibration
from adabatch.devices.messages import Call
from adabatch.devices.pieces import Skipped
from adabatch.devices.programs import Compiling
from adabatch.devices.trainer import Restored, Trainer
from adabatch.train.build import Parts
from adabatch.train.calls import Progress
from adabatch.train.optimizer import (
  Held,
  make_optimizer,
  remembers_updates,
)

RATES = ('rule', 'none', 'tune')


class Point(NamedTuple):
  """Where branches begin.

  Attributes:
    update, examples: done there.
    left_out: places of the data order that the run jumped over before.
    plan: what the run would do next.
    rate: a factor on the learning rate since the run went back.
  """

  update: int
  examples: int
  left_out: int
  plan: Plan
  rate: float


def point_of(parts: Parts, host: dict[str, Any]) -> Point:
  """Of a checkpoint.

  Args:
    parts: of the run.
    host: the checkpoint's JSON.
  """
  at = Progress(**host['progress'])
  plan = buckets.plan(host['decisions']['nominal'], parts.ladder)
  return Point(at.update, at.examples, at.left_out, plan, at.rate)


class Branch(NamedTuple):
  """One way to go on.

  Attributes:
    batch_size: in examples.
    rate: factor on the learning rate that the run has.
    offset: places of the data order before its first example.
  """

  batch_size: int
  rate: float
  offset: int = 0


def noise_exponent(config: Config) -> float:
  """r, such that a rate that grows as B^r keeps the noise of each example.

  Raises:
    ConfigError: for an optimizer of which nobody has said it.
  """
  o, given = config.optimizer, config.learning_rate.damping_exponent
  if o.name in optim.OPTIMIZERS:
    return optim.damping_exponent(o.name, 'none')
  if given is None:
    raise ConfigError(
      f'optimizer.name={o.name} has no known rule for its rate at other batch '
      "sizes: set learning_rate.damping_exponent, or probe.learning_rate='none'"
    )
  # That key is r - p: what the scaling does not do already.
  return given + optim.SCALING_EXPONENTS[config.learning_rate.scaling]


def constant_ladder(ladder: Ladder, batch_size: int) -> Ladder:
  """The one bucket that runs a batch size, as the run would.

  Args:
    ladder: of the run.
    batch_size: in examples; any, also none of its rungs.

  Raises:
    ConfigError: if it cannot be run.

  >>> run = buckets.ladder(16, 64, devices=1, max_per_device=32)
  >>> buckets.bucket_for(40, constant_ladder(run, 40))
  Bucket(microbatch_size=20, accumulation_steps=2, devices=1)
  """
  one = ladder._replace(batch_sizes=(batch_size,))
  if one.group_size is not None:
    # Nobody reads the noise, and groups are the same in any microbatches.
    one = one._replace(min_microbatches=1)
  with refusing(f'probe.factors: a batch of {batch_size}'):
    buckets.bucket_for(batch_size, one)
  return one


def calls_of(
  point: Point,
  branch: Branch,
  examples: int,
  ladder: Ladder,
  *,
  room: int = 1,
  warmup: int = 0,
  exponent: float = 1.0,
  looks: Sequence[int] = (),
) -> Iterator[Call]:
  """The calls of a branch; the last batch is cut where the examples end.

  Args:
    point: where it begins.
    branch: how it goes on.
    examples: that it trains on.
    ladder: of its batch size alone.
    room: most updates of a call.
    warmup: updates over which a rate above the run's is come to.
    exponent: of the rate in the batch size, for a batch that is cut.
    looks: examples at which a call has to end, in whole batches before them.
  """
  marks = {look // branch.batch_size for look in looks}
  bucket = buckets.bucket_for(branch.batch_size, ladder)
  whole, rest = divmod(examples, branch.batch_size)
  done = 0
  while done < whole + bool(rest):
    size = branch.batch_size if done < whole else rest
    rate, count = branch.rate, min(room, whole - done)
    count = min([count, *(mark - done for mark in marks if mark > done)])
    if done < warmup:
      rate, count = min(rate, 1 + (rate - 1) * (done + 1) / (warmup + 1)), 1
    if done == whole:
      rate, count = rate * (rest / branch.batch_size) ** exponent, 1
    damping = point.plan.damping * rate
    yield Call(
      update=point.update + done,
      examples=point.examples + done * branch.batch_size,
      count=count,
      plan=Plan(float(branch.batch_size), size, damping, bucket),
      left_out=point.left_out + branch.offset,
      rate=point.rate,
    )
    done += count


def train_on(
  trainer: Trainer,
  calls: Iterable[Call],
  compiling: Compiling = nullcontext,
  stop: Callable[[], bool] = lambda: False,
) -> bool:
  """Trains, and reads no report; whether it came to the end.

  Args:
    trainer: of the state, whose feed has been started.
    calls: one after the other.
    compiling: makes what is entered while a program is compiled.
    stop: asked between calls.
  """
  flying = collections.deque()
  for call in calls:
    if stop():
      trainer.wait()
      return False
    if not trainer.ready(call):
      trainer.wait()
      with compiling():
        trainer.compile(call)
    flying.append(trainer.dispatch(call, stop=False))
    while len(flying) > trainer.calls_in_flight:
      jax.block_until_ready(flying.popleft())
  trainer.wait()
  return True


class Branches:
  """Lets branches grow from points of a run that have one batch size.

  Attributes:
    evaluated: examples that an evaluation of a branch goes over, with those
      that its running statistics are made of.
  """

  def __init__(
    self,
    parts: Parts,
    batch_size: int,
    *,
    memory: bool,
    exponent: float = 1.0,
    warmup: int = 0,
    skipped: Skipped = lambda split: lambda record, reason: None,
    compiling: Compiling = nullcontext,
  ):
    """Nothing is compiled yet.

    Args:
      parts: of the run.
      batch_size: of the run at these points.
      memory: see `optimizer.Held`.
      exponent: of the rate in the batch size, for a last batch that is cut.
      warmup: updates over which a rate above the run's is come to.
      skipped: is told of records that cannot be read.
      compiling: makes what is entered while a program is compiled.

    Raises:
      ConfigError: for replicas that share a batch.
    """
    if parts.recipe.sync is not None:
      raise ConfigError(
        f'sync.name={parts.config.sync.name!r} shares a batch among models '
        "that differ, and branches have one: probe with sync.name='synchronous'"
      )
    self._parts, self._warmup, self._compiling = parts, warmup, compiling
    self._beta2 = None
    if memory and remembers_updates(parts.config):
      self._beta2 = parts.config.optimizer.beta2
    self._exponent = exponent
    held = Held(batch_size, memory)
    recipe = parts.recipe._replace(
      tx=make_optimizer(parts.config, parts.extent, held),
      needs=frozenset(),
      estimate_noise=False,
      keep_gradient=False,
    )
    self._recipe = recipe
    self._trainer = Trainer(
      recipe,
      skipped=skipped,
      compiling=compiling,
    )
    self._begin = recipe.devices.jit(self._fresh)
    pieces = self._trainer.evaluator.pieces
    self._losses = Losses(recipe, pieces, compiling)
    self._calibration = None
    if jax.tree.leaves(self._trainer.state.model_state):
      self._calibration = make_calibration(recipe, skipped, compiling)
    self.evaluated = pieces.examples
    if self._calibration is not None:
      self.evaluated += self._calibration.examples
    self._ladders: dict[int, Ladder] = {}

  def _fresh(self, state: Any) -> Any:
    """A copy of the run's state, as the optimizer of the branches has it."""
    state = jax.tree.map(jnp.copy, state)._replace(previous=None)
    if self._beta2 is None:
      return state
    opt_state = optim.remembering_examples(state.opt_state, self._beta2)
    return state._replace(opt_state=opt_state)

  def ladder(self, batch_size: int) -> Ladder:
    """The one bucket of a size.

    Raises:
      ConfigError: if it cannot be run.
    """
    if batch_size not in self._ladders:
      made = constant_ladder(self._parts.ladder, batch_size)
      self._ladders[batch_size] = made
    return self._ladders[batch_size]

  def grow(
    self,
    state: Any,
    point: Point,
    branch: Branch,
    examples: int,
    *,
    looks: Sequence[int] = (),
    **how: Any,
  ) -> ExampleLosses | None:
    """`train`, and `evaluate` what came of it; None if it was stopped.

    With `looks` also after so many examples, rising; losses are the means.
    """
    found: list[ExampleLosses] = []
    left = [look // branch.batch_size * branch.batch_size for look in looks]

    def look(done: int) -> None:
      if left and done >= left[0]:
        del left[0]
        found.append(self.evaluate())

    how |= {'looks': looks, 'look': look}
    if self.train(state, point, branch, examples, **how) is None:
      return None
    found.append(self.evaluate())
    losses = np.mean([one.losses for one in found], 0)
    return found[-1]._replace(losses=losses.astype(np.float32))

  def train(
    self,
    state: Any,
    point: Point,
    branch: Branch,
    examples: int,
    *,
    stop: Callable[[], bool] = lambda: False,
    told: Callable[[int], Any] = lambda examples: None,
    looks: Sequence[int] = (),
    look: Callable[[int], Any] = lambda done: None,
  ) -> Any:
    """Trains on from a state, which stays.

    Args:
      state: of the run at the point.
      point: where that is.
      branch: how to go on.
      examples: to train on.
      stop: asked between calls.
      told: is told of examples as they are dispatched.
      looks: see `calls_of`.
      look: is told of all examples so far, after each call but the last.

    Returns:
      The branch's state; None if it was stopped.
    """
    trainer = self._trainer
    trainer.release()  # of the branch before
    trainer.go_on(Restored(self._begin(state), 1), 1)
    trainer.feed.start(point.examples + point.left_out + branch.offset)
    ladder = self.ladder(branch.batch_size)

    def calls() -> Iterator[Call]:
      done = 0
      for call in calls_of(
        point,
        branch,
        examples,
        ladder,
        room=trainer.room(buckets.bucket_for(branch.batch_size, ladder)),
        warmup=self._warmup,
        exponent=self._exponent,
        looks=looks,
      ):
        yield call
        told(call.count * call.plan.batch_size)
        done += call.count * call.plan.batch_size
        if done < examples:
          look(done)

    if not train_on(trainer, calls(), self._compiling, stop):
      return None
    return trainer.state

  def evaluate(self) -> ExampleLosses:
    """The losses of held-out examples, of the branch that was trained last.

    In evaluation mode, with statistics of its own where the network has them.
    Of the weights themselves: an average of them would be mostly of those that
    all branches share.
    """
    state = self._trainer.everywhere()
    if self._calibration is not None:
      state = self._calibration(state)
    return self._losses.take(state)

  def close(self) -> None:
    """Ends reading and compiling."""
    self._trainer.close()
