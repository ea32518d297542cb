"""Every rule of the config runs for real, through the whole loop."""

import jax
import numpy as np
import pytest

from adabatch import controllers, data, optim
from adabatch.config import ConfigError
from adabatch.train import train
from tests.experiments import column, digits, records

pytestmark = pytest.mark.usefixtures('compile_quickly')

# What each rule needs beside its name, and the sizes it must show.
CONTROLLERS = {
  'constant': ({}, lambda sizes: set(sizes) == {16}),
  'adadamp': ({}, lambda sizes: sizes[-1] >= 64),
  'padadamp': ({'controller.padadamp.rate': 1.0}, lambda s: s[-1] == 64),
  'geodamp': (
    {'controller.geodamp.delay_epochs': 0.25},
    lambda s: s[-1] == 128,
  ),
  'radadamp': ({}, lambda sizes: sizes[-1] > 16),
  'adadamp_grad': (
    {'controller.adadamp_grad.gradient_source': 'full'},
    lambda sizes: sizes[-1] > 16,
  ),
  'step_table': (
    {'controller.step_table.table': '0:16 320:64 640:128'},
    lambda sizes: sizes[0] == 16 and sizes[25] == 64 and sizes[-1] == 128,
  ),
  'ramp_up': (
    {
      'controller.ramp_up.final_batch_size': 64,
      'controller.ramp_up.increment': 16,
      'controller.ramp_up.examples': 600,
    },
    lambda sizes: sizes[-1] == 64,
  ),
  'from_lr_schedule': (
    {'learning_rate.decay.name': 'cosine'},
    lambda sizes: sizes[-1] > 16,
  ),
  'noise_scale': ({}, lambda sizes: len(set(sizes)) > 1),
  'norm_test': ({}, lambda sizes: sizes == sorted(sizes)),
  'cabs': ({'controller.cabs.c': 100.0}, lambda sizes: len(set(sizes)) > 1),
  # What comes after the second size the clock decides.
  'goodput': (
    {'controller.every': 4, 'controller.goodput.windows': 2},
    lambda sizes: sizes[:9] == [16] * 8 + [32],
  ),
  'probe': (
    {
      'controller.probe.repeats': 2,
      'controller.probe.updates': 2,
      'controller.probe.epsilon': 1.0,
      'controller.probe.cost': 4.0,
    },
    lambda sizes: sizes == sorted(sizes) and sizes[-1] > 16,
  ),
}


def run(tmp_path, **overrides):
  config = digits(epochs=1.5, **overrides)
  summary = train(config, tmp_path, devices=jax.devices()[:2])
  assert summary['status'] == 'completed'
  assert summary['compilations'] <= summary['buckets_visited'] + 2
  return summary


def test_the_table_is_complete():
  assert set(CONTROLLERS) == set(controllers.CONTROLLERS)


@pytest.mark.parametrize('name', sorted(CONTROLLERS))
def test_controller(tmp_path, name):
  overrides, expected = CONTROLLERS[name]
  run(tmp_path, **{'controller.name': name}, **overrides)
  # But for the last batch, which is cut at the end of the epochs.
  sizes = column(tmp_path, 'batch_size')[:-1]
  assert expected(sizes), sizes


@pytest.mark.parametrize('name', sorted(optim.OPTIMIZERS))
def test_optimizer_learns(tmp_path, name):
  rates = {'sgd': 0.1, 'lars': 5.0, 'adam': 3e-3, 'adamw': 3e-3, 'lamb': 0.02}
  run(
    tmp_path,
    **{
      'optimizer.name': name,
      'controller.name': 'constant',
      'learning_rate.base': rates.get(name, 0.02),
      'optimizer.weight_decay': 1e-4,
      'optimizer.beta2_in_examples': True,
    },
  )
  losses = column(tmp_path, 'loss')
  assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
  ('warmup', 'scaling'),
  [
    ('none', 'none'),
    ('none', 'linear'),
    ('constant', 'sqrt'),
    ('constant', 'none'),
    ('gradual', 'none'),
    ('gradual', 'linear'),
    ('gradual', 'sqrt'),
    ('gradual', 'adascale'),
  ],
)
def test_learning_rate_rules(tmp_path, scaling, warmup):
  """The logged rate is the rule's, written out once more here."""
  run(
    tmp_path,
    **{
      'controller.name': 'step_table',
      'controller.step_table.table': '0:16 320:64',
      'learning_rate.reference_batch_size': 16,
      'learning_rate.scaling': scaling,
      'learning_rate.warmup.kind': warmup,
      'learning_rate.warmup.epochs': 0.5,
      'learning_rate.warmup.start': 0.25 if scaling == 'none' else None,
      'learning_rate.decay.name': 'linear',
      'learning_rate.decay.final': 0.1,
    },
  )
  examples = 0
  *whole, cut = records(tmp_path)
  for line in (*whole, cut):
    ratio = line['batch_size'] / 16
    done = min(1.0, examples / (0.5 * 1438))
    decay = 1 - 0.9 * examples / (1.5 * 1438)
    # The last batch is cut, and stands for a whole one of 64.
    exponent = optim.damping_exponent('momentum', scaling)
    damping = (ratio / 4) ** exponent if line is cut else 1
    assert line['damping'] == pytest.approx(damping)
    rate = line['learning_rate'] / (0.02 * decay * damping)
    examples = line['examples']
    if scaling == 'adascale':
      assert 1 <= rate * (1 + 1e-5) <= ratio * (1 + 1e-4)
      continue
    factor = {'none': 1, 'linear': ratio, 'sqrt': ratio**0.5}[scaling]
    first = 0.25 if scaling == 'none' else 1
    if warmup == 'constant' and done < 1:
      factor = first
    if warmup == 'gradual':
      factor = first + (factor - first) * done
    assert rate == pytest.approx(factor, rel=1e-4)


