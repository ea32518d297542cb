"""A population gives what single runs give."""

import itertools
import json
import math

import jax
import numpy as np
import pytest

from adabatch import data
from adabatch.config import default
from adabatch.devices.population import Member, Population
from adabatch.search import modes
from adabatch.search.population import Mode, make_population, run, why_not
from adabatch.train import train
from adabatch.train.build import build
from tests.experiments import digits, records

pytestmark = pytest.mark.usefixtures('compile_quickly')

KEYS = (
  'learning_rate.base',
  'optimizer.momentum',
  'optimizer.weight_decay',
  'learning_rate.decay.length',
  'learning_rate.decay.final',
)
MEMBERS = [
  Member(11, (0.05, 0.9, 0.0, 2.0, 0.1)),
  Member(12, (0.1, 0.5, 1e-3, 1.0, 0.01)),
  Member(13, (1e6, 0.99, 0.0, 2.0, 0.1)),  # diverges
  Member(14, (0.02, 0.0, 1e-4, 0.3, 1.0)),
  Member(2**40 + 11, (0.3, 0.7, 1e-4, 3.0, 0.0)),
]


def workload(**overrides):
  return digits(
    **{
      'controller.name': 'constant',
      'controller.initial_batch_size': 24,
      'controller.max_batch_size': 24,
      'learning_rate.reference_batch_size': 24,
      'learning_rate.decay.name': 'linear',
      'learning_rate.decay.unit': 'epochs',
      'learning_rate.decay.length': 1.0,
      'optimizer.name': 'nesterov',
      'optimizer.momentum': 0.9,
      'epochs': 1.0,
      'eval.every_epochs': 0.1,
      'eval.growth': 1.2,
    }
    | overrides
  )


def single(config, member, keys, workdir):
  config = config.copy_and_resolve_references()
  config.seed = member.seed
  config.update_from_flattened_dict(dict(zip(keys, member.values, strict=True)))
  summary = train(config, workdir, devices=jax.devices()[:1])
  return summary, records(workdir, 'eval')


def population(config, keys, devices=1):
  parts = build(config, jax.devices()[:devices])
  assert why_not(parts, keys) is None
  return make_population(parts, keys), parts


def to_the_end(member, known):
  return None


@pytest.fixture(scope='module')
def singles(tmp_path_factory):
  directory = tmp_path_factory.mktemp('singles')
  return [
    single(workload(), member, KEYS, directory / str(i))
    for i, member in enumerate(MEMBERS)
  ]


def check(outcome, summary, evals):
  """Equal to 1e-5 of the value."""
  assert outcome.diverged == (summary['status'] == 'diverged')
  if outcome.diverged:
    assert outcome.updates == summary['diverged_update']
  else:
    assert outcome.updates == summary['updates']
  ours = outcome.evaluations
  assert [e.update for e in ours] == [r['update'] for r in evals]
  assert [e.examples for e in ours] == [r['examples'] for r in evals]
  for e, r in zip(ours, evals, strict=True):
    if r['loss'] is None:  # that is how a file has what is not finite
      assert not math.isfinite(e.metrics['loss'])
    else:
      assert e.metrics['loss'] == pytest.approx(r['loss'], rel=1e-5)
    assert e.metrics['accuracy'] == r['accuracy']


def test_an_evaluation_is_read_once(monkeypatch):
  """Nothing runs on the devices between its answer and the next updates."""
  events = []

  def noting(owner, name):
    wanted = getattr(owner, name)

    def noted(*args):
      events.append(name)
      return wanted(*args)

    monkeypatch.setattr(owner, name, noted)

  programs, parts = population(workload(), KEYS)
  for owner, name in (
    (Population, '_program'),
    (jax, 'device_get'),
    (Population, 'dispatch'),
  ):
    noting(owner, name)
  ended = list(run(programs, parts, MEMBERS[:2], Mode(2, 64), limit=to_the_end))
  assert events.count('device_get') == len(ended[0][1].evaluations) > 2
  after = {b for a, b in itertools.pairwise(events) if a == 'device_get'}
  assert after == {'dispatch'}
  assert events[-1] == 'device_get'


@pytest.mark.parametrize(
  ('devices', 'mode'),
  [(1, Mode(8, 7)), (1, Mode(1, 16)), (1, Mode(1, 1)), (4, Mode(2, 5))],
)
def test_equals_single_runs(singles, devices, mode):
  """And a member that diverges does not disturb the others."""
  programs, parts = population(workload(), KEYS, devices)
  each = mode.members * devices
  for first in range(0, len(MEMBERS), each):
    some = MEMBERS[first : first + each]
    found = dict(run(programs, parts, some, mode, limit=to_the_end))
    assert sorted(found) == list(range(len(some)))
    for i, outcome in found.items():
      check(outcome, *singles[first + i])
  assert singles[2][0]['status'] == 'diverged'


def test_a_last_update_that_diverges(tmp_path):
  """Its own loss and gradient are finite; what it leaves is not."""
  c, keys = workload(max_updates=1), ('learning_rate.base',)
  member = Member(1, (1e30,))
  ((_, outcome),) = run(
    *population(c, keys), [member], Mode(1, 1), limit=to_the_end
  )
  check(outcome, *single(c, member, keys, tmp_path))
  assert outcome.diverged


