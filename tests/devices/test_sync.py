"""Replicas that agree now and then, and slow twins of the published methods."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.flatten_util import ravel_pytree

from adabatch import data
from adabatch.devices import replicas as replicas_lib
from adabatch.devices.state import TrainState
from adabatch.optim import sync
from adabatch.train import train
from adabatch.train.build import build
from tests.experiments import column, digits
from tests.train.test_resume import same_results, stopped

# The learning rate drops within a period of four updates of 32 examples, and
# the last of them ends within one as well.
UPDATES, BATCH_SIZE, LOCAL_STEPS, DROP = 23, 32, 4, 403
MOMENTUM, WEIGHT_DECAY, FACTOR = 0.9, 0.01, 0.5


pytestmark = pytest.mark.usefixtures('compile_quickly')


# The slow twins. A method is written as it was published, and maps at a sync
#   (replicas w before and w' after the update, anchor z, its memory m, rate)
# to (replicas, anchor, memory).


def averages(w, new, z, m, rate, alpha=None):
  mean = np.mean(new, 0)
  return [mean] * len(new), mean, m


def slowmo(w, new, z, m, rate, momentum, learning_rate):
  m = momentum * m + (z - np.mean(new, 0)) / rate
  z = z - learning_rate * rate * m
  return [z] * len(new), z, m


def diloco(w, new, z, m, rate, momentum, learning_rate):
  """The outer optimizer is PyTorch's SGD with nesterov=True."""
  gradient = z - np.mean(new, 0)
  m = momentum * m + gradient
  z = z - learning_rate * (gradient + momentum * m)
  return [z] * len(new), z, m


def easgd(w, new, z, m, rate, rho):
  alpha = rho / len(w)
  pulled = [n - alpha * (x - z) for x, n in zip(w, new, strict=True)]
  return pulled, (1 - rho) * z + rho * np.mean(w, 0), m


def sma(w, new, z, m, rate, rho, momentum):
  """The memory is the anchor before."""
  c = [rho / len(w) * (x - z) for x in w]
  corrected = [n - c_j for n, c_j in zip(new, c, strict=True)]
  return corrected, z + sum(c) + momentum * (z - m), z


# With the parameters that they are tried with.
METHODS = {
  'local_sgd': (averages, {}),
  'post_local_sgd': (averages, {}),
  'qsr': (averages, {'alpha': 0.06}),
  'slowmo': (slowmo, {'momentum': 0.6, 'learning_rate': 0.9}),
  'diloco': (diloco, {'momentum': 0.8, 'learning_rate': 0.6}),
  'easgd': (easgd, {'rho': 0.9}),
  'sma': (sma, {'rho': 0.8, 'momentum': 0.7}),
}
NAMES = sorted(METHODS)


def test_every_rule_is_here():
  assert METHODS.keys() == sync.SYNC_RULES.keys()


def period_by_hand(name, local_steps, examples, rate):
  if name == 'post_local_sgd' and examples < DROP:
    return 1
  if name == 'qsr':
    return max(local_steps, math.floor((0.06 / rate) ** 2))
  return local_steps


class Trained(NamedTuple):
  """What is compared: the end of a run, and the losses of its updates."""

  anchor: Any
  replicas: Any
  momenta: Any
  losses: Any
  syncs: list[int]


def by_hand(
  name,
  z,
  gradient,
  sizes,
  rates,
  *,
  replicas=4,
  local_steps=LOCAL_STEPS,
  drop=DROP,
  weight_decay=WEIGHT_DECAY,
  average_momentum=False,
):
  """Trains with Nesterov's momentum, one replica after the other.

  `gradient` maps (positions in the data order, parameters) to a loss and its
  gradient; `sizes` and `rates` are those of the updates.
  """
  meet, parameters = METHODS[name]
  w, v = [z] * replicas, [0 * z] * replicas
  m = z if name == 'sma' else 0 * z
  examples, left, dropped, losses, syncs = 0, 0, False, [], []
  for update, (size, rate) in enumerate(zip(sizes, rates, strict=True), 1):
    if not left:
      left = period_by_hand(name, local_steps, examples, rate)
    if name == 'sma' and examples >= drop and not dropped:
      w, m, dropped = [z] * replicas, z, True
    new, loss = [], 0.0
    for k in range(replicas):
      positions = [
        p for p in range(examples, examples + size) if p % replicas == k
      ]
      l_k, g = gradient(positions, w[k])
      g = g + weight_decay * w[k]
      v[k] = MOMENTUM * v[k] + g
      new.append(w[k] - rate * (g + MOMENTUM * v[k]))
      loss += l_k / replicas
    left -= 1
    # Before learners restart they agree.
    drops = name == 'sma' and not dropped and examples + size >= drop
    if left == 0 or drops or update == len(sizes):
      left = 0
      w, z, m = meet(w, new, z, m, rate, **parameters)
      if average_momentum:
        v = [np.mean(v, 0)] * replicas
      syncs.append(update)
    else:
      w = new
    losses.append(loss)
    examples += size
  return Trained(z, np.array(w), np.array(v), np.array(losses), syncs)


