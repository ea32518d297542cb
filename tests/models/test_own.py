"""Networks of one's own, registered in a config."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import adabatch
from adabatch import models
from adabatch.config import ConfigError
from adabatch.train import build as build_lib
from adabatch.train import train
from tests.experiments import column, digits


class Linen(nn.Module):
  num_classes: int
  width: int = 16
  rate: float = 0.0

  @nn.compact
  def __call__(self, x, deterministic):
    x = nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1)))
    x = nn.Dropout(self.rate, deterministic=deterministic)(x)
    return nn.Dense(self.num_classes)(x)


class OfNNX(nnx.Module):
  def __init__(self, num_classes, width=16, rate=0.0, *, rngs):
    self.layers = nnx.List([nnx.Linear(64, width, rngs=rngs)])
    self.dropout = nnx.Dropout(rate, rngs=rngs)
    self.out = nnx.Linear(width, num_classes, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.layers[0](x.reshape(len(x), -1)))
    return self.out(self.dropout(x))


class Equinox(eqx.Module):
  layers: list
  dropout: eqx.nn.Dropout

  def __init__(self, num_classes, width=16, rate=0.0, *, key):
    keys = jax.random.split(key)
    self.layers = [
      eqx.nn.Linear(64, width, key=keys[0]),
      eqx.nn.Linear(width, num_classes, key=keys[1]),
    ]
    self.dropout = eqx.nn.Dropout(rate)

  def __call__(self, x, *, key):
    x = jax.nn.relu(self.layers[0](x.reshape(-1)))
    return self.layers[1](self.dropout(x, key=key))


NETWORKS = {'linen': Linen, 'nnx': OfNNX, 'equinox': Equinox}


@pytest.fixture(autouse=True)
def registry():
  before = dict(models.MODELS)
  yield
  models.MODELS.clear()
  models.MODELS.update(before)


def config(kind, overrides=None, **parameters):
  c = digits(
    **{
      'max_updates': 30,
      'controller.name': 'constant',
      'epochs': 100.0,
      **(overrides or {}),
    }
  )
  adabatch.register(c, 'model', 'mine', NETWORKS[kind], **parameters)
  return c


@pytest.mark.parametrize('kind', ['nnx', 'equinox'])
def test_it_learns_alike_on_any_devices(kind, tmp_path):
  losses = []
  for devices in (1, 2):
    summary = train(
      # Masks are drawn by place where a layer is given a key for each.
      config(kind, width=12, rate=0.3 if kind == 'equinox' else 0.0),
      tmp_path / str(devices),
      devices=jax.devices()[:devices],
    )
    assert summary['final']['validation']['accuracy'] > 0.5
    losses.append(column(tmp_path / str(devices), 'loss'))
  np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.parametrize('kind', sorted(NETWORKS))
def test_its_arguments_are_keys(kind):
  c = config(kind, rate=0.25)
  assert c.model.mine.to_dict() == {'width': 16, 'rate': 0.25}
  c.model.mine.width = 5
  build_lib.check(c, 1)
  model = build_lib.make_model(c, 3)
  x = jnp.zeros((2, 8, 8, 1))
  params = model.init(jax.random.key(0), x, train=False)['params']
  sizes = sorted(leaf.size for leaf in jax.tree.leaves(params))
  assert sizes == [3, 5, 15, 320]
  c.model.mine.depth = 2
  with pytest.raises(ConfigError, match=r'model.mine.*depth'):
    build_lib.check(c, 1)
  with pytest.raises(ConfigError, match="takes no 'depth' as a key: it takes"):
    config(kind, depth=2)
  with pytest.raises(ConfigError, match='width=<.* cannot be a key'):
    config(kind, width=object())
  with pytest.raises(ConfigError, match="dtype='bfloat16' has no effect"):
    build_lib.check(config(kind, {'model.dtype': 'bfloat16'}), 1)


@pytest.mark.parametrize('kind', sorted(NETWORKS))
def test_plain_dropout_is_random_in_training_alone(kind):
  model = build_lib.make_model(config(kind, rate=0.5, width=64), 10)
  x = jnp.ones((4, 8, 8, 1))
  variables = model.init(jax.random.key(0), x, train=False)

  def outputs(train, seed):
    rngs = {'dropout': jax.random.key(seed)}
    return model.apply(variables, x, train=train, rngs=rngs)

  evaluated = model.apply(variables, x, train=False)
  np.testing.assert_array_equal(outputs(False, 1), evaluated)
  one, again, other = (outputs(True, seed) for seed in (1, 1, 2))
  np.testing.assert_array_equal(one, again)
  assert (one != other).any()
  assert (one[0] != one[1]).any(), 'rows are alike, their masks are not'


def test_a_run_goes_on_exactly(tmp_path):
  c = config('nnx', rate=0.5)
  devices = jax.devices()[:1]
  train(c, tmp_path / 'whole', devices=devices)
  train(c, tmp_path / 'cut', devices=devices, last_update=11)
  train(c, tmp_path / 'cut', devices=devices)
  assert column(tmp_path / 'whole', 'loss') == column(tmp_path / 'cut', 'loss')
  loaded = adabatch.load(tmp_path / 'cut')
  assert loaded(np.zeros((2, 8, 8, 1), np.uint8)).shape == (2, 10)
  del models.MODELS['mine']
  with pytest.raises(
    ConfigError, match=r'call the get_config\(\) that registers it'
  ):
    adabatch.load(tmp_path / 'cut')


class Noisy(OfNNX):
  """Draws from a stream of its own."""

  def __init__(self, num_classes, *, rngs):
    super().__init__(num_classes, rngs=rngs)
    self.rngs = nnx.Rngs(rngs())

  def __call__(self, x):
    return super().__call__(x) + jax.random.normal(self.rngs.noise(), (1,))


class Training(nn.Module):
  """`training` by another name, which has a default."""

  num_classes: int

  @nn.compact
  def __call__(self, x, training=False):
    x = nn.Dropout(0.5, deterministic=not training)(x.reshape(len(x), -1))
    return nn.Dense(self.num_classes)(x)


@pytest.mark.parametrize('network', [Noisy, Training])
def test_what_is_drawn_differs_at_each_update(network):
  c = digits()
  adabatch.register(c, 'model', 'mine', network)
  model, x = build_lib.make_model(c, 10), jnp.ones((2, 8, 8, 1))
  variables = model.init(jax.random.key(0), x, train=False)
  one, other = (
    model.apply(variables, x, train=True, rngs={'dropout': jax.random.key(k)})
    for k in (1, 2)
  )
  assert (one != other).any()


class NormalizedNNX(OfNNX):
  def __init__(self, num_classes, *, rngs):
    super().__init__(num_classes, rngs=rngs)
    self.norm = nnx.BatchNorm(16, rngs=rngs)


class NormalizedEquinox(Equinox):
  norm: eqx.nn.BatchNorm

  def __init__(self, num_classes, *, key):
    super().__init__(num_classes, key=key)
    self.norm = eqx.nn.BatchNorm(16, 'batch', mode='batch')


class CountingNNX(OfNNX):
  def __init__(self, num_classes, *, rngs):
    super().__init__(num_classes, rngs=rngs)
    self.calls = nnx.Variable(jnp.zeros(()))


class SpectralEquinox(Equinox):
  norm: eqx.nn.SpectralNorm

  def __init__(self, num_classes, *, key):
    super().__init__(num_classes, key=key)
    self.norm = eqx.nn.SpectralNorm(self.layers[0], 'weight', key=key)


@pytest.mark.parametrize('network', [CountingNNX, SpectralEquinox])
def test_what_would_be_lost_is_refused(network):
  c = digits()
  adabatch.register(c, 'model', 'mine', network)
  with pytest.raises(ConfigError, match='is kept of linen modules alone'):
    build_lib.check(c, 1)


@pytest.mark.parametrize('network', [NormalizedNNX, NormalizedEquinox])
def test_plain_batch_norm_is_refused(network):
  c = digits()
  adabatch.register(c, 'model', 'mine', network)
  with pytest.raises(ConfigError, match=r'BatchNorm, whose.*LayerNorm'):
    build_lib.check(c, 1)


def test_names_that_are_taken():
  with pytest.raises(ConfigError, match="'mlp' is that of another"):
    adabatch.register(digits(), 'model', 'mlp', Linen)
  with pytest.raises(ConfigError, match="'my-net' is no name"):
    adabatch.register(digits(), 'model', 'my-net', Linen)
