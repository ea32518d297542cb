"""Fully connected networks."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adabatch.models.rows import Rows


class MLP(nn.Module):
  """Dense layers with ReLU between them, on the flattened input.

  Attributes:
    num_classes: outputs.
    hidden_sizes: units of each hidden layer.
    dtype: of the computation; parameters and logits are float32.
  """

  num_classes: int
  hidden_sizes: Sequence[int] = (128,)
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, rows: Rows | None = None
  ) -> jax.Array:
    """Maps x [B, ...] to logits [B, num_classes]."""
    x = x.reshape(x.shape[0], -1)
    for size in self.hidden_sizes:
      x = nn.relu(nn.Dense(size, dtype=self.dtype)(x))
    x = nn.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.float32)
