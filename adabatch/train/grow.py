"""Asking for more devices: a run cannot be given any while it runs.

Where the next rung wants more than there are, and `buckets.grow_to` allows
them, the run ends after a checkpoint with `status: grow`; whoever started it
starts it again with `wanted_devices`. Each number is asked for once: a run that
is started again with fewer goes on with those.
"""

import bisect
from typing import Any

from adabatch.controllers.buckets import Ladder, bucket_for, devices_for
from adabatch.train.build import Parts
from adabatch.train.next_call import next_plan


def larger(parts: Parts) -> Ladder | None:
  """The ladder on all devices that the job may be given; None: no more."""
  b = parts.config.buckets
  if b.grow_to is None or b.grow_to <= parts.recipe.devices.size:
    return None
  return parts.ladder._replace(
    devices=b.grow_to, min_per_device=b.min_per_device
  )


def _runs(ladder: Ladder, devices: int) -> bool:
  """Whether a run that is started with so many has a bucket for each rung."""
  started = ladder._replace(devices=devices, min_per_device=None)
  try:
    for size in ladder.batch_sizes:
      bucket_for(size, started)
  except ValueError:  # groups of BatchNorm that would be cut
    return False
  return True


def wanted(run: Any) -> int:
  """Devices that the next update should be given; 0: no more than there are.

  Args:
    run: of the loop, with `at`, `parts`, `decisions`, `replicas`, `larger` and
      `resumed_at`.
  """
  at, ladder = run.at, run.larger
  # Every start does some updates, so that a job that is never given more ends.
  assert ladder is not None, 'else there is nothing to ask for'
  if at.update == run.resumed_at:
    return 0
  plan = next_plan(at, run.parts, run.decisions, run.replicas)
  sizes = ladder.batch_sizes
  rung = sizes[bisect.bisect_left(sizes, plan.batch_size)]
  devices = devices_for(rung, ladder)
  more = devices > max(run.parts.recipe.devices.size, at.asked)
  return devices if more and _runs(ladder, devices) else 0
