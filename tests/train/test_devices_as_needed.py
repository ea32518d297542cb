"""A rung uses as many devices as have enough examples each; the rest idle."""

import types

import jax
import numpy as np
import pytest

from adabatch.config import ConfigError
from adabatch.config.command_line import exit_code
from adabatch.controllers.buckets import devices_for, ladder, plan
from adabatch.devices.messages import Call
from adabatch.devices.trainer import Trainer
from adabatch.report import write_report
from adabatch.report.summary import describe
from adabatch.train import grow, train
from adabatch.train.build import build
from adabatch.train.calls import Progress
from adabatch.train.loop import loop
from adabatch.train.remarks import remarks
from adabatch.train.reports import Clock
from tests.experiments import column, digits

pytestmark = pytest.mark.usefixtures('compile_quickly')

LEAST, ALL = 16, 8
NEEDED = {'buckets.min_per_device': LEAST}


def config(**overrides):
  """AdaDamp from 16 to 512."""
  keys = {
    'epochs': 3.0,
    'controller.max_batch_size': 512,
    'controller.every': 10,
    'learning_rate.base': 0.03,
    'eval.every_epochs': 1.0,
  }
  return digits(**keys | overrides)


@pytest.mark.parametrize(
  ('devices', 'least', 'expected'),
  [
    (8, 16, [1, 2, 4, 8, 8, 8]),
    (8, 64, [1, 1, 1, 2, 4, 8]),
    (6, 16, [1, 2, 3, 6, 6, 6]),
    (8, 1, [8] * 6),
    (8, None, [8] * 6),
  ],
)
def test_devices_with_enough_examples_each(devices, least, expected):
  how = {'devices': devices, 'min_per_device': least}
  rungs = ladder(16, 512, **how)
  sizes = rungs.batch_sizes
  assert sizes == ladder(16, 512, devices=devices).batch_sizes
  assert [devices_for(size, rungs) for size in sizes] == expected
  assert [plan(size, rungs).bucket.devices for size in sizes] == expected


def test_the_smallest_batch_of_a_bucket_has_enough():
  rungs = ladder(16, 512, devices=8, min_per_device=16, rounding='exact')
  # That of 64 runs 33 examples as well.
  assert plan(33, rungs).bucket == plan(64, rungs).bucket
  assert plan(64, rungs).bucket.devices == 2


def test_clock_counts_the_devices_in_use():
  now = [100.0]
  clock = Clock(10.0, lambda: now[0], device_seconds=50.0, devices=8)
  now[0] += 1  # on all devices
  with clock.paused():
    now[0] += 10
    clock.devices = 2
  now[0] += 3

  def measure():
    now[0] += 5
    with clock.paused():
      now[0] += 10
    return 'measured'

  assert clock.on_all(measure) == 'measured'
  now[0] += 7
  assert clock.seconds == 10 + 1 + 3 + 5 + 7
  assert clock.device_seconds == 50 + 8 * 1 + 2 * 3 + 8 * 5 + 2 * 7


@pytest.fixture(scope='module')
def always(tmp_path_factory, compile_quickly):
  """On all devices."""
  path = tmp_path_factory.mktemp('always')
  return path, train(config(), path, devices=jax.devices()[:ALL])


@pytest.fixture(scope='module')
def needed(tmp_path_factory, compile_quickly):
  """Begun on one device, and gone on with on all of them."""
  path = tmp_path_factory.mktemp('needed')
  keys = NEEDED | {'buckets.grow_to': ALL}
  parts = [
    train(config(**keys), path, devices=jax.devices()[:count])
    for count in (1, ALL)
  ]
  return path, *parts


def test_same_batches_and_losses_on_fewer_devices(always, needed):
  (all_, whole), (some, _, last) = always, needed
  sizes = column(all_, 'batch_size')
  assert column(some, 'batch_size') == sizes
  np.testing.assert_allclose(
    column(some, 'loss'), column(all_, 'loss'), rtol=1e-5
  )
  for name in whole['final']['validation']:
    theirs, ours = (s['final']['validation'][name] for s in (whole, last))
    assert ours == pytest.approx(theirs, rel=1e-5)
  used = column(some, 'devices')
  # Fewer only in the last batch, which the end cuts.
  rungs = ladder(16, 512, devices=ALL, min_per_device=LEAST)
  assert used[:-1] == [devices_for(size, rungs) for size in sizes[:-1]]
  assert set(used) == {1, 2, 4, 8}
  assert sum(used) <= 0.6 * ALL * len(used)


def test_device_seconds_are_of_those_in_use(always, needed):
  _, whole = always
  _, first, last = needed
  assert whole['device_seconds'] == pytest.approx(
    ALL * whole['seconds'], rel=1e-2
  )
  # All of them, also before the run was started again.
  assert first['device_seconds'] >= first['seconds']
  later = last['seconds'] - first['seconds']
  of_devices = last['device_seconds'] - first['device_seconds']
  assert later < of_devices < 0.999 * ALL * later