def close(actual, expected, tolerance=1e-5):
  """Relative to the largest entry."""
  scale = np.abs(expected).max()
  np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


# Rules on bare arrays.


def make_rule(name, replicas=4, rate=lambda examples, batch_size: 0.05):
  more = {
    'post_local_sgd': {'switch': DROP},
    'qsr': {'learning_rate': rate},
    'easgd': {'replicas': replicas},
    'sma': {'replicas': replicas},
  }.get(name, {})
  return sync.SYNC_RULES[name](LOCAL_STEPS, **METHODS[name][1], **more)


def rate_after(examples):
  return 0.05 * (FACTOR if examples >= DROP else 1)


@pytest.fixture(scope='module')
def regression():
  """Logistic: inputs [examples, 5] that are multiplied by their label."""
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(UPDATES * BATCH_SIZE, 5)) * [3, 1, 1, 1, 0.3]
  return rows + [0.5, 0.5, 0, 0, 0]


def by_rule(name, z, rows, average_momentum):
  """The same training, by way of the rule and optax."""
  rule = make_rule(name, rate=lambda examples, _: rate_after(examples))
  schedule = optax.piecewise_constant_schedule(
    0.05, {-(-DROP // BATCH_SIZE): FACTOR}
  )
  tx = optax.chain(
    optax.add_decayed_weights(WEIGHT_DECAY),
    optax.sgd(schedule, momentum=MOMENTUM, nesterov=True),
  )

  def loss(params, rows):
    return jnp.mean(jax.nn.softplus(-rows @ params['w']))

  def update_one(state, rows):
    value, gradient = jax.value_and_grad(loss)(state.params, rows)
    updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(params=params, opt_state=opt_state), value

  @jax.jit
  def update(state, rows):
    replicas, losses = jax.vmap(update_one)(state.replicas, rows)
    return state._replace(replicas=replicas), losses.mean()

  @jax.jit
  def agree(state, before, rate):
    rates = jnp.full(4, rate, jnp.float32)
    return replicas_lib.agree(
      rule,
      state,
      before,
      learning_rate=rates,
      average_momentum=average_momentum,
    )[0]

  params = {'w': jnp.asarray(z, jnp.float32)}
  state = replicas_lib.create(TrainState(params, {}, tx.init(params)), rule, 4)
  left, losses = 0, []
  for i in range(UPDATES):
    examples = i * BATCH_SIZE
    if not left:
      left = rule.period(examples, BATCH_SIZE, 1.0)
    if rule.restarts and examples - BATCH_SIZE < DROP <= examples:
      state = replicas_lib.restart(rule, state)
    before = state.replicas.params
    batch = rows[examples : examples + BATCH_SIZE].reshape(-1, 4, rows.shape[1])
    state, value = update(state, jnp.asarray(batch.swapaxes(0, 1), jnp.float32))
    left -= 1
    drops = rule.restarts and examples < DROP <= examples + BATCH_SIZE
    if left == 0 or drops or i == UPDATES - 1:
      left = 0
      state = agree(state, before, rate_after(examples))
    losses.append(float(value))
  momenta = optax.tree_utils.tree_get(state.replicas.opt_state, 'trace')
  replicas = state.replicas.params
  return Trained(state.params['w'], replicas['w'], momenta['w'], losses, [])


@pytest.mark.parametrize('average_momentum', [False, True])
@pytest.mark.parametrize('name', NAMES)
def test_a_rule_is_the_published_method(name, average_momentum, regression):
  def gradient(positions, w):
    rows = regression[positions]
    margins = rows @ w
    losses = np.log1p(np.exp(-margins))
    return losses.mean(), -(rows.T / (1 + np.exp(margins))).mean(1)

  z = np.linspace(-1, 1, 5)
  expected = by_hand(
    name,
    z,
    gradient,
    [BATCH_SIZE] * UPDATES,
    [rate_after(i * BATCH_SIZE) for i in range(UPDATES)],
    average_momentum=average_momentum,
  )
  actual = by_rule(name, z, regression, average_momentum)
  for a, b in zip(actual[:4], expected[:4], strict=True):
    close(a, b)
  assert np.ptp(expected.losses) > 0.1, 'nothing was learnt'
  if name == 'qsr':
    assert expected.syncs == [4, 8, 12, 16, 21, 23]


def random_state(rule, replicas=4, seed=0):
  """After an update: everything differs; with what was before it."""
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  anchor = {'a': draw(3), 'b': draw(2, 2)}
  plain = TrainState(
    anchor, {'mean': draw(2)}, {'momentum': anchor, 'count': jnp.int32(7)}
  )
  state = replicas_lib.create(plain, rule, replicas)
  moved, before = (
    jax.tree.map(
      lambda x: x + draw(*x.shape) if x.dtype == jnp.float32 else x,
      state.replicas,
    )
    for _ in range(2)
  )
  outer = jax.tree.map(lambda x: x + draw(*x.shape), state.outer_state)
  return state._replace(replicas=moved, outer_state=outer), before.params


def agreed(rule, state, before, average_momentum=False):
  rates = jnp.full(jax.tree.leaves(before)[0].shape[0], 0.05)
  return replicas_lib.agree(
    rule,
    state,
    before,
    learning_rate=rates,
    average_momentum=average_momentum,
  )


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def nearly_same(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-5, 1e-6), a, b)


def mean(tree):
  return jax.tree.map(lambda x: np.mean(np.asarray(x, np.float64), 0), tree)


@pytest.mark.parametrize('name', NAMES)
def test_a_sync(name):
  rule = make_rule(name)
  state, before = random_state(rule)
  after, distances = agreed(rule, state, before)
  replicas = after.replicas
  # The statistics of the anchor are the mean of what there was, those of the
  # replicas are theirs unless they start anew from the anchor.
  nearly_same(after.model_state, mean(state.replicas.model_state))
  if rule.pull == 1:
    for k in range(4):
      same(jax.tree.map(lambda x, k=k: x[k], replicas.params), after.params)
    nearly_same(mean(replicas.model_state), after.model_state)
    assert np.ptp(replicas.model_state['mean'], 0).max() == 0
  else:
    same(replicas.model_state, state.replicas.model_state)
  seen = before if rule.observe == 'before' else state.replicas.params
  d = jax.vmap(lambda x: ravel_pytree(x)[0])(seen)
  d = np.asarray(d - ravel_pytree(state.params)[0], np.float64)
  np.testing.assert_allclose(
    distances, [(d**2).sum(1).mean(), (d.mean(0) ** 2).sum()], rtol=1e-5
  )
  # Momenta stay where they are, or become the mean; integers stay.
  same(replicas.opt_state, state.replicas.opt_state)
  momenta = agreed(rule, state, before, average_momentum=True)[0]
  averaged = momenta.replicas.opt_state
  same(averaged['count'], state.replicas.opt_state['count'])
  expected = mean(state.replicas.opt_state['momentum'])
  for k in range(4):
    nearly_same(
      jax.tree.map(lambda x, k=k: x[k], averaged['momentum']), expected
    )
  same(momenta.replicas.params, replicas.params)


@pytest.mark.parametrize('name', NAMES)
def test_replicas_have_no_order(name):
  rule = make_rule(name)
  state, before = random_state(rule)
  shuffled = jnp.array([2, 0, 3, 1])

  def permuted(tree):
    return jax.tree.map(lambda x: x[shuffled], tree)

  after, distances = agreed(rule, state, before, average_momentum=True)
  other, others = agreed(
    rule,
    state._replace(replicas=permuted(state.replicas)),
    permuted(before),
    average_momentum=True,
  )
  nearly_same(other, after._replace(replicas=permuted(after.replicas)))
  nearly_same(distances, others)


def test_elastic_force_moves_no_mass():
  rule = make_rule('easgd')
  state, _ = random_state(rule)
  after, _ = agreed(rule, state, state.replicas.params)

  def total(state):
    return jax.tree.map(
      lambda z, x: np.asarray(z, np.float64) + np.asarray(x, np.float64).sum(0),
      state.params,
      state.replicas.params,
    )

  nearly_same(total(after), total(state))
  assert not np.allclose(after.params['a'], state.params['a'])


CASES = [('sma', k, mu) for k, mu in ((1, 0.9), (2, 0.5), (16, 0.9), (64, 0.0))]
CASES += [('easgd', 1, 0.0), ('easgd', 16, 0.0)]


@pytest.mark.parametrize(('name', 'replicas', 'momentum'), CASES)
def test_the_bound_of_stability(name, replicas, momentum):
  """Without gradients; the twin shows that beyond the bound nothing holds."""
  bound = sync.largest_stable_rho(replicas, momentum)
  parameters = {'replicas': replicas}
  if name == 'sma':
    parameters['momentum'] = momentum
  for rho in (1.001 * bound, bound, 0.0, -1.0):
    with pytest.raises(ValueError) as error:
      sync.SYNC_RULES[name](1, rho, **parameters)
    assert f'{bound:.6g}' in str(error.value)
    assert '\n' not in str(error.value)

  steps = 8000
  start = np.random.default_rng(0).normal(1.0, 1.0, replicas)
  x, z, z_before = start, 0.0, 0.0
  for _ in range(steps):
    c = 1.001 * bound / replicas * (x - z)
    x, z, z_before = x - c, z + c.sum() + momentum * (z - z_before), z
  assert np.abs(x - z).max() > 10 * np.abs(start).max()

  rule = sync.SYNC_RULES[name](1, 0.999 * bound, **parameters)
  params = {'w': jnp.zeros(1)}
  state = replicas_lib.create(TrainState(params, {}, ()), rule, replicas)
  x = jnp.asarray(start[:, None], jnp.float32)
  state = state._replace(replicas=TrainState({'w': x}, {}, ()))

  def sync_once(i, state):
    return agreed(rule, state, state.replicas.params)[0]

  state = jax.jit(lambda s: jax.lax.fori_loop(0, steps, sync_once, s))(state)
  apart = np.abs(state.replicas.params['w'] - state.params['w']).max()
  assert apart < 1e-4 * np.abs(start).max()


def test_more_and_fewer_replicas():
  rule = make_rule('sma')
  state, _ = random_state(rule)
  old = state.replicas
  averaged = mean(old._replace(opt_state=old.opt_state['momentum']))
  assert replicas_lib.resize(state, 4) is state

  more = replicas_lib.resize(state, 6)
  same(jax.tree.map(lambda x: x[:4], more.replicas), old)
  fewer = replicas_lib.resize(state, 3)
  for resized, new, params, model_state in (
    (more, (4, 5), state.params, state.model_state),
    (fewer, (0, 1, 2), averaged.params, averaged.model_state),
  ):
    count = jax.tree.leaves(resized.replicas.params)[0].shape[0]
    for k in new:
      one = jax.tree.map(lambda x, k=k: x[k], resized.replicas)
      nearly_same(one.params, params)
      nearly_same(one.model_state, model_state)
      nearly_same(one.opt_state['momentum'], averaged.opt_state)
    counts = resized.replicas.opt_state['count']
    same(counts, jnp.full(count, 7, jnp.int32))
    assert counts.dtype == jnp.int32
    # What the anchor has goes on.
    same(resized._replace(replicas=None), state._replace(replicas=None))


@pytest.mark.parametrize('name', ['sma', 'diloco'])
def test_restart(name):
  rule = make_rule(name)
  state, _ = random_state(rule)
  fresh = replicas_lib.restart(rule, state)
  for k in range(4):
    one = jax.tree.map(lambda x, k=k: x[k], fresh.replicas)
    same((one.params, one.model_state), (state.params, state.model_state))
  same(fresh.replicas.opt_state, state.replicas.opt_state)
  same((fresh.params, fresh.model_state), (state.params, state.model_state))
  leaves = jax.tree.leaves(fresh.outer_state)
  assert leaves
  assert not any(np.any(x) for x in leaves)


# Whole runs.

BASE = {
  'max_updates': UPDATES,
  'epochs': 100.0,
  'controller.name': 'constant',
  'controller.initial_batch_size': BATCH_SIZE,
  'optimizer.name': 'nesterov',
  'optimizer.momentum': MOMENTUM,
  'optimizer.weight_decay': WEIGHT_DECAY,
  'learning_rate.base': 0.05,
  'learning_rate.decay.name': 'piecewise',
  'learning_rate.decay.boundaries': (0.28,),
  'learning_rate.decay.factor': FACTOR,
}


def experiment(name='local_sgd', replicas=4, **overrides):
  _, parameters = METHODS[name]
  return digits(
    **BASE
    | {
      'sync.name': name,
      'sync.replicas': replicas,
      'sync.local_steps': LOCAL_STEPS,
    }
    | {f'sync.{name}.{key}': value for key, value in parameters.items()}
    | overrides
  )


def run(workdir, config, devices=1):
  return train(config, workdir, devices=jax.devices()[:devices])


@functools.cache
def digits_by_hand():
  """Images and labels in the data order, and the parameters at first."""
  config = experiment()
  split = data.load('digits', 'train', None)
  mean, std = data.channel_statistics(split)
  order = data.take(
    data.Order(split.num_examples, config.seed), 0, UPDATES * 2 * BATCH_SIZE
  )
  images = (split.arrays['image'][order] / 255 - mean) / std
  model = build(config, jax.devices()[:1]).recipe.model
  variables = model.init(jax.random.key(config.seed), images[:1], train=False)
  leaves = jax.tree.leaves(variables['params'])
  assert [x.shape for x in leaves] == [(32,), (64, 32), (10,), (32, 10)]
  images = images.reshape(len(order), -1)
  return images, split.arrays['label'][order], split.num_examples, leaves


def run_by_hand(config, workdir):
  """The run with the batch sizes that it logged, without adabatch's steps."""
  images, labels, num_examples, leaves = digits_by_hand()
  cuts = np.cumsum([leaf.size for leaf in leaves])[:-1]

  def gradient(positions, parameters):
    x, y, n = images[positions], labels[positions], len(positions)
    b, w, b2, w2 = (
      part.reshape(leaf.shape)
      for part, leaf in zip(np.split(parameters, cuts), leaves, strict=True)
    )
    hidden = np.maximum(x @ w + b, 0)
    logits = hidden @ w2 + b2
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[range(n), y]).mean()
    p[range(n), y] -= 1
    p /= n
    back = p @ w2.T * (hidden > 0)
    parts = back.sum(0), x.T @ back, p.sum(0), hidden.T @ p
    return loss, np.concatenate([part.ravel() for part in parts])

  everywhere = config.optimizer.decay_norms_and_biases
  decayed = [np.full(x.size, everywhere or x.ndim > 1) for x in leaves]
  rate, drop = config.learning_rate, math.inf
  if rate.decay.name == 'piecewise':
    drop = rate.decay.boundaries[0] * num_examples
  sizes = column(workdir, 'batch_size')
  before = np.cumsum([0, *sizes[:-1]])
  return by_hand(
    config.sync.name,
    np.concatenate([np.asarray(x, float).ravel() for x in leaves]),
    gradient,
    sizes,
    rate.base
    * np.array(column(workdir, 'damping'))
    * np.where(before >= drop, FACTOR, 1.0),
    replicas=config.sync.replicas,
    local_steps=config.sync.local_steps,
    drop=drop,
    weight_decay=config.optimizer.weight_decay * np.concatenate(decayed),
    average_momentum=config.sync.average_momentum,
  )


