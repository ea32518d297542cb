"""What is gathered of all examples of a split, on the host."""

from typing import Any

import jax
import numpy as np


class Gathered:
  """What a task gathers of each example that counts, on the host."""

  def __init__(self, examples: int):
    """`examples` are the most that there can be."""
    self._examples, self._count = examples, 0
    self._arrays: Any = None
    self._last: Any = None

  def add(self, values: Any, weights: Any) -> None:
    """One more piece, on its way from the devices.

    Args:
      values: arrays [slots, ...].
      weights: what each slot counts; those of weight 0 are left out.
    """
    # One behind, so that the devices need not wait for the host.
    self._fetch()
    self._last = values, weights

  def _fetch(self) -> None:
    if self._last is None:
      return
    values, weights = jax.device_get(self._last)
    self._last, keep = None, weights > 0
    if self._arrays is None:
      self._arrays = jax.tree.map(
        lambda x: np.empty((self._examples, *x.shape[1:]), x.dtype), values
      )
    rows = slice(self._count, self._count + np.count_nonzero(keep))
    for array, value in zip(
      *map(jax.tree.leaves, (self._arrays, values)), strict=True
    ):
      array[rows] = value[keep]
    self._count = rows.stop

  def all(self) -> Any:
    """Arrays [examples that count, ...]."""
    self._fetch()
    return jax.tree.map(lambda x: x[: self._count], self._arrays)
