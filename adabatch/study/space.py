"""What is searched: a range for each metaparameter, and the points in it.

The points are quasi-random and written down in advance: point i depends on the
seed and on i alone, however many workers there are and whatever they find.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import qmc

SCALES = ('linear', 'log', 'reverse_log', 'integer', 'discrete')
SAMPLERS = ('halton', 'sobol')


class Parameter(NamedTuple):
  """One axis of a search space.

  Attributes:
    scale: how u in [0, 1] becomes a value in [low, high]:
      `linear`       low + u (high - low)
      `log`          low (high / low)^u
      `reverse_log`  1 - (1 - low) ((1 - high) / (1 - low))^u, for momentum
      `integer`      each of low ... high with equal probability
      `discrete`     each of the values with equal probability
    values: (low, high), or all of them where the scale is `discrete`.
  """

  scale: str
  values: tuple[float, ...]

  def at(self, u: float) -> float:
    """The value at u in [0, 1].

    >>> round(Parameter('log', (1e-4, 1.0)).at(0.5), 12)
    0.01
    >>> round(Parameter('reverse_log', (0.9, 0.999)).at(0.5), 12)
    0.99
    >>> Parameter('discrete', (0.0, 0.01, 0.1)).at(0.99)
    0.1
    """
    if self.scale == 'discrete':
      return self.values[min(int(u * len(self.values)), len(self.values) - 1)]
    low, high = self.values
    if self.scale == 'linear':
      return low + u * (high - low)
    if self.scale == 'integer':
      return min(math.floor(low + u * (high - low + 1)), int(high))
    if self.scale == 'log':
      return math.exp((1 - u) * math.log(low) + u * math.log(high))
    return 1 - math.exp((1 - u) * math.log(1 - low) + u * math.log(1 - high))

  def place(self, value: float) -> float:
    """The u in [0, 1] of a value; the middle of its step where it has one.

    >>> Parameter('log', (1e-4, 1.0)).place(0.01)
    0.5
    """
    if self.scale == 'discrete':
      nearest = min(self.values, key=lambda v: abs(v - value))
      return (self.values.index(nearest) + 0.5) / len(self.values)
    low, high = self.values
    if self.scale == 'integer':
      return (value - low + 0.5) / (high - low + 1)
    if self.scale == 'reverse_log':
      low, high, value = 1 - low, 1 - high, 1 - value
    if self.scale in ('log', 'reverse_log'):
      low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)

  def widened(self, side: str) -> 'Parameter':
    """Moves one end out by half of the axis.

    >>> Parameter('log', (1e-4, 1.0)).widened('high').values
    (0.0001, 100.0)
    """
    if self.scale in ('discrete', 'integer'):
      return self
    low, high = self.values
    wider = self.at(-0.5 if side == 'low' else 1.5)
    if low >= 0:
      wider = max(wider, 0.0)  # what was no less than 0 stays so
    ends = (wider, high) if side == 'low' else (low, wider)
    return self._replace(values=tuple(float(f'{v:.15g}') for v in ends))


Space = Mapping[str, Parameter]


def make_space(rows: Iterable[Sequence[Any]]) -> dict[str, Parameter]:
  """From a config's rows (key, scale, low, high) or (key, 'discrete', ...).

  >>> make_space([('learning_rate.base', 'log', 1e-4, 10)])
  {'learning_rate.base': Parameter(scale='log', values=(0.0001, 10.0))}

  Raises:
    ValueError: for a row that is no range, naming it.
  """
  space = {}
  for row in rows:
    if not isinstance(row, list | tuple) or len(row) < 3:
      raise ValueError(
        f'{row!r} is no row of a space: give (key, scale, low, high)'
      )
    key, scale, *values = row
    if scale not in SCALES:
      raise ValueError(
        f'unknown scale {scale!r} of {key}: choose one of {", ".join(SCALES)}'
      )
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
      raise ValueError(f'{key} needs numbers, got {tuple(values)}')
    if key in space:
      raise ValueError(f'{key} is there twice')
    if scale != 'discrete':
      _check_range(key, scale, values)
    kind = int if scale == 'integer' else float
    if scale == 'discrete':
      space[key] = Parameter(scale, tuple(values))
    else:
      space[key] = Parameter(scale, tuple(kind(v) for v in values))
  return space


def _check_range(key: str, scale: str, values: list[float]) -> None:
  if len(values) != 2 or not values[0] < values[1]:
    raise ValueError(
      f'{key} needs low < high on the scale {scale!r}, got {tuple(values)}'
    )
  if scale == 'log' and values[0] <= 0:
    raise ValueError(f'{key} needs low > 0 on a log scale, got {values[0]}')
  if scale == 'reverse_log' and values[1] >= 1:
    raise ValueError(
      f'{key} needs high < 1 on a reverse_log scale, got {values[1]}'
    )
  if scale == 'integer' and any(v % 1 for v in values):
    raise ValueError(f'{key} needs whole numbers, got {tuple(values)}')


def points(
  space: Space, sampler: str, seed: int, count: int
) -> list[dict[str, float]]:
  """The first points of a scrambled low-discrepancy sequence.

  A longer list starts with the shorter one.

  Args:
    space: what to sample.
    sampler: `halton` or `sobol`.
    seed: of the scrambling.
    count: how many.

  Reference: Bousquet et al., Critical Hyper-Parameters: No Random, No Cry,
  2017 (arXiv:1706.03200).

  >>> a = Parameter('log', (0.01, 1.0))
  >>> points({'a': a}, 'halton', 0, 5)[:3] == points({'a': a}, 'halton', 0, 3)
  True
  """
  if not space:
    return [{} for _ in range(count)]
  if sampler == 'halton':
    unit = qmc.Halton(len(space), scramble=True, rng=seed).random(count)
  elif sampler == 'sobol':
    # A power of two at a time is how the sequence is balanced.
    power = max(math.ceil(math.log2(max(count, 1))), 0)
    unit = qmc.Sobol(len(space), scramble=True, rng=seed).random_base2(power)
  else:
    raise ValueError(
      f'unknown sampler {sampler!r}: choose one of {", ".join(SAMPLERS)}'
    )
  return [
    {k: p.at(float(u)) for (k, p), u in zip(space.items(), row, strict=True)}
    for row in np.asarray(unit)[:count]
  ]


def near_edges(
  space: Space, parameters: Mapping[str, float]
) -> list[tuple[str, str]]:
  """Where a point lies in the tenth of an axis at an end, or beyond it.

  The best may then lie beyond the end.

  Args:
    space: of the search.
    parameters: the point.

  Returns:
    Pairs of a key and `low` or `high`; nothing for discrete axes, which end
    where they end.

  >>> near_edges({'a': Parameter('log', (1e-4, 1.0))}, {'a': 0.9})
  [('a', 'high')]
  """
  found = []
  for key, parameter in space.items():
    if parameter.scale in ('discrete', 'integer') or key not in parameters:
      continue
    u = parameter.place(parameters[key])
    if u < 0.1:
      found.append((key, 'low'))
    elif u > 0.9:
      found.append((key, 'high'))
  return found
