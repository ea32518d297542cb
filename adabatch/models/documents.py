"""Where the documents of a packed row begin."""

import jax
import jax.numpy as jnp


def places_in_documents(
  tokens: jax.Array, end_of_document: int | None
) -> tuple[jax.Array, jax.Array]:
  """Which document of its row each token is in, and at which position.

  The end of a document begins the next one: from it the next one's first token
  is predicted. A document that began in an earlier row counts from where this
  row begins.

  Args:
    tokens: integers [B, T].
    end_of_document: the token that separates documents; None for none.

  Returns:
    (document, position), int32 [B, T] each, both from 0.

  >>> document, position = places_in_documents(jnp.array([[5, 6, 9, 5]]), 9)
  >>> document.tolist(), position.tolist()
  ([[0, 0, 1, 1]], [[0, 1, 0, 1]])
  """
  place = jnp.broadcast_to(
    jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape
  )
  if end_of_document is None:
    return jnp.zeros_like(place), place
  begins = tokens == end_of_document
  document = jnp.cumsum(begins, 1, dtype=jnp.int32)
  start = jax.lax.cummax(jnp.where(begins, place, 0), axis=1)
  return document, place - start
