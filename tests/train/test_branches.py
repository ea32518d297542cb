"""Branches: the run going on, and the same examples with other batch sizes."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch import data
from adabatch.config import ConfigError
from adabatch.controllers import buckets
from adabatch.controllers.buckets import Plan, bucket_for
from adabatch.train.branches import (
  Branch,
  Branches,
  Point,
  calls_of,
  constant_ladder,
  noise_exponent,
  point_of,
)
from adabatch.train.build import build
from adabatch.train.loop import loop
from adabatch.train.open_splits import TextCache
from tests.experiments import digits
from tests.tfds_sets import small_text

pytestmark = pytest.mark.usefixtures('compile_quickly')

SIZE, EVERY = 16, 6
CONSTANT = {
  'controller.name': 'constant',
  'controller.initial_batch_size': SIZE,
  'checkpoint.every_updates': EVERY,
  'max_updates': 3 * EVERY,
  'eval.every_epochs': 100.0,
  'log.every_updates': 100,
}


class Kept(NamedTuple):
  state: object
  host: dict


def trained(config, devices=1, cache=None):
  """A run's parts, and its states by their updates."""
  parts, kept = build(config, jax.devices()[:devices], cache=cache), {}

  def save(update, state, host):
    state = jax.tree.map(jnp.copy, state)
    kept[update] = Kept(state, json.loads(json.dumps(host)))

  for kind, record in loop(parts, save=save):
    if kind == 'eval':
      kept['loss'] = record['loss']  # of the last
  return parts, kept


def branches_of(parts, *, memory=True, **how):
  exponent = noise_exponent(parts.config)
  return Branches(parts, SIZE, memory=memory, exponent=exponent, **how)


def differ(a, b):
  """The largest difference of two trees, by the largest entry of each leaf."""
  scale = jax.tree.map(lambda x: float(np.abs(x).max()) or 1.0, b)
  found = jax.tree.map(
    lambda x, y, s: float(np.abs(np.asarray(x) - np.asarray(y)).max()) / s,
    a,
    b,
    scale,
  )
  return max(jax.tree.leaves(found))


DECAYING = {
  'learning_rate.decay.name': 'cosine',
  'learning_rate.warmup.kind': 'gradual',
  'learning_rate.warmup.start': 0.1,
  'learning_rate.warmup.epochs': 0.15,
}
ADAMW = {
  'optimizer.name': 'adamw',
  'optimizer.weight_decay': 0.1,
  'learning_rate.base': 0.003,
}
RUNS = {
  'momentum, linear, decay, warmup': DECAYING
  | {'learning_rate.scaling': 'linear', 'updates_per_call': 4},
  'momentum, augmented, skipping': {
    'data.crop_padding': 1,
    'data.mixup': 0.2,
    'on_nonfinite': 'skip',
    'optimizer.weight_decay': 0.01,
    'optimizer.clip_norm': 1.0,
  },
  'adamw, sqrt': ADAMW | DECAYING | {'learning_rate.scaling': 'sqrt'},
  'adamw in examples': ADAMW
  | {
    'optimizer.beta2_in_examples': True,
    'optimizer.weight_decay_scaling': 'sqrt',
    'ema.half_life': 64.0,
  },
  'sgd, adascale held': {
    'optimizer.name': 'sgd',
    'learning_rate.scaling': 'adascale',
    'learning_rate.reference_batch_size': SIZE,
  },
  'batch norm': {
    'model.name': 'strided_cnn',
    'model.strided_cnn.channels': (4, 4),
    'model.strided_cnn.hidden_size': 8,
    'model.strided_cnn.batch_norm_group': 8,
  },
}


# Of 8 devices; a smaller batch may use fewer of them.
ON_MANY = {
  'few of 8 devices': (8, {'buckets.min_per_device': 4}),
  'streamed to 8 devices': (
    8,
    {
      'data.placement': 'streaming',
      'data.workers': 0,
      'updates_per_call': 5,
      'buckets.max_per_device': 1,
      'model.mlp.hidden_sizes': (8,),
    },
  ),
  'pmap': (2, {'parallel.backend': 'pmap', 'ema.half_life': 50.0}),
}
RUNS_ON = {name: (1, keys) for name, keys in RUNS.items()} | ON_MANY


