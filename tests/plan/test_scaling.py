"""The model of more chips and of fewer, against hands and slow twins."""

import importlib.util
import itertools

import jax
import pytest

from adabatch.config import ConfigError
from adabatch.controllers.buckets import Bucket, bucket_for, ladder
from adabatch.plan import scaling, scaling_model, torus
from adabatch.plan.figures import all_reduce_seconds
from adabatch.plan.hlo import Collective
from adabatch.plan.job import plan
from adabatch.plan.rungs import rungs, spent
from adabatch.plan.schedule import walk
from adabatch.plan.topology import Topology
from adabatch.report import write_plan
from adabatch.report.summary import describe
from adabatch.train.build import build
from tests.experiments import digits
from tests.plan.test_step_times import of_compiler

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='the compiler of TPUs (libtpu) is not installed',
)
GRADIENTS = Collective('all-reduce', 1, 1e8, False, None)


def v5e(*shape):
  number = shape[0] * shape[1]
  return Topology('v5e', 'v5e', shape, 1, (None,) * number)


def model_of(
  machine, smallest, largest, updates=(), most=None, memory=0.0, **options
):
  made = ladder(
    smallest,
    largest,
    devices=len(machine.devices),
    max_per_device=most,
    **options,
  )
  found = []
  for size, number in itertools.zip_longest(
    made.batch_sizes, updates, fillvalue=0
  ):
    bucket = bucket_for(size, made)
    seconds = of_compiler(*bucket[:2])
    peak = memory * bucket.microbatch_size
    found.append(
      scaling_model.Rung(size, bucket, seconds, (GRADIENTS,), number, peak)
    )
  return scaling_model.make(machine, made, found)


# Links.


@pytest.mark.parametrize(
  ('generation', 'shape', 'chips', 'expected'),
  [
    ('v5e', (4, 4), 16, ((4, 4), 1)),
    ('v5e', (2, 8), 16, ((2, 8), 1)),  # its own sides
    ('v5e', (4, 4), 2, ((1, 2), 1)),
    ('v5e', (4, 4), 1024, ((16, 16), 4)),
    ('v4', (2, 2, 4), 4096, ((16, 16, 16), 1)),
    ('v4', (2, 2, 4), 8192, None),
  ],
)
def test_where_chips_lie(generation, shape, chips, expected):
  machine = Topology('', generation, shape, 1, (None,) * 16)
  assert torus.place(machine, chips) == expected


@pytest.mark.parametrize(
  ('chips', 'seconds'),
  [
    (1, 0),
    (2, 2 * 1 / 2 * 1e8 / 50e9),  # one link
    (4, 2 * 3 / 4 * 1e8 / 100e9),  # two
    (8, 2 * 7 / 8 * 1e8 / 150e9),  # 2 x 4: three
    (256, 2 * 255 / 256 * 1e8 / 200e9),
    # Four slices, each with 6.4 Tb/s to the others.
    (1024, 2 * 255 / 256 * 1e8 / 200e9 + 2 * 3 / 4 * 1e8 / 800e9),
  ],
)
def test_exchanges_of_gradients(chips, seconds):
  model = model_of(v5e(4, 4), 16, 64)
  found = scaling_model.exchange_seconds(model, 4, 1, chips)
  assert found == pytest.approx(seconds)


def test_groups_exchange_with_their_own_chips_and_each_microbatch():
  machine = v5e(4, 4)
  group = Collective('all-reduce', 6, 1e6, False, 8)
  made = ladder(16, 64, devices=16, max_per_device=2)
  bucket = bucket_for(64, made)
  assert bucket[:2] == (2, 2)
  rung = scaling_model.Rung(64, bucket, 1.0, (group, GRADIENTS))
  model = scaling_model.make(machine, made, [rung])

  def seconds(chips, links, members, often):
    gradients = 2 * (chips - 1) / chips * 1e8
    groups = often * 2 * (members - 1) / members * 1e6
    return (gradients + groups) / (links * 50e9)

  for steps, chips, links, members in (
    (2, 16, 4, 8),
    (4, 64, 4, 8),
    (3, 4, 2, 4),
  ):
    found = scaling_model.exchange_seconds(model, 2, steps, chips)
    expected = seconds(chips, links, members, 3 * steps)
    assert found == pytest.approx(expected)
  assert scaling_model.exchange_seconds(model, 2, 2, 1) == 0


