"""Which checkpoints a probe asks, and with which branches."""

import contextlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from adabatch import data
from adabatch.config import Config, ConfigError, refusing
from adabatch.controllers import parse_count
from adabatch.devices.agreed import decide
from adabatch.devices.mesh import any_process, is_first_process
from adabatch.devices.trainer import template
from adabatch.train.branches import (
  Branch,
  Point,
  constant_ladder,
  noise_exponent,
  point_of,
)
from adabatch.train.build import Parts
from adabatch.train.checkpoints import CheckpointError, Checkpoints, Saved
from adabatch.train.optimizer import largest_decay
from adabatch.train.workdir import Workdir

BATCHES = 32  # of the largest size, in a branch of the default length


class Task(NamedTuple):
  """A branch, and what it is called.

  Attributes:
    factor: of the batch size.
    multiplier: of the learning rate of the rule.
    repeat: which stretch of the data order.
    branch: how it grows.
  """

  factor: float
  multiplier: float
  repeat: int
  branch: Branch


def tasks_of(config: Config, batch_size: int, examples: int) -> list[Task]:
  """The branches of a point.

  Args:
    config: of the run.
    batch_size: B at the point.
    examples: of each branch.

  Raises:
    ConfigError: for a batch of less than one example, or two that are one.
  """
  p = config.probe
  exponent = 0.0 if p.learning_rate == 'none' else noise_exponent(config)
  multipliers = p.multipliers if p.learning_rate == 'tune' else (1.0,)
  sizes: dict[int, float] = {}
  for factor in sorted(p.factors):
    if factor * batch_size < 1:
      raise ConfigError(
        f'probe.factors: {factor:g} of a batch of {batch_size} is less than '
        f'one example: give at least {1 / batch_size:g}'
      )
    other = sizes.setdefault(round(factor * batch_size), factor)
    if other != factor:
      raise ConfigError(
        f'probe.factors: {other:g} and {factor:g} of a batch of {batch_size} '
        f'are {round(factor * batch_size)} both: leave one of them out'
      )
  found = []
  for repeat, (size, factor), multiplier in itertools.product(
    range(p.repeats), sizes.items(), multipliers
  ):
    rate = (size / batch_size) ** exponent * multiplier
    branch = Branch(size, rate, repeat * examples)
    found.append(Task(factor, multiplier, repeat, branch))
  return found


def looks_of(config: Config, batch_size: int, examples: int) -> list[int]:
  """Where branches are evaluated before their end: in the last quarter.

  All sizes come there with whole batches, as far as they divide the largest.

  Args:
    config: of the run.
    batch_size: B at the point.
    examples: of each branch.
  """
  p = config.probe
  largest = round(max(p.factors) * batch_size)
  wanted = {
    round(examples * (1 - i / (4 * p.evaluations)) / largest) * largest
    for i in range(1, p.evaluations)
  }
  return sorted(look for look in wanted if 0 < look < examples)


def examples_of(parts: Parts, point: Point) -> int:
  """Delta: of each branch of a point.

  Raises:
    ConfigError: if there are not so many, or a batch is larger than that.
  """
  p, epoch = parts.config.probe, parts.extent.epoch
  largest = round(max(p.factors) * point.plan.batch_size)
  if largest > epoch:
    raise ConfigError(
      f'probe.factors: {max(p.factors):g} of a batch of '
      f'{point.plan.batch_size} is above the {epoch} examples of the training '
      'split: leave it out'
    )
  # A run that is over is gone on with over one more epoch.
  left = parts.length.examples - point.examples
  over = left <= 0 or parts.end.over(point.update, point.examples)
  left = epoch if over else left
  if p.examples is None:
    # Where there are not so many, those that there are.
    most = left // p.repeats // largest * largest
    wanted = max(min(BATCHES * largest, most), largest)
    given = (
      f' is None, so {wanted} was chosen ({wanted // largest} times a '
      f'batch of {largest})'
    )
  else:
    with refusing('probe.examples'):
      wanted = int(parse_count(p.examples))
    given = f'={p.examples}'
  if wanted < largest:
    raise ConfigError(
      f'probe.examples{given} is less than a batch of {largest}: raise it, or '
      'leave out large probe.factors'
    )
  if wanted * p.repeats > left:
    what = 'in an epoch' if over else 'left of the run'
    most = left // p.repeats
    raise ConfigError(
      f'probe.examples{given}, and with probe.repeats={p.repeats} that is more '
      f'than the {left} examples {what} after update {point.update}: '
      + (
        f'lower it, to at most {most}'
        if most >= largest
        else f'lower them, or leave out large probe.factors, which make '
        f'batches of up to {largest}, or give earlier checkpoints in probe.at'
      )
    )
  return wanted


def check_point(parts: Parts, point: Point) -> None:
  """Refuses what cannot be asked of a point.

  Raises:
    ConfigError: in one line.
  """
  examples = examples_of(parts, point)
  for task in tasks_of(parts.config, point.plan.batch_size, examples):
    constant_ladder(parts.ladder, task.branch.batch_size)
  stop = point.examples + examples
  if largest_decay(parts.config, parts.extent, point.examples, stop) < 1e-6:
    raise ConfigError(
      f'learning_rate.decay has come to 0 after the {point.examples} examples '
      f'of update {point.update}, so that no branch would move: give an '
      'earlier checkpoint in probe.at'
    )


