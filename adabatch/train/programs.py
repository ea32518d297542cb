"""Which compiled program runs the next updates, and which one may come next."""

from typing import Any

from adabatch.controllers.buckets import Plan
from adabatch.devices.updates import Updates, Variant
from adabatch.train.agreement import Agreement
from adabatch.train.decisions import Decisions


class Programs:
  """The programs of a run, each fetched once it is needed."""

  def __init__(
    self,
    updates: Updates,
    decisions: Decisions,
    agreement: Agreement,
    *,
    total_examples: int,
  ):
    """`total_examples` are those of the whole run; the likely next program is
    looked for a twentieth of them ahead."""
    self._updates, self._decisions = updates, decisions
    self._agreement = agreement
    self._total, self._ahead = total_examples, total_examples // 20
    self._fetched: dict[Variant, Any] = {}
    self._last: Variant | None = None

  def changes_bucket(self, plan: Plan) -> bool:
    """Whether the plan's bucket is another than that of the last updates."""
    return self._last is not None and self._last.bucket != plan.bucket

  def at_hand(self, plan: Plan, agree: bool) -> Any:
    """The program, if nothing has to be compiled or looked for; else None."""
    if self._last is None or self._last.bucket != plan.bucket:
      return None
    return self._fetched.get(self._updates.variant(plan.bucket, agree))

  def get(self, plan: Plan, agree: bool, update: int, examples: int) -> Any:
    """The program of the updates after so many; waits for it if it must."""
    variant = self._last = self._updates.variant(plan.bucket, agree)
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
    # Replicas that agree at each update at first, and seldom later.
    seldom = missing and period(self._total) > 1
    return other if seldom else None
