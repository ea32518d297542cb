"""The examples of an update from memory: a split that lies on every device.

A feed gives (data, batch) for a call: `data` are the arrays that `load` gathers
examples from, `batch` says which. This one and that of `stream` follow the one
order of the data, so training is the same with either.
"""

import copy
from typing import Any

import numpy as np

from adabatch import data
from adabatch.controllers.buckets import Bucket
from adabatch.data.source import Data
from adabatch.devices import layout as layouts
from adabatch.devices.in_rows import place_split
from adabatch.devices.mesh import BY_DEVICE, WHOLE, Devices
from adabatch.devices.messages import Call, StepBatch, pack

# Where batches lie.
BATCH = StepBatch(rows=BY_DEVICE, header=WHOLE)


class ResidentFeed:
  """A split in the memory of every device; a call is told the indices.

  Attributes:
    data: the arrays, on every device.
    where: `data` lies there.
    most_updates: how many updates one call of a program may do; None: any.
    wait_seconds: time spent waiting for data.
    layout: which example stands in which slot.
  """

  where = WHOLE
  most_updates = None
  wait_seconds = 0.0

  def __init__(
    self, arrays: Any, order: data.Order, devices: Devices, replicas: int
  ):
    """`arrays` are those of the split, on the host."""
    self._order, self._devices = order, devices
    self._place = _with_the_call if devices.is_one else devices.placer(BATCH)
    self.data: Any = place_split(arrays, devices)
    self._places: dict[Any, tuple[np.ndarray, np.ndarray]] = {}
    self.share(replicas)

  def on(self, devices: Devices) -> 'ResidentFeed':
    """The same on some of its devices; nothing is copied."""
    feed = copy.copy(self)
    feed._devices, feed._place = devices, devices.placer(BATCH)
    feed.data, feed._places = devices.part_of(self.data), {}
    feed.share(1)
    return feed

  def share(self, replicas: int) -> None:
    """From now on batches are for so many replicas."""
    rows = self._devices.rows
    self.layout = layouts.resident(rows, self._devices.size // rows, replicas)
    self._places.clear()

  def start(self, position: int) -> None:
    """Nothing has to be read ahead."""

  def example(self, bucket: Bucket) -> Data:
    """Arrays of the shapes that an update in a bucket is given."""
    del bucket
    return self.data

  def take(
    self, call: Call, updates: int, *, stop: bool
  ) -> tuple[Data, StepBatch]:
    """The batches of a call, in arrays with room for so many `updates`.

    Empty slots repeat example 0 and carry weight 0.
    """
    plan, start = call.plan, call.examples + call.left_out
    end = start + call.count * plan.batch_size
    taken = data.take(self._order, start, end).reshape(call.count, -1)
    # All that the position changes is which lane comes first.
    key = plan.bucket, start % self.layout.lanes
    if key not in self._places:
      first = self.layout.first_places(start, plan.bucket.microbatch_size)
      places = self.layout.places(first, plan.bucket)
      self._places[key] = first, places.reshape(*first.shape, -1)
    first, places = self._places[key]
    indices = slots(taken, places, updates)
    return self.data, self._place(pack(call, indices, first, stop=stop))

  def close(self) -> None:
    """Nothing is open."""


def _with_the_call(batch: StepBatch) -> StepBatch:
  """To one device arrays go with the call, which costs the host far less."""
  return batch


def slots(examples: np.ndarray, places: np.ndarray, updates: int) -> np.ndarray:
  """Which example is in each slot; 0 in the empty ones.

  Args:
    examples: by their place in the batch, [count, batch size].
    places: of the slots in a batch, [devices, replicas on each, slots].
    updates: for which there is room.

  Returns:
    int32 [devices, replicas on each, updates, slots].
  """
  count, size = examples.shape
  filled = np.zeros((updates, size + 1), np.int32)
  filled[:count, :size] = examples
  return filled[:, np.minimum(places, size)].transpose(1, 2, 0, 3)
