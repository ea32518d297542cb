"""Each rule and wrapper against a slow, plain reference."""

import decimal
import fractions
import json
import math
import statistics

import numpy as np
import pytest

from adabatch import controllers as c
from tests.controllers.test_controllers import B0, CASES, random_signals, run


@pytest.fixture(params=(0, 1, 2))
def seed(request):
  return request.param


def ema(values, decay):
  """sum_i d^(n-i) x_i / sum_i d^(n-i) of the values that are not None."""
  x = np.array([v for v in values if v is not None])
  weights = decay ** np.arange(len(x))[::-1]
  return float(weights @ x / weights.sum())


def r(x):
  """What a rule divides has four significant digits; exact, for `ceil`."""
  return fractions.Fraction(decimal.Context(prec=4).create_decimal(x))


def field(signals, name):
  return [getattr(s, name) for s in signals]


def noise(signals, name):
  return [s.gradient_noise and getattr(s.gradient_noise, name) for s in signals]


def reference(size, signals):
  """B_k = size(signals 0..k) for each k; None keeps the last size."""
  sizes = [B0]
  for k in range(len(signals)):
    new = size(signals[: k + 1])
    sizes.append(sizes[-1] if new is None else float(new))
  return sizes[1:]


def compare(controller, size, signals, moves=True):
  actual, state = run(controller, signals)
  expected = reference(size, signals)
  np.testing.assert_allclose(actual, expected, rtol=1e-9)
  assert (len(set(expected)) > 5) == moves
  return state


def test_probe_doubles_where_it_costs_nothing(seed):
  signals = random_signals(seed, growth=-0.03)
  size, expected = float(B0), []
  for measured in field(signals, 'critical_batch_size'):
    size = 2 * size if measured >= 2 * size else size
    expected.append(size)
  assert run(CASES['probe'](), signals)[0] == expected
  assert expected[-1] > expected[0]


@pytest.mark.parametrize(('source', 'name'), [
  ('full', 'full_loss'), ('subset', 'subset_loss')
])  # fmt: skip
@pytest.mark.parametrize(('minimum', 'exponent'), [
  (0.0, 1.0), (0.2, 1.0), (0.0, 2), (0.2, 4.76)
])  # fmt: skip
def test_adadamp(seed, source, name, minimum, exponent):
  controller = c.adadamp(
    initial_batch_size=B0,
    loss_source=source,
    minimum_loss=minimum,
    exponent=exponent,
  )
  assert controller.needs == {name}

  def size(signals):
    first, last = getattr(signals[0], name), getattr(signals[-1], name)
    ratio = r(first - minimum) / r(last - minimum)
    return max(math.ceil(B0 * ratio**exponent), B0)

  compare(controller, size, random_signals(seed))


@pytest.mark.parametrize('first', [1, 2, 17])
def test_adadamp_of_the_smoothed_loss(seed, first):
  """F(x_0) is the mean of the first losses; until then the size is B_0."""
  controller = c.adadamp(
    initial_batch_size=B0, minimum_loss=0.1, decay=0.8, initial_updates=first
  )
  assert controller.needs == {'loss'}

  def size(signals):
    losses = field(signals, 'loss')[1:]
    if len(losses) < first:
      return None
    initial = np.mean(losses[:first]) - 0.1
    left = r(ema(losses, 0.8) - 0.1)
    return max(math.ceil(B0 * r(initial) / left), B0)

  compare(controller, size, random_signals(seed))


def test_where_a_run_began_is_known_better_from_more_updates():
  """Sizes after 20 updates: the spread over seeds falls as of a mean of 20."""
  spreads = []
  for first in (1, 20):
    sizes = []
    for seed in range(40):
      losses = np.random.default_rng(seed).lognormal(0.0, 0.3, 20)
      controller = c.adadamp(
        initial_batch_size=1000, decay=0.99, initial_updates=first, floor=False
      )
      signals = [
        c.Signals(k, loss=float(x)) for k, x in enumerate(losses, start=1)
      ]
      sizes.append(run(controller, signals)[0][-1])
    spreads.append(np.std(np.log(sizes)))
  assert spreads[0] == pytest.approx(0.3, rel=0.2)
  # What is left is how the moving average differs from the plain mean.
  assert spreads[1] < 0.3 / 20**0.5 / 2


