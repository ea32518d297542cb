"""What a config makes of optimizer and learning rate, and what it refuses."""

import pytest

from adabatch import optimization
from adabatch.config import ConfigError
from tests.experiments import digits

GRADUAL = {
  'learning_rate.warmup.kind': 'gradual',
  'learning_rate.warmup.epochs': 1.0,
}


def test_a_warmup_that_would_do_nothing_is_refused():
  def make(**overrides):
    return optimization.make_learning_rate(digits(**GRADUAL | overrides), 1000)

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
    ({}, '821'),  # 16 log 0.95 / log 0.999
    ({'controller.max_batch_size': 820}, None),
    ({'controller.name': 'constant'}, None),
    ({'controller.name': 'constant', 'controller.initial_batch_size': 900},
     '821'),
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
  line = optimization.beta2_at_its_floor(config)
  if reached is None:
    assert line is None
  else:
    assert line is not None
    assert f' at {reached}, ' in line
