"""What is planned is what is trained, to the last digit."""

import itertools

import jax
import numpy as np
import pytest

from adabatch.config import ConfigError
from adabatch.plan.schedule import (
  constantly,
  follows_losses,
  is_exact,
  learning_rates,
  read_losses,
  walk,
)
from adabatch.train.build import build
from adabatch.train.loop import loop
from tests.experiments import digits

pytestmark = pytest.mark.usefixtures('compile_quickly')

NAME = 'controller.name'
WARMUP = {
  'learning_rate.warmup.kind': 'gradual',
  'learning_rate.warmup.epochs': 1.0,
  'learning_rate.warmup.start': 0.1,
}
COSINE = {'learning_rate.decay.name': 'cosine'}
CASES = {
  'constant': {NAME: 'constant', **COSINE, **WARMUP},
  'constant, exact': {
    NAME: 'constant',
    'controller.initial_batch_size': 50,
    'learning_rate.decay.name': 'wsd',
    'learning_rate.decay.cooldown': 0.3,
  },
  'geodamp': {NAME: 'geodamp', 'controller.geodamp.delay_epochs': 1.0},
  'geodamp beyond the largest': {
    NAME: 'geodamp',
    'controller.geodamp.delay_epochs': 0.5,
    'controller.geodamp.factor': 5.0,
    'learning_rate.scaling': 'linear',
    **WARMUP,
  },
  'step_table': {
    NAME: 'step_table',
    'controller.step_table.table': '0:16 500:32 1.7K:64',
    'controller.step_table.unit': 'examples',
    'learning_rate.scaling': 'sqrt',
  },
  'step_table of epochs': {
    NAME: 'step_table',
    'controller.step_table.table': '0:16 0.5:100 1:128',
    'controller.step_table.unit': 'epochs',
    'max_updates': 33,
    **COSINE,
  },
  'ramp_up': {
    NAME: 'ramp_up',
    'controller.ramp_up.final_batch_size': 96,
    'controller.ramp_up.increment': 16,
    'controller.ramp_up.examples': 2000,
    'learning_rate.decay.name': 'linear',
  },
  'padadamp': {NAME: 'padadamp', 'buckets.rounding': 'exact'},
  'padadamp, nearest': {
    NAME: 'padadamp',
    'controller.padadamp.rate': 1.5,
    'controller.every': 3,
    'buckets.rounding': 'nearest',
    'buckets.growth': 1.4,
  },
  'from_lr_schedule': {NAME: 'from_lr_schedule', **COSINE},
  'from_lr_schedule, piecewise': {
    NAME: 'from_lr_schedule',
    'learning_rate.decay.name': 'piecewise',
    'learning_rate.decay.boundaries': (1.0, 2.0),
    'learning_rate.decay.unit': 'epochs',
    'learning_rate.decay.factor': 0.2,
    'controller.smooth': 0.5,
  },
  'replicas': {
    NAME: 'geodamp',
    'controller.geodamp.delay_epochs': 1.0,
    'sync.name': 'local_sgd',
    'sync.replicas': 2,
    'sync.local_steps': 3,
    **COSINE,
  },
}


def planned(parts, losses=None):
  """By update: batch size, nominal one, learning rate; and what else is due."""
  rows, evaluations, checkpoints = [], [], []
  for call, evaluates, saves in walk(parts, losses):
    for i in range(call.count):
      before, after = call.after(i), call.after(i + 1)
      rows.append((after, call.plan, before[1]))
    evaluations += [call.after(call.count)] * evaluates
    checkpoints += [call.after(call.count)[0]] * saves
  places, plans, before = zip(*rows, strict=True)
  sizes = [plan.batch_size for plan in plans]
  rates = learning_rates(parts, sizes, [p.damping for p in plans], before)
  nominal = [plan.nominal for plan in plans]
  return list(zip(places, sizes, nominal, rates, strict=True)), (
    evaluations,
    checkpoints,
  )


