"""Losses and metrics of examples, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch.devices.step import weighted_sum
from adabatch.models.precision import mean_average_precision
from adabatch.models.tasks import (
  classification,
  language_modelling,
  multi_label,
  regression,
)

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


def test_classification_feeds_images_and_reports_means():
  task = classification()
  batch = {'image': np.ones((2, 3)), 'label': np.zeros(2, np.int32)}
  assert task.inputs(batch) is batch['image']
  means = {'loss': 0.5, 'accuracy': 0.25}
  assert task.summarize(means) == means


def numbered(values):
  """Logits that are low integers, so that many are equal."""
  return np.round(np.asarray(values)).astype(np.float32)


@pytest.mark.parametrize('classes', [100, 120])
def test_top_5_is_among_the_five_highest(classes):
  rng = np.random.Generator(np.random.Philox(2))
  logits = numbered(3 * rng.standard_normal((200, classes)))
  labels = rng.integers(0, classes, 200).astype(np.int32)
  task = classification(0.1, classes)
  got = task.metrics(logits, {'label': labels})
  # A stable sort: of equal logits the first count.
  highest = np.argsort(-logits, -1, kind='stable')[:, :5]
  expected = [label in row for label, row in zip(labels, highest, strict=True)]
  assert 0 < np.mean(expected) < 1
  np.testing.assert_array_equal(got['accuracy_top_5'], expected)
  assert got['accuracy_top_5'].dtype == jnp.float32
  assert np.all(got['accuracy'] <= got['accuracy_top_5'])
  assert task.metric_names == ('loss', 'accuracy', 'accuracy_top_5')
  assert got.keys() == task.higher_is_better.keys()
  assert task.higher_is_better['accuracy_top_5'] is True


@pytest.mark.parametrize('classes', [None, 5, 99])
def test_no_top_5_of_few_classes(classes):
  logits, labels = examples()
  task = classification(num_classes=classes)
  got = task.metrics(logits, {'label': labels})
  assert set(got) == set(task.metric_names) == {'loss', 'accuracy'}


# Regression.


def check_of_examples(task, outputs, batch, names):
  """Metrics are float32 of each example, and all that is announced."""
  got = task.metrics(outputs, batch)
  assert tuple(got) == task.metric_names == names
  known = task.summarize(dict.fromkeys(got, 0.0))
  assert got.keys() == known.keys() <= task.higher_is_better.keys()
  assert {v.dtype for v in got.values()} == {jnp.dtype(jnp.float32)}
  assert {v.shape for v in got.values()} == {(len(outputs),)}
  return got


ERRORS = ('loss', 'mean_squared_error', 'mean_absolute_error')


@pytest.mark.parametrize('shape', [(30,), (30, 1), (30, 4)])
@pytest.mark.parametrize('loss', ['squared', 'absolute'])
def test_errors_are_means_over_outputs(loss, shape):
  rng = np.random.Generator(np.random.Philox(3))
  outputs = rng.standard_normal(shape).astype(np.float32)
  labels = rng.standard_normal(shape).astype(np.float32)
  task, batch = regression(loss), {'label': labels}
  got = check_of_examples(task, outputs, batch, ERRORS)
  errors = (outputs.astype(np.float64) - labels).reshape(30, -1)
  squared, absolute = (errors**2).mean(-1), abs(errors).mean(-1)
  expected = {'squared': squared, 'absolute': absolute}[loss]
  for values, slow in (
    (task.loss(outputs, batch), expected),
    (got['loss'], expected),
    (got['mean_squared_error'], squared),
    (got['mean_absolute_error'], absolute),
  ):
    np.testing.assert_allclose(values, slow, rtol=1e-5)
  assert not any(task.higher_is_better.values())
  means = dict.fromkeys(ERRORS, 1.0)
  assert task.summarize(means) == means


def test_weights_of_examples_give_their_exact_mean():
  """Weights are the caller's; an empty slot counts nothing, whatever it is."""
  outputs = np.array([1.0, 3.0, np.inf], np.float32)
  batch = {'label': np.zeros(3, np.float32)}
  weights = jnp.array([0.5, 2.0, 0.0])
  loss = regression().loss(outputs, batch)
  mean = weighted_sum(loss, weights) / weights.sum()
  assert float(mean) == pytest.approx((0.5 * 1 + 2 * 9) / 2.5, rel=1e-6)


