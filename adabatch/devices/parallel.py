"""A per-device body made into a program for all devices of all processes.

`shard_map` under `jit` is the default; `pmap` gives the same numbers. Bodies
take pytrees whose leaves are the same on every device (False), or have a
leading axis of devices of which each sees its own entry (True), or a leading
axis of replicas that is spread over the mesh's axis of replicas (REPLICAS); a
*layout* is a pytree prefix that says which.
"""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS, REPLICA_AXIS = 'data', 'replica'
REPLICAS = 'replicas'
BACKENDS = ('shard_map', 'pmap')


def initialize(
  distributed: bool,
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Joins the other processes of a run, if it is a distributed one.

  Without the other arguments the processes find each other by themselves, on a
  TPU pod or a cluster that JAX knows (SLURM, Open MPI, Kubernetes). Waits until
  all are there, and says on standard error for whom.

  Raises:
    ValueError: if only some are given, or the processes cannot be found.
  """
  arguments = (coordinator_address, num_processes, process_id)
  given = sum(value is not None for value in arguments)
  if given and not (distributed and given == len(arguments)):
    raise ValueError(
      'several processes need --distributed and all of --coordinator_address, '
      '--num_processes and --process_id'
    )
  if not distributed:
    return
  if num_processes is None or process_id is None:
    _say('waiting for the other processes of the cluster that JAX finds')
    try:
      jax.distributed.initialize()
    except ValueError as error:
      raise ValueError(
        f'JAX finds no cluster ({error}): give --coordinator_address, '
        '--num_processes and --process_id'
      ) from error
    return
  if not 0 <= process_id < num_processes:
    raise ValueError(
      f'process_id={process_id} of num_processes={num_processes}: give 0 to '
      f'{num_processes - 1}'
    )
  _say(
    f'process {process_id}, from 0, of {num_processes} waits for the others at '
    f'{coordinator_address}'
  )
  jax.distributed.initialize(*arguments)


def _say(message: str) -> None:
  print(message, file=sys.stderr, flush=True)


def is_first_process() -> bool:
  """Whether this process writes the logs."""
  return jax.process_index() == 0


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
  """All devices of all processes along one axis, `data`."""
  devices = jax.devices() if devices is None else devices
  return Mesh(np.array(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replica_mesh(mesh: Mesh, replicas: int) -> Mesh:
  """The same devices along two axes, `replica` and `data`.

  Devices that follow one another share a replica, so that those of one host do
  where there are at most as many replicas as hosts. Where there are more
  replicas than devices, each device trains several.

  >>> dict(replica_mesh(make_mesh(jax.devices()[:8]), replicas=4).shape)
  {'replica': 4, 'data': 2}
  """
  rows = math.gcd(replicas, mesh.size)
  return Mesh(
    mesh.devices.reshape(rows, -1),
    (REPLICA_AXIS, DATA_AXIS),
    axis_types=(AxisType.Auto, AxisType.Auto),
  )


def _spec(how: Any, mesh: Mesh) -> PartitionSpec:
  if how is True:
    return PartitionSpec(tuple(mesh.axis_names))
  return PartitionSpec(REPLICA_AXIS) if how == REPLICAS else PartitionSpec()


def shardings(layout: Any, mesh: Mesh) -> Any:
  """The sharding of each leaf of a layout."""
  return jax.tree.map(lambda how: NamedSharding(mesh, _spec(how, mesh)), layout)


def _own_entry(layout, args):
  """One device's view: the sharded leaves lose their axis of devices."""
  return jax.tree.map(
    lambda how, subtree: (
      jax.tree.map(lambda x: x[0], subtree) if how is True else subtree
    ),
    layout,
    args,
  )


def spmd(
  body: Callable[..., Any],
  mesh: Mesh,
  *,
  layout: tuple[Any, ...],
  results: Any = False,
  backend: str = 'shard_map',
  donate: tuple[int, ...] = (),
  options: dict[str, Any] | None = None,
) -> Any:
  """A function of global arrays that runs `body` on every device.

  Args:
    body: per-device function whose collectives are over axes of the mesh.
    mesh: the devices.
    layout: of each argument.
    results: layout of the results, without True.
    backend: `shard_map`, or `pmap` where nothing has an axis of replicas.
    donate: arguments whose memory the results may reuse.
    options: for the compiler; `pmap` takes none.

  Returns:
    A jitted function with `.lower(*args).compile()`.
  """
  if backend == 'shard_map':
    mapped = jax.shard_map(
      lambda *args: body(*_own_entry(layout, args)),
      mesh=mesh,
      in_specs=jax.tree.map(lambda how: _spec(how, mesh), layout),
      out_specs=jax.tree.map(lambda how: _spec(how, mesh), results),
    )
    return jax.jit(mapped, donate_argnums=donate, compiler_options=options)
  if backend == 'pmap':
    return jax.pmap(
      body,
      axis_name=DATA_AXIS,
      in_axes=jax.tree.map(lambda sharded: 0 if sharded else None, layout),
      out_axes=None,
      donate_argnums=donate,
      devices=list(mesh.devices.flat),
    )
  raise ValueError(
    f'unknown parallel.backend {backend!r}: choose one of {", ".join(BACKENDS)}'
  )


def _place(tree: Any, sharding: NamedSharding) -> Any:
  """Host arrays, the same on every process, of which each places its part."""
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(
      x.shape, sharding, lambda index: x[index]
    ),
    jax.tree.map(np.asarray, tree),
  )


def by_device(mesh: Mesh) -> NamedSharding:
  """Arrays [devices, ...], one row on each device."""
  return shardings(True, mesh)


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Host arrays placed whole on every device."""
  return _place(tree, NamedSharding(mesh, PartitionSpec()))


def shard(rows: Any, mesh: Mesh) -> Any:
  """Host arrays [devices, ...] placed one row on each device."""
  return _place(rows, by_device(mesh))


def shard_own(rows: Any, mesh: Mesh) -> Any:
  """Host arrays [own devices, ...] placed one row on each device.

  Each process gives the rows of its own devices, in the order of the mesh.
  """
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(by_device(mesh), x), rows
  )


def zeros(arrays: Any, mesh: Mesh) -> Any:
  """Arrays of the same shapes; those that lie on devices already stay."""
  here = jax.process_index()
  own = sum(device.process_index == here for device in mesh.devices.flat)
  return jax.tree.map(
    lambda x: (
      x
      if isinstance(x, jax.Array)
      else shard_own(np.zeros((own, *x.shape[1:]), x.dtype), mesh)
    ),
    arrays,
  )


def as_global(tree: Any, mesh: Mesh) -> Any:
  """Replicated arrays as arrays of all processes.

  With several processes `pmap` returns arrays that know only the devices of
  their own process, which a checkpoint cannot be made of. No data moves.
  """
  sharding = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(
    lambda x: jax.make_array_from_single_device_arrays(
      x.shape, sharding, [shard.data for shard in x.addressable_shards]
    ),
    tree,
  )


def gatherer(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
  """A function that makes a sharded array whole on every device."""
  return jax.jit(lambda x: x, out_shardings=shardings(False, mesh))


def of_first_process(value: float) -> float:
  """The number that the first process has, on every process."""
  if jax.process_count() == 1:
    return value
  return float(multihost_utils.broadcast_one_to_all(np.float32(value)))