def trained(parts):
  """The same of a run."""
  rows, evaluations, checkpoints = [], [], []
  steps = loop(parts, save=lambda update, *state: checkpoints.append(update))
  for kind, record in steps:
    place = record.get('update'), record.get('examples')
    if kind == 'train':
      names = 'batch_size', 'nominal_batch_size', 'learning_rate'
      rows.append((place, *(record[name] for name in names)))
    if kind == 'eval':
      evaluations.append(place)
  return rows, (evaluations, checkpoints)


@pytest.mark.parametrize('case', CASES)
def test_it_is_what_is_trained(case):
  keys = {'eval.every_epochs': 0.7, 'checkpoint.every_updates': 25}
  parts = build(digits(**keys | CASES[case]), jax.devices()[:1])
  assert is_exact(parts)
  ours, theirs = planned(parts), trained(parts)
  assert len(ours[0]) > 20
  for a, b in itertools.zip_longest(ours[0], theirs[0]):
    assert a == b
  assert ours[1] == theirs[1]


def test_a_rule_that_reads_losses_decides_by_those_of_a_run():
  """Given the losses that a run had it does what it did there."""
  c = digits(**{'controller.adadamp.loss_source': 'ema'})
  parts = build(c, jax.devices()[:1])
  assert not is_exact(parts)
  assert follows_losses(parts)
  found = {
    r['examples'] - r['batch_size']: r['loss']
    for kind, r in loop(parts)
    if kind == 'train'
  }
  ours, _ = planned(parts, found.__getitem__)
  assert [(a, b) for (_, a), b, *_ in ours] == [
    (r['examples'], r['batch_size']) for k, r in loop(parts) if k == 'train'
  ]


@pytest.mark.parametrize(
  'overrides',
  [
    {'controller.name': 'noise_scale'},
    {'controller.name': 'norm_test'},
    {'sync.name': 'sma', 'sync.tune.enabled': True},
  ],
)
def test_what_is_measured_is_not_planned(overrides):
  parts = build(digits(**overrides), jax.devices()[:1])
  assert not is_exact(parts)
  with pytest.raises(ConfigError, match='decides by what is measured'):
    next(walk(parts, lambda examples: 1.0))


def test_the_ends_of_the_ladder_bound_a_run():
  parts = build(digits(), jax.devices()[:1])
  updates = {}
  for size in parts.ladder.batch_sizes:
    *_, last = walk(constantly(parts, size))
    updates[size] = last.call.after(last.call.count)[0]
  assert updates[16] == -(-3 * 1438 // 16)
  assert list(updates.values()) == sorted(updates.values(), reverse=True)
  *_, (kind, summary) = loop(parts)
  assert kind == 'summary'
  assert updates[128] <= summary['updates'] <= updates[16]


def test_adascale_has_no_rate_before_it_is_measured():
  parts = build(digits(**{'learning_rate.scaling': 'adascale'}))
  assert learning_rates(parts, [16], [1.0], [0]) is None


def test_losses_of_a_run(tmp_path):
  lines = (
    '{"kind": "train", "examples": 16, "loss": 2.0}\n'
    '{"kind": "eval", "examples": 16, "loss": 9.0}\n'
    '{"kind": "train", "examples": 48, "loss": null}\n'
    '{"kind": "train", "examples": 32, "loss": 1.0}\n'
  )
  (tmp_path / 'metrics.jsonl').write_text(lines)
  losses = read_losses(str(tmp_path))
  assert [losses(examples) for examples in (0, 16, 17, 99)] == [2, 2, 1, 1]
  for wrong in ('nowhere', '1 2', '1 2 nan', '1 2 -1'):
    with pytest.raises(ConfigError, match='plan.loss='):
      read_losses(wrong)
  (tmp_path / 'metrics.jsonl').write_text('')
  with pytest.raises(ConfigError, match='has no losses'):
    read_losses(str(tmp_path))


def test_rates_are_numpy():
  parts = build(digits(**COSINE))
  rates = learning_rates(parts, [16, 16], [1.0, 0.5], [0, 0])
  assert isinstance(rates, np.ndarray)
  assert rates[0] == 2 * rates[1] == np.float32(0.02)
