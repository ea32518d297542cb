"""What goes to the devices with a call, and what comes back.

Everything that an update needs beside state and data travels in two small
integer arrays, because placing an array costs more time than what is in it.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adabatch.controllers.buckets import Plan


class Call(NamedTuple):
  """Some updates alike, dispatched at once; also what their reports are of.

  Attributes:
    update, examples: done before it.
    count: updates in it.
    plan: what each of them runs.
    agree: whether the replicas agree after each.
    decides: whether a decision about the batch size is due after the last.
    left_out: places of the data order that were jumped over before it, so that
      its first example is at `examples + left_out`.
    rate: a factor on the learning rate, below 1 after the run went back.
  """

  update: int
  examples: int
  count: int
  plan: Plan
  agree: bool = False
  decides: bool = False
  left_out: int = 0
  rate: float = 1.0

  def after(self, updates: int) -> tuple[int, int]:
    """Updates and examples done after so many of it.

    >>> Call(7, 100, 3, Plan(16.0, 16, 1.0, None)).after(3)
    (10, 148)
    """
    return (
      self.update + updates,
      self.examples + updates * self.plan.batch_size,
    )


class StepBatch(NamedTuple):
  """What the updates of a call need beyond state and data; see `pack`.

  Attributes:
    rows: int32 [replicas, updates, 2 + slots per replica], each device's own:
      whether this process was asked to stop, the place in the batch of the
      first slot, then which example is in each slot.
    header: int32 [updates, 6], the same on every device: how many of the
      updates to run, then the bits of the other numbers.
  """

  rows: Any
  header: Any


def pack(
  call: Call, indices: np.ndarray, first: np.ndarray, *, stop: bool
) -> StepBatch:
  """The host's side of a call, rows of all devices.

  Args:
    call: of at most as many updates as there is room for.
    indices: which examples, int [devices, replicas on each, updates, slots].
    first: place in the batch of the first slot of each replica on each device,
      int [devices, replicas on each].
    stop: whether this process was asked to stop.
  """
  *which, updates, slots = indices.shape
  rows = np.empty((*which, updates, 2 + slots), np.int32)
  rows[..., 0] = stop
  rows[..., 1] = first[..., None]
  rows[..., 2:] = indices
  size = call.plan.batch_size
  done = size * np.arange(updates, dtype=np.int64)
  positions = call.examples + call.left_out + done
  header = np.empty((updates, 6), np.int32)
  header[:, 0] = call.count
  # JAX has no 64-bit integers unless it is told to.
  header[:, 1] = positions >> 32
  header[:, 2] = positions.astype(np.uint32).view(np.int32)  # the lower half
  numbers = np.empty((updates, 3), np.float32)
  numbers[:, 0], numbers[:, 1] = size, call.plan.damping * call.rate
  numbers[:, 2] = call.examples + done
  header[:, 3:] = numbers.view(np.int32)
  return StepBatch(rows, header)


class Unpacked(NamedTuple):
  """One update on a device.

  Attributes:
    indices: int32 [slots].
    stop: float32 [], so that it is summed with the gradients and not apart.
    first: int32 [].
    position: uint32 [2], high and low word.
    batch_size, damping, examples: float32 [].
  """

  indices: Any
  stop: Any
  first: Any
  position: Any
  batch_size: Any
  damping: Any
  examples: Any


def unpack(rows: jax.Array, header: jax.Array) -> Unpacked:
  """The devices' side: one update's numbers from its row and header."""
  bits = jax.lax.bitcast_convert_type
  return Unpacked(
    rows[2:],
    rows[0].astype(jnp.float32),
    rows[1],
    bits(header[1:3], jnp.uint32),
    *bits(header[3:], jnp.float32),
  )


class Report(NamedTuple):
  """What one update reports: floats, the same on all devices of a replica.

  A program returns them in this order as one float32 array [replicas, updates,
  9], which is fetched at once; `combine` makes one of those of all replicas.

  Attributes:
    loss: mean training loss over the batch, before the update.
    gradient_norm_squared: |g|^2 of the mean gradient.
    learning_rate: effective learning rate, damping included.
    trace_covariance: estimate of tr Sigma; NaN where there is none.
    squared_norm: estimate of |G|^2; NaN where there is none.
    stop: number of devices whose process was asked to stop.
    weight: sum of the examples' weights: the batch size, less what could not be
      read.
    replica_squared_distance, mean_squared_distance: see `replicas.Distances`;
      NaN but at a sync.
  """

  loss: Any
  gradient_norm_squared: Any
  learning_rate: Any
  trace_covariance: Any
  squared_norm: Any
  stop: Any
  weight: Any
  replica_squared_distance: Any = math.nan
  mean_squared_distance: Any = math.nan

  @property
  def finite(self) -> Any:
    """Whether the update is: of floats a bool, of arrays one of each."""
    # Not of their sum, which may overflow on its own.
    return np.isfinite(self.loss) & np.isfinite(self.gradient_norm_squared)


def share_above(reports: np.ndarray, norm: float) -> float:
  """How many of the replicas had a longer gradient, over their number.

  Args:
    reports: [replicas, 9].
    norm: to compare with.

  >>> reports = np.array([Report(2.0, n**2, *[0.0] * 5) for n in (1.0, 3.0)])
  >>> share_above(reports, 2.0)
  0.5
  """
  squares = reports[:, Report._fields.index('gradient_norm_squared')]
  return float(np.mean(np.sqrt(squares) > norm))


def finite_rows(reports: np.ndarray) -> np.ndarray:
  """Of which replicas the update is finite; bool [replicas].

  Args:
    reports: [replicas, 9].
  """
  return Report(*reports.T).finite


def combine(reports: np.ndarray) -> Report:
  """One report of all replicas: host floats.

  Loss is the mean over examples, weight and stop are sums, everything else is
  the mean over replicas; so gradient norms are those of one replica's share of
  the batch.

  Args:
    reports: [replicas, 9].
  """
  if len(reports) == 1:
    return Report(*reports[0].tolist())
  each = Report(*reports.T.astype(np.float64))
  weight = float(each.weight.sum())
  means = Report(*reports.mean(0, dtype=np.float64).tolist())
  return means._replace(
    loss=float((each.loss * each.weight).sum()) / weight if weight else 0.0,
    stop=float(each.stop.sum()),
    weight=weight,
  )
