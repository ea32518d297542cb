"""How long a run becomes, before it is run.

The decay of the learning rate and rules that spread over a run ask here.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from adabatch.controllers import BatchSizeController, Signals, buckets
from adabatch.controllers.buckets import Ladder
from adabatch.train.calls import RunEnd

# What a rule may read and still be simulated without training.
PROGRESS = frozenset({'update', 'examples', 'epoch'})


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
  """

  epoch: int
  run: float
  max_batch_size: int


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
