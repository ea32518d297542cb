"""The small convolutional networks of the batch-size experiments."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adabatch.models.normalization import GhostBatchNorm
from adabatch.models.rows import Rows


class StridedCNN(nn.Module):
  """3x3 convolutions of stride 2, then one hidden layer; any image size.

  Small and free of pooling: fast on a CPU.

  Attributes:
    num_classes: outputs.
    channels: channels of each convolution.
    hidden_size: units of the dense layer.
    batch_norm_group: examples in a BatchNorm group after each convolution; 0
      for no BatchNorm.
    dtype: of the computation; parameters and logits are float32.
  """

  num_classes: int
  channels: Sequence[int] = (16, 32)
  hidden_size: int = 128
  batch_norm_group: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, rows: Rows | None = None
  ) -> jax.Array:
    """Maps images x [B, H, W, C] to logits [B, num_classes]."""
    for features in self.channels:
      x = nn.Conv(features, (3, 3), strides=2, dtype=self.dtype)(x)
      if self.batch_norm_group:
        x = GhostBatchNorm(self.batch_norm_group, dtype=self.dtype)(
          x, train=train, rows=rows
        )
      x = nn.relu(x)
    return _hidden_layer_and_logits(self, x)


class PooledCNN(nn.Module):
  """The network of the AdaDamp experiments on Fashion-MNIST.

  Convolutions of 5x5, 5x5 and 3x3 without padding, each followed by ReLU and a
  2x2 max-pool, then one hidden layer: 111,050 parameters on 28x28x1 images.
  Images must be at least 28x28.

  Attributes:
    num_classes: outputs.
    channels: channels of the three convolutions.
    hidden_size: units of the dense layer.
    dtype: of the computation; parameters and logits are float32.

  Reference: Sievert and Charles, Improving the convergence of SGD through
  adaptive batch sizes, 2019 (arXiv:1910.08222), section on experiments.
  """

  num_classes: int
  channels: Sequence[int] = (30, 60, 100)
  hidden_size: int = 100
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, rows: Rows | None = None
  ) -> jax.Array:
    """Maps images x [B, H, W, C] to logits [B, num_classes]."""
    if min(x.shape[1:3]) < 28:
      raise ValueError(
        f'pooled_cnn needs images of at least 28x28, got {x.shape[1]}x'
        f'{x.shape[2]}: choose strided_cnn or mlp'
      )
    for features, window in zip(self.channels, (5, 5, 3), strict=True):
      x = nn.Conv(
        features, (window, window), padding='VALID', dtype=self.dtype
      )(x)
      x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
    return _hidden_layer_and_logits(self, x)


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
    return _hidden_layer_and_logits(self, x)


def _hidden_layer_and_logits(net: Any, x: jax.Array) -> jax.Array:
  x = x.reshape(x.shape[0], -1)
  x = nn.relu(nn.Dense(net.hidden_size, dtype=net.dtype)(x))
  x = nn.Dense(net.num_classes, dtype=net.dtype)(x)
  return x.astype(jnp.float32)
