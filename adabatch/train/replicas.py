"""When replicas agree, how often they did, and how many there are."""

import dataclasses
import math
from typing import Any, NamedTuple

from adabatch.controllers.buckets import Plan
from adabatch.devices import mesh
from adabatch.devices.messages import Call
from adabatch.optim.sync import SyncRule
from adabatch.train import tuning as tuning_lib
from adabatch.train.calls import Progress
from adabatch.train.tuning import Tuning, TuningRule


@dataclasses.dataclass
class Counts:
  """The host's side of the replicas; plain numbers, kept in checkpoints.

  Attributes:
    replicas: how many there are.
    configured: how many there are by the config.
    next_sync: number of the update that ends the period.
    syncs: how often they agreed; without replicas, the number of updates.
    sync_bytes: what a replica gave to these averages.
    drops: drops of the learning rate that are behind.
    tuning: the search for the number of replicas, if there is one.
  """

  replicas: int
  configured: int
  next_sync: int = 0
  syncs: int = 0
  sync_bytes: int = 0
  drops: int = 0
  tuning: dict[str, Any] | None = None


class Change(NamedTuple):
  """Another number of replicas, and why."""

  before: int
  now: int
  why: str

  def __str__(self) -> str:
    more = self.now > self.before
    how = 'new ones start from z' if more else 'all start from the mean'
    return f'{self.before} -> {self.now} replicas ({self.why}; {how})'


