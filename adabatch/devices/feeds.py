"""Where the examples of an update come from: the device's memory, or a stream.

A feed gives (data, batch) for an update: `data` are the arrays that `load`
gathers examples from, `batch` says which. Both feeds follow the one order of
the data, so training is the same with either.
"""

import bisect
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from adabatch import data
from adabatch.controllers.buckets import Bucket, Plan
from adabatch.devices import parallel, steps


class Shares(NamedTuple):
  """How a batch is shared out.

  The example at position p goes to replica p (mod K). A replica's examples go
  to the devices of its row of the mesh, step by step and in each step device by
  device.

  Attributes:
    replicas: K, on all devices; 1 where one model is trained.
    rows: rows of the mesh.
    devices: devices of a row, which share the examples of its replicas.
  """

  replicas: int
  rows: int
  devices: int

  @property
  def here(self) -> int:
    """Replicas on each device."""
    return self.replicas // self.rows


def shares(mesh: Mesh, replicas: int) -> Shares:
  """For a mesh with or without an axis of replicas.

  >>> shares(parallel.make_mesh(jax.devices()[:2]), 1)
  Shares(replicas=1, rows=1, devices=2)
  """
  rows = mesh.devices.shape[0] if mesh.devices.ndim > 1 else 1
  return Shares(replicas, rows, mesh.size // rows)


class ResidentFeed:
  """A split that lies on every device; an update is told the indices.

  Attributes:
    data: the arrays, on every device.
    sharded: False: `data` is the same on every device.
    most_updates: how many updates one call of a program may do; None: any.
    wait_seconds: time spent waiting for data.
    shares: how a batch is shared out.
  """

  sharded = False
  most_updates = None
  wait_seconds = 0.0

  def __init__(
    self,
    split: data.Split,
    order: data.Order,
    mesh: Mesh,
    *,
    replicas: int = 1,
  ):
    self._order, self._mesh = order, mesh
    self.data: Any = parallel.replicate(split.arrays, mesh)
    self.share(replicas)

  def share(self, replicas: int) -> None:
    """From now on batches are for so many replicas."""
    self.shares = shares(self._mesh, replicas)

  @property
  def place_stride(self) -> int:
    """See `steps.train_step`."""
    return self.shares.replicas

  def start(self, position: int) -> None:
    """Nothing has to be read ahead."""

  def example(self, bucket: Bucket) -> dict[str, Any]:
    """Arrays of the shapes that an update in a bucket is given."""
    del bucket
    return self.data

  def take(
    self, position: int, plan: Plan, count: int, updates: int, *, stop: bool
  ) -> tuple[steps.Data, steps.StepBatch]:
    """The next `count` batches, in arrays with room for `updates`.

    Slots are filled in the order of positions. Empty slots repeat example 0 and
    carry weight 0.
    """
    size, accumulation, devices = plan.bucket
    replicas, rows, _ = self.shares
    # Where the end of a run has cut the one batch, some shares are smaller by
    # one; the place of that slot lies beyond the batch, so it has no weight.
    share = -(-plan.batch_size // replicas)
    assert count == 1 or share * replicas == plan.batch_size
    slots = np.zeros((replicas, updates, plan.bucket.slots), np.int32)
    taken = data.take(
      self._order, position, position + count * share * replicas
    ).reshape(count, share, replicas)
    by_replica = taken.transpose(2, 0, 1)
    if replicas > 1:
      # Row r holds the positions position + r (mod replicas).
      by_replica = np.roll(by_replica, position % replicas, axis=0)
    slots[:, :count, :share] = by_replica
    # [row, device of it, replica of the row, update, step, slot]
    ordered = slots.reshape(
      rows, -1, updates, accumulation, devices, size
    ).transpose(0, 4, 1, 2, 3, 5)
    replica = np.arange(replicas).reshape(rows, 1, -1)
    device = np.arange(devices).reshape(1, -1, 1)
    first = (replica - position) % replicas + replicas * size * device
    packed = steps.pack(
      ordered.reshape(rows * devices, -1, updates, accumulation * size),
      first=first.reshape(rows * devices, -1),
      count=count,
      position=position,
      batch_size=plan.batch_size,
      damping=plan.damping,
      stop=stop,
    )
    return self.data, place(packed, self._mesh)

  def close(self) -> None:
    """Nothing is open."""


def place(packed: steps.StepBatch, mesh: Mesh) -> steps.StepBatch:
  """The host's arrays, on the devices."""
  return steps.StepBatch(
    rows=parallel.shard(packed.rows, mesh),
    header=parallel.replicate(packed.header, mesh),
  )


class Window:
  """Random access to the part of a stream that is still wanted.

  Examples are numbered from the start of the stream; those before `forget` are
  gone for good.
  """

  def __init__(
    self,
    chunks: Any,
    skipped: Callable[[int, str], None],
  ):
    """Reads ahead from `chunks`; `skipped` is told of records that could not be
    read: (record, reason)."""
    self._chunks, self._skipped = chunks, skipped
    self._kept: list[dict[str, np.ndarray]] = []
    self._starts: list[int] = []
    self._end = 0

  def copy(
    self, start: int, out: dict[str, np.ndarray], stride: int = 1
  ) -> None:
    """Copies examples start, start + stride, ... into arrays [n, ...]."""
    n = len(next(iter(out.values())))
    while self._end <= start + (n - 1) * stride:
      try:
        chunk = next(self._chunks)
      # What a full disk, a full memory and a killed process make of it.
      except (OSError, RuntimeError, MemoryError) as error:
        raise data.DatasetError(
          f'reading the data failed: {" ".join(str(error).split())}'
        ) from error
      for record, reason in chunk.skipped:
        self._skipped(record, reason)
      self._kept.append(chunk.arrays)
      self._starts.append(self._end)
      self._end += len(chunk.arrays['weight'])
    done = 0
    i = bisect.bisect_right(self._starts, start) - 1
    while done < n:
      first = start + done * stride - self._starts[i]
      for name, array in self._kept[i].items():
        some = array[first::stride][: n - done]
        out[name][done : done + len(some)] = some
      done += len(range(first, len(self._kept[i]['weight']), stride))
      i += 1

  def forget(self, before: int) -> None:
    """Drops what lies before an example."""
    old = max(bisect.bisect_right(self._starts, before) - 1, 0)
    del self._kept[:old], self._starts[:old]


def own_devices(mesh: Mesh) -> list[Any]:
  """This process's devices, in the order of the mesh."""
  here = jax.process_index()
  return [d for d in mesh.devices.flat if d.process_index == here]


# What a stream says of each example beside the example itself.
WEIGHT = {'weight': np.float32(1)}


def empty(
  shapes: dict[str, Any], leading: tuple[int, ...]
) -> dict[str, np.ndarray]:
  """Zeros for examples of these shapes, with their weights."""
  return {
    name: np.zeros((*leading, *shape.shape), shape.dtype)
    for name, shape in {**shapes, **WEIGHT}.items()
  }


class _Streams(NamedTuple):
  """Which process reads what, and for which replica.

  Process h reads the positions p = residue (mod H), residue being another
  number for each process. Either the residue tells the replica, because K
  divides H, or a process has several replicas, which take turns.

  Attributes:
    residues: of each process.
    labels: of each replica l: it takes the positions l (mod K).
    turns: replicas that a process reads for.
  """

  residues: dict[int, int]
  labels: list[int]
  turns: int


def _streams(mesh: Mesh, shares: Shares) -> _Streams:
  """Raises ValueError if processes and replicas do not fit."""
  replicas, rows, _ = shares
  by_row = [
    list(dict.fromkeys(d.process_index for d in row))
    for row in mesh.devices.reshape(rows, -1)
  ]
  processes = list(dict.fromkeys(p for row in by_row for p in row))
  count = len(processes)
  if replicas % count and (count % replicas or shares.here > 1):
    raise ValueError(
      f'{count} processes cannot read for {replicas} replicas: the number of '
      'one must divide that of the other'
    )
  if count >= replicas:
    residues = {
      process: rank * replicas + row
      for row, members in enumerate(by_row)
      for rank, process in enumerate(members)
    }
    return _Streams(residues, list(range(replicas)), 1)
  residues = {process: i for i, process in enumerate(processes)}
  labels, seen = [], dict.fromkeys(processes, 0)
  if any(len(members) > 1 for members in by_row):
    raise ValueError('the devices of a process do not follow one another')
  for (process,) in by_row:
    for _ in range(shares.here):
      labels.append(seen[process] * count + residues[process])
      seen[process] += 1
  return _Streams(residues, labels, replicas // count)


class StreamingFeed:
  """A split that is read while it is trained on.

  Process h of H reads every H-th example and gives them to its own devices, in
  the order of positions; so a BatchNorm group is of one process's examples, and
  which they are depends on H. While an update runs, the next batch is assembled
  and sent to the devices in a thread, as if it were of the same size; if it is
  not, it is assembled anew from what was read.

  Attributes as for `ResidentFeed`; `data` is None, each batch has its own.
  """

  sharded = True
  most_updates = 1

  def __init__(
    self,
    split: Any,
    order: data.Order,
    mesh: Mesh,
    *,
    workers: int,
    skipped: Callable[[int, str], None],
    replicas: int = 1,
  ):
    """`workers` processes read, or a thread if 0; `skipped` is told of records
    that could not be read: (record, reason)."""
    self._split, self._order, self._mesh = split, order, mesh
    self._workers, self._skipped = workers, skipped
    self.data: Any = None
    self.wait_seconds = 0.0
    self._own = len(own_devices(mesh))
    self._thread = ThreadPoolExecutor(1, thread_name_prefix='feed')
    self._chunks: Any = None
    self._window: Any = None
    self._origin = 0  # position where reading started
    self._next = -1  # position of the next batch
    # The next batch, and for what it was assembled.
    self._ahead: tuple[tuple[Bucket, int], Future] | None = None
    self.share(replicas)

  def share(self, replicas: int) -> None:
    """From now on batches are for so many replicas.

    Raises:
      ValueError: if several processes cannot read for them.
    """
    self._close_stream()
    self._next = -1
    self.shares = shares(self._mesh, replicas)
    self._streams = _streams(self._mesh, self.shares)

  @property
  def place_stride(self) -> int:
    """See `steps.train_step`."""
    return max(jax.process_count(), self.shares.replicas)

  def example(self, bucket: Bucket) -> dict[str, Any]:
    slots = self._mesh.size, self.shares.here * bucket.slots_per_device
    sharding = parallel.by_device(self._mesh)
    return {
      name: jax.ShapeDtypeStruct(
        (*slots, *shape.shape), shape.dtype, sharding=sharding
      )
      for name, shape in {**self._split.shapes, **WEIGHT}.items()
    }

  def take(
    self, position: int, plan: Plan, count: int, updates: int, *, stop: bool
  ) -> tuple[steps.Data, steps.StepBatch]:
    assert count == updates == 1, 'a stream is read update by update'
    begin = time.perf_counter()
    if self._next != position:
      self.start(position)
    wanted = plan.bucket, plan.batch_size
    if self._ahead is None or self._ahead[0] != wanted:
      self._ahead = wanted, self._assemble(position, *wanted)
    arrays = self._ahead[1].result()
    self.wait_seconds += time.perf_counter() - begin
    self._next = position + plan.batch_size
    self._ahead = wanted, self._assemble(self._next, *wanted)
    slots = plan.bucket.slots_per_device
    here = self.shares.here
    indices = np.arange(here * slots, dtype=np.int32).reshape(here, 1, slots)
    packed = steps.pack(
      np.broadcast_to(indices, (self._mesh.size, *indices.shape)),
      first=self._first_places(position, plan.bucket.microbatch_size),
      count=1,
      position=position,
      batch_size=plan.batch_size,
      damping=plan.damping,
      stop=stop,
    )
    return arrays, place(packed, self._mesh)

  def start(self, position: int) -> None:
    """Starts to read at a position."""
    self._close_stream()
    self._origin = self._next = position
    self._chunks = data.read_chunks(
      self._split,
      self._order,
      position,
      process=self._residue,
      processes=jax.process_count(),
      workers=self._workers,
    )
    self._window = Window(self._chunks, self._skipped)

  @property
  def _residue(self) -> int:
    return self._streams.residues[jax.process_index()]

  def _first_places(self, position: int, size: int) -> np.ndarray:
    """Place in the batch of the first slot of every replica on every device."""
    replicas, rows, _ = self.shares
    processes, here = jax.process_count(), self.shares.here
    first = np.empty((self._mesh.size, here), np.int64)
    for row, devices in enumerate(self._mesh.devices.reshape(rows, -1)):
      seen: dict[int, int] = {}
      for i, device in enumerate(devices):
        process = device.process_index
        rank = seen.get(process, 0)
        seen[process] = rank + 1
        for j in range(here):
          residue = (
            self._streams.residues[process]
            if processes >= replicas
            else self._streams.labels[row * here + j]
          )
          first[row * len(devices) + i, j] = (
            residue - position
          ) % self.place_stride + self.place_stride * size * rank
    return first

  def _assemble(self, position: int, bucket: Bucket, batch_size: int) -> Future:
    """Starts to assemble the batch at a position."""
    window, processes = self._window, jax.process_count()
    residue, turns, here = self._residue, self._streams.turns, self.shares.here
    # A process has its replicas' own devices in one block after the other.
    columns = self._own // max(turns // here, 1)

    def read(position: int) -> int:
      """How many examples this process would read before a position."""
      return len(data.process_positions(0, position, residue, processes))

    origin = read(self._origin)

    def work() -> steps.Data:
      start, stop = read(position), read(position + batch_size)
      window.forget(start - origin)
      size, accumulation, _ = bucket
      slots = here * bucket.slots_per_device
      arrays = empty(self._split.shapes, (self._own, slots))
      for turn in range(turns):
        # The replica's own examples begin at `at` and lie `turns` apart.
        at = start + (turn - start) % turns
        row, replica = divmod(turn, here)
        for step in range(accumulation):
          for device in range(row * columns, (row + 1) * columns):
            n = min(size, len(range(at, stop, turns)))
            if n > 0:
              begin = (replica * accumulation + step) * size
              rows = slice(begin, begin + n)
              window.copy(
                at - origin,
                {k: v[device, rows] for k, v in arrays.items()},
                turns,
              )
              at += n * turns
      return parallel.shard_own(arrays, self._mesh)

    return self._thread.submit(work)

  def _close_stream(self) -> None:
    """Stops reading."""
    if self._ahead is not None:
      # Nobody may wait for a chunk while the reader is closed.
      wait([self._ahead[1]])
    chunks, self._chunks = self._chunks, None
    self._window = self._ahead = None  # what they hold lies in shared memory
    if chunks is not None:
      chunks.close()

  def close(self) -> None:
    """Ends the thread and the workers."""
    self._close_stream()
    self._thread.shutdown(wait=True, cancel_futures=True)
