"""How many updates a call does, where nobody says it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from adabatch.controllers.buckets import Bucket
from adabatch.models.lstm import LSTM
from adabatch.models.resnet import CifarResNet
from adabatch.train import train
from adabatch.train.build import build
from adabatch.train.per_call import CALL_SECONDS, Pace, is_looped, work_of
from tests.experiments import column, digits

ONE, OTHER = Bucket(16, 1, 1), Bucket(32, 1, 1)


def work(model, x):
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), x, train=False)
  )
  return work_of(
    jax.make_jaxpr(lambda v: model.apply(v, x, train=False))(variables)
  )


class Dense(nn.Module):
  convolves: bool = False

  @nn.compact
  def __call__(self, x, *, train):
    if self.convolves:
      x = nn.Conv(8, (3, 3))(x)
    return nn.Dense(32)(x.reshape(len(x), -1))


def test_products_are_counted():
  found = work(Dense(), jnp.ones((2, 4, 4, 3)))
  assert found == (2 * 2 * 48 * 32, False)
  flops, convolves = work(Dense(convolves=True), jnp.ones((2, 4, 4, 3)))
  assert flops == 2 * 2 * 16 * 8 * 27 + 2 * 2 * 128 * 32
  assert convolves


def test_loops_count_as_often_as_they_go_round():
  """Of which XLA counts one alone."""
  model = LSTM(50, num_layers=1, embedding_size=8, hidden_size=8)
  few, many = (
    work(model, jnp.zeros((1, n), jnp.int32)).flops for n in (10, 20)
  )
  assert many == pytest.approx(2 * few, rel=0.05)


def test_a_residual_network_costs_what_is_known():
  """41 million products forwards, of convolutions and one dense layer."""
  flops, convolves = work(CifarResNet(10, depth=20), jnp.ones((1, 32, 32, 3)))
  assert flops == pytest.approx(2 * 40.8e6, rel=0.02)
  assert convolves


@pytest.mark.parametrize(
  ('platform', 'convolves', 'size', 'looped'),
  [
    ('cpu', False, 10**6, True),
    ('cpu', True, 1, False),
    ('gpu', True, 1, True),
    ('tpu', False, 1, True),
    ('tpu', False, 10**7, False),  # an update of milliseconds
  ],
)
def test_short_updates_are_looped(platform, convolves, size, looped):
  """By a rule that no compiler is asked for, so that a plan says the same."""
  x = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
  model = Dense(convolves=convolves)
  variables = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False), x
  )
  found = is_looped(platform, model, variables, x, Bucket(size, 1, 1))
  assert found == looped


def test_a_call_takes_a_short_while():
  pace, each = Pace(automatic=True), 1e-3
  pace.begin(ONE, 256)
  assert (pace.most, pace.measures) == (1, True)
  pace.saw(ONE, 1, 20 * each)  # the first is slow
  assert pace.most == math.floor(CALL_SECONDS / (20 * each))
  pace.saw(OTHER, 1, 1e-9)  # of a bucket before
  assert pace.most == 2
  pace.saw(ONE, 2, 2 * each)
  pace.saw(ONE, 50, 50 * each)
  assert pace.most == math.floor(CALL_SECONDS * 53 / (72 * each)) == 36
  done = 53
  while pace.measures:
    done += pace.most
    pace.saw(ONE, pace.most, pace.most * each)
  assert (
    pace.most == math.floor(CALL_SECONDS * done / ((done + 19) * each)) == 46
  )
  pace.begin(OTHER, 256)
  assert (pace.most, pace.measures) == (1, True)
  pace.begin(ONE, 8)
  assert (pace.most, pace.measures) == (8, False)


def test_a_report_that_comes_late_makes_no_long_calls():
  """The one after it is fetched at once, and says nothing by itself."""
  pace = Pace(automatic=True)
  pace.begin(ONE, 256)
  for seconds in (0.12, 1e-6, 1e-6):  # together, after three updates of 40 ms
    pace.saw(ONE, 1, seconds)
  assert pace.most == 1


def test_a_number_that_was_given_is_kept():
  pace = Pace(automatic=False)
  pace.begin(ONE, 20)
  assert (pace.most, pace.measures) == (20, False)


def test_a_run_by_default_is_that_of_any_number(tmp_path, compile_quickly):
  """But 1; whatever the calls are."""
  losses = []
  for number in ('auto', 7, 50):
    workdir = tmp_path / str(number)
    keys = {'updates_per_call': number, 'controller.every': 20}
    keys |= {'controller.max_batch_size': 32}
    config = digits(max_updates=70, epochs=50.0, **keys)
    train(config, workdir, devices=jax.devices()[:1])
    losses.append(column(workdir, 'loss'))
  assert len(losses[0]) == 70
  np.testing.assert_array_equal(losses[1], losses[0])
  np.testing.assert_array_equal(losses[2], losses[0])


def test_room_is_for_few_indices_of_large_batches():
  recipe = build(
    digits(updates_per_call='auto', epochs=1e6, **{'controller.every': 10**6}),
    jax.devices()[:1],
  ).recipe
  rooms = [
    recipe.room(Bucket(size, 1, 1)) for size in (16, 2**12, 2**17, 2**20)
  ]
  assert rooms == [256, 64, 2, 1]
