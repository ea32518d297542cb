"""The size with the best progress per second, in worlds of known times."""

import json
import math

import numpy as np
import pytest

from adabatch import controllers as c
from adabatch.controllers.speed import PER, fit_time, goodput

SIZES = tuple(8 * 2**i for i in range(10))  # to 4,096


def live(controller, seconds, phi, updates=60, state=None, first=8.0):
  """Sizes of a run whose updates take seconds(size), with noise scale phi."""
  state = controller.init() if state is None else state
  sizes, size = [], first
  for k in range(1, updates + 1):
    noise = phi(k) if callable(phi) else phi
    signals = c.Signals(
      update=k,
      gradient_noise=c.GradientNoise(3.0 * noise, 3.0),
      batch_size=size,
      seconds_per_update=seconds(size),
    )
    size, state = controller.update(state, signals)
    sizes.append(size)
  return sizes, state


def best_of(goodput_of):
  return max(SIZES, key=goodput_of)


@pytest.mark.parametrize('a', [1e-3, 0.1, 3.0])
@pytest.mark.parametrize('ratio', [3.0, 40.0, 500.0])  # a / b, in examples
@pytest.mark.parametrize('phi', [10.0, 300.0, 20_000.0])
def test_the_best_size_is_the_analytic_one(a, ratio, phi):
  """B / (a + b B) / (phi + B) is largest at sqrt(a phi / b)."""
  b = a / ratio
  sizes, _ = live(
    goodput(initial_batch_size=8, sizes=SIZES, gain=1.0),
    lambda size: a + b * size,
    phi,
  )
  best = best_of(lambda size: size / (a + b * size) / (phi + size))
  assert set(sizes[20:]) == {best}
  nearest = min(SIZES, key=lambda size: abs(math.log(size**2 / (ratio * phi))))
  assert best == nearest


@pytest.mark.parametrize('seed', range(3))
def test_what_was_measured_counts_more_than_the_line(seed):
  """Times that are no line: the best of those that were run."""
  rng = np.random.default_rng(seed)
  times = dict(zip(SIZES, 0.1 * rng.uniform(0.8, 1.25, 10), strict=True))
  sizes, state = live(
    goodput(initial_batch_size=8, sizes=SIZES, gain=1.0), times.get, 500.0
  )
  run = [size for size, t in zip(SIZES, state.times, strict=True) if t]
  assert sizes[-1] == max(run, key=lambda s: s / times[s] / (500 + s))
  assert set(state.times) <= {0.0, *times.values()}


def test_no_size_beyond_the_next_is_tried():
  """Though all that is known says that the largest costs nothing more."""
  sizes, _ = live(
    goodput(initial_batch_size=8, sizes=SIZES), lambda size: 0.1, 1e9
  )
  assert sizes[:9] == list(SIZES[1:])
  assert set(sizes[8:]) == {SIZES[-1]}


@pytest.mark.parametrize(
  ('gain', 'changes'), [(1.0, True), (1.05, False), (1.2, False)]
)
def test_a_small_gain_changes_nothing(gain, changes):
  """At 64 the next is 4 % better."""

  def of(size):
    return size / seconds(size) / (phi + size)

  phi = 100.0

  def seconds(size):
    return 1.0 if size < 128 else 2 * (phi + 64) / (phi + 128) / 1.04

  assert of(128) / of(64) == pytest.approx(1.04)
  controller = goodput(initial_batch_size=64, sizes=(64, 128), gain=gain)
  sizes, state = live(controller, seconds, phi, first=64.0)
  assert sizes[0] == 128  # to have two times
  at_64, _ = live(controller, seconds, phi, state=state, first=64.0)
  at_128, _ = live(controller, seconds, phi, state=state, first=128.0)
  assert set(at_64) == {128.0 if changes else 64.0}
  assert set(at_128) == {128.0}


