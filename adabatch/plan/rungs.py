"""The ladder of a run, and what it spends on each rung."""

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
    self.updates = self.examples = 0
    self.evaluations = self.checkpoints = self.syncs = 0
    self._by_bucket: dict[Any, dict[str, int]] = {}

  def add(self, stretch: Stretch) -> None:
    call = stretch.call
    examples = call.count * call.plan.batch_size
    rung = self._by_bucket.setdefault(
      call.plan.bucket,
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
      'programs': len(self._by_bucket),
    }

  def of(self, rung: dict[str, Any]) -> dict[str, int]:
    """Of one of `rungs`; empty if none of it is run."""
    bucket = buckets.Bucket(
      rung['microbatch_size'], rung['accumulation_steps'], rung['devices']
    )
    return self._by_bucket.get(bucket, {})


def spent(parts: Parts, stretches: Iterable[Stretch]) -> Spent:
  """Of a whole schedule."""
  counted = Spent(parts)
  for stretch in stretches:
    counted.add(stretch)
  return counted
