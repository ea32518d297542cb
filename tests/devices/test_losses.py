"""The loss of each example as one would compute it, always in one order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch.data import from_arrays
from adabatch.devices.losses import ExampleLosses, Losses
from adabatch.devices.trainer import Trainer
from adabatch.train.build import build
from adabatch.train.open_splits import TextCache
from tests.experiments import digits
from tests.tfds_sets import SMALL_LSTM, small_text

pytestmark = pytest.mark.usefixtures('compile_quickly')

LITTLE = {'model.mlp.hidden_sizes': (8,), 'eval.max_per_device': 50}


def text(tmp_path):
  keys = small_text(tmp_path) | SMALL_LSTM
  return keys, {'cache': TextCache(lambda writer: tmp_path, True)}


def regression(tmp_path):
  rng = np.random.default_rng(0)

  def split(n):
    x = rng.normal(size=(n, 3)).astype(np.float32)
    y = rng.normal(size=(n, 2)).astype(np.float32)
    return from_arrays({'features': x, 'label': y}, 2)

  keys = {'task.name': 'regression', 'target.metric': 'loss'}
  return keys, {'splits': (split(60), split(41))}


def images(tmp_path):
  return {}, {}


def streamed(tmp_path):
  return {'data.placement': 'streaming', 'data.workers': 0}, {}


def cross_entropy(logits, labels):
  return jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(
    logits, labels[..., None], -1
  ).squeeze(-1)


def plainly(parts, state):
  """Losses and weights of all examples at once."""
  recipe, split = parts.recipe, parts.recipe.inputs.evaluation
  places = np.arange(split.num_examples)
  arrays = jax.tree.map(jnp.asarray, split.read(places, None).arrays)
  batch = recipe.inputs.load(arrays, jnp.arange(len(places)), None)
  variables = {'params': state.params, **state.model_state}
  outputs = recipe.model.apply(
    variables, recipe.task.inputs(batch), train=False
  )
  if parts.config.task.name == 'regression':
    losses = jnp.mean((outputs - batch['label']) ** 2, -1)
    return losses, np.ones(len(losses))
  if 'label' in batch:
    losses = cross_entropy(outputs, batch['label'])
    return losses, np.ones(len(losses))
  # Of a row with fewer tokens than others less counts.
  tokens = batch['tokens'][:, 1:]
  length = tokens.shape[1]
  count = np.round(np.asarray(batch['weight']) * length)
  real = np.arange(length) < count[:, None]
  losses = cross_entropy(outputs, tokens.astype(jnp.int32)) * real
  return losses.sum(-1) / count, count / length


CASES = [
  (images, 1),
  (images, 8),
  (streamed, 1),
  (streamed, 8),
  (text, 1),
  (text, 4),
  (regression, 3),
]


@pytest.mark.parametrize(('data', 'devices'), CASES)
def test_each_is_as_one_would_compute_it(data, devices, tmp_path):
  keys, given = data(tmp_path)
  config = digits(**LITTLE | keys)
  parts = build(config, jax.devices()[:devices], **given)
  trainer = Trainer(parts.recipe)
  losses = Losses(parts.recipe, trainer.evaluator.pieces)
  state = trainer.to_evaluate()
  found, again = losses.take(state), losses.take(state)
  expected, weights = map(np.asarray, plainly(parts, state))
  np.testing.assert_allclose(found.losses, expected, 2e-5)
  np.testing.assert_allclose(found.weights, weights, 1e-6)
  assert np.array_equal(found.losses, again.losses)
  assert losses.examples == len(expected) == len(found.losses)
  np.testing.assert_allclose(found.mean, trainer.evaluate()['loss'], 1e-5)
  if data is text:
    assert found.weights.min() < 1
    assert abs(found.mean - found.losses.mean()) > 1e-6
  trainer.close()


def test_mean_counts_weights():
  losses = ExampleLosses(np.float32([1, 4, 7]), np.float32([1, 0.5, 0]))
  assert losses.mean == 2.0