def test_gains_count_from_the_size_that_was_run():
  """Between two decisions a wrapper holds it, whatever is asked for."""
  rule = goodput(initial_batch_size=8, sizes=SIZES, decay=0.5)
  _, state = live(rule, lambda size: 0.1 + 1e-3 * size, 5000.0)

  def asked(phi, size, state):
    for k in range(61, 100):
      signals = c.Signals(
        update=k,
        gradient_noise=c.GradientNoise(3 * phi, 3.0),
        batch_size=size,
        seconds_per_update=0.1 + 1e-3 * size,
      )
      got, state = rule.update(state, signals)
    return got, state

  got, state = asked(5000.0, 64, state)
  assert got == 512
  # Now 128 is 3 % better than 64, and far better than 512.
  assert asked(97.4, 64, state)[0] == 64
  assert asked(97.4, 512, state)[0] == 128


def test_a_cut_batch_runs_in_the_bucket_above():
  rule = goodput(initial_batch_size=8, sizes=SIZES)
  _, state = live(rule, lambda size: 1.0, 100.0, updates=3)
  signals = c.Signals(4, gradient_noise=c.GradientNoise(1.0, 1.0))
  cut = signals._replace(batch_size=33, seconds_per_update=2.5)
  _, after = rule.update(state, cut)
  assert after.times == (1.0, 1.0, 1.0, 2.5, *[0.0] * 6)
  beyond = cut._replace(batch_size=SIZES[-1] + 1)
  assert rule.update(state, beyond)[1].times == state.times


def test_it_follows_the_noise():
  sizes, _ = live(
    goodput(initial_batch_size=8, sizes=SIZES, decay=0.9),
    lambda size: 0.1 + 1e-3 * size,
    lambda k: 10.0 if k < 100 else 5000.0,
    updates=200,
  )
  assert (sizes[90], sizes[-1]) == (32.0, 512.0)
  back, _ = live(
    goodput(initial_batch_size=8, sizes=SIZES, decay=0.9),
    lambda size: 0.1 + 1e-3 * size,
    lambda k: 5000.0 if k < 100 else 10.0,
    updates=200,
  )
  assert (back[90], back[-1]) == (512.0, 32.0)


def test_the_first_size_is_the_floor_unless_told_otherwise():
  def sizes(**kwargs):
    rule = goodput(initial_batch_size=64, sizes=SIZES, **kwargs)
    return live(rule, lambda size: 1e-3 * size, 1.0, first=64.0)[0]

  assert min(sizes()) == 64
  assert min(sizes(floor=False)) == 8


