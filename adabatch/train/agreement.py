"""When replicas agree, how often they did, and how many there are."""

import dataclasses
import math
from typing import Any

from adabatch.optim.sync import SyncRule
from adabatch.train import learner_tuning
from adabatch.train.learner_tuning import Tuning, TuningRule


@dataclasses.dataclass
class Counts:
  """The host's side of the replicas; plain numbers, kept in checkpoints.

  Attributes:
    replicas: how many there are.
    next_sync: number of the update that ends the period.
    syncs: how often they agreed; without replicas, the number of updates.
    sync_bytes: what a replica gave to these averages.
    drops: drops of the learning rate that are behind.
    tuning: the search for the number of replicas, if there is one.
  """

  replicas: int
  next_sync: int = 0
  syncs: int = 0
  sync_bytes: int = 0
  drops: int = 0
  tuning: dict[str, Any] | None = None


class Agreement:
  """The schedule of the syncs, as a function of what was trained so far.

  Attributes:
    counts: where it is.
  """

  def __init__(
    self,
    rule: SyncRule | None,
    *,
    replicas: int,
    drops: tuple[float, ...] = (),
    tuning: TuningRule | None = None,
    rows: int = 1,
  ):
    """Starts before the first update.

    Args:
      rule: how replicas agree; None where one model is trained.
      replicas: how many there are at first.
      drops: where the learning rate drops, in examples.
      tuning: when the number of replicas changes; None: never.
      rows: rows of the mesh, each of which has the same number of replicas.
    """
    self._rule, self._drops = rule, drops
    self._tuning, self._rows = tuning, rows
    self.counts = Counts(replicas)
    if tuning is not None:
      self.counts.tuning = Tuning(replicas // rows)._asdict()

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self.counts)

  def restore(self, saved: dict[str, Any]) -> None:
    """Goes on from what `to_json` gave; on other devices, as near as can be."""
    self.counts = counts = Counts(**saved)
    if counts.tuning is None:
      return
    measured = tuple(counts.tuning['measured'])
    counts.tuning = {**counts.tuning, 'measured': measured}
    if counts.tuning['here'] * self._rows != counts.replicas:
      self.renumber(max(counts.replicas // self._rows, 1) * self._rows)

  def start(
    self, update: int, examples: int, batch_size: int, damping: float
  ) -> None:
    """Begins a period, if the last one is over.

    Args:
      update, examples: done so far.
      batch_size, damping: of the next updates.
    """
    if self._rule is not None and self.counts.next_sync <= update:
      period = self._rule.period(examples, batch_size, damping)
      self.counts.next_sync = update + period

  def period(self, examples: int, batch_size: int, damping: float) -> int:
    """H after so many examples; 0 where one model is trained."""
    if self._rule is None:
      return 0
    return self._rule.period(examples, batch_size, damping)

  def coming(
    self,
    update: int,
    examples: int,
    batch_size: int,
    damping: float,
    *,
    most: int,
    left: int,
  ) -> tuple[bool, int]:
    """Of what kind the next updates are, and how many in a row.

    Args:
      update, examples: done so far.
      batch_size, damping: of the next updates.
      most: how many are asked for.
      left: updates until the end of the run, which is a sync.

    Returns:
      Whether each of them ends in a sync, and their number, at least 1.
    """
    most = min(most, left)
    if self._rule is None:
      return False, most
    drops = []
    if self._rule.restarts:
      # A drop ends a period: what replicas did in it must not be lost.
      drops = [
        math.ceil((drop - examples) / batch_size)
        for drop in self._drops
        if drop > examples
      ]
      most = min([most, *drops])
    until = min(self.counts.next_sync - update, left, *drops)
    if until > 1:
      return False, min(most, until - 1)
    count = 1
    while (
      count < most
      and self.period(examples + count * batch_size, batch_size, damping) == 1
    ):
      count += 1
    return True, count

  def done(
    self, update: int, *, count: int, agreed: bool, bytes_each: int
  ) -> None:
    """Counts updates that were dispatched.

    Args:
      update: done with them.
      count: how many.
      agreed: whether each of them ended in a sync.
      bytes_each: what a replica gives to an average.
    """
    if agreed or self._rule is None:
      self.counts.syncs += count
      self.counts.sync_bytes += count * bytes_each
    if agreed:
      self.counts.next_sync = update

  def restart_due(self, examples: int) -> bool:
    """Whether the learning rate has dropped since the last time this said so,
    and replicas are to start from the anchor."""
    behind = sum(drop <= examples for drop in self._drops)
    dropped = behind > self.counts.drops
    self.counts.drops = behind
    return dropped and self._rule is not None and self._rule.restarts

  # The number of replicas.

  @property
  def tuned(self) -> bool:
    """Whether the number may change."""
    return self.counts.tuning is not None

  @property
  def tuning(self) -> bool:
    """Whether windows are to be measured, because it is not settled."""
    tuning = self.counts.tuning
    return tuning is not None and tuning['phase'] != 'settled'

  def tune_again(self) -> int:
    """Another batch size: how many replicas to go on with."""
    assert self.counts.tuning is not None
    self._tuned(learner_tuning.again(Tuning(**self.counts.tuning)))
    return self.counts.replicas

  def observe(self, throughput: float) -> int:
    """After a window, in examples a second: how many to go on with."""
    assert self._tuning is not None
    assert self.counts.tuning is not None
    tuning = Tuning(**self.counts.tuning)
    self._tuned(learner_tuning.observe(tuning, throughput, self._tuning))
    return self.counts.replicas

  def renumber(self, replicas: int) -> None:
    """Another number was asked for; a search begins anew from it."""
    self.counts.replicas = replicas
    if self._tuning is not None:
      self.counts.tuning = Tuning(replicas // self._rows)._asdict()

  def _tuned(self, tuning: Tuning) -> None:
    self.counts.tuning = tuning._asdict()
    self.counts.replicas = tuning.here * self._rows
