"""Optimizers against optax's own and against slow NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch import optim

SEEDS = (0, 1, 2)
RATE = 0.05
EXTRA = {'batch_size': 64, 'damping': 1.0, 'examples': 0}


def _tree(rng, dtype=np.float32):
  shapes = {
    'Dense_0': {'kernel': (4, 3), 'bias': (3,)},
    'BatchNorm_0': {'scale': (3,), 'bias': (3,)},
    'Dense_1': {'kernel': (3, 2), 'bias': (2,)},
  }
  return jax.tree.map(
    lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def _assert_trees_close(got, expected, rtol):
  for (path, g), e in zip(
    jax.tree_util.tree_leaves_with_path(got),
    jax.tree.leaves(expected),
    strict=True,
  ):
    scale = np.abs(e).max()
    np.testing.assert_allclose(
      g, e, rtol=rtol, atol=rtol * scale, err_msg=jax.tree_util.keystr(path)
    )


ALIASES = {
  'sgd': lambda mask: optax.chain(
    optax.add_decayed_weights(0.01, mask), optax.sgd(RATE)
  ),
  'momentum': lambda mask: optax.chain(
    optax.add_decayed_weights(0.01, mask), optax.sgd(RATE, 0.9)
  ),
  'nesterov': lambda mask: optax.chain(
    optax.add_decayed_weights(0.01, mask), optax.sgd(RATE, 0.9, nesterov=True)
  ),
  'adam': lambda mask: optax.chain(
    optax.add_decayed_weights(0.01, mask), optax.adam(RATE)
  ),
  'adamw': lambda mask: optax.adamw(RATE, weight_decay=0.01, mask=mask),
  # optax has the norm of g + wd p in the trust ratio, not the published one.
  'lars': lambda mask: optax.lars(
    RATE, 0.0, mask, trust_coefficient=0.02, trust_ratio_mask=mask
  ),
  'lamb': lambda mask: optax.lamb(RATE, eps=1e-8, weight_decay=0.01, mask=mask),
  # optax's own has a Nesterov momentum in the Adam of the rest.
  'muon': lambda mask: optax.partition(
    {
      True: optax.contrib.muon(
        RATE, beta=0.9, consistent_rms=0.2, weight_decay=0.01
      ),
      False: optax.adam(RATE),
    },
    mask,
  ),
}


def test_every_optimizer_has_its_alias_here():
  assert set(ALIASES) == set(optim.OPTIMIZERS)


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('name', ALIASES)
def test_fixed_batch_size_equals_optax(name, seed):
  rng = np.random.default_rng(seed)
  params = theirs_params = _tree(rng)
  mask = optim.no_norms_and_biases
  ours = optim.make_optimizer(
    name,
    RATE,
    weight_decay=0.0 if name == 'lars' else 0.01,
    trust_coefficient=0.02,
    trust_mask=True if name == 'lamb' else mask,  # optax.lamb has no mask
  )
  theirs = ALIASES[name](mask)
  state, theirs_state = ours.init(params), theirs.init(params)
  for _ in range(6):
    grads = _tree(rng)
    updates, state = ours.update(grads, state, params, **EXTRA)
    expected, theirs_state = theirs.update(grads, theirs_state, theirs_params)
    _assert_trees_close(updates, expected, 1e-6)
    params = optax.apply_updates(params, updates)
    theirs_params = optax.apply_updates(theirs_params, expected)


def _orthogonal(x):
  """U f(S) V^T of U S V^T: the polynomial of the iteration on S alone."""
  u, s, v = np.linalg.svd(x, full_matrices=False)
  s = s / np.linalg.norm(s)
  for _ in range(5):
    s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
  return u @ np.diag(s) @ v


class _Slow:
  """The optimizers again, leaf by leaf in float64, from their equations."""

  def __init__(self, name, params, decayed, decay, trust, reference):
    self.name, self.decay, self.trust = name, decay, trust
    self.decayed, self.reference = decayed, reference
    self.params = [np.asarray(p, np.float64) for p in params]
    self.v = [np.zeros_like(p) for p in self.params]
    self.mu = [np.zeros_like(p) for p in self.params]
    self.nu = [np.zeros_like(p) for p in self.params]
    self.k, self.product = 0, 1.0

  def step(self, grads, rate, damping, batch_size):
    self.k += 1
    beta2 = (
      0.99 if self.reference is None else 0.99 ** (batch_size / self.reference)
    )
    self.product *= beta2
    for i, (p, g) in enumerate(zip(self.params, grads, strict=True)):
      g = np.asarray(g, np.float64)
      slope = np.linalg.norm(g)
      wd = self.decay if self.decayed[i] else 0.0
      if self.name not in ('adamw', 'lamb', 'muon'):
        g = g + wd * p
      self.mu[i] = 0.9 * self.mu[i] + 0.1 * g
      self.nu[i] = beta2 * self.nu[i] + (1 - beta2) * g**2
      adam = (self.mu[i] / (1 - 0.9**self.k)) / (
        np.sqrt(self.nu[i] / (1 - self.product)) + 1e-8
      )
      if self.name == 'sgd':
        u = -rate * g
      elif self.name in ('momentum', 'nesterov'):
        self.v[i] = 0.9 * self.v[i] + g
        nesterov = self.name == 'nesterov'
        u = -rate * (g + 0.9 * self.v[i] if nesterov else self.v[i])
      elif self.name == 'adam':
        u = -rate * adam
      elif self.name == 'muon' and p.ndim == 2:
        moment = 0.9 * self.mu[i] / (1 - 0.9 ** (self.k + 1))
        moment += 0.1 * g / (1 - 0.9**self.k)
        size = 0.2 * max(p.shape) ** 0.5
        u = -rate * (size * _orthogonal(moment) + wd * p)
      elif self.name in ('adamw', 'muon'):
        u = -rate * (adam + wd * p)
      elif self.name == 'lars':
        t = 1.0
        if self.decayed[i]:
          size = np.linalg.norm(p)
          t = self.trust * size / (slope + wd * size)
        self.v[i] = 0.9 * self.v[i] - rate * t * g
        u = self.v[i]
      else:
        d = adam + wd * p
        t = 1.0
        if self.decayed[i]:
          t = np.linalg.norm(p) / np.linalg.norm(d)
        u = -rate * t * d
      self.params[i] = p + damping * u


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('reference', [None, 48])
@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_moving_batch_size_against_numpy(name, reference, seed):
  rng = np.random.default_rng(seed)
  params = _tree(rng)
  tx = optim.make_optimizer(
    name,
    optim.scale_by_batch_learning_rate(
      RATE,
      decay=optim.piecewise([900], 0.1),
      scaling=optim.linear_scaling(32),
      warmup=optim.gradual_warmup(400),
    ),
    beta2=0.99,
    weight_decay=0.01,
    trust_coefficient=0.02,
    beta2_reference_batch_size=reference,
  )
  decayed = jax.tree.leaves(optim.no_norms_and_biases(params))
  slow = _Slow(name, jax.tree.leaves(params), decayed, 0.01, 0.02, reference)
  state, update = tx.init(params), jax.jit(tx.update)
  examples = 0
  for _ in range(12):
    nominal = int(rng.integers(16, 400))
    batch = min(nominal, 150)
    damping = batch / nominal
    rate = RATE * (0.1 if examples >= 900 else 1)
    first = min(1, batch / 32)
    rate *= first + (batch / 32 - first) * min(1, examples / 400)
    grads = _tree(rng)
    updates, state = update(
      grads,
      state,
      params,
      batch_size=batch,
      damping=damping,
      examples=examples,
    )
    params = optax.apply_updates(params, updates)
    slow.step(jax.tree.leaves(grads), rate, damping, batch)
    logged = optax.tree_utils.tree_get(state, 'learning_rate')
    np.testing.assert_allclose(logged, rate, rtol=1e-5)  # undamped
    examples += batch
  assert examples > 900  # the decay was reached
  _assert_trees_close(jax.tree.leaves(params), slow.params, 2e-5)


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_damping_acts_at_once_and_is_reversible(name):
  rng = np.random.default_rng(0)
  params = _tree(rng)
  tx = optim.make_optimizer(name, RATE, weight_decay=0.01)
  state = plain_state = tx.init(params)
  # Powers of two, so that the ratio is exact.
  for damping in (1.0, 0.25, 0.5, 1.0, 0.125, 1.0):
    grads = _tree(rng)
    plain, plain_state = tx.update(grads, plain_state, params, **EXTRA)
    damped, state = tx.update(
      grads, state, params, **{**EXTRA, 'damping': damping}
    )
    jax.tree.map(
      lambda d, p, factor=damping: np.testing.assert_array_equal(d, p * factor),
      damped,
      plain,
    )
    # Nothing of the damping stays behind in the state.
    jax.tree.map(np.testing.assert_array_equal, state, plain_state)


def test_any_damping_is_the_ratio_of_two_updates():
  rng = np.random.default_rng(1)
  params = _tree(rng)
  for name in ('sgd', 'momentum', 'lars'):
    tx = optim.make_optimizer(name, RATE)
    _, state = tx.update(params, tx.init(params), params, **EXTRA)
    plain, _ = tx.update(params, state, params, **EXTRA)
    for damping in rng.uniform(0.01, 1, 5):
      damped, _ = tx.update(
        params, state, params, **{**EXTRA, 'damping': damping}
      )
      jax.tree.map(
        lambda d, p, factor=damping: np.testing.assert_allclose(
          d / p, factor, rtol=2e-7
        ),
        damped,
        plain,
      )


@pytest.mark.parametrize('name', ['momentum', 'nesterov'])
def test_the_learning_rate_acts_after_the_velocity(name):
  """A tenfold rate gives a tenfold update at once, whatever the history."""
  params = jnp.ones((2, 2))
  tx = optim.make_optimizer(name, lambda examples, batch: 1.0 + 9 * examples)
  _, state = tx.update(params, tx.init(params), params, **EXTRA)
  before, _ = tx.update(params, state, params, **EXTRA)
  after, _ = tx.update(params, state, params, **{**EXTRA, 'examples': 1})
  np.testing.assert_allclose(after, 10 * before, rtol=1e-6)


@pytest.mark.parametrize('seed', SEEDS)
def test_adam_in_examples_at_the_reference_equals_optax(seed):
  rng = np.random.default_rng(seed)
  params = _tree(rng)
  ours = optim.scale_by_adam_in_examples(
    0.8, 0.95, 1e-6, reference_batch_size=64
  )
  theirs = optax.scale_by_adam(0.8, 0.95, 1e-6)
  state, theirs_state = ours.init(params), theirs.init(params)
  for _ in range(20):
    grads = _tree(rng)
    updates, state = ours.update(grads, state, batch_size=64)
    expected, theirs_state = theirs.update(grads, theirs_state)
    _assert_trees_close(updates, expected, 3e-6)


def test_adam_in_examples_forgets_by_examples():
  """Four batches of 16 and one of 64 leave the same weight on the past."""
  tx = optim.scale_by_adam_in_examples(b2=0.9, reference_batch_size=64)
  start = tx.init(jnp.zeros(1))._replace(nu=jnp.ones(1))
  _, once = tx.update(jnp.zeros(1), start, batch_size=64)
  state = start
  for _ in range(4):
    _, state = tx.update(jnp.zeros(1), state, batch_size=16)
  np.testing.assert_allclose(once.nu, 0.9, rtol=1e-6)
  np.testing.assert_allclose(state.nu, once.nu, rtol=1e-6)
  np.testing.assert_allclose(state.nu_weight, 0.1, rtol=1e-5)


def test_adam_forgets_no_faster_than_its_floor():
  """b1^2 = 0.81 is above the b2^10 = 0.35 that B = 10 B_ref would have."""
  for b2_min, expected in ((0.95, 0.95), (0.5, 0.81), (0.85, 0.85)):
    tx = optim.scale_by_adam_in_examples(
      b2=0.9 if b2_min < 0.9 else 0.96, reference_batch_size=64, b2_min=b2_min
    )
    state = tx.init(jnp.zeros(1))._replace(nu=jnp.ones(1))
    _, state = tx.update(jnp.zeros(1), state, batch_size=640)
    np.testing.assert_allclose(state.nu, expected, rtol=1e-6)
  # At the reference it is what it was chosen to be.
  tx = optim.scale_by_adam_in_examples(b2=0.5, reference_batch_size=64)
  state = tx.init(jnp.zeros(1))._replace(nu=jnp.ones(1))
  for batch_size in (64, 640):
    _, after = tx.update(jnp.zeros(1), state, batch_size=batch_size)
    np.testing.assert_allclose(after.nu, 0.5, rtol=1e-6)


def test_a_large_gradient_is_followed_by_no_large_update():
  """At a hundred times the reference, b2 alone would give 67 times the rate."""
  tx = optim.make_optimizer('adam', 1.0, beta2_reference_batch_size=1)
  params, largest = jnp.zeros(1), 0.0
  state = tx.init(params)
  grads = [1e-3] * 20 + [1.0] + [1e-3] * 40
  for gradient in grads:
    updates, state = tx.update(
      jnp.full(1, gradient),
      state,
      params,
      batch_size=3000,
      damping=1.0,
      examples=0,
    )
    largest = max(largest, float(jnp.abs(updates).max()))
  assert largest < 2


def test_adam_of_complex_gradients():
  """|g|^2, not g^2: as optax has it."""
  rng = np.random.default_rng(0)
  grads = [
    jnp.asarray(rng.normal(size=3) + 1j * rng.normal(size=3), jnp.complex64)
    for _ in range(5)
  ]
  ours = optim.scale_by_adam_in_examples(reference_batch_size=64)
  theirs = optax.scale_by_adam()
  state, theirs_state = ours.init(grads[0]), theirs.init(grads[0])
  assert state.nu.dtype == jnp.float32
  for g in grads:
    updates, state = ours.update(g, state, batch_size=64)
    expected, theirs_state = theirs.update(g, theirs_state)
    assert updates.dtype == jnp.complex64
    np.testing.assert_allclose(updates, expected, rtol=1e-4)


def test_lars_is_the_published_one():
  """The norms of g and p, not that of g + wd p; no ratio where one is 0."""
  tx = optim.scale_by_lars(
    0.5, 0.1, decay_mask={'a': True, 'b': False}, trust_mask=True
  )
  params = {'a': jnp.array([3.0, 4.0]), 'b': [jnp.array([0.0, 2.0])]}
  grads = {'a': jnp.array([-2.0, 0.0]), 'b': [jnp.array([1.0, 0.0])]}
  updates, _ = tx.update(grads, tx.init(params), params)
  # 0.1 5 / (2 + 0.5 5) (g + 0.5 p), and 0.1 2 / 1 g.
  np.testing.assert_allclose(
    updates['a'], 0.5 / 4.5 * np.array([-0.5, 2.0]), rtol=1e-6
  )
  np.testing.assert_allclose(updates['b'][0], [0.2, 0.0], rtol=1e-6)
  nothing = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(grads, tx.init(params), nothing)
  jax.tree.map(np.testing.assert_array_equal, updates, grads)
  updates, _ = tx.update(nothing, tx.init(params), params)
  np.testing.assert_allclose(updates['a'], 0.5 * params['a'])
  with pytest.raises(ValueError, match='needs params'):
    tx.update(grads, tx.init(params))


@pytest.mark.parametrize('name', ['sgd', 'adam'])
def test_a_schedule_counts_updates(name):
  """As in every alias of optax, whatever the examples and the batch size."""
  schedule = optax.exponential_decay(0.1, 3, 0.5)
  ours = optim.make_optimizer(name, schedule)
  theirs = {'sgd': optax.sgd, 'adam': optax.adam}[name](schedule)
  params = jnp.ones((2, 2))
  state, theirs_state = ours.init(params), theirs.init(params)
  for k in range(7):
    extra = {**EXTRA, 'examples': 1000 * k, 'batch_size': 10 + k}
    updates, state = ours.update(params, state, params, **extra)
    expected, theirs_state = theirs.update(params, theirs_state, params)
    np.testing.assert_allclose(updates, expected, rtol=1e-5)


def test_adam_bias_correction_far_below_the_reference_batch_size():
  """With beta2' within a rounding error of 1 the first update is still 1."""
  tx = optim.scale_by_adam_in_examples(reference_batch_size=2**20, eps=0.0)
  grads = jnp.asarray([3.0, -1e-3])
  state = tx.init(grads)
  for _ in range(3):
    updates, state = tx.update(grads, state, batch_size=1)
    np.testing.assert_allclose(updates, [1.0, -1.0], rtol=1e-5)
  expected = -np.expm1(3 / 2**20 * np.log(0.999))
  np.testing.assert_allclose(state.nu_weight, expected, rtol=1e-5)


