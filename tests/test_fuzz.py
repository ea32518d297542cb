"""What a fuzz of configs has found before, and that it finds what is wrong."""

import jax
import pytest

from adabatch.config import ConfigError
from adabatch.train.build import build
from benchmarks import fuzz
from tests.experiments import digits

# Each ended in a traceback, or never; with a word of the line.
REFUSED = {
  'a ladder without an end': (
    {'buckets.growth': 1.0000001, 'controller.max_batch_size': 10**12},
    'buckets: a ladder growth of 1.0000001 makes more than 10000 sizes',
  ),
  'rates without an end': (
    {
      'controller.name': 'geodamp',
      'controller.geodamp.lr_factor': 0.5,
      'controller.geodamp.delay_epochs': 1e-300,
    },
    'delay_epochs=1e-300 makes more than 10000 steps',
  ),
  'a rate that changes its sign': (
    {
      'controller.name': 'geodamp',
      'controller.geodamp.lr_factor': -10000.0,
    },
    'geodamp.lr_factor must be above 0',
  ),
  'a product of no rates': (
    {
      'controller.name': 'from_lr_schedule',
      'controller.from_lr_schedule.exponent': 2.0,
      'learning_rate.decay.name': 'linear',
    },
    r'exponent must be in \[0, 1\], got 2.0',
  ),
  'a plan without an end': (
    {
      'controller.name': 'padadamp',
      'epochs': 1e9,
      'max_updates': 10**12,
    },
    'max_updates=.* too many to tell',
  ),
  'a network without an end': (
    {'model.name': 'cifar_resnet', 'model.cifar_resnet.depth': 6 * 10**6 + 2},
    'depth must be from 1 to 2,000',
  ),
  'a square of nothing': (
    {'controller.name': 'norm_test', 'controller.norm_test.eta': 1e-200},
    'eta=1e-200 was given; set eta to',
  ),
}
RUN = {
  'epochs': {'epochs': 1e308, 'max_updates': 2},
  'evaluations too far off': {'eval.every_epochs': 1e308},
  'evaluations too close': {'eval.every_epochs': 5e-324},
  'a constant size': {
    'controller.name': 'constant',
    'epochs': 1e9,
    'max_updates': 10**12,
  },
}


def parts(overrides):
  return build(digits(**overrides), jax.devices()[:1])


@pytest.mark.parametrize('name', REFUSED)
def test_is_refused_in_one_line(name):
  overrides, message = REFUSED[name]
  with pytest.raises(ConfigError, match=message) as error:
    parts(overrides)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', RUN)
def test_can_be_run(name):
  made = parts(RUN[name])
  for examples in (0, 16, 10**15):
    assert examples < made.due.next_evaluation(examples) < 2**63


def test_tries_are_the_same_again_and_differ():
  tries = [fuzz.make_try(0, number) for number in range(300)]
  assert repr(tries[:9]) == repr([fuzz.make_try(0, n) for n in range(9)])
  assert len({repr(one) for one in tries}) > 290
  assert len({key for one in tries for key in one.changes}) > 120


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    ({}, 'made'),
    ({'optimizer.name': 3}, 'refused: optimizer.name must be a text in'),
    ({'data.name': 'npz:nothing'}, "refused: data set 'npz:nothing': "),
    (
      {
        'optimizer.name': 'optax.lbfgs',
        'optimizer.args.linesearch': (1, 2),
        'learning_rate.damping_exponent': 1.0,
      },
      'refused: optimizer.name=optax.lbfgs cannot be trained with here: ',
    ),
  ],
)
def test_what_comes_of_a_try(changes, expected, tmp_path):
  one = fuzz.Try('digits_mlp', False, changes)
  result = fuzz.attempt(one, str(tmp_path), trains=False)
  assert result.startswith(expected)


def test_a_traceback_is_found(tmp_path, monkeypatch):
  def broken(*args, **kwargs):
    raise KeyError('nothing')

  monkeypatch.setattr('adabatch.train.build.build', broken)
  one = fuzz.Try('digits_mlp', False, {})
  result = fuzz.attempt(one, str(tmp_path), trains=False)
  assert result.startswith("failed: KeyError: 'nothing'")