def test_the_report_shows_device_seconds(always, needed):
  words = 'of 8 devices always'
  assert words not in describe(always[1])
  path, first, last = needed
  assert words in describe(last)
  assert words in write_report(path).read_text()
  assert 'start it again with 2 devices' in describe(first)


def test_more_devices_are_asked_for(needed):
  _, first, last = needed
  assert (first['status'], first['wanted_devices']) == ('grow', 2)
  assert first['updates'] == 10
  assert exit_code('grow') == 76
  assert last['status'] == 'completed'
  assert 'wanted_devices' not in last


@pytest.mark.parametrize(
  ('here', 'size', 'asked', 'most', 'expected'),
  [
    (1, 16, 0, 8, 0),
    (1, 32, 0, 8, 2),
    (1, 32, 2, 8, 0),  # once only
    (1, 64, 2, 8, 4),
    (1, 512, 0, 4, 4),
    (2, 32, 0, 8, 0),
    (4, 512, 0, 4, 0),  # there are no more
    (1, 512, 0, None, 0),
  ],
)
def test_devices_that_are_wanted(here, size, asked, most, expected):
  keys = {
    'controller.name': 'constant',
    'controller.initial_batch_size': size,
    'buckets.grow_to': most,
  }
  parts = build(config(**NEEDED | keys), jax.devices()[:here])
  run = types.SimpleNamespace(
    parts=parts,
    at=Progress(0, update=1, asked=asked),
    decisions=types.SimpleNamespace(plan=lambda: plan(size, parts.ladder)),
    replicas=types.SimpleNamespace(scale=lambda plan: plan),
    larger=grow.larger(parts),
    resumed_at=0,
  )
  if run.larger is None:
    assert not expected
    return
  assert grow.wanted(run) == expected
  run.resumed_at = 1  # nothing was done since
  assert grow.wanted(run) == 0


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'buckets.min_per_device': 0}, 'must be'),
    ({'buckets.min_per_device': None}, 'set buckets.min_per_device'),
    ({'sync.name': 'local_sgd', 'sync.replicas': 2}, 'each trains replicas'),
    ({'parallel.backend': 'pmap'}, "choose 'shard_map'"),
    ({'data.placement': 'streaming'}, 'set data.placement=resident'),
  ],
)
def test_refused_in_one_line(overrides, message):
  keys = NEEDED | {'buckets.grow_to': 4} | overrides
  with pytest.raises(ConfigError, match=message):
    build(config(**keys), jax.devices()[:2])


def test_no_number_is_asked_for_that_would_be_refused():
  """Groups of BatchNorm that so many devices would cut."""
  rungs = ladder(16, 96, devices=6, max_per_device=8, group_size=16)
  assert [grow._runs(rungs, devices) for devices in (2, 3)] == [True, False]


def test_what_is_not_as_one_may_expect_is_said():
  parts = build(config(**NEEDED), jax.devices()[:2])
  assert not [line for line in remarks(parts) if 'min_per_device' in line]
  several = parts._replace(ladder=parts.ladder._replace(min_per_device=None))
  grows = config(**NEEDED | {'buckets.grow_to': 2})
  for one in (several, several._replace(config=grows)):  # there are two already
    (line,) = remarks(one)
    assert line.startswith('buckets.min_per_device=16 has no effect')
  noise = build(
    config(**NEEDED | {'controller.name': 'noise_scale'}), jax.devices()[:2]
  )
  assert any(
    'is estimated from other microbatches' in x for x in remarks(noise)
  )


def test_a_batch_that_shrinks_moves_the_state_back():
  table = '0:64 64:16 96:64'
  keys = {
    'controller.name': 'step_table',
    'controller.every': 1,
    'controller.step_table.table': table,
    'max_examples': 160,
  }
  parts = build(config(**NEEDED | keys), jax.devices()[:4])
  kept = []
  steps = loop(parts, save=lambda update, state, host: kept.append(host))
  found = [r for kind, r in steps if kind == 'train']
  assert [r['devices'] for r in found] == [4, 1, 1, 4]
  at = kept[-1]['progress']
  assert at['seconds'] < at['device_seconds'] < 0.999 * 4 * at['seconds']


def test_a_state_that_is_replaced_is_moved_again():
  parts = build(config(**NEEDED), jax.devices()[:2])
  trainer = Trainer(parts.recipe)
  call = Call(0, 0, 1, plan(16, parts.ladder))
  trainer.compile(call)
  assert trainer.ready(call)
  assert trainer.in_use == 1
  trainer.go_on(None, 1)  # as a run that goes back does
  assert not trainer.ready(call)
  trainer.compile(call)
  trainer.dispatch(call, stop=False)
  trainer.close()
