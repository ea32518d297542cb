"""Axes: where they start and end, their ticks and the ticks' labels."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Scale(NamedTuple):
  """A y axis: where it starts and ends, its ticks and their labels."""

  log: bool
  low: float
  high: float
  ticks: list[float]
  labels: list[str]


class ScaleRule(NamedTuple):
  """When a y axis is logarithmic, and where it starts.

  Logarithmic if the highest value is more than `span` times the given quantile
  of the values. A quantile, not the minimum: one lucky batch with a loss of
  1e-8, or the last updates of a cosine decay, say nothing about the rest.
  """

  span: float
  quantile: float = 0.0
  from_zero: bool = False
  base: int = 10


BATCH_SIZE = ScaleRule(span=4, from_zero=True, base=2)
LOSS = ScaleRule(span=20, quantile=0.01)


def choose_scale(values: np.ndarray, rule: ScaleRule) -> Scale:
  """The y axis for these values (finite, at least one).

  >>> choose_scale(np.array([64.0, 1024.0]), BATCH_SIZE).labels
  ['64', '128', '256', '512', '1024']
  >>> choose_scale(np.array([64.0, 128.0]), BATCH_SIZE).labels
  ['0', '25', '50', '75', '100', '125']
  """
  low, high = float(values.min()), float(values.max())
  typical = float(np.quantile(values, rule.quantile))
  if typical > 0 and high / typical > rule.span:
    positive = values[values > 0]
    # Where the rule looks at a quantile, far outliers below may leave the
    # picture; those above never do, a spike is news.
    low = float(positive.min())
    if rule.quantile > 0:
      low = max(low, float(np.quantile(positive, 0.01)) / 10)
    return log_scale(low, high, rule.base)
  if rule.from_zero and low >= 0:
    low, high = 0.0, (high or 1.0) * 1.08
  else:
    margin = 0.05 * (high - low)
    if high - low <= 1e-9 * max(abs(high), abs(low)):
      margin = 0.1 * abs(high) or 0.5
    low, high = low - margin, high + margin
  ticks = linear_ticks(low, high)
  return Scale(False, low, high, ticks, tick_labels(ticks))


def log_scale(low: float, high: float, base: int = 10) -> Scale:
  """A logarithmic axis around two positive values, with at least one tick.

  >>> log_scale(700, 900).labels, log_scale(3, 40_000).labels
  (['500', '1000'], ['10', '100', '1000', '10k'])
  """
  if high < 4 * low:
    middle = math.sqrt(low * high)
    low, high = middle / 2, middle * 2
  margin = (high / low) ** 0.05
  low, high = low / margin, high * margin
  ticks = _log_ticks(low, high, base if high / low < 2**14 else 10)
  labels = [_label(tick, tick, 4 if tick < 1e4 else 3) for tick in ticks]
  return Scale(True, low, high, ticks, labels)


def linear_ticks(low: float, high: float) -> list[float]:
  """At most seven round values from low to high.

  >>> linear_ticks(0, 102)
  [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
  """
  from matplotlib.ticker import MaxNLocator  # lines of text do without

  locator = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10])
  ticks = locator.tick_values(low, high)
  return [float(tick) for tick in ticks if low <= tick <= high]


def _log_ticks(low: float, high: float, base: int) -> list[float]:
  first = math.ceil(math.log(low, base) - 1e-9)
  last = math.floor(math.log(high, base) + 1e-9)
  decades = math.log10(high / low)
  if base == 10 and decades < 2.5:
    factors = (1, 2, 5) if decades < 1.8 else (1, 3)
    exponents = range(first - 1, last + 1)
    ticks = [factor * 10.0**e for e in exponents for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]
  stride = max(1, math.ceil((last - first + 1) / 7))
  return [float(base) ** e for e in range(first, last + 1, stride)]


def _label(tick: float, largest: float, digits: int) -> str:
  # 2000, 4000, 6000 are read faster than 2k, 4k, 6k.
  units = ((1e9, 1e9, 'B'), (1e6, 1e6, 'M'), (1e4, 1e3, 'k'))
  for limit, size, suffix in units:
    if limit <= largest < 1e13:
      return f'{tick / size:.{digits}g}{suffix}'
  return f'{tick:.{digits}g}'


def tick_labels(ticks: Sequence[float]) -> list[str]:
  """Labels of evenly spaced ticks: all in one unit, as short as is exact.

  >>> tick_labels([0, 20_000, 40_000])
  ['0', '20k', '40k']
  >>> tick_labels([0.69314, 0.69315, 0.69316])
  ['0.69314', '0.69315', '0.69316']
  """
  largest = max(map(abs, ticks), default=0)
  # A locator's zero may be 1e-17.
  zero = 1e-12 * largest
  return [_label(t, largest, 12) if abs(t) > zero else '0' for t in ticks]
