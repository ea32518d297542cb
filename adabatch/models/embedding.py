"""A vector for each token: looked up for tokens, or compared with a state."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adabatch.models.scores import Scores


class Embedding(nn.Module):
  """One vector for each token, of entries with variance 1 / features.

  Attributes:
    num_tokens: tokens in the vocabulary.
    features: entries of a vector.
    dtype: of the computation; the parameters are float32.
  """

  num_tokens: int
  features: int
  dtype: Any = jnp.float32

  def setup(self):
    self.vectors = self.param(
      'vectors',
      nn.initializers.normal(self.features**-0.5),
      (self.num_tokens, self.features),
    )

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Maps tokens [...] to their vectors [..., features]."""
    return jnp.asarray(self.vectors, self.dtype)[tokens]

  def attend(self, x: jax.Array) -> jax.Array:
    """Maps x [..., features] to its products with all vectors, float32."""
    return self.scores(x).logits()

  def scores(self, x: jax.Array) -> Scores:
    """What `attend` makes logits of."""
    return Scores(x, self.vectors, self.dtype)
