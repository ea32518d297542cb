"""What a run needs in memory, as far as shapes tell, and what there is.

What is computed from a batch is not known before a program is compiled, and is
left out: what is refused here could not have been held at all.
"""

import math
import os
import resource
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.errors import JaxRuntimeError

from adabatch.config import Config, ConfigError
from adabatch.controllers.buckets import Bucket, Ladder, bucket_for
from adabatch.devices.in_rows import bytes_of
from adabatch.devices.mesh import Devices
from adabatch.devices.recipe import Recipe

# Of the indices of a call: as 64-bit numbers, by place, and twice by slot.
BYTES_OF_AN_INDEX = 20


def size_of(tree: Any) -> int:
  """Bytes of a pytree of shapes.

  >>> size_of([jax.ShapeDtypeStruct((3, 10**12), 'float32')])
  12000000000000
  """
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def of_machine() -> int:
  """Bytes that this process may have at most."""
  there = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  limit, _ = resource.getrlimit(resource.RLIMIT_AS)
  return there if limit == resource.RLIM_INFINITY else min(there, limit)


def of_device(made: Devices) -> float:
  """Bytes of a device; of CPUs, which share them, a part of the machine's."""
  if made.platform == 'cpu':
    return of_machine() / max(len(made.own), 1)
  if made.abstract:  # whoever compiles for it knows
    return math.inf
  own = [made.mesh.devices.flat[i] for i in made.own]
  known = [(device.memory_stats() or {}).get('bytes_limit') for device in own]
  return min((k for k in known if k is not None), default=math.inf)


def out_of_memory(error: Exception) -> bool:
  """Whether XLA says so.

  And of what is done with the results of an update that failed so.

  >>> out_of_memory(JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory'))
  True
  """
  if not isinstance(error, JaxRuntimeError):
    return False
  text = str(error)
  return 'RESOURCE_EXHAUSTED' in text or 'out of memory' in text.lower()


def bytes_of_examples(shapes: Mapping[str, Any], examples: int = 1) -> int:
  """Of so many examples with entries of these shapes.

  >>> label = jax.ShapeDtypeStruct((), 'int32')
  >>> bytes_of_examples({'label': label}, examples=3)
  12
  """
  return examples * sum(
    math.prod(s.shape) * np.dtype(s.dtype).itemsize for s in shapes.values()
  )


def beside_training(recipe: Recipe, bucket: Bucket) -> int:
  """Bytes on each device while an update runs that are not its program's.

  Of a stream, the batch that is read ahead; else the evaluation split.
  """
  if recipe.inputs.streaming:
    # Replicas that one device trains, each with such a bucket.
    here = recipe.replicas // math.gcd(recipe.replicas, recipe.devices.size)
    slots = here * bucket.slots_per_device
    return bytes_of_examples(recipe.inputs.train.shapes, slots)
  return bytes_of(recipe.inputs.evaluation.arrays)


def check_state(config: Config, recipe: Recipe, variables: Any) -> None:
  """Refuses a network whose parameters and optimizers a device cannot hold.

  Args:
    config: whose keys are named.
    recipe: what is trained.
    variables: their shapes.

  Raises:
    ConfigError: in one line.
  """
  params = variables.get('params', {})
  one = size_of([variables, jax.eval_shape(recipe.tx.init, params)])
  rows = math.gcd(recipe.replicas, recipe.devices.size)
  here = recipe.replicas // rows  # beside their anchor
  needed = one if recipe.sync is None else one * here + size_of(variables)
  there = of_device(recipe.devices)
  if needed > there:
    shared = '' if recipe.sync is None else f' and {here} replicas'
    raise ConfigError(
      f'model.name={config.model.name!r} with optimizer.name='
      f'{config.optimizer.name!r}{shared} takes {needed / 1e9:.3g} GB on each '
      f'device before the first batch, and there are {there / 1e9:.3g} GB: '
      'make the network smaller'
    )


def check_calls(recipe: Recipe, ladder: Ladder) -> None:
  """Refuses calls of so many updates that their indices fit nowhere.

  Raises:
    ConfigError: in one line.
  """
  bucket = bucket_for(ladder.batch_sizes[-1], ladder)
  slots = bucket.slots * ladder.replicas
  needed = BYTES_OF_AN_INDEX * slots * recipe.room(bucket)
  there = of_machine()
  if needed > there:
    raise ConfigError(
      f'updates_per_call={recipe.updates_per_call} of batches of up to '
      f'{ladder.batch_sizes[-1]} examples take {needed / 1e9:.3g} GB for the '
      f'indices of a call, and there are {there / 1e9:.3g} GB: lower it'
    )
