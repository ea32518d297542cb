"""Clipping, averages, weight decay by batch size, and optimizers of optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch import optim

RATE = 0.05


def tree(rng):
  return {
    'Dense_0': {
      'kernel': jnp.asarray(rng.normal(size=(3, 2)), jnp.float32),
      'bias': jnp.asarray(rng.normal(size=2), jnp.float32),
    }
  }


def close(got, expected, rtol=2e-6):
  jax.tree.map(
    lambda g, e: np.testing.assert_allclose(g, e, rtol=rtol, atol=1e-6),
    got,
    expected,
  )


def rule():
  return optim.scale_by_batch_learning_rate(
    RATE, scaling=optim.linear_scaling(32)
  )


def walk(tx, seed=0):
  """(gradient, parameters, updates, batch size) of a few updates."""
  rng = np.random.default_rng(seed)
  params = tree(rng)
  state = tx.init(params)
  for batch_size in (32, 64, 16, 128, 96):
    gradient = tree(rng)
    updates, state = tx.update(
      gradient,
      state,
      params,
      batch_size=batch_size,
      damping=0.5,
      examples=0,
    )
    yield gradient, params, updates, batch_size
    params = optax.apply_updates(params, updates)


@pytest.mark.parametrize('clip', [0.1, 1.0, 2.5, 100.0])
def test_clipping_is_by_the_norm_of_all_and_before_the_optimizer(clip):
  tx = optim.make_optimizer('nesterov', RATE, clip_norm=clip)
  velocity = jax.tree.map(np.zeros_like, tree(np.random.default_rng(0)))
  for gradient, _, updates, _ in walk(tx):
    flat = np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradient)])
    factor = min(1.0, clip / np.linalg.norm(flat))
    gradient = jax.tree.map(lambda g, f=factor: f * np.asarray(g), gradient)
    velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
    expected = jax.tree.map(
      lambda v, g: -0.5 * RATE * (0.9 * v + g), velocity, gradient
    )
    close(updates, expected)


@pytest.mark.parametrize('half_life', [40.0, 1e6])
def test_an_average_of_the_parameters_against_its_sum(half_life):
  tx = optax.chain(
    optim.make_optimizer('sgd', RATE), optim.average_params(half_life)
  )
  rng = np.random.default_rng(0)
  params = tree(rng)
  state = tx.init(params)
  close(optim.averaged(state), params)
  seen, sizes = [], []
  for batch_size in (32, 64, 16, 128):
    updates, state = tx.update(
      tree(rng), state, params, batch_size=batch_size, damping=1.0, examples=0
    )
    params = optax.apply_updates(params, updates)
    seen.append(np.asarray(params['Dense_0']['kernel'], np.float64))
    sizes.append(batch_size)
    weights = [
      (1 - 2 ** (-size / half_life)) * 2 ** (-sum(sizes[i + 1 :]) / half_life)
      for i, size in enumerate(sizes)
    ]
    expected = np.average(seen, axis=0, weights=weights)
    got = optim.averaged(state)['Dense_0']['kernel']
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    weight = optax.tree_utils.tree_get(state, 'weight')
    np.testing.assert_allclose(weight, sum(weights), rtol=1e-5)


def test_an_average_does_not_tell_a_batch_from_its_halves():
  """Where the parameters stay: only examples count."""
  tx, p = optim.average_params(50.0), jnp.ones(1)
  weights = []
  for sizes in ((96,), (32, 64), (32, 32, 32)):
    state = tx.init(p)
    for size in sizes:
      _, state = tx.update(0 * p, state, p, batch_size=size)
    weights.append(float(state.weight))
  np.testing.assert_allclose(weights, 1 - 2 ** (-96 / 50), rtol=1e-6)


@pytest.mark.parametrize(
  ('name', 'scaling'),
  [('sgd', 'sqrt'), ('adamw', 'linear'), ('lars', 'linear')],
)
def test_weight_decay_follows_the_batch_size(name, scaling):
  """An update is that of an optimizer with the decay of its batch size."""
  factor = {'linear': lambda b: b / 32, 'sqrt': lambda b: (b / 32) ** 0.5}
  follow = {'linear': optim.linear_scaling, 'sqrt': optim.sqrt_scaling}
  tx = optim.make_optimizer(
    name,
    RATE,
    weight_decay=0.1,
    weight_decay_scaling=follow[scaling](32),
    trust_coefficient=1.0,
  )
  rng = np.random.default_rng(0)
  params = tree(rng)
  state = tx.init(params)
  for batch_size in (32, 128, 16):
    gradient = tree(rng)
    plain = optim.make_optimizer(
      name,
      RATE,
      weight_decay=0.1 * factor[scaling](batch_size),
      trust_coefficient=1.0,
    )
    # States are alike but for what has none.
    leaves, structure = jax.tree.leaves(state), jax.tree.structure
    same = jax.tree.unflatten(structure(plain.init(params)), leaves)
    extra = {'batch_size': batch_size, 'damping': 1.0, 'examples': 0}
    expected, _ = plain.update(gradient, same, params, **extra)
    updates, state = tx.update(gradient, state, params, **extra)
    close(updates, expected)
    params = optax.apply_updates(params, updates)


# Optimizers of optax.


def test_lion_of_optax_against_numpy():
  tx = optim.of_optax(
    optim.find_optimizer('optax.lion'),
    rule(),
    {'b1': 0.8, 'b2': 0.95},
    weight_decay=0.1,
    weight_decay_scaling=optim.sqrt_scaling(32),
  )
  moment = 0.0
  bias = 0.0
  for gradient, params, updates, batch_size in walk(tx):
    g, p = (np.asarray(x['Dense_0']['kernel']) for x in (gradient, params))
    rate, decay = RATE * batch_size / 32, 0.1 * (batch_size / 32) ** 0.5
    direction = np.sign(0.8 * moment + 0.2 * g) + decay * p
    moment = 0.95 * moment + 0.05 * g
    expected = -0.5 * rate * direction
    np.testing.assert_allclose(
      updates['Dense_0']['kernel'], expected, rtol=1e-5, atol=1e-7
    )
    # Weight decay leaves biases alone, as elsewhere.
    g = np.asarray(gradient['Dense_0']['bias'])
    expected = -0.5 * rate * np.sign(0.8 * bias + 0.2 * g)
    bias = 0.95 * bias + 0.05 * g
    np.testing.assert_allclose(
      updates['Dense_0']['bias'], expected, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize('name', ['momentum', 'adamw'])
def test_ours_by_their_names_in_optax(name):
  """With the rate before the velocity or after it, where it is constant."""
  theirs = {'momentum': ('optax.sgd', {'momentum': 0.9}),
            'adamw': ('optax.adamw', {})}[name]  # fmt: skip
  rate = optim.scale_by_batch_learning_rate(RATE)
  tx = optim.of_optax(
    optim.find_optimizer(theirs[0]), rate, theirs[1], weight_decay=0.1
  )
  ours = optim.make_optimizer(name, RATE, weight_decay=0.1)
  for (*_, got, _), (*_, expected, _) in zip(walk(tx), walk(ours), strict=True):
    close(got, expected)


def test_the_rate_acts_where_the_optimizer_has_it():
  """optax.lars has the velocity after the rate."""
  tx = optim.of_optax(
    optax.lars, rule(), {'trust_coefficient': 1.0, 'momentum': 0.5}
  )
  velocity = 0.0
  for gradient, params, updates, batch_size in walk(tx):
    g, p = (np.asarray(x['Dense_0']['kernel']) for x in (gradient, params))
    ratio = np.linalg.norm(p) / np.linalg.norm(g)
    velocity = 0.5 * velocity - RATE * batch_size / 32 * ratio * g
    np.testing.assert_allclose(
      updates['Dense_0']['kernel'], 0.5 * velocity, rtol=1e-5
    )


@pytest.mark.parametrize(
  ('call', 'words'),
  [
    (lambda: optim.find_optimizer('optax.lino'), 'no optimizer of optax'),
    (lambda: optim.find_optimizer('numpy.sum'), 'no optimizer of optax'),
    (lambda: optim.find_optimizer('optax.scale'), 'takes a learning_rate'),
    (
      lambda: optim.find_optimizer('optax.contrib.schedule_free_sgd'),
      'ema.half_life',
    ),
    (lambda: optim.of_optax(optax.lion, rule(), {'b3': 1}), 'takes no b3 here'),
    (
      lambda: optim.of_optax(optax.lion, rule(), {'learning_rate': 1}),
      'takes no learning_rate here, but b1, b2, mu_dtype',
    ),
  ],
)
def test_optimizers_that_are_refused(call, words):
  with pytest.raises(ValueError, match=words) as error:
    optim.check_trains(call())
  assert '\n' not in str(error.value)


def test_muon_takes_kernels_of_convolutions_as_matrices_and_no_embeddings():
  ones = {
    'Conv_0': {'kernel': jnp.ones((3, 3, 2, 4)), 'bias': jnp.ones(4)},
    'embedding': {'vectors': jnp.ones((5, 4))},
    'heads': {'kernel': jnp.ones((2, 3, 4))},
  }
  assert optim.matrices(ones) == {
    'Conv_0': {'kernel': True, 'bias': False},
    'embedding': {'vectors': False},
    'heads': {'kernel': False},
  }
  rng = np.random.default_rng(0)
  gradient = jax.tree.map(
    lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), ones
  )
  tx = optim.scale_by_muon_or_adam()
  updates, _ = jax.jit(tx.update)(gradient, tx.init(ones), ones)
  # The same kernel with its outputs first, as Equinox has it.
  moved = jnp.transpose(gradient['Conv_0']['kernel'], (3, 2, 0, 1))
  theirs = optim.make_optimizer('muon', 1.0, momentum=0.95, outputs_first=True)
  update, _ = jax.jit(theirs.update)(
    {'weight': moved},
    theirs.init({'weight': moved}),
    {'weight': moved},
    batch_size=1,
    damping=-1.0,
    examples=0,
  )
  np.testing.assert_allclose(
    np.transpose(update['weight'], (2, 3, 1, 0)),
    updates['Conv_0']['kernel'],
    rtol=1e-3,
    atol=1e-4,
  )
  matrix = np.asarray(updates['Conv_0']['kernel']).reshape(18, 4)
  sizes = np.linalg.svd(matrix / (0.2 * 18**0.5), compute_uv=False)
  assert np.all((sizes > 0.6) & (sizes < 1.25))
  np.testing.assert_allclose(
    updates['embedding']['vectors'],
    np.sign(gradient['embedding']['vectors']),
    rtol=1e-4,
  )
