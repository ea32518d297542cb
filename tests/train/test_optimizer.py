"""What a config makes of optimizer and learning rate, and what it refuses."""

import jax
import numpy as np
import pytest

from adabatch import controllers
from adabatch.config import ConfigError
from adabatch.controllers import Signals
from adabatch.train import optimizer, rules
from adabatch.train.run_end import Extent
from tests.experiments import digits

# Three epochs of 1000 examples, in batches up to 128.
EXTENT = Extent(1000, 3000, 128)

GRADUAL = {
  'learning_rate.warmup.kind': 'gradual',
  'learning_rate.warmup.epochs': 1.0,
}


def test_a_warmup_that_would_do_nothing_is_refused():
  def make(**overrides):
    return optimizer.make_learning_rate(digits(**GRADUAL | overrides), EXTENT)

  for overrides, part in (
    ({}, "scaling='none' is the target already: set .*warmup.start"),
    ({'learning_rate.warmup.kind': 'constant'}, 'warmup.start'),
    (
      {
        'learning_rate.warmup.kind': 'constant',
        'learning_rate.warmup.start': 0.0,
      },
      r'learning_rate.warmup: .*\(0, 1\], got 0.0',
    ),
    (
      {
        'learning_rate.scaling': 'linear',
        'learning_rate.warmup.epochs': 0.0,
      },
      'no length: set learning_rate.warmup.epochs',
    ),
  ):
    with pytest.raises(ConfigError, match=part) as error:
      make(**overrides)
    assert '\n' not in str(error.value)
  make(**{'learning_rate.warmup.start': 0.0})
  make(**{'learning_rate.scaling': 'sqrt'})
  make(**{'learning_rate.warmup.kind': 'none'})


@pytest.mark.parametrize(
  ('overrides', 'reached'),
  [
    ({}, '820'),  # 16 log 0.95 / log 0.999 = 820.3
    ({'controller.max_batch_size': 820}, None),
    ({'controller.name': 'constant'}, None),
    ({'controller.name': 'constant', 'controller.initial_batch_size': 900},
     '820'),
    ({'optimizer.name': 'momentum'}, None),
    ({'optimizer.beta2_in_examples': False}, None),
    ({'optimizer.beta2_min': 0.0}, None),  # 0.81: at 3369
    ({'optimizer.beta2_min': 0.0, 'controller.max_batch_size': 4000}, '3370'),
    # Lower already: it does not fall at all.
    ({'optimizer.beta2': 0.9}, '16'),
  ],
)  # fmt: skip
def test_beta2_at_its_floor_is_told(overrides, reached):
  config = digits(
    **{
      'optimizer.name': 'adam',
      'optimizer.beta2_in_examples': True,
      'learning_rate.reference_batch_size': 16,
      'controller.max_batch_size': 2048,
      **overrides,
    }
  )
  constant = config.controller.name == 'constant'
  name = 'initial_batch_size' if constant else 'max_batch_size'
  largest = config.controller[name]
  line = optimizer.beta2_at_its_floor(config, largest)
  if reached is None:
    assert line is None
  else:
    assert line is not None
    assert f' at {reached}, ' in line


def sizes(controller, updates):
  state, got = controller.init(), []
  for k in range(updates):
    size, state = controller.update(state, Signals(update=k, examples=16 * k))
    got.append(size)
  return got


def test_a_schedule_is_read_only_where_a_decision_is_due():
  seen = []

  def schedule(examples):
    seen.append(examples)
    return 1 / (1 + examples)

  due = controllers.every_due(updates=5, wait=3)
  for controller in (
    controllers.every(
      controllers.from_lr_schedule(schedule, initial_batch_size=8, due=due),
      updates=5,
      wait=3,
    ),
    controllers.from_lr_schedule(schedule, initial_batch_size=8, due=due),
  ):
    seen.clear()
    got = sizes(controller, 15)
    assert seen == [0, 16 * 3, 16 * 8, 16 * 13]
    assert len(set(got[3:8])) == 1
    assert len(set(got)) == 4


