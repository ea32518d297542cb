"""Every key of a config reaches the part that it is for."""

import inspect
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from adabatch import config as config_lib
from adabatch import controllers, data, models, optim
from adabatch.config import ConfigError
from adabatch.controllers import Signals, buckets
from adabatch.devices import mesh
from adabatch.models import tasks
from adabatch.train import build as build_lib
from adabatch.train import inputs, optimizer, rules
from adabatch.train import remarks as remarks_lib
from adabatch.train.calls import Due
from adabatch.train.run_end import Extent, RunEnd
from tests.experiments import digits

EXAMPLES = 1000  # in an epoch


def extent(config):
  """Of a run that ends after its epochs."""
  top = config.controller.max_batch_size
  return Extent(EXAMPLES, config.epochs * EXAMPLES, top)


def splits(examples=EXAMPLES):
  """Of no interest in themselves."""
  arrays = {
    'image': np.zeros((examples, 2, 2, 1), np.float32),
    'label': np.arange(examples) % 2,
  }
  split = data.from_arrays(arrays, 2)
  return split, split


def build(**overrides):
  return build_lib.build(digits(**overrides), jax.devices()[:2], splits())


def sizes(steps, **overrides):
  """What the rule asks for where (update, examples) are as given."""
  config = digits(**overrides)
  controller = rules.make_controller(config, extent(config))
  state, sizes = controller.init(), []
  for update, examples in steps:
    signals = Signals(update, examples, examples / EXAMPLES)
    size, state = controller.update(state, signals)
    sizes.append(size)
  return sizes


# The learning rate.

DECAY = {'epochs': 4.0, 'learning_rate.reference_batch_size': 25}


@pytest.mark.parametrize(
  ('overrides', 'halfway'),
  [
    ({}, 2000),  # the whole run
    ({'length': 3.0}, 1500),
    ({'length': 600.0, 'unit': 'examples'}, 300),
    ({'length': 40.0, 'unit': 'updates'}, 500),
  ],
)
@pytest.mark.parametrize('name', ['linear', 'cosine', 'polynomial'])
def test_decay(name, overrides, halfway):
  keys = {'name': name, 'final': 0.2, 'power': 3.0} | overrides
  config = digits(
    **DECAY, **{f'learning_rate.decay.{k}': v for k, v in keys.items()}
  )
  decay = optimizer.make_decay(config, extent(config))
  # At half the length a straight line, and half a cosine, are half-way.
  left = 0.125 if name == 'polynomial' else 0.5
  assert float(decay(0)) == pytest.approx(1.0)
  assert float(decay(halfway)) == pytest.approx(0.2 + 0.8 * left)
  assert float(decay(2 * halfway)) == pytest.approx(0.2)


@pytest.mark.parametrize(
  ('unit', 'boundaries'),
  [
    ('epochs', (0.5, 2.0)),
    ('examples', (500.0, 2000.0)),
    ('updates', (20.0, 80.0)),
  ],
)
def test_piecewise_decay(unit, boundaries):
  config = digits(
    **DECAY,
    **{
      'learning_rate.decay.name': 'piecewise',
      'learning_rate.decay.unit': unit,
      'learning_rate.decay.boundaries': boundaries,
      'learning_rate.decay.factor': 0.5,
    },
  )
  decay = optimizer.make_decay(config, extent(config))
  got = [float(decay(e)) for e in (499, 500, 1999, 2000)]
  assert got == [1.0, 0.5, 0.5, 0.25]


def test_warmup_that_grows_with_the_batch_size():
  """a + b B = 0.5 + 0.01 x 50 = 1 epoch."""
  config = digits(
    **{
      'learning_rate.scaling': 'linear',
      'learning_rate.reference_batch_size': 10,
      'learning_rate.warmup.kind': 'constant',
      'learning_rate.warmup.epochs': 0.5,
      'learning_rate.warmup.epochs_per_example': 0.01,
    }
  )
  tx = optimizer.make_learning_rate(config, extent(config))
  for examples, factor in ((0, 1), (999, 1), (1000, 5)):
    _, state = tx.update(
      jnp.ones(1), tx.init(jnp.ones(1)), batch_size=50, examples=examples
    )
    assert float(state.learning_rate) == pytest.approx(0.02 * factor)


# The optimizer.

OPTIMIZER = {
  'momentum': 0.5,
  'beta1': 0.6,
  'beta2': 0.7,
  'epsilon': 0.01,
  'weight_decay': 0.3,
  'trust_coefficient': 0.05,
}


