"""What memory cannot hold is refused before anything is placed."""

from math import inf
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from adabatch.config import ConfigError
from adabatch.train import memory
from adabatch.train.build import build
from tests.experiments import digits


def parts(**overrides):
  return build(digits(**overrides), jax.devices()[:1])


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    (
      {'model.mlp.hidden_sizes': (2**31, 2**31)},
      "model.name='mlp' with optimizer.name='momentum' takes .* GB on each",
    ),
    (
      {
        'updates_per_call': 2**40,
        'epochs': 1e9,
        'checkpoint.every_updates': 10**12,
        'controller.name': 'constant',
      },
      'updates_per_call=[0-9]+ of batches of up to 16 examples take',
    ),
  ],
)
def test_is_refused(overrides, message):
  with pytest.raises(ConfigError, match=message) as error:
    parts(**overrides)
  assert '\n' not in str(error.value)


# 64 x 32 + 32 + 32 x 10 + 10 parameters of 4 bytes.
ONE = 4 * (64 * 32 + 32 + 32 * 10 + 10)


@pytest.mark.parametrize(
  ('overrides', 'models'),
  [
    ({}, 2),  # with the momentum
    ({'optimizer.name': 'adam'}, 3),
    # The anchor, and four replicas with their momenta.
    ({'sync.name': 'local_sgd', 'sync.replicas': 4}, 9),
  ],
)
def test_all_that_an_update_keeps_counts(overrides, models, monkeypatch):
  there = models * ONE
  monkeypatch.setattr(memory, 'of_device', lambda made: there)
  with pytest.raises(ConfigError, match='GB on each device'):
    parts(**overrides)
  there += 200  # beside them, counts and rates
  parts(**overrides)


def test_cpus_share_the_memory_of_the_machine():
  made = build(digits(), jax.devices()[:2]).recipe.devices
  assert memory.of_device(made) == memory.of_machine() / 2


@pytest.mark.parametrize(
  ('limits', 'least'), [((5e9, 3e9), 3e9), ((None, 4e9), 4e9), ((None,), inf)]
)
def test_an_accelerator_says_how_much_it_has(limits, least):
  """Some do not."""
  devices = np.array(
    [
      SimpleNamespace(memory_stats=lambda n=n: n and {'bytes_limit': n})
      for n in limits
    ]
  )
  mesh, own = SimpleNamespace(devices=devices), range(len(limits))
  made: Any = SimpleNamespace(
    platform='gpu', own=own, mesh=mesh, abstract=False
  )
  assert memory.of_device(made) == least


@pytest.mark.parametrize(
  ('overrides', 'most'),
  [
    ({'max_updates': 2}, 2),
    ({}, 20),  # a decision is due
    ({'controller.wait': 50}, 50),
    ({'controller.name': 'constant'}, 270),  # of the run: 3 x 1438 / 16
    ({'controller.name': 'constant', 'checkpoint.every_updates': 99}, 99),
    ({'updates_per_call': 7}, 7),
  ],
)
def test_a_call_has_room_for_what_can_be_in_it(overrides, most):
  """And no more: 2^31 updates take 128 GiB of indices."""
  recipe = parts(**{'updates_per_call': 2**31} | overrides).recipe
  assert recipe.updates_per_call == most