def test_gradients_of_regression():
  outputs = np.array([[1.0, -2.0]], np.float32)
  for loss, expected in (
    ('squared', [[1.0, -2.0]]),
    ('absolute', [[0.5, -0.5]]),
  ):
    task, batch = regression(loss), {'label': np.zeros((1, 2))}
    got = jax.grad(lambda x, t=task, b=batch: t.loss(x, b).sum())(outputs)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_whole_numbers_and_bfloat16_are_compared_in_float32():
  outputs = jnp.array([257.0, 3.0], jnp.bfloat16)  # the first rounds to 256
  labels = np.array([257, 3], np.int32)
  got = regression().loss(outputs, {'label': labels})
  assert got.dtype == jnp.float32
  assert got.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
  ('outputs', 'labels'),
  [((8, 1), (8,)), ((8,), (8, 1)), ((8, 3), (8, 1)), ((1,), (8,))]
  + [((), ()), ((8, 2, 2), (8, 2, 2))],
)
def test_shapes_of_numbers_that_do_not_fit(outputs, labels):
  batch = {'label': np.zeros(labels)}
  for function in (regression().loss, regression('absolute').metrics):
    with pytest.raises(ValueError, match='have the shape') as refused:
      function(jnp.zeros(outputs), batch)
    said = str(refused.value)
    assert str(outputs) in said
    assert str(labels) in said
    assert '[B] or [B, outputs]' in said
    assert '\n' not in said


def test_a_loss_that_is_none():
  with pytest.raises(ValueError, match="squared or absolute, got 'huber'"):
    regression('huber')


# Several labels at once.


def slow_ranking_precision(logits, labels):
  """For each true label, one after the other."""
  found = []
  for scores, truth in zip(logits, labels, strict=True):
    true = np.flatnonzero(truth)
    shares = [
      np.sum(scores[true] >= scores[k]) / np.sum(scores >= scores[k])
      for k in true
    ]
    found.append(np.mean(shares) if len(shares) else 1.0)
  return np.array(found)


@pytest.mark.parametrize('dtype', [np.float32, np.int32, np.bool_])
def test_many_labels_of_each_example(dtype):
  from sklearn.metrics import label_ranking_average_precision_score

  rng = np.random.Generator(np.random.Philox(4))
  logits = numbered(2 * rng.standard_normal((60, 7)))
  labels = rng.random((60, 7)) < rng.random((60, 1))
  labels[0], labels[1] = False, True
  task, batch = multi_label(), {'label': labels.astype(dtype)}
  names = ('loss', 'ranking_average_precision')
  got = check_of_examples(task, logits, batch, names)
  signs = np.where(labels, -1.0, 1.0)
  entropy = np.log1p(np.exp(signs * logits.astype(np.float64))).mean(-1)
  np.testing.assert_allclose(got['loss'], entropy, rtol=1e-5)
  np.testing.assert_array_equal(task.loss(logits, batch), got['loss'])
  slow = slow_ranking_precision(logits, labels)
  assert slow[0] == slow[1] == 1
  assert 0.3 < slow.mean() < 0.95
  precision = got['ranking_average_precision']
  np.testing.assert_allclose(precision, slow, rtol=1e-6)
  theirs = label_ranking_average_precision_score(labels, logits)
  assert float(precision.mean()) == pytest.approx(theirs, rel=1e-6)
  names = *names, 'mean_average_precision'
  better = dict(zip(names, (False, True, True), strict=True))
  assert task.higher_is_better == better


