"""Machines that are not there: their names, and devices for the compiler.

The TPU's own compiler is a package (`libtpu`) and needs no TPU.
"""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from adabatch.config import ConfigError

GIB = 2**30
# Before libtpu is loaded: it asks nobody which TPU this is, and lets others
# load it as well.
ENVIRONMENT = {
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
}


class Chip(NamedTuple):
  """One generation, as its maker publishes it, per device that JAX sees.

  Attributes:
    flops: bfloat16 operations a second at the peak.
    bandwidth: bytes a second of its memory.
    memory: bytes that XLA lets a program have.
    clock: cycles a second.
    link: bytes a second of one link to a neighbour, one way.
    sides: of the torus or mesh: 2 or 3.
    cores: of the cloud's names, by device.
  """

  flops: float
  bandwidth: float
  memory: float
  clock: float
  link: float
  sides: int
  cores: int = 1


CHIPS = {
  'v4': Chip(275e12, 1228e9, 30.75 * GIB, 1.05e9, 50e9, 3, 2),
  'v5e': Chip(197e12, 819e9, 15.75 * GIB, 1.5e9, 50e9, 2),
  'v5p': Chip(459e12, 2765e9, 95.74 * GIB, 1.75e9, 100e9, 3, 2),
  'v6e': Chip(918e12, 1640e9, 31.25 * GIB, 1.75e9, 112.5e9, 2),
}
CLOUD = {
  'v4': 'v4',
  'v5litepod': 'v5e',
  'v5e': 'v5e',
  'v5p': 'v5p',
  'v6e': 'v6e',
}


class Topology(NamedTuple):
  """A machine.

  Attributes:
    name: as it was asked for.
    generation: of CHIPS.
    shape: chips along each side of a slice.
    slices: how many there are.
    devices: for the compiler.
  """

  name: str
  generation: str
  shape: tuple[int, ...]
  slices: int
  devices: Sequence[Any]

  @property
  def chip(self) -> Chip:
    return CHIPS[self.generation]


def parse(name: str) -> tuple[str, tuple[int, ...], int]:
  """Generation, sides and slices of a name.

  Args:
    name: 'v5e:16x16', a cloud's 'v5litepod-256', or several: '2*v5e:16x16'.

  Raises:
    ConfigError: if it is none.

  >>> parse('v5e:16x16'), parse('2*v5p-128')
  (('v5e', (16, 16), 1), ('v5p', (4, 4, 4), 2))
  """
  match = re.fullmatch(r'(?:(\d+)\*)?([a-z]\w*)(?::([\dx]+)|-(\d+))', name)
  generation = CLOUD.get(match[2]) if match else None
  if match is None or generation is None:
    raise ConfigError(
      f'unknown plan.topology {name!r}: give one of {", ".join(CHIPS)} with '
      "its sides, such as 'v5e:4x4', a cloud's name such as 'v5litepod-16', or "
      "several slices, '2*v5e:4x4'"
    )
  chip, slices = CHIPS[generation], int(match[1] or 1)
  if match[3] is not None:
    try:
      shape = tuple(int(side) for side in match[3].split('x'))
    except ValueError:
      shape = ()
  else:
    shape = sides(int(match[4]) // chip.cores, chip.sides)
  if len(shape) != chip.sides or not all(shape) or not slices:
    raise ConfigError(
      f'plan.topology={name!r}: {generation} has {chip.sides} sides, such as '
      f"'{generation}:{'x'.join('4' * chip.sides)}'"
    )
  return generation, shape, slices


def sides(chips: int, number: int) -> tuple[int, ...]:
  """The most even sides that are powers of two; () where there are none.

  >>> sides(32, 2), sides(64, 3), sides(12, 2)
  ((4, 8), (4, 4, 4), ())
  """
  power = int(math.log2(chips)) if chips > 0 else -1
  if power < 0 or 2**power != chips:
    return ()
  each, rest = divmod(power, number)
  return tuple(2 ** (each + (i >= number - rest)) for i in range(number))


def find(name: str) -> Topology:
  """The machine of a name.

  Raises:
    ConfigError: if there is none, or its compiler is not installed.
  """
  generation, shape, slices = parse(name)
  for key, value in ENVIRONMENT.items():
    os.environ.setdefault(key, value)
  options: dict[str, Any] = {}
  if generation == 'v4':
    options['chip_config_name'] = 'megacore'
  if math.prod(shape) == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  if slices > 1:
    options['num_slices'] = slices
  sides_ = 'x'.join(map(str, shape))
  jax.devices()  # of here, before a library for others is loaded
  try:
    described = topologies.get_topology_desc(
      platform='tpu', topology_name=f'{generation}:{sides_}', **options
    )
  except (RuntimeError, ValueError, NotImplementedError) as error:
    text = ' '.join(str(error).split())
    if importlib.util.find_spec('libtpu') is None:
      raise ConfigError(
        f'plan.topology={name!r} needs the compiler of TPUs, which is not '
        "installed: pip install 'adabatch[tpu]'"
      ) from None
    raise ConfigError(f'plan.topology={name!r}: {text[:200]}') from None
  return Topology(name, generation, shape, slices, tuple(described.devices))
