"""An update that is not finite: what it was, and what is made of it."""

import math
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from adabatch import data
from adabatch.config import Config
from adabatch.devices.messages import Call, Report, combine, finite_rows
from adabatch.train.build import Parts
from adabatch.train.calls import Progress
from adabatch.train.checkpoints import Saved
from adabatch.train.records import Record, summary


class Diverged(Exception):
  """Something of an update is not finite, and the run cannot go on with it.

  Attributes:
    update, examples: done with it.
  """

  def __init__(self, update: int, examples: int, what: str, why: str = ''):
    super().__init__(f'the {what} of update {update} is not finite{why}')
    self.update, self.examples = update, examples


def what(report: Report, parts: Parts, start: int, stop: int) -> str:
  """Of an update, what first was not finite: the data, the loss, the gradient.

  Args:
    report: of the update.
    parts: of the run.
    start, stop: where its batch is in the data order.
  """
  split = parts.recipe.inputs.train
  order = data.Order(split.num_examples, parts.recipe.seed)
  # Bytes and tokens need not be read for this.
  if any(np.dtype(x.dtype).kind == 'f' for x in split.shapes.values()):
    examples = data.take(order, start, stop)
    arrays = split.read(examples, np.arange(start, stop)).arrays
    for array in arrays.values():
      wrong = ~np.isfinite(array.reshape(len(array), -1)).all(1)
      if wrong.any():
        return f'data (example {examples[wrong.argmax()]})'
  return 'gradient' if math.isfinite(report.loss) else 'loss'


def without(rows: np.ndarray) -> np.ndarray:
  """The reports of the replicas whose update was not skipped, or all if none.

  Args:
    rows: [replicas, 9], of one update.
  """
  finite = finite_rows(rows)
  return rows[finite] if finite.any() else rows


def skip(
  rows: np.ndarray, call: Call, number: int, at: Progress, parts: Parts
) -> Record:
  """Counts an update that the devices left out.

  Args:
    rows: reports [replicas, 9] of one update, of which one is not finite.
    call: in which it was.
    number: which of its updates, from 1.
    at: where the run is; told of it.
    parts: of the run.

  Raises:
    Diverged: if none may be left out, or not so many in a row.
  """
  update, examples = call.after(number)
  stop = examples + call.left_out
  found = what(combine(rows), parts, stop - call.plan.batch_size, stop)
  config = parts.config
  if config.on_nonfinite != 'skip':
    raise Diverged(update, examples, found)
  at.skipped_updates += 1
  at.skipped_in_a_row += 1
  if at.skipped_in_a_row > config.nonfinite.skips:
    why = f' (nonfinite.skips={config.nonfinite.skips} were skipped before it)'
    raise Diverged(update, examples, found, why)
  return 'skipped', {
    'update': update,
    'examples': examples,
    'what': found,
    'skipped_replicas': int(np.sum(~finite_rows(rows))),
    'skipped_updates': at.skipped_updates,
  }


def go_back(
  run: Any, error: Diverged, restore: Callable[[], Saved | None]
) -> Generator[Record, None, bool]:
  """To the newest checkpoint, to go on from there over other examples.

  Args:
    run: of the loop.
    error: what happened.
    restore: the newest checkpoint; None: the start.

  Returns:
    Whether the run goes on; else it has ended.
  """
  config = run.parts.config
  run.end_stretch()
  if not _may_go_back(run.at, config):
    if run.best is not None:
      run.best.write(error.update)
    found = {'diverged_update': error.update, 'message': str(error)}
    yield 'summary', summary('diverged', run) | found
    return False

  def keep(at: Progress, before: Progress) -> None:
    run.rolled_back.append(_rolled_back(at, before, error, config))

  yield from run.again(restore, keep)
  return True


def _may_go_back(at: Progress, config: Config) -> bool:
  """Whether a run that diverged is to go back and on."""
  limit = config.nonfinite.rollbacks
  return config.on_nonfinite == 'rollback' and at.rollbacks < limit


def _rolled_back(
  at: Progress, before: Progress, error: Diverged, config: Config
) -> Record:
  """Leaves the examples that did not do well out, and lowers the rate.

  Args:
    at: where the run goes on; told of it.
    before: where it was.
    error: what happened there.
    config: of the run.
  """
  at.rollbacks = before.rollbacks + 1
  at.rate = before.rate * config.nonfinite.rate_factor
  at.left_out = before.left_out + error.examples - at.examples
  return 'rollback', {
    # The checkpoint was there before, and what comes after it is done again.
    'update': at.update + 1,
    'examples': at.examples,
    'diverged_update': error.update,
    'message': str(error),
    'rollbacks': at.rollbacks,
    'rate': at.rate,
    'left_out_examples': at.left_out,
  }
