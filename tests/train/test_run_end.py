"""Where a run ends: one answer, and everything that needs it asks for it."""

import itertools
import math

import jax
import numpy as np
import pytest

from adabatch import data
from adabatch.config import ConfigError
from adabatch.controllers import Signals, buckets
from adabatch.devices.population import Member
from adabatch.search.population import Mode, make_population, run
from adabatch.train import build as build_lib
from adabatch.train import optimizer, remarks, run_end, train
from tests.experiments import column, digits

EXAMPLES = 200  # in an epoch
FLOAT32 = 1e-6


def split(examples=EXAMPLES):
  rng = np.random.default_rng(0)
  arrays = {
    'image': rng.normal(size=(examples, 2, 2, 1)).astype(np.float32),
    'label': np.arange(examples) % 2,
  }
  return data.from_arrays(arrays, 2)


SPLITS = split(), split(20)


def config(**overrides):
  keys = {
    'model.mlp.hidden_sizes': (2,),
    'controller.name': 'constant',
    'controller.initial_batch_size': 16,
    'controller.max_batch_size': 64,
    'learning_rate.base': 1e-3,
    'epochs': 100.0,
  }
  return digits(**keys | overrides)


def build(**overrides):
  return build_lib.build(config(**overrides), jax.devices()[:1], SPLITS)


# The slow twin: a loop that does what a run does, but for the training.


def updates_of(parts):
  """(examples before it, batch size) of each update of a run."""
  rule, end = parts.controller, parts.end
  state, examples = rule.init(), 0
  for update in itertools.count():
    signals = Signals(update, examples, examples / EXAMPLES)
    nominal, state = rule.update(state, signals)
    if update == end.updates or examples == end.examples:
      return
    size = buckets.plan(nominal, parts.ladder).batch_size
    size = min(size, end.examples - examples)
    yield examples, size
    examples += size