@pytest.mark.parametrize('seed', range(4))
def test_mean_average_precision_is_that_of_scikit_learn(seed):
  from sklearn.metrics import average_precision_score

  rng = np.random.Generator(np.random.Philox(seed))
  scores = rng.standard_normal((150, 12)).astype(np.float32)
  scores[:, ::2] = np.round(scores[:, ::2])  # many are equal
  scores[:, 3] = 0  # all are
  labels = rng.random((150, 12)) < rng.random(12)
  labels[:, [1, 4]], labels[:, 5] = False, True
  labels[:, 6] = np.arange(150) == 70
  rest = np.flatnonzero(labels.any(0))
  assert set(rest) == set(range(12)) - {1, 4}
  expected = average_precision_score(labels[:, rest], scores[:, rest])
  for dtype in (np.bool_, np.float32):
    got = mean_average_precision(scores, labels.astype(dtype))
    assert got == pytest.approx(expected, rel=1e-12)
  order = rng.permutation(150)
  assert mean_average_precision(scores[order], labels[order]) == got


def test_no_average_precision_where_nothing_is_true():
  nothing = np.zeros((3, 2), np.float32)
  assert np.isnan(mean_average_precision(nothing, nothing))
  assert np.isnan(mean_average_precision(nothing[:0], nothing[:0]))


def test_large_logits_of_labels_do_not_overflow():
  logits = np.array([[1e4, -1e4]], np.float32)
  loss = multi_label().loss
  assert loss(logits, {'label': np.array([[1, 0]])}).tolist() == [0.0]
  assert loss(logits, {'label': np.array([[0, 1]])}).tolist() == [1e4]