class Replicas:
  """The schedule of the syncs, as a function of what was trained so far.

  Attributes:
    counts: where it is.
    rate: a factor on the learning rate; see `Progress`.
  """

  rate = 1.0

  def __init__(
    self,
    rule: SyncRule | None,
    *,
    replicas: int,
    drops: tuple[float, ...] = (),
    tuning: TuningRule | None = None,
    window: int = 1,
    rows: int = 1,
    saved: dict[str, Any] | None = None,
  ):
    """Starts before the first update, or goes on from what was saved.

    Args:
      rule: how replicas agree; None where one model is trained.
      replicas: how many there are by the config.
      drops: where the learning rate drops, in examples.
      tuning: when the number of replicas changes; None: never.
      window: updates over which throughput is measured.
      rows: rows of the mesh, each of which has the same number of replicas.
      saved: what `host` gave; on other devices, as near as can be.
    """
    self._rule, self._drops, self._configured = rule, drops, replicas
    self._tuning, self._rows, self._window = tuning, rows, window
    # Examples and seconds where a window of measured throughput began.
    self._since: tuple[int, float] | None = None
    self._bucket: Any = None  # of the last call
    self.counts = Counts(replicas, replicas)
    if tuning is not None:
      self.counts.tuning = Tuning(replicas // rows)._asdict()
    if saved is not None:
      self.counts = counts = Counts(**saved)
      if counts.tuning is not None:
        measured = tuple(counts.tuning['measured'])
        counts.tuning = {**counts.tuning, 'measured': measured}
        if counts.tuning['here'] * rows != counts.replicas:
          self._renumber(max(counts.replicas // rows, 1) * rows)

  def host(self) -> dict[str, Any]:
    """For a checkpoint."""
    return dataclasses.asdict(self.counts)

  def adapt(self, before: int) -> Change | None:
    """Takes the number of the config, if that is new since the checkpoint.

    Args:
      before: replicas of the restored state.
    """
    counts = self.counts
    if counts.configured != self._configured:
      counts.configured = self._configured
      self._renumber(self._configured)
    if counts.replicas == before:
      return None
    why = f'sync.replicas={self._configured}'
    return Change(before, counts.replicas, why)

  def scale(self, plan: Plan) -> Plan:
    """Each replica takes the share that it has by the config, so with more of
    them than configured the batch is larger."""
    now, configured = self.counts.replicas, self._configured
    if now == configured:
      return plan
    return plan._replace(
      nominal=plan.nominal * now / configured,
      batch_size=plan.batch_size // configured * now,
    )

  # When they agree.

  def period(self, examples: int, plan: Plan) -> int:
    """H after so many examples; 0 where one model is trained."""
    if self._rule is None:
      return 0
    damping = plan.damping * self.rate
    return self._rule.period(examples, plan.batch_size, damping)

  def next(
    self, at: Progress, plan: Plan, *, most: int, left: int
  ) -> tuple[bool, int]:
    """Of what kind the next updates are, and how many in a row.

    Args:
      at: where the run is.
      plan: of the next updates.
      most: how many are asked for.
      left: updates until the end of the run, which is a sync.

    Returns:
      Whether each of them ends in a sync, and their number, at least 1.
    """
    rule, most = self._rule, min(most, left)
    if rule is None:
      return False, most
    if self.counts.next_sync <= at.update:
      self.counts.next_sync = at.update + self.period(at.examples, plan)
    drops = []
    if rule.restarts:
      # A drop ends a period: what replicas did in it must not be lost.
      drops = [
        math.ceil((drop - at.examples) / plan.batch_size)
        for drop in self._drops
        if drop > at.examples
      ]
      most = min([most, *drops])
    until = min(self.counts.next_sync - at.update, left, *drops)
    if until > 1:
      return False, min(most, until - 1)
    count = 1
    while (
      count < most
      and self.period(at.examples + count * plan.batch_size, plan) == 1
    ):
      count += 1
    return True, count

  def dispatched(self, call: Call, bytes_each: int) -> None:
    """Counts updates alike; a replica gives so many bytes to an average."""
    self._bucket = call.plan.bucket
    if call.agree or self._rule is None:
      self.counts.syncs += call.count
      self.counts.sync_bytes += call.count * bytes_each
    if call.agree:
      self.counts.next_sync, _ = call.after(call.count)

  def restart_due(self, examples: int) -> bool:
    """Whether the learning rate has dropped since the last time this said so,
    and replicas are to start from the anchor."""
    behind = sum(drop <= examples for drop in self._drops)
    dropped = behind > self.counts.drops
    self.counts.drops = behind
    return dropped and self._rule is not None and self._rule.restarts

  # How many there are.

  @property
  def settled(self) -> bool:
    """Whether their number is not, or no longer, looked for."""
    tuning = self.counts.tuning
    return tuning is None or tuning['phase'] == 'settled'

  def _another_bucket(self, plan: Plan) -> bool:
    return self._bucket is not None and self._bucket != plan.bucket

  def tuning_due(self, at: Progress, plan: Plan) -> bool:
    """Whether a window of measured throughput begins or ends here.

    Args:
      at: where the run is.
      plan: of the next updates.
    """
    if self.counts.tuning is None:
      return False
    if self._another_bucket(plan):
      return True
    if self.settled:
      return False
    if self._since is None:
      return True
    return at.examples - self._since[0] >= self._window * plan.batch_size

  def tune(self, at: Progress, plan: Plan, seconds: float) -> Change | None:
    """Where `tuning_due` says so and nothing is under way.

    Args:
      at: where the run is.
      plan: of the next updates.
      seconds: on the training clock.
    """
    assert self._tuning is not None
    assert self.counts.tuning is not None
    tuning, before = Tuning(**self.counts.tuning), self.counts.replicas
    since, self._since = self._since, None
    why = 'another batch size'
    if since is None or self._another_bucket(plan):
      self._since = at.examples, seconds
      if self._another_bucket(plan):
        tuning = tuning_lib.again(tuning)
    else:
      lasted = max(seconds - since[1], 1e-9)
      # Every process must come to the same decision.
      throughput = mesh.of_first_process((at.examples - since[0]) / lasted)
      why = f'{throughput:,.0f} examples/s'
      tuning = tuning_lib.observe(tuning, throughput, self._tuning)
    self.counts.tuning = tuning._asdict()
    self.counts.replicas = now = tuning.here * self._rows
    return Change(before, now, why) if now != before else None

  def _renumber(self, replicas: int) -> None:
    """Another number was asked for; a search begins anew from it."""
    self.counts.replicas = replicas
    if self._tuning is not None:
      self.counts.tuning = Tuning(replicas // self._rows)._asdict()