DECAYS = {
  'linear': lambda x: 0.2 + 0.8 * (1 - x),
  'cosine': lambda x: 0.2 + 0.8 * (1 + math.cos(math.pi * x)) / 2,
  'polynomial': lambda x: 0.2 + 0.8 * (1 - x) ** 3,
  'wsd': lambda x: 0.2 + 0.8 * (1 - math.sqrt(max(0, x - 0.7) / 0.3)),
  'piecewise': lambda x: 0.5 ** ((x >= 0.5) + (x >= 0.75)),
}
ENDS = {
  'epochs': {'epochs': 1.5},
  'updates': {'max_updates': 25},
  'both': {'max_updates': 25, 'epochs': 1.5},
}
RULES = {
  'constant': {},
  'step_table': {'step_table.table': '0:16 100:64'},
  'geodamp': {'geodamp.delay_epochs': 0.5},
  'ramp_up': {
    'ramp_up.final_batch_size': 64,
    'ramp_up.increment': 16,
    'ramp_up.examples': 300,
  },
  'padadamp': {},  # whose rate depends on where the run ends
}


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('end', ENDS)
@pytest.mark.parametrize('decay', DECAYS)
def test_a_decay_ends_with_the_run(decay, end, rule):
  """Its length unset, or 1 in units of the run."""
  for unit in ('epochs', 'run'):
    if decay == 'piecewise' and unit == 'epochs':
      continue  # it has boundaries of its own
    parts = build(
      **ENDS[end],
      **{
        'controller.name': rule,
        'controller.every': 4,
        'learning_rate.decay.name': decay,
        'learning_rate.decay.unit': unit,
        'learning_rate.decay.final': 0.2,
        'learning_rate.decay.power': 3.0,
        'learning_rate.decay.cooldown': 0.3,
        'learning_rate.decay.factor': 0.5,
        'learning_rate.decay.boundaries': (0.5, 0.75),
      },
      **{f'controller.{k}': v for k, v in RULES[rule].items()},
    )
    done = list(updates_of(parts))
    total = sum(size for _, size in done)
    assert parts.length.exact
    assert abs(parts.length.examples - total) <= (rule == 'padadamp')
    multiplier = optimizer.make_decay(parts.config, parts.extent)
    for examples, _ in (done[0], done[len(done) // 2], done[-1]):
      expected = DECAYS[decay](examples / parts.length.examples)
      assert float(multiplier(examples)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('exponent', [0.0, 0.5])
@pytest.mark.parametrize('decay', ['cosine', 'linear'])
def test_a_batch_that_grows_with_the_decay_of_its_own_run(decay, exponent):
  """The decay is over the run's length, which depends on the decay."""
  parts = build(
    max_updates=60,
    **{
      'controller.name': 'from_lr_schedule',
      'controller.from_lr_schedule.exponent': exponent,
      'controller.every': 1,
      'learning_rate.decay.name': decay,
      'learning_rate.decay.final': 0.1,
    },
  )
  total = sum(size for _, size in updates_of(parts))
  assert parts.length.exact
  # Batches are of whole rungs, so no length need agree to the example.
  assert total - 64 <= parts.length.examples <= total
  assert 60 * 16 < total < 60 * 64


TEXT = {'task.name': 'language_modelling', 'data.sequence_length': 8}


@pytest.mark.parametrize(
  ('keys', 'end'),
  [
    ({'max_examples': '0.3K'}, (300, math.inf)),
    ({'max_examples': 300.0, 'max_updates': 9}, (300, 9)),
    ({'max_examples': 300, 'epochs': 1.0}, (200, math.inf)),
    ({'max_tokens': '2.5K', **TEXT}, (312, math.inf)),  # of 8 an example
    ({'max_tokens': 2400, 'max_examples': '1B', **TEXT}, (300, math.inf)),
    ({'max_tokens': '1.3T', 'max_examples': 250, **TEXT}, (250, math.inf)),
  ],
)
def test_whichever_comes_first_ends_a_run(keys, end):
  tokens = keys.get('data.sequence_length')
  assert run_end.make_end(config(**keys), EXAMPLES, tokens) == end


@pytest.mark.parametrize('rule', ['adadamp', 'padadamp'])
def test_a_run_of_so_many_examples_is_one_of_so_many_epochs(rule):
  """In all that is laid out over it."""
  keys = {
    'controller.name': rule,
    'learning_rate.decay.name': 'linear',
    'max_updates': 25,
  }
  as_epochs = build(**keys, epochs=1.5)
  parts = build(**keys, max_examples='0.3K')
  assert parts.end.examples == parts.extent.run == 300
  assert (parts.end, parts.extent) == (as_epochs.end, as_epochs.extent)
  assert parts.length == as_epochs.length


def test_it_is_said_where_the_epochs_end_a_run_before():
  keys = {'epochs': 2.0, 'max_examples': '1K'}
  line = run_end.without_effect(config(**keys), EXAMPLES)
  assert line == (
    'epochs=2 of 200 examples ends the run before max_examples=1K, which is 5 '
    'epochs: raise epochs'
  )
  assert run_end.without_effect(config(**keys), 500) is None


def test_a_rule_that_measures_is_given_the_most_there_can_be():
  """So that the rate is not 0 before the run is over."""
  adaptive = {'controller.name': 'adadamp'}
  parts = build(max_updates=25, **adaptive)
  assert parts.length == (25, 25 * 64, False)
  parts = build(epochs=1.5, **adaptive)
  assert parts.length[1:] == (300, True)
  parts = build(epochs=1.5, max_updates=25, **adaptive)
  assert parts.length[1:] == (300, True)  # 25 updates are enough for these


def test_a_tuned_number_of_replicas_is_not_known_before(capsys):
  replicas = {'sync.name': 'local_sgd', 'sync.tune.enabled': True}
  parts = build(
    max_updates=25, **replicas, **{'learning_rate.decay.name': 'cosine'}
  )
  assert parts.length.examples == 100 * EXAMPLES
  assert not parts.length.exact
  (line,) = remarks.remarks(parts)
  assert 'before what sync.tune will decide' in line
  parts = build(**replicas)
  assert parts.length.exact
  with pytest.raises(ConfigError, match=r'sync\.tune\.enabled tunes'):
    build(**{'sync.tune.enabled': True})


@pytest.mark.parametrize(
  ('optimizer', 'scaling', 'damping'),
  [('sgd', 'none', 0.25), ('sgd', 'sqrt', 0.5), ('adam', 'none', 0.5)],
)
def test_a_cut_batch_is_damped(tmp_path, optimizer, scaling, damping):
  """Like one beyond B_max: its rate stands for a whole one's."""
  train(
    config(
      epochs=264 / EXAMPLES,  # 64 of 64, four times, and 8 of 32
      **{
        'controller.name': 'step_table',
        'controller.step_table.table': '0:64 256:32',
        'controller.initial_batch_size': 32,
        'controller.every': 1,
        'optimizer.name': optimizer,
        'learning_rate.scaling': scaling,
        'learning_rate.reference_batch_size': 64,
      },
    ),
    tmp_path,
    devices=jax.devices()[:1],
    splits=SPLITS,
  )
  assert column(tmp_path, 'batch_size') == [64] * 4 + [8]
  assert column(tmp_path, 'damping') == [1.0] * 4 + [damping]


def test_the_rate_of_a_real_run(tmp_path):
  train(
    config(
      max_updates=50,
      **{
        'controller.initial_batch_size': 64,
        'learning_rate.decay.name': 'linear',
      },
    ),
    tmp_path,
    devices=jax.devices()[:1],
    splits=SPLITS,
  )
  rates = column(tmp_path, 'learning_rate')
  assert len(rates) == 50
  assert rates[-1] == pytest.approx(0.02 * 1e-3, rel=1e-4)


@pytest.mark.usefixtures('compile_quickly')
@pytest.mark.parametrize('end', [*ENDS, 'examples'])
def test_a_search_and_a_run_agree(end):
  # Evaluated after every update, as often as a member says where it is.
  keys = ENDS.get(end, {'max_examples': 300})
  parts = build(**keys, **{'eval.every_epochs': 16 / EXAMPLES})
  done = list(updates_of(parts))
  assert parts.length.updates == len(done)
  ((_, outcome),) = run(
    make_population(parts, ()),
    parts,
    [Member(0, ())],
    Mode(1, updates_per_call=4),
    limit=lambda member, known: None,
  )
  assert outcome.updates == len(done)
  assert [(e.update, e.examples) for e in outcome.evaluations] == [
    (update, sum(one)) for update, one in enumerate(done, start=1)
  ]


# The size of the set.


def test_epochs_are_exact_where_batches_are_large(tmp_path):
  """With batches of 1,024 four epochs of 180 would have been five and more."""
  splits = split(180), split(20)
  c = config(
    epochs=4.0,
    **{
      'controller.name': 'step_table',
      'controller.step_table.table': '0:16 100:1024',
      'controller.max_batch_size': 1024,
      'controller.every': 1,
    },
  )
  parts = build_lib.build(c, jax.devices()[:1], splits)
  assert parts.ladder.batch_sizes[-1] == 180
  (line,) = remarks.remarks(parts)
  assert 'controller.max_batch_size=1024 is capped at 180' in line
  summary = train(c, tmp_path, devices=jax.devices()[:1], splits=splits)
  assert summary['epochs'] == 4.0
  assert column(tmp_path, 'batch_size') == [16] * 7 + [180] * 3 + [68]


@pytest.mark.parametrize('replicas', [1, 3])
def test_replicas_share_the_largest_batch(replicas):
  parts = build(
    **{
      'controller.name': 'adadamp',
      'controller.initial_batch_size': 15,
      'controller.max_batch_size': 600,
      'sync.name': 'local_sgd',
      'sync.replicas': replicas,
    }
  )
  assert parts.ladder.batch_sizes[-1] == EXAMPLES // replicas * replicas


def test_a_first_batch_that_is_larger_than_the_set_is_refused():
  keys = {
    'controller.initial_batch_size': 256,
    'controller.max_batch_size': 256,
  }
  with pytest.raises(ConfigError, match='256 is above the 200 examples'):
    build(**keys)
