"""Where the examples of an update come from: the device's memory, or a stream.

A feed gives (data, batch) for an update: `data` are the arrays that `load`
gathers examples from, `batch` says which. Both feeds follow the one order of
the data, so training is the same with either.
"""

import bisect
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from adabatch import data, parallel, steps
from adabatch.buckets import Bucket, Plan


class ResidentFeed:
  """A split that lies on every device; an update is told the indices.

  Attributes:
    data: the arrays, on every device.
    sharded: False: `data` is the same on every device.
    most_updates: how many updates one call of a program may do; None: any.
    place_stride: see `steps.train_step`.
    wait_seconds: time spent waiting for data.
  """

  sharded = False
  most_updates = None
  place_stride = 1
  wait_seconds = 0.0

  def __init__(self, split: data.Split, order: data.Order, mesh: Mesh):
    self._order, self._mesh = order, mesh
    self.data: Any = parallel.replicate(split.arrays, mesh)

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

    Slots are filled in the order of positions, step by step and in each step
    device by device. Empty slots repeat example 0 and carry weight 0.
    """
    size, accumulation, devices = plan.bucket
    slots = np.zeros((updates, plan.bucket.slots), np.int32)
    slots[:count, : plan.batch_size] = data.take(
      self._order, position, position + count * plan.batch_size
    ).reshape(count, plan.batch_size)
    by_device = slots.reshape(updates, accumulation, devices, size)
    packed = steps.pack(
      by_device.transpose(2, 0, 1, 3).reshape(devices, updates, -1),
      first=size * np.arange(devices),
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

  def copy(self, start: int, out: dict[str, np.ndarray]) -> None:
    """Copies the examples from `start` on into arrays [n, ...]."""
    n = len(next(iter(out.values())))
    while self._end < start + n:
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
      first = start + done - self._starts[i]
      rows = min(len(self._kept[i]['weight']) - first, n - done)
      for name, array in self._kept[i].items():
        out[name][done : done + rows] = array[first : first + rows]
      done += rows
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
  ):
    """`workers` processes read, or a thread if 0; `skipped` is told of records
    that could not be read: (record, reason)."""
    self._split, self._order, self._mesh = split, order, mesh
    self._workers, self._skipped = workers, skipped
    self.data: Any = None
    self.place_stride = jax.process_count()
    self.wait_seconds = 0.0
    self._own = len(own_devices(mesh))
    self._thread = ThreadPoolExecutor(1, thread_name_prefix='feed')
    self._chunks: Any = None
    self._window: Any = None
    self._origin = 0  # position where reading started
    self._next = -1  # position of the next batch
    # The next batch, and for what it was assembled.
    self._ahead: tuple[tuple[Bucket, int], Future] | None = None

  def example(self, bucket: Bucket) -> dict[str, Any]:
    slots = bucket.devices, bucket.slots_per_device
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
    size, _, devices = plan.bucket
    indices = np.arange(plan.bucket.slots_per_device, dtype=np.int32)
    packed = steps.pack(
      np.broadcast_to(indices, (devices, 1, len(indices))),
      first=self._first_places(position, size),
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
      process=jax.process_index(),
      processes=jax.process_count(),
      workers=self._workers,
    )
    self._window = Window(self._chunks, self._skipped)

  def _first_places(self, position: int, size: int) -> np.ndarray:
    """Place in the batch of the first slot of every device of every process."""
    stride = self.place_stride
    first = np.empty(self._mesh.size, np.int64)
    seen: dict[int, int] = {}
    for k, device in enumerate(self._mesh.devices.flat):
      process = device.process_index
      rank = seen.get(process, 0)
      seen[process] = rank + 1
      first[k] = (process - position) % stride + stride * size * rank
    return first

  def _assemble(self, position: int, bucket: Bucket, batch_size: int) -> Future:
    """Starts to assemble the batch at a position."""
    window, stride = self._window, self.place_stride

    def read(position: int) -> int:
      """How many examples this process reads before a position."""
      here = jax.process_index()
      return len(data.process_positions(self._origin, position, here, stride))

    def work() -> steps.Data:
      start, stop = read(position), read(position + batch_size)
      window.forget(start)
      size, accumulation, _ = bucket
      arrays = empty(self._split.shapes, (self._own, accumulation * size))
      for step in range(accumulation):
        for device in range(self._own):
          n = min(size, stop - start)
          if n > 0:
            rows = slice(step * size, step * size + n)
            window.copy(start, {k: v[device, rows] for k, v in arrays.items()})
            start += n
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