@pytest.mark.parametrize('everywhere', [False, True])
@pytest.mark.parametrize('in_examples', [False, True])
@pytest.mark.parametrize('name', sorted(optim.OPTIMIZERS))
def test_optimizer(name, in_examples, everywhere):
  config = digits(
    **{f'optimizer.{k}': v for k, v in OPTIMIZER.items()},
    **{
      'optimizer.name': name,
      'optimizer.beta2_in_examples': in_examples,
      'optimizer.decay_norms_and_biases': everywhere,
      'learning_rate.base': 0.1,
      'learning_rate.reference_batch_size': 8,
    },
  )
  params = {'kernel': jnp.array([[1.0, -2.0]]), 'bias': jnp.array([3.0])}
  expected = optim.make_optimizer(
    name,
    0.1,
    **OPTIMIZER,
    decay_mask={'kernel': True, 'bias': everywhere},
    beta2_reference_batch_size=8 if in_examples else None,
  )
  results = []
  for tx in (optimizer.make_optimizer(config, extent(config)), expected):
    state, p = tx.init(params), params
    for gradient in (0.5, -0.25, 1.0):
      gradients = jax.tree.map(lambda x, g=gradient: g * x + g, params)
      updates, state = tx.update(
        gradients, state, p, batch_size=32, damping=0.5, examples=0
      )
      p = jax.tree.map(jnp.add, p, updates)
    results.append(p)
  for leaf in params:
    np.testing.assert_allclose(results[0][leaf], results[1][leaf], rtol=1e-6)


# The rule and what is around it.


def test_padadamp_takes_the_rate_of_the_authors():
  name = {'controller.name': 'padadamp', 'epochs': 7.0}
  rate = controllers.padadamp_rate(
    initial_batch_size=16, max_batch_size=128, epochs=7.0, num_examples=EXAMPLES
  )
  at = [(0, 0), (20, 0), (400, 0)]
  expected = [16, math.ceil(16 + 20 * rate), math.ceil(16 + 400 * rate)]
  assert sizes(at, **name) == expected
  given = {'controller.padadamp.rate': 0.5}
  assert sizes(at, **name, **given) == [16, 26, 216]


TABLE = {
  'controller.name': 'step_table',
  'controller.step_table.table': '0:16 100:256 600:64',
  'controller.max_batch_size': 256,
  'controller.every': 2,
}
UPDATES = [(k, 100 * k) for k in range(9)]


@pytest.mark.parametrize(
  ('overrides', 'expected'),
  [
    ({}, [16, 16, 256, 256, 256, 256, 64, 64, 64]),
    ({'every': 3}, [16, 16, 16, 256, 256, 256, 64, 64, 64]),
    ({'wait': 3}, [16, 16, 16, 256, 256, 256, 256, 64, 64]),
    ({'monotone': True}, [16, 16, 256, 256, 256, 256, 256, 256, 256]),
    ({'smooth': 0.5}, [16, 16, 64, 64, 128, 128, 90.51, 90.51, 76.11]),
    ({'growth_limit': 3.0}, [16, 16, 48, 48, 144, 144, 64, 64, 64]),
    ({'hysteresis': 5.0}, [16, 16, 256, 256, 256, 256, 256, 256, 256]),
    # From the inside: every, smooth, monotone, growth_limit, hysteresis.
    (
      {'smooth': 0.5, 'monotone': True},
      [16, 16, 64, 64, 128, 128, 128, 128, 128],
    ),
    (
      {'smooth': 0.5, 'growth_limit': 3.0},
      [16, 16, 48, 48, 128, 128, 90.51, 90.51, 76.11],
    ),
    (
      {'monotone': True, 'growth_limit': 3.0},
      [16, 16, 48, 48, 144, 144, 256, 256, 256],
    ),
    (
      {'growth_limit': 3.0, 'hysteresis': 4.0},
      [16, 16, 16, 16, 144, 144, 144, 144, 144],
    ),
  ],
)
def test_wrappers(overrides, expected):
  keys = {f'controller.{k}': v for k, v in overrides.items()}
  got = sizes(UPDATES, **TABLE | keys)
  assert got == pytest.approx(expected, rel=1e-4)


