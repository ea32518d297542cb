"""Clipping, averaged weights and optimizers of optax in real runs."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from adabatch.config import ConfigError
from adabatch.devices.population import Member
from adabatch.search.population import Mode, make_population, run, why_not
from adabatch.search.workload import search_space, trial_config
from adabatch.train import train
from adabatch.train.build import build
from adabatch.train.load import load
from tests.experiments import column, digits, records

pytestmark = pytest.mark.usefixtures('compile_quickly')

ALL = {
  'optimizer.name': 'optax.lion',
  'optimizer.weight_decay': 0.1,
  'optimizer.weight_decay_scaling': 'linear',
  'optimizer.clip_norm': 1.0,
  'ema.half_life': 100.0,
  'learning_rate.base': 1e-3,
  'learning_rate.decay.name': 'wsd',
  'controller.name': 'constant',
}
SGD = {'optimizer.name': 'sgd', 'controller.name': 'constant'}


def config(**overrides):
  kept = {'checkpoint.every_updates': 1, 'checkpoint.keep': 9}
  return digits(**kept | {'max_updates': 6} | overrides)


def go(workdir, devices=1, **overrides):
  return train(config(**overrides), workdir, devices=jax.devices()[:devices])


def length(tree):
  return np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree)))


def saved(workdir, update):
  manager = ocp.CheckpointManager(workdir.absolute() / 'checkpoints')
  args = ocp.args.Composite(state=ocp.args.StandardRestore())
  state = manager.restore(update, args=args)['state']
  manager.close()
  return state


def test_a_gradient_is_clipped_and_said_to_be(tmp_path):
  go(tmp_path, **SGD, **{'optimizer.clip_norm': 0.5})
  for record in records(tmp_path):
    # What is reported is the gradient, and what is done its direction.
    assert record['gradient_norm'] > 0.6
    assert record['clipped'] == 1.0
  before, after = (saved(tmp_path, u)['params'] for u in (1, 2))
  step = jax.tree.map(np.subtract, after, before)
  assert length(step) == pytest.approx(0.02 * 0.5, rel=1e-3)


def test_each_replica_clips_its_own_gradient(tmp_path):
  replicas = {'sync.name': 'local_sgd', 'sync.replicas': 2}
  go(tmp_path, 2, **SGD, **replicas, **{'optimizer.clip_norm': 0.5})
  assert records(tmp_path)[0]['clipped'] == 1.0
  state = saved(tmp_path, 1)
  steps = jax.tree.map(
    lambda x, z: x - z, state['replicas']['params'], state['params']
  )
  for i in range(2):
    step = jax.tree.map(lambda x, i=i: x[i], steps)
    assert length(step) == pytest.approx(0.02 * 0.5, rel=1e-3)


def test_what_is_evaluated_is_the_average(tmp_path, capsys):
  """Averaged again from the parameters after each update."""
  sizes = {
    'controller.name': 'step_table',
    'controller.step_table.table': '0:16 48:64',
    'controller.every': 1,
  }
  summary = go(tmp_path, **sizes, **{'ema.half_life': 64.0})
  assert 'a half-life of 64 examples' in ''.join(capsys.readouterr())
  total, weight = 0.0, 0.0
  for update, size in enumerate(column(tmp_path, 'batch_size'), 1):
    params = saved(tmp_path, update)['params']
    flat = np.concatenate([
      np.ravel(params[f'Dense_{i}'][name]).astype(np.float64)
      for i in (0, 1)
      for name in ('kernel', 'bias')
    ])  # fmt: skip
    decay = 2 ** (-size / 64)
    total = decay * total + (1 - decay) * flat
    weight = decay * weight + (1 - decay)
  inputs = build(config(), jax.devices()[:1]).recipe.inputs
  arrays = inputs.evaluation.arrays
  examples = inputs.load(arrays, np.arange(len(arrays['label'])), None)
  x = np.asarray(examples['image'], np.float64).reshape(-1, 64)
  labels = np.asarray(examples['label'])

  def loss(flat):
    w0, b0, w1, b1 = np.split(flat, np.cumsum([64 * 32, 32, 32 * 10]))
    hidden = np.maximum(x @ w0.reshape(64, 32) + b0, 0)
    logits = hidden @ w1.reshape(32, 10) + b1
    right = logits[np.arange(len(x)), labels]
    return np.mean(np.log(np.exp(logits).sum(1)) - right)

  measured = summary['final']['validation']['loss']
  assert measured == pytest.approx(loss(total / weight), rel=1e-5)
  assert abs(measured - loss(flat)) > 1e-3


def test_averaged_weights_have_averaged_statistics(tmp_path):
  keys = {
    'model.name': 'strided_cnn',
    'model.strided_cnn.channels': (2,),
    'model.strided_cnn.hidden_size': 4,
    'model.strided_cnn.batch_norm_group': 16,
    'ema.half_life': 16.0,
    'max_updates': 3,
  }
  go(tmp_path, **SGD, **keys)
  states = [saved(tmp_path, update)['model_state'] for update in (1, 2, 3)]
  used = load(tmp_path).model_state
  assert jax.tree.leaves(used)

  def check(got, *each):  # the weights of 16 examples, with that half-life
    expected = np.average(each, axis=0, weights=(0.25, 0.5, 1.0))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)
    assert not np.allclose(got, each[-1], rtol=1e-3)

  jax.tree.map(check, dict(used), *states)


def test_a_member_of_a_population_is_a_run_that_goes_on_where_it_was(tmp_path):
  keys = (
    'learning_rate.base',
    'optimizer.weight_decay',
    'optimizer.clip_norm',
    'ema.half_life',
    'learning_rate.decay.cooldown',
  )
  members = [
    Member(3, (1e-3, 0.1, 0.5, 100.0, 0.5)),
    Member(4, (5e-3, 0.01, 2.0, 30.0, 1.0)),
  ]
  searched = config(**ALL, **{'learning_rate.reference_batch_size': 16})
  parts = build(searched, jax.devices()[:1])
  assert why_not(parts, keys) is None
  population = make_population(parts, keys)
  found = dict(
    run(
      population, parts, members, Mode(2, 6), limit=lambda member, known: None
    )
  )
  single = searched.copy_and_resolve_references()
  single.seed = members[1].seed
  values = dict(zip(keys, members[1].values, strict=True))
  single.update_from_flattened_dict(values)
  devices = jax.devices()[:1]
  train(single, tmp_path, devices=devices, last_update=3)
  summary = train(single, tmp_path, devices=devices)
  expected = summary['final']['validation']['loss']
  loss = found[1].evaluations[-1].metrics['loss']
  assert loss == pytest.approx(expected, rel=1e-5)


def test_what_is_not_set_can_be_searched_and_what_optax_takes():
  rows = (
    ('optimizer.clip_norm', 'log', 0.1, 10.0),
    ('ema.half_life', 'log', 10.0, 1000.0),
    ('optimizer.args.b1', 'reverse_log', 0.5, 0.99),
  )
  searched = config(**{'optimizer.name': 'optax.lion', 'search.space': rows})
  with pytest.raises(ConfigError, match=r"unknown key 'optimizer\.args\.b1'"):
    search_space(searched)
  with searched.unlocked():
    searched.optimizer.args.b1 = 0.9
  space = search_space(searched)
  trial = trial_config(searched, 1, {k: p.at(0.0) for k, p in space.items()})
  got = trial.optimizer.clip_norm, trial.ema.half_life, trial.optimizer.args.b1
  assert got == pytest.approx((0.1, 10.0, 0.5))
