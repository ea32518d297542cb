"""LeNet-5."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adabatch.models.rows import Rows


class LeNet(nn.Module):
  """LeNet-5 in its modern form: max-pool and ReLU, every map sees every other.

  Two 5x5 convolutions without padding (6 and 16 channels), each followed by
  ReLU and a 2x2 max-pool, then dense layers of 120 and 84 units. Images smaller
  than the original's 32x32 are surrounded by zeros, as MNIST's were: 61,706
  parameters on 28x28x1 images with 10 classes. Kernels have variance
  1 / fan-in.

  Attributes:
    num_classes: outputs.
    dtype: of the computation; parameters and logits are float32.

  Reference: LeCun et al., Gradient-based learning applied to document
  recognition, 1998 (Proceedings of the IEEE 86).
  """

  num_classes: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, rows: Rows | None = None
  ) -> jax.Array:
    """Maps images x [B, H, W, C] to logits [B, num_classes]."""
    missing = [max(0, 32 - size) for size in x.shape[1:3]]
    around = [(size // 2, size - size // 2) for size in missing]
    x = jnp.pad(x, [(0, 0), *around, (0, 0)])
    for features in (6, 16):
      x = nn.Conv(features, (5, 5), padding='VALID', dtype=self.dtype)(x)
      x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
    x = x.reshape(x.shape[0], -1)
    for size in (120, 84):
      x = nn.relu(nn.Dense(size, dtype=self.dtype)(x))
    x = nn.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.float32)
