"""Residual networks, the small ones for CIFAR and those for ImageNet."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adabatch.models.conv_norm import conv_and_norm
from adabatch.models.rows import Rows


class BasicBlock(nn.Module):
  """Two 3x3 convolutions around which the input is added.

  Attributes:
    features: channels of both convolutions.
    strides: stride of the first convolution.
    projection: whether a shortcut whose shape changes is a 1x1 convolution
      (option B of the reference) or subsampling with zeros for the new channels
      (option A, free of parameters).
    zero_scale: whether the scale of the last BatchNorm starts at 0.
    batch_norm_group: examples in a BatchNorm group; 0 for no BatchNorm.
    dtype: of the computation; parameters are float32.
  """

  features: int
  strides: int = 1
  projection: bool = True
  zero_scale: bool = True
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
    y = nn.relu(norm(conv(x, self.features, strides=self.strides)))
    y = norm(conv(y, self.features), last_scale(self.zero_scale))
    if x.shape != y.shape:
      if self.projection:
        x = norm(conv(x, self.features, 1, self.strides))
      else:
        x = x[:, :: self.strides, :: self.strides]
        new = self.features - x.shape[-1]
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, new)))
    return nn.relu(x + y)


class BottleneckBlock(nn.Module):
  """1x1, 3x3 and 1x1 convolutions around which the input is added.

  The stride lies in the 3x3 convolution ('v1.5'), so that no input is skipped.

  Attributes:
    features: channels of the first two convolutions; the last has four times
      as many.
    strides: stride of the 3x3 convolution.
    zero_scale: whether the scale of the last BatchNorm starts at 0.
    batch_norm_group: examples in a BatchNorm group; 0 for no BatchNorm.
    dtype: of the computation; parameters are float32.
  """

  features: int
  strides: int = 1
  zero_scale: bool = True
  batch_norm_group: int = 32
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, rows: Rows | None = None
  ) -> jax.Array:
    """Maps x [B, H, W, C] to [B, H / strides, W / strides, 4 features]."""
    conv, norm = conv_and_norm(
      self.batch_norm_group, self.dtype, train=train, rows=rows
    )
    y = nn.relu(norm(conv(x, self.features, 1)))
    y = nn.relu(norm(conv(y, self.features, strides=self.strides)))
    y = norm(conv(y, 4 * self.features, 1), last_scale(self.zero_scale))
    if x.shape != y.shape:
      x = norm(conv(x, 4 * self.features, 1, self.strides))
    return nn.relu(x + y)


def last_scale(zero: bool) -> Any:
  """Initializer of the scale of a block's last BatchNorm."""
  return nn.initializers.zeros if zero else nn.initializers.ones


class CifarResNet(nn.Module):
  """ResNet for images of 32x32: three stages of (depth - 2) / 6 basic blocks.

  A 3x3 convolution, stages of `width`, 2 `width` and 4 `width` channels whose
  shortcuts have no parameters, the average over space and a dense layer. With
  10 classes and 3 channels depth 20, 32, 44 and 56 have 269,722, 464,154,
  658,586 and 853,018 parameters. Depth 8 with `batch_norm_group` 0 stands for
  the ResNet-8 without BatchNorm of Shallue et al. 2018 (arXiv:1811.03600):
  75,050 parameters, biases of the convolutions included. Theirs may differ in
  the place of the ReLUs.

  Kernels: see `conv_and_norm`; the dense layer's has variance 1 / fan-in.

  Attributes:
    num_classes: outputs.
    depth: layers with weights: 8, 20, 32, 44, 56 or any other 6 n + 2.
    width: channels of the first stage.
    batch_norm_group: examples in a BatchNorm group; 0 for no BatchNorm, and
      biases in the convolutions instead.
    dtype: of the computation; parameters and logits are float32.

  Reference: He et al., Deep residual learning for image recognition, 2016
  (arXiv:1512.03385), section 4.2.
  """

  num_classes: int
  depth: int = 20
  width: int = 16
  batch_norm_group: int = 32
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, rows: Rows | None = None
  ) -> jax.Array:
    """Maps images x [B, H, W, C] to logits [B, num_classes]."""
    blocks, rest = divmod(self.depth - 2, 6)
    if blocks < 1 or rest:
      raise ValueError(
        f'cifar_resnet needs a depth of 6 n + 2, got {self.depth}: choose 8, '
        '20, 32, 44 or 56'
      )
    conv, norm = conv_and_norm(
      self.batch_norm_group, self.dtype, train=train, rows=rows
    )
    x = nn.relu(norm(conv(x, self.width)))
    for stage in range(3):
      for block in range(blocks):
        x = BasicBlock(
          self.width * 2**stage,
          strides=2 if stage and not block else 1,
          projection=False,
          zero_scale=False,
          batch_norm_group=self.batch_norm_group,
          dtype=self.dtype,
        )(x, train=train, rows=rows)
    x = jnp.mean(x, (1, 2))
    x = nn.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.float32)


