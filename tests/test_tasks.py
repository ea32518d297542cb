"""Losses and metrics of examples, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch.tasks import classification

CLASSES = 5


def examples(count=40, seed=0, scale=3.0):
  rng = np.random.Generator(np.random.Philox(seed))
  logits = scale * rng.standard_normal((count, CLASSES))
  labels = rng.integers(0, CLASSES, count)
  return logits.astype(np.float32), labels.astype(np.int32)


def log_softmax(logits):
  """In float64, the slow and obvious way."""
  logits = logits.astype(np.float64)
  return logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))


def cross_entropy(logits, labels, smoothing=0.0):
  targets = (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES
  return -np.sum(targets * log_softmax(logits), -1)


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.9])
def test_loss_of_each_example(smoothing):
  logits, labels = examples()
  got = classification(smoothing).loss(logits, {'label': labels})
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(
    got, cross_entropy(logits, labels, smoothing), rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize('smoothing', [0.0, 0.3])
def test_metrics_of_each_example_are_never_smoothed(smoothing):
  logits, labels = examples()
  got = classification(smoothing).metrics(logits, {'label': labels})
  assert set(got) == {'loss', 'accuracy'}
  assert all(v.dtype == jnp.float32 for v in got.values())
  np.testing.assert_allclose(
    got['loss'], cross_entropy(logits, labels), rtol=1e-5, atol=1e-6
  )
  expected = np.argmax(logits, -1) == labels
  assert 0 < expected.mean() < 1
  np.testing.assert_array_equal(got['accuracy'], expected)


@pytest.mark.parametrize('split', [(40,), (1, 39)])
def test_sums_over_any_split_give_the_mean(split):
  logits, labels = examples()
  task = classification()
  sums, count = 0.0, 0
  for start, size in zip(np.cumsum((0, *split)), split, strict=False):
    rows = slice(start, start + size)
    values = task.metrics(logits[rows], {'label': labels[rows]})
    sums += np.array([np.asarray(v).sum() for v in values.values()])
    count += size
  expected = [
    cross_entropy(logits, labels).mean(),
    (np.argmax(logits, -1) == labels).mean(),
  ]
  np.testing.assert_allclose(sums / count, expected, rtol=1e-5)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_gradient_is_softmax_minus_target(smoothing):
  logits, labels = examples(8)
  task = classification(smoothing)
  got = jax.grad(lambda x: task.loss(x, {'label': labels}).sum())(logits)
  targets = (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES
  expected = np.exp(log_softmax(logits)) - targets
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
  logits, labels = examples(scale=1.0)
  logits = jnp.asarray(logits, jnp.bfloat16)
  rounded = np.asarray(logits, np.float64)
  for smoothing in (0.0, 0.1):
    got = classification(smoothing).loss(logits, {'label': labels})
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(
      got, cross_entropy(rounded, labels, smoothing), rtol=1e-5, atol=1e-6
    )
  got = classification().metrics(logits, {'label': labels})['loss']
  np.testing.assert_allclose(
    got, cross_entropy(rounded, labels), rtol=1e-5, atol=1e-6
  )


def test_large_logits_do_not_overflow():
  logits = np.array([[1e4, 0.0, 0.0, 0.0, 0.0]], np.float32)
  task = classification()
  assert float(task.loss(logits, {'label': np.array([0])})[0]) == 0.0
  assert float(task.loss(logits, {'label': np.array([1])})[0]) == 1e4


def test_which_metric_should_grow():
  task = classification()
  logits, labels = examples(1)
  assert task.higher_is_better == {'loss': False, 'accuracy': True}
  metrics = task.metrics(logits, {'label': labels})
  assert metrics.keys() == task.higher_is_better.keys()


@pytest.mark.parametrize('smoothing', [-0.1, 1.0, float('nan')])
def test_label_smoothing_that_cannot_be(smoothing):
  with pytest.raises(ValueError, match=r'label_smoothing must lie in \[0, 1\)'):
    classification(smoothing)