def test_the_exchange_is_that_of_the_next_smaller_microbatch():
  rungs_ = [
    scaling_model.Rung(
      size, Bucket(size // 16, 1, 16), 1.0, (GRADIENTS._replace(times=size),)
    )
    for size in (16, 64)
  ]
  model = scaling_model.make(v5e(4, 4), ladder(16, 64, devices=16), rungs_)
  one = all_reduce_seconds((GRADIENTS,), v5e(4, 4))
  for size, times in ((1, 16), (2, 16), (3, 16), (4, 64), (9, 64)):
    found = scaling_model.exchange_seconds(model, size, 1, 16)
    assert found == pytest.approx(times * one)


# Runs.


def slowly(model, updates, chips, weak):
  """One update after the other, examples dealt out one by one."""
  own, seconds = len(model.machine.devices), 0.0
  limit = model.ladder.max_per_device
  for rung in model.rungs:
    number = updates.get(rung.batch_size, 0)
    held = [0] * (own if weak else chips)
    for example in range(rung.batch_size):
      held[example % len(held)] += 1
    steps = -(-max(held) // limit)
    size = -(-max(held) // steps)
    links = max(
      sum(min(side - 1, 2) for side in torus.place(model.machine, chips)[0]), 1
    )
    exchange = 2 * (chips - 1) / chips * 1e8 / (links * 50e9)
    for _ in range(number):
      share = own / chips if weak else 1
      seconds += share * (of_compiler(size, steps) + exchange)
  return seconds


@pytest.mark.parametrize(
  ('shape', 'smallest', 'largest', 'most', 'updates'),
  [
    ((4, 4), 16, 256, 8, (5, 0, 3, 2, 7)),
    ((2, 2), 4, 1000, 16, (9, 1, 1, 1, 1, 2, 2, 2, 3)),
    ((4, 4), 16, 300, 4, (1, 2, 3, 4, 5, 6)),
    ((1, 1), 1, 64, 4, (3,) * 7),
    ((4, 4), 8, 64, 2, (3, 2, 1, 1)),  # half of the chips are idle
  ],
)
def test_runs_are_their_updates_one_by_one(
  shape, smallest, largest, most, updates
):
  model = model_of(v5e(*shape), smallest, largest, updates, most)
  by_size = {r.batch_size: r.updates for r in model.rungs}
  examples = sum(size * number for size, number in by_size.items())
  found = scaling_model.predict(model, examples, schedule=True)
  for kind, rows in found.items():
    for row in rows[:9]:
      weak, chips = kind == 'weak', row['chips']
      if weak and smallest * chips < len(model.machine.devices):
        assert row['schedule'] is None
        continue
      assert row['schedule']['outside'] == ''
      expected = slowly(model, by_size, chips, weak)
      assert row['schedule']['seconds'] == pytest.approx(expected)
      for name, size in (('smallest', smallest), ('largest', largest)):
        each = slowly(model, {size: 1}, chips, weak)
        assert row[name]['seconds'] == pytest.approx(each * examples / size)
      hours = row['schedule']['seconds'] * chips / 3600
      assert row['schedule']['chip_hours'] == pytest.approx(hours)
  strong = found['strong']
  alone = strong[0]['schedule']['seconds']
  for row in strong:
    run = row['schedule']
    assert run['efficiency'] == pytest.approx(
      alone / (row['chips'] * run['seconds'])
    )
    assert run['of_smallest'] == pytest.approx(
      run['seconds'] / row['smallest']['seconds']
    )
  # A chip more never makes the compiler's part longer.
  free = model._replace(programs=dict.fromkeys(model.programs, ()))
  rows = scaling_model.predict(free, examples, schedule=True)['strong']
  for name in ('schedule', 'smallest', 'largest'):
    seconds = [row[name]['seconds'] for row in rows]
    assert seconds == sorted(seconds, reverse=True)


def test_fewer_examples_than_were_compiled_are_only_bounded():
  model = model_of(v5e(4, 4), 64, 256, (1, 1, 1))
  rows = scaling_model.predict(model, 448, schedule=True)['strong']
  by_chips = {row['chips']: row for row in rows}
  assert by_chips[16]['smallest']['outside'] == ''
  assert by_chips[32]['smallest']['outside'] == 'fewer'
  assert by_chips[32]['largest']['outside'] == ''
  assert by_chips[32]['schedule']['outside'] == 'fewer'
  assert scaling_model.wins_from(rows[5:]) is None
  # More at once than were compiled, where the run allows it and there is room.
  model = model_of(v5e(4, 4), 64, 256, (1, 1, 1), 64, 0.3 * 2**30)
  assert model.ladder.max_per_device == 52
  less = model_of(v5e(4, 4), 64, 256, (1, 1, 1), 40, 0.3 * 2**30)
  assert less.ladder.max_per_device == 40
  rows = scaling_model.predict(model, 448, schedule=True)['strong']
  assert rows[0]['largest']['outside'] == 'more'
  assert rows[0]['largest']['seconds'] > rows[2]['largest']['seconds']


@pytest.mark.parametrize(
  ('peaks', 'expected'),
  [
    ({4: 10}, 4),
    ({4: 10, 8: 20}, 8 + 32),
    ({4: 10, 8: 20, 16: 30}, 16 + 56),  # of the last two
    ({4: 10, 8: 10}, 8),
    ({4: 10, 8: 150}, 8),  # too large, and compiled all the same
  ],
)
def test_what_a_chip_has_memory_for(peaks, expected):
  programs = [
    scaling_model.Rung(1, Bucket(size, steps, 1), 1.0, (), 0, peak * steps / 2)
    for size, peak in peaks.items()
    for steps in (2, 1)
  ]
  assert scaling_model.most_at_once(100, programs) == expected


def test_from_where_on_a_schedule_wins():
  def row(chips, ours, theirs, outside=''):
    run = {'seconds': ours, 'outside': ''}
    return {
      'chips': chips,
      'schedule': run,
      'smallest': {'seconds': theirs, 'outside': outside},
    }

  rows = [row(1, 9, 10), row(2, 9.1, 10), row(4, 9, 10), row(8, 1, 10)]
  assert scaling_model.wins_from(rows) == 4
  assert scaling_model.wins_from(rows[:2]) is None
  assert scaling_model.wins_from([row(1, 1, 10, 'fewer'), row(2, 1, 10)]) == 2
  assert scaling_model.wins_from([{'chips': 1, 'smallest': None}]) is None


def test_groups_that_chips_cannot_share():
  """Two chips hold two examples each of a group of 4; one would cut it."""
  model = model_of(v5e(1, 2), 4, 8, most=2, group_size=4)
  rows = scaling_model.predict(model, 24, schedule=False)['strong']
  assert 'schedule' not in rows[0]
  assert rows[0]['smallest'] is None
  assert rows[1]['smallest'] is not None
  assert rows[1]['largest']['efficiency'] is None


@pytest.mark.parametrize(
  ('sizes', 'can', 'expected'),
  [
    ([32], lambda size: True, [1, 6]),
    ([16, 32], lambda size: True, [1]),
    ([1, 32], lambda size: True, [6]),
    ([1], lambda size: True, []),
    ([1, 2], lambda size: True, []),
    ([1, 2, 4], lambda size: True, []),
    ([8, 16, 32], lambda size: size % 4 == 0, [4]),
    ([32], lambda size: size == 32, []),
  ],
)
def test_what_is_compiled_as_well(sizes, can, expected):
  assert scaling_model.between(sizes, can) == expected


# The plan.


def test_rungs_that_share_a_bucket_have_updates_of_their_own():
  config = digits(
    **{
      'controller.name': 'geodamp',
      'controller.initial_batch_size': 2,
      'controller.max_batch_size': 16,
      'epochs': 20.0,
    }
  )
  parts = build(config, jax.devices()[:8])
  made = rungs(parts)
  assert [rung['microbatch_size'] for rung in made] == [1, 1, 1, 2]
  counted = spent(parts, walk(parts))
  slow = {}
  for stretch in walk(parts):
    size = next(
      r['batch_size']
      for r in made
      if r['batch_size'] >= stretch.call.plan.batch_size
      and r['microbatch_size'] == stretch.call.plan.bucket.microbatch_size
    )
    slow[size] = slow.get(size, 0) + stretch.call.count
  found = {r['batch_size']: counted.of(r).get('updates', 0) for r in made}
  assert found == slow
  assert min(found.values()) > 0
  totals = counted.totals()
  assert sum(found.values()) == totals['updates']
  assert totals['programs'] == 2
  assert sum(counted.of(r)['examples'] for r in made) == totals['examples']


def made_up(parts, updates=None, **changed):
  """What a plan knows once its programs were compiled."""
  ladder_ = rungs(parts)
  for rung in ladder_:
    seconds = of_compiler(rung['microbatch_size'], rung['accumulation_steps'])
    rung |= {
      'fits': True,
      'compiler_seconds': seconds,
      'bytes': 2**30 * rung['microbatch_size'],
      'collectives': [{**GRADIENTS._asdict(), 'bytes': GRADIENTS.bytes}],
    }
    if updates is not None:
      rung['updates'] = updates
  for size, figures in changed.items():
    (rung,) = (r for r in ladder_ if str(r['batch_size']) == size[1:])
    del rung['compiler_seconds'], rung['collectives']
    rung |= figures
  found = {'ladder': ladder_}
  if updates is None:
    return found | {'range': {'16': {'examples': 1000}}}
  return found | {'schedule': {'examples': 1000}}


def test_a_rung_that_does_not_fit_is_left_out():
  parts = build(digits(), jax.devices()[:4])
  large = {'fits': False, 'why': 'memory', 'fits_with': 16}
  plan_ = made_up(parts, 3, _128=large)
  found = scaling.describe(parts, v5e(2, 2), plan_, None)
  assert found['left_out'] == [{'batch_size': 128, 'why': 'too large'}]
  assert found['largest'] == 64
  assert found['schedule'] == 'too large'
  assert 'schedule' not in found['strong'][0]
  assert found['at_once'] == 16  # 15.75 GiB, but these were compiled
  # What the compiler accepts, but not with what lies beside it.
  beside = {'fits': False, 'fits_with': 16}
  plan_ = made_up(parts, 3)
  plan_['ladder'][-1] |= beside
  found = scaling.describe(parts, v5e(2, 2), plan_, None)
  assert found['left_out'] == [{'batch_size': 128, 'why': 'too large'}]
  # Nothing is amiss where the schedule does not come so far.
  plan_ = made_up(parts, 3, _128=large)
  del plan_['ladder'][-1]['updates']
  found = scaling.describe(parts, v5e(2, 2), plan_, None)
  assert found['schedule'] == 'known'
  # Nor where there is none.
  found = scaling.describe(parts, v5e(2, 2), made_up(parts), None)
  assert found['schedule'] == 'unknown'
  assert found['examples'] == 1000


def test_where_nothing_is_predicted():
  parts = build(digits(), jax.devices()[:4])
  plan_ = made_up(parts)
  slices = v5e(1, 2)._replace(slices=2)
  found = scaling.describe(parts, slices, plan_, None)
  assert 'several slices' in found['why_not']
  nothing = {'fits': True}
  none = {f'_{size}': nothing for size in parts.ladder.batch_sizes}
  found = scaling.describe(parts, v5e(2, 2), made_up(parts, **none), None)
  assert 'no batch size' in found['why_not']
  assert {one['why'] for one in found['left_out']} == {'no estimate'}
  config = digits(**{'sync.name': 'local_sgd', 'sync.replicas': 2})
  parts = build(config, jax.devices()[:4])
  found = scaling.describe(parts, v5e(2, 2), made_up(parts), None)
  assert 'replicas agree' in found['why_not']


def test_more_is_compiled_only_for_a_machine(tmp_path):
  with pytest.raises(ConfigError, match=r'set plan\.topology, or leave it out'):
    plan(digits(**{'plan.scaling': True}), tmp_path)


@needs_libtpu
@pytest.mark.parametrize('scaling_', [False, True])
def test_the_digits_on_other_numbers_of_chips(scaling_, tmp_path):
  config = digits(
    **{
      'plan.topology': 'v5e:2x2',
      'plan.scaling': scaling_,
      'controller.name': 'geodamp',
      'controller.max_batch_size': 64,
      'buckets.max_per_device': 8,
      'epochs': 20.0,
    }
  )
  found = plan(config, tmp_path)
  model = found['scaling']
  assert model['microbatch_sizes'] == ([1, 4, 8] if scaling_ else [4, 8])
  assert [x['microbatch_size'] for x in model['extra']] == [1] * scaling_
  for kind in ('strong', 'weak'):
    rows = {row['chips']: row for row in model[kind]}
    assert list(rows) == [2**i for i in range(13)]
    # On the machine that was compiled for it is the plan's own.
    own = rows[4]['schedule']
    for key in ('seconds', 'chip_hours'):
      assert own[key] == pytest.approx(found['schedule'][key], rel=1e-12)
  bounded = {row['smallest']['outside'] for row in model['strong'][3:]}
  assert bounded == ({''} if scaling_ else {'fewer'})
  text = describe(found)
  assert 'strong scaling (model)' in text
  assert ('≤: a chip has fewer' in text) != scaling_
  html = write_plan(tmp_path).read_text()
  assert 'On fewer chips and on more (a model)' in html
  assert html.count('aria-label="Time by chips') == 2
