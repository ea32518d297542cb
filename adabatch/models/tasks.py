"""What a network is trained for: losses and metrics as sums and counts.

Every quantity is a value for each example. The caller sums over the examples
that count and divides once by their number, so a mean over microbatches,
devices, processes and padded batches is always the same exact mean. Where the
examples carry weights (`batch['weight']`), the caller multiplies by them and
divides by their sum. What no mean can tell is made of the whole split.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adabatch.models.precision import mean_average_precision
from adabatch.models.scores import Scores, fitting, in_chunks, takes_scores

Batch = Mapping[str, jax.Array]

# From so many classes on it is usual to say how often one of five guesses is
# right.
TOP_5_CLASSES = 100

# What a task predicts: one class, numbers, or any number of classes of an
# example with an input, or each token of a text from those before it.
LABELS = ('classes', 'numbers', 'flags', 'tokens')

# Of a batch of mixed examples: the labels of the others, and the share of an
# example's own label in [0, 1].
MIXED_LABEL, MIXED_SHARE = 'mixed_label', 'mixed_share'


class Whole(NamedTuple):
  """Metrics that need all examples of a split at once, such as their order.

  Attributes:
    gather: (outputs, batch) -> what is kept of each example: an array [B, ...],
      or a pytree of them. All of it comes to lie in the memory of every host.
    metrics: the same of all examples that count, NumPy arrays [N, ...] in an
      order that means nothing -> metrics by name. It is not asked where the
      loss is not finite.
  """

  gather: Callable[[jax.Array, Batch], Any]
  metrics: Callable[[Any], Mapping[str, float]]


class Task(NamedTuple):
  """A supervised task.

  One of your own is made from another by `_replace`, or whole. With scores and
  labels gathered, any function of NumPy arrays is a metric:

      def gather(logits, batch):
        return {'score': logits[:, 1] - logits[:, 0], 'label': batch['label']}

      def metrics(all):
        return {'auc': roc_auc_score(all['label'], all['score'])}

      plain = classification()
      task = plain._replace(
        whole=Whole(gather, metrics),
        higher_is_better=plain.higher_is_better | {'auc': True},
      )

  Attributes:
    loss: (outputs, batch) -> training loss of each example, float32 [B]. Of a
      language model of this package outputs are logits, too, unless the
      function is marked by `scores.takes_scores`; `metrics` likewise.
    metrics: (outputs, batch) -> evaluation metrics of each example, each
      float32 [B]; `loss` is always among them.
    higher_is_better: for each of the numbers that `summarize` and `whole` give,
      whether a larger value is a better one.
    inputs: batch -> what the network is fed.
    summarize: the exact mean of each metric, on the host -> what is reported:
      the same, and what can only be computed from a mean.
    metric_names: what `metrics` gives.
    labels: what is predicted, one of `LABELS`; it also says what data and what
      networks the task is for.
    whole: metrics of the evaluation split that are no means; None: there are
      none, and nothing is gathered.
  """

  loss: Callable[[jax.Array, Batch], jax.Array]
  metrics: Callable[[jax.Array, Batch], dict[str, jax.Array]]
  higher_is_better: dict[str, bool]
  inputs: Callable[[Batch], jax.Array]
  summarize: Callable[[dict[str, float]], dict[str, float]]
  metric_names: tuple[str, ...] = ('loss', 'accuracy')
  labels: str = 'classes'
  whole: Whole | None = None


def training_loss(task: Task, outputs: Any, batch: Batch) -> jax.Array:
  """The loss that is trained on, float32 [B]; of mixed examples that of both.

  s L(label) + (1 - s) L(other label), whatever the task's loss L is.

  >>> outputs, labels = jnp.zeros((1, 1)), {'label': jnp.array([[2.0]])}
  >>> mixed = {MIXED_LABEL: jnp.array([[4.0]]), MIXED_SHARE: jnp.array([0.75])}
  >>> print(training_loss(regression(), outputs, labels | mixed))  # of 4 and 16
  [7.]
  """
  outputs = fitting(task.loss, outputs)
  losses, share = task.loss(outputs, batch), batch.get(MIXED_SHARE)
  # A loss that is not of each example is the caller's to refuse.
  if share is None or jnp.shape(losses) != jnp.shape(share):
    return losses
  others = task.loss(outputs, {**batch, 'label': batch[MIXED_LABEL]})
  return share * losses + (1 - share) * others


def evaluation_metrics(
  task: Task, outputs: Any, batch: Batch
) -> dict[str, jax.Array]:
  """Those of a task, of what a network makes: float32 [B] each."""
  return task.metrics(fitting(task.metrics, outputs), batch)


def classification(
  label_smoothing: float = 0.0, num_classes: int | None = None
) -> Task:
  """Cross-entropy over classes, in nats, and accuracy.

  With `TOP_5_CLASSES` or more also `accuracy_top_5`, whether the label is among
  the five highest logits; of equal ones the first count, as for accuracy.

  Args:
    label_smoothing: probability mass spread evenly over all classes in the
      training loss, in [0, 1); the evaluation loss is never smoothed.
    num_classes: C; None where it is not known, and top 5 not asked for.

  Returns:
    A task of batches with `image` or `features`, and `label`, int32 [B];
    outputs are logits [B, C].

  Raises:
    ValueError: if `label_smoothing` is no such number.

  >>> task = classification()
  >>> logits, batch = jnp.zeros((1, 4)), {'label': jnp.array([2])}
  >>> print(f'{task.loss(logits, batch)[0]:.4f}')  # log 4
  1.3863
  """
  _check_smoothing(label_smoothing)
  top_5 = num_classes is not None and num_classes >= TOP_5_CLASSES

  def loss(logits: jax.Array, batch: Batch) -> jax.Array:
    return _cross_entropy(logits, batch['label'], label_smoothing)

  def metrics(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    labels = batch['label']
    values = {
      'loss': _cross_entropy(logits, labels),
      'accuracy': (jnp.argmax(logits, -1) == labels).astype(jnp.float32),
    }
    if top_5:
      _, highest = jax.lax.top_k(logits, 5)
      among = jnp.any(highest == labels[:, None], -1)
      values['accuracy_top_5'] = among.astype(jnp.float32)
    return values

  return _supervised(
    loss,
    metrics,
    {'loss': False, 'accuracy': True}
    | ({'accuracy_top_5': True} if top_5 else {}),
  )


def regression(loss: str = 'squared') -> Task:
  """Numbers, by the mean over an example's outputs of e^2 or |e|.

  e = output - label; the loss of evaluations is that of training.

  Args:
    loss: 'squared', e^2, or 'absolute', |e|.

  Returns:
    A task of batches with `image` or `features`, and `label`, numbers [B] or
    [B, D]; outputs are of the same shape. Metrics are `loss`,
    `mean_squared_error` and `mean_absolute_error`.

  Raises:
    ValueError: if `loss` is none of the two; when called, if outputs and labels
      are not of one such shape: [B, 1] is not [B].

  >>> task = regression()
  >>> batch = {'label': jnp.array([[1.0, 2.0]])}
  >>> print(task.loss(jnp.array([[2.0, 4.0]]), batch))
  [2.5]
  """
  losses = {'squared': jnp.square, 'absolute': jnp.abs}
  if loss not in losses:
    raise ValueError(f'loss must be {" or ".join(losses)}, got {loss!r}')

  def mean(function: Callable[[jax.Array], jax.Array], outputs, batch: Batch):
    outputs, labels = _alike(outputs, batch['label'], (1, 2))
    errors = function(outputs - labels)
    return jnp.mean(errors.reshape(len(errors), -1), -1)

  def metrics(outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    return {
      'loss': mean(losses[loss], outputs, batch),
      'mean_squared_error': mean(jnp.square, outputs, batch),
      'mean_absolute_error': mean(jnp.abs, outputs, batch),
    }

  return _supervised(
    lambda outputs, batch: mean(losses[loss], outputs, batch),
    metrics,
    dict.fromkeys(('loss', 'mean_squared_error', 'mean_absolute_error'), False),
    labels='numbers',
  )


def multi_label() -> Task:
  """Any number of C labels at once, by binary cross-entropy in nats.

  The loss of an example is the mean over labels of -log p(y), p being the
  sigmoid of the logit. `ranking_average_precision` is that of an example's
  labels: for each true one, the share of true ones among those with a logit at
  least as high; the mean of these; 1 where all or none are true. It is a mean
  over examples. `mean_average_precision` is one over classes: of each that has
  a true label in the split, the average precision over all examples; see
  `adabatch.models.precision`.

  Returns:
    A task of batches with `image` or `features`, and `label`, 0 or 1, [B, C];
    outputs are logits [B, C].

  Raises:
    ValueError: when called, if outputs and labels are not of one such shape.

  Source: Schapire and Singer (2000), BoosTexter: average precision.

  >>> task = multi_label()
  >>> logits, batch = jnp.zeros((1, 3)), {'label': jnp.array([[0, 1, 1]])}
  >>> print(f'{task.loss(logits, batch)[0]:.4f}')  # log 2
  0.6931
  """

  def loss(outputs: jax.Array, batch: Batch) -> jax.Array:
    logits, labels = _alike(outputs, batch['label'], (2,))
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels), -1)

  def metrics(outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    logits, labels = _alike(outputs, batch['label'], (2,))
    return {
      'loss': loss(outputs, batch),
      'ranking_average_precision': jax.vmap(_ranking_precision)(logits, labels),
    }

  def gather(outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    logits, labels = _alike(outputs, batch['label'], (2,))
    return {'scores': logits, 'labels': labels > 0}

  task = _supervised(
    loss,
    metrics,
    {'loss': False, 'ranking_average_precision': True},
    labels='flags',
  )
  name = 'mean_average_precision'
  return task._replace(
    whole=Whole(gather, lambda all: {name: mean_average_precision(**all)}),
    higher_is_better=task.higher_is_better | {name: True},
  )


def _supervised(
  loss: Callable[[jax.Array, Batch], jax.Array],
  metrics: Callable[[jax.Array, Batch], dict[str, jax.Array]],
  higher_is_better: dict[str, bool],
  labels: str = 'classes',
) -> Task:
  """One that feeds the input, and reports the means as they are."""
  return Task(
    loss,
    metrics,
    higher_is_better,
    inputs=lambda batch: batch['image' if 'image' in batch else 'features'],
    summarize=dict,
    metric_names=tuple(higher_is_better),
    labels=labels,
  )


def _alike(
  outputs: jax.Array, labels: jax.Array, dimensions: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
  """Both in float32, if nothing would be broadcast.

  Raises:
    ValueError: if their shapes differ, or have another number of dimensions.
  """
  shape, given = jnp.shape(outputs), jnp.shape(labels)
  if shape != given or len(shape) not in dimensions:
    names = {1: '[B]', 2: '[B, outputs]'}
    allowed = ' or '.join(names[number] for number in dimensions)
    raise ValueError(
      f'outputs of the network have the shape {shape} and labels {given}: make '
      f'both {allowed}, with as many outputs as labels'
    )
  return outputs.astype(jnp.float32), labels.astype(jnp.float32)


def _ranking_precision(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Of one example: mean over true labels of (true ones) / (all) at or above.

  Args:
    logits: float32 [C].
    labels: 0 or 1, float32 [C].
  """
  order = jnp.argsort(-logits)
  falling, true = -logits[order], labels[order]
  # How many are at or above each; of equal ones all are.
  above = jnp.searchsorted(falling, falling, side='right')
  true_above = jnp.cumsum(true)[above - 1]
  number = jnp.sum(true)
  mean = jnp.sum(true * true_above / above) / jnp.maximum(number, 1)
  return jnp.where(number == 0, 1.0, mean)


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

  @takes_scores
  def loss(outputs: jax.Array | Scores, batch: Batch) -> jax.Array:
    values, _ = _of_tokens(outputs, targets(batch), label_smoothing)
    return mean_over_real(values, batch)

  @takes_scores
  def metrics(
    outputs: jax.Array | Scores, batch: Batch
  ) -> dict[str, jax.Array]:
    values, right = _of_tokens(outputs, targets(batch))
    return {
      'loss': mean_over_real(values, batch),
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
    labels='tokens',
  )


def _of_tokens(
  outputs: jax.Array | Scores, labels: jax.Array, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy of each, and whether it is guessed; float32 [B, T]."""
  if isinstance(outputs, Scores):
    if outputs.chunks > 1:
      return in_chunks(outputs, labels, label_smoothing)
    outputs = outputs.logits()
  right = (jnp.argmax(outputs, -1) == labels).astype(jnp.float32)
  return _cross_entropy(outputs, labels, label_smoothing), right


# name -> makes it. One of your own is one more line; its parameters are the
# keys of `task.NAME`, and `label_smoothing` and `num_classes` if it takes them.
TASKS: dict[str, Callable[..., Task]] = {
  'classification': classification,
  'language_modelling': language_modelling,
  'regression': regression,
  'multi_label': multi_label,
}


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
    # Without a look-up, whose gradient would be a scatter.
    real = labels[..., None] == jnp.arange(logits.shape[-1])
    own = jnp.sum(jnp.where(real, logits, 0), -1)
    known = (labels >= 0) & (labels < logits.shape[-1])
    own = jnp.where(known, own, jnp.nan)
    return jax.nn.logsumexp(logits, -1) - own
  targets = optax.smooth_labels(
    jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing
  )
  return optax.softmax_cross_entropy(logits, targets)