def test_the_loss_that_is_left_keeps_its_digits():
  """Of a loss of 1.00049 and F* = 1: rounded before, it would be nothing."""
  controller = c.adadamp(
    initial_batch_size=B0, loss_source='full', minimum_loss=1.0
  )
  signals = [
    c.Signals(0, full_loss=2.0),
    c.Signals(1, full_loss=1.00049),
    c.Signals(2, full_loss=1.00049 + 1e-9),  # as on other devices
  ]
  sizes, _ = run(controller, signals)
  assert sizes[1] == sizes[2] == pytest.approx(130_612, rel=1e-5)


@pytest.mark.parametrize('name', [
  'adadamp full', 'adadamp ema first', 'adadamp_grad full', 'adadamp_grad ema',
  'radadamp', 'radadamp median', 'noise_scale', 'norm_test', 'cabs',
])  # fmt: skip
def test_sizes_do_not_see_the_order_of_a_sum(name, seed):
  """Sums over devices differ in the seventh digit, sizes in none.

  A digit may fall on the other side of a rounding, once in a thousand times.
  """
  signals = random_signals(seed, num=300, growth=-0.005)

  def other_order(x):
    return None if x is None else x * (1 + 1e-7 * rng.uniform(-1, 1))

  rng = np.random.default_rng(seed)
  others = [
    s._replace(
      gradient_noise=s.gradient_noise
      and c.GradientNoise(*map(other_order, s.gradient_noise)),
      **{
        name: other_order(getattr(s, name))
        for name in s._fields
        if name.endswith(('loss', 'norm_squared', 'rate'))
      },
    )
    for s in signals
  ]
  sizes, same = (run(CASES[name](), x)[0] for x in (signals, others))
  assert len(set(sizes)) > 20
  assert np.mean(np.array(sizes) != same) < 0.01


def test_adadamp_measured_once_in_a_while(seed):
  signals = [
    s if s.update % 7 == 0 else s._replace(full_loss=None)
    for s in random_signals(seed)
  ]

  def size(signals):
    losses = [x for x in field(signals, 'full_loss') if x is not None]
    return max(math.ceil(B0 * r(losses[0]) / r(losses[-1])), B0)

  rule = c.adadamp(initial_batch_size=B0, loss_source='full')
  compare(c.every(rule, updates=7), size, signals)


def test_adadamp_refuses_a_minimum_above_the_first_loss():
  signals = random_signals(0)
  for source in ('full', 'subset', 'ema'):
    controller = c.adadamp(
      initial_batch_size=B0, loss_source=source, minimum_loss=50.0
    )
    with pytest.raises(ValueError, match='minimum_loss=50.0 .* initial loss'):
      run(controller, signals)
  for controller in (
    c.radadamp(initial_batch_size=B0, minimum_loss=50.0),
    c.cabs(initial_batch_size=B0, minimum_loss=50.0),
  ):
    with pytest.raises(ValueError, match='minimum_loss=50.0 .* initial loss'):
      run(controller, signals)


def below_minimum(controller, losses):
  signals = [
    c.Signals(k, full_loss=x, loss=x, learning_rate=1.0,
              gradient_norm_squared=1.0, gradient_noise=c.GradientNoise(96, 1))
    for k, x in enumerate(losses, start=1)
  ]  # fmt: skip
  sizes, state = run(controller, signals)
  return sizes, c.losses_below_minimum(c.every(controller).init()._replace(
    inner=state
  ))  # fmt: skip


