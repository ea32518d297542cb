"""The examples of an update from a stream that is read ahead."""

import bisect
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import jax
import numpy as np

from adabatch import data
from adabatch.controllers.buckets import Bucket
from adabatch.data.source import Data
from adabatch.devices import layout as layouts
from adabatch.devices.feeds import BATCH
from adabatch.devices.mesh import BY_DEVICE, Devices
from adabatch.devices.messages import Call, StepBatch, pack


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

  where = BY_DEVICE
  most_updates = 1

  def __init__(
    self,
    split: Any,
    order: data.Order,
    devices: Devices,
    replicas: int,
    *,
    workers: int,
    skipped: Callable[[int, str], None],
    beside: int = 1,
  ):
    """`workers` processes read, or a thread if 0; `skipped` is told of records
    that could not be read: (record, reason); `beside` other streams are read
    at the same time."""
    self._split, self._order, self._devices = split, order, devices
    self._workers, self._skipped, self._beside = workers, skipped, beside
    self._place = devices.placer(BATCH)
    self.data: Any = None
    self.wait_seconds = 0.0
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
    self.layout, residue = layouts.streamed(self._devices.processes, replicas)
    self._processes = len(residue)
    self._residue = residue[jax.process_index()]

  def example(self, bucket: Bucket) -> dict[str, Any]:
    """Shapes of what an update in a bucket is given."""
    here = self.layout.lane.shape[1]
    leading = self._devices.size, here * bucket.slots_per_device
    sharding = self._devices.shardings(BY_DEVICE)
    return {
      name: jax.ShapeDtypeStruct(
        (*leading, *shape.shape), shape.dtype, sharding=sharding
      )
      for name, shape in {**self._split.shapes, **WEIGHT}.items()
    }

  def take(
    self, call: Call, updates: int, *, stop: bool
  ) -> tuple[Data, StepBatch]:
    """The batch of a call of one update."""
    assert call.count == updates == 1, 'a stream is read update by update'
    plan, position = call.plan, call.examples + call.left_out
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
    slots, here = plan.bucket.slots_per_device, self.layout.lane.shape[1]
    indices = np.arange(here * slots, dtype=np.int32).reshape(here, 1, slots)
    packed = pack(
      call,
      np.broadcast_to(indices, (self._devices.size, *indices.shape)),
      self.layout.first_places(position, plan.bucket.microbatch_size),
      stop=stop,
    )
    return arrays, self._place(packed)

  def start(self, position: int) -> None:
    """Starts to read at a position."""
    self._close_stream()
    self._origin = self._next = position
    self._chunks = data.read_chunks(
      self._split,
      self._order,
      position,
      process=self._residue,
      processes=self._processes,
      workers=self._workers,
      beside=self._beside,
    )
    self._window = Window(self._chunks, self._skipped)

  def _read(self, position: int) -> int:
    """How many examples this process reads before a position."""
    return len(
      data.process_positions(0, position, self._residue, self._processes)
    )

  def _assemble(self, position: int, bucket: Bucket, batch_size: int) -> Future:
    """Starts to assemble the batch at a position."""
    window, origin = self._window, self._read(self._origin)
    size, steps, _ = bucket
    layout, own = self.layout, self._devices.own
    lanes, here = layout.lanes, layout.lane.shape[1]
    places = layout.places(layout.first_places(position, size)[own], bucket)

    def work() -> Data:
      window.forget(self._read(position) - origin)
      slots = here * bucket.slots_per_device
      arrays = empty(self._split.shapes, (len(own), slots))
      # What a device takes at once follows in the stream, a lane apart.
      for device, replica, step in np.ndindex(len(own), here, steps):
        first = places[device, replica, step, 0]
        n = min(size, len(range(first, batch_size, lanes)))
        if n:
          begin = (replica * steps + step) * size
          window.copy(
            self._read(position + first) - origin,
            {k: v[device, begin : begin + n] for k, v in arrays.items()},
            lanes // self._processes,
          )
      return self._devices.place_own(arrays)

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
