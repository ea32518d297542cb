"""What damping does to noise, and the rate in the log of a real run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch import controllers, optim
from adabatch.config import ConfigError
from adabatch.controllers import buckets
from adabatch.train import train
from adabatch.train.optimizer import damping_exponent
from tests.experiments import digits, records

pytestmark = pytest.mark.usefixtures('compile_quickly')

BASE = 0.02
SEEDS = 20


def stationary_losses(name, rate, scaling, plans):
  """Mean loss late in noisy gradient descent on |x|^2 / 2 [plans, seeds].

  Each plan is the batch size of the gradients and the damping.
  """
  rule = getattr(optim, f'{scaling}_scaling')
  tx = optim.make_optimizer(
    name,
    optim.scale_by_batch_learning_rate(
      rate, scaling=rule() if scaling == 'no' else rule(64)
    ),
    trust_coefficient=1.0,
  )

  def run(plan, seed):
    batch_size, damping = plan

    def update(carry, noise):
      x, state = carry
      updates, state = tx.update(
        x + noise / jnp.sqrt(batch_size),
        state,
        x,
        batch_size=batch_size,
        damping=damping,
        examples=0,
      )
      x = optax.apply_updates(x, updates)
      return (x, state), jnp.square(x).sum() / 2

    # From about the size where the noise will keep it.
    noise = jax.random.normal(jax.random.key(seed), (1500, 4, 4))
    x = noise[0] / 100
    _, losses = jax.lax.scan(update, (x, tx.init(x)), noise)
    return losses[500:].mean()

  each_seed = jax.vmap(run, in_axes=(None, 0))
  return jax.jit(jax.vmap(each_seed, in_axes=(0, None)))(
    jnp.asarray(plans), jnp.arange(SEEDS)
  )


@pytest.mark.parametrize(
  ('name', 'scaling', 'rate'),
  [
    ('sgd', 'none', 0.01),
    ('sgd', 'sqrt', 0.01),
    ('sgd', 'linear', 0.01),
    ('adam', 'none', 0.002),
    ('adam', 'sqrt', 0.002),
    ('adam', 'linear', 0.002),
    ('lars', 'none', 0.03),
    ('lamb', 'none', 0.1),
  ],
)
def test_a_capped_run_has_the_noise_of_the_uncapped_one(name, scaling, rate):
  """256 examples are asked for, and 64 can be had."""
  ladder = buckets.ladder(
    16, 64, devices=1, damping_exponent=optim.damping_exponent(name, scaling)
  )
  capped = buckets.plan(256, ladder)
  rule = {'none': 'no'}.get(scaling, scaling)
  with_cap, without = np.asarray(
    stationary_losses(
      name, rate, rule, [(capped.batch_size, capped.damping), (256, 1.0)]
    )
  )
  assert abs(with_cap.mean() - without.mean()) < without.std()
  # A factor of 2 in the rate would not have passed.
  assert without.std() < without.mean() / 5


def test_damping_exponents():
  assert optim.damping_exponent('momentum', 'none') == 1.0
  assert optim.damping_exponent('adamw', 'linear') == -0.5
  # AdaScale's gain is linear scaling where noise dominates.
  for name in optim.OPTIMIZERS:
    linear = optim.damping_exponent(name, 'linear')
    assert optim.damping_exponent(name, 'adascale') == linear
  with pytest.raises(ValueError, match='unknown scaling .* none, sqrt'):
    optim.damping_exponent('sgd', 'cubic')


def test_the_exponent_of_a_config():
  def exponent(**overrides):
    return damping_exponent(digits(**overrides))

  assert exponent() == 1.0
  root = {'learning_rate.scaling': 'sqrt', 'optimizer.name': 'adamw'}
  assert exponent(**root) == 0.0
  assert exponent(**root, **{'learning_rate.damping_exponent': 0.7}) == 0.7
  # The rest of a decay goes to the rate whole.
  grown = {'controller.name': 'from_lr_schedule', 'optimizer.name': 'adam'}
  assert exponent(**grown) == 1.0
  assert exponent(**grown, **{'learning_rate.damping_exponent': 1.0}) == 1.0
  with pytest.raises(ConfigError, match='damping_exponent=0.5 does not go'):
    exponent(**grown, **{'learning_rate.damping_exponent': 0.5})


def run(tmp_path, **overrides):
  config = digits(
    epochs=100.0,
    max_updates=160,
    **{'learning_rate.base': BASE, 'controller.max_batch_size': 64},
    **overrides,
  )
  train(config, tmp_path, devices=jax.devices()[:1])
  return records(tmp_path)


@pytest.mark.parametrize(
  ('optimizer', 'controller'),
  [
    ('momentum', 'adadamp'),
    ('sgd', 'padadamp'),
    ('lars', 'padadamp'),
    ('adam', 'padadamp'),
  ],
)
def test_damped_at_every_update(tmp_path, capsys, optimizer, controller):
  lines = run(
    tmp_path,
    **{
      'optimizer.name': optimizer,
      'optimizer.beta2': 0.97,
      'optimizer.beta2_in_examples': True,
      'controller.name': controller,
      'controller.padadamp.rate': 2.0,
    },
  )
  assert [line['update'] for line in lines] == list(range(1, 161))
  # beta2 comes to its floor at 54 of 64 examples, which is told once.
  told = ''.join(capsys.readouterr()).count('optimizer.beta2_min')
  assert told == (optimizer == 'adam')
  damped = [line for line in lines if line['nominal_batch_size'] > 64]
  # Decisions come every 20 updates: most damped updates lie between them.
  assert len(damped) > 40
  exponent = optim.damping_exponent(optimizer, 'none')
  for line in lines:
    expected = BASE * min(1, 64 / line['nominal_batch_size']) ** exponent
    assert line['learning_rate'] == pytest.approx(expected, rel=1e-6)
    assert line['damping'] == pytest.approx(expected / BASE, rel=1e-6)


def test_returns_when_the_batch_falls_back(tmp_path, monkeypatch):
  """From 256 back to 32: the rate is damped to a quarter, then restored."""
  rule = controllers.step_table(table='0:32 640:256 5K:32')
  monkeypatch.setitem(controllers.CONTROLLERS, 'padadamp', lambda **_: rule)
  lines = run(
    tmp_path, **{'controller.name': 'padadamp', 'controller.every': 1}
  )
  seen = []
  for line in lines:
    state = (line['batch_size'], round(line['learning_rate'] / BASE, 6))
    if not seen or seen[-1] != state:
      seen.append(state)
  assert seen == [(32, 1.0), (64, 0.25), (32, 1.0)]
