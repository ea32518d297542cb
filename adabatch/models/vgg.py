"""VGG networks."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adabatch.models.conv_norm import conv_and_norm
from adabatch.models.dropout import Dropout
from adabatch.models.rows import Rows

# 3x3 convolutions before each of the five poolings.
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}


class VGG(nn.Module):
  """VGG-11 (configuration A) or VGG-16 (D).

  Five stages of 3x3 convolutions with ReLU, each followed by a 2x2 max-pool,
  then two hidden dense layers with ReLU and dropout. On 224x224x3 images and
  1000 classes VGG-11 has 132,863,336 and VGG-16 138,357,544 parameters. What
  the poolings leave of an image is flattened, so smaller images work too, down
  to 32x32.

  Kernels: see `conv_and_norm`; those of the hidden dense layers likewise have
  variance 2 / fan-in, the last one 1 / fan-in.

  Attributes:
    num_classes: outputs.
    depth: layers with weights, 11 or 16.
    width: channels of the first stage; the others have 2, 4, 8 and 8 times as
      many.
    dense_size: units of both hidden dense layers.
    dropout_rate: of the dropout after each hidden dense layer.
    batch_norm_group: examples in a BatchNorm group after each convolution; 0
      for no BatchNorm, as published.
    dtype: of the computation; parameters and logits are float32.

  Reference: Simonyan and Zisserman, Very deep convolutional networks for
  large-scale image recognition, 2015 (arXiv:1409.1556).
  """

  num_classes: int
  depth: int = 11
  width: int = 64
  dense_size: int = 4096
  dropout_rate: float = 0.5
  batch_norm_group: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, rows: Rows | None = None
  ) -> jax.Array:
    """Maps images x [B, H, W, C] to logits [B, num_classes]."""
    if self.depth not in CONVOLUTIONS:
      raise ValueError(
        f'vgg has no depth {self.depth}: choose one of {list(CONVOLUTIONS)}'
      )
    if min(x.shape[1:3]) < 32:
      raise ValueError(
        f'vgg needs images of at least 32x32, got {x.shape[1]}x{x.shape[2]}: '
        'choose strided_cnn or mlp'
      )
    conv, norm = conv_and_norm(
      self.batch_norm_group, self.dtype, train=train, rows=rows
    )
    for stage, convolutions in enumerate(CONVOLUTIONS[self.depth]):
      for _ in range(convolutions):
        x = nn.relu(norm(conv(x, self.width * min(2**stage, 8))))
      x = nn.max_pool(x, (2, 2), (2, 2))
    x = x.reshape(x.shape[0], -1)
    for _ in range(2):
      x = nn.Dense(
        self.dense_size,
        dtype=self.dtype,
        kernel_init=nn.initializers.variance_scaling(2.0, 'fan_in', 'normal'),
      )(x)
      x = Dropout(self.dropout_rate)(nn.relu(x), train=train, rows=rows)
    x = nn.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.float32)