@pytest.mark.parametrize('exponent', [0.0, 0.5])
def test_from_lr_schedule_keeps_the_product(tmp_path, exponent):
  """Below B_max the rate is alpha^q; beyond it the decay goes to the rate."""
  run(
    tmp_path,
    **{
      'controller.name': 'from_lr_schedule',
      'controller.from_lr_schedule.exponent': exponent,
      'controller.every': 1,
      'controller.max_batch_size': 64,
      'buckets.rounding': 'exact',
      'learning_rate.decay.name': 'linear',
      'learning_rate.decay.final': 0.05,
    },
  )
  examples = 0
  cap = 16 / 64
  *whole, cut = records(tmp_path)
  for line in (*whole, cut):
    alpha = 1 - 0.95 * examples / (1.5 * 1438)
    examples = line['examples']
    assert line['nominal_batch_size'] == pytest.approx(16 / alpha, rel=1e-4)
    expected = max(alpha, cap) ** exponent * min(1, alpha / cap)
    if line is cut:  # it stands for a whole one
      expected *= line['batch_size'] / 64
    assert line['learning_rate'] / 0.02 == pytest.approx(expected, rel=1e-3)
  assert alpha < cap


def test_ada_batch_changes_the_rate_with_the_batch(tmp_path):
  run(
    tmp_path,
    **{
      'controller.name': 'geodamp',
      'controller.geodamp.delay_epochs': 0.5,
      'controller.geodamp.lr_factor': 0.75,
      'controller.every': 1,
    },
  )
  seen = {
    (line['batch_size'], round(line['learning_rate'] / 0.02, 6))
    for line in records(tmp_path)[:-1]  # the end of the run cuts the last
  }
  # The rate steps with the examples, the batch size with the next decision.
  assert seen == {(16, 1.0), (32, 0.75), (64, 0.5625)}


def test_below_the_initial_batch_size(tmp_path):
  run(
    tmp_path,
    **{
      'controller.name': 'cabs',
      'controller.cabs.c': 0.01,
      'controller.min_batch_size': 4,
    },
  )
  assert min(column(tmp_path, 'batch_size')[:-1]) == 4  # the last is cut


def test_arrays_of_the_caller(tmp_path):
  """Two well separated clouds, as float images of another shape."""
  rng = np.random.default_rng(0)

  def split(examples):
    label = rng.integers(0, 2, examples).astype(np.int32)
    image = (
      rng.normal(size=(examples, 3, 5, 2)) + 2.0 * label[:, None, None, None]
    )
    arrays = {'image': image.astype(np.float32), 'label': label}
    return data.from_arrays(arrays, num_classes=2)

  summary = train(
    digits(**{'data.name': 'clouds'}),
    tmp_path,
    devices=jax.devices()[:2],
    splits=(split(500), split(99)),
  )
  assert summary['final']['validation']['accuracy'] > 0.95
  assert summary['examples'] >= 1500


def test_splits_that_differ_are_refused(tmp_path):
  def split(dtype=np.uint8, size=4, classes=2):
    arrays = {
      'image': np.zeros((10, size, size, 1), dtype),
      'label': np.zeros(10, np.int32),
    }
    return data.from_arrays(arrays, num_classes=classes)

  for other in (split(np.float32), split(size=5), split(classes=3)):
    with pytest.raises(ConfigError, match='the splits differ'):
      train(digits(), tmp_path / 'run', splits=(split(), other))
  assert not (tmp_path / 'run').exists()


def test_resume_on_other_data_is_refused(tmp_path):
  def split(seed):
    rng = np.random.default_rng(seed)
    arrays = {
      'image': rng.normal(size=(100, 2, 2, 1)).astype(np.float32),
      'label': rng.integers(0, 2, 100).astype(np.int32),
    }
    return data.from_arrays(arrays, num_classes=2)

  devices = jax.devices()[:1]
  config = digits(max_updates=2)
  train(config, tmp_path, splits=(split(0), split(0)), devices=devices)
  with pytest.raises(ConfigError, match='other training data'):
    train(config, tmp_path, splits=(split(1), split(0)), devices=devices)
  with pytest.raises(ConfigError, match='other evaluation data'):
    train(config, tmp_path, splits=(split(0), split(1)), devices=devices)


def test_the_last_update_is_logged(tmp_path):
  config = digits(
    max_updates=33,
    **{'controller.name': 'padadamp', 'log.every_updates': 50},
  )
  train(config, tmp_path, devices=jax.devices()[:1])
  assert column(tmp_path, 'update') == [20, 33]
  # Each size held since the record before: together they are all examples.
  examples = np.diff([0, *column(tmp_path, 'examples')])
  updates = np.diff([0, *column(tmp_path, 'update')])
  np.testing.assert_array_equal(
    examples, updates * column(tmp_path, 'batch_size')
  )