def test_only_a_floor_of_its_own_lets_the_size_fall_below_the_first():
  def floor(**overrides):
    config = digits(**{'controller.name': 'cabs'} | overrides)
    controller = rules.make_controller(config, extent(config))
    _, state = controller.update(controller.init(), Signals())
    signals = Signals(
      update=20,
      loss=0.1,
      gradient_noise=controllers.GradientNoise(0.1, 1.0),
      learning_rate=0.1,
    )
    return controller.update(state, signals)[0]

  assert floor() == 16
  assert floor(**{'controller.min_batch_size': 2}) < 16


FORGETFUL = {
  'adadamp': {'loss_source': 'ema', 'decay': 0.0},
  'adadamp_grad': {'decay': 0.0},
  'radadamp': {'window': 1, 'rho': 0.0, 'reduction': 'mean'},
}


@pytest.mark.parametrize(('every', 'wait'), [(4, 0), (4, 7), (1, 0)])
@pytest.mark.parametrize('name', FORGETFUL)
def test_a_run_began_with_what_comes_before_its_first_decision(
  name, every, wait
):
  keys = {'name': name, 'every': every, 'wait': wait}
  keys |= {f'{name}.{key}': value for key, value in FORGETFUL[name].items()}
  controller = rules.make_controller(
    digits(**{f'controller.{key}': value for key, value in keys.items()}),
    Extent(EXAMPLES, EXAMPLES, 128),
  )
  first = wait or every
  values = [1.5, 4.5, 3.0, 2.5, 5.0, 1.0, 6.0][:first]
  state, sizes = controller.init(), []
  for update, x in enumerate([*values, *[0.75] * 9], start=1):
    noise = controllers.GradientNoise(1.0, x)
    signals = Signals(
      update, loss=x, gradient_norm_squared=x, gradient_noise=noise
    )
    size, state = controller.update(state, signals)
    sizes.append(size)
  assert sizes[: first - 1] == [16.0] * (first - 1)
  mean = float(f'{sum(values) / first:.3e}')
  assert sizes[-1] == math.ceil(16 * mean / 0.75)


@pytest.mark.parametrize('name', sorted(controllers.CONTROLLERS))
def test_a_rule_has_the_same_defaults_in_code_and_config(name):
  table = config_lib.default().controller.get(name, {})
  parameters = inspect.signature(controllers.CONTROLLERS[name]).parameters
  for key, parameter in parameters.items():
    if key in table and parameter.default is not inspect.Parameter.empty:
      assert table[key] == parameter.default, key


# The rest.


def test_ladder():
  overrides = {
    'controller.max_batch_size': 100,
    'buckets.growth': 1.5,
    'buckets.max_per_device': 30,
    'buckets.rounding': 'nearest',
  }
  how = {
    'devices': 2,
    'growth': 1.5,
    'max_per_device': 30,
    'rounding': 'nearest',
  }
  assert build(**overrides).ladder == buckets.ladder(16, 100, **how)
  lower = build(
    **overrides,
    **{'controller.name': 'cabs', 'controller.min_batch_size': 4},
  )
  # It reads the gradient noise, which takes two microbatches.
  assert lower.ladder == buckets.ladder(4, 100, **how, min_microbatches=2)
  constant = build(**overrides, **{'controller.name': 'constant'})
  assert constant.ladder == buckets.ladder(16, 16, **how)


def test_task_and_length():
  parts = build(epochs=1.2346, **{'task.label_smoothing': 0.3})
  assert parts.end == RunEnd(1235)
  logits, batch = jnp.array([[1.0, -2.0]]), {'label': jnp.array([0])}
  for got, expected in (
    (parts.recipe.task, tasks.classification(0.3)),
    (build().recipe.task, tasks.classification()),
  ):
    assert got.loss(logits, batch) == expected.loss(logits, batch)


def test_what_the_devices_are_given():
  parts = build(
    seed=5,
    updates_per_call=6,
    **{
      'eval.max_per_device': 7,
      'eval.every_epochs': 0.25,
      'eval.growth': 1.5,
      'checkpoint.every_updates': 8,
      'log.every_updates': 9,
      'controller.adadamp.loss_source': 'subset',
      'controller.subset_size': 11,
      'data.train_split': 'train[:5]',
      'data.eval_split': 'train[5:]',
      'parallel.backend': 'pmap',
    },
  )
  recipe = parts.recipe
  assert (recipe.seed, recipe.updates_per_call) == (5, 6)
  assert (recipe.evaluated_at_once, recipe.subset_size) == (7, 11)
  assert recipe.needs == parts.controller.needs
  assert 'subset_loss' in recipe.needs
  assert recipe.split_names == ('train[:5]', 'train[5:]')
  assert (recipe.devices.size, recipe.devices.backend) == (2, 'pmap')
  assert recipe.network_input.shape == (1, 2, 2, 1)
  assert (recipe.replicas, recipe.sync) == (1, None)
  assert parts.due == Due(250.0, 1.5, 8, 9)
  assert parts.extent.epoch == EXAMPLES
  replicas = build(**{'sync.name': 'local_sgd', 'sync.replicas': 4}).recipe
  assert replicas.replicas == 4
  assert replicas.sync is not None