def test_a_loss_that_is_not_above_the_minimum_keeps_the_size():
  losses = [1.5, 1.0, 0.5, 0.4, 1.0, 1.5]
  for controller in (
    c.adadamp(initial_batch_size=B0, loss_source='full', minimum_loss=0.5),
    c.adadamp(initial_batch_size=B0, minimum_loss=0.5, decay=0.0),
  ):
    assert below_minimum(controller, losses) == (
      [64, 128, 128, 128, 128, 64],
      2,
    )
  radadamp = c.radadamp(
    initial_batch_size=B0, minimum_loss=0.5, rho=0.0, window=1, reduction='max'
  )
  # The second block holds the first update too.
  sizes, count = below_minimum(radadamp, [1.5, 1.0, 1.0, 0.5, 0.4, 1.0])
  assert (sizes, count) == ([64, 64, 86, 86, 86, 86], 2)
  cabs = c.cabs(initial_batch_size=B0, minimum_loss=0.5, decay=0.0)
  assert below_minimum(cabs, losses) == ([96, 192, 192, 192, 192, 96], 2)


@pytest.mark.parametrize(('source', 'name'), [
  ('full', 'full_gradient_norm_squared'),
  ('subset', 'subset_gradient_norm_squared'),
])  # fmt: skip
def test_adadamp_grad(seed, source, name):
  controller = c.adadamp_grad(initial_batch_size=B0, gradient_source=source)
  assert controller.needs == {name}

  def size(signals):
    first, last = getattr(signals[0], name), getattr(signals[-1], name)
    return max(math.ceil(B0 * r(first) / r(last)), B0)

  compare(controller, size, random_signals(seed))


@pytest.mark.parametrize('first', [1, 8])
def test_adadamp_grad_of_the_unbiased_estimate(seed, first):
  """From the mean of the first estimates, or of more until it is positive."""
  controller = c.adadamp_grad(
    initial_batch_size=B0, decay=0.5, initial_updates=first
  )
  assert controller.needs == {'gradient_noise'}
  signals = [
    s._replace(gradient_noise=s.gradient_noise and s.gradient_noise._replace(
      squared_norm=s.gradient_noise.squared_norm - 2.5))
    for s in random_signals(seed, growth=-0.01)
  ]  # fmt: skip

  def size(signals):
    norms = noise(signals, 'squared_norm')[1:]
    means = [np.mean(norms[:n]) for n in range(first, len(norms) + 1)]
    positive = [x for x in means if x > 0]
    if not positive or ema(norms, 0.5) <= 0:
      return None
    return max(math.ceil(B0 * r(positive[0]) / r(ema(norms, 0.5))), B0)

  assert any(x is not None and x < 0 for x in noise(signals, 'squared_norm'))
  compare(controller, size, signals)


REDUCTIONS = {
  'min': min, 'mean': np.mean, 'median': statistics.median, 'max': max
}  # fmt: skip


@pytest.mark.parametrize('reduction', REDUCTIONS)
@pytest.mark.parametrize('minimum', [0.0, 0.2])
@pytest.mark.parametrize(
  ('window', 'first'), [(4, 1), (4, 10), (4, 3), (20, 100)]
)
def test_radadamp(seed, reduction, minimum, window, first):
  """As the authors' code does it: `first` is their `wait`, `window` `dwell`.

  It waits, keeps what it saw in the waiting, and looks every `window` updates.
  """
  controller = c.radadamp(
    initial_batch_size=B0,
    rho=0.2,
    window=window,
    reduction=reduction,
    minimum_loss=minimum,
    initial_updates=first,
  )
  assert controller.needs == {'loss', 'gradient_norm_squared'}
  signals = random_signals(seed, num=200, growth=-0.01)
  history, initial, rolling, expected = [], None, None, [B0]
  for k, s in enumerate(signals[1:], start=1):
    history.append((s.loss - minimum, s.gradient_norm_squared))
    size = expected[-1]
    if k >= max(window, first) and (k - max(window, first)) % window == 0:
      now = [REDUCTIONS[reduction](x) for x in zip(*history, strict=True)]
      if initial is None:
        initial = rolling = now
      else:
        rolling = [0.2 * a + 0.8 * b for a, b in zip(rolling, now, strict=True)]
        history = []
        ratios = [r(a) / r(b) for a, b in zip(rolling, initial, strict=True)]
        size = math.ceil(max(B0 / np.mean(ratios), B0))
    expected.append(size)
  assert run(controller, signals)[0] == expected
  assert len(set(expected)) > 3


