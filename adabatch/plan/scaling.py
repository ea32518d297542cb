"""A plan's own scaling: from its rungs to the model's rows."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from adabatch.config import Config, ConfigError
from adabatch.controllers.buckets import Bucket, bucket_for
from adabatch.plan import figures, scaling_model
from adabatch.plan.compiler import Compiler
from adabatch.plan.hlo import Collective
from adabatch.plan.topology import Topology
from adabatch.train.build import Parts


def check(config: Config) -> None:
  """Refuses `plan.scaling` where nothing is compiled.

  Raises:
    ConfigError: if it asks for more than there is.
  """
  if config.plan.scaling and config.plan.topology is None:
    raise ConfigError(
      'plan.scaling=True compiles more for a machine that is not there: set '
      'plan.topology, or leave it out'
    )


def describe(
  parts: Parts,
  machine: Topology,
  found: Mapping[str, Any],
  compiler: Compiler,
  say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
  """The plan's `scaling`; plain numbers, or why there are none.

  Args:
    parts: of the run.
    machine: that was compiled for.
    found: the plan so far, its rungs with what was compiled.
    compiler: of the machine.
    say: is told what is compiled.
  """
  rungs, left_out = [], []
  for rung in found['ladder']:
    fits = rung.get('fits', True)
    if not fits or rung.get('compiler_seconds') is None:
      why = 'no estimate' if fits else 'too large'
      left_out.append({'batch_size': rung['batch_size'], 'why': why})
      continue
    rungs.append(_rung(rung))
  why = _why_not(parts, machine, rungs)
  if why is not None:
    return {'why_not': why, 'left_out': left_out}
  extra = (
    list(_extra(parts, machine, rungs, compiler, say))
    if parts.config.plan.scaling
    else []
  )
  missing = {one['batch_size'] for one in left_out}
  known = 'schedule' in found
  complete = known and not any(
    rung.get('updates') and rung['batch_size'] in missing
    for rung in found['ladder']
  )
  model = scaling_model.make(machine, parts.ladder, rungs, extra)
  examples = (
    found['schedule']['examples']
    if known
    else next(iter(found['range'].values()))['examples']
  )
  rows = scaling_model.predict(model, examples, schedule=complete)
  return {
    'compiled_chips': len(machine.devices),
    'examples': examples,
    'smallest': rungs[0].batch_size,
    'largest': rungs[-1].batch_size,
    'at_once': model.ladder.max_per_device,
    'microbatch_sizes': model.times.sizes,
    'falls_at': model.times.falls,
    'fixed_seconds': model.times.fixed,
    'extra': [
      {
        'microbatch_size': one.bucket.microbatch_size,
        'compiler_seconds': one.seconds,
      }
      for one in extra
    ],
    'left_out': left_out,
    'schedule': 'known' if complete else 'too large' if known else 'unknown',
    'wins_from': scaling_model.wins_from(rows['strong']) if complete else None,
    **rows,
  }


def _why_not(
  parts: Parts, machine: Topology, rungs: list[scaling_model.Rung]
) -> str | None:
  if parts.recipe.sync is not None:
    return 'replicas agree by a rule of their own, which the model has not'
  if parts.ladder.min_per_device is not None:
    return 'small batches leave chips idle, which the model has not'
  if machine.slices > 1:
    return 'several slices were compiled for, and the model starts from one'
  if machine.chip.devices > 1:
    return 'a chip has several devices, which the model has not'
  if not rungs:
    return 'there is no batch size of whose step the compiler has an estimate'
  return None


def _rung(rung: Mapping[str, Any]) -> scaling_model.Rung:
  """Of the plan's own words."""
  return scaling_model.Rung(
    rung['batch_size'],
    Bucket(*(rung[field] for field in Bucket._fields)),
    rung['compiler_seconds'],
    tuple(
      Collective(**{field: c[field] for field in Collective._fields})
      for c in rung['collectives']
    ),
    rung.get('updates', 0),
    rung['bytes'],
  )


def _extra(
  parts: Parts,
  machine: Topology,
  rungs: list[scaling_model.Rung],
  compiler: Compiler,
  say: Callable[[str], None],
) -> Iterator[scaling_model.Rung]:
  """Programs with microbatches that the ladder has not."""
  ladder = parts.ladder

  def bucket(size: int) -> Bucket | None:
    try:
      return bucket_for(
        size * ladder.devices, ladder._replace(max_per_device=size)
      )
    except ValueError:
      return None

  def can(size: int) -> bool:
    return bucket(size) == (size, 1, ladder.devices)

  sizes = scaling_model.between((r.bucket.microbatch_size for r in rungs), can)
  for size in sizes:
    whole = size * ladder.devices
    one = ladder._replace(batch_sizes=(whole,), max_per_device=size)
    smaller = parts._replace(ladder=one)
    made = figures.programs(smaller, machine, compiler, say)
    known = figures.figures(smaller, machine, made, whole, None)
    if known.get('compiler_seconds') is not None:
      found = {'batch_size': whole, **known}
      yield _rung(found | Bucket(size, 1, ladder.devices)._asdict())