@pytest.mark.parametrize('devices', [1, 2])
@pytest.mark.parametrize(
  ('overrides', 'kept'),
  [
    ({'controller.initial_batch_size': 1}, True),
    ({'controller.initial_batch_size': 2}, False),
    ({'controller.initial_batch_size': 2, 'sync.replicas': 2}, True),
    ({'controller.initial_batch_size': 4, 'sync.replicas': 2}, False),
    (
      {'controller.initial_batch_size': 1, 'controller.name': 'adadamp'},
      False,
    ),
  ],
)
def test_a_gradient_is_kept_for_the_noise_of_single_examples(
  overrides, kept, devices
):
  """Whatever the devices, so that a checkpoint fits any number of them."""
  keys = {'controller.name': 'norm_test'} | overrides
  if 'sync.replicas' in keys:
    keys['sync.name'] = 'local_sgd'
  parts = build_lib.build(digits(**keys), jax.devices()[:devices], splits())
  assert parts.recipe.keep_gradient == kept


@pytest.mark.parametrize(
  ('overrides', 'estimated'),
  [
    ({}, False),
    ({'controller.name': 'norm_test'}, True),
    ({'learning_rate.scaling': 'adascale'}, True),
  ],
)
def test_noise_is_estimated_where_it_is_read(overrides, estimated):
  parts = build(**overrides)
  assert parts.recipe.estimate_noise == estimated
  assert parts.ladder.min_microbatches == 1 + estimated


@pytest.mark.parametrize(
  'key',
  [
    'epochs',
    'max_updates',
    'updates_per_call',
    'learning_rate.reference_batch_size',
    'controller.every',
    'controller.subset_size',
    'controller.initial_batch_size',
    'controller.max_batch_size',
    'controller.min_batch_size',
    'checkpoint.every_updates',
    'checkpoint.keep',
    'log.every_updates',
    'eval.every_epochs',
    'eval.max_per_device',
    'buckets.max_per_device',
  ],
)
@pytest.mark.parametrize('value', [0, -1])
def test_counts_and_lengths_are_above_zero(key, value):
  with pytest.raises(ConfigError, match=key.rpartition('.')[2]):
    build(**{key: value})


