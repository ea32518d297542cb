"""What a network is trained for: losses and metrics as sums and counts.

Every quantity is a value for each example. The caller sums over the examples
that count and divides once by their number, so a mean over microbatches,
devices, processes and padded batches is always the same exact mean. Where the
examples carry weights (`batch['weight']`), the caller multiplies by them and
divides by their sum.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Batch = Mapping[str, jax.Array]


class Task(NamedTuple):
  """A supervised task.

  Attributes:
    loss: (outputs, batch) -> training loss of each example, float32 [B].
    metrics: (outputs, batch) -> evaluation metrics of each example, each
      float32 [B]; `loss` is always among them.
    higher_is_better: for each of the numbers that `summarize` gives, whether a
      larger value is a better one.
    inputs: batch -> what the network is fed.
    summarize: the exact mean of each metric, on the host -> what is reported:
      the same, and what can only be computed from a mean.
    metric_names: what `metrics` gives.
  """

  loss: Callable[[jax.Array, Batch], jax.Array]
  metrics: Callable[[jax.Array, Batch], dict[str, jax.Array]]
  higher_is_better: dict[str, bool]
  inputs: Callable[[Batch], jax.Array]
  summarize: Callable[[dict[str, float]], dict[str, float]]
  metric_names: tuple[str, ...] = ('loss', 'accuracy')


def classification(label_smoothing: float = 0.0) -> Task:
  """Cross-entropy over classes, in nats, and accuracy.

  Args:
    label_smoothing: probability mass spread evenly over all classes in the
      training loss, in [0, 1); the evaluation loss is never smoothed.

  Returns:
    A task of batches with `image` and `label`, int32 [B].

  Raises:
    ValueError: if `label_smoothing` is no such number.

  >>> task = classification()
  >>> logits, batch = jnp.zeros((1, 4)), {'label': jnp.array([2])}
  >>> print(f'{task.loss(logits, batch)[0]:.4f}')  # log 4
  1.3863
  """
  _check_smoothing(label_smoothing)

  def loss(logits: jax.Array, batch: Batch) -> jax.Array:
    return _cross_entropy(logits, batch['label'], label_smoothing)

  def metrics(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    labels = batch['label']
    return {
      'loss': _cross_entropy(logits, labels),
      'accuracy': (jnp.argmax(logits, -1) == labels).astype(jnp.float32),
    }

  return Task(
    loss,
    metrics,
    {'loss': False, 'accuracy': True},
    inputs=lambda batch: batch['image' if 'image' in batch else 'features'],
    summarize=dict,
  )


def language_modelling(label_smoothing: float = 0.0) -> Task:
  """Predicting each token from those before it.

  An example is a row of T + 1 tokens, of which the first `weight` T of the T
  predicted ones are real and the others fill up the row. Its loss is the mean
  cross-entropy over the real ones, in nats, so that weighting examples by
  `weight` gives the exact mean over tokens.

  Args:
    label_smoothing: probability mass spread evenly over the vocabulary in the
      training loss, in [0, 1); the evaluation loss is never smoothed.

  Returns:
    A task of batches with `tokens`, integers [B, T + 1], and `weight`, float32
    [B]; outputs are logits [B, T, V]. Perplexity is that of the mean loss.

  Raises:
    ValueError: if `label_smoothing` is no such number.

  >>> task = language_modelling()
  >>> batch = {'tokens': jnp.array([[0, 1, 3]]), 'weight': jnp.ones(1)}
  >>> print(f'{task.loss(jnp.zeros((1, 2, 4)), batch)[0]:.4f}')  # log 4
  1.3863
  """
  _check_smoothing(label_smoothing)

  def mean_over_real(values: jax.Array, batch: Batch) -> jax.Array:
    length = values.shape[-1]
    # Rounded because weight = real / T is itself rounded to float32.
    real = jnp.round(batch['weight'] * length)
    mask = jnp.arange(length)[None] < real[:, None]
    # `where` and not a product: 0 times an infinite loss is NaN.
    return jnp.sum(jnp.where(mask, values, 0.0), -1) / jnp.maximum(real, 1.0)

  def targets(batch: Batch) -> jax.Array:
    return batch['tokens'][:, 1:].astype(jnp.int32)

  def loss(logits: jax.Array, batch: Batch) -> jax.Array:
    values = _cross_entropy(logits, targets(batch), label_smoothing)
    return mean_over_real(values, batch)

  def metrics(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    labels = targets(batch)
    right = (jnp.argmax(logits, -1) == labels).astype(jnp.float32)
    return {
      'loss': mean_over_real(_cross_entropy(logits, labels), batch),
      'accuracy': mean_over_real(right, batch),
    }

  def summarize(means: dict[str, float]) -> dict[str, float]:
    # NumPy's overflow is an infinity, which a diverged run may well report.
    with np.errstate(over='ignore'):
      return {**means, 'perplexity': float(np.exp(means['loss']))}

  return Task(
    loss,
    metrics,
    {'loss': False, 'accuracy': True, 'perplexity': False},
    inputs=lambda batch: batch['tokens'][:, :-1].astype(jnp.int32),
    summarize=summarize,
  )


def _check_smoothing(label_smoothing: float) -> None:
  if not 0 <= label_smoothing < 1:
    raise ValueError(
      f'label_smoothing must lie in [0, 1), got {label_smoothing}'
    )


def _cross_entropy(
  logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
  """In nats, float32 and of the shape of the labels."""
  logits = logits.astype(jnp.float32)
  if not label_smoothing:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  targets = optax.smooth_labels(
    jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing
  )
  return optax.softmax_cross_entropy(logits, targets)
