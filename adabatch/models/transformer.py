"""Decoder-only Transformer on rows of packed documents."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adabatch.models.attention import attention
from adabatch.models.documents import places_in_documents
from adabatch.models.dropout import Dropout
from adabatch.models.embedding import Embedding
from adabatch.models.rows import Rows
from adabatch.models.scores import LanguageModel, Scores


def sinusoids(positions: jax.Array, dim: int) -> jax.Array:
  """Sines, then cosines, of the positions at dim / 2 wavelengths.

  The wavelengths grow geometrically from 2 pi to 10,000 times that.

  Args:
    positions: any shape, from 0.
    dim: even.

  Returns:
    float32 [..., dim].

  >>> sinusoids(jnp.array(0), 4).tolist()
  [0.0, 0.0, 1.0, 1.0]
  """
  half = dim // 2
  exponents = jnp.arange(half) / max(half - 1, 1)
  rates = 10_000.0**-exponents
  angles = jnp.tensordot(positions.astype(jnp.float32), rates, axes=0)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


class Transformer(LanguageModel):
  """A causal Transformer language model.

  A token sees itself and the earlier tokens of its own document in its row,
  and positions count from where that begins, so the other documents of a
  packed row change nothing. LayerNorm comes before each sublayer and once after
  the last. Sizes of this project under the names of Shallue et al., whose own
  numbers may differ, as changes of the defaults:

      base     6 layers, dimension 512, 8 heads, hidden 2,048
      shallow  num_layers=2
      narrow   model_dim=256, num_heads=4, hidden_dim=1024
      wide     model_dim=1024, num_heads=16, hidden_dim=4096

  Attributes:
    num_classes: tokens in the vocabulary.
    num_layers: pairs of attention and feed-forward sublayers.
    model_dim: features of a token between the sublayers; even.
    num_heads: heads of attention; divides `model_dim`.
    hidden_dim: units of the feed-forward sublayers.
    dropout_rate: on the embeddings and on the output of each sublayer.
    tied_embeddings: whether the output layer is the embedding, transposed.
    end_of_document: the token that begins each document; None where a row is
      one document.
    dtype: of the computation; parameters, softmax and logits are float32.

  Reference: Vaswani et al., Attention is all you need, 2017
  (arXiv:1706.03762), for the layers and the base size; Xiong et al., On layer
  normalization in the Transformer architecture, 2020 (arXiv:2002.04745), for
  the place of LayerNorm; Shallue et al. 2018 (arXiv:1811.03600) for names.
  """

  num_classes: int
  num_layers: int = 6
  model_dim: int = 512
  num_heads: int = 8
  hidden_dim: int = 2048
  dropout_rate: float = 0.1
  tied_embeddings: bool = True
  end_of_document: int | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def scores(
    self, tokens: jax.Array, *, train: bool, rows: Rows | None = None
  ) -> Scores:
    """Maps tokens, integers [B, T], to scores of the next, [B, T, V]."""
    if self.model_dim % (2 * self.num_heads):
      raise ValueError(
        f'model_dim must be a multiple of 2 num_heads = {2 * self.num_heads}, '
        f'got {self.model_dim}'
      )

    def dropout(x):
      return Dropout(self.dropout_rate)(x, train=train, rows=rows)

    def dense(size, name, bias):
      return nn.Dense(size, use_bias=bias, dtype=self.dtype, name=name)

    def norm(x, name):
      return nn.LayerNorm(dtype=self.dtype, name=name)(x)

    length = tokens.shape[1]
    document, position = places_in_documents(tokens, self.end_of_document)
    embedding = Embedding(
      self.num_classes, self.model_dim, dtype=self.dtype, name='embedding'
    )
    # One row for each position and then a look-up: fewer sines.
    table = sinusoids(jnp.arange(length), self.model_dim).astype(self.dtype)
    x = embedding(tokens) * self.model_dim**0.5 + table[position]
    x = dropout(x)
    for i in range(self.num_layers):
      projected = dense(3 * self.model_dim, f'attention_in_{i}', False)(
        norm(x, f'attention_norm_{i}')
      )
      heads = projected.reshape(*tokens.shape, 3, self.num_heads, -1)
      query, key, value = (heads[:, :, j] for j in range(3))
      attended = attention(query, key, value, document)
      attended = attended.reshape(*tokens.shape, self.model_dim)
      x += dropout(dense(self.model_dim, f'attention_out_{i}', False)(attended))
      hidden = nn.relu(
        dense(self.hidden_dim, f'hidden_in_{i}', True)(
          norm(x, f'hidden_norm_{i}')
        )
      )
      x += dropout(dense(self.model_dim, f'hidden_out_{i}', True)(hidden))
    x = norm(x, 'norm')
    if self.tied_embeddings:
      return embedding.scores(x)
    return Embedding(
      self.num_classes, self.model_dim, dtype=self.dtype, name='logits'
    ).scores(x)