@pytest.mark.parametrize('name', RUNS_ON)
def test_a_branch_of_the_same_size_is_the_run_going_on(name):
  devices, keys = RUNS_ON[name]
  parts, kept = trained(digits(**CONSTANT | keys), devices)
  before, after = kept[EVERY], kept[3 * EVERY]
  # In float32 optax's 1 - beta2^n is off by 1e-5 of itself at first.
  tolerance = 1e-5 if 'adam' in name else 1e-6
  point = point_of(parts, before.host)
  branches = branches_of(parts)
  assert point.plan.batch_size == SIZE
  first = jax.tree.map(np.asarray, before.state)
  for _ in range(2):  # and again, from the same state
    way = Branch(SIZE, 1.0)
    state = branches.train(before.state, point, way, 2 * EVERY * SIZE)
    for part in ('params', 'model_state', 'averaged_state'):
      ours, theirs = (getattr(s, part) for s in (state, after.state))
      if jax.tree.leaves(theirs):
        assert differ(ours, theirs) < tolerance, part
  # It has better statistics, and is evaluated without averages.
  if name != 'batch norm' and 'ema.half_life' not in keys:
    np.testing.assert_allclose(branches.evaluate().mean, kept['loss'], 1e-5)
  same = jax.tree.map(np.array_equal, first, before.state)
  assert all(jax.tree.leaves(same))
  assert differ(first.params, after.state.params) > 1e-3  # it did move
  branches.close()


def test_of_text_with_dropout(tmp_path):
  """Its tokens are there: nobody makes them anew."""
  keys = small_text(tmp_path) | {
    'model.name': 'transformer',
    'model.transformer.num_layers': 1,
    'model.transformer.model_dim': 8,
    'model.transformer.num_heads': 2,
    'model.transformer.hidden_dim': 8,
    'model.transformer.dropout_rate': 0.3,
  }
  cache = TextCache(lambda writer: tmp_path, True)
  parts, kept = trained(digits(**CONSTANT | keys), cache=cache)
  point = point_of(parts, kept[EVERY].host)
  branches = branches_of(parts)
  way = Branch(SIZE, 1.0)
  state = branches.train(kept[EVERY].state, point, way, EVERY * SIZE)
  assert differ(state.params, kept[2 * EVERY].state.params) < 1e-6
  losses = branches.evaluate()
  assert (losses.weights < 1).any()  # a row that is partly filled
  branches.close()


# The rule, against optimizers that are written down.


def gradients_of(parts):
  """(params, first place, batch size) -> the mean gradient of those."""
  recipe, order = (
    parts.recipe,
    data.Order(parts.extent.epoch, parts.recipe.seed),
  )
  inputs = recipe.inputs

  @jax.jit
  def gradient(params, batch):
    def loss(params):
      x = recipe.task.inputs(batch)
      outputs = recipe.model.apply({'params': params}, x, train=False)
      return recipe.task.loss(outputs, batch).mean()

    return jax.grad(loss)(params)

  def at(params, start, size):
    chosen = jnp.asarray(data.take(order, start, start + size))
    batch = inputs.load(inputs.train.arrays, chosen, None)
    return jax.tree.map(np.asarray, gradient(params, batch))

  return at


def adam_of(opt_state):
  found = [
    node
    for node in jax.tree.leaves(opt_state, is_leaf=lambda n: hasattr(n, 'nu'))
    if hasattr(node, 'nu')
  ]
  return found[0]


def sizes_of(examples, size):
  whole, rest = divmod(examples, size)
  return [size] * whole + [rest] * bool(rest)