# What is wrong, and a word of the message.
NOISE = {'controller.name': 'noise_scale'}
REFUSED = {
  'scaling': (
    {
      'controller.name': 'from_lr_schedule',
      'learning_rate.decay.name': 'linear',
      'learning_rate.scaling': 'linear',
    },
    'learning_rate.scaling',
  ),
  'a floor below a schedule': (
    {'controller.name': 'step_table', 'controller.min_batch_size': 4},
    'min_batch_size',
  ),
  'controller': ({'controller.name': 'x'}, 'controller.name'),
  'model': ({'model.name': 'x'}, 'model.name'),
  'seed': ({'seed': 2**64}, r'seed must be in \[0, 2\^64\)'),
  'optimizer': ({'optimizer.name': 'x'}, 'optimizer'),
  'optimizer of optax': ({'optimizer.name': 'optax.x'}, 'optax.x is no opti'),
  'an optimizer that needs the loss': (
    {
      'optimizer.name': 'optax.contrib.momo',
      'learning_rate.damping_exponent': 1.0,
    },
    'momo cannot be trained with here.*value',
  ),
  'a damping that nobody knows': (
    {'optimizer.name': 'optax.lion'},
    'optax.lion has no known .*set learning_rate.damping_exponent',
  ),
  'a decay scaling': ({'optimizer.weight_decay_scaling': 'x'}, 'decay_scaling'),
  'a decay of nothing that grows': (
    {'optimizer.weight_decay_scaling': 'linear'},
    'no effect on optimizer.weight_decay=0: set that',
  ),
  'a norm': ({'optimizer.clip_norm': 0.0}, 'clip_norm must be above 0'),
  'an average of averages': (
    {'ema.half_life': 100.0, 'sync.name': 'local_sgd'},
    "ema.half_life.*sync.name='local_sgd'",
  ),
  'cooldown': ({'learning_rate.decay.cooldown': 0.0}, 'cooldown must be in'),
  'shape': (
    {
      'learning_rate.decay.name': 'wsd',
      'learning_rate.decay.shape': 'x',
    },
    'choose one of linear, 1-sqrt',
  ),
  'two lengths': (
    {
      'learning_rate.warmup.kind': 'gradual',
      'learning_rate.warmup.start': 0.0,
      'learning_rate.warmup.epochs': 1.0,
      'learning_rate.warmup.length': 1.0,
    },
    'leave one of them out',
  ),
  'tokens of images': (
    {
      'learning_rate.decay.name': 'linear',
      'learning_rate.decay.unit': 'tokens',
    },
    'learning_rate.decay: .*tokens need tokens_per_example',
  ),
  'an end in tokens of images': (
    {'max_tokens': '2.5B'},
    "max_tokens=2.5B .*task.name='classification' .*: set max_examples",
  ),
  'less than an example': ({'max_examples': '0.1'}, 'max_examples must be at'),
  'an unknown suffix': ({'max_examples': '2G'}, "'2G' is no count; write a"),
  'a suffix that is none': (
    {
      'learning_rate.decay.name': 'piecewise',
      'learning_rate.decay.boundaries': ('1Q',),
    },
    "learning_rate.decay: '1Q' is no count",
  ),
  'a ramp of nothing': (
    {
      'controller.name': 'ramp_up',
      'controller.ramp_up.examples': 'long',
      'controller.ramp_up.final_batch_size': 128,
    },
    "ramp_up.examples: 'long' is no count",
  ),
  'a table in tokens of images': (
    {'controller.name': 'step_table', 'controller.step_table.unit': 'tokens'},
    'controller.step_table: .*set unit to examples or epochs',
  ),
  'a ramp that starts elsewhere': (
    {
      'controller.name': 'ramp_up',
      'controller.ramp_up.final_batch_size': 128,
      'controller.ramp_up.megatron': '32 32 1000',
    },
    'starts with a batch of 32.*initial_batch_size=16: set that to 32',
  ),
  'arguments of ours': (
    {'optimizer.args.b1': 0.9},
    "optimizer.args.b1 is for the optimizers of optax.*'momentum'",
  ),
  'arguments that it does not take': (
    {
      'optimizer.name': 'optax.lion',
      'optimizer.args.b3': 0.9,
      'learning_rate.damping_exponent': 0.5,
    },
    'optimizer.args: lion takes no b3 here, but b1, b2, mu_dtype',
  ),
  'a unit': ({'learning_rate.warmup.unit': 'x'}, 'warmup.*unknown unit'),
  'backend': ({'parallel.backend': 'x'}, 'parallel.backend'),
  'target': ({'target.metric': 'x', 'target.value': 0.5}, 'target.metric'),
  'smoothing': ({'task.label_smoothing': 1.0}, 'label_smoothing'),
  'table': (
    {'controller.name': 'step_table', 'controller.step_table.table': 'x'},
    'table',
  ),
  'a size above the largest': (
    {'controller.name': 'step_table', 'controller.step_table.table': '0:129'},
    '129.*16 to 128.*max_batch_size',
  ),
  'a later size below the smallest': (
    {
      'controller.name': 'step_table',
      'controller.step_table.table': '0:16 1K:64 2K:8',
    },
    'batch of 8,.*16 to 128.*initial_batch_size',
  ),
  'a first size below the smallest': (
    {'controller.name': 'step_table', 'controller.step_table.table': '0:4'},
    'initial_batch_size',
  ),
  'a ramp beyond the largest size': (
    {'controller.name': 'ramp_up', 'controller.ramp_up.final_batch_size': 256},
    'ramp_up.final_batch_size.*256.*max_batch_size',
  ),
  'a rate in proportion to the size in proportion to the rate': (
    {'controller.name': 'cabs', 'learning_rate.scaling': 'linear'},
    "cabs.*'linear'.*'sqrt'",
  ),
  'a gain that may be linear': (
    {'controller.name': 'cabs', 'learning_rate.scaling': 'adascale'},
    "cabs.*'adascale'",
  ),
  'a norm of the noise': (
    {'controller.noise_norm': 'l3'},
    "noise_norm.*'l3'.*adam, l1, l2, normalisation",
  ),
  'a norm of an optimizer without moments': (
    NOISE | {'controller.noise_norm': 'adam', 'optimizer.name': 'nesterov'},
    "noise_norm='adam'.*'nesterov'.*adam, adamw, lamb",
  ),
  'a norm of an optimizer with moments of some': (
    NOISE | {'controller.noise_norm': 'adam', 'optimizer.name': 'muon'},
    "'muon'",
  ),
  'a norm for a rule that reads no ratio': (
    {'controller.name': 'cabs', 'controller.noise_norm': 'l1'},
    "noise_norm='l1'.*cabs",
  ),
  'a norm for a gain in another': (
    {'learning_rate.scaling': 'adascale', 'controller.noise_norm': 'l1'},
    "noise_norm='l1'.*adascale",
  ),
  'device time of devices that never idle': (
    {'controller.name': 'goodput', 'controller.goodput.per': 'device_second'},
    'device_second.*buckets.min_per_device',
  ),
  'another time': (
    {'controller.name': 'goodput', 'controller.goodput.per': 'hour'},
    "per='hour'.*second, device_second",
  ),
  'a gain that is a loss': (
    {'controller.name': 'goodput', 'controller.goodput.gain': 0.5},
    'goodput: gain=0.5',
  ),
  'no window': ({'controller.goodput.windows': 0}, 'goodput.windows.*1'),
  'sizes that are tuned': (
    {
      'controller.name': 'goodput',
      'sync.name': 'sma',
      'sync.replicas': 2,
      'sync.tune.enabled': True,
    },
    'goodput.*sync.tune.enabled',
  ),
}