def check_by_hand(config, workdir, tolerance=1e-5):
  """Losses of the updates, and z in the last checkpoint."""
  expected = run_by_hand(config, workdir)
  np.testing.assert_allclose(
    column(workdir, 'loss'), expected.losses, rtol=tolerance
  )
  manager = ocp.CheckpointManager(workdir / 'checkpoints')
  args = ocp.args.Composite(state=ocp.args.StandardRestore())
  state = manager.restore(manager.latest_step(), args=args)['state']
  manager.close()
  close(ravel_pytree(state['params'])[0], expected.anchor, tolerance)
  return expected, state


# Devices for four replicas, and what else the run has.
RUNS = {
  'local_sgd': (1, {'optimizer.decay_norms_and_biases': True}),
  'post_local_sgd': (4, {'sync.average_momentum': True}),
  'qsr': (4, {}),
  'slowmo': (8, {'sync.average_momentum': True}),
  'diloco': (2, {'optimizer.decay_norms_and_biases': True}),
  'easgd': (8, {'sync.average_momentum': True}),
  'sma': (2, {}),
}


@pytest.fixture(scope='module', params=NAMES)
def whole(request, tmp_path_factory):
  name = request.param
  devices, overrides = RUNS[name]
  config = experiment(name, **overrides)
  workdir = tmp_path_factory.mktemp(name)
  return config, devices, workdir, run(workdir, config, devices)