def test_radadamp_does_not_run_away_with_its_own_effect():
  """Where ||g||^2 is nothing but noise over B, sizes end at B_0 F_0 / F."""
  controller = c.radadamp(initial_batch_size=B0, window=1, rho=0.0)
  size, state, losses = B0, controller.init(), [2.0, *[0.25] * 30]
  for k, loss in enumerate(losses, start=1):
    signals = c.Signals(k, loss=loss, gradient_norm_squared=3.0 / size)
    size, state = controller.update(state, signals)
  assert size == pytest.approx(B0 * 2.0 / 0.25, rel=1e-2)


def test_padadamp(seed):
  compare(
    c.padadamp(initial_batch_size=B0, rate=0.37),
    lambda signals: math.ceil(B0 + 0.37 * signals[-1].update),
    random_signals(seed),
  )


def test_padadamp_rate(seed):
  b0, growth, epochs, n = np.random.default_rng(seed).integers(1, 1000, 4)
  rate = c.padadamp_rate(
    initial_batch_size=b0,
    max_batch_size=b0 + growth,
    epochs=epochs,
    num_examples=n,
  )
  top = 4 * growth * (3 * b0 + 2 * growth + 3)
  assert rate == pytest.approx(top / (6 * growth + 9 * epochs * n), rel=1e-12)


def test_geodamp(seed):
  def size(signals):
    result, epoch = B0, signals[-1].epoch
    while epoch >= 0.7:
      result, epoch = result * 1.5, epoch - 0.7
    return result

  controller = c.geodamp(initial_batch_size=B0, factor=1.5, delay_epochs=0.7)
  compare(controller, size, random_signals(seed))


@pytest.mark.parametrize('delay', [0.1, 0.7, 5.0])
def test_geodamp_steps_at_the_epoch(delay):
  controller = c.geodamp(initial_batch_size=2, delay_epochs=delay)
  for i in range(1, 30):
    for epoch, steps in ((i * delay, i), (i * delay - 1e-6, i - 1)):
      signals = c.Signals(epoch=epoch)
      assert controller.update(controller.init(), signals)[0] == 2 * 2.0**steps


def test_step_table(seed):
  table = '0:768 1.1K:1536 2k:32 0.000003B:64 5e-9T:8'
  counts, sizes = (0, 1100, 2000, 3000, 5000), (768, 1536, 32, 64, 8)

  def size(signals):
    seen = signals[-1].examples
    return [b for n, b in zip(counts, sizes, strict=True) if n <= seen][-1]

  signals = random_signals(seed)
  controller = c.step_table(table=table)
  assert controller.needs == {'examples'}
  compare(controller, size, signals, moves=False)
  pairs = list(zip(counts, sizes, strict=True))
  assert run(c.step_table(table=pairs), signals) == run(controller, signals)
  by_epoch = c.step_table(
    table=[[n / 1000, b] for n, b in pairs], unit='epochs'
  )
  assert by_epoch.needs == {'epoch'}
  assert run(by_epoch, signals)[0] == run(controller, signals)[0]
  by_token = c.step_table(
    table=[[n * 64, b] for n, b in pairs], unit='tokens', tokens_per_example=64
  )
  assert by_token.needs == {'examples'}
  assert run(by_token, signals)[0] == run(controller, signals)[0]
  exact = [c.Signals(examples=n) for n in (0, 1099, 1100, 1999, 2000)]
  assert run(controller, exact)[0] == [768, 768, 1536, 1536, 32]


