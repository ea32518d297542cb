"""Mistakes in a task or network of one's own: one line, nothing written."""

import jax
import numpy as np
import pytest
from flax import linen as nn

import adabatch
from adabatch.config import ConfigError
from adabatch.models import MODELS, tasks
from adabatch.search.workload import search_space, trial_config
from adabatch.train import train
from tests.experiments import digits


def task(change):
  plain = tasks.classification()
  return lambda scale=2.0: plain._replace(**change(plain))


class Five(nn.Module):
  """One output too few, and four more."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(5)(x.reshape(len(x), -1))


class Broken(nn.Module):
  """Fails with what is neither a ValueError nor a TypeError."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(10)(x.pixels)


MISTAKES = {
  'a mean': (
    lambda plain: {'loss': lambda out, batch: plain.loss(out, batch).mean()},
    r'task.loss has the shape \(\), not \(1,\): return one value for each',
  ),
  'a column': (
    lambda plain: {'loss': lambda out, batch: plain.loss(out, batch)[:, None]},
    r'task.loss has the shape \(1, 1\), not \(1,\)',
  ),
  'a metric that is not': (
    lambda plain: {'metric_names': ('loss', 'accuracy', 'f1')},
    'metrics gives accuracy, loss, and metric_names accuracy, f1, loss',
  ),
  'a metric of all': (
    lambda plain: {
      'metrics': lambda out, batch: {
        'loss': plain.loss(out, batch),
        'accuracy': out.max(),
      }
    },
    r'the metric accuracy has the shape \(\)',
  ),
  'no such input': (
    lambda plain: {'loss': lambda out, batch: batch['target']},
    "there is no 'target'; a batch has image, label",
  ),
  'no such attribute': (
    lambda plain: {'loss': lambda out, batch: batch.label},
    "'dict' object has no attribute 'label'",
  ),
  'no such image': (
    lambda plain: {'inputs': lambda batch: batch['x']},
    "there is no 'x'; a batch has image, label",
  ),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_of_a_task(name, tmp_path):
  change, message = MISTAKES[name]
  c = digits()
  adabatch.register(c, 'task', 'mine', task(change))
  try:
    with pytest.raises(ConfigError, match=message) as error:
      train(c, tmp_path / 'run', devices=jax.devices()[:1])
  finally:
    del tasks.TASKS['mine']
  assert str(error.value).startswith("task.name='mine': ")
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('network', 'message'),
  [
    (Five, r'of the shape \(1, 5\) .* 10 classes'),
    (Broken, 'model.mine: .*has no attribute pixels'),
  ],
)
def test_of_a_network(network, message, tmp_path):
  c = digits()
  adabatch.register(c, 'model', 'mine', network)
  try:
    with pytest.raises(ConfigError, match=message) as error:
      train(c, tmp_path / 'run', devices=jax.devices()[:1])
  finally:
    del MODELS['mine']
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'run').exists()


def test_arguments_are_searched():
  c = digits()
  adabatch.register(c, 'task', 'mine', task(lambda plain: {}))
  try:
    c.search.space = (('task.mine.scale', 'linear', 1.0, 4.0),)
    assert set(search_space(c)) == {'task.mine.scale'}
    trial = trial_config(c, 1, {'task.mine.scale': np.float64(3.0)})
    assert trial.task.mine.scale == 3.0
    c.search.space = (('task.mine.scales', 'linear', 1.0, 4.0),)
    with pytest.raises(ConfigError, match="unknown key 'task.mine.scales'"):
      search_space(c)
  finally:
    del tasks.TASKS['mine']
