"""LSTM language model on rows of packed documents."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adabatch.models.documents import places_in_documents
from adabatch.models.dropout import Dropout
from adabatch.models.embedding import Embedding
from adabatch.models.rows import Rows
from adabatch.models.scores import LanguageModel, Scores


class LSTMLayer(nn.Module):
  """One layer of long short-term memory.

  With x the inputs, h the state, c the cell and s the logistic function:

      i, f, g, o = x_t W + h_{t-1} U + b
      c_t = s(f + 1) c_{t-1} + s(i) tanh(g)
      h_t = (s(o) tanh(c_t)) P

  The 1 makes a new layer remember. P is there only with a projection. The cell
  and the gates are float32.

  Attributes:
    hidden_size: entries of the cell.
    projection_size: entries of the state; 0 for as many as the cell, without P.
    dtype: of the products.

  Reference: Hochreiter and Schmidhuber, 1997; Gers et al., Learning to forget,
  2000; Sak et al., 2014 (arXiv:1402.1128) for the projection.
  """

  hidden_size: int
  projection_size: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, begins: jax.Array) -> jax.Array:
    """Maps x [B, T, C] to the states [B, T, S].

    Args:
      x: the inputs.
      begins: bool [B, T], before which inputs state and cell become zero.
    """
    state_size = self.projection_size or self.hidden_size

    def kernel(name, *shape):
      init = nn.initializers.lecun_normal()
      return self.param(name, init, shape).astype(self.dtype)

    recurrent = kernel('recurrent', state_size, 4 * self.hidden_size)
    project = None
    if self.projection_size:
      project = kernel('projection', self.hidden_size, state_size)
    # The inputs of all steps at once; time leads, as the scan wants it.
    inputs = nn.Dense(4 * self.hidden_size, dtype=self.dtype, name='input')(
      x.swapaxes(0, 1)
    )

    def multiply(a, b):
      return jnp.dot(a, b, preferred_element_type=jnp.float32)

    def step(carry, now):
      state, cell = carry
      gates, begin = now
      state = jnp.where(begin[:, None], 0, state)
      cell = jnp.where(begin[:, None], 0, cell)
      i, f, g, o = jnp.split(gates + multiply(state, recurrent), 4, -1)
      cell = nn.sigmoid(f + 1) * cell + nn.sigmoid(i) * jnp.tanh(g)
      state = (nn.sigmoid(o) * jnp.tanh(cell)).astype(self.dtype)
      if project is not None:
        state = multiply(state, project).astype(self.dtype)
      return (state, cell), state

    # Made from the inputs, so that under `shard_map` it differs by device, as
    # what follows it does; the first step of a row sets it to zero.
    first = inputs[0]
    state = first[:, :state_size].astype(self.dtype)
    cell = first[:, : self.hidden_size].astype(jnp.float32)
    scanned = (inputs, begins.swapaxes(0, 1))
    _, states = jax.lax.scan(step, (state, cell), scanned)
    return states.swapaxes(0, 1)


class LSTM(LanguageModel):
  """Embedding, layers of LSTM, and a softmax over the vocabulary.

  State and cell begin at zero in each document and in each row.

  Attributes:
    num_classes: tokens in the vocabulary.
    num_layers: layers of LSTM.
    hidden_size: entries of the cells.
    embedding_size: entries of a token's vector.
    projection_size: entries of the states; 0 for as many as the cells.
    dropout_rate: on the embeddings and on the output of each layer.
    tied_embeddings: whether the output layer is the embedding, transposed; the
      states must then have its size.
    end_of_document: the token that begins each document; None where a row is
      one document.
    dtype: of the products; parameters, cells and logits are float32.

  Reference: Zaremba et al., Recurrent neural network regularization, 2014
  (arXiv:1409.2329), for where dropout is; Jozefowicz et al., Exploring the
  limits of language modeling, 2016 (arXiv:1602.02410), for projections on LM1B.
  """

  num_classes: int
  num_layers: int = 2
  hidden_size: int = 1024
  embedding_size: int = 512
  projection_size: int = 0
  dropout_rate: float = 0.1
  tied_embeddings: bool = False
  end_of_document: int | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def scores(
    self, tokens: jax.Array, *, train: bool, rows: Rows | None = None
  ) -> Scores:
    """Maps tokens, integers [B, T], to scores of the next, [B, T, V]."""
    state_size = self.projection_size or self.hidden_size
    if self.tied_embeddings and state_size != self.embedding_size:
      raise ValueError(
        f'tied_embeddings needs states of embedding_size={self.embedding_size},'
        f' got {state_size}: set projection_size to it'
      )
    _, position = places_in_documents(tokens, self.end_of_document)
    embedding = Embedding(
      self.num_classes, self.embedding_size, dtype=self.dtype, name='embedding'
    )
    # Entries of variance 1.
    x = embedding(tokens) * self.embedding_size**0.5
    x = Dropout(self.dropout_rate)(x, train=train, rows=rows)
    for i in range(self.num_layers):
      x = LSTMLayer(
        self.hidden_size, self.projection_size, self.dtype, name=f'layer_{i}'
      )(x, position == 0)
      x = Dropout(self.dropout_rate)(x, train=train, rows=rows)
    if self.tied_embeddings:
      return embedding.scores(x)
    return Embedding(
      self.num_classes, state_size, dtype=self.dtype, name='logits'
    ).scores(x)