def test_step_table_that_starts_late():
  controller = c.step_table(table='1K:128', initial_batch_size=B0)
  sizes, _ = run(controller, signals := random_signals(0))
  assert sizes == [64 if s.examples < 1000 else 128 for s in signals]
  unused = c.step_table(table='0:8 1K:128', initial_batch_size=B0)
  assert run(unused, signals[:1])[0] == [8]


def test_schedules_as_others_write_them_down():
  """OLMo-core's of 1B, called and saved; Megatron's of its own help."""
  counts = (0, 167_772_160_000, 503_316_480_000)
  durations = ', '.join(f'Duration.tokens({n:_})' for n in counts)
  arguments = (
    'batch_sizes=[1024 * 4096, 1024 * 4096 * 2, 4_194_304 * 4],\n'
    f'schedule=[\n{durations},\n],\n'
  )
  saved = {
    '_CLASS_': 'BatchSizeSchedulerCallback',
    'batch_sizes': [4_194_304 * i for i in (1, 2, 4)],
    'schedule': [{'value': n, 'unit': 'tokens'} for n in counts],
  }
  expected = [
    (n / 4096, 1024 * i) for n, i in zip(counts, (1, 2, 4), strict=True)
  ]
  for text in (
    arguments,
    f'BatchSizeSchedulerCallback({arguments})',
    json.dumps(saved),
  ):
    assert c.read_table(text, 'tokens', 4096) == expected
    rule = c.step_table(table=text, unit='tokens', tokens_per_example=4096)
    for examples, size in ((40_959_999, 1024), (40_960_000, 2048)):
      assert rule.update(rule.init(), c.Signals(0, examples, 0.0))[0] == size
  table = '0:768 250B:1536 500B:3072 750B:6144'
  assert c.read_table(table, 'tokens', 8192) == [
    (i * 250e9 / 8192, 768 * 2**i) for i in range(4)
  ]


def test_ramp_up(seed):
  controller = c.ramp_up(
    initial_batch_size=B0, final_batch_size=256, increment=24, examples=3500
  )
  ramp = [(i * 3500 / 8, B0 + 24 * i) for i in range(9)]
  compare(
    controller,
    lambda signals: [b for n, b in ramp if n <= signals[-1].examples][-1],
    random_signals(seed),
  )
  start, increment, samples = c.parse_ramp(f'{B0} 24 {3.5 * 128}K')
  by_token = c.ramp_up(
    initial_batch_size=start,
    final_batch_size=256,
    increment=increment,
    examples=samples,
    unit='tokens',
    tokens_per_example=128,
  )
  signals = random_signals(seed)
  assert run(by_token, signals)[0] == run(controller, signals)[0]
  flat = c.ramp_up(
    initial_batch_size=8, final_batch_size=8, increment=1, examples=1
  )
  assert run(flat, random_signals(seed)[:3])[0] == [8, 8, 8]


def test_from_lr_schedule(seed):
  peak, end = 1000, 5000

  def schedule(examples):
    if examples < peak:
      return np.float32(0.4 * examples / peak)
    return np.float32(0.4 * max(end - examples, 0) / (end - peak))

  def size(signals):
    seen = signals[-1].examples
    largest = max(float(schedule(s.examples)) for s in signals)
    lr = float(schedule(seen))
    return B0 if not largest else B0 / max(lr / largest, 1e-12)

  controller = c.from_lr_schedule(schedule, initial_batch_size=B0)
  signals = random_signals(seed)
  actual, _ = run(controller, signals)
  np.testing.assert_allclose(actual, reference(size, signals), rtol=1e-5)
  assert actual[-1] == B0 * 1e12  # the schedule has ended at 0
  assert signals[3].examples < peak
  assert set(actual[:3]) == {B0}  # warmup


