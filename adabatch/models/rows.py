"""What a layer that mixes or perturbs examples must know of its rows."""

from typing import Any, NamedTuple

# The stream of random keys that is the same in all microbatches of a batch, for
# layers that draw by place.
ROWS_STREAM = 'rows'


class Rows(NamedTuple):
  """The rows of one microbatch on one device, within the whole batch.

  A batch is shared by `devices` devices in one or several steps of
  accumulation. In each step a device holds B rows; those of device k follow
  those of device k - 1.

  Attributes:
    weights: float32 [B], 1 for a real example and 0 for an empty slot.
    places: int32 [B], where in the whole batch each row stands. Randomness that
      is keyed by it does not depend on devices and microbatches.
    devices: how many devices share each step.
    axis: name of the axis of devices; None where there is only one.
  """

  weights: Any
  places: Any
  devices: int = 1
  axis: str | None = None
