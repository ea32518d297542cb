"""Which compiled program runs the next updates, and which one may come next."""

from typing import Any

from adabatch.agreement import Agreement
from adabatch.buckets import Plan
from adabatch.decisions import Decisions
from adabatch.updates import Updates, Variant


class Programs:
  """The programs of a run, each fetched once it is needed."""

  def __init__(
    self,
    updates: Updates,
    decisions: Decisions,
    agreement: Agreement,
    *,
    ahead: int,
  ):
    """`ahead` is how far, in examples, the likely next one is looked for."""
    self._updates, self._decisions = updates, decisions
    self._agreement, self._ahead = agreement, ahead
    self._fetched: dict[Variant, Any] = {}
    self._last: Variant | None = None

  def changes_bucket(self, plan: Plan) -> bool:
    """Whether the plan's bucket is another than that of the last updates."""
    return self._last is not None and self._last.bucket != plan.bucket

  def at_hand(self, plan: Plan, agree: bool) -> bool:
    """Whether nothing has to be compiled, or to be looked for."""
    variant = self._updates.variant(plan.bucket, agree)
    known = variant in self._fetched and self._last is not None
    return known and not self.changes_bucket(plan)

  def get(self, plan: Plan, agree: bool, update: int, examples: int) -> Any:
    """The program of the updates after so many; waits for it if it must."""
    at_hand = self.at_hand(plan, agree)
    variant = self._last = self._updates.variant(plan.bucket, agree)
    if not at_hand:
      likely = self._likely_next(plan, variant, update, examples)
      self._fetched[variant] = self._updates.cache.get(variant, likely)
    return self._fetched[variant]

  def _likely_next(
    self, plan: Plan, variant: Variant, update: int, examples: int
  ) -> Variant | None:
    """The other program of a bucket comes before those of other buckets."""

    def period(examples: int) -> int:
      return self._agreement.period(examples, plan.batch_size, plan.damping)

    other = variant._replace(agree=not variant.agree)
    missing = other not in self._fetched
    if missing and period(examples) > 1:
      return other
    bucket = self._decisions.likely_next(update, examples, self._ahead)
    later = period(examples + self._ahead)
    if bucket is not None and bucket != variant.bucket:
      return self._updates.variant(bucket, agree=later == 1)
    return other if missing and later > 1 else None
