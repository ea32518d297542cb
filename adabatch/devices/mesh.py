"""The devices of a run, and a per-device body made into a program for them.

`shard_map` under `jit` is the default; `pmap` gives the same numbers. Bodies
take pytrees whose leaves are WHOLE on every device, or have a leading axis of
devices of which each sees its own entry (BY_DEVICE), or a leading axis of
replicas that is spread over the mesh's axis of replicas (BY_REPLICA); a
pytree prefix of these says which.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS, REPLICA_AXIS = 'data', 'replica'
WHOLE, BY_DEVICE, BY_REPLICA = 'whole', 'by device', 'by replica'
BACKENDS = ('shard_map', 'pmap')

# XLA runs a convolution inside a loop on one CPU thread, far slower than
# outside; so on CPUs the accumulating loop is unrolled, as far as the compile
# time stays bearable.
CPU_UNROLL = 32


def is_first_process() -> bool:
  """Whether this process writes the logs."""
  return jax.process_index() == 0


class Devices(NamedTuple):
  """All devices of all processes, and how programs are made for them.

  Attributes:
    mesh: along one axis, `data`, or along two, `replica` and `data`.
    backend: `shard_map`, or `pmap` where nothing has an axis of replicas.
    options: for the compiler; `pmap` takes none.
    abstract: nothing runs, programs are only compiled: an array is its shape
      and its place. So devices can be those of a topology that is not there.
  """

  mesh: Mesh
  backend: str = 'shard_map'
  options: dict[str, Any] | None = None
  abstract: bool = False

  @property
  def size(self) -> int:
    return self.mesh.size

  @property
  def platform(self) -> str:
    return self.mesh.devices.flat[0].platform

  @property
  def is_one(self) -> bool:
    """Whether a program is given arrays of the host as they are."""
    one = self.size == jax.process_count() == 1
    return one and self.backend == 'shard_map' and not self.abstract

  @property
  def rows(self) -> int:
    """Rows of the mesh: 1 of one that has no axis of replicas."""
    return self.mesh.shape.get(REPLICA_AXIS, 1)

  @property
  def processes(self) -> list[list[int]]:
    """The process of each device, by rows."""
    devices = self.mesh.devices.reshape(self.rows, -1)
    return [[device.process_index for device in row] for row in devices]

  @property
  def own(self) -> list[int]:
    """Places in the mesh of this process's devices."""
    here = jax.process_index()
    flat = self.mesh.devices.flat
    return [i for i, device in enumerate(flat) if device.process_index == here]

  @property
  def unroll(self) -> int:
    """Microbatches in one iteration of the accumulating loop."""
    return CPU_UNROLL if self.platform == 'cpu' else 1

  @property
  def calls_in_flight(self) -> int:
    """How many calls of programs may be under way at once."""
    if self.platform != 'cpu':
      return 8
    # A CPU runs its virtual devices on few threads: collectives of several
    # updates at once could wait for each other for ever. One device has none;
    # the next call is made ready while it is busy, and no more, for it may be
    # long.
    return 1 if self.size > 1 else 2

  def with_replicas(self, replicas: int) -> 'Devices':
    """The same devices along two axes, `replica` and `data`.

    Devices that follow one another share a replica, so that those of one host
    do where there are at most as many replicas as hosts. Where there are more
    replicas than devices, each device trains several.

    >>> eight = make_devices(jax.devices()[:8])
    >>> dict(eight.with_replicas(4).mesh.shape)
    {'replica': 4, 'data': 2}
    """
    rows = math.gcd(replicas, self.size)
    mesh = Mesh(
      self.mesh.devices.reshape(rows, -1),
      (REPLICA_AXIS, DATA_AXIS),
      axis_types=(AxisType.Auto, AxisType.Auto),
    )
    return self._replace(mesh=mesh)

  def first(self, count: int) -> 'Devices':
    """So many of them, from the first on, along one axis."""
    if count == self.size:
      return self
    mesh = Mesh(
      self.mesh.devices.flat[:count],
      (DATA_AXIS,),
      axis_types=(AxisType.Auto,),
    )
    return self._replace(mesh=mesh)

  # Programs.

  def shardings(self, where: Any) -> Any:
    """The sharding of each leaf of a pytree prefix."""
    if isinstance(where, str):
      return _sharding(self.mesh, where)
    return jax.tree.map(self.shardings, where)

  def spmd(
    self,
    body: Callable[..., Any],
    *,
    arguments: tuple[Any, ...],
    results: Any = WHOLE,
    donate: tuple[int, ...] = (),
  ) -> Any:
    """A function of global arrays that runs `body` on every device.

    Args:
      body: per-device function whose collectives are over axes of the mesh.
      arguments: where each of them lies.
      results: where they lie; never BY_DEVICE.
      donate: arguments whose memory the results may reuse.

    Returns:
      A jitted function with `.lower(*args).compile()`.
    """
    if self.backend == 'shard_map':
      mapped = jax.shard_map(
        lambda *args: body(*_own_entry(arguments, args)),
        mesh=self.mesh,
        in_specs=jax.tree.map(partial(_spec, self.mesh), arguments),
        out_specs=jax.tree.map(partial(_spec, self.mesh), results),
      )
      return jax.jit(
        mapped, donate_argnums=donate, compiler_options=self.options
      )
    if self.backend == 'pmap':
      return jax.pmap(
        body,
        axis_name=DATA_AXIS,
        in_axes=jax.tree.map(
          lambda where: 0 if where == BY_DEVICE else None, arguments
        ),
        out_axes=None,
        donate_argnums=donate,
        devices=list(self.mesh.devices.flat),
      )
    raise ValueError(
      f'unknown parallel.backend {self.backend!r}: choose one of '
      f'{", ".join(BACKENDS)}'
    )

  def jit(self, function: Callable[..., Any], **how: Any) -> Any:
    """`jax.jit` for what needs no axis of devices."""
    return jax.jit(function, compiler_options=self.options, **how)

  # Arrays.

  def place(self, tree: Any, where: Any = WHOLE) -> Any:
    """Host arrays, the same on every process, of which each places its part."""
    return self.placer(where)(tree)

  def placer(self, where: Any = WHOLE) -> Callable[[Any], Any]:
    """`place` for what lies where it does at every update."""
    shardings = self.shardings(where)
    if self.abstract:
      return lambda tree: jax.tree.map(_described, shardings, tree)
    if jax.process_count() == 1:
      return partial(jax.device_put, device=shardings)

    def part(sharding, x):
      x = np.asarray(x)
      return jax.make_array_from_callback(
        x.shape, sharding, lambda index: x[index]
      )

    return lambda tree: jax.tree.map(
      lambda sharding, subtree: jax.tree.map(partial(part, sharding), subtree),
      shardings,
      tree,
    )

  def part_of(self, tree: Any) -> Any:
    """Arrays that are WHOLE on these devices and others, as they lie here."""
    sharding = self.shardings(WHOLE)
    here = set(self.mesh.devices.flat)
    return jax.tree.map(
      lambda x: (
        _shape(x.shape, x.dtype, sharding)
        if self.abstract
        else jax.make_array_from_single_device_arrays(
          x.shape,
          sharding,
          [s.data for s in x.addressable_shards if s.device in here],
        )
      ),
      tree,
    )

  def place_own(self, rows: Any) -> Any:
    """Host arrays [own devices, ...] placed one row on each device.

    Each process gives the rows of its own devices, in the order of the mesh.
    """
    sharding = self.shardings(BY_DEVICE)
    if self.abstract:  # the rows of all are of one shape
      return jax.tree.map(
        lambda x: _shape((self.size, *x.shape[1:]), x.dtype, sharding), rows
      )
    return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(sharding, x), rows
    )

  def zeros(self, shapes: Any) -> Any:
    """Arrays BY_DEVICE; those that lie on devices already stay."""
    own = len(self.own)
    return jax.tree.map(
      lambda x: (
        x
        if isinstance(x, jax.Array)
        else self.place_own(np.zeros((own, *x.shape[1:]), x.dtype))
      ),
      shapes,
    )

  def of_all_processes(self, tree: Any) -> Any:
    """Arrays that are WHOLE, as arrays of all processes.

    With several processes `pmap` returns arrays that know only the devices of
    their own process, which a checkpoint cannot be made of. No data moves.
    """
    if self.backend != 'pmap':
      return tree
    sharding = self.shardings(WHOLE)
    return jax.tree.map(
      lambda x: jax.make_array_from_single_device_arrays(
        x.shape, sharding, [shard.data for shard in x.addressable_shards]
      ),
      tree,
    )

  def gatherer(self) -> Callable[[jax.Array], jax.Array]:
    """A function that makes a sharded array whole on every device."""
    return jax.jit(lambda x: x, out_shardings=self.shardings(WHOLE))