# Blocks of each stage, and their kind.
RESNETS = {
  10: ((1, 1, 1, 1), BasicBlock),
  18: ((2, 2, 2, 2), BasicBlock),
  34: ((3, 4, 6, 3), BasicBlock),
  50: ((3, 4, 6, 3), BottleneckBlock),
  101: ((3, 4, 23, 3), BottleneckBlock),
}


class ResNet(nn.Module):
  """ResNet-10 to 101, version 1.5, for ImageNet or smaller images.

  With 1000 classes and 3 channels, from depth 18 they have 11,689,512,
  21,797,672, 25,557,032 and 44,549,160 parameters. The scale of each block's
  last BatchNorm starts at 0, so that every block starts as its shortcut.

  Kernels: see `conv_and_norm`; the dense layer's is normal with standard
  deviation 0.01, as in Goyal et al.

  Attributes:
    num_classes: outputs.
    depth: 10, 18, 34, 50 or 101.
    width: channels of the first stage (a quarter of its outputs from depth 50).
    stem: 'imagenet' is a 7x7 convolution of stride 2 and a 3x3 max-pool of
      stride 2, 'cifar' a 3x3 convolution without pooling, for small images.
    zero_scale: False starts the scale of each block's last BatchNorm at 1.
    batch_norm_group: examples in a BatchNorm group; 0 for no BatchNorm, and
      biases in the convolutions instead.
    dtype: of the computation; parameters and logits are float32.

  Reference: He et al., Deep residual learning for image recognition, 2016
  (arXiv:1512.03385); Goyal et al., Accurate, large minibatch SGD, 2017
  (arXiv:1706.02677), section 5.1, for the stride, the scale of 0 and the
  initial dense layer.
  """

  num_classes: int
  depth: int = 50
  width: int = 64
  stem: str = 'imagenet'
  zero_scale: bool = True
  batch_norm_group: int = 32
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, rows: Rows | None = None
  ) -> jax.Array:
    """Maps images x [B, H, W, C] to logits [B, num_classes]."""
    if self.depth not in RESNETS:
      raise ValueError(
        f'resnet has no depth {self.depth}: choose one of {list(RESNETS)}'
      )
    if self.stem not in ('imagenet', 'cifar'):
      raise ValueError(
        f"resnet has no stem '{self.stem}': choose 'imagenet' or 'cifar'"
      )
    stages, block_type = RESNETS[self.depth]
    conv, norm = conv_and_norm(
      self.batch_norm_group, self.dtype, train=train, rows=rows
    )
    if self.stem == 'imagenet':
      x = nn.relu(norm(conv(x, self.width, 7, 2)))
      around: Any = ((1, 1), (1, 1))
      x = nn.max_pool(x, (3, 3), (2, 2), padding=around)
    else:
      x = nn.relu(norm(conv(x, self.width)))
    for stage, blocks in enumerate(stages):
      for block in range(blocks):
        x = block_type(
          self.width * 2**stage,
          strides=2 if stage and not block else 1,
          zero_scale=self.zero_scale,
          batch_norm_group=self.batch_norm_group,
          dtype=self.dtype,
        )(x, train=train, rows=rows)
    x = jnp.mean(x, (1, 2))
    x = nn.Dense(
      self.num_classes,
      dtype=self.dtype,
      kernel_init=nn.initializers.normal(0.01),
    )(x)
    return x.astype(jnp.float32)
