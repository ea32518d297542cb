"""What a network is trained for: losses and metrics as sums and counts.

Every quantity is a value for each example. The caller sums over the examples
that count and divides once by their number, so a mean over microbatches,
devices, processes and padded batches is always the same exact mean.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

Batch = Mapping[str, jax.Array]


class Task(NamedTuple):
  """A supervised task.

  Attributes:
    loss: (outputs, batch) -> training loss of each example, float32 [B].
    metrics: (outputs, batch) -> evaluation metrics of each example, each
      float32 [B]; `loss` is always among them.
    higher_is_better: for each metric, whether a larger value is a better one.
  """

  loss: Callable[[jax.Array, Batch], jax.Array]
  metrics: Callable[[jax.Array, Batch], dict[str, jax.Array]]
  higher_is_better: dict[str, bool]


def classification(label_smoothing: float = 0.0) -> Task:
  """Cross-entropy over classes, in nats, and accuracy.

  Args:
    label_smoothing: probability mass spread evenly over all classes in the
      training loss, in [0, 1); the evaluation loss is never smoothed.

  >>> task = classification()
  >>> logits, batch = jnp.zeros((1, 4)), {'label': jnp.array([2])}
  >>> print(f'{task.loss(logits, batch)[0]:.4f}')  # log 4
  1.3863
  """
  if not 0 <= label_smoothing < 1:
    raise ValueError(
      f'label_smoothing must lie in [0, 1), got {label_smoothing}'
    )

  def loss(logits: jax.Array, batch: Batch) -> jax.Array:
    labels = batch['label']
    if not label_smoothing:
      return optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), labels
      )
    targets = optax.smooth_labels(
      jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing
    )
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)

  def metrics(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    labels = batch['label']
    return {
      'loss': optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), labels
      ),
      'accuracy': (jnp.argmax(logits, -1) == labels).astype(jnp.float32),
    }

  return Task(loss, metrics, {'loss': False, 'accuracy': True})
