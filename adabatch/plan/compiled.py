"""The programs of a ladder, compiled for a machine that need not be there.

Memory and collectives are what was compiled. Times are the compiler's own
estimate of its schedule. The all-reduce is a model: a ring along each side of
the torus, both ways at once (`torus.links`),

    seconds = 2 (n - 1) / n * bytes / (links * link).
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.errors import JaxRuntimeError

from adabatch.controllers.buckets import Bucket, Ladder, bucket_for
from adabatch.devices.step import Variant
from adabatch.devices.trainer import Trainer
from adabatch.plan import hlo
from adabatch.plan.topology import Topology
from adabatch.plan.torus import links
from adabatch.train.build import Parts


class Compiled(NamedTuple):
  """One program.

  Attributes:
    accumulation_steps: of its bucket.
    cost: of an update.
    memory: bytes by kind, and `peak`.
    seconds: that compiling took.
  """

  accumulation_steps: int
  cost: hlo.Cost
  memory: dict[str, int]
  seconds: float


class TooLarge(NamedTuple):
  """A program that does not fit.

  Attributes:
    why: what the compiler says.
    fits_with: the largest `buckets.max_per_device`, halved from what was asked
      for, with which it does; None: none does.
  """

  why: str
  fits_with: int | None


def programs(
  parts: Parts, say: Callable[[str], None] = lambda line: None
) -> Iterator[tuple[int, Compiled | TooLarge]]:
  """For each size of the ladder its program, or why it does not fit.

  Sizes that differ in how many microbatches they accumulate share a program but
  for the length of its loop: of them the smallest and the largest are compiled,
  and the others lie between.

  Args:
    parts: of the run, for the devices of a topology.
    say: is told what is compiled.
  """
  recipe = parts.recipe._replace(needs=frozenset(), updates_per_call=1)
  trainer = Trainer(recipe)
  try:
    made: dict[Bucket, Compiled | TooLarge] = {}
    sizes = parts.ladder.batch_sizes
    buckets = [bucket_for(size, parts.ladder) for size in sizes]
    for bucket in _to_compile(buckets):
      say(
        f'compiling for {bucket.microbatch_size} examples at once on each of '
        f'{bucket.devices} devices, {bucket.accumulation_steps} times'
      )
      found = _compile(trainer, bucket)
      made[bucket] = (
        TooLarge(found, _what_fits(trainer, sizes[-1], parts.ladder, bucket))
        if isinstance(found, str)
        else found
      )
  finally:
    trainer.close()
  for size, bucket in zip(sizes, buckets, strict=True):
    yield size, made.get(bucket) or _between(bucket, made)


def _kind(bucket: Bucket) -> tuple[int, bool]:
  return bucket.microbatch_size, bucket.accumulation_steps > 1


def _to_compile(buckets: list[Bucket]) -> list[Bucket]:
  """The first and the last of each kind."""
  ends: dict[Any, list[Bucket]] = {}
  for bucket in buckets:
    ends.setdefault(_kind(bucket), []).append(bucket)
  return [
    b for some in ends.values() for b in dict.fromkeys(some[:1] + some[-1:])
  ]


def _what_fits(
  trainer: Trainer, size: int, ladder: Ladder, bucket: Bucket
) -> int | None:
  """How many examples at once do."""
  most = bucket.microbatch_size
  while (most := most // 2) >= (ladder.group_size or 1):
    try:
      smaller = bucket_for(size, ladder._replace(max_per_device=most))
    except ValueError:  # groups would be cut
      return None
    if not isinstance(_compile(trainer, smaller), str):
      return most
  return None


def _between(
  bucket: Bucket, made: dict[Bucket, Compiled | TooLarge]
) -> Compiled | TooLarge:
  """What lies between two that were compiled, by its number of steps."""
  few, many = (b for b in made if _kind(b) == _kind(bucket))
  low, high = made[few], made[many]
  for one in (low, high):
    if isinstance(one, TooLarge):
      return one
  assert isinstance(low, Compiled)
  assert isinstance(high, Compiled)
  share = (bucket.accumulation_steps - few.accumulation_steps) / (
    many.accumulation_steps - few.accumulation_steps
  )
  cost = high.cost._replace(
    cycles=low.cost.cycles + share * (high.cost.cycles - low.cost.cycles),
    traffic=low.cost.traffic + share * (high.cost.traffic - low.cost.traffic),
  )
  return high._replace(
    accumulation_steps=bucket.accumulation_steps, cost=cost, seconds=0.0
  )


def _compile(trainer: Trainer, bucket: Bucket) -> Compiled | str:
  lowered = trainer.lower(Variant(bucket, True, trainer.replicas))
  begin = time.perf_counter()
  try:
    compiled = lowered.compile()
  except JaxRuntimeError as error:
    text = ' '.join(str(error).split())
    if 'RESOURCE_EXHAUSTED' not in text and 'memory' not in text.lower():
      raise
    return text[:300]
  seconds = time.perf_counter() - begin
  found = compiled.memory_analysis()
  kinds = 'argument', 'output', 'alias', 'temp', 'generated_code'
  memory = {
    kind: int(getattr(found, f'{kind}_size_in_bytes')) for kind in kinds
  }
  memory['peak'] = int(found.peak_memory_in_bytes)
  cost = hlo.read(compiled.as_text())
  return Compiled(bucket.accumulation_steps, cost, memory, seconds)


def all_reduce_seconds(
  collectives: tuple[hlo.Collective, ...], machine: Topology
) -> float:
  """By the model above, of all that an update exchanges between chips."""
  chip, number = machine.chip, len(machine.devices)
  moved = sum(c.times * c.bytes * _ring(c, number) for c in collectives)
  return moved / (links(machine.shape) * chip.link)


def _ring(collective: hlo.Collective, number: int) -> float:
  """How often its bytes travel along a ring."""
  n = collective.devices or number
  both = 2 if collective.kind == 'all-reduce' else 1
  return both * (n - 1) / n


def figures(
  parts: Parts,
  machine: Topology,
  size: int,
  program: Compiled | TooLarge,
  flops_per_example: float | None,
) -> dict[str, Any]:
  """Of one rung; plain numbers.

  Args:
    parts: of the run.
    machine: on which it is to run.
    size: of the batch.
    program: of it.
    flops_per_example: of the network.
  """
  chip, number = machine.chip, len(machine.devices)
  if isinstance(program, TooLarge):
    return {'fits': False, **program._asdict()}
  cost = program.cost
  seconds = cost.cycles / chip.clock
  exchange = all_reduce_seconds(cost.collectives, machine)
  whole = seconds + exchange
  found: dict[str, Any] = {
    'fits': program.memory['peak'] <= chip.memory,
    'memory': program.memory,
    'memory_limit': int(chip.memory),
    'next_batch_bytes': _batch_bytes(parts, size),
    'compiler_seconds': seconds,
    'all_reduce_seconds': exchange,
    'seconds': whole,
    'bandwidth_bound_seconds': cost.traffic / chip.bandwidth,
    'compile_seconds': program.seconds,
    'collectives': [
      {**c._asdict(), 'bytes': c.bytes} for c in _summed(cost.collectives)
    ],
    'donated': cost.aliased,
  }
  if whole > 0:
    found['examples_per_second'] = size / whole
  if flops_per_example is not None:
    bound = flops_per_example * size / number / chip.flops
    found['flops_bound_seconds'] = bound
    found['flops_utilisation'] = bound / whole if whole > 0 else None
  return found


def _batch_bytes(parts: Parts, size: int) -> int:
  """Of the batch that is read ahead, on each device; 0 where none is."""
  inputs = parts.recipe.inputs
  if not inputs.streaming:
    return 0
  bucket = bucket_for(size, parts.ladder)
  each = sum(
    np.dtype(s.dtype).itemsize * int(np.prod(s.shape))
    for s in inputs.train.shapes.values()
  )
  return each * bucket.slots_per_device


def _summed(collectives: tuple[hlo.Collective, ...]) -> list[hlo.Collective]:
  """Those alike as one, the largest first."""
  counts: dict[hlo.Collective, int] = {}
  for c in collectives:
    key = c._replace(times=1)
    counts[key] = counts.get(key, 0) + c.times
  summed = [key._replace(times=times) for key, times in counts.items()]
  return sorted(summed, key=lambda c: -c.bytes * c.times)
