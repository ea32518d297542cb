"""Scores of all tokens of a vocabulary that need not be whole in memory.

Logits of N tokens among V are N V numbers of float32, far more than what they
are made of: the features of the tokens and a vector for each of the V. So a
language model gives a `Scores` to whoever can do with that, and its losses are
those of one chunk of tokens after the other.
"""

import abc
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from adabatch.models.rows import Rows

# Bytes up to which logits are whole, and about those of a chunk beyond. Whole
# is faster wherever it fits: chunks make their logits twice, which takes about
# a fifth longer on a TPU (benchmarks/tpu_text.py). So they begin where logits
# take more than a sixteenth of the smallest chip's memory.
WHOLE, CHUNK = 2**30, 2**28

F = TypeVar('F', bound=Callable[..., Any])


def products(x: jax.Array, vectors: jax.Array, dtype: Any) -> jax.Array:
  """x [..., D] by vectors [V, D], in a dtype; float32 [..., V]."""
  return jnp.einsum(
    '...d,vd->...v',
    jnp.asarray(x, dtype),
    jnp.asarray(vectors, dtype),
    preferred_element_type=jnp.float32,
  )


class Scores(struct.PyTreeNode):
  """Logits that are not made yet.

  Attributes:
    features: of tokens, [..., D].
    vectors: of the vocabulary, float32 [V, D].
    dtype: in which they are multiplied.
  """

  features: jax.Array
  vectors: jax.Array
  dtype: Any = struct.field(pytree_node=False)

  def logits(self) -> jax.Array:
    """All of them, float32 [..., V]."""
    return products(self.features, self.vectors, self.dtype)

  @property
  def chunks(self) -> int:
    """In how many parts losses are made; 1: of all logits at once."""
    tokens = math.prod(self.features.shape[:-1])
    size = 4 * tokens * len(self.vectors)
    return 1 if size <= WHOLE else -(-size // CHUNK)


class LanguageModel(nn.Module):
  """A network whose logits are products with a vector for each token."""

  @abc.abstractmethod
  def scores(
    self, tokens: jax.Array, *, train: bool, rows: Rows | None = None
  ) -> Scores:
    """Maps tokens, integers [B, T], to scores of the next, [B, T, V]."""

  def __call__(
    self, tokens: jax.Array, *, train: bool, rows: Rows | None = None
  ) -> jax.Array:
    """Maps tokens, integers [B, T], to logits of the next, [B, T, V]."""
    return self.scores(tokens, train=train, rows=rows).logits()


def takes_scores(function: F) -> F:
  """Marks a function of (outputs, batch) whose outputs may be `Scores`."""
  function.takes_scores = True  # pyright: ignore[reportFunctionMemberAccess]
  return function


def fitting(function: Callable[..., Any], outputs: Any) -> Any:
  """Outputs as a function takes them: logits, unless it is marked."""
  if isinstance(outputs, Scores) and not hasattr(function, 'takes_scores'):
    return outputs.logits()
  return outputs


def in_chunks(
  scores: Scores, labels: jax.Array, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy in nats, and whether the highest logit is the label's.

  The same as of all logits, of `scores.chunks` chunks of tokens. What a chunk
  leaves for the way back is the logarithm of the sum of its exponentials; its
  logits are made a second time.

  Args:
    scores: [..., V].
    labels: integers [...].
    label_smoothing: spread evenly over the vocabulary.

  Returns:
    Both float32 [...].
  """
  count, size = scores.chunks, -(-labels.size // scores.chunks)
  spare = count * size - labels.size
  features = scores.features.reshape(labels.size, -1)
  features = jnp.pad(features, ((0, spare), (0, 0)))
  flat = jnp.pad(labels.ravel(), (0, spare))
  chunk = _chunk(scores.dtype, label_smoothing)
  found = jax.lax.map(
    lambda part: chunk(part[0], scores.vectors, part[1]),
    (features.reshape(count, size, -1), flat.reshape(count, size)),
  )
  return jax.tree.map(
    lambda x: x.ravel()[: labels.size].reshape(labels.shape), found
  )


def _chunk(dtype: Any, smoothing: float):
  """(features [N, D], vectors [V, D], labels [N]) -> what `in_chunks` gives.

  Of logits z the loss is log sum exp z - (1 - s) z_label - s mean z, and its
  gradient softmax z - (1 - s) [label] - s / V.
  """

  @jax.custom_vjp
  def chunk(features, vectors, labels):
    return forward(features, vectors, labels)[0]

  def forward(features, vectors, labels):
    logits = products(features, vectors, dtype)
    total = jax.nn.logsumexp(logits, -1)
    own = jnp.take_along_axis(logits, labels[:, None], -1)[:, 0]
    known = (labels >= 0) & (labels < len(vectors))
    own = jnp.where(known, own, jnp.nan)
    loss = total - (1 - smoothing) * own
    if smoothing:
      loss -= smoothing * jnp.mean(logits, -1)
    right = (jnp.argmax(logits, -1) == labels).astype(jnp.float32)
    return (loss, right), (features, vectors, labels, total)

  def backward(kept, cotangents):
    features, vectors, labels, total = kept
    by_loss = cotangents[0][:, None]
    logits, back = jax.vjp(
      lambda x, v: products(x, v, dtype), features, vectors
    )
    own = jnp.arange(len(vectors)) == labels[:, None]
    target = jnp.where(own, 1 - smoothing, 0.0) + smoothing / len(vectors)
    slope = jnp.exp(logits - total[:, None]) - target
    return *back(by_loss * slope), None

  chunk.defvjp(forward, backward)
  return chunk