def adamw(parts, state, point, sizes, rates, *, remembers, reference=SIZE):
  """With a memory of updates, or as many examples as B_ref each."""
  o, gradient = parts.config.optimizer, gradients_of(parts)
  node = adam_of(state.opt_state)
  params, mu, nu = jax.tree.map(np.float64, (state.params, node.mu, node.nu))
  powers = float(node.count) * (SIZE / reference)
  weight, count = o.beta2**powers, int(node.count)
  start = point.examples
  for size, rate in zip(sizes, rates, strict=True):
    k = size / reference
    beta2 = o.beta2**k if remembers else o.beta2
    decay = o.weight_decay * (k**0.5 if remembers else 1.0)
    g = gradient(jax.tree.map(np.float32, params), start, size)
    count, weight = count + 1, weight * beta2
    mu = jax.tree.map(lambda m, g: o.beta1 * m + (1 - o.beta1) * g, mu, g)
    nu = jax.tree.map(lambda v, g, b=beta2: b * v + (1 - b) * g**2, nu, g)

    def new(p, m, v, rate=rate, decay=decay, count=count, weight=weight):
      m, v = m / (1 - o.beta1**count), v / (1 - weight)
      matrix = p.ndim > 1  # no biases
      return p - rate * (m / (np.sqrt(v) + o.epsilon) + matrix * decay * p)

    params = jax.tree.map(new, params, mu, nu)
    start += size
  return params


LITTLE = {'model.mlp.hidden_sizes': (8,)}


@pytest.mark.parametrize('factor', [0.25, 16])
@pytest.mark.parametrize('memory', [True, False])
def test_adamw_remembers_as_many_examples(adamw_run, factor, memory):
  """Also a last batch that is cut; at 16 times beta2 is 0.85."""
  parts, kept = adamw_run
  saved = kept[EVERY]
  point = point_of(parts, saved.host)
  size = round(factor * SIZE)
  examples = min(3 * size + 2, 1200)
  branches = branches_of(parts, memory=memory)
  rate = factor**0.5 if memory else 1.0
  state = branches.train(saved.state, point, Branch(size, rate), examples)
  branches.close()
  sizes = sizes_of(examples, size)
  base = rate * parts.config.learning_rate.base
  rates = [base * (n / size) ** 0.5 for n in sizes]
  given = parts, saved.state, point, sizes, rates
  assert differ(state.params, adamw(*given, remembers=memory)) < 2e-5
  assert differ(state.params, adamw(*given, remembers=not memory)) > 1e-4


@pytest.fixture(scope='module')
def adamw_run(compile_quickly):
  keys = ADAMW | LITTLE | {'optimizer.beta2': 0.99, 'max_updates': EVERY}
  return trained(digits(**CONSTANT | keys))


def test_what_follows_the_batch_size_already_is_not_scaled_twice():
  """The run's own rules hold: beta2, decay; a rate of AdamW's is sqrt(k)."""
  keys = ADAMW | LITTLE | {'max_updates': EVERY}
  keys |= {
    'optimizer.beta2_in_examples': True,
    'optimizer.weight_decay_scaling': 'sqrt',
    'learning_rate.reference_batch_size': 4,
  }
  parts, kept = trained(digits(**CONSTANT | keys))
  point = point_of(parts, kept[EVERY].host)
  branches = branches_of(parts)
  way = Branch(2 * SIZE, 2**0.5)
  state = branches.train(kept[EVERY].state, point, way, 8 * SIZE)
  branches.close()
  rates = [2**0.5 * parts.config.learning_rate.base] * 4
  given = parts, kept[EVERY].state, point, [2 * SIZE] * 4, rates
  expected = adamw(*given, remembers=True, reference=4)
  assert differ(state.params, expected) < 2e-5


