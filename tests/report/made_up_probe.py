"""Probes without training: what `probe.json` holds, and how it is written."""

import json

import numpy as np

from adabatch import config
from adabatch.config.files import finite
from adabatch.devices.point_noise import NoiseScale
from adabatch.study.critical import Critical, critical, differences, growth
from adabatch.study.critical import to_json as plain
from adabatch.train.probe_ramp import describe_ramp
from adabatch.train.probe_results import verdict

EPSILON = 0.01
FACTORS = (0.25, 0.5, 1, 2, 4, 8, 16)


def made_up_point(
  examples,
  batch_size=16,
  limit=60.0,
  noise=(('simple', 200.0, 3.0), ('adam', 90.0, 1.6)),
  *,
  factors=FACTORS,
  repeats=2,
  diverged=(),
  spread=0.02,
  seed=0,
):
  """A checkpoint as a probe describes it.

  Args:
    examples: where it is.
    batch_size: there.
    limit: the batch size that costs epsilon.
    noise: (name, value, factor up to the ends of the interval), an infinite
      factor for an open one, or None instead of both for no noise scale.
    factors: of the batch size.
    repeats: of each branch.
    diverged: factors whose branches did.
    spread: of the paired differences of examples.
    seed: of the losses.
  """
  rng = np.random.default_rng(seed)
  base = rng.gamma(2.0, 0.2, (repeats, 400))
  losses = {}
  for factor in factors:
    size = round(factor * batch_size)
    cost = EPSILON * max(0.0, size / limit) ** 1.5
    losses[size] = base + cost + spread * rng.normal(size=base.shape)
    if factor == 1:
      losses[size] = base
    if factor in diverged:
      losses[size] = np.full_like(base, np.inf)
  with np.errstate(invalid='ignore'):  # infinity less infinity
    found = differences(losses, batch_size)
  size = critical(found, batch_size, EPSILON)
  scales = {
    name: None
    if value is None
    else NoiseScale(
      value, value / min(wide, 3.0), value * wide, 2.0, 2.0 / value
    )
    for name, value, wide in noise
  }
  simple = scales.get('simple')
  return {
    'update': examples // batch_size,
    'examples': examples,
    'epoch': examples / 1000,
    'batch_size': batch_size,
    'branch_examples': 600,
    'repeats': repeats,
    'table': [
      plain(d)
      | {
        'factor': d.batch_size / batch_size,
        'rate': (d.batch_size / batch_size) ** 0.5,
        'multiplier': 1.0,
        'updates': -(-600 // d.batch_size),
        'half_width': d.half_width(),
      }
      for d in found
    ],
    'critical': plain(size),
    'verdict': verdict(
      found, size, EPSILON, batch_size, repeats, scales, 32 * 16 * batch_size
    ),
    'noise': {k: None if s is None else plain(s) for k, s in scales.items()},
    'norm_test': None
    if simple is None
    else {k: 4 * getattr(simple, k) for k in ('value', 'low', 'high')}
    | {'eta': 0.5},
    'cost': {
      'branches': len(factors) * repeats,
      'examples': len(factors) * repeats * 600,
      'evaluated_examples': len(factors) * repeats * 400,
      'seconds': 7.5,
    },
  }


def made_up_probe(points, status='completed', tokens=None, **run):
  """The whole of `probe.json`."""
  at = [point['examples'] for point in points]
  sizes = [Critical(**point['critical']) for point in points]
  grown = growth(at, sizes)
  found = {
    'job': 'probe',
    'run': {'at': 'all', 'epsilon': EPSILON, 'learning_rate': 'rule'} | run,
    'split': 'validation',
    'confidence': 0.95,
    'tokens_per_example': tokens,
    'points': points,
    'growth': None if grown is None else plain(grown),
    'cost': {
      name: sum(point['cost'][name] for point in points)
      for name in ('branches', 'examples', 'evaluated_examples', 'seconds')
    },
    'status': status,
    'directory': '/runs/x-probe',
  }
  if points:
    c = config.default()
    c.controller.initial_batch_size = 16
    found['ramp'] = describe_ramp(c, at, sizes, tokens)
  return json.loads(json.dumps(finite(found)))


def three(**more):
  """A text whose critical size grows, and at last is not found."""
  return made_up_probe(
    [
      made_up_point(2_000, limit=40.0, seed=1),
      made_up_point(8_000, limit=110.0, diverged=(16,), seed=2),
      made_up_point(40_000, limit=1e4, seed=3),
    ],
    tokens=128,
    **more,
  )


def write_probe(path, found):
  path.mkdir()
  (path / 'probe.json').write_text(json.dumps(found))
  return path
