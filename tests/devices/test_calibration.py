"""The loss at parameters whose running statistics lag behind them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch import data
from adabatch.devices.trainer import Trainer
from adabatch.train.build import build
from tests.experiments import digits

pytestmark = pytest.mark.usefixtures('compile_quickly')

EXAMPLES, GROUP = 192, 32


@pytest.fixture(scope='module')
def splits():
  """Sorted by class, and far from mean 0 and variance 1 once convolved."""
  rng = np.random.default_rng(0)
  label = np.arange(EXAMPLES) * 4 // EXAMPLES
  image = rng.normal(size=(EXAMPLES, 8, 8, 1)) + label[:, None, None, None]
  split = data.from_arrays(
    {'image': image.astype(np.float32), 'label': label}, 4
  )
  return split, split


def measured(splits, devices, source='full', **overrides):
  """The measurements at x_0, that state, and the recipe of it."""
  config = digits(
    **{
      'model.name': 'cifar_resnet',
      'model.cifar_resnet.depth': 8,
      'model.cifar_resnet.width': 4,
      'model.cifar_resnet.batch_norm_group': GROUP,
      'controller.adadamp.loss_source': source,
      'controller.adadamp_grad.gradient_source': source,
      'eval.max_per_device': 100,
    }
    | overrides
  )
  parts = build(config, jax.devices()[:devices], splits)
  trainer = Trainer(parts.recipe)
  before = jax.device_get(trainer.state.model_state)
  values, cost = trainer.measure()
  jax.tree.map(
    np.testing.assert_array_equal,
    before,
    jax.device_get(trainer.state.model_state),
  )
  trainer.close()
  return values, cost, trainer.state, parts.recipe


def loss_of_training(recipe, state, splits):
  """Mean loss in training mode over many batches in random order."""
  state, rng = jax.device_get(state), np.random.default_rng(1)
  load = recipe.inputs.load
  arrays = jax.tree.map(jnp.asarray, splits[0].arrays)

  @jax.jit
  def loss(chosen):
    batch = load(arrays, chosen, None)
    outputs, _ = recipe.model.apply(
      {'params': state.params, **state.model_state},
      recipe.task.inputs(batch),
      train=True,
      mutable=list(state.model_state),
    )
    return recipe.task.loss(outputs, batch).mean()

  orders = [rng.permutation(EXAMPLES) for _ in range(4)]
  return np.mean([loss(order) for order in orders])


def test_the_first_loss_is_that_of_training(splits):
  values, cost, state, recipe = measured(splits, 1)
  expected = loss_of_training(recipe, state, splits)
  assert values['full_loss'] == pytest.approx(expected, rel=0.03)
  assert cost == 2 * EXAMPLES  # what calibrating costs is counted


SMALL = {
  'model.name': 'strided_cnn',
  'model.strided_cnn.channels': (4,),
  'model.strided_cnn.hidden_size': 4,
  'model.strided_cnn.batch_norm_group': GROUP,
}


def test_devices_agree(splits):
  """Groups are the same on any number of devices."""
  keys = SMALL | {'controller.name': 'adadamp_grad'}
  (one, *_), (three, *_) = (
    measured(splits, n, 'subset', **keys) for n in (1, 3)
  )
  assert one.keys() == {'subset_gradient_norm_squared'}
  for name, value in one.items():
    assert three[name] == pytest.approx(value, rel=1e-4)


def test_a_model_without_statistics_pays_nothing(splits):
  none = SMALL | {'model.strided_cnn.batch_norm_group': 0}
  assert measured(splits, 1, **none)[1] == EXAMPLES