def test_norms_of_layers_that_are_not_there_are_refused():
  keys = NOISE | {'controller.noise_norm': 'normalisation'}
  with pytest.raises(ConfigError, match="normalisation'.*'mlp'") as error:
    build(**keys)
  assert '\n' not in str(error.value)


def test_what_is_measured_of_the_noise_is_said():
  keys = {'controller.noise_norm': 'normalisation'}
  (line,) = remarks_lib.remarks(build(**keys))
  assert 'no effect' in line
  few = {
    'model.name': 'strided_cnn',
    'model.strided_cnn.channels': (4,),
    'model.strided_cnn.hidden_size': 8,
    'model.strided_cnn.batch_norm_group': 8,
  }
  (line,) = remarks_lib.remarks(build(**keys | NOISE | few))
  some, every = map(int, re.findall(r'\d+', line))
  assert 0 < some < every / 5
  assert list(remarks_lib.remarks(build(**NOISE))) == []


@pytest.mark.parametrize('case', sorted(REFUSED))
def test_refused_before_the_data_are_read(case, monkeypatch):
  def load(*args):
    raise AssertionError('the data were read')

  overrides, word = REFUSED[case]
  monkeypatch.setattr(data, 'load', load)
  config = digits()
  with config.unlocked():
    config.update_from_flattened_dict(overrides)
  with pytest.raises(ConfigError, match=word) as error:
    build_lib.build(config)
  assert '\n' not in str(error.value)


def test_a_metric_is_asked_for_only_where_something_is_to_be_reached(
  monkeypatch,
):
  task = tasks.regression()
  monkeypatch.setitem(tasks.TASKS, 'mine', lambda *_, **__: task)
  config = digits(**{'task.name': 'mine'})
  assert config.target.metric not in task.higher_is_better
  build_lib.check(config, 1)
  config.target.value = 0.5
  with pytest.raises(ConfigError, match=r'target\.metric.*mean_squared_error'):
    build_lib.check(config, 1)
  config.target.metric = 'mean_squared_error'
  build_lib.check(config, 1)


def network(*, has='num_classes dtype', takes='train rows'):
  """A class of a network, as somebody else may write it."""
  fields = dict.fromkeys(has.split())
  annotations = dict.fromkeys([*fields, 'width'], Any)
  call = eval(f'lambda self, x, {", ".join(takes.split())}: x')
  body = {'width': 8, '__annotations__': annotations, '__call__': call}
  return type('Net', (nn.Module,), fields | body)


def with_network(net, table, monkeypatch):
  """A config of that network."""
  monkeypatch.setitem(models.MODELS, 'mine', net)
  config = digits()
  config.model.name = 'mine'
  if table is not None:
    config.model.mine = ConfigDict(table)
  return config