def test_a_run_is_the_published_method(whole):
  config, _, workdir, summary = whole
  expected, state = check_by_hand(config, workdir)
  assert summary['sync_count'] == len(expected.syncs)
  # The last update was a sync, in which replicas take over the anchor or not.
  params = state['replicas']['params']
  taken_over = jax.tree.map(
    lambda x, z: np.all(x == z), params, state['params']
  )
  assert all(jax.tree.leaves(taken_over)) == (
    make_rule(config.sync.name).pull == 1
  )


def test_a_run_stopped_within_a_period_goes_on(whole, tmp_path):
  config, devices, workdir, _ = whole
  # With one device another call is under way.
  first = stopped(config, tmp_path, devices, after=15 - 2 * (devices == 1))
  assert (first['status'], first['updates']) == ('preempted', 18)
  assert not {18, 19} & set(run_by_hand(config, workdir).syncs)
  assert run(tmp_path, config, devices)['status'] == 'completed'
  same_results(workdir, tmp_path)


@pytest.mark.parametrize(
  ('name', 'replicas', 'devices'),
  # What one device has to compile for many replicas takes the longest.
  [('sma', *shape) for shape in ((8, 1), (8, 2), (8, 4), (4, 6), (2, 8))]
  + [('local_sgd', *shape) for shape in ((8, 8), (4, 8), (2, 8), (1, 8))],
)
def test_replicas_and_devices(name, replicas, devices, tmp_path):
  """However many devices a replica has, or replicas a device."""
  more = {'sync.average_momentum': True}
  if devices > replicas:
    more |= {'buckets.max_per_device': 2}  # in several steps
  # As published; and there is one program to compile instead of two.
  more |= {'sync.local_steps': 1} if name == 'sma' else {}
  config = experiment(name, replicas, max_updates=14, **more)
  run(tmp_path, config, devices)
  check_by_hand(config, tmp_path)