def test_adascale_in_a_chain_logs_the_rate_it_used():
  tx = optim.make_optimizer(
    'sgd',
    optim.scale_by_batch_learning_rate(
      0.1, scaling=optim.adascale(32), warmup=optim.constant_warmup(500)
    ),
  )
  params = jnp.ones((2, 2))
  state = tx.init(params)
  # (examples, gradient noise, expected rate at s = 4)
  steps = [
    (0, (32.0, 1.0), 0.1),  # warmup
    (500, (float('nan'), float('nan')), 0.1 * 1.6),  # remembered
    (628, None, 0.1 * 1.6),
  ]
  for examples, noise, rate in steps:
    updates, state = tx.update(
      params,
      state,
      params,
      batch_size=128,
      damping=0.5,
      examples=examples,
      gradient_noise=noise,
    )
    logged = optax.tree_utils.tree_get(state, 'learning_rate')
    np.testing.assert_allclose(logged, rate, rtol=1e-6)
    np.testing.assert_allclose(updates, np.full((2, 2), -rate / 2), rtol=1e-6)


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_bfloat16_parameters_do_not_corrupt_hyperparameters(name):
  """Same numbers as in float32: only the updates are rounded, at the end."""
  rng = np.random.default_rng(0)
  params = _tree(rng, jnp.bfloat16)
  options = {'momentum': 0.9999, 'beta2': 0.9999, 'weight_decay': 1e-3}
  tx = optim.make_optimizer(name, 0.0123, **options)
  wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
  state, wide_state = tx.init(params), tx.init(wide)
  for _ in range(5):
    grads = _tree(rng, jnp.bfloat16)
    extra = {**EXTRA, 'damping': 0.7}
    updates, state = tx.update(grads, state, params, **extra)
    expected, wide_state = tx.update(
      jax.tree.map(lambda g: g.astype(jnp.float32), grads),
      wide_state,
      wide,
      **extra,
    )
    jax.tree.map(
      lambda u, e: np.testing.assert_array_equal(u, e.astype(jnp.bfloat16)),
      updates,
      expected,
    )
    jax.tree.map(np.testing.assert_array_equal, state, wide_state)
  rate = optax.tree_utils.tree_get(state, 'learning_rate')
  assert rate == np.float32(0.0123)


