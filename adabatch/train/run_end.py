"""Where a run ends, in examples and in updates: the one answer to that.

The loop, the decay of the learning rate, rules that spread over a run,
searches and populations all ask here.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from adabatch.config import Config, ConfigError
from adabatch.controllers import (
  BatchSizeController,
  Signals,
  buckets,
  parse_count,
)
from adabatch.controllers.base import PROGRESS
from adabatch.controllers.buckets import Ladder

# Examples of the longest run: what is beyond is no 64-bit number.
MOST_EXAMPLES = 2**62
# Updates of the longest run whose sizes are found by going through it.
MOST_SIMULATED = 10**7


class RunEnd(NamedTuple):
  """What ends a run, unless a target is reached before.

  Attributes:
    examples: that are trained on, those of `epochs`, `max_examples` or
      `max_tokens`, whichever are least; the last batch is cut there.
    updates: `max_updates`, or infinity.

  >>> end = RunEnd(100, 9)
  >>> end.over(6, 96), end.over(7, 100), end.over(9, 40)
  (False, True, True)
  """

  examples: int
  updates: float = math.inf

  def over(self, update: int, examples: int) -> bool:
    """Whether the run ends after so many updates and examples."""
    return examples >= self.examples or update >= self.updates

  def cut(self, examples: int, batch_size: int) -> int:
    """Real examples of the next batch, after so many.

    >>> RunEnd(100).cut(80, 16), RunEnd(100).cut(96, 16)
    (16, 4)
    """
    return min(batch_size, self.examples - examples)

  def left(self, update: int, examples: int, batch_size: int) -> int:
    """Updates until the end if all are of this size; a cut one counts.

    >>> RunEnd(100).left(0, 0, 16), RunEnd(100, 6).left(2, 32, 16)
    (7, 4)
    """
    updates = -(-(self.examples - examples) // batch_size)
    return int(min(updates, self.updates - update))

  def whole(self, examples: int, batch_size: int) -> int:
    """How many batches of this size come before one that is cut.

    >>> RunEnd(100).whole(32, 16)
    4
    """
    return (self.examples - examples) // batch_size


class RunLength(NamedTuple):
  """How long a run becomes.

  Attributes:
    updates: the most that there can be.
    examples: done at its end.
    exact: whether that is known. If not, `examples` is the most that there can
      be, so that no decay ends before the run.
  """

  updates: int
  examples: int
  exact: bool = True


class Extent(NamedTuple):
  """What schedules and rules are laid out over, all in examples.

  Attributes:
    epoch: of the training split.
    run: of the whole run; see `run_length`.
    max_batch_size: B_max, of the largest batch that is run.
    tokens_per_example: that are predicted, of text; None of all else.
  """

  epoch: int
  run: float
  max_batch_size: int
  tokens_per_example: int | None = None


def limits(
  config: Config, num_examples: int, tokens_per_example: int | None
) -> dict[str, int]:
  """Examples after which a run ends, by the keys that say so.

  Args:
    config: read are `epochs`, `max_examples`, `max_tokens`.
    num_examples: of the training split.
    tokens_per_example: that are predicted, of text; None of all else.

  Raises:
    ConfigError: for less than one example, or tokens of what has none.
  """
  found = {'epochs': round(min(config.epochs * num_examples, MOST_EXAMPLES))}
  if config.max_examples is not None:
    found['max_examples'] = int(parse_count(config.max_examples))
  if config.max_tokens is not None:
    if tokens_per_example is None:
      raise ConfigError(
        f'max_tokens={config.max_tokens} counts tokens of text, which '
        f'task.name={config.task.name!r} does not have: set max_examples'
      )
    found['max_tokens'] = int(
      parse_count(config.max_tokens) // tokens_per_example
    )
  for key, examples in found.items():
    if not examples:
      raise ConfigError(
        f'{key}={config[key]} is less than one example'
        + (f' of {num_examples}' if key == 'epochs' else '')
      )
  return found


def make_end(
  config: Config, num_examples: int, tokens_per_example: int | None = None
) -> RunEnd:
  """The end that a config asks for.

  Args:
    config: read are `max_updates` and what `limits` reads.
    num_examples: of the training split.
    tokens_per_example: as for `limits`.

  Raises:
    ConfigError: as `limits`.
  """
  limit = config.max_updates
  found = limits(config, num_examples, tokens_per_example)
  return RunEnd(
    min(MOST_EXAMPLES, *found.values()),
    math.inf if limit is None else limit,
  )


def without_effect(
  config: Config, num_examples: int, tokens_per_example: int | None = None
) -> str | None:
  """A line if `epochs`, which has a default, ends a run before what was set.

  None otherwise.
  """
  found = limits(config, num_examples, tokens_per_example)
  epochs = found.pop('epochs')
  for key, examples in found.items():
    if epochs < examples:
      return (
        f'epochs={config.epochs:g} of {num_examples:,} examples ends the run '
        f'before {key}={config[key]}, which is '
        f'{examples / num_examples:.3g} epochs: raise epochs'
      )
  return None


def simulate(
  controller: BatchSizeController,
  ladder: Ladder,
  end: RunEnd,
  num_examples: int,
  due: Sequence[int],
) -> tuple[int, int]:
  """Updates and examples of a run whose rule reads nothing but its progress.

  Args:
    controller: the rule.
    ladder: the sizes that are run.
    end: what ends the run.
    num_examples: of the training split.
    due: after how many updates the size may change, from 0.

  >>> from adabatch.controllers import step_table
  >>> sizes = buckets.ladder(16, 64, devices=1)
  >>> rule = step_table(table='0:16 32:64')
  >>> simulate(rule, sizes, RunEnd(1000, 4), 100, due=range(4))  # 16 16 64 64
  (4, 160)
  """
  state = controller.init()
  update = examples = 0
  for now, later in itertools.pairwise([*due, math.inf]):
    update = int(now)
    if end.over(update, examples):
      break
    signals = Signals(update, examples, examples / num_examples)
    nominal, state = controller.update(state, signals)
    size = buckets.plan(nominal, ladder).batch_size
    count = int(min(later - update, end.left(update, examples, size)))
    update += count
    examples = min(examples + count * size, end.examples)
  return update, examples


def run_length(
  end: RunEnd,
  num_examples: int,
  ladder: Ladder,
  controller: Callable[[float], BatchSizeController],
  *,
  tuned: bool = False,
) -> RunLength:
  """How long a run becomes; exact if its rule reads nothing but its progress.

  Where only examples end it, they are known whatever the rule. Where updates
  may, the rule is simulated; one that is spread over the run has the length E
  with which it is spread over E.

  Args:
    end: what ends it.
    num_examples: of the training split.
    ladder: the sizes that are run; on which devices does not matter.
    controller: length of the run in examples -> its rule.
    tuned: whether the number of replicas, and the batch with it, changes as
      throughput tells.

  Raises:
    ConfigError: if there are too many updates to simulate.
  """
  if tuned:
    longest = end.left(0, 0, ladder.batch_sizes[0] // ladder.replicas)
    return RunLength(longest, end.examples, math.isinf(end.updates))
  longest = end.left(0, 0, ladder.batch_sizes[0])
  if math.isinf(end.updates):
    return RunLength(longest, end.examples)
  rule = controller(end.examples)
  if rule.needs - PROGRESS:
    most = min(end.examples, end.updates * ladder.batch_sizes[-1])
    known = end.updates * ladder.batch_sizes[0] >= end.examples
    return RunLength(longest, int(most), known)

  if len(ladder.batch_sizes) == 1:
    examples = min(longest * ladder.batch_sizes[0], end.examples)
    return RunLength(longest, examples)
  if longest > MOST_SIMULATED:
    raise ConfigError(
      f'max_updates={end.updates} of at least {ladder.batch_sizes[0]} examples '
      f'are too many to tell how long the run becomes: give at most '
      f'{MOST_SIMULATED}'
    )
  due = list(filter(rule.due, range(longest)))

  def lasts(length: int) -> tuple[int, int]:
    return simulate(controller(length), ladder, end, num_examples, due)

  updates, examples = lasts(end.examples)
  if examples >= end.examples or lasts(examples)[1] == examples:
    return RunLength(updates, examples)
  # A rule that is spread over more examples grows later, and the run is
  # shorter: between these two lies the length that agrees with itself, but for
  # less than a batch.
  low, high = examples, end.examples
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if lasts(middle)[1] >= middle else (low, middle)
  return RunLength(lasts(low)[0], low)