def compare_with_one_model(tmp_path, **overrides):
  """Losses of local SGD on four devices and of one model on one."""
  config = experiment(**overrides)
  run(tmp_path / 'replicas', config, 4)
  config.sync.name = 'synchronous'
  run(tmp_path / 'one', config)
  losses = [column(tmp_path / name, 'loss') for name in ('replicas', 'one')]
  assert len(losses[0]) == UPDATES
  return np.array(losses)


@pytest.mark.parametrize('optimizer', ['nesterov', 'adam'])
def test_one_local_step_is_synchronous(optimizer, tmp_path):
  """Where the optimizer is linear; nor does the augmentation differ."""
  overrides = {'optimizer.name': optimizer, 'sync.local_steps': 1}
  if optimizer == 'nesterov':
    overrides |= {'data.crop_padding': 1, 'data.flip': True}
  if optimizer == 'adam':
    overrides |= {'learning_rate.base': 0.01}
  losses = compare_with_one_model(tmp_path, **overrides)
  np.testing.assert_allclose(*losses[:, :1], rtol=1e-5)
  if optimizer == 'adam':
    assert np.abs(losses[0] / losses[1] - 1).max() > 0.01
  else:
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.quick
def test_one_replica_is_synchronous(tmp_path):
  losses = compare_with_one_model(tmp_path, replicas=1)
  np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize(
  ('name', 'replicas', 'local_steps', 'way'),
  # Local calls of five updates; two replicas on each device, from a stream.
  [
    ('slowmo', 2, 6, {'updates_per_call': 10}),
    ('sma', 4, 1, {'data.placement': 'streaming', 'data.workers': 0}),
  ],
)
def test_a_growing_batch(name, replicas, local_steps, way, tmp_path):
  """Several updates in a call, and one after the other from a stream."""
  overrides = {
    'sync.local_steps': local_steps,
    'controller.name': 'adadamp',
    'controller.initial_batch_size': 16,
    'controller.max_batch_size': 32,
    'controller.every': 10,
    'learning_rate.decay.name': 'constant',
    'max_updates': 30,
  }
  config = experiment(name, replicas, **overrides | way)
  run(tmp_path, config, devices=2)
  check_by_hand(config, tmp_path, 1e-4)
  assert min(column(tmp_path, 'damping')) < 1
  assert set(column(tmp_path, 'batch_size')) == {16, 32}


@pytest.mark.parametrize(
  ('name', 'local_steps'), [('post_local_sgd', 3), ('qsr', 1), ('sma', 1)]
)
def test_the_rate_drops_within_a_call(name, local_steps, tmp_path):
  """Several updates in one call end where something else begins."""
  overrides = {'updates_per_call': 10, 'sync.local_steps': local_steps}
  config = experiment(name, replicas=2, **overrides)
  run(tmp_path, config)
  check_by_hand(config, tmp_path)
