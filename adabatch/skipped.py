"""Records that could not be read: who is told, and how many are allowed."""

from collections.abc import Callable

from adabatch import data
from adabatch.console import Console


class Skipped:
  """Tells of unreadable records, and refuses too many of them."""

  def __init__(self, console: Console, limit: int, num_examples: int):
    """`limit` records may be unreadable in an epoch of `num_examples`."""
    self._console, self._limit = console, limit
    self._num_examples = num_examples

  def in_split(self, split: str) -> Callable[[int, str], None]:
    """Tells once of each record of this process's share that is unreadable."""
    told = set()

    def skipped(record: int, reason: str) -> None:
      if record not in told:
        told.add(record)
        self._console.warn(f'skipped record {record} of {split}: {reason}')

    return skipped

  def check(self, skipped: int, split: str, examples: int) -> None:
    """Refuses more unreadable records than the config allows.

    Args:
      skipped: how often one was met.
      split: in which split.
      examples: among how many examples; each epoch has its own allowance.

    Raises:
      data.DatasetError: in one line.
    """
    epochs = max(1, -(-examples // self._num_examples))
    if skipped > self._limit * epochs:
      raise data.DatasetError(
        f'{skipped} records of {split} could not be read, '
        f'data.max_skipped={self._limit} are allowed in an epoch: repair the '
        'data set or raise the limit, and the run goes on from its last '
        'checkpoint'
      )