def test_sgd_takes_k_times_the_rate():
  """Whatever the scaling of the run: that would have been sqrt(k)."""
  keys = LITTLE | {
    'optimizer.name': 'sgd',
    'learning_rate.scaling': 'sqrt',
    'learning_rate.reference_batch_size': SIZE,
    'max_updates': EVERY,
  }
  parts, kept = trained(digits(**CONSTANT | keys))
  point, before = point_of(parts, kept[EVERY].host), kept[EVERY].state
  branches, gradient = branches_of(parts), gradients_of(parts)
  state = branches.train(before, point, Branch(4 * SIZE, 4.0), 9 * SIZE)
  branches.close()
  params, start = before.params, point.examples
  for size in (4 * SIZE, 4 * SIZE, SIZE):
    rate = parts.config.learning_rate.base * size / SIZE
    g = gradient(params, start, size)
    params = jax.tree.map(lambda p, g, r=rate: p - r * g, params, g)
    start += size
  assert differ(state.params, params) < 1e-5


def test_exponents_of_the_noise():
  def of(name, **keys):
    keys = {f'learning_rate.{k}': v for k, v in keys.items()}
    return noise_exponent(digits(**{'optimizer.name': name} | keys))

  assert of('momentum', scaling='linear') == 1.0
  assert of('adamw', scaling='linear', damping_exponent=0.3) == 0.5
  assert of('optax.lion', damping_exponent=0.5) == 0.5
  # The key is what the scaling leaves to be damped.
  assert of('optax.lion', damping_exponent=0.0, scaling='sqrt') == 0.5
  with pytest.raises(ConfigError, match='set learning_rate.damping_exponent'):
    of('optax.lion')


# Calls.

RUN = buckets.ladder(16, 64, devices=2, max_per_device=8)
POINT = Point(7, 112, 5, buckets.plan(16.0, RUN), 0.5)


def calls(branch, examples, **how):
  ladder = constant_ladder(RUN, branch.batch_size)
  return list(calls_of(POINT, branch, examples, ladder, **how))


def positions(calls):
  return [
    place
    for call in calls
    for place in range(
      call.examples + call.left_out,
      call.examples + call.left_out + call.count * call.plan.batch_size,
    )
  ]


@pytest.mark.parametrize('size', [1, 4, 10, 16, 64, 100])
@pytest.mark.parametrize('how', [{}, {'room': 3}, {'room': 9, 'warmup': 2}])
def test_branches_see_the_same_examples(size, how):
  """Each once, in order, after those that the run jumped over."""
  made = calls(Branch(size, 1.5), 100, **how)
  assert positions(made) == list(range(117, 217))
  assert [call.update for call in made] == list(
    np.cumsum([7] + [call.count for call in made])[:-1]
  )
  assert {call.rate for call in made} == {0.5}  # since the run went back
  assert max(call.count for call in made) <= how.get('room', 1)


def test_repeats_see_others_at_the_same_rate():
  first, second = (
    calls(Branch(16, 1.0, offset), 96, room=4) for offset in (0, 96)
  )
  assert positions(second) == list(range(213, 309))
  # All schedules count what was trained on.
  assert [call.examples for call in first] == [c.examples for c in second]


def test_a_last_batch_is_cut_and_stands_for_a_whole_one():
  *_, last = calls(Branch(64, 2.0), 144, exponent=0.5, room=8)
  assert last.plan == Plan(
    64.0, 16, 2.0 * 0.5, bucket_for(64, constant_ladder(RUN, 64))
  )


def test_a_higher_rate_is_come_to():
  def rates(rate, examples=16 * 4):
    made = calls(Branch(16, rate), examples, room=8, warmup=3)
    return [call.plan.damping for call in made for _ in range(call.count)]

  np.testing.assert_allclose(rates(3.0), [1.5, 2.0, 2.5, 3.0])
  np.testing.assert_allclose(rates(0.5), [0.5] * 4)
  # One that is cut meanwhile is damped as well.
  np.testing.assert_allclose(rates(3.0, 24), [1.5, 2.0 * 0.5])


def test_a_branch_is_run_as_the_run_would():
  noisy = buckets.ladder(32, 128, devices=1, min_microbatches=2)
  assert bucket_for(64, constant_ladder(noisy, 64)) == bucket_for(64, noisy)
  groups = noisy._replace(group_size=32)
  # Two groups are too few to tell noise from, which nobody asks of a branch.
  assert bucket_for(8, constant_ladder(groups, 8)).slots == 8
  few = RUN._replace(group_size=32)
  with pytest.raises(ConfigError, match='probe.factors: a batch of 100'):
    constant_ladder(few, 100)


