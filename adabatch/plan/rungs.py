"""The ladder of a run, and what it spends on each rung."""

import bisect
from collections.abc import Iterable
from typing import Any

from adabatch.controllers import buckets
from adabatch.plan.schedule import Stretch
from adabatch.train.build import Parts


def rungs(parts: Parts) -> list[dict[str, Any]]:
  """How each size of the ladder is run; plain numbers, the smallest first.

  Of replicas, a bucket is that of the share of one.
  """
  ladder = parts.ladder
  return [
    {
      'batch_size': size,
      **(bucket := buckets.bucket_for(size, ladder))._asdict(),
      'replicas': ladder.replicas,
      'empty_slots': bucket.slots * ladder.replicas - size,
    }
    for size in ladder.batch_sizes
  ]


class Spent:
  """What a schedule spends, counted while it is walked."""

  def __init__(self, parts: Parts):
    self._parts = parts
    # Rungs may share a bucket: small ones on many devices do.
    self._sizes: dict[buckets.Bucket, list[int]] = {}
    for size in parts.ladder.batch_sizes:
      bucket = buckets.bucket_for(size, parts.ladder)
      self._sizes.setdefault(bucket, []).append(size)
    self.updates = self.examples = 0
    self.evaluations = self.checkpoints = self.syncs = 0
    self._by_size: dict[int, dict[str, int]] = {}
    self._buckets: set[buckets.Bucket] = set()

  def add(self, stretch: Stretch) -> None:
    call = stretch.call
    examples = call.count * call.plan.batch_size
    rung = self._by_size.setdefault(
      self._rung(call.plan),
      {
        'updates': 0,
        'examples': 0,
        'syncs': 0,
        'first_update': call.update + 1,
      },
    )
    replicas = self._parts.recipe.sync is not None
    syncs = call.count if call.agree or not replicas else 0
    rung['updates'] += call.count
    rung['examples'] += examples
    rung['syncs'] += syncs
    self._buckets.add(call.plan.bucket)
    self.updates += call.count
    self.examples += examples
    self.evaluations += stretch.evaluates
    self.checkpoints += stretch.saves
    self.syncs += syncs

  def totals(self) -> dict[str, Any]:
    """Plain numbers."""
    return {
      'updates': self.updates,
      'examples': self.examples,
      'epochs': self.examples / self._parts.extent.epoch,
      'evaluations': self.evaluations,
      'checkpoints': self.checkpoints,
      'syncs': self.syncs,
      'programs': len(self._buckets),
    }

  def of(self, rung: dict[str, Any]) -> dict[str, int]:
    """Of one of `rungs`; empty if none of it is run."""
    return self._by_size.get(rung['batch_size'], {})

  def _rung(self, plan: buckets.Plan) -> int:
    """Of those in its bucket the smallest that holds it.

    The last batch of a run may have fewer examples than any of them, and
    replicas that join more.
    """
    sizes = self._sizes[plan.bucket]
    i = bisect.bisect_left(sizes, plan.batch_size)
    return sizes[min(i, len(sizes) - 1)]


def spent(parts: Parts, stretches: Iterable[Stretch]) -> Spent:
  """Of a whole schedule."""
  counted = Spent(parts)
  for stretch in stretches:
    counted.add(stretch)
  return counted