@pytest.mark.parametrize(
  ('net', 'table', 'words'),
  [
    (network(), None, "model.name='mine'.*no table.*c.model.mine = ConfigDict"),
    (network(), {'wdth': 3}, 'model.mine.*wdth'),
  ],
)
def test_a_network_of_somebody_else_is_refused(net, table, words, monkeypatch):
  config = with_network(net, table, monkeypatch)
  with pytest.raises(ConfigError, match=words) as error:
    build_lib.check(config, 1)
  assert '\n' not in str(error.value)


def test_a_network_of_somebody_else_has_keys_of_its_own(monkeypatch):
  config = with_network(network(), {'width': 3}, monkeypatch)
  build_lib.check(config, 1)
  assert build_lib.make_model(config, 10).width == 3
  config.model.theirs = ConfigDict({'width': 3})
  with pytest.raises(ConfigError, match="unknown config key 'model.theirs"):
    build_lib.check(config, 1)


def test_a_network_with_plain_batch_norm_is_refused(monkeypatch):
  class Plain(nn.Module):
    num_classes: int
    dtype: type
    hidden_sizes: tuple

    @nn.compact
    def __call__(self, x, *, train, rows=None):
      x = nn.Dense(self.num_classes)(x.reshape(len(x), -1))
      return nn.BatchNorm(use_running_average=not train)(x)

  monkeypatch.setitem(models.MODELS, 'mlp', Plain)
  with pytest.raises(ConfigError, match=r'model\.mlp: .*GhostBatchNorm'):
    build()


def test_load_augments_by_seed_and_position_and_only_in_training():
  rng = np.random.default_rng(0)
  arrays = {
    'image': jnp.array(rng.integers(0, 256, (40, 8, 8, 1)), jnp.uint8),
    'label': jnp.arange(40),
  }
  statistics = (np.array([0.25]), np.array([0.5]))
  indices = jnp.arange(40)
  positions = (jnp.zeros(40, jnp.uint32), indices.astype(jnp.uint32))

  def images(positions=positions, **how):
    seed = how.pop('seed', 0)
    augmentation = inputs.Augmentation(**how)
    load = inputs.make_load(statistics, augmentation, seed=seed)
    batch = load(arrays, indices, positions)
    assert batch['label'].tolist() == list(range(40))
    return np.asarray(batch['image'])

  plain = (arrays['image'] / 255 - 0.25) / 0.5
  np.testing.assert_allclose(images(), plain, rtol=1e-5, atol=1e-6)
  everything = {'padding': 2, 'flip': True}
  np.testing.assert_array_equal(images(None, **everything), images())
  flipped = images(flip=True)
  mirrored = (flipped == images()[:, :, ::-1]).all((1, 2, 3))
  assert 10 < mirrored.sum() < 30
  np.testing.assert_array_equal(flipped[~mirrored], images()[~mirrored])
  cropped = images(padding=2)
  assert (cropped != images()).any((1, 2, 3)).sum() > 30
  for how in ({'flip': True}, {'padding': 2}):
    np.testing.assert_array_equal(images(**how), images(seed=0, **how))
    for seed in (1, 2**32, 2**63):
      assert (images(**how) != images(seed=seed, **how)).any()


@pytest.mark.parametrize(
  ('processes', 'overrides', 'match'),
  [
    ([0, 0, 0, 1], {}, 'a streamed set: .* equally many devices'),
    ([0, 1, 2, 3], {'replicas': 2, 'tune.enabled': True}, 'each process, got'),
    ([0, 0, 1, 2], {'replicas': 4}, 'sync.replicas: 3 processes cannot read'),
  ],
)
def test_processes_that_cannot_read_are_refused(
  monkeypatch, processes, overrides, match
):
  """As if the four devices were of so many processes."""

  def by_rows(devices):
    return np.reshape(processes, (devices.rows, -1)).tolist()

  monkeypatch.setattr(mesh.Devices, 'processes', property(by_rows))
  keys = {f'sync.{key}': value for key, value in overrides.items()}
  if keys:
    keys['sync.name'] = 'local_sgd'
  c = digits(**{'data.placement': 'streaming'} | keys)
  with pytest.raises(ConfigError, match=match):
    build_lib.build(c, jax.devices()[:4])
  resident = digits(**{'data.placement': 'resident'} | keys)
  build_lib.build(resident, jax.devices()[:4])
