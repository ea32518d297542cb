"""The programs of a run, compiled for a machine that need not be there.

Memory and collectives are what was compiled. Times are the compiler's own
estimate of its schedule. What chips exchange is a model: of an all-reduce of B
bytes among n chips a ring along each side of the torus, both ways at once
(`torus.links`); of S slices the n-th part of it among them, over the network of
the data centre,

    seconds = 2 (n - 1) / n * B / (2 sides * link)
            + 2 (S - 1) / S * B / n / network,

and of what is not an all-reduce the half.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from adabatch.controllers.buckets import Bucket, Ladder, bucket_for
from adabatch.devices.in_rows import bytes_of
from adabatch.devices.step import Variant
from adabatch.devices.trainer import Trainer
from adabatch.plan import hlo
from adabatch.plan.compiler import Compiled, Compiler, TooLarge
from adabatch.plan.topology import Topology
from adabatch.plan.torus import links
from adabatch.train import at_once
from adabatch.train.build import Parts
from adabatch.train.memory import beside_training, bytes_of_examples


class Programs(NamedTuple):
  """Of a run.

  Attributes:
    rungs: that of each size of the ladder; of replicas, with a sync.
    apart: of replicas, that without one; else empty.
    fits_with: for a size that does not fit, the largest
      `buckets.max_per_device`, halved from what was asked for, with which it
      does; None: none does.
  """

  rungs: dict[int, Compiled | TooLarge]
  apart: dict[int, Compiled | TooLarge]
  fits_with: dict[int, int | None]


class Evaluation(NamedTuple):
  """Of a piece of the evaluation split.

  Attributes:
    program: of it.
    at_once: its examples, on each device.
    beside: bytes on each device while it runs that are not its program's: the
      rest of the state, and what else lies there.
  """

  program: Compiled | TooLarge
  at_once: int
  beside: int


def evaluation(parts: Parts, compiler: Compiler) -> Evaluation:
  """Its program, compiled."""
  trainer = Trainer(parts.recipe._replace(needs=frozenset()))
  try:
    program = compiler(trainer.lower_evaluation())
    beside = _beside_evaluation(parts, trainer)
  finally:
    trainer.close()
  return Evaluation(program, trainer.evaluator.slots, beside)


def programs(
  parts: Parts,
  machine: Topology,
  compiler: Compiler,
  say: Callable[[str], None] = lambda line: None,
) -> Programs:
  """All that train, compiled.

  Sizes that differ in how many microbatches they accumulate share a program but
  for the length of its loop: of them the smallest and the largest are compiled,
  and the others lie between.

  Args:
    parts: of the run, for the devices of a topology.
    machine: the topology.
    compiler: of it.
    say: is told what is compiled.
  """
  recipe = parts.recipe._replace(needs=frozenset(), updates_per_call=1)
  trainer = Trainer(recipe)
  try:

    def compiled(bucket: Bucket, agree: bool = True) -> Compiled | TooLarge:
      return compiler(trainer.lower(Variant(bucket, agree, trainer.replicas)))

    sizes = parts.ladder.batch_sizes
    buckets = {size: bucket_for(size, parts.ladder) for size in sizes}
    needed = _to_compile(list(buckets.values()))
    kinds = (True,) if recipe.sync is None else (True, False)
    total, done = len(kinds) * len(needed), 0
    by_size = []
    for agree in kinds:
      made: dict[Bucket, Compiled | TooLarge] = {}
      for bucket in needed:
        done += 1
        say(
          f'program {done} of {total}: {bucket.microbatch_size} examples at '
          f'once on each of {bucket.devices} devices, '
          f'{bucket.accumulation_steps} times'
          + ('' if agree else ', without a sync')
        )
        made[bucket] = compiled(bucket, agree)
      by_size.append(
        {
          size: made.get(bucket) or _between(bucket, made)
          for size, bucket in buckets.items()
        }
      )
    rungs, apart = by_size[0], by_size[1] if len(by_size) > 1 else {}

    def fits(bucket: Bucket, program: Compiled | TooLarge) -> bool:
      return _fits(parts, machine, bucket, program)

    fits_with = {
      size: _what_fits(size, parts.ladder, lambda b: fits(b, compiled(b)))
      for size, program in rungs.items()
      if not fits(buckets[size], program)
    }
  finally:
    trainer.close()
  return Programs(rungs, apart, fits_with)


def at_most(
  parts: Parts,
  machine: Topology,
  compiler: Compiler,
  say: Callable[[str], None] = lambda line: None,
) -> Parts:
  """The same run with the most examples at once for which there is memory.

  As `buckets.max_per_device='auto'` finds it there: by its largest batch.
  """
  ladder = parts.ladder
  one = parts._replace(
    ladder=ladder._replace(batch_sizes=ladder.batch_sizes[-1:])
  )
  made = programs(one, machine, compiler, say)
  for most in made.fits_with.values():
    return parts._replace(ladder=ladder._replace(max_per_device=most))
  return parts


def _kind(bucket: Bucket) -> tuple[int, bool, int]:
  return (
    bucket.microbatch_size,
    bucket.accumulation_steps > 1,
    bucket.devices,
  )


def _to_compile(buckets: list[Bucket]) -> list[Bucket]:
  """The first and the last of each kind."""
  ends: dict[Any, list[Bucket]] = {}
  for bucket in buckets:
    ends.setdefault(_kind(bucket), []).append(bucket)
  return [
    b for some in ends.values() for b in dict.fromkeys(some[:1] + some[-1:])
  ]


def _what_fits(
  size: int, ladder: Ladder, fits: Callable[[Bucket], bool]
) -> int | None:
  """How many examples at once do."""
  smaller = at_once.halved(bucket_for(size, ladder), ladder)
  if smaller is not None:
    smaller = at_once.most_that_fit(smaller, size, fits)
  return None if smaller is None else smaller.max_per_device


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
    collectives=_collectives_between(
      low.cost.collectives, high.cost.collectives, share
    ),
    cycles=low.cost.cycles + share * (high.cost.cycles - low.cost.cycles),
    traffic=low.cost.traffic + share * (high.cost.traffic - low.cost.traffic),
  )
  return high._replace(cost=cost, seconds=0.0)


def _collectives_between(
  low: tuple[hlo.Collective, ...],
  high: tuple[hlo.Collective, ...],
  share: float,
) -> tuple[hlo.Collective, ...]:
  """What comes once a microbatch is as many more as there are more of those."""
  few, many = (
    {c._replace(times=1): c.times for c in _summed(some)}
    for some in (low, high)
  )
  times = {
    c: round(few.get(c, 0) + share * (many.get(c, 0) - few.get(c, 0)))
    for c in few | many
  }
  return tuple(c._replace(times=n) for c, n in times.items() if n)


# Memory.


def _beside_evaluation(parts: Parts, trainer: Trainer) -> int:
  inputs, state = parts.recipe.inputs, trainer.state
  whole = _on_a_device(state)
  of_program = _on_a_device([state.params, state.model_state])
  if inputs.streaming:
    more = bytes_of_examples(inputs.evaluation.shapes, trainer.evaluator.slots)
  else:
    more = bytes_of(inputs.train.arrays)
  return whole - of_program + more


def _on_a_device(tree: Any) -> int:
  return sum(
    x.dtype.itemsize * int(np.prod(x.sharding.shard_shape(x.shape)))
    for x in jax.tree.leaves(tree)
  )


def _fits(
  parts: Parts, machine: Topology, bucket: Bucket, program: Compiled | TooLarge
) -> bool:
  if isinstance(program, TooLarge):
    return False
  beside = beside_training(parts.recipe, bucket)
  return program.memory['peak'] + beside <= machine.chip.memory


# Time.


def all_reduce_seconds(
  collectives: tuple[hlo.Collective, ...], machine: Topology
) -> float | None:
  """By the model above, of all that an update exchanges between chips.

  None where it crosses slices whose network nobody has published.
  """
  seconds = [c.times * _seconds(c, machine) for c in collectives]
  return None if any(np.isnan(seconds)) else float(sum(seconds))


def devices_in_use(parts: Parts, bucket: Bucket) -> int:
  """Of all replicas together."""
  replicas = parts.recipe.sync is not None
  return parts.recipe.devices.size if replicas else bucket.devices


def _seconds(collective: hlo.Collective, machine: Topology) -> float:
  """Of one; NaN: not known."""
  chip, both = machine.chip, 2 if collective.kind == 'all-reduce' else 1
  chips = max((collective.devices or len(machine.devices)) // chip.devices, 1)
  each = machine.chips // machine.slices
  n, slices = min(chips, each), -(-chips // each)
  size = both * collective.bytes
  used = 2 if chip.sides == 1 else links(machine.shape)  # a switch has all
  seconds = (n - 1) / n * size / (used * chip.link)
  if slices > 1:
    network = np.nan if chip.network is None else chip.network
    seconds += (slices - 1) / slices * size / n / network
  return seconds


def _among(cost: hlo.Cost, devices: int) -> hlo.Cost:
  """A collective of which it is not said is among all that are in use."""
  collectives = tuple(
    c._replace(devices=devices if c.devices is None else c.devices)
    for c in cost.collectives
  )
  return cost._replace(collectives=collectives)


# What is written down.


def figures(
  parts: Parts,
  machine: Topology,
  made: Programs,
  size: int,
  flops_per_example: float | None,
) -> dict[str, Any]:
  """Of one rung; plain numbers.

  Args:
    parts: of the run.
    machine: on which it is to run.
    made: programs of it.
    size: of the batch.
    flops_per_example: of the network.
  """
  chip, program = machine.chip, made.rungs[size]
  too_large: dict[str, Any] = {}
  if size in made.fits_with:
    too_large = {'fits_with': made.fits_with[size]}
  if isinstance(program, TooLarge):
    return {'fits': False, 'why': program.why, **too_large}
  bucket = bucket_for(size, parts.ladder)
  used = devices_in_use(parts, bucket)
  if used < len(machine.devices):
    program = program._replace(cost=_among(program.cost, used))
  found: dict[str, Any] = {
    'fits': size not in made.fits_with,
    **too_large,
    **_memory(machine, program, beside_training(parts.recipe, bucket)),
    **_seconds_of(machine, program),
    'bandwidth_bound_seconds': program.cost.traffic / chip.bandwidth,
    'donated': program.cost.aliased,
  }
  apart = made.apart.get(size)
  if isinstance(apart, Compiled):
    found['without_sync'] = _seconds_of(machine, apart)
  if bucket.accumulation_steps == 1 and program.flops is not None:
    all_ = program.flops * used
    found['compiled_flops_per_example'] = all_ / size
  whole = found['seconds']
  if whole:
    found |= _rates(parts, machine, size, whole)
    found['device_seconds'] = whole * used
  if flops_per_example is not None:
    each = flops_per_example * size / used
    found['flops_bound_seconds'] = each / chip.flops
    if whole:
      found['flops_utilisation'] = each / chip.flops / whole
  return found


def _memory(
  machine: Topology, program: Compiled, beside: int
) -> dict[str, Any]:
  return {
    'memory': program.memory,
    'beside_bytes': beside,
    'bytes': program.memory['peak'] + beside,
    'memory_limit': int(machine.chip.memory),
  }


def _seconds_of(machine: Topology, program: Compiled) -> dict[str, Any]:
  """The estimate, the model, and both together where both are known."""
  clock, cost = machine.chip.clock, program.cost
  estimate = None if clock is None else cost.cycles / clock
  exchange = all_reduce_seconds(cost.collectives, machine)
  both = None
  if estimate is not None and exchange is not None:
    both = estimate + exchange
  return {
    'compiler_seconds': estimate,
    'all_reduce_seconds': exchange,
    'seconds': both,
    'compile_seconds': program.seconds,
    'collectives': [
      {**c._asdict(), 'bytes': c.bytes} for c in _summed(cost.collectives)
    ],
  }


def _rates(
  parts: Parts, machine: Topology, size: int, seconds: float
) -> dict[str, float]:
  """Examples a second, and what each host has to deliver of them."""
  inputs = parts.recipe.inputs
  found = {'examples_per_second': size / seconds}
  if inputs.streaming:
    each = size / seconds / machine.hosts
    found['host_examples_per_second'] = each
    found['host_bytes_per_second'] = each * bytes_of_examples(
      inputs.train.shapes
    )
  return found


def evaluation_figures(
  parts: Parts, machine: Topology, made: Evaluation
) -> dict[str, Any]:
  """Of an evaluation; plain numbers."""
  examples = parts.recipe.inputs.evaluation.num_examples
  at_once = made.at_once * len(machine.devices)
  calls, program = -(-examples // at_once), made.program
  found = {'examples_at_once': at_once, 'calls': calls}
  if isinstance(program, TooLarge):
    return {**found, 'fits': False, 'why': program.why}
  found |= _memory(machine, program, made.beside)
  found |= _seconds_of(machine, program)
  found['fits'] = found['bytes'] <= machine.chip.memory
  for kind in ('compiler_seconds', 'all_reduce_seconds', 'seconds'):
    if found[kind] is not None:
      found[kind] *= calls
  return found


def _summed(collectives: tuple[hlo.Collective, ...]) -> list[hlo.Collective]:
  """Those alike as one, the largest first."""
  counts: dict[hlo.Collective, int] = {}
  for c in collectives:
    key = c._replace(times=1)
    counts[key] = counts.get(key, 0) + c.times
  summed = [key._replace(times=times) for key, times in counts.items()]
  return sorted(summed, key=lambda c: -c.bytes * c.times)
