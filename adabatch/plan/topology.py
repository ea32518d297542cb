"""Machines that are not there: their names, and devices for the compiler.

The TPU's own compiler is a package (`libtpu`) and needs no TPU; that of CUDA is
JAX's plugin for it, and needs no GPU.
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
CUDA_PLUGIN = 'jax_cuda12_plugin'
# Before libtpu is loaded: it asks nobody which TPU this is, and lets others
# load it as well.
ENVIRONMENT = {
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
}


class Gpu(NamedTuple):
  """What the compiler is told of a GPU.

  Attributes:
    name: as its driver says.
    flops: bfloat16 operations a second at the peak, without sparsity.
    link: bytes a second that it sends through NVLink.
    major: of its compute capability.
    cores: streaming multiprocessors.
    units: for float32, of each of them.
    shared: bytes of memory that one of them shares among its threads.
    bandwidth: bytes a second of the large memory.
    cache: bytes.
    clock: GHz.
    memory: bytes.
  """

  name: str
  flops: float
  link: float
  major: int
  cores: int
  units: int
  shared: int
  bandwidth: float
  cache: int
  clock: float
  memory: int


# NVIDIA's data sheets, and what their drivers say of them.
GPUS = {
  'a100': Gpu(
    'NVIDIA A100-SXM4-80GB',
    *(312e12, 300e9, 8, 108, 64, 167_936),
    *(2039.04e9, 41_943_040, 1.41, 85_100_068_864),
  ),
  'h100': Gpu(
    'NVIDIA H100 80GB HBM3',
    *(989e12, 450e9, 9, 132, 128, 233_472),
    *(3352.32e9, 52_428_800, 1.98, 84_942_979_072),
  ),
  'h200': Gpu(
    'NVIDIA H200 141GB HBM3e',
    *(989e12, 450e9, 9, 132, 128, 233_472),
    *(4800e9, 52_428_800, 1.98, 151_397_597_184),
  ),
  'b200': Gpu(
    'NVIDIA B200',
    *(2250e12, 900e9, 10, 148, 128, 233_472),
    *(7672.32e9, 132_644_864, 1.965, 191_514_411_008),
  ),
}
SHARE = 0.75  # of a GPU's memory that JAX takes, if nothing else is asked for


class Chip(NamedTuple):
  """One generation, as its maker publishes it.

  Attributes:
    flops: bfloat16 operations a second at the peak, of a device of JAX.
    bandwidth: bytes a second of its memory.
    memory: bytes that XLA lets a program have.
    clock: cycles a second; None where the compiler estimates no times.
    link: bytes a second from a chip to a neighbour; where all are linked to
      all through a switch, half of what it sends.
    sides: of the torus or mesh: 2 or 3; 1 of a switch.
    network: bytes a second of a chip to other slices; None: not published.
    cores: of the cloud's names, by chip.
    devices: of JAX, by chip.
  """

  flops: float
  bandwidth: float
  memory: float
  clock: float | None
  link: float
  sides: int
  network: float | None = None
  cores: int = 1
  devices: int = 1


def _of_gpu(name: str) -> Chip:
  gpu = GPUS[name]
  memory = SHARE * gpu.memory
  return Chip(gpu.flops, gpu.bandwidth, memory, None, gpu.link / 2, 1)


# Google's pages on each generation of Cloud TPUs, read in November 2026; memory
# as XLA's own messages have it. Clocks follow from the peak: 2 x 128^2 x 4
# operations a cycle (v5e), twice (v4, v5p), four times that (v6e, tpu7x).
CHIPS = {
  'v4': Chip(275e12, 1228e9, 30.75 * GIB, 1.05e9, 50e9, 3, cores=2),
  'v5e': Chip(197e12, 819e9, 15.75 * GIB, 1.5e9, 50e9, 2, 25e9 / 8),
  'v5p': Chip(459e12, 2765e9, 95.74 * GIB, 1.75e9, 100e9, 3, 50e9 / 8, 2),
  'v6e': Chip(918e12, 1638e9, 31.25 * GIB, 1.75e9, 100e9, 2, 100e9 / 8),
  'tpu7x': Chip(
    1153.5e12, 3690e9, 94.75 * GIB, 2.2e9, 100e9, 3, 100e9 / 8, 2, 2
  ),
} | {name: _of_gpu(name) for name in GPUS}
CLOUD = {name: name for name in CHIPS if name not in GPUS} | {
  'v5litepod': 'v5e'
}


class Topology(NamedTuple):
  """A machine.

  Attributes:
    name: as it was asked for.
    generation: of CHIPS.
    shape: chips along each side of a slice.
    slices: how many there are.
    devices: for the compiler.
    compiler: its packages.
    target: what the compiler is told of a device, where it is.
  """

  name: str
  generation: str
  shape: tuple[int, ...]
  slices: int
  devices: Sequence[Any]
  compiler: tuple[str, ...] = ('libtpu',)
  target: str = ''

  @property
  def chip(self) -> Chip:
    return CHIPS[self.generation]

  @property
  def chips(self) -> int:
    return len(self.devices) // self.chip.devices

  @property
  def hosts(self) -> int:
    return len({device.process_index for device in self.devices})


def parse(name: str) -> tuple[str, tuple[int, ...], int]:
  """Generation, sides and slices of a name.

  Args:
    name: 'v5e:16x16', a cloud's 'v5litepod-256', several: '2*v5e:16x16', or
      GPUs of one host: 'cuda:h100:8'.

  Raises:
    ConfigError: if it is none.

  >>> parse('v5e:16x16'), parse('2*v5p-128'), parse('cuda:h100:8')
  (('v5e', (16, 16), 1), ('v5p', (4, 4, 4), 2), ('h100', (8,), 1))
  """
  if name.startswith('cuda:'):
    return _parse_gpus(name)
  match = re.fullmatch(r'(?:(\d+)\*)?([a-z]\w*)(?::([\dx]+)|-(\d+))', name)
  generation = CLOUD.get(match[2]) if match else None
  if match is None or generation is None:
    raise ConfigError(
      f'unknown plan.topology {name!r}: give one of {", ".join(CLOUD)} with '
      "its sides, such as 'v5e:4x4', a cloud's name such as 'v5litepod-16', "
      "several slices, '2*v5e:4x4', or GPUs of a host, 'cuda:h100:8'"
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


def _parse_gpus(name: str) -> tuple[str, tuple[int, ...], int]:
  match = re.fullmatch(r'cuda:(\w+):(\d+)', name)
  kind, number = (match[1], int(match[2])) if match else ('', 0)
  if kind not in GPUS or not 1 <= number <= 8:
    raise ConfigError(
      f'unknown plan.topology {name!r}: give one of {", ".join(GPUS)} and how '
      "many of them a host has, 1 to 8, such as 'cuda:h100:8'"
    )
  return kind, (number,), 1


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
  if generation in GPUS:
    return _find_gpus(name, generation, shape)
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


def _find_gpus(name: str, kind: str, shape: tuple[int, ...]) -> Topology:
  target = _target(GPUS[kind])
  try:
    described = topologies.get_topology_desc(
      platform='cuda',
      target_config=target,
      topology=f'1x1x{shape[0]}',
    )
  except (RuntimeError, ValueError, NotImplementedError) as error:
    text = ' '.join(str(error).split())
    if importlib.util.find_spec(CUDA_PLUGIN) is None:
      raise ConfigError(
        f'plan.topology={name!r} needs the compiler of CUDA, which is not '
        "installed: pip install 'jax[cuda12]'"
      ) from None
    raise ConfigError(f'plan.topology={name!r}: {text[:200]}') from None
  devices = tuple(described.devices)
  packages = ('jax-cuda12-plugin',)
  return Topology(name, kind, shape, 1, devices, packages, target)


def _target(gpu: Gpu) -> str:
  """A GpuTargetConfig of XLA, as text."""
  block = gpu.shared - 1024
  return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared}
  shared_memory_per_block_optin: {block}
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  core_count: {gpu.cores}
  fpus_per_core: {gpu.units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {gpu.bandwidth:.0f}
  l2_cache_size: {gpu.cache}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {gpu.memory}
  cuda_compute_capability {{ major: {gpu.major} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{gpu.name}"
"""
