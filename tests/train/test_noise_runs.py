"""Runs that follow the noise in another norm, or the clock; and go on."""

import json

import jax
import numpy as np
import pytest

from adabatch.train import reports as reports_lib
from adabatch.train import train
from tests.experiments import column, digits, records

pytestmark = pytest.mark.usefixtures('compile_quickly')

NORMALISED = {
  'model.name': 'strided_cnn',
  'model.strided_cnn.channels': (4,),
  'model.strided_cnn.hidden_size': 8,
  'model.strided_cnn.batch_norm_group': 8,
}
ADAM = {'optimizer.name': 'adamw', 'learning_rate.base': 0.003}
# What each norm needs, for a run in which the batch size moves.
NORMS = {
  'normalisation': NORMALISED,
  'adam': ADAM,
  'l1': {'optimizer.name': 'optax.lion', 'learning_rate.base': 0.001}
  | {'learning_rate.damping_exponent': 0.5},
}
NOISE = {
  'max_updates': 36,
  'controller.max_batch_size': 64,
  'controller.name': 'noise_scale',
  'controller.noise_scale.decay': 0.9,
  'controller.every': 5,
}


def split_run(tmp_path, config, cut, devices=1):
  """One run, and the same cut and gone on with."""
  some = jax.devices()[:devices]
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  train(config, whole, devices=some)
  train(config, parts, devices=some, last_update=cut)
  summary = train(config, parts, devices=some)
  assert summary['status'] == 'completed'
  return whole, parts


@pytest.mark.parametrize('name', NORMS)
def test_a_run_in_each_norm_goes_on_as_it_was(tmp_path, name):
  config = digits(**NOISE | NORMS[name] | {'controller.noise_norm': name})
  whole, parts = split_run(tmp_path, config, 23)
  a, b = records(whole), records(parts)
  keys = ('loss', 'batch_size', 'nominal_batch_size', 'gradient_noise_scale')
  for key in keys:
    # Of Adam's first update there is no estimate.
    assert [x.get(key) for x in a] == [x.get(key) for x in b], key
  assert len({x['nominal_batch_size'] for x in a}) > 2
  assert a[-1]['loss'] < a[0]['loss']


def test_the_norm_changes_the_sizes_and_not_the_first_updates(tmp_path):
  """With Adam: until the first decision all is the same."""
  runs = {}
  for name in ('l2', 'adam', 'l1'):
    keys = NOISE | ADAM | {'controller.noise_norm': name, 'max_updates': 15}
    train(digits(**keys), tmp_path / name, devices=jax.devices()[:1])
    runs[name] = records(tmp_path / name)
  nominal = {n: [x['nominal_batch_size'] for x in r] for n, r in runs.items()}
  for name in ('adam', 'l1'):
    for one, other in zip(runs['l2'][:5], runs[name][:5], strict=True):
      assert one['loss'] == other['loss']
    assert nominal[name] != nominal['l2']


def test_norms_in_replicas(tmp_path):
  """Of each its own optimizer's state."""
  keys = NOISE | ADAM | {'controller.noise_norm': 'adam', 'max_updates': 20}
  keys |= {'sync.name': 'local_sgd', 'sync.replicas': 2}
  train(digits(**keys), tmp_path, devices=jax.devices()[:2])
  first, *others = records(tmp_path)
  assert 'gradient_noise_scale' not in first
  # None where |G|^2 came out below 0.
  scales = [x['gradient_noise_scale'] for x in others]
  assert sum(scale is not None for scale in scales) > 4


GOODPUT = {
  'max_updates': 80,
  'controller.name': 'goodput',
  'controller.goodput.windows': 1,
  'controller.goodput.decay': 0.9,
  'controller.every': 4,
  'checkpoint.every_updates': 10,
}


def seconds_of(size):
  return 0.01 + 1e-4 * size


class Times:
  """In place of the clock: an update takes what its size says."""

  def __init__(self, windows):
    assert windows == 1

  def saw(self, call, seconds):
    return seconds_of(call.plan.batch_size)


def saved(workdir):
  """The rule's state in the newest checkpoint, in its wrapper `every`."""
  checkpoints = (workdir / 'checkpoints').iterdir()
  newest = max(checkpoints, key=lambda path: int(path.name))
  record = json.loads((newest / 'host' / 'metadata').read_text())
  return record['host']['decisions']['controller']['inner']


def test_goodput_goes_on_from_its_table(tmp_path, monkeypatch):
  """With the same times, the same decisions to the end."""
  monkeypatch.setattr(reports_lib, 'UpdateTimes', Times)
  whole, parts = split_run(tmp_path, digits(**GOODPUT), 37)
  for key in ('batch_size', 'nominal_batch_size', 'loss'):
    assert column(whole, key) == column(parts, key)
  sizes = column(whole, 'batch_size')
  assert sizes[3] == 16
  assert sizes[4] == 32
  assert len(set(sizes)) > 2


def test_goodput_by_the_clock(tmp_path):
  """What it measures is about what the log says, and is kept."""
  _, parts = split_run(tmp_path, digits(**GOODPUT), 37)
  sizes = column(parts, 'batch_size')
  assert sizes[:5] == [16] * 4 + [32]
  assert set(sizes[:-1]) <= {16, 32, 64, 128}
  took = np.diff(column(parts, 'seconds'))
  state = saved(parts)
  for size, seconds in zip((16, 32, 64, 128), state['times'], strict=True):
    at_size = took[[n == size for n in sizes[1:]]]
    assert (seconds > 0) <= len(at_size)
    if seconds:
      assert at_size.min() <= seconds <= at_size.max()
  assert state['times'][0] > 0
  assert state['times'][1] > 0
