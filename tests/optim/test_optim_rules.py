"""Schedules, scalings and warmups against NumPy, in examples."""

import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch import optim

SEEDS = (0, 1, 2)


def _examples(seed, total):
  """Random example counts, with the ends of the decay among them."""
  rng = np.random.default_rng(seed)
  return [0, total // 2, total, 2 * total, *rng.integers(0, 2 * total, 20)]


def test_constant():
  assert all(optim.constant()(e) == 1 for e in (0, 10**6, 10**12))


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('factors', [0.1, [0.5, 0.2, 3.0]])
def test_piecewise(seed, factors):
  rng = np.random.default_rng(seed)
  boundaries = np.sort(rng.choice(np.arange(1, 1000), 3, replace=False))
  schedule = optim.piecewise(boundaries.tolist(), factors)
  for e in [*_examples(seed, 600), *boundaries, *(boundaries - 1)]:
    expected = np.prod(np.broadcast_to(factors, 3)[boundaries <= e])
    np.testing.assert_allclose(schedule(e), expected, rtol=1e-6)


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('final', [0.0, 0.1])
def test_cosine(seed, final):
  total = 1000 + seed
  schedule = optim.cosine(total, final)
  for e in _examples(seed, total):
    angle = math.pi * min(e, total) / total
    expected = final + (1 - final) * (1 + math.cos(angle)) / 2
    np.testing.assert_allclose(schedule(e), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('power', [1.0, 2.0, 0.5])
def test_linear_and_polynomial(seed, power):
  total, final = 1000 + seed, 0.05 * seed
  schedule = optim.polynomial(total, power, final)
  line = optim.linear(total, final)
  for e in _examples(seed, total):
    left = 1 - min(e, total) / total
    expected = (1 - final) * left**power + final
    np.testing.assert_allclose(schedule(e), expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(
      line(e), (1 - final) * left + final, rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('shape', ['linear', '1-sqrt'])
def test_wsd(seed, shape):
  total, share, final = 1000 + seed, 0.1 + 0.4 * seed, 0.05 * seed
  schedule = optim.wsd(total, share, final, shape)
  begin = total * (1 - share)
  for e in _examples(seed, total):
    done = max(0, min(e, total) - begin) / (total - begin)
    left = 1 - done if shape == 'linear' else 1 - math.sqrt(done)
    expected = final + (1 - final) * left
    np.testing.assert_allclose(schedule(e), expected, rtol=1e-4, atol=1e-4)
  assert schedule(0) == 1


@pytest.mark.parametrize(
  'schedule',
  [
    optim.constant(),
    optim.piecewise([10**10]),
    optim.cosine(10**10, 0.1),
    optim.linear(10**10, 0.1),
    optim.polynomial(10**10, 2.0, 0.1),
    optim.wsd(10**10),
  ],
)
def test_schedules_take_any_count_and_return_float32(schedule):
  # Boundaries beyond 2^31 examples must not overflow an int32 count.
  counts = (7, 7.0, np.int64(7), jnp.int32(7), jnp.float32(7))
  values = [jax.jit(schedule)(count) for count in counts]
  assert {(v.dtype, v.weak_type, float(v)) for v in values} == {
    (jnp.dtype(jnp.float32), False, float(values[0]))
  }
  np.testing.assert_allclose(values[0], 1.0, rtol=1e-6)
  assert schedule(10**10) <= 1.0


HOST = {
  'constant': optim.constant(),
  'piecewise': optim.piecewise([1000, 2500, 4000], [0.1, 3.0, 0.5]),
  'cosine': optim.cosine(4000, 0.01),
  'linear': optim.linear(4000, 0.01),
  'polynomial': optim.polynomial(4000, 2.0, 0.01),
  'wsd': optim.wsd(4000, 0.3, 0.01),
  'root': optim.polynomial(4000, 0.5, 0.01),
  'growth': optim.after_batch_growth(
    optim.cosine(4000, 0.01),
    exponent=0.5,
    initial_batch_size=16,
    max_batch_size=512,
  ),
  'no_scaling': optim.no_scaling(),
  'linear_scaling': optim.linear_scaling(96),
  'sqrt_scaling': optim.sqrt_scaling(96),
}


@pytest.mark.parametrize('name', HOST)
def test_numbers_are_computed_on_the_host(name):
  """The same to rounding as on a device, which is not asked."""
  function = HOST[name]
  counts = [*range(0, 6000, 250), 999, 1001, 2499, 2501, 10**12]
  device = np.asarray(jax.vmap(function)(jnp.asarray(counts, jnp.float32)))
  for count, expected in zip(counts, device, strict=True):
    for value in (count, float(count), np.int64(count), np.float32(count)):
      got = function(value)
      assert type(got) is np.float32
      np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize('kind', [optim.cosine, optim.linear])
def test_a_length_and_an_end_may_be_traced(kind):
  traced = jax.jit(lambda total, final, e: kind(total, final)(e))
  for total, final, e in ((1000.0, 0.1, 300), (400.0, 0.2, 300)):
    expected = kind(total, final)(e)
    np.testing.assert_allclose(traced(total, final, e), expected, rtol=1e-6)
    # With a number for the examples as well.
    half = jax.jit(lambda total, e=e: kind(total, 0.1)(e))
    np.testing.assert_allclose(half(total), kind(total, 0.1)(e), rtol=1e-6)


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('exponent', [0.0, 0.5])
def test_after_batch_growth_and_damping_give_the_whole_decay(seed, exponent):
  rng = np.random.default_rng(seed)
  initial, most = 64, int(rng.integers(128, 2048))
  decay = optim.cosine(1000, 0.001)
  schedule = optim.after_batch_growth(
    decay,
    exponent=exponent,
    initial_batch_size=initial,
    max_batch_size=most,
  )
  cap, beyond = initial / most, 0
  for e in _examples(seed, 1000):
    alpha = float(decay(e))
    nominal = initial / alpha  # what the controller asks for
    damping = min(1, most / nominal)  # what the loop makes of it
    if alpha >= cap:
      expected = alpha**exponent
    else:
      expected, beyond = cap**exponent * alpha / cap, beyond + 1
    np.testing.assert_allclose(schedule(e) * damping, expected, rtol=1e-5)
    # Per example the update keeps its size: lr / B falls as alpha^(1+q) or,
    # beyond the cap, as alpha itself.
  assert 0 < beyond < len(_examples(seed, 1000))  # both branches were met


def test_after_batch_growth_without_a_cap_or_a_decay():
  grow = {'exponent': 0.5, 'initial_batch_size': 64}
  free = optim.after_batch_growth(
    optim.linear(100, 0.0), max_batch_size=math.inf, **grow
  )
  np.testing.assert_allclose(free(99), 0.1, rtol=1e-4)
  assert free(100) == 0
  # A schedule that rises leaves nothing to the batch size.
  rising = optim.after_batch_growth(
    lambda e: 1 + e / 100, max_batch_size=128, **grow
  )
  np.testing.assert_allclose(rising(50), 1.5, rtol=1e-6)


def test_to_examples():
  sizes = {'num_examples': 50_000, 'reference_batch_size': 256}
  assert optim.to_examples(2.5, 'epochs', **sizes) == 125_000
  assert optim.to_examples(2.5, 'examples', **sizes) == 2.5
  assert optim.to_examples(10, 'updates', **sizes) == 2560
  assert optim.to_examples(1e3, 'tokens', tokens_per_example=8) == 125


def test_scalings():
  for batch in (1, 32, 100, 8192):
    assert optim.no_scaling()(batch) == 1
    np.testing.assert_allclose(
      optim.linear_scaling(96)(batch), batch / 96, rtol=1e-6
    )
    np.testing.assert_allclose(
      optim.sqrt_scaling(96)(batch), math.sqrt(batch / 96), rtol=1e-6
    )


@pytest.mark.parametrize('seed', SEEDS)
def test_adascale_against_numpy(seed):
  rng = np.random.default_rng(seed)
  reference, decay = 32, 0.9
  scaling = optim.adascale(reference, decay=decay)
  state, noise, norm = scaling.init(), 0.0, 0.0
  for n in range(1, 30):
    # Negative estimates do occur; so do batches below the reference.
    trace_covariance = rng.normal(20, 30)
    squared_norm = rng.normal(0.5, 1)
    batch = int(rng.choice([8, 32, 64, 1024]))
    factor, state = scaling.update(
      state, batch, (trace_covariance, squared_norm)
    )
    noise = decay * noise + (1 - decay) * trace_covariance
    norm = decay * norm + (1 - decay) * squared_norm
    sigma2 = max(0, noise / (1 - decay**n)) / reference
    mu2 = max(0, norm / (1 - decay**n))
    s = batch / reference
    expected = 1.0
    if sigma2 + mu2 > 0:
      expected = (sigma2 + mu2) / (sigma2 / s + mu2)
    np.testing.assert_allclose(factor, expected, rtol=1e-4)
    assert min(s, 1) <= factor <= max(s, 1)
    np.testing.assert_allclose(state.weight, 1 - decay**n, rtol=1e-5)


@pytest.mark.parametrize(
  ('noise', 'expected'),
  [
    (None, 1.0),  # nothing measured yet
    ((math.nan, 1.0), 1.0),  # not finite: ignored
    ((1.0, math.inf), 1.0),
    ((-1.0, -1.0), 1.0),  # both clamped to zero
    ((0.0, 1.0), 1.0),  # no noise: a larger batch buys nothing
    ((1.0, -1.0), 8.0),  # noise alone: linear scaling
    ((32.0, 1.0), 2 / (1 / 8 + 1)),
  ],
)
def test_adascale_limits(noise, expected):
  scaling = optim.adascale(32)
  factor, state = scaling.update(scaling.init(), 256, noise)
  np.testing.assert_allclose(factor, expected, rtol=1e-6)
  assert jnp.isfinite(jnp.stack(state)).all()


def test_adascale_remembers_between_estimates():
  scaling = optim.adascale(32)
  first, state = scaling.update(scaling.init(), 256, (32.0, 1.0))
  for noise in (None, (math.nan, math.nan)):
    again, state = scaling.update(state, 256, noise)
    np.testing.assert_allclose(again, first, rtol=1e-6)


@pytest.mark.parametrize('seed', SEEDS)
def test_warmups_with_moving_batch_sizes(seed):
  rng = np.random.default_rng(seed)
  length, scaling = 5000, optim.linear_scaling(64)
  warmups = (
    optim.no_warmup(),
    optim.constant_warmup(length),
    optim.gradual_warmup(length),
  )
  examples = 0
  while examples < 2 * length:
    batch = int(rng.choice([16, 64, 256, 777]))
    target = batch / 64
    first = min(1, target)  # 16 is below the reference
    expected = (
      target,
      first if examples < length else target,
      first + (target - first) * min(1, examples / length),
    )
    for warmup, value in zip(warmups, expected, strict=True):
      got = warmup(examples, scaling(batch), batch)
      np.testing.assert_allclose(got, value, rtol=1e-5)
    examples += batch


def test_gradual_warmup_rises_by_a_constant_amount_to_the_target():
  warmup = optim.gradual_warmup(10 * 256)
  steps = [float(warmup(k * 256, 8.0, 256)) for k in range(13)]
  np.testing.assert_allclose(np.diff(steps[:11]), 0.7, rtol=1e-5)
  assert steps[0] == 1.0
  assert steps[10:] == [8.0] * 3


def test_no_warmup_starts_above_its_target():
  """A batch of 8 with a reference of 64: the small-batch rate is too much."""
  for kind in (optim.constant_warmup, optim.gradual_warmup):
    rates = [float(kind(100)(e, 1 / 8, 8)) for e in range(0, 200, 8)]
    assert rates == [1 / 8] * len(rates)


def test_a_warmup_may_start_from_a_fraction_of_its_target():
  gradual = optim.gradual_warmup(100, start=0.0)
  constant = optim.constant_warmup(100, start=0.25)
  for factor in (1.0, 8.0):
    got = [float(gradual(e, factor, 64)) for e in (0, 25, 50, 100, 200)]
    expected = [factor * x for x in (0, 0.25, 0.5, 1, 1)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    got = [float(constant(e, factor, 64)) for e in (0, 99, 100)]
    assert got == [factor / 4, factor / 4, factor]


def test_affine_length():
  length = optim.affine_length(3.3, 2.2e-4, num_examples=1_281_167)
  for batch, epochs in ((7_680, 5), (30_000, 10)):
    got = length(batch) / 1_281_167
    np.testing.assert_allclose(got, 3.3 + 2.2e-4 * batch, rtol=1e-6)
    np.testing.assert_allclose(got, epochs, rtol=0.02)  # McCord and Dash
  assert optim.affine_length(-5, 1e-3, num_examples=10)(100) == 0
  warmup = optim.gradual_warmup(length)
  half = float(length(8192)) / 2
  np.testing.assert_allclose(warmup(half, 33.0, 8192), 17.0, rtol=1e-5)


@pytest.mark.parametrize('kind', [optim.constant_warmup, optim.gradual_warmup])
def test_a_warmup_of_no_length_is_none(kind):
  for length in (0, lambda batch: 0 * batch):
    assert kind(length)(0, 8.0, 256) == 8.0


@pytest.mark.parametrize('seed', SEEDS)
def test_the_learning_rate_is_the_product(seed):
  rng = np.random.default_rng(seed)
  tx = optim.scale_by_batch_learning_rate(
    0.1,
    decay=optim.piecewise([3000, 6000]),
    scaling=optim.sqrt_scaling(64),
    warmup=optim.gradual_warmup(1000),
  )
  for examples in rng.integers(0, 9000, 30):
    batch = int(rng.integers(1, 4096))
    decay = 0.1 ** (int(examples >= 3000) + int(examples >= 6000))
    factor = 1 + (math.sqrt(batch / 64) - 1) * min(1, examples / 1000)
    expected = 0.1 * decay * factor
    _, state = tx.update({}, tx.init({}), batch_size=batch, examples=examples)
    np.testing.assert_allclose(state.learning_rate, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: optim.piecewise([10, 10]), 'increasing'),
    (lambda: optim.piecewise([0, 10]), 'positive'),
    (lambda: optim.piecewise([1, 2], [0.1]), '2 boundaries but 1 factors'),
    (lambda: optim.piecewise([1], -0.1), 'negative'),
    (lambda: optim.cosine(0), 'total must be positive'),
    (lambda: optim.linear(-1, 0.1), 'total must be positive'),
    (lambda: optim.polynomial(10, 0), 'power must be positive'),
    (lambda: optim.wsd(0), 'total must be positive'),
    (lambda: optim.wsd(10, 0), r'cooldown must be in \(0, 1\]'),
    (lambda: optim.wsd(10, shape='x'), 'choose one of linear, 1-sqrt'),
    (lambda: optim.average_params(0), 'half_life must be positive'),
    (lambda: optim.to_examples(1, 'steps'), 'epochs, examples, updates, tok'),
    (lambda: optim.to_examples(1, 'epochs'), 'need num_examples'),
    (lambda: optim.to_examples(1, 'tokens'), 'need tokens_per_example'),
    (lambda: optim.to_examples(1, 'updates'), 'need reference_batch_size'),
    (lambda: optim.linear_scaling(0), 'must be positive'),
    (lambda: optim.sqrt_scaling(-1), 'must be positive'),
    (lambda: optim.adascale(0), 'must be positive'),
    (lambda: optim.adascale(32, decay=1.0), 'decay must be in'),
    (lambda: optim.constant_warmup(-1), 'must not be negative'),
    (lambda: optim.gradual_warmup(-1), 'must not be negative'),
    (lambda: optim.gradual_warmup(1, 1.1), r'start must be in \[0, 1\]'),
    (lambda: optim.constant_warmup(1, 0.0), r'start must be in \(0, 1\]'),
    (
      lambda: optim.affine_length(1, 1, num_examples=0),
      'must be positive',
    ),
    (
      lambda: optim.scale_by_adam_in_examples(reference_batch_size=0),
      'must be positive',
    ),
    (lambda: optim.make_optimizer('sgdd', 0.1), 'sgd, momentum, nesterov'),
    (
      lambda: optim.make_optimizer('sgd', lambda e, batch=32: 0.1),
      'both fit: wrap it',
    ),
    (lambda: optim.make_optimizer('sgd', lambda *a: 0.1), 'both fit'),
    (lambda: optim.make_optimizer('sgd', lambda: 0.1), 'neither fits'),
    (lambda: optim.make_optimizer('sgd', lambda a, b, c: 0.1), 'neither fits'),
    (
      lambda: optim.after_batch_growth(
        optim.constant(),
        exponent=2,
        initial_batch_size=1,
        max_batch_size=2,
      ),
      'exponent must be in',
    ),
    (
      lambda: optim.after_batch_growth(
        optim.constant(),
        exponent=0,
        initial_batch_size=4,
        max_batch_size=2,
      ),
      'initial_batch_size <= max_batch_size',
    ),
  ],
)
def test_mistakes_are_named_in_one_line(call, message):
  with pytest.raises(ValueError, match=message) as error:
    call()
  assert '\n' not in str(error.value)


def test_import_needs_neither_flax_nor_the_rest_of_the_project():
  code = (
    'import sys, adabatch.optim\n'
    'bad = [m for m in sys.modules if m.split(".")[0] in '
    '("flax", "orbax", "grain", "ml_collections") or (m.startswith("adabatch.")'
    ' and not m.startswith("adabatch.optim"))]\n'
    'assert not bad, bad'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_every_public_name_has_a_docstring_with_an_equation():
  for name in optim.__all__:
    value = getattr(optim, name)
    if callable(value) and getattr(value, '__module__', '').startswith(
      'adabatch'
    ):
      assert value.__doc__, name
      assert '\n      ' in value.__doc__, name
