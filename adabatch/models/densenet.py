"""Densely connected networks."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adabatch.models.conv_norm import conv_and_norm
from adabatch.models.dropout import Dropout
from adabatch.models.rows import Rows


class DenseNet(nn.Module):
  """The basic DenseNet for images of 32x32: no bottleneck, no compression.

  A 3x3 convolution of `width` channels and three blocks of (depth - 4) / 3
  layers. Each layer is BatchNorm, ReLU and a 3x3 convolution whose
  `growth_rate` channels are appended to its input. Between blocks a 1x1
  convolution keeps the channels and a 2x2 average pool halves the image.
  DenseNet-40-12 has 1,019,722 parameters with 10 classes and 3 channels,
  1,060,132 with 100.

  Kernels: see `conv_and_norm`; the dense layer's has variance 1 / fan-in.

  Attributes:
    num_classes: outputs.
    depth: 40, 100 or any other 3 n + 4.
    growth_rate: the paper's k.
    dropout_rate: of the dropout after each convolution but the first; the
      paper uses 0.2 without data augmentation.
    width: channels of the first convolution.
    batch_norm_group: examples in a BatchNorm group; 0 for no BatchNorm, and
      biases in the convolutions instead.
    dtype: of the computation; parameters and logits are float32.

  Reference: Huang et al., Densely connected convolutional networks, 2017
  (arXiv:1608.06993).
  """

  num_classes: int
  depth: int = 40
  growth_rate: int = 12
  dropout_rate: float = 0.0
  width: int = 16
  batch_norm_group: int = 32
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, rows: Rows | None = None
  ) -> jax.Array:
    """Maps images x [B, H, W, C] to logits [B, num_classes]."""
    layers, rest = divmod(self.depth - 4, 3)
    if layers < 1 or rest:
      raise ValueError(
        f'densenet needs a depth of 3 n + 4, got {self.depth}: choose 40 or 100'
      )
    if min(x.shape[1:3]) < 4:
      raise ValueError(
        f'densenet needs images of at least 4x4, got {x.shape[1]}x{x.shape[2]}:'
        ' choose mlp'
      )
    conv, norm = conv_and_norm(
      self.batch_norm_group, self.dtype, train=train, rows=rows
    )

    def layer(x: jax.Array, features: int, window: int) -> jax.Array:
      x = conv(nn.relu(norm(x)), features, window)
      return Dropout(self.dropout_rate)(x, train=train, rows=rows)

    x = conv(x, self.width)
    for block in range(3):
      if block:
        x = nn.avg_pool(layer(x, x.shape[-1], 1), (2, 2), (2, 2))
      for _ in range(layers):
        x = jnp.concatenate([x, layer(x, self.growth_rate, 3)], axis=-1)
    x = jnp.mean(nn.relu(norm(x)), (1, 2))
    x = nn.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.float32)
