"""BatchNorm whose statistics do not depend on batch size, devices or steps."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adabatch.models.rows import Rows


class GhostBatchNorm(nn.Module):
  """BatchNorm over groups of a fixed number of examples, with weights.

  Each group of `group_size` consecutive places of the batch is normalised by
  its own mean and variance, so growing the batch size or accumulating gradients
  leaves the noise of BatchNorm as it was. Where a device holds less than a
  group, the devices that share one add up their sums, so the statistics are the
  same on any number of devices. (Processes that stream every H-th example form
  groups of their own examples, so those depend on H.) Examples of weight 0
  (empty slots) are left out of the statistics. A last group of a single example
  has no variance; in a layer without spatial dimensions it is normalised to the
  bias. The running statistics average those of the groups, each weighted by its
  examples.

  Statistics are computed in float32.

  Attributes:
    group_size: examples in a group; a batch with fewer examples is one group.
    momentum: weight of the old running statistics.
    epsilon: added to the variance.
    dtype: of the result.
    scale_init: initialiser of the scale.

  Reference: Hoffer et al., Train longer, generalize better, 2017
  (arXiv:1705.08741); Goyal et al. 2017 use groups of 32.
  """

  group_size: int = 32
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = jnp.float32
  scale_init: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, rows: Rows | None = None
  ) -> jax.Array:
    """Normalises x [B, ..., C].

    Raises:
      ValueError: if groups neither lie within a device nor consist of whole
        devices; `buckets.ladder(group_size=)` avoids such microbatches.
    """
    features = x.shape[-1]
    scale = self.param('scale', self.scale_init, (features,))
    bias = self.param('bias', nn.initializers.zeros, (features,))
    mean = self.variable('batch_stats', 'mean', jnp.zeros, (features,))
    var = self.variable('batch_stats', 'var', jnp.ones, (features,))
    if not train:
      factor = jax.lax.rsqrt(var.value + self.epsilon) * scale
      shift = bias - mean.value * factor
      return (x * factor + shift).astype(self.dtype)

    batch = x.shape[0]
    together = 1 if rows is None else self._devices_together(batch, rows)

    def total(value):
      if rows is None or together == 1:
        return value
      return _sum_over_neighbours(value, together, rows)

    size = batch if together > 1 else min(self.group_size, batch)
    groups = -(-batch // size)
    padding = groups * size - batch
    grouped = jnp.pad(
      x.astype(jnp.float32), [(0, padding)] + [(0, 0)] * (x.ndim - 1)
    ).reshape(groups, size, -1, features)
    weights = jnp.ones(batch) if rows is None else rows.weights
    mask = jnp.pad(weights, (0, padding)).reshape(groups, size, 1, 1)
    examples = jnp.sum(mask, 1, keepdims=True)
    count = jnp.maximum(total(examples), 1.0) * grouped.shape[2]
    group_mean = total(jnp.sum(grouped * mask, (1, 2), keepdims=True)) / count
    centred = grouped - group_mean
    squares = jnp.sum(jnp.square(centred) * mask, (1, 2), keepdims=True)
    group_var = total(squares) / count
    if not self.is_initializing():
      share = examples / jnp.maximum(jnp.sum(examples), 1.0)
      for running, value in ((mean, group_mean), (var, group_var)):
        batch_value = jnp.sum(value * share, (0, 1, 2))
        running.value = (
          self.momentum * running.value + (1 - self.momentum) * batch_value
        )
    normalised = centred * jax.lax.rsqrt(group_var + self.epsilon)
    result = (normalised * scale + bias).reshape(-1, *x.shape[1:])[:batch]
    return result.astype(self.dtype)

  def _devices_together(self, batch: int, rows: Rows) -> int:
    """How many neighbouring devices make up a group; 1: groups are local."""
    if rows.devices == 1 or batch % self.group_size == 0:
      return 1
    if self.group_size % batch and batch * rows.devices > self.group_size:
      raise ValueError(
        f'groups of {self.group_size} examples do not fit {batch} examples on '
        f'each of {rows.devices} devices: choose a multiple or a divisor'
      )
    return min(self.group_size // batch, rows.devices)


def _sum_over_neighbours(
  value: jax.Array, together: int, rows: Rows
) -> jax.Array:
  """Sums over blocks of `together` devices, the last one perhaps shorter.

  Every device fills in its own block's row and reads it from the sum over all,
  because sums over parts of an axis are not available everywhere. There are
  fewer blocks than groups that fit on the devices at once.
  """
  assert rows.axis is not None, 'several devices share an axis'
  block = jax.lax.axis_index(rows.axis) // together
  blocks = -(-rows.devices // together)
  own = jnp.arange(blocks) == block
  spread = jnp.where(own.reshape(-1, *[1] * value.ndim), value[None], 0.0)
  return jax.lax.psum(spread, rows.axis)[block]
