"""Convolution and BatchNorm as the deep image networks share them."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from adabatch.models.normalization import GhostBatchNorm
from adabatch.models.rows import Rows


def conv_and_norm(
  group_size: int, dtype: Any, *, train: bool, rows: Rows | None
) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
  """Two functions that add layers to the compact module that calls them.

  `conv(x, features, window=3, strides=1)` pads by window // 2 on every side.
  Kernels are normal with variance 2 / fan (He et al. 2015), without truncation.

  `norm(x, scale_init=ones)` is Ghost BatchNorm. With `group_size` 0 it returns
  x as it is, and the convolutions have biases instead.
  """
  # The reference networks take the fan of the outputs, where BatchNorm makes
  # the choice harmless. Without it that of the inputs keeps activations from
  # growing or vanishing on the way up.
  kernel_init = nn.initializers.variance_scaling(
    2.0, 'fan_out' if group_size else 'fan_in', 'normal'
  )

  def conv(
    x: jax.Array, features: int, window: int = 3, strides: int = 1
  ) -> jax.Array:
    return nn.Conv(
      features,
      (window, window),
      strides,
      # Not SAME: with stride 2 that would pad one side only, unlike the
      # reference networks.
      padding=window // 2,
      use_bias=not group_size,
      dtype=dtype,
      kernel_init=kernel_init,
    )(x)

  def norm(x: jax.Array, scale_init: Any = nn.initializers.ones) -> jax.Array:
    if not group_size:
      return x
    return GhostBatchNorm(group_size, dtype=dtype, scale_init=scale_init)(
      x, train=train, rows=rows
    )

  return conv, norm