def test_after_the_run_went_back():
  """The branch begins at the right data, and the run's rate is lowered."""
  parts, kept = trained(digits(**CONSTANT | LITTLE | {'max_updates': EVERY}))
  host = kept[EVERY].host
  host['progress'] |= {'left_out': 40, 'rate': 0.25}
  point = point_of(parts, host)
  branches, gradient = branches_of(parts), gradients_of(parts)
  before = kept[EVERY].state
  state = branches.train(before, point, Branch(SIZE, 1.0), SIZE)
  branches.close()
  (trace,) = (
    node.trace
    for node in jax.tree.leaves(
      before.opt_state, is_leaf=lambda n: hasattr(n, 'trace')
    )
    if isinstance(node, optax.TraceState)
  )
  g = gradient(before.params, EVERY * SIZE + 40, SIZE)
  base, momentum = 0.02 * 0.25, parts.config.optimizer.momentum
  expected = jax.tree.map(
    lambda p, g, v: p - base * (momentum * v + g), before.params, g, trace
  )
  assert differ(state.params, expected) < 1e-6
  wrong = gradient(before.params, EVERY * SIZE, SIZE)
  assert differ(g, wrong) > 1e-2


def test_a_stop_is_heard_between_calls():
  parts, kept = trained(digits(**CONSTANT | LITTLE | {'max_updates': EVERY}))
  point, told = point_of(parts, kept[EVERY].host), []
  branches = branches_of(parts)
  given = kept[EVERY].state, point, Branch(8, 1.0), 64
  assert (
    branches.train(*given, stop=lambda: len(told) > 2, told=told.append) is None
  )
  assert told == [8] * 3
  assert branches.train(*given) is not None  # and again
  branches.close()


def test_streamed_branches_begin_where_others_do():
  """After what was jumped over, and in another stretch."""
  found, way = [], Branch(8, 1.0, 24)
  for keys in ({}, {'data.placement': 'streaming', 'data.workers': 0}):
    keys = CONSTANT | LITTLE | {'max_updates': EVERY} | keys
    parts, kept = trained(digits(**keys))
    host = kept[EVERY].host
    host['progress']['left_out'] = 40
    branches = branches_of(parts)
    point = point_of(parts, host)
    state = branches.train(kept[EVERY].state, point, way, 32)
    found.append(jax.tree.map(np.asarray, state.params))
    branches.close()
  assert differ(*found) < 1e-6


def test_looks_do_not_change_what_is_trained_and_their_mean_counts():
  parts, kept = trained(digits(**CONSTANT))
  start, branches = kept[EVERY], branches_of(parts)
  point, branch = point_of(parts, start.host), Branch(SIZE, 1.0)
  examples = 8 * SIZE

  def ends(length):
    assert branches.train(start.state, point, branch, length) is not None
    return branches.evaluate().losses

  several = branches.grow(
    start.state, point, branch, examples, looks=[4 * SIZE, 6 * SIZE + 3]
  )
  state = jax.tree.map(np.asarray, branches._trainer.state.params)
  alone = branches.grow(start.state, point, branch, examples)
  assert differ(state, branches._trainer.state.params) == 0
  expected = np.mean([ends(n * SIZE) for n in (4, 6, 8)], 0)
  np.testing.assert_allclose(several.losses, expected, 1e-5)
  assert np.abs(several.losses - alone.losses).max() > 0.01
  branches.close()


@pytest.mark.parametrize('size', [4, 16, 64])
def test_calls_end_where_branches_are_looked_at(size):
  looks = [128, 192]
  made = calls(Branch(size, 1.0), 256, room=100, looks=looks)
  ends = {c.examples + c.count * c.plan.batch_size - 112 for c in made}
  assert ends >= {*looks, 256}, ends