def check_held_out(parts: Parts) -> None:
  """Refuses held-out examples that are none.

  Raises:
    ConfigError: where they are trained on, or are too few.
  """
  prints = parts.fingerprints
  if data.same_data(prints['training'], prints['evaluation']):
    raise ConfigError(
      'the evaluation split has the examples of the training split, and a '
      'probe compares losses on held-out ones: probe a run with another'
    )
  held_out = parts.recipe.inputs.evaluation.num_examples
  if held_out < 2:
    raise ConfigError(
      f"data.eval_split='{parts.config.data.eval_split}' has {held_out} "
      'example, and differences of losses have no error with fewer than 2: '
      'probe a run with more'
    )


class Asked:
  """The checkpoints of `probe.at`, from the oldest, each read when it is due.

  A run that goes on removes its oldest ones meanwhile.
  """

  def __init__(
    self,
    parts: Parts,
    files: Workdir,
    there: Checkpoints,
    only: Sequence[int] | None = None,
  ):
    """`only` are the updates of some, which need not be there any more.

    Raises:
      ConfigError: if one is not there, of other data, or of a point of which
        this cannot be asked.
      CheckpointError: if one cannot be read.
    """
    self._parts, self._files, self._there = parts, files, there
    self._asked = parts.config.probe.at
    self._only = only
    self.left = self._find()

  def __iter__(self) -> Iterator[Saved]:
    """Each with its state, which nobody else holds.

    Raises:
      ConfigError: if one that was named has been removed.
      CheckpointError: if one cannot be read.
    """
    none_yet = True
    while self.left:
      found = self._read(self.left[0], with_state=True)
      if found is not None:
        none_yet = False
        yield found
        found = None  # so that two states do not lie in memory
      elif self._only is None:
        self._gone(self.left[0])
      self.left = self.left[1:]
      if none_yet and not self.left and self._only is None:
        self.left = self._find()

  def _gone(self, update: int) -> None:
    if self._asked == 'last':
      return  # there is a newer one
    if self._asked != 'all':
      raise ConfigError(
        f'probe.at={self._asked!r}: the checkpoint of update {update} has been '
        'removed by the run, which goes on: raise its checkpoint.keep'
      )
    _say(
      f'the checkpoint of update {update} has been removed by the run, which '
      'goes on, and is left out'
    )

  def _find(self) -> list[int]:
    """Updates of those that are asked for."""
    if self._only is not None:
      return list(self._only)
    found: dict[int, Saved] = {}
    while not found:
      updates = decide(self._there.updates())
      if not updates:
        raise ConfigError(
          f'{self._files.path} holds no checkpoints: give --workdir of a run'
        )
      if self._asked == 'last':
        updates = updates[-1:]
      for update in updates:
        if (saved := self._read(update, with_state=False)) is not None:
          found[update] = saved
    points = [point_of(self._parts, saved.host) for saved in found.values()]
    if self._asked not in ('last', 'all'):
      points = self._named(points)
    asked, refused = [], None
    for point in points:
      self._check_data(found[point.update])
      try:
        check_point(self._parts, point)
      except ConfigError as error:
        if self._asked != 'all':
          raise
        refused = error
        _say(f'{error}; the checkpoint of update {point.update} is left out')
      else:
        asked.append(point.update)
    if refused is not None and not asked:
      raise refused
    return asked

  def _named(self, points: Sequence[Point]) -> list[Point]:
    """Those after the examples that `probe.at` has."""
    text = str(self._asked)
    with refusing("probe.at: give 'last', 'all', or examples"):
      wanted = [int(parse_count(word)) for word in text.split()]
    by_examples = {point.examples: point for point in points}
    missing = [n for n in wanted if n not in by_examples]
    if missing or not wanted:
      what = f'after {missing[0]} examples' if missing else 'of no examples'
      raise ConfigError(
        f'probe.at={text!r}: {self._files.path} has no checkpoint {what}, but '
        f"after {', '.join(map(str, sorted(by_examples)))}: give those, 'last' "
        "or 'all'"
      )
    return [by_examples[n] for n in sorted(set(wanted))]

  def _read(self, update: int, *, with_state: bool) -> Saved | None:
    """None if it is not there any more."""

    def state(host: dict[str, Any]) -> Any:
      return template(self._parts.recipe, host['replicas']['replicas'])

    saved, wrong = None, None
    try:
      saved = self._there.read(update, state if with_state else None)
    except CheckpointError as error:
      wrong = error
    if not any_process(wrong is not None):
      return saved
    if decide(update not in self._there.updates()):
      return None
    raise wrong or CheckpointError(
      f'checkpoint of update {update}: another process cannot read it'
    )

  def _check_data(self, saved: Saved) -> None:
    for which, here in self._parts.fingerprints.items():
      there = saved.host['data'][which]
      if not data.same_data(there, here):
        raise ConfigError(
          f'{self._files.path} was trained on other {which} data ({there} '
          f'there, {here} here): give those'
        )


@contextlib.contextmanager
def opened(files: Workdir) -> Iterator[Checkpoints]:
  """The checkpoints of a run, only read."""
  there = Checkpoints(files.path / 'checkpoints', keep=None)
  with contextlib.closing(there):
    yield there


def _say(line: str) -> None:
  if is_first_process():
    print(line, file=sys.stderr)
