"""A run on paper: its calls in order, from the loop's own rules.

Nothing is trained. A rule that reads progress alone decides here what it will
decide there; one that reads a loss is given that of a curve; of any other it is
known only that its sizes lie on the ladder.
"""

import bisect
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adabatch import controllers
from adabatch.config import ConfigError
from adabatch.controllers.base import PROGRESS
from adabatch.devices.messages import Call, Report
from adabatch.optim import scaling as scaling_lib
from adabatch.train.build import Parts, make_decisions, make_replicas
from adabatch.train.calls import Progress, Update, next_multiple
from adabatch.train.decisions import Measure
from adabatch.train.next_call import next_call
from adabatch.train.optimizer import make_learning_rate, make_scaling

# Examples -> the loss that is assumed after so many.
Losses = Callable[[int], float]
LOSSES = frozenset(['loss', 'full_loss', 'subset_loss'])


class Stretch(NamedTuple):
  """Updates alike, and what comes after the last of them.

  Attributes:
    call: the updates.
    evaluates: whether an evaluation is due after it.
    saves: whether a checkpoint is.
  """

  call: Call
  evaluates: bool
  saves: bool


def is_exact(parts: Parts) -> bool:
  """Whether the sizes are known before: the rule reads progress alone."""
  return not (parts.controller.needs - PROGRESS or _is_tuned(parts))


def follows_losses(parts: Parts) -> bool:
  """Whether a curve of the loss is all that the rule has to be given."""
  needs = parts.controller.needs - PROGRESS
  return bool(needs) and needs <= LOSSES and not _is_tuned(parts)


def _is_tuned(parts: Parts) -> bool:
  return parts.config.sync.tune.enabled


def walk(parts: Parts, losses: Losses | None = None) -> Iterator[Stretch]:
  """The calls of a run that nothing disturbs and whose target is not reached.

  Args:
    parts: of the run.
    losses: what a rule that reads them is given.

  Raises:
    ConfigError: if the rule reads what is not known before.
  """
  if not is_exact(parts) and not (losses and follows_losses(parts)):
    name = parts.config.controller.name
    raise ConfigError(f'controller.name={name!r} decides by what is measured')
  at = Progress(next_multiple(0, parts.due.evaluation_span))

  def measure(update: int, examples: int) -> tuple[dict[str, float], int]:
    del update
    assert losses is not None, 'nothing else is measured'
    asked = parts.controller.needs & {'full_loss', 'subset_loss'}
    return dict.fromkeys(asked, losses(examples)), 0

  decisions, replicas = (
    make_decisions(parts, Measure(measure)),
    make_replicas(parts),
  )
  decisions.decide(0, 0)
  while not at.over(parts.end):
    replicas.restart_due(at.examples)
    call = next_call(at, parts, decisions, replicas)
    replicas.dispatched(call, 0)
    at.update, at.examples = call.after(call.count)
    if decisions.measured:
      assert losses is not None, 'checked above'
      for i in range(1, call.count + 1):
        decides = call.decides and i == call.count
        decisions.observe(_update(call, i, losses, decides=decides))
    elif call.decides:
      decisions.decide(at.update, at.examples)
    evaluates = at.evaluates(parts.end)
    if evaluates:
      at.evaluated = at.update
      at.next_evaluation = parts.due.next_evaluation(at.examples)
    saves = at.over(parts.end) or parts.due.saves(at.update)
    yield Stretch(call, evaluates, saves)


def _update(call: Call, number: int, losses: Losses, *, decides: bool):
  """What the loop would have of an update with this loss."""
  update, examples = call.after(number)
  loss = losses(examples - call.plan.batch_size)
  report = Report(loss, math.nan, math.nan, math.nan, math.nan, 0.0, 0.0)
  return Update(update, examples, 0.0, call.plan, decides, report, None)


def constantly(parts: Parts, batch_size: int) -> Parts:
  """The same run with one batch size, that of a rung."""
  rule = controllers.constant(initial_batch_size=batch_size)
  config = parts.config.copy_and_resolve_references()
  config.controller.initial_batch_size = batch_size
  return parts._replace(config=config, controller=rule)


# Learning rates.


def learning_rates(
  parts: Parts, batch_size: Any, damping: Any, examples: Any
) -> np.ndarray | None:
  """Effective learning rates of updates, damping included, as they report it.

  None where the scaling reads the gradient noise.

  Args:
    parts: of the run.
    batch_size, damping, examples: of the updates, [n]; the last before each.
  """
  if isinstance(make_scaling(parts.config), scaling_lib.StatefulScaling):
    return None
  rule = make_learning_rate(parts.config, parts.extent)
  empty: dict[str, Any] = {}

  @jax.jit
  def rates(batch_size, damping, examples):
    def one(batch_size, damping, examples):
      _, state = rule.update(
        empty,
        rule.init(empty),
        empty,
        batch_size=batch_size,
        examples=examples,
      )
      rate = optax.tree_utils.tree_get(state, 'learning_rate')
      return rate * damping

    return jax.lax.map(lambda x: one(*x), (batch_size, damping, examples))

  given = (jnp.asarray(x, jnp.float32) for x in (batch_size, damping, examples))
  return np.asarray(rates(*given))


# Assumed losses.


def read_losses(text: str) -> Losses:
  """The curve that `plan.loss` names.

  Args:
    text: a directory of a run, whose training losses are taken, or a power law
      'FIRST LAST EXPONENT': LAST + (FIRST - LAST) (1 + examples)^-EXPONENT.

  Raises:
    ConfigError: if it is neither.

  >>> losses = read_losses('2.5 0.5 0.5')
  >>> losses(0), losses(3)
  (2.5, 1.5)
  """
  try:
    first, last, exponent = map(float, text.split())
  except ValueError:
    return _of_run(pathlib.Path(text))
  if not (math.isfinite(first + last + exponent) and exponent >= 0):
    raise ConfigError(
      f'plan.loss={text!r} is no power law: give finite numbers'
    )
  return lambda examples: last + (first - last) * (1.0 + examples) ** -exponent


def _of_run(directory: pathlib.Path) -> Losses:
  path, found = directory / 'metrics.jsonl', []
  try:
    with path.open() as file:
      for line in file:
        record = json.loads(line)
        loss = record['loss'] if record['kind'] == 'train' else None
        if loss is not None:  # it was not finite
          found.append((int(record['examples']), float(loss)))
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ConfigError(
      f'plan.loss={str(directory)!r} is neither a directory of a run nor '
      f"'FIRST LAST EXPONENT' ({error})"
    ) from error
  if not found:
    raise ConfigError(f'plan.loss={str(directory)!r}: {path} has no losses')
  examples, losses = map(list, zip(*sorted(found), strict=True))

  def at(done: int) -> float:
    i = bisect.bisect_left(examples, done)
    return losses[min(i, len(losses) - 1)]

  return at
