"""What the curves of many trials add up to: steps to result, and regimes."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from adabatch.study.fit import uncensored
from adabatch.study.trials import COMPLETE, Trial

PERFECT = 'perfect scaling'
DIMINISHING = 'diminishing returns'
MAXIMAL = 'maximal data parallelism'
CENSORED = 'censored'

HALF_AN_OCTAVE = 2**0.5


class StepsToTarget(NamedTuple):
  """How soon the best of some trials was better than the goal.

  Attributes:
    steps: to result; None if no trial reached the goal.
    curve: the first one that did so, by its index.
    half: steps to result of the first half of the curves, rounded up: what a
      search with half as many trials would have found; None if nothing.
    by_curve: steps of each curve by itself.
  """

  steps: int | None
  curve: int | None
  half: int | None
  by_curve: tuple[int | None, ...]


class Regimes(NamedTuple):
  """What a larger batch size buys, for each batch size.

  Attributes:
    labels: one for each batch size, in the order in which these were given.
    perfect_up_to: the largest size that scales perfectly; None without sizes.
    maximal_from: the smallest size from which on nothing is gained; None if the
      steps fall to the last.
  """

  labels: tuple[str, ...]
  perfect_up_to: float | None
  maximal_from: float | None


def _better(
  values: np.ndarray, goal: float, higher_is_better: bool
) -> np.ndarray:
  beyond = values > goal if higher_is_better else values < goal
  return beyond & np.isfinite(values)


def steps_to_target(
  curves: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]],
  goal: float,
  *,
  higher_is_better: bool = False,
) -> StepsToTarget:
  """The smallest step at which any curve is strictly better than the goal.

      S = min_i min {s : v_i(s) < goal}

  Nothing is interpolated: a goal counts as reached when an evaluation saw it.

  How much S owes to the number of trials is told by the first half of them. For
  trials drawn independently it is exactly what a search of half the size comes
  to, also where trials end once an earlier one was better, since nothing that
  comes later changes what came before. No interval can be had from the trials:
  another search of as many finds fewer steps in one case of two, and how many
  fewer is not in these.

  Args:
    curves: (steps, values) of each feasible trial, equally long, in the order
      of the search.
    goal: of the values.
    higher_is_better: whether values are to be above it.

  Raises:
    ValueError: for a goal that is not finite, and for a curve whose steps and
      values differ in number.

  >>> curves = [([10, 20, 30], [0.5, 0.3, 0.2]), ([10, 20], [0.4, 0.25])]
  >>> steps_to_target(curves, 0.3)[:3], steps_to_target(curves, 0.1).steps
  ((20, 1, 30), None)

  Reference: Shallue et al., Measuring the Effects of Data Parallelism on Neural
  Network Training, 2018 (arXiv:1811.03600), section 3.
  """
  if not math.isfinite(goal):
    raise ValueError(f'the goal must be finite, got {goal}')
  times = np.full(len(curves), math.inf)
  for i, curve in enumerate(curves):
    steps, values = (np.asarray(part, float) for part in curve)
    if steps.shape != values.shape or steps.ndim != 1:
      raise ValueError(
        f'curve {i} has {steps.size} steps and {values.size} values: give one'
        ' for each'
      )
    reached = _better(values, goal, higher_is_better)
    times[i] = np.min(steps[reached], initial=math.inf)
  by_curve = tuple(int(t) if t < math.inf else None for t in times)
  known = [t for t in by_curve if t is not None]
  first = by_curve.index(min(known)) if known else None
  half = [t for t in by_curve[: first_half(len(times))] if t is not None]
  return StepsToTarget(
    None if first is None else by_curve[first],
    first,
    min(half, default=None),
    by_curve,
  )


def first_half(count: int) -> int:
  """How many trials the first half of so many has.

  >>> [first_half(n) for n in range(5)]
  [0, 1, 1, 2, 2]
  """
  return -(-count // 2)


def spread_over_trials(
  halves: Iterable[tuple[int, float, float]],
) -> float | None:
  """The standard deviation of log S that the draw of trials alone makes.

  Steps to result of a draw are few with a probability that is a power of them,
  P(T < t) ~ t^a, as near any best point. Then log S of n trials has

      mean      c - H_n / a,  H_n = sum_{k <= n} 1 / k
      variance  sum_{k <= n} 1 / k^2 / a^2

  and 1 / a is taken from how far S fell from m = n / 2 trials to n, averaged
  over searches. One search tells it to a factor of about 2, ten to 40 %.

  Args:
    halves: (n, S of the first half of the trials, S of all), for each search;
      where the first half did not reach the goal, the steps up to which it did
      not make the result a lower bound.

  Returns:
    The average over searches; None if none has two trials.

  >>> round(spread_over_trials([(30, 150.0, 150.0), (30, 200.0, 150.0)]), 2)
  0.27

  Reference: Renyi's representation of order statistics, 1953.
  """
  spreads = []
  for n, half, steps in halves:
    if n < 2:
      continue
    k = np.arange(1, n + 1)
    falls = (1 / k[first_half(n) :]).sum()
    share = math.log(max(half, steps) / steps)
    spreads.append(share / falls * math.sqrt((1 / k**2).sum()))
  return float(np.mean(spreads)) if spreads else None


def regimes(
  batch_sizes: Sequence[float], steps: Sequence[float | None]
) -> Regimes:
  """Perfect scaling, then diminishing returns, then none.

  With (B_0, S_0) at the smallest size that has steps:

      perfect scaling           S B <= sqrt(2) S_0 B_0, as all sizes below
      maximal data parallelism  S <= sqrt(2) min S, as all sizes above
      diminishing returns       between the two

  The first holds for B_0 always, the second for the largest size if its steps
  are the fewest: one such size by itself is no evidence of a plateau.

  Args:
    batch_sizes: B, [n], in any order.
    steps: S, [n]; None, NaN or inf where the goal was not reached, which is
      labelled `censored` and otherwise passed over.

  Raises:
    ValueError: for lengths that differ, and for sizes or steps that are not
      positive.

  >>> regimes([1, 2, 4, 8, 16], [80, 40, 30, 21, 20]).labels[1:4]
  ('perfect scaling', 'diminishing returns', 'maximal data parallelism')
  """
  pairs = sorted(uncensored(batch_sizes, steps))
  if not pairs:
    return Regimes((CENSORED,) * len(batch_sizes), None, None)
  examples = HALF_AN_OCTAVE * pairs[0][0] * pairs[0][1]
  fewest = HALF_AN_OCTAVE * min(s for _, s in pairs)
  perfect_up_to, maximal_from = pairs[0][0], None
  for size, count in pairs:
    if size * count > examples:
      break
    perfect_up_to = size
  for size, count in reversed(pairs):
    if size <= perfect_up_to or count > fewest:
      break
    maximal_from = size

  def label(size: float, count: float | None) -> str:
    if count is None or not math.isfinite(count):
      return CENSORED
    if size <= perfect_up_to:
      return PERFECT
    if maximal_from is not None and size >= maximal_from:
      return MAXIMAL
    return DIMINISHING

  labels = tuple(map(label, batch_sizes, steps))
  return Regimes(labels, perfect_up_to, maximal_from)


def column(trial: Trial, metric: str) -> np.ndarray:
  """One column of a trial's measurements; empty if it was never evaluated.

  Raises:
    ValueError: if it was evaluated, but not by this metric.
  """
  measurements = trial.measurements
  if metric in measurements:
    return np.asarray(measurements[metric], float)
  if len(measurements.get('step', ())):
    known = ', '.join(k for k in measurements if k != 'step')
    raise ValueError(
      f'trial {trial.number} has no measurement {metric!r}: choose one of'
      f' {known}'
    )
  return np.empty(0)


def best_under(
  trials: Iterable[Trial],
  metric: str,
  *,
  steps: float | None = None,
  examples: float | None = None,
  batch_size: float | None = None,
  higher_is_better: bool = False,
) -> float | None:
  """The best value that any feasible trial had within a budget.

      best {v_i(s) : s <= steps, s B <= examples}

  Args:
    trials: of which those that are `COMPLETE` count.
    metric: column of the measurements.
    steps: step budget, or None.
    examples: epoch budget in examples, or None.
    batch_size: B; needed with `examples`.
    higher_is_better: whether the best value is the largest.

  Returns:
    The value, or None if there is no finite one within the budget.

  Raises:
    ValueError: for `examples` without `batch_size`, and for a metric that was
      not measured.

  >>> trial = Trial(1, {}, COMPLETE, 20, {'step': np.array([10, 20]),
  ...               'error': np.array([0.5, 0.4])})
  >>> best_under([trial], 'error', examples=300, batch_size=20)
  0.5
  """
  limit = math.inf if steps is None else steps
  if examples is not None:
    if batch_size is None:
      raise ValueError('a budget of examples needs the batch_size')
    limit = min(limit, examples / batch_size)
  found = []
  for trial in trials:
    values = column(trial, metric)
    if trial.status == COMPLETE and values.size:
      within = np.asarray(trial.measurements['step']) <= limit
      found.append(values[within & np.isfinite(values)])
  values = np.concatenate(found) if found else np.empty(0)
  if not values.size:
    return None
  return float(values.max() if higher_is_better else values.min())