@pytest.mark.parametrize('power', [0, 1, 2, 3])
def test_from_lr_schedule_does_not_see_float32(power):
  decay = np.float32(10.0**-power)
  controller = c.from_lr_schedule(
    lambda examples: np.float32(0.3) * (decay if examples else 1),
    initial_batch_size=B0,
  )
  signals = [c.Signals(examples=0), c.Signals(update=1, examples=64)]
  assert run(controller, signals)[0] == [B0, B0 * 10**power]


def test_from_lr_schedule_ignores_what_is_not_finite():
  values = [1.0, math.nan, 0.5, math.inf, 0.25]
  controller = c.from_lr_schedule(
    lambda examples: values[examples], initial_batch_size=B0
  )
  signals = [c.Signals(update=i, examples=i) for i in range(5)]
  sizes, state = run(controller, signals)
  assert sizes == [B0, B0, 2 * B0, 2 * B0, 4 * B0]
  assert state.ignored == 2


def scale(signals, factor, decay):
  if len(signals) < 2:
    return None
  trace = ema(noise(signals, 'trace_covariance'), decay)
  norm = ema(noise(signals, 'squared_norm'), decay)
  return factor * r(trace) / r(norm) if min(trace, norm) > 0 else None


def test_noise_scale(seed):
  compare(
    c.noise_scale(initial_batch_size=B0, c=1.7, decay=0.9),
    lambda signals: max(scale(signals, 1.7, 0.9) or 0, B0),
    random_signals(seed),
  )


@pytest.mark.parametrize('name', ['trace_covariance', 'squared_norm'])
def test_noise_scale_keeps_the_size_while_an_average_is_negative(seed, name):
  signals = [
    s if s.update < 20 or s.update > 40
    else s._replace(gradient_noise=s.gradient_noise._replace(**{name: -900.0}))
    for s in random_signals(seed)
  ]  # fmt: skip
  controller = c.noise_scale(initial_batch_size=B0, decay=0.5)
  compare(
    controller,
    lambda signals: (b := scale(signals, 1, 0.5)) and max(b, B0),
    signals,
  )
  sizes, _ = run(controller, signals)
  assert len(set(sizes[24:41])) == 1


def test_norm_test_is_the_noise_scale_that_never_shrinks(seed):
  def size(signals):
    best = [scale(signals[: i + 1], 4, 0.9) for i in range(len(signals))]
    return max([B0, *(math.ceil(b) for b in best if b is not None)])

  signals = random_signals(seed)
  controller = c.norm_test(initial_batch_size=B0, eta=0.5, decay=0.9)
  compare(controller, size, signals)
  twin = c.monotone(c.noise_scale(initial_batch_size=B0, c=4, decay=0.9))
  assert run(controller, signals)[0] == list(
    map(math.ceil, run(twin, signals)[0])
  )


def test_cabs(seed):
  controller = c.cabs(initial_batch_size=B0, c=2.0, minimum_loss=0.1)
  assert controller.needs == {'loss', 'learning_rate', 'gradient_noise'}

  def size(signals):
    if len(signals) < 2:
      return None
    trace = r(ema(noise(signals, 'trace_covariance'), 0.95))
    left = r(ema(field(signals, 'loss'), 0.95) - 0.1)
    return max(2 * r(signals[-1].learning_rate) * trace / left, B0)

  compare(controller, size, random_signals(seed))


def test_cabs_keeps_the_size_while_the_average_is_negative():
  controller = c.cabs(initial_batch_size=B0, decay=0.0)
  sizes, _ = run(controller, [
    c.Signals(k, loss=1.0, learning_rate=1.0,
              gradient_noise=c.GradientNoise(trace, 1.0))
    for k, trace in enumerate([200.0, -1.0, 0.0, 300.0])
  ])  # fmt: skip
  assert sizes == [200, 200, 200, 300]


