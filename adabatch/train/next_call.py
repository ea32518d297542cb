"""What is dispatched next, and which program may be needed after it."""

import math

from adabatch.controllers import buckets
from adabatch.controllers.buckets import Plan
from adabatch.devices.messages import Call
from adabatch.devices.step import Variant
from adabatch.devices.trainer import Trainer
from adabatch.train.build import Parts
from adabatch.train.calls import Progress, updates_until
from adabatch.train.decisions import Decisions
from adabatch.train.replicas import Replicas

# Of a call that is planned at once: each is looked at for a decision.
MOST_UPDATES = 100_000


def next_plan(
  at: Progress, parts: Parts, decisions: Decisions, replicas: Replicas
) -> Plan:
  """Of the next update; cut where the run's examples end."""
  plan = replicas.scale(decisions.plan())
  left = parts.end.cut(at.examples, plan.batch_size)
  return buckets.cut(plan, left, parts.ladder)


def next_call(
  at: Progress,
  parts: Parts,
  decisions: Decisions,
  replicas: Replicas,
  *,
  most: float = math.inf,
  cut: float = math.inf,
) -> Call:
  """As many updates alike as there are until anything else is due.

  Args:
    at: where the run is.
    parts: of the run.
    decisions: the batch-size rule at work.
    replicas: when they agree.
    most: updates that are asked for.
    cut: update at which the run is cut short.
  """
  plan = next_plan(at, parts, decisions, replicas)
  size, end = plan.batch_size, parts.end
  until = updates_until(at, size, end, parts.due, most=most, cut=cut)
  left = end.left(at.update, at.examples, size)
  agree, count = replicas.next(at, plan, most=until, left=left)
  count = decisions.until_due(at.update, min(count, MOST_UPDATES))
  decides = decisions.due(at.update + count)
  return Call(
    at.update, at.examples, count, plan, agree, decides, at.left_out, at.rate
  )


def likely_next(
  call: Call,
  parts: Parts,
  decisions: Decisions,
  replicas: Replicas,
  trainer: Trainer,
) -> list[Variant]:
  """What may be needed after a call, the next one first.

  The other program of a bucket comes before those of other buckets, but for
  what is wanted within a twentieth of the run. They are looked for to its end:
  nobody asks again within a bucket.
  """
  total = parts.length.examples
  ahead, left = total // 20, max(total - call.examples, 0)
  variant, plan = trainer.variant(call), call.plan
  other = variant._replace(agree=not variant.agree)
  missing = not trainer.programs.ready(other)
  if missing and replicas.period(call.examples, plan) > 1:
    return [other]
  later = replicas.period(call.examples + ahead, plan) == 1

  def likely(within: int) -> list[Variant]:
    found = decisions.likely_next(call.update, call.examples, within)
    return [variant._replace(bucket=bucket, agree=later) for bucket in found]

  # Replicas that agree at each update at first, and seldom later.
  seldom = missing and replicas.period(total, plan) > 1
  if seldom and not likely(ahead):
    return [other, *likely(left)]
  return likely(left)
