"""What the branches of a probe say, as `probe.json` has it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adabatch import config as config_lib
from adabatch.config import Config
from adabatch.devices.point_noise import NoiseScale
from adabatch.study.critical import (
  CONFIDENCE,
  Critical,
  Difference,
  critical,
  differences,
  growth,
  to_json,
)
from adabatch.train.branches import Branch, Point
from adabatch.train.build import Parts
from adabatch.train.probe_ramp import describe_ramp, floor_of_memory
from adabatch.train.probe_store import Made

FEW = 8  # updates, after which little is seen
# (factor of the batch size, factor of the rule's rate, repeat, how it grows)
Row = tuple[float, float, int, Branch]


def choose_rates(
  rows: Sequence[Row], made: Sequence[Made]
) -> dict[int, tuple[float, np.ndarray]]:
  """Of each batch size the factor of the rate with the least mean loss.

  Returns:
    Batch size -> (that factor, losses [repeats, examples]).
  """
  by_way: dict[tuple[int, float], list[np.ndarray]] = {}
  for (_, multiplier, _, branch), one in zip(rows, made, strict=True):
    way = branch.batch_size, multiplier
    losses = one.losses.losses.astype(np.float64)
    # Of a branch that diverged no example was learnt.
    whole = (
      losses if np.isfinite(losses).all() else np.full_like(losses, np.inf)
    )
    by_way.setdefault(way, []).append(whole)
  best: dict[int, tuple[float, np.ndarray]] = {}
  weights = made[0].losses.weights
  means = {
    way: np.average(np.stack(some).mean(0), weights=weights)
    for way, some in by_way.items()
  }
  for (size, multiplier), mean in means.items():
    if size not in best or mean < means[size, best[size][0]]:
      best[size] = multiplier, np.stack(by_way[size, multiplier])
  return best


def describe_point(
  parts: Parts,
  point: Point,
  rows: Sequence[Row],
  made: Sequence[Made],
  noise: Mapping[str, NoiseScale | None],
  *,
  examples: int,
  evaluated: int,
  seconds: float,
) -> dict[str, Any]:
  """One checkpoint: its table, its critical batch size, and what it cost.

  Args:
    parts: of the run.
    point: where its branches began.
    rows: what they are.
    made: what came of them, in the same order.
    noise: noise scales of the same point, by name; None where there is none.
    examples: that each trained on.
    evaluated: that each was evaluated on.
    seconds: that the noise took.
  """
  p, reference = parts.config.probe, point.plan.batch_size
  best = choose_rates(rows, made)
  weights = made[0].losses.weights
  found = differences(
    {size: losses for size, (_, losses) in best.items()}, reference, weights
  )
  size = critical(found, reference, p.epsilon)
  factors = {branch.batch_size: factor for factor, _, _, branch in rows}
  rates = {
    (branch.batch_size, multiplier): branch.rate
    for _, multiplier, _, branch in rows
  }
  table = [
    to_json(d)
    | {
      'factor': factors[d.batch_size],
      'rate': rates[d.batch_size, best[d.batch_size][0]],
      'multiplier': best[d.batch_size][0],
      'updates': -(-examples // d.batch_size),
      'half_width': d.half_width(),
    }
    for d in found
  ]
  eta = parts.config.controller.norm_test.eta
  return {
    'update': point.update,
    'examples': point.examples,
    'epoch': point.examples / parts.extent.epoch,
    'batch_size': reference,
    'branch_examples': examples,
    'repeats': p.repeats,
    'table': table,
    'critical': to_json(size),
    'verdict': verdict(
      found, size, p.epsilon, reference, p.repeats, noise, examples
    )
    + _memory(parts.config, reference, size.tried),
    'noise': {
      name: None if one is None else to_json(one) for name, one in noise.items()
    },
    'norm_test': _norm_test(noise.get('simple'), eta),
    'cost': {
      'branches': len(rows),
      'examples': len(rows) * examples,
      'evaluated_examples': len(rows) * evaluated,
      'seconds': sum(one.seconds for one in made) + seconds,
    },
  }


def _norm_test(
  simple: NoiseScale | None, eta: float
) -> dict[str, float] | None:
  """The batch size at which |g|^2 has eta^2 of it as noise."""
  if simple is None:
    return None
  size = {
    name: getattr(simple, name) / eta**2 for name in ('value', 'low', 'high')
  }
  return to_json_values(size) | {'eta': eta}


def to_json_values(values: Mapping[str, float]) -> dict[str, Any]:
  """What is not finite is None."""
  return {k: v if math.isfinite(v) else None for k, v in values.items()}


def _memory(config: Config, reference: int, tried: int) -> str:
  """Where a branch could not remember as many examples."""
  factor = floor_of_memory(config)
  if factor is None or tried <= reference * factor:
    return ''
  return (
    f"; beyond {reference * factor:,.0f} Adam's second moment remembers more "
    'examples than at the current size, because beta2 falls no lower than '
    'beta1^2'
  )


def verdict(
  found: Sequence[Difference],
  size: Critical,
  epsilon: float,
  reference: int,
  repeats: int,
  noise: Mapping[str, NoiseScale | None],
  examples: int,
) -> str:
  """In a sentence or two; never a bare number."""
  diverged = [d.batch_size for d in found if not math.isfinite(d.difference)]
  if not size.low:
    return (
      f'training on with the batch of {reference:,} diverged, so that nothing '
      'can be compared'
    )
  if size.tried == reference:
    said = f'no batch above the current {reference:,} was tried'
  elif size.batch_size is None:
    said = (
      f'no batch up to {size.tried:,} costs more than {epsilon:g}; from '
      f'{size.low:,.0f} on that is not certain'
      if size.low < size.tried
      else f'no batch up to {size.tried:,} costs more than {epsilon:g}'
    )
  else:
    high = 'beyond ' + f'{size.tried:,}' if size.high is None else size.high
    high = high if isinstance(high, str) else f'{high:,.0f}'
    said = (
      f'batches up to {size.batch_size:,.0f} ({size.low:,.0f} to {high}) cost '
      f'no more than {epsilon:g}'
    )
  lines = [said]
  if diverged:
    lines.append(
      f'training with {", ".join(f"{b:,}" for b in diverged)} diverged'
    )
  smaller = [
    d
    for d in found
    if d.batch_size < reference and d.difference + d.half_width() < -epsilon
  ]
  if smaller:
    best = min(smaller, key=lambda d: d.difference)
    lines.append(
      f'the current {reference:,} is too large already: {best.batch_size:,} is '
      f'better by {-best.difference:.3g} ± {best.half_width():.2g}'
    )
  others = [d for d in found if d.batch_size != reference]
  blurred = [d for d in others if d.half_width() > epsilon]
  if others and len(blurred) == len(others):
    least = min(d.half_width() for d in others)
    lines.append(
      f'epsilon is below what can be seen here (± {least:.2g} at best): give '
      'more probe.repeats or probe.examples'
    )
  fewest = math.ceil(examples / size.tried)
  if fewest < FEW:
    lines.append(
      f'the largest batch took {fewest} update{"s" * (fewest > 1)} alone: look '
      'further ahead (probe.examples), as far as there are data'
    )
  if repeats == 1:
    lines.append(
      'with one repeat the errors leave out what other training data would '
      'have changed'
    )
  simple = noise.get('simple')
  if simple is not None and simple.value == 0:
    lines.append(
      'the gradients have no noise: what a large batch loses, it loses by '
      'taking fewer updates'
    )
  return '; '.join(lines)


def describe_run(
  parts: Parts, points: Sequence[dict[str, Any]]
) -> dict[str, Any]:
  """All checkpoints: how the critical size grows, and the ramp."""
  config, tokens = parts.config, parts.extent.tokens_per_example
  sizes = [Critical(**one['critical']) for one in points]
  at = [one['examples'] for one in points]
  found: dict[str, Any] = {
    'job': 'probe',
    'run': dict(config_lib.flatten(config.probe)),
    'split': config.data.eval_split,
    'confidence': CONFIDENCE,
    'tokens_per_example': tokens,
    'points': list(points),
    'cost': {
      name: sum(one['cost'][name] for one in points)
      for name in ('branches', 'examples', 'evaluated_examples', 'seconds')
    },
  }
  grown = growth(at, sizes)
  found['growth'] = None if grown is None else to_json(grown)
  if points:
    found['ramp'] = describe_ramp(config, at, sizes, tokens)
  return found
