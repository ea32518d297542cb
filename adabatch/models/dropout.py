"""Dropout whose masks do not depend on devices and microbatches."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from adabatch.models.rows import Rows


class Dropout(nn.Module):
  """Zeroes entries with probability `rate` and divides the rest by 1 - rate.

  Each row draws from its own key, made from the call's key (the stream
  `dropout`, the same on every device) and the row's place in the batch.

  Attributes:
    rate: probability of a zero, in [0, 1).

  Reference: Srivastava et al., Dropout: a simple way to prevent neural networks
  from overfitting, 2014 (JMLR 15).
  """

  rate: float

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, rows: Rows | None = None
  ) -> jax.Array:
    """Maps x [B, ...] to the same shape; the identity unless training."""
    if not train or not self.rate:
      return x
    key = self.make_rng('dropout')
    places = jnp.arange(x.shape[0]) if rows is None else rows.places

    def keep(place):
      own = jax.random.fold_in(key, place)
      return jax.random.bernoulli(own, 1 - self.rate, x.shape[1:])

    return jnp.where(jax.vmap(keep)(places), x / (1 - self.rate), 0)
