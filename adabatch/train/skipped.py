"""Records that could not be read: who is told, and how many are allowed."""

import math
from collections.abc import Callable
from typing import NamedTuple

from adabatch import data
from adabatch.config import Config
from adabatch.data.source import Inputs
from adabatch.train.calls import Progress, Update


class Limits(NamedTuple):
  """How many records of a split may be unreadable; both limits hold.

  Attributes:
    count: `data.max_skipped`.
    fraction: `data.max_skipped_fraction`, of the records of the split.
  """

  count: int
  fraction: float

  def check(
    self,
    skipped: int,
    what: str,
    split: str,
    num_examples: int,
    *,
    epochs: int = 1,
    remedy: str,
  ) -> None:
    """Refuses more than the config allows.

    Args:
      skipped: how many could not be read.
      what: what they are called.
      split: in which split.
      num_examples: how many the split has.
      epochs: passes over the split, each of which has its own allowance.
      remedy: what to do, beside raising the limits.

    Raises:
      data.DatasetError: in one line.

    >>> Limits(100, 0.01).check(
    ...   6, 'records', 'train', 500, remedy='repair the data set'
    ... )
    Traceback (most recent call last):
    ...
    adabatch.data.tfds_records.DatasetError: 6 records of train could not be \
read, data.max_skipped=100 and data.max_skipped_fraction=0.01 allow 5 of its \
500 in an epoch: repair the data set or raise the limits
    """
    # In binary 0.07 * 100 is a little more than 7.
    share = math.floor(self.fraction * num_examples * (1 + 1e-12))
    allowed = min(self.count, share)
    if skipped > allowed * epochs:
      raise data.DatasetError(
        f'{skipped} {what} of {split} could not be read, '
        f'data.max_skipped={self.count} and '
        f'data.max_skipped_fraction={self.fraction} allow {allowed} of its '
        f'{num_examples} in an epoch: {remedy} or raise the limits'
      )

  def check_records(
    self, skipped: int, split: str, num_examples: int, examples: int = 1
  ) -> None:
    """Refuses more unreadable records than are allowed.

    Args:
      skipped: how often one was met.
      split: in which split.
      num_examples: how many that has.
      examples: how many were read.

    Raises:
      data.DatasetError: in one line.
    """
    self.check(
      skipped,
      'records',
      split,
      num_examples,
      epochs=max(1, -(-examples // num_examples)),
      remedy='repair the data set, and the run goes on from its last '
      'checkpoint,',
    )


def limits(config: Config) -> Limits:
  """Those of a config."""
  return Limits(config.data.max_skipped, config.data.max_skipped_fraction)


def teller(
  warn: Callable[[str], None],
) -> Callable[[str], Callable[[int, str], None]]:
  """Name of a split -> what tells once of each record that is unreadable."""

  told = set()

  def in_split(split: str) -> Callable[[int, str], None]:
    def skipped(record: int, reason: str) -> None:
      if (split, record) not in told:
        told.add((split, record))
        warn(f'skipped record {record} of {split}: {reason}')

    return skipped

  return in_split


def count_skipped(
  done: Update, at: Progress, config: Config, inputs: Inputs
) -> None:
  """Counts what an update of a stream of images could not read.

  Every process counts the same: the weights were summed over all devices. Rows
  of text have weights of their own.

  Raises:
    data.DatasetError: if there are more than the config allows.
  """
  missing = done.plan.batch_size - round(done.report.weight)
  if not missing:
    return
  if missing == done.plan.batch_size:
    raise data.DatasetError(
      f'none of the {missing} records of update {done.update} can be read: '
      'is a file of the data set damaged?'
    )
  at.skipped_records += missing
  limits(config).check_records(
    at.skipped_records,
    config.data.train_split,
    inputs.train.num_examples,
    done.examples,
  )
