"""Who follows a ramp trains as its branches did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch.study.critical import Critical
from adabatch.study.ramp import Step
from adabatch.train.branches import noise_exponent
from adabatch.train.optimizer import Held, make_optimizer
from adabatch.train.probe_ramp import describe_ramp, follow
from adabatch.train.run_end import Extent
from tests.experiments import digits

FIRST, EXTENT = 16, Extent(1000, 5000, 128)
STEPS = [Step(0, FIRST), Step(400, 32), Step(900, 128)]
ADAMW = {'optimizer.name': 'adamw', 'optimizer.weight_decay': 0.1}


def after(tx, size, damping):
  """Parameters after three updates with batches of a size."""
  params = {'kernel': jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)}
  state, tx = tx.init(params), tx
  for k in range(3):
    grads = jax.tree.map(lambda p, k=k: jnp.sin(3 * p + k), params)
    updates, state = tx.update(
      grads,
      state,
      params,
      batch_size=size,
      damping=damping,
      examples=2000 + k,
    )
    params = jax.tree.map(jnp.add, params, updates)
  return np.asarray(params['kernel'])


@pytest.mark.parametrize(
  'keys',
  [
    {'optimizer.name': 'sgd'},
    {'optimizer.name': 'momentum', 'learning_rate.decay.name': 'cosine'},
    {'optimizer.name': 'adam'},
    ADAMW,
    ADAMW
    | {'learning_rate.scaling': 'sqrt'}
    | {'learning_rate.reference_batch_size': FIRST},
    ADAMW
    | {'optimizer.beta2_in_examples': True}
    | {'learning_rate.reference_batch_size': FIRST},
    {'optimizer.name': 'momentum', 'learning_rate.scaling': 'linear'},
  ],
)
def test_keys_do_what_branches_did(keys):
  config = digits(**keys)
  found, words = follow(config, STEPS)
  assert words is None
  made = digits(**keys | found)
  for size in (FIRST, 128):
    held = make_optimizer(config, EXTENT, Held(FIRST, memory=True))
    rate = (size / FIRST) ** noise_exponent(config)
    expected = after(held, size, rate)
    got = after(make_optimizer(made, EXTENT), size, 1.0)
    np.testing.assert_allclose(got, expected, 1e-5, 1e-6)
  assert np.abs(after(held, 128, rate) - after(held, 128, 1.0)).max() > 1e-4


@pytest.mark.parametrize(
  ('keys', 'words'),
  [
    (
      {'learning_rate.scaling': 'sqrt'},
      'the learning rate times (batch size / 16)',
    ),
    (
      {'learning_rate.warmup.unit': 'updates'},
      'the learning rate times (batch size / 16)',
    ),
    (
      ADAMW | {'learning_rate.scaling': 'sqrt'},
      "Adam's beta2 to the power (batch size / 16), the weight decay times "
      '(batch size / 16)^0.5',
    ),
    (
      {'probe.learning_rate': 'none', 'learning_rate.scaling': 'linear'},
      'its rate is to stay that of batches of 16',
    ),
    (
      {'probe.learning_rate': 'tune'},
      'its rate is to be that of each size in the tables',
    ),
  ],
)
def test_what_no_key_says_is_said(keys, words):
  assert follow(digits(**keys), STEPS)[1] == words


def test_sizes_are_allowed():
  keys, _ = follow(digits(**{'controller.max_batch_size': 64}), STEPS)
  assert keys['controller.max_batch_size'] == 128
  assert keys['controller.step_table.table'] == '0:16 400:32 900:128'


def test_lines_for_others():
  found = [Critical(70.0, 60.0, 80.0, 256)]
  one = describe_ramp(digits(**ADAMW), [500], found, 128)
  assert one['megatron'] == '0:16 64000:64'
  assert one['rate'] == 'the learning rate times (batch size / 16)^0.5'
  config = digits(**{'probe.learning_rate': 'none'})
  assert describe_ramp(config, [500], found, None)['rate'] is None
