"""From nominal sizes to buckets: the promises of every plan, over sweeps."""

import itertools
import math

import numpy as np
import pytest

from adabatch.controllers import buckets
from adabatch.controllers.buckets import (
  Bucket,
  Plan,
  bucket_for,
  ladder,
  next_rung,
  plan,
)

LADDERS = {
  'doubling': {'smallest': 32, 'largest': 1024},
  'top not a power': {'smallest': 32, 'largest': 300},
  'from one': {'smallest': 1, 'largest': 100, 'growth': 1.5},
  'fine': {'smallest': 10, 'largest': 500, 'growth': 1.1},
  'odd': {'smallest': 7, 'largest': 777, 'growth': 3.0},
  'one rung': {'smallest': 64, 'largest': 64},
}
HARDWARE = list(itertools.product((1, 2, 3, 8), (None, 1, 7, 64)))


def nominal_sizes(rungs):
  """From 1 to far beyond the top: at, beside and between the rungs."""
  top = rungs[-1]
  at = [float(r) for r in rungs]
  beside = [s for r in rungs for s in (r - 0.5, r + 0.5, r - 1, r + 1)]
  spread = np.random.Generator(np.random.Philox(0)).uniform(0, 1, 100)
  between = np.exp(spread * math.log(4 * top)).tolist()
  return [s for s in (1.0, *at, *beside, *between, 1e6) if s >= 1]


def sweep(name, rounding):
  for devices, limit in HARDWARE:
    rungs = ladder(
      **LADDERS[name],
      devices=devices,
      max_per_device=limit,
      rounding=rounding,
    )
    for nominal in nominal_sizes(rungs.batch_sizes):
      yield rungs, nominal, plan(nominal, rungs)


@pytest.mark.parametrize('rounding', buckets.ROUNDINGS)
@pytest.mark.parametrize('name', LADDERS)
def test_every_plan_fits_the_hardware(name, rounding):
  for rungs, nominal, planned in sweep(name, rounding):
    smallest, largest = rungs.batch_sizes[0], rungs.batch_sizes[-1]
    bucket = planned.bucket
    assert isinstance(planned.batch_size, int)
    assert smallest <= planned.batch_size <= min(bucket.slots, largest)
    assert bucket.devices == rungs.devices
    limit = rungs.max_per_device
    assert limit is None or bucket.microbatch_size <= limit
    assert bucket.slots_per_device == (
      bucket.microbatch_size * bucket.accumulation_steps
    )
    assert planned.damping == min(1.0, largest / nominal)
    # As many programs as rungs, however fine the nominal sizes are.
    assert bucket in {bucket_for(r, rungs) for r in rungs.batch_sizes}


@pytest.mark.parametrize('name', LADDERS)
def test_up_is_the_smallest_rung_that_holds_the_nominal_size(name):
  for rungs, nominal, planned in sweep(name, 'up'):
    holding = [r for r in rungs.batch_sizes if r >= nominal]
    top = rungs.batch_sizes[-1]
    assert planned.batch_size == (min(holding) if holding else top)


@pytest.mark.parametrize('name', LADDERS)
def test_exact_runs_the_ceiling_in_the_bucket_of_up(name):
  for rungs, nominal, planned in sweep(name, 'exact'):
    smallest, largest = rungs.batch_sizes[0], rungs.batch_sizes[-1]
    assert planned.batch_size == max(min(math.ceil(nominal), largest), smallest)
    up = plan(nominal, rungs._replace(rounding='up'))
    assert planned.bucket == up.bucket
    assert planned.damping == up.damping


@pytest.mark.parametrize('name', LADDERS)
def test_nearest_is_nearest_in_ratio(name):
  for rungs, nominal, planned in sweep(name, 'nearest'):

    def distance(size, nominal=nominal):
      return max(size / nominal, nominal / size)

    best = min(map(distance, rungs.batch_sizes))
    assert distance(planned.batch_size) == pytest.approx(best, rel=1e-12)
    assert planned.bucket == bucket_for(planned.batch_size, rungs)


def test_nearest_goes_up_in_the_middle():
  rungs = ladder(32, 128, devices=1, growth=4.0, rounding='nearest')
  assert [plan(b, rungs).batch_size for b in (63.9, 64.1)] == [32, 128]


