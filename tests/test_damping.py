"""The effective learning rate, as the log of a real run shows it."""

import jax
import pytest

from adabatch import controllers
from adabatch.train import train
from tests.experiments import digits, records

pytestmark = pytest.mark.usefixtures('compile_quickly')

BASE = 0.02


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
def test_damped_at_every_update(tmp_path, optimizer, controller):
  lines = run(
    tmp_path,
    **{
      'optimizer.name': optimizer,
      'controller.name': controller,
      'controller.padadamp.rate': 2.0,
    },
  )
  assert [line['update'] for line in lines] == list(range(1, 161))
  damped = [line for line in lines if line['nominal_batch_size'] > 64]
  # Decisions come every 20 updates: most damped updates lie between them.
  assert len(damped) > 40
  for line in lines:
    expected = BASE * min(1, 64 / line['nominal_batch_size'])
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