def test_bfloat16_parameters_remember_with_a_momentum_of_0_9999():
  tx = optim.make_optimizer('momentum', 1.0, momentum=0.9999)
  params = jnp.ones((1, 1), jnp.bfloat16)
  state, update = tx.init(params), jax.jit(tx.update)
  _, state = update(params, state, params, **EXTRA)
  for _ in range(1000):
    _, state = update(0 * params, state, params, **EXTRA)
  velocity = optax.tree_utils.tree_get(state, 'trace')
  np.testing.assert_allclose(velocity, [[0.9999**1000]], rtol=1e-4)


def test_the_learning_rate_and_damping_are_not_rounded_to_bfloat16():
  """Rounding 1/3 to bfloat16 first would move a third of these products."""
  grads = jnp.arange(128, 256).astype(jnp.bfloat16)
  product = grads.astype(jnp.float32) * np.float32(1 / 3)
  expected = product.astype(jnp.bfloat16)
  assert (expected != grads * jnp.bfloat16(1 / 3)).any()
  tx = optim.scale_by_batch_learning_rate(1 / 3)
  updates, _ = tx.update(grads, tx.init(grads), batch_size=1, examples=0)
  np.testing.assert_array_equal(updates, -expected)
  damping = optim.scale_by_damping()
  updates, _ = damping.update(grads, damping.init(grads), damping=1 / 3)
  np.testing.assert_array_equal(updates, expected)