def devices(size):
  """One for each 64 examples."""
  return max(1, int(size) // 64)


@pytest.mark.parametrize('per', PER)
def test_time_and_device_time(per):
  """With as many devices as there are shares of 64, an update of any size takes
  the same time; the device-seconds grow with it."""

  def seconds(size):
    return 0.05 + 1e-3 * size / devices(size)

  rule = goodput(
    initial_batch_size=8, sizes=SIZES, devices=devices, per=per, gain=1.0
  )
  sizes, _ = live(rule, seconds, 1000.0)

  def progress(size):
    cost = devices(size) if per == 'device_second' else 1
    return size / seconds(size) / (1000 + size) / cost

  assert sizes[-1] == best_of(progress)
  assert sizes[-1] == (64 if per == 'device_second' else 4096)


def test_times_of_other_devices_do_not_count():
  state = goodput(initial_batch_size=8, sizes=SIZES).init()
  _, state = live(
    goodput(initial_batch_size=8, sizes=SIZES), lambda size: 1.0, 50.0
  )
  other = goodput(initial_batch_size=8, sizes=SIZES, devices=lambda size: 2)
  sizes, state = live(other, lambda size: 0.1, 50.0, updates=1, state=state)
  assert sizes == [16.0]  # of one size alone is anything known
  assert state.times[0] == 0.1


def test_it_waits_for_a_time_and_for_noise_above_zero():
  rule = goodput(initial_batch_size=8, sizes=SIZES)
  _, state = live(rule, lambda size: 0.1, 1e9, updates=2)
  assert state.batch_size == 32
  size = 16.0  # is what a wrapper has made of it
  for noise in (c.GradientNoise(-1e15, 1.0), c.GradientNoise(1.0, -1e15)):
    signals = c.Signals(3, None, None, gradient_noise=noise, batch_size=size)
    got, _ = rule.update(state, signals._replace(seconds_per_update=0.1))
    assert got == size
  signals = signals._replace(seconds_per_update=math.nan)
  got, after = rule.update(state, signals)
  assert (got, after) == (32.0, state._replace(ignored=1))


def test_one_size_is_kept():
  for sizes in ((8,), (4, 8)):
    rule = goodput(initial_batch_size=8, sizes=sizes)
    assert set(live(rule, lambda size: 0.1, 1e9)[0]) == {8.0}
  below = goodput(initial_batch_size=8, sizes=(4, 8), floor=False)
  assert live(below, lambda size: 0.1, 1e9)[0][:2] == [4.0, 8.0]


def test_the_state_goes_on_through_json():
  """The same decisions, whatever the clock says from then on."""
  rule = goodput(initial_batch_size=8, sizes=SIZES)
  times = lambda size: 0.1 + 1e-3 * size * (1 + 1 / 3)  # noqa: E731
  sizes, _ = live(rule, times, 700.0, updates=40)
  before, state = live(rule, times, 700.0, updates=5)
  text = json.dumps(c.state_to_json(state), allow_nan=False)
  again = goodput(initial_batch_size=8, sizes=SIZES)
  restored = c.state_from_json(again.init(), json.loads(text))
  assert restored == state
  after, _ = live(again, times, 700.0, 35, state=restored, first=before[-1])
  assert before + after == sizes
  other = goodput(initial_batch_size=8, sizes=SIZES[:5])
  with pytest.raises(ValueError, match='a list of 5') as error:
    c.state_from_json(other.init(), json.loads(text))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('seed', range(4))
def test_the_line_is_that_of_least_squares(seed):
  """Against NumPy's, where neither end is at 0."""
  rng = np.random.default_rng(seed)
  x = rng.uniform(1, 1000, 8)
  t = (0.3 + 2e-3 * x) * rng.uniform(0.9, 1.1, 8)
  model = fit_time(x, t)
  matrix = np.stack([1 / t, x / t], 1)
  expected = np.linalg.lstsq(matrix, np.ones(8), rcond=None)[0]
  np.testing.assert_allclose([model.fixed, model.each], expected, rtol=1e-6)


@pytest.mark.parametrize(
  ('shares', 'seconds', 'fixed', 'each'),
  [
    ((8, 16), (0.2, 0.2), 0.2, 0.0),
    ((8, 16), (0.08, 0.16), 0.0, 0.01),
    ((8, 16), (0.05, 0.2), 0.0, 0.01),  # the mean of 0.00625 and 0.0125, by t
    ((8, 8), (0.2, 0.2), 0.2, 0.0),
    ((8, 16), (1e-9, 1e-9), 1e-9, 0.0),
    ((8, 16), (1e9, 2e9), 0.0, 1.25e8),
  ],
)
def test_neither_part_of_the_line_is_below_zero(shares, seconds, fixed, each):
  model = fit_time(shares, seconds)
  assert model.fixed == pytest.approx(fixed, rel=1e-6, abs=1e-9 * max(seconds))
  if fixed or seconds[1] == 2 * seconds[0]:
    assert model.each == pytest.approx(each, rel=1e-6)
  u, v = np.array(seconds), np.array(shares)
  error = lambda a, b: np.sum(((a + b * v - u) / u) ** 2)  # noqa: E731
  least = error(model.fixed, model.each)
  assert model.fixed >= 0
  assert model.each >= 0
  for da, db in ((1e-3, 0), (0, 1e-3), (-1e-3, 0), (0, -1e-3)):
    near = model.fixed + da * max(u), model.each + db * max(u) / max(v)
    assert min(near) < 0 or error(*near) >= least * (1 - 1e-9)
