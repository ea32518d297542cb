"""The simple convolutional network of the batch-size studies."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adabatch.models.rows import Rows


class SimpleCNN(nn.Module):
  """Two 5x5 convolutions with pooling, then one hidden layer.

  Each convolution keeps the size of the image and is followed by ReLU and a 2x2
  max-pool: 3,274,634 parameters on 28x28x1 images with 10 classes. The study
  has a base, a narrow and a wide form. The defaults are the base; for the other
  two this project halves and doubles every width: channels (16, 32) and 512
  units are narrow, (64, 128) and 2048 wide. Kernels have variance 1 / fan-in.

  Attributes:
    num_classes: outputs.
    channels: channels of each convolution.
    hidden_size: units of the dense layer.
    dtype: of the computation; parameters and logits are float32.

  Reference: Shallue et al., Measuring the effects of data parallelism on neural
  network training, 2018 (arXiv:1811.03600).
  """

  num_classes: int
  channels: Sequence[int] = (32, 64)
  hidden_size: int = 1024
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, rows: Rows | None = None
  ) -> jax.Array:
    """Maps images x [B, H, W, C] to logits [B, num_classes]."""
    smallest = 2 ** len(self.channels)
    if min(x.shape[1:3]) < smallest:
      raise ValueError(
        f'simple_cnn needs images of at least {smallest}x{smallest}, got '
        f'{x.shape[1]}x{x.shape[2]}: choose fewer channels or mlp'
      )
    for features in self.channels:
      x = nn.Conv(features, (5, 5), dtype=self.dtype)(x)
      x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
    x = x.reshape(x.shape[0], -1)
    x = nn.relu(nn.Dense(self.hidden_size, dtype=self.dtype)(x))
    x = nn.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.float32)