def decided(controller, due, change, signals):
  """A wrapper's sizes, from the inner controller's own run."""
  held, sizes = None, []
  for s, inner in zip(signals, run(controller, signals)[0], strict=True):
    if held is None:
      held = inner
    elif due(s.update):
      held = change(held, inner)
    sizes.append(held)
  return sizes


@pytest.mark.parametrize(('updates', 'wait'), [(1, 0), (5, 0), (5, 12), (3, 7)])
def test_every_holds_but_its_inner_average_sees_all(seed, updates, wait):
  inner = c.adadamp(initial_batch_size=B0, loss_source='ema')
  controller = c.every(inner, updates=updates, wait=wait)
  signals = random_signals(seed)
  allowed = {0, *range(wait, len(signals), updates)}
  assert {k for k in range(len(signals)) if controller.due(k)} == allowed
  sizes, state = run(controller, signals)
  free, inner_state = run(inner, signals)
  latest = [max(k for k in allowed if k <= s.update) for s in signals]
  assert sizes == [free[k] for k in latest]
  assert state.inner == inner_state
  blind, _ = run(inner, [s for s in signals if s.update in allowed])
  if updates > 1:
    assert blind[-1] != free[max(allowed)]


def test_every_inside_every_needs_both():
  inner = c.padadamp(initial_batch_size=B0, rate=1.0)
  controller = c.every(c.every(inner, updates=2), updates=3)
  sizes, _ = run(controller, random_signals(0)[:20])
  assert sizes == [B0 + k // 6 * 6 for k in range(20)]


def test_every_keeps_a_constant_undisturbed():
  controller = c.every(c.constant(initial_batch_size=B0), updates=3)
  assert [k for k in range(50) if controller.due(k)] == [0]


@pytest.mark.parametrize(('wrap', 'change'), [
  (c.monotone, max),
  (lambda x: c.smooth(x, 0.7), lambda held, new: held**0.7 * new**0.3),
  (lambda x: c.limit_growth(x, 1.1), lambda held, new: min(new, 1.1 * held)),
  (lambda x: c.hysteresis(x, 1.3),
   lambda held, new: new if max(new / held, held / new) > 1.3 else held),
], ids=['monotone', 'smooth', 'limit_growth', 'hysteresis'])  # fmt: skip
@pytest.mark.parametrize('growth', [-0.05, 0.0])
@pytest.mark.parametrize('updates', [1, 4])
def test_wrappers(seed, wrap, change, growth, updates):
  signals = random_signals(seed, growth=growth)
  inner = c.every(
    c.cabs(initial_batch_size=B0, decay=0.3, floor=False), updates
  )
  controller = wrap(inner)
  sizes, _ = run(controller, signals)
  expected = decided(inner, inner.due, change, signals)
  np.testing.assert_allclose(sizes, expected, rtol=1e-12)
  assert [controller.due(k) for k in range(9)] == [
    inner.due(k) for k in range(9)
  ]
  assert controller.needs == inner.needs
  if growth:
    assert expected != run(inner, signals)[0]


def test_smooth_leaves_an_equal_size_alone():
  signals = random_signals(0)
  for size in range(60, 300):
    inner = c.step_table(table=[(0, size)])
    assert set(run(c.smooth(inner, 0.1), signals[:4])[0]) == {size}


@pytest.mark.parametrize('rho', [0.0, 0.3, 1 - 2**-53])
def test_smooth_stays_between_the_old_size_and_the_new_one(rho):
  for low, high in ((1, 49), (1, 1e300), (64, 64e12)):
    for table in ([(0, low), (1, high)], [(0, high), (1, low)]):
      controller = c.smooth(c.step_table(table=table), rho)
      signals = [c.Signals(examples=0), c.Signals(1, examples=1)]
      size = run(controller, signals)[0][1]
      assert low <= size <= high
      if not rho:
        assert size == table[1][1]
