"""Wide residual networks."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adabatch.models.conv_norm import conv_and_norm
from adabatch.models.dropout import Dropout
from adabatch.models.rows import Rows


class WideBlock(nn.Module):
  """BatchNorm, ReLU and 3x3 convolution, twice; the input is added.

  Where the shape changes, the shortcut is a 1x1 convolution of the first ReLU's
  outputs.

  Attributes:
    features: channels of both convolutions.
    strides: stride of the first convolution.
    dropout_rate: of the dropout between the convolutions.
    batch_norm_group: examples in a BatchNorm group; 0 for no BatchNorm.
    dtype: of the computation; parameters are float32.
  """

  features: int
  strides: int = 1
  dropout_rate: float = 0.0
  batch_norm_group: int = 32
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, rows: Rows | None = None
  ) -> jax.Array:
    """Maps x [B, H, W, C] to [B, H / strides, W / strides, features]."""
    conv, norm = conv_and_norm(
      self.batch_norm_group, self.dtype, train=train, rows=rows
    )
    first = nn.relu(norm(x))
    y = conv(first, self.features, strides=self.strides)
    y = nn.relu(norm(y))
    y = Dropout(self.dropout_rate)(y, train=train, rows=rows)
    y = conv(y, self.features)
    if x.shape != y.shape:
      x = conv(first, self.features, 1, self.strides)
    return x + y


class WideResNet(nn.Module):
  """WRN-depth-widen_factor: pre-activation ResNet of few, wide blocks.

  A 3x3 convolution of `width` channels, three stages of (depth - 4) / 6 blocks
  with 1, 2 and 4 times `widen_factor` * `width` channels, BatchNorm, ReLU, the
  average over space and a dense layer. With 3 channels WRN-16-4 has 2,748,890
  parameters for 10 classes and WRN-28-10 36,479,194 for 10 and 36,536,884 for
  100.

  Kernels: see `conv_and_norm`; the dense layer's has variance 1 / fan-in.

  Attributes:
    num_classes: outputs.
    depth: 16, 28, 40 or any other 6 n + 4.
    widen_factor: the paper's k.
    dropout_rate: of the dropout within each block; the paper uses 0 or 0.3.
    width: channels of the first convolution.
    batch_norm_group: examples in a BatchNorm group; 0 for no BatchNorm, and
      biases in the convolutions instead.
    dtype: of the computation; parameters and logits are float32.

  Reference: Zagoruyko and Komodakis, Wide residual networks, 2016
  (arXiv:1605.07146).
  """

  num_classes: int
  depth: int = 16
  widen_factor: int = 4
  dropout_rate: float = 0.0
  width: int = 16
  batch_norm_group: int = 32
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, rows: Rows | None = None
  ) -> jax.Array:
    """Maps images x [B, H, W, C] to logits [B, num_classes]."""
    blocks, rest = divmod(self.depth - 4, 6)
    if blocks < 1 or rest:
      raise ValueError(
        f'wide_resnet needs a depth of 6 n + 4, got {self.depth}: choose 16, '
        '22, 28 or 40'
      )
    conv, norm = conv_and_norm(
      self.batch_norm_group, self.dtype, train=train, rows=rows
    )
    x = conv(x, self.width)
    for stage in range(3):
      for block in range(blocks):
        x = WideBlock(
          self.width * self.widen_factor * 2**stage,
          strides=2 if stage and not block else 1,
          dropout_rate=self.dropout_rate,
          batch_norm_group=self.batch_norm_group,
          dtype=self.dtype,
        )(x, train=train, rows=rows)
    x = jnp.mean(nn.relu(norm(x)), (1, 2))
    x = nn.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.float32)
