"""Dropout whose masks do not depend on devices and microbatches."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from adabatch.models.rows import ROWS_STREAM, Rows


class Dropout(nn.Module):
  """Zeroes entries with probability `rate` and divides the rest by 1 - rate.

  Each row draws from its own key, made from the call's key and the row's place
  in the batch. The call's key is that of the stream `rows`, which is the same
  on every device, or of `dropout` where a caller has only that.

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
    stream = ROWS_STREAM if self.has_rng(ROWS_STREAM) else 'dropout'
    key = self.make_rng(stream)
    places = jnp.arange(x.shape[0]) if rows is None else rows.places

    def keep(place):
      own = jax.random.fold_in(key, place)
      return jax.random.bernoulli(own, 1 - self.rate, x.shape[1:])

    return jnp.where(jax.vmap(keep)(places), x / (1 - self.rate), 0)
