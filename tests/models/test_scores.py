"""Losses from chunks of tokens against those of whole logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch.controllers.buckets import Plan, bucket_for
from adabatch.devices.messages import Call
from adabatch.devices.state import to_evaluate
from adabatch.devices.trainer import Trainer
from adabatch.models import scores as scores_lib
from adabatch.models.contract import apply
from adabatch.models.scores import Scores, fitting
from adabatch.models.tasks import (
  evaluation_metrics,
  language_modelling,
  training_loss,
)
from adabatch.models.transformer import Transformer
from adabatch.train.build import build
from adabatch.train.open_splits import TextCache
from tests.experiments import digits
from tests.tfds_sets import SMALL_LSTM, small_text

pytestmark = pytest.mark.usefixtures('compile_quickly')
ROWS, LENGTH, VOCABULARY, DIM = 3, 7, 29, 4


@pytest.fixture(name='chunked')
def _chunked(monkeypatch):
  """Makes all losses from chunks of about 5 tokens."""

  def switch(on=True):
    whole = 0 if on else 2**30
    monkeypatch.setattr(scores_lib, 'WHOLE', whole)
    monkeypatch.setattr(scores_lib, 'CHUNK', 4 * 5 * VOCABULARY)

  return switch


def example(dtype=jnp.float32):
  rng = np.random.Generator(np.random.Philox(0))
  features = rng.standard_normal((ROWS, LENGTH, DIM)).astype(np.float32)
  vectors = rng.standard_normal((VOCABULARY, DIM)).astype(np.float32)
  batch = {
    'tokens': rng.integers(0, VOCABULARY, (ROWS, LENGTH + 1)),
    'weight': np.array([1.0, 3 / LENGTH, 0.0], np.float32),
  }
  return Scores(jnp.asarray(features, dtype), jnp.array(vectors), dtype), batch


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_chunks_are_the_whole(chunked, smoothing, dtype):
  scores, batch = example(dtype)
  task = language_modelling(smoothing)

  def twin(function, outputs, batch):
    return function(task, outputs.logits(), batch)

  def with_gradient(function):
    def total(scores):
      losses = function(scores)
      return losses @ jnp.arange(1.0, ROWS + 1), losses

    return jax.jit(jax.value_and_grad(total, has_aux=True))(scores)

  losses = lambda s: training_loss(task, s, batch)  # noqa: E731
  whole = with_gradient(lambda s: twin(training_loss, s, batch))
  expected = twin(evaluation_metrics, scores, batch)
  chunked()
  assert scores.chunks == 5  # the last one is short
  found = with_gradient(losses)
  near = 1e-5 if dtype == jnp.float32 else 2e-2
  for got, right in zip(
    *map(jax.tree.leaves, (found[0], whole[0])), strict=True
  ):
    np.testing.assert_allclose(got, right, rtol=1e-5)
  for got, right in zip(
    *map(jax.tree.leaves, (found[1], whole[1])), strict=True
  ):
    assert got.dtype == right.dtype
    got, right = np.asarray(got, float), np.asarray(right, float)
    np.testing.assert_allclose(got, right, atol=near * np.abs(right).max())
  metrics = evaluation_metrics(task, scores, batch)
  assert metrics.keys() == expected.keys()
  for name, right in expected.items():
    np.testing.assert_allclose(metrics[name], right, rtol=1e-5)


def test_large_logits_are_never_whole(chunked):
  scores, batch = example()
  chunked()
  text = str(
    jax.make_jaxpr(
      jax.grad(lambda s: training_loss(language_modelling(), s, batch).sum())
    )(scores)
  )
  assert f'[5,{VOCABULARY}]' in text
  for tokens in (f'{ROWS},{LENGTH}', f'{ROWS * LENGTH}', '5,5', '25'):
    assert f'[{tokens},{VOCABULARY}]' not in text


@pytest.mark.parametrize('label', [-1, VOCABULARY])
def test_a_token_that_is_none_has_no_loss(chunked, label):
  """In chunks or whole: a loop of one's own is to notice it."""
  scores, batch = example()
  batch['tokens'][0, 3] = label
  for on in (False, True):
    chunked(on)
    losses = training_loss(language_modelling(), scores, batch)
    assert np.isnan(losses).tolist() == [True, False, False]


def test_which_are_whole():
  def chunks(tokens, vocabulary):
    shapes = [
      jax.ShapeDtypeStruct(shape, jnp.float32)
      for shape in ((tokens, 8), (vocabulary, 8))
    ]
    return Scores(*shapes, jnp.float32).chunks

  assert chunks(256 * 128, 257) == 1  # bytes
  assert chunks(2**15, 2**13) == 1
  assert chunks(2**15, 2**13 + 1) == 5
  assert chunks(64 * 256, 32_000) == 8  # LM1B


def test_others_are_given_logits():
  model = Transformer(VOCABULARY, 1, 4, 1, 4)
  tokens = jnp.zeros((1, 3), jnp.int32)

  @jax.jit
  def both():
    given = model.init(jax.random.key(0), tokens, train=False)
    outputs = apply(model, given, tokens, train=False)
    return model.apply(given, tokens, train=False), outputs

  logits, outputs = both()
  assert logits.shape == (1, 3, VOCABULARY)
  assert isinstance(outputs, Scores)
  task = language_modelling()
  assert fitting(task.loss, outputs) is outputs
  own = task._replace(loss=lambda logits, batch: logits[:, 0, 0])
  np.testing.assert_allclose(
    training_loss(own, outputs, {}), logits[:, 0, 0], rtol=1e-5
  )
  np.testing.assert_array_equal(fitting(np.mean, logits), logits)


@pytest.fixture(name='updated')
def _updated(tmp_path):
  """devices -> parameters after an update, its loss, and all measurements."""
  keys = small_text(tmp_path, 1) | SMALL_LSTM
  cache = TextCache(lambda writer: tmp_path / 'tokens', writer=True)
  (tmp_path / 'tokens').mkdir()

  def run(devices):
    config = digits(
      **keys
      | {
        'task.label_smoothing': 0.1,
        'model.lstm.tied_embeddings': True,
        'controller.name': 'adadamp_grad',
        'controller.adadamp_grad.gradient_source': 'full',
        'controller.initial_batch_size': 8,
        'controller.max_batch_size': 8,
        'buckets.max_per_device': 2,
      }
    )
    parts = build(config, jax.devices()[:devices], cache=cache)
    trainer = Trainer(parts.recipe)
    signals, _ = trainer.measure()
    call = Call(0, 0, 1, Plan(8.0, 8, 1.0, bucket_for(8, parts.ladder)))
    trainer.compile(call)
    report = np.asarray(trainer.dispatch(call, stop=False)).ravel()
    found = trainer.evaluator.metrics(to_evaluate(trainer.state))
    params = jax.tree.map(np.asarray, trainer.state.params)
    trainer.close()
    return params, report, found, signals

  return run


def test_training_and_evaluation_on_devices(updated, chunked):
  chunked(False)
  whole = updated(1)
  chunked()
  for got, right in zip(
    *map(jax.tree.leaves, (updated(2), whole)), strict=True
  ):
    np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-7)
