"""Runs that start from the parameters of another."""

import jax
import numpy as np
import pytest

import adabatch
from adabatch import data
from adabatch.config import ConfigError
from adabatch.train import train
from tests.experiments import column, digits


@pytest.fixture(scope='module')
def other(tmp_path_factory):
  """A run on ten classes."""
  workdir = tmp_path_factory.mktemp('other')
  run(workdir, max_updates=60)
  return workdir


def run(workdir, splits=None, **overrides):
  constant = {'controller.name': 'constant', 'epochs': 100.0}
  config = digits(**constant | overrides)
  config.model.lstm.hidden_size = config.model.lstm.embedding_size = 8
  return train(config, workdir, devices=jax.devices()[:2], splits=splits)


def arrays(workdir):
  leaves = jax.tree_util.tree_leaves_with_path(adabatch.load(workdir).params)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.parametrize('replicas', [{}, {'sync.name': 'local_sgd'}])
def test_it_goes_on_from_there(other, replicas, tmp_path, capfd):
  more = {'init_from': str(other), 'max_updates': 2, 'learning_rate.base': 1e-9}
  run(tmp_path, **more | replicas)
  assert f'from update 60 of {other}: 4 of 4 arrays' in capfd.readouterr().err
  for name, there in arrays(other).items():
    np.testing.assert_allclose(arrays(tmp_path)[name], there, atol=1e-6)
  assert column(tmp_path, 'loss')[0] < 0.5 * column(other, 'loss')[0]


def test_with_a_head_for_other_classes(other, tmp_path, capfd):
  pairs = []
  for name in ('train', 'validation'):
    whole = data.load('digits', name).arrays
    few = whole['label'] < 4
    pairs.append(data.from_arrays({k: v[few] for k, v in whole.items()}, 4))
  more = {'init_from': str(other), 'max_updates': 2, 'learning_rate.base': 1e-9}
  more |= {'data.mean': (0.5,), 'data.std': (0.5,)}
  run(tmp_path, tuple(pairs), **more)
  told = capfd.readouterr().err
  assert '2 of 4 arrays; anew: params/Dense_1/bias, params/Dense_1' in told
  assert 'inputs were standardised otherwise there' in told
  here, there = arrays(tmp_path), arrays(other)
  for name in here:
    if 'Dense_0' in name:
      np.testing.assert_allclose(here[name], there[name], atol=1e-6)
    else:
      assert here[name].shape != there[name].shape


def test_resumed_it_does_not_look_there_again(other, tmp_path):
  more = {'init_from': str(other), 'max_updates': 6}
  run(tmp_path / 'whole', **more)
  config = digits(**{'controller.name': 'constant', 'epochs': 100.0} | more)
  devices = jax.devices()[:2]
  train(config, tmp_path / 'cut', devices=devices, last_update=3)
  moved = other.rename(other.with_name('moved'))
  try:
    train(config, tmp_path / 'cut', devices=devices)
  finally:
    moved.rename(other)
  assert column(tmp_path / 'whole', 'loss') == column(tmp_path / 'cut', 'loss')


def test_what_cannot_be_started_from(other, tmp_path):
  with pytest.raises(ConfigError, match="'nowhere': .* holds no checkpoints"):
    run(tmp_path / 'run', init_from='nowhere')
  overrides = {'model.name': 'lstm', 'task.name': 'language_modelling'}
  tokens = np.zeros((8, 17), np.uint8)
  text = data.Split({'tokens': tokens, 'weight': np.ones(8, np.float32)}, 5)
  overrides |= {'controller.initial_batch_size': 4, 'data.sequence_length': 16}
  with pytest.raises(ConfigError, match='none of its arrays has the name and'):
    run(tmp_path / 'run', (text, text), init_from=str(other), **overrides)
  assert not (tmp_path / 'run').exists()