def _shape(shape: Any, dtype: Any, sharding: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _described(sharding: Any, tree: Any) -> Any:
  """What arrays would be if they were placed."""
  return jax.tree.map(lambda x: _shape(x.shape, x.dtype, sharding), tree)


def _spec(mesh: Mesh, where: str) -> PartitionSpec:
  if where == BY_DEVICE:
    # Along an axis of one device nothing differs.
    shape = mesh.shape
    return PartitionSpec(
      tuple(a for a in mesh.axis_names if a != DATA_AXIS or shape[a] > 1)
    )
  return PartitionSpec(REPLICA_AXIS) if where == BY_REPLICA else PartitionSpec()


@cache  # asked for at every update
def _sharding(mesh: Mesh, where: str) -> NamedSharding:
  return NamedSharding(mesh, _spec(mesh, where))


def make_devices(
  devices: Sequence[Any] | None = None,
  *,
  backend: str = 'shard_map',
  options: dict[str, Any] | None = None,
) -> Devices:
  """All devices of all processes along one axis, `data`.

  Args:
    devices: some of them; None for all.
    backend, options: see `Devices`.
  """
  devices = jax.devices() if devices is None else devices
  mesh = Mesh(np.array(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))
  return Devices(mesh, backend, options, abstract=_only_compile(devices[0]))


def _only_compile(device: Any) -> bool:
  """Whether a device is one of a topology that is not there."""
  kind = getattr(device.client, 'runtime_type', None)
  return kind == 'compile_only_runtime'


def _own_entry(where: Any, args: Any) -> Any:
  """One device's view: leaves BY_DEVICE lose their axis of devices."""
  return jax.tree.map(
    lambda w, subtree: (
      jax.tree.map(lambda x: x[0], subtree) if w == BY_DEVICE else subtree
    ),
    where,
    args,
  )


def of_first_process(value: float) -> float:
  """The number that the first process has, on every process."""
  if jax.process_count() == 1:
    return value
  return float(multihost_utils.broadcast_one_to_all(np.float32(value)))


def any_process(value: bool) -> bool:
  """Whether it is so on any process."""
  if jax.process_count() == 1:
    return value
  return bool(multihost_utils.process_allgather(np.int32(value)).any())