def test_bfloat16_logits_of_labels_are_averaged_in_float32():
  logits = jnp.full((1, 300), 0.1, jnp.bfloat16)
  got = multi_label().loss(logits, {'label': np.zeros((1, 300), np.int32)})
  assert got.dtype == jnp.float32
  expected = np.log1p(np.exp(float(logits[0, 0])))
  assert float(got[0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
  ('outputs', 'labels'),
  [((8, 3), (8, 1)), ((8, 3), (8,)), ((8,), (8,)), ((8, 1), (8, 3))],
)
def test_shapes_of_labels_that_do_not_fit(outputs, labels):
  batch = {'label': np.zeros(labels, np.int32)}
  for function in (multi_label().loss, multi_label().metrics):
    with pytest.raises(ValueError, match=r'make both \[B, outputs\]'):
      function(jnp.zeros(outputs), batch)


# Language modelling.


def rows(count=6, length=7, seed=1):
  """Logits, and rows of which only some predicted tokens are real."""
  rng = np.random.Generator(np.random.Philox(seed))
  logits = 3 * rng.standard_normal((count, length, CLASSES))
  tokens = rng.integers(0, CLASSES, (count, length + 1))
  real = np.minimum(np.resize([length, 1, 3, length, 6], count), length)
  # What follows the real tokens must not matter, whatever it is.
  logits[np.arange(length) >= real[:, None]] = np.inf
  batch = {
    'tokens': tokens.astype(np.uint16),
    'weight': (real / length).astype(np.float32),
  }
  return logits.astype(np.float32), batch, real


def token_means(logits, batch, real, smoothing=0.0):
  """Of the real tokens alone, one after the other."""
  losses, right = [], []
  for scores, row, count in zip(logits, batch['tokens'], real, strict=True):
    for t in range(count):
      target = row[t + 1 : t + 2].astype(int)
      losses.append(cross_entropy(scores[t : t + 1], target, smoothing)[0])
      right.append(np.argmax(scores[t]) == target[0])
  return np.mean(losses), np.mean(right)


def weighted(values, batch):
  """What the caller makes of them."""
  weight = batch['weight'].astype(np.float64)
  return np.sum(np.asarray(values) * weight) / np.sum(weight)


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
@pytest.mark.parametrize('length', [1, 7, 128])
def test_weighted_mean_over_rows_is_the_mean_over_tokens(smoothing, length):
  logits, batch, real = rows(length=length)
  task = language_modelling(smoothing)
  loss = task.loss(logits, batch)
  metrics = task.metrics(logits, batch)
  assert loss.dtype == jnp.float32
  assert loss.shape == (6,)
  expected, _ = token_means(logits, batch, real, smoothing)
  assert weighted(loss, batch) == pytest.approx(expected, rel=1e-5)
  # Never smoothed.
  plain, right = token_means(logits, batch, real)
  assert weighted(metrics['loss'], batch) == pytest.approx(plain, rel=1e-5)
  assert weighted(metrics['accuracy'], batch) == pytest.approx(right, rel=1e-5)
  assert {v.shape for v in metrics.values()} == {(6,)}


@pytest.mark.parametrize('length', [3, 7, 96, 100, 1021])
def test_every_count_of_real_tokens_survives_the_weight(length):
  """Rounded to float32, real / T times T is not always a whole number."""
  real = np.arange(1, length + 1)
  weight = (real / length).astype(np.float32)
  task = language_modelling()
  tokens = np.zeros((length, length + 1), np.uint16)
  # Predicted with probability 1/2, but the last real one far less likely, and
  # not at all behind.
  place = np.arange(length)
  logits = np.zeros((length, length, 2), np.float32)
  logits[..., 0] = np.where(place < real[:, None], 0, -1e6)
  logits[place, real - 1, 0] = -1000
  got = task.loss(logits, {'tokens': tokens, 'weight': weight})
  expected = ((real - 1) * np.log(2) + 1000) / real
  np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_gradient_of_what_follows_the_real_tokens_is_zero():
  logits, batch, real = rows()
  logits = np.nan_to_num(logits, posinf=5.0)
  task = language_modelling()
  got = jax.grad(lambda x: task.loss(x, batch).sum())(logits)
  mask = np.arange(7) < real[:, None]
  assert not np.any(got[~mask])
  targets = np.eye(CLASSES)[batch['tokens'][:, 1:]]
  expected = (np.exp(log_softmax(logits)) - targets) / real[:, None, None]
  np.testing.assert_allclose(got[mask], expected[mask], rtol=1e-4, atol=1e-6)


def test_language_models_are_fed_all_but_the_last_token():
  task = language_modelling()
  inputs = task.inputs({'tokens': jnp.array([[7, 8, 9]], jnp.uint16)})
  assert inputs.dtype == jnp.int32
  assert inputs.tolist() == [[7, 8]]


def test_perplexity_is_that_of_the_mean_loss():
  task = language_modelling()
  got = task.summarize({'loss': 2.0, 'accuracy': 0.5})
  assert got == {
    'loss': 2.0,
    'accuracy': 0.5,
    'perplexity': pytest.approx(np.exp(2.0)),
  }
  assert got.keys() == task.higher_is_better.keys()
  assert task.higher_is_better['perplexity'] is False
  assert task.higher_is_better['accuracy'] is True
  assert type(got['perplexity']) is float
  assert task.summarize({'loss': 1e4})['perplexity'] == np.inf
  assert np.isnan(task.summarize({'loss': np.nan})['perplexity'])


def test_bfloat16_logits_of_tokens_are_summed_in_float32():
  logits, batch, real = rows()
  logits = np.nan_to_num(logits, posinf=5.0)
  rounded = jnp.asarray(logits, jnp.bfloat16)
  loss = language_modelling().loss(rounded, batch)
  assert loss.dtype == jnp.float32
  expected, _ = token_means(np.asarray(rounded, np.float64), batch, real)
  assert weighted(loss, batch) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('smoothing', [-0.1, 1.0, float('nan')])
def test_label_smoothing_that_cannot_be_of_tokens(smoothing):
  with pytest.raises(ValueError, match=r'label_smoothing must lie in \[0, 1\)'):
    language_modelling(smoothing)
