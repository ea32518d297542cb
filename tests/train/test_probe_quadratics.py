"""A probe of noisy quadratics, of which everything can be written down.

An example is a point xi with the loss 1/2 (x - xi)' A (x - xi), so gradients
are those of the quadratic x' A x / 2 with noise of the covariance A S A, and

  L(B) = 1/2 sum_i a_i (q_i^2n x_i^2 + eta^2 a_i^2 s_i (1 - q_i^2n)
                        / (B (1 - q_i^2))),    q_i = 1 - eta a_i

after n = Delta / B updates of SGD at the rate eta.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import adabatch
from adabatch import data
from adabatch.controllers.buckets import Plan
from adabatch.devices.trainer import Trainer
from adabatch.models import MODELS, tasks
from adabatch.study.critical import critical, differences
from adabatch.train.branches import Branch, Branches, Point
from adabatch.train.build import build
from tests.experiments import digits

CURVATURES = np.repeat([0.05, 0.5, 2.2], 8)
START = np.repeat([0.1, 0.5, 0.2], 8)
DIMENSIONS = len(START)
RATE, BATCH, EXAMPLES = 0.05, 8, 1024
FACTORS = (1, 2, 4, 8, 16)
HELD_OUT = 500


class Position(nn.Module):
  """x less each of its inputs, which come standardised."""

  spread: float

  @nn.compact
  def __call__(self, inputs):
    x = self.param('x', lambda key: jnp.asarray(START, jnp.float32))
    return x - self.spread * inputs


def quadratic():
  def loss(outputs, batch):
    del batch
    return 0.5 * jnp.sum(jnp.asarray(CURVATURES) * outputs**2, -1)

  plain = tasks.regression()
  return plain._replace(
    loss=loss,
    metrics=lambda outputs, batch: {'loss': loss(outputs, batch)},
    metric_names=('loss',),
    higher_is_better={'loss': False},
    summarize=dict,
  )


@pytest.fixture(scope='module', autouse=True)
def names():
  c = digits()
  adabatch.register(c, 'model', 'position', Position, spread=1.0)
  adabatch.register(c, 'task', 'quadratic', lambda: quadratic())
  yield
  del MODELS['position'], tasks.TASKS['quadratic']


def expected(batch_size, spread, rate=None):
  """L(B), less what no x can change; the rate grows in proportion."""
  eta = RATE * batch_size / BATCH if rate is None else rate
  n, q = EXAMPLES / batch_size, 1 - eta * CURVATURES
  left = np.abs(q) ** (2 * n)
  noise = eta**2 * CURVATURES**2 * spread**2 * (1 - left) / (1 - q**2)
  return 0.5 * np.sum(CURVATURES * (left * START**2 + noise / batch_size))


class Probe:
  """Branches from the start of a run, in many places of the data."""

  def __init__(self, spread, places, repeats):
    rng = np.random.default_rng(0)
    many = places * repeats * EXAMPLES

    def split(count):
      x = rng.normal(size=(count, DIMENSIONS)).astype(np.float32)
      label = np.zeros((count, DIMENSIONS), np.float32)
      return data.from_arrays({'features': x, 'label': label}, DIMENSIONS)

    c = digits()
    with c.unlocked():
      c.model.name, c.task.name = 'position', 'quadratic'
      c.model.position, c.task.quadratic = {'spread': spread}, {}
    c.update_from_flattened_dict(
      {
        'optimizer.name': 'sgd',
        'learning_rate.base': RATE,
        'controller.name': 'constant',
        'controller.initial_batch_size': BATCH,
        'controller.max_batch_size': BATCH,
        'updates_per_call': 200,
      }
    )
    held_out = split(HELD_OUT)
    self.parts = build(c, jax.devices()[:1], (split(many), held_out))
    self.branches = Branches(self.parts, BATCH, memory=True)
    self.repeats = repeats
    self.start = Trainer(self.parts.recipe).state

  def losses(self, place, factor, rate=None):
    """[repeats, examples] of a place."""
    size = BATCH * factor
    bucket = self.branches.ladder(BATCH)
    plan = Plan(float(BATCH), BATCH, 1.0, bucket)
    found = []
    for repeat in range(self.repeats):
      offset = (place * self.repeats + repeat) * EXAMPLES
      branch = Branch(size, factor if rate is None else rate, offset)
      point = Point(0, 0, 0, plan, 1.0)
      grown = self.branches.grow(self.start, point, branch, EXAMPLES)
      found.append(grown.losses)
    return np.stack(found)

  def critical(self, place, epsilon):
    found = differences(
      {BATCH * k: self.losses(place, k) for k in FACTORS}, BATCH
    )
    return critical(found, BATCH, epsilon)


def test_the_interval_holds_the_true_size():
  """In at least nine of ten of fifty places of the data."""
  spread, places = 4.0, 50
  probe = Probe(spread, places, repeats=6)
  truth, base = 48.0, expected(BATCH, spread)
  epsilon = expected(truth, spread) - base
  grows = [expected(BATCH * k, spread) for k in FACTORS]
  assert np.all(np.diff(grows) > 0)
  found = [probe.critical(place, epsilon) for place in range(places)]
  held = [
    one.low <= truth and (one.high is None or truth <= one.high)
    for one in found
  ]
  assert np.mean(held) >= 0.9
  # Intervals that say something: most are closed, and near the truth.
  closed = [one for one in found if one.high is not None]
  assert len(closed) >= places / 2
  points = [one.at_least for one in found]
  assert 0.7 * truth < np.median(points) < 1.4 * truth


def test_branches_lose_what_the_formula_says():
  probe = Probe(1.0, places=1, repeats=60)
  spread = 1.0
  rest = (
    0.5
    * spread**2
    * np.sum(
      CURVATURES
      * np.mean(
        probe.parts.recipe.inputs.evaluation.arrays['features'].astype(float)
        ** 2,
        0,
      )
    )
  )
  for factor in (1, 16):
    values = probe.losses(0, factor).mean(1)
    error = values.std(ddof=1) / np.sqrt(len(values))
    wanted = expected(BATCH * factor, 1.0) + rest
    assert abs(values.mean() - wanted) < 4 * error + 0.01 * wanted


def test_without_noise_no_batch_is_too_large_by_noise():
  """At a rate so low that fewer, longer updates lose nothing either."""
  probe = Probe(1e-6, places=1, repeats=2)
  found = differences(
    {BATCH * k: probe.losses(0, k, rate=0.02 * k) for k in FACTORS}, BATCH
  )
  one = critical(found, BATCH, epsilon=0.01)
  assert one.batch_size is None
  assert one.low == one.tried == BATCH * FACTORS[-1]


def test_with_huge_noise_all_are_fine():
  """What an example adds is the same at all sizes, and nothing else counts."""
  probe = Probe(30.0, places=1, repeats=8)
  found = differences(
    {BATCH * k: probe.losses(0, k, rate=0.02 * k) for k in FACTORS}, BATCH
  )
  wide = max(d.half_width() for d in found)
  one = critical(found, BATCH, epsilon=2 * wide)
  assert one.batch_size is None