def test_rules_between_updates_leave_the_devices_alone():
  """What the loop reads on the host is never computed on a device."""
  config = digits(
    **{
      'controller.name': 'from_lr_schedule',
      'controller.every': 5,
      'learning_rate.decay.name': 'cosine',
      'learning_rate.decay.final': 0.1,
    }
  )
  controller = rules.make_controller(config, EXTENT)
  rate = optimizer.unwarmed_rate(config, EXTENT)
  scaled = optimizer.unwarmed_rate(
    digits(**{'learning_rate.scaling': 'sqrt'}), EXTENT
  )
  with jax.transfer_guard('disallow_explicit'):
    got = sizes(controller, 12)
    rates = [rate(e, 32) for e in (0, 2000)] + [scaled(0, 128)]
  # The run has 3 epochs of 1000; from alpha on a ladder of B_max = 128.
  alpha = [0.1 + 0.9 * (1 + np.cos(np.pi * 80 * i / 3000)) / 2 for i in (1, 2)]
  np.testing.assert_allclose(got[5], 16 / alpha[0], rtol=1e-5)
  np.testing.assert_allclose(got[10], 16 / alpha[1], rtol=1e-5)
  np.testing.assert_allclose(rates, [0.02, 0.02, 0.04], rtol=1e-5)


@pytest.mark.parametrize(
  ('unit', 'length', 'examples'),
  [
    ('updates', 100.0, 1200),
    ('examples', 1200.0, 1200),
    ('epochs', 1.5, 1500),
    ('run', 0.1, 300),
    ('tokens', 6400.0, 50),  # of 128 in an example
    ('tokens', '6.4K', 50),
  ],
)
def test_a_warmup_from_zero_has_its_length(unit, length, examples):
  config = digits(
    **{
      'learning_rate.reference_batch_size': 12,
      'learning_rate.warmup.kind': 'gradual',
      'learning_rate.warmup.start': 0.0,
      'learning_rate.warmup.length': length,
      'learning_rate.warmup.unit': unit,
    }
  )
  tx = optimizer.make_learning_rate(
    config, EXTENT._replace(tokens_per_example=128)
  )
  state = tx.init(())
  for share in (0.0, 0.25, 1.0, 2.0):
    _, now = tx.update((), state, batch_size=48, examples=share * examples)
    rate = now.learning_rate
    np.testing.assert_allclose(rate, 0.02 * min(share, 1), rtol=1e-5)
  assert optimizer.lasts_as_the_run(config) == (unit == 'run')


def test_weight_decay_of_the_config_follows_the_batch_size():
  params = {'kernel': np.ones((1, 1), np.float32)}
  nothing = {'kernel': np.zeros((1, 1), np.float32)}
  for name, factor in (('none', 1), ('linear', 4), ('sqrt', 2)):
    for optimizer_name in ('sgd', 'optax.adamw', 'optax.sgd'):
      config = digits(
        **{
          'optimizer.name': optimizer_name,
          'optimizer.weight_decay': 0.1,
          'optimizer.weight_decay_scaling': name,
          'learning_rate.reference_batch_size': 16,
        }
      )
      tx = optimizer.make_optimizer(config, EXTENT)
      updates, _ = tx.update(
        nothing,
        tx.init(params),
        params,
        batch_size=64,
        damping=1.0,
        examples=0,
      )
      expected = -0.02 * 0.1 * factor
      np.testing.assert_allclose(updates['kernel'], expected, rtol=1e-6)


def test_the_damping_of_optimizers_of_optax():
  lion = {'optimizer.name': 'optax.lion'}
  constant = digits(**lion, **{'controller.name': 'constant'})
  assert optimizer.damping_exponent(constant) == 0
  given = digits(**lion, **{'learning_rate.damping_exponent': 0.5})
  assert optimizer.damping_exponent(given) == 0.5