def test_mask_leaves_out_norms_and_biases():
  two, one = np.ones((2, 2)), np.ones(2)
  mask = optim.no_norms_and_biases(
    {
      'Conv_0': {'kernel': np.ones((3, 3, 1, 2)), 'bias': one},
      'BatchNorm_0': {'scale': one, 'bias': one},
      # Stacked over layers or replicas: rank alone would not tell.
      'stack': {'LayerNorm_1': {'scale': two}, 'Dense_0': {'bias': two}},
      'encoder_layer_norm': {'weight': two},
      'group_norm': [two],
      'attention': {'value': {'kernel': two}, 'Embed_0': {'embedding': two}},
      # Another library's: names alone would not tell.
      'w': two,
      'b': one,
    }
  )
  assert mask == {
    'Conv_0': {'kernel': True, 'bias': False},
    'BatchNorm_0': {'scale': False, 'bias': False},
    'stack': {'LayerNorm_1': {'scale': False}, 'Dense_0': {'bias': False}},
    'encoder_layer_norm': {'weight': False},
    'group_norm': [False],
    'attention': {'value': {'kernel': True}, 'Embed_0': {'embedding': True}},
    'w': True,
    'b': False,
  }


def test_mask_reads_the_names_of_boxed_parameters():
  linen = pytest.importorskip('flax.linen')
  params = {
    'kernel': linen.Partitioned(jnp.ones((2, 2)), (None, None)),
    'bias': linen.Partitioned(jnp.ones((2, 2)), (None, None)),
  }
  mask = optim.no_norms_and_biases(params)
  assert (mask['kernel'].value, mask['bias'].value) == (True, False)


def test_weight_decay_reaches_norms_and_biases_only_when_asked():
  rng = np.random.default_rng(0)
  params = _tree(rng)
  zeros = jax.tree.map(jnp.zeros_like, params)
  for mask, everywhere in ((optim.no_norms_and_biases, False), (True, True)):
    tx = optim.make_optimizer('sgd', 1.0, weight_decay=0.5, decay_mask=mask)
    updates, _ = tx.update(zeros, tx.init(params), params, **EXTRA)
    for (path, u), p in zip(
      jax.tree_util.tree_leaves_with_path(updates),
      jax.tree.leaves(params),
      strict=True,
    ):
      kernel = 'kernel' in jax.tree_util.keystr(path)
      expected = -0.5 * p if kernel or everywhere else 0 * p
      np.testing.assert_allclose(u, expected, rtol=1e-6)