def test_with_augmentation_and_accumulation(tmp_path):
  """Crops and flips are keyed by the member's seed; batches in two parts."""
  rng = np.random.default_rng(0)
  splits = tuple(
    data.from_arrays(
      {
        'image': rng.integers(0, 256, (n, 8, 8, 3), np.uint8),
        'label': rng.integers(0, 4, n),
      },
      4,
    )
    for n in (96, 33)
  )
  c = workload(
    **{
      'data.crop_padding': 2,
      'data.flip': True,
      'model.name': 'strided_cnn',
      'model.strided_cnn.channels': (4, 4),
      'model.strided_cnn.hidden_size': 8,
      'model.strided_cnn.batch_norm_group': 8,
      'buckets.max_per_device': 16,
      'epochs': 2.0,
      'eval.every_epochs': 0.5,
      'eval.max_per_device': 10,
    }
  )
  keys = ('learning_rate.base',)
  members = [Member(3, (0.05,)), Member(4, (0.02,))]
  parts = build(c, jax.devices()[:1], splits)
  programs = make_population(parts, keys)
  assert programs.plan.bucket.accumulation_steps == 2
  found = dict(run(programs, parts, members, Mode(2, 3), limit=to_the_end))
  c.seed, c.learning_rate.base = members[1].seed, members[1].values[0]
  summary = train(c, tmp_path, devices=jax.devices()[:1], splits=splits)
  check(found[1], summary, records(tmp_path, 'eval'))
  losses = [found[i].evaluations[-1].metrics['loss'] for i in range(2)]
  assert abs(losses[0] - losses[1]) > 1e-4


def test_members_that_finish_leave_and_the_rest_goes_on(singles):
  """A smaller program takes over; its members' results stay the same."""
  programs, parts = population(workload(), KEYS)
  rooms = []
  keep = programs.keep

  def watched(group):
    keep(group)
    rooms.append(len(group.orders))

  programs.keep = watched
  limits = {0: 10, 1: 20, 3: 40}
  found = dict(
    run(
      programs,
      parts,
      MEMBERS,
      Mode(8, 4),
      limit=lambda i, known: limits.get(i),
    )
  )
  check(found[4], *singles[4])
  for i, limit in limits.items():
    summary, evals = singles[i]
    reached = [r['update'] for r in evals if r['update'] >= limit][0]
    assert found[i].updates == reached
    shorter = [r for r in evals if r['update'] <= reached]
    check(found[i], summary | {'updates': reached}, shorter)
  assert rooms == sorted(rooms, reverse=True)
  assert {4, 2, 1} <= set(rooms) <= {8, 4, 2, 1}


def test_stopped_in_the_middle_yields_nothing():
  programs = population(workload(), KEYS)
  asked = itertools.count()
  found = list(
    run(
      *programs,
      MEMBERS[:2],
      Mode(2, 4),
      limit=to_the_end,
      stop=lambda: next(asked) > 1,
    )
  )
  assert found == []


@pytest.mark.parametrize(
  ('changes', 'keys', 'reason'),
  [
    ({}, ('task.label_smoothing',), 'label_smoothing is searched'),
    ({'controller.name': 'adadamp'}, (), 'controller.name'),
    ({'sync.name': 'local_sgd'}, (), 'sync.name'),
    ({'data.placement': 'streaming'}, (), 'streamed'),
    ({'learning_rate.scaling': 'adascale'}, (), 'scaling'),
  ],
)
def test_what_is_no_population(changes, keys, reason):
  c = workload(**changes)
  c.data.workers = 0
  assert reason in why_not(build(c, jax.devices()[:1]), keys)


def test_seconds_are_shared():
  programs = population(workload(), ('learning_rate.base',))
  members = [Member(1, (0.1,))]
  alone = dict(run(*programs, members, Mode(1, 8), limit=to_the_end))
  seconds = [e.seconds for e in alone[0].evaluations]
  assert seconds == sorted(seconds)
  assert seconds[0] > 0


def test_modes_are_measured_within_what_is_asked():
  programs, parts = population(workload(), ('learning_rate.base',))
  most = parts.length.updates, 4
  found = modes.candidates(programs, *most, (None, None))
  assert found == [Mode(1, 1), Mode(1, 60), Mode(4, 1), Mode(4, 60)]
  two = [Mode(2, 1), Mode(2, 60)]
  assert modes.candidates(programs, *most, (2, None)) == two
  assert modes.candidates(programs, *most, (2, 5)) == [Mode(2, 5)]
  members = [Member(0, (0.1,))]
  measured = modes.seconds_per_update(programs, members, found)
  assert set(measured) == set(found)
  assert all(0 < t < 1 and math.isfinite(t) for t in measured.values())
  assert modes.choose(measured) in found


def test_default_population_keys_are_keys():
  from adabatch.config import flatten
  from adabatch.search.population import TRACED

  assert set(flatten(default())) >= TRACED
  json.dumps(sorted(TRACED))
