"""The noise in each norm against per-example gradients in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch import optim
from adabatch.models import MODELS
from adabatch.optim import gradient_noise as gn
from adabatch.optim.masks import norms_alone
from adabatch.optim.noise_norms import NOISE_NORMS, in_l1, of_adam, sign

BETA2, EPSILON = 0.97, 0.05
SHAPES = {
  'Dense_0': {'kernel': (3, 4), 'bias': (4,)},
  'LayerNorm_0': {'scale': (4,), 'bias': (4,)},
}
PARAMS = jax.tree.map(
  jnp.zeros, SHAPES, is_leaf=lambda shape: isinstance(shape, tuple)
)


def gradients_of(seed, examples):
  """Of each example, with another mean and spread for each parameter."""
  rng = np.random.default_rng(seed)

  def one(x):
    mean, spread = rng.normal(size=x.shape), rng.uniform(0.5, 3, x.shape)
    return mean + spread * rng.normal(size=(examples, *x.shape))

  return jax.tree.map(one, PARAMS)


def opt_state(seed=0, updates=3, **kwargs):
  """Of Adam after a few updates, inside what is around it."""
  tx = optim.make_optimizer(
    'adamw', 0.1, beta2=BETA2, epsilon=EPSILON, weight_decay=0.1, **kwargs
  )
  state = tx.init(PARAMS)
  for k in range(updates):
    g = jax.tree.map(lambda x, k=k: jnp.float32(x[k]), gradients_of(seed, 9))
    _, state = tx.update(
      g, state, PARAMS, batch_size=48, damping=1.0, examples=0
    )
  return state


def moments(seed=0, updates=3, ratio=1.0):
  """nu_hat of the same, written out; beta2 of `ratio` reference batches."""
  g, beta2 = flat(gradients_of(seed, 9)), BETA2**ratio
  nu = sum(
    (1 - beta2) * beta2 ** (updates - 1 - k) * g[k] ** 2 for k in range(updates)
  )
  return nu / (1 - beta2**updates)


def flat(tree, names=()):
  """[examples, parameters]; those of some layers alone."""
  leaves = [
    leaf.reshape(len(leaf), -1)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    if not names or jax.tree_util.keystr(path[:1], simple=True) in names
  ]
  return np.concatenate(leaves, 1).astype(np.float64)


def folded(m, s):
  """E |N(m, s^2)|"""
  return s * math.sqrt(2 / math.pi) * np.exp(-(m**2) / (2 * s**2)) + m * (
    np.vectorize(math.erf)(m / (s * math.sqrt(2)))
  )


def twin(name, gradients, sizes):
  """tr Sigma and |G|^2 by an analysis of variance between parts."""
  g = flat(gradients, ('LayerNorm_0',) if name == 'normalisation' else ())
  if name == 'adam':
    g = g / (np.sqrt(moments()) + EPSILON)
  n, k = len(g), sum(size > 0 for size in sizes)
  parts = [part for part in np.split(g, np.cumsum(sizes)[:-1]) if len(part)]
  mean = g.mean(0)
  variances = sum(len(p) * (p.mean(0) - mean) ** 2 for p in parts) / (k - 1)
  if name != 'l1':
    trace = variances.sum()
    return trace, np.sum(mean**2) - trace / n
  c4 = math.sqrt(2 / (k - 1)) * math.gamma(k / 2) / math.gamma((k - 1) / 2)
  size, deviation = np.abs(mean), np.sqrt(variances)
  length = np.sum(2 * size - folded(size, deviation / math.sqrt(n)))
  return (deviation.sum() / c4) ** 2, length * abs(length)


def make(name):
  return NOISE_NORMS[name](BETA2, EPSILON)


def measured(name, gradients, sizes):
  """As `devices.step` adds it up."""
  norm, state = make(name), opt_state()
  edges = np.cumsum((0, *sizes))
  norms = [
    norm.of_microbatch(
      state,
      jax.tree.map(lambda x, a=a, b=b: jnp.float32(x[a:b].sum(0)), gradients),
      jnp.float32(b - a),
    )
    for a, b in zip(edges, edges[1:], strict=False)
  ]
  mean = jax.tree.map(lambda x: jnp.float32(x.mean(0)), gradients)
  return norm.from_microbatches(
    state,
    jax.tree.map(lambda *x: sum(x), *norms),
    mean,
    jnp.float32(sum(sizes)),
    gn.squared_norm(mean),
  )


@pytest.mark.parametrize('name', NOISE_NORMS)
@pytest.mark.parametrize('sizes', [(4, 4), (1,) * 24, (7, 1, 0, 5), (2,) * 9])
@pytest.mark.parametrize('seed', range(3))
def test_each_norm_is_that_of_its_twin(name, sizes, seed):
  gradients = gradients_of(seed + 1, sum(sizes))
  got = measured(name, gradients, sizes)
  np.testing.assert_allclose(got, twin(name, gradients, sizes), rtol=3e-4)


@pytest.mark.parametrize('name', NOISE_NORMS)
@pytest.mark.parametrize('sizes', [(8,), (0, 8, 0), (0, 0)])
def test_one_part_or_none_tells_nothing(name, sizes):
  gradients = gradients_of(1, max(sum(sizes), 1))
  assert np.isnan(measured(name, gradients, sizes)).any()
  assert not np.isfinite(measured(name, gradients, sizes).trace_covariance)


@pytest.mark.parametrize('name', NOISE_NORMS)
@pytest.mark.parametrize('sizes', [(1, 1), (4, 2)])
def test_the_update_before_is_the_other_part(name, sizes):
  gradients = gradients_of(5, sum(sizes))
  now, before = (
    jax.tree.map(lambda x, a=a, b=b: jnp.float32(x[a:b].mean(0)), gradients)
    for a, b in ((0, sizes[0]), (sizes[0], None))
  )
  norm, n = make(name), jnp.float32(sizes[0])
  previous = gn.Previous(before, jnp.float32(sizes[1]))
  got = norm.from_difference(opt_state(), now, n, previous)
  np.testing.assert_allclose(got, twin(name, gradients, sizes), rtol=3e-4)
  nothing = gn.no_previous(PARAMS)
  assert np.isnan(norm.from_difference(opt_state(), now, n, nothing)).all()


def test_l2_is_what_it_was():
  gradients, sizes = gradients_of(2, 12), (3, 4, 5)
  got, flat_ones = measured('l2', gradients, sizes), flat(gradients)
  edges = np.cumsum((0, *sizes))
  norms = [
    gn.of_microbatch(jnp.float32(flat_ones[a:b].sum(0)), jnp.float32(b - a))
    for a, b in zip(edges, edges[1:], strict=False)
  ]
  mean = gn.squared_norm(jnp.float32(flat_ones.mean(0)))
  norms = jax.tree.map(lambda *x: sum(x), *norms)
  expected = gn.from_microbatches(norms, mean, jnp.float32(12))
  np.testing.assert_allclose(got, expected, rtol=1e-5)


# Adam.


@pytest.mark.parametrize('updates', [1, 2, 5])
@pytest.mark.parametrize('in_examples', [False, True])
def test_the_view_of_adam_is_its_denominator(updates, in_examples):
  """Batches of 48 examples are 1.5 of the reference."""
  kwargs = {'beta2_reference_batch_size': 32, 'beta2_min': 0.0}
  state = opt_state(3, updates, **(kwargs if in_examples else {}))
  g = jax.tree.map(lambda x: jnp.float32(x[0]), gradients_of(4, 1))
  got = of_adam(BETA2, EPSILON).view(state)(g)
  nu_hat = moments(3, updates, 1.5 if in_examples else 1.0)
  expected = flat(jax.tree.map(lambda x: x[None], g))
  expected = expected / (np.sqrt(nu_hat) + EPSILON)
  got = flat(jax.tree.map(lambda x: x[None], got))
  np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize('kwargs', [{}, {'beta2_reference_batch_size': 32}])
def test_before_the_first_update_adam_tells_nothing(kwargs):
  norm, state = of_adam(BETA2, EPSILON), opt_state(updates=0, **kwargs)
  seen = norm.view(state)(jax.tree.map(jnp.ones_like, PARAMS))
  assert np.isnan(flat(jax.tree.map(lambda x: x[None], seen))).all()


@pytest.mark.parametrize(
  'tx',
  [
    optax.sgd(0.1, 0.9),
    optax.chain(optax.scale_by_adam(), optax.scale_by_adam()),
  ],
)
def test_other_states_are_refused(tx):
  with pytest.raises(ValueError, match='second moments, not one') as error:
    of_adam(BETA2, EPSILON).view(tx.init(PARAMS))
  assert '\n' not in str(error.value)


# l1.


def estimates(ratio, n, parts, trials=4000, coordinates=3):
  """Of in_l1, in standard errors of the mean, for |G_i| = ratio of them."""
  rng = np.random.default_rng(parts)
  each = n // parts
  g = rng.normal(
    ratio / math.sqrt(n), 1 / math.sqrt(each), (trials, parts, coordinates)
  )
  mean = g.mean(1)
  variances = each * g.var(1, ddof=1)
  got = jax.vmap(in_l1, (0, 0, None, None))(
    jnp.float32(mean), jnp.float32(variances), n, jnp.float32(parts)
  )
  root = lambda x: np.sign(x) * np.sqrt(np.abs(x))  # noqa: E731
  trace, length = (np.asarray(x, np.float64) for x in got)
  return root(trace) / coordinates, root(length) / coordinates * math.sqrt(n)


@pytest.mark.parametrize('parts', [2, 4, 64])
def test_deviations_are_unbiased(parts):
  """sum_i sqrt(Sigma_ii), within 4 standard errors; sigma is 1 here."""
  noise, _ = estimates(1.0, 64, parts)
  assert abs(noise.mean() - 1) < 4 * noise.std() / math.sqrt(len(noise))


@pytest.mark.parametrize(
  ('ratio', 'bias'), [(0.0, 0.47), (0.5, 0.09), (1.0, -0.07), (2.0, -0.07)]
)
def test_lengths_are_biased_as_the_docstring_says(ratio, bias):
  """The root of a square is of three coordinates here, and seldom negative."""
  _, length = estimates(ratio, 256, 256)
  assert length.mean() - ratio == pytest.approx(bias, abs=0.02)
  # Of what is measured alone it would be more.
  plain = folded(np.array(ratio), np.array(1.0)) - ratio
  assert abs(bias) < plain + 0.07


def test_far_from_noise_both_are_exact():
  mean = {'a': jnp.array([3.0, -4.0]), 'b': jnp.array(0.0)}
  nothing = jax.tree.map(jnp.zeros_like, mean)
  noise = in_l1(mean, nothing, jnp.float32(5), jnp.float32(4))
  assert [float(x) for x in noise] == [0.0, 49.0]
  # Rounding may leave a variance below 0.
  below = jax.tree.map(lambda x: x - 1e-7, nothing)
  assert in_l1(mean, below, jnp.float32(5), jnp.float32(4)) == noise


def test_one_part_tells_no_deviation():
  noise = in_l1(jnp.ones(3), jnp.ones(3), jnp.float32(4), jnp.float32(1))
  assert np.isnan(noise.trace_covariance)


def test_a_length_below_zero_stays_below():
  """So that rules see that it says nothing."""
  noise = in_l1(jnp.zeros(3), jnp.ones(3), jnp.float32(4), jnp.float32(4))
  assert noise.squared_norm == pytest.approx(-((1.5 * 0.797885) ** 2), rel=1e-4)


def test_both_parts_of_a_complex_number_count():
  seen = sign().view(None)({'z': jnp.array([3 - 4j]), 'x': jnp.array([1.0])})
  assert [float(x[0]) for x in jax.tree.leaves(seen)] == [1.0, 3.0, -4.0]


# Normalisation layers.


def parameters(name, **kwargs):
  make = MODELS[name](num_classes=4, **kwargs)
  of_text = name in ('transformer', 'lstm')
  x = jnp.zeros((1, 8), jnp.int32) if of_text else jnp.zeros((1, 8, 8, 3))
  return jax.eval_shape(
    lambda: make.init(jax.random.key(0), x, train=False)['params']
  )


def marked(params):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, is_norm in jax.tree_util.tree_leaves_with_path(
      norms_alone(params)
    )
    if is_norm
  }


def scales_and_biases(layers):
  return {f'{layer}/{name}' for layer in layers for name in ('scale', 'bias')}


def test_norms_of_the_transformer():
  params = parameters(
    'transformer', num_layers=2, model_dim=8, num_heads=2, hidden_dim=8
  )
  layers = {
    f'{kind}_norm_{i}' for kind in ('attention', 'hidden') for i in '01'
  }
  assert marked(params) == scales_and_biases(layers | {'norm'})


@pytest.mark.parametrize(
  ('name', 'depth', 'count'),
  # One after each convolution; of 18 layers 3 shortcuts have some, too.
  [('cifar_resnet', 8, 7), ('resnet', 18, 20)],
)
def test_norms_of_the_resnets(name, depth, count):
  params = parameters(name, depth=depth, width=4)
  found = marked(params)
  layers = {path.rpartition('/')[0] for path in found}
  assert len(layers) == count
  assert found == scales_and_biases(layers)
  assert all('GhostBatchNorm_' in layer for layer in layers)
  every = {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(params)
  }
  left = every - found
  assert {path.rpartition('/')[2] for path in left} == {'kernel', 'bias'}
  assert {path for path in left if path.endswith('bias')} == {'Dense_0/bias'}
  bare = parameters(name, depth=depth, width=4, batch_norm_group=0)
  assert not marked(bare)


@pytest.mark.parametrize(
  ('path', 'is_norm'),
  [
    ('ln_f/weight', True),
    ('block/bn1/gamma', True),
    ('norms/0/weight', True),
    ('RMSNorm_0/scale', True),
    ('normalization/beta', True),
    ('norm1/scale/value', True),
    ('norm_block/Dense_0/bias', False),
    ('LayerNorm_0/kernel', False),
    ('normal_flow/bias', False),
    ('cabln/bias', False),
    ('scale', False),
    ('WeightNorm_0/Dense_0/kernel/scale', False),
  ],
)
def test_names_of_norms(path, is_norm):
  tree = 1.0
  for name in reversed(path.split('/')):
    tree = [tree] if name == '0' else {name: tree}
  assert jax.tree.leaves(norms_alone(tree)) == [is_norm]


def test_a_network_without_any_is_refused_where_it_is_traced():
  with pytest.raises(ValueError, match='no normalisation layer'):
    make('normalisation').view(None)({'Dense_0': {'bias': jnp.ones(2)}})
