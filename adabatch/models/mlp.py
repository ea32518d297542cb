"""Fully connected networks."""

from collections.abc import Sequence

import jax
from flax import linen as nn


class MLP(nn.Module):
  """Dense layers with ReLU between them, on the flattened input.

  Attributes:
    num_classes: outputs.
    hidden_sizes: units of each hidden layer.
  """

  num_classes: int
  hidden_sizes: Sequence[int] = (128,)

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, weights: jax.Array | None = None
  ) -> jax.Array:
    """Maps x [B, ...] to logits [B, num_classes]."""
    x = x.reshape(x.shape[0], -1)
    for size in self.hidden_sizes:
      x = nn.relu(nn.Dense(size)(x))
    return nn.Dense(self.num_classes)(x)
