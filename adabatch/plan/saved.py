"""All programs that a run may need, put in a directory before it starts."""

import time
from collections.abc import Callable
from typing import Any

from jax.errors import JaxRuntimeError

from adabatch.controllers.buckets import bucket_for
from adabatch.devices.mesh import of_first_process
from adabatch.devices.step import Variant
from adabatch.devices.stored_programs import ProgramWriter
from adabatch.devices.trainer import Trainer
from adabatch.plan.compiler import too_large
from adabatch.train.build import Parts


def variants(parts: Parts) -> list[Variant]:
  """What the loop may ask for, in the order of the ladder.

  Replicas agree after the last update of a period and not before, so that each
  bucket has two programs. Of another number of replicas than that of the config
  (`sync.tune`, processes that are lost) nothing is known.
  """
  buckets = [
    bucket_for(size, parts.ladder) for size in parts.ladder.batch_sizes
  ]
  agrees = (False,) if parts.recipe.sync is None else (False, True)
  return [
    Variant(bucket, agree, parts.recipe.replicas)
    for bucket in dict.fromkeys(buckets)
    for agree in agrees
  ]


def save(
  parts: Parts, directory: str, say: Callable[[str], None]
) -> dict[str, Any]:
  """Compiles them, but for those that are there, and says what there is then.

  Args:
    parts: of the run, for the devices that will run it.
    directory: of the programs; made if it does not exist.
    say: is told what is compiled.

  Returns:
    `directory`; `number` and `bytes` of its programs for this run; `compiled`,
    how many were not there before; `too_large`, how many do not fit in the
    devices' memory and so are not kept; `seconds` that all took.

  Raises:
    ConfigError: for a program that cannot be kept.
    WriteError: if the disk is full or fails; what was written stays.
  """
  begin = time.perf_counter()
  # Nothing is run, so nothing need lie on the devices.
  devices = parts.recipe.devices._replace(abstract=True)
  recipe = parts.recipe._replace(devices=devices)
  found = {'number': 0, 'bytes': 0, 'compiled': 0, 'too_large': 0}
  trainer = Trainer(recipe)
  try:
    writer = ProgramWriter(directory, trainer.devices, say)
    wanted = variants(parts)
    for i, variant in enumerate(wanted, 1):
      what = _words(variant, parts)
      lowered = trainer.lower(variant)
      size = writer.there(lowered)
      # All processes compile what the first one lacks, for compilers may talk.
      if of_first_process(float(size is not None)):
        say(f'{i} of {len(wanted)}: {what}: there')
      else:
        say(f'{i} of {len(wanted)}: {what}: compiling')
        try:
          size = writer.write(lowered, what)
        except JaxRuntimeError as error:
          why = too_large(error)
          if why is None:
            raise
          say(f'{what} is not kept: {why}')
          found['too_large'] += 1
          continue
        found['compiled'] += 1
      found['number'] += 1
      found['bytes'] += size or 0
  finally:
    trainer.close()
  seconds = time.perf_counter() - begin
  return {'directory': directory, **found, 'seconds': seconds}


def _words(variant: Variant, parts: Parts) -> str:
  """What a program does, for a person."""
  bucket = variant.bucket
  words = (
    f'{bucket.microbatch_size} examples at once on each of {bucket.devices} '
    f'devices, {bucket.accumulation_steps} times'
  )
  if parts.recipe.sync is None:
    return words
  how = 'agree' if variant.agree else 'do not agree'
  return f'{words}, {variant.replicas} replicas that {how}'
