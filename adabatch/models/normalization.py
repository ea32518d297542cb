"""BatchNorm whose statistics do not depend on the batch size."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class GhostBatchNorm(nn.Module):
  """BatchNorm over groups of a fixed number of examples, with weights.

  Each group of `group_size` consecutive examples is normalised by its own mean
  and variance, so growing the batch size or accumulating gradients leaves the
  noise of BatchNorm as it was. Examples of weight 0 (empty slots) are left out
  of the statistics. A last group of a single example has no variance; in a
  layer without spatial dimensions it is normalised to the bias. The running
  statistics average those of the groups, each weighted by its examples.

  Attributes:
    group_size: examples in a group; a call with fewer examples is one group.
    momentum: weight of the old running statistics.
    epsilon: added to the variance.

  Reference: Hoffer et al., Train longer, generalize better, 2017
  (arXiv:1705.08741); Goyal et al. 2017 use groups of 32.
  """

  group_size: int = 32
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, weights: jax.Array | None = None
  ) -> jax.Array:
    """Normalises x [B, ..., C]; weights [B] are 0 or 1, None for all 1."""
    features = x.shape[-1]
    scale = self.param('scale', nn.initializers.ones, (features,))
    bias = self.param('bias', nn.initializers.zeros, (features,))
    mean = self.variable('batch_stats', 'mean', jnp.zeros, (features,))
    var = self.variable('batch_stats', 'var', jnp.ones, (features,))
    if not train:
      inverse = jax.lax.rsqrt(var.value + self.epsilon)
      return (x - mean.value) * (inverse * scale) + bias

    batch = x.shape[0]
    size = min(self.group_size, batch)
    groups = -(-batch // size)
    if weights is None:
      weights = jnp.ones(batch)
    padding = groups * size - batch
    grouped = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)).reshape(
      groups, size, -1, features
    )
    mask = jnp.pad(weights, (0, padding)).reshape(groups, size, 1, 1)
    examples = jnp.sum(mask, 1, keepdims=True)
    count = jnp.maximum(examples, 1.0) * grouped.shape[2]
    group_mean = jnp.sum(grouped * mask, (1, 2), keepdims=True) / count
    centred = grouped - group_mean
    group_var = (
      jnp.sum(jnp.square(centred) * mask, (1, 2), keepdims=True) / count
    )
    if not self.is_initializing():
      share = examples / jnp.maximum(jnp.sum(examples), 1.0)
      for running, value in ((mean, group_mean), (var, group_var)):
        batch_value = jnp.sum(value * share, (0, 1, 2))
        running.value = (
          self.momentum * running.value + (1 - self.momentum) * batch_value
        )
    normalised = centred * jax.lax.rsqrt(group_var + self.epsilon)
    return (normalised * scale + bias).reshape(-1, *x.shape[1:])[:batch]