@pytest.mark.parametrize('rounding', buckets.ROUNDINGS)
@pytest.mark.parametrize('name', LADDERS)
def test_batch_sizes_do_not_depend_on_the_devices(name, rounding):
  def sizes(devices, limit):
    rungs = ladder(
      **LADDERS[name], devices=devices, max_per_device=limit, rounding=rounding
    )
    nominal = nominal_sizes(rungs.batch_sizes)
    return [plan(b, rungs)[1:3] for b in nominal]

  expected = sizes(1, None)
  for devices, limit in HARDWARE:
    assert sizes(devices, limit) == expected


@pytest.mark.parametrize('rounding', buckets.ROUNDINGS)
@pytest.mark.parametrize(
  'nominal', [64.00000000000001, 64.0, 63.99999999999999]
)
def test_a_rounding_error_does_not_cost_a_rung(rounding, nominal):
  rungs = ladder(32, 128, devices=1, rounding=rounding)
  assert plan(nominal, rungs) == Plan(nominal, 64, 1.0, Bucket(64, 1, 1))


def test_a_little_more_than_a_rung_does():
  assert plan(64.0001, ladder(32, 128, devices=1)).batch_size == 128
  exact = ladder(32, 128, devices=1, rounding='exact')
  assert plan(64.0001, exact).batch_size == 65


def test_damping_stands_in_for_the_batch_beyond_the_cap():
  rungs = ladder(32, 256, devices=2)
  assert [plan(b, rungs).damping for b in (16.0, 256.0, 320.0, 2560.0)] == [
    1.0,
    1.0,
    0.8,
    0.1,
  ]


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    ((32, 300, 2.0), (32, 64, 128, 256, 300)),
    ((5, 5, 2.0), (5,)),
    ((1, 5, 1.0001), (1, 2, 3, 4, 5)),
    ((10, 100, 10.0), (10, 100)),
    # 100 * 1.1 is 110.00000000000001 in floating point.
    ((100, 130, 1.1), (100, 110, 121, 130)),
    # 1, 2, 3, 4.5, 6.75, 10.125: the last rounds up to the top itself.
    ((1, 11, 1.5), (1, 2, 3, 5, 7, 11)),
  ],
)
def test_rungs(arguments, expected):
  smallest, largest, growth = arguments
  got = ladder(smallest, largest, devices=1, growth=growth).batch_sizes
  assert got == expected


def test_rungs_always_increase():
  for smallest, span, growth in itertools.product(
    range(1, 20), range(60), (1.01, 1.1, 1.5, 2.0, 3.0)
  ):
    rungs = ladder(smallest, smallest + span, devices=1, growth=growth)
    sizes = rungs.batch_sizes
    assert sizes[0] == smallest
    assert sizes[-1] == smallest + span
    assert all(a < b for a, b in itertools.pairwise(sizes))
    # No rung is much more than `growth` above the one before.
    assert all(
      b <= a * growth + 1 or b == a + 1 for a, b in itertools.pairwise(sizes)
    )


@pytest.mark.parametrize('devices', [1, 2, 3, 8])
@pytest.mark.parametrize('limit', [None, 1, 7, 64])
def test_buckets_have_the_fewest_steps_then_the_fewest_slots(devices, limit):
  rungs = ladder(1, 300, devices=devices, max_per_device=limit)
  for size in range(1, 301):
    got = bucket_for(size, rungs)
    fitting = (
      Bucket(microbatch, steps, devices)
      for steps in range(1, 301)
      for microbatch in range(1, (limit or 300) + 1)
      if microbatch * steps * devices >= size
    )
    # The generator goes through the steps upward.
    first = next(fitting)
    assert got.accumulation_steps == first.accumulation_steps
    assert got == first


def test_next_rung():
  rungs = ladder(32, 300, devices=1)
  assert [next_rung(b, rungs) for b in (1, 32, 33, 64, 256, 257, 300)] == [
    64,
    64,
    128,
    128,
    300,
    None,
    None,
  ]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'smallest': 0}, '1 <= smallest <= largest'),
    ({'smallest': 65}, '1 <= smallest <= largest'),
    ({'devices': 0}, 'devices must be at least 1'),
    ({'max_per_device': 0}, 'max_per_device must be at least 1'),
    ({'growth': 1.0}, 'growth must be above 1'),
    ({'growth': math.nan}, 'growth must be above 1'),
    ({'growth': math.inf}, 'growth must be above 1'),
    ({'rounding': 'down'}, 'choose one of up, exact, nearest'),
  ],
)
def test_ladders_that_cannot_be(change, message):
  arguments = {'smallest': 32, 'largest': 64, 'devices': 1} | change
  with pytest.raises(ValueError, match=message):
    ladder(**arguments)


@pytest.mark.parametrize('nominal', [0.999, 0.0, -1.0, math.nan, math.inf])
def test_nominal_sizes_that_cannot_be(nominal):
  with pytest.raises(ValueError, match='finite and at least 1'):
    plan(nominal, ladder(32, 64, devices=1))


@pytest.mark.parametrize('devices', [1, 2, 3, 5, 8, 32])
@pytest.mark.parametrize('group', [1, 6, 8, 32])
@pytest.mark.parametrize('limit', [None, 32, 100])
def test_groups_are_never_cut(devices, group, limit):
  """Walks over the slots, in the order in which they are filled."""
  rungs = ladder(
    1, 300, devices=devices, max_per_device=limit, group_size=group
  )
  for batch_size in (1, 2, 5, 31, 32, 33, 64, 100, 255, 300):
    bucket = bucket_for(batch_size, rungs)
    size, steps, _ = bucket
    assert bucket.slots >= batch_size
    assert limit is None or size <= limit
    step_of_group = {}
    devices_of_group = {}
    for place in range(bucket.slots):
      step, within = divmod(place, size * devices)
      key = place // group
      assert step_of_group.setdefault(key, step) == step
      devices_of_group.setdefault(key, set()).add(within // size)
    groups_of_device = {}
    for key, where in devices_of_group.items():
      for device in where:
        groups_of_device.setdefault((step_of_group[key], device), set()).add(
          key
        )
    # A device that shares a group with others holds nothing else.
    for key, where in devices_of_group.items():
      if len(where) > 1:
        for device in where:
          assert groups_of_device[step_of_group[key], device] == {key}
    del steps


def test_groups_cost_few_slots():
  rungs = ladder(32, 1024, devices=8, max_per_device=64, group_size=32)
  for batch_size in rungs.batch_sizes:
    assert bucket_for(batch_size, rungs).slots == batch_size


@pytest.mark.parametrize(('devices', 'limit'), [(1, 31), (3, 16), (8, 3)])
def test_groups_that_do_not_fit_are_refused(devices, limit):
  with pytest.raises(ValueError, match='group of 32 examples cannot be kept'):
    ladder(32, 512, devices=devices, max_per_device=limit, group_size=32)


@pytest.mark.parametrize('rounding', buckets.ROUNDINGS)
@pytest.mark.parametrize('devices', [1, 2, 3, 8])
def test_two_microbatches_hold_examples(devices, rounding):
  """Of every batch of two or more, on any devices and half-filled rungs too."""
  for limit, growth, replicas, group in itertools.product(
    (None, 7), (1.2, 2.0, 10.0), (1, 2), (None, 5)
  ):
    rungs = ladder(
      6 * replicas if group else replicas,
      300,
      devices=devices,
      max_per_device=limit,
      growth=growth,
      rounding=rounding,
      group_size=group,
      replicas=replicas,
      min_microbatches=2,
    )
    for nominal in range(1, 301):
      planned = plan(nominal, rungs)
      share = planned.batch_size // replicas
      size = planned.bucket.microbatch_size
      assert planned.bucket.slots >= share
      assert -(-share // size) >= min(2, share)
      # Groups are the parts that are compared: none lies on two devices.
      assert size % (group or 1) == 0


def test_two_microbatches_cost_no_more_than_they_must():
  def got(size, **how):
    rungs = ladder(2, 256, min_microbatches=2, **how)
    return bucket_for(size, rungs)

  assert got(64, devices=1) == Bucket(32, 2, 1)
  assert got(64, devices=1, max_per_device=16) == Bucket(16, 4, 1)
  assert got(64, devices=8) == Bucket(8, 1, 8)
  assert got(64, devices=1, group_size=1) == Bucket(32, 2, 1)


@pytest.mark.parametrize('smallest', [1, 2, 32])
def test_noise_needs_several_groups(smallest):
  """One group has no parts to compare, on any devices."""
  for devices in (1, 8):
    how = {'devices': devices, 'group_size': 32, 'min_microbatches': 2}
    with pytest.raises(ValueError, match='more than 32 examples') as error:
      ladder(smallest, 256, **how)
    assert '\n' not in str(error.value)
    assert bucket_for(33, ladder(33, 256, **how)).microbatch_size == 32
