"""What the curves of many trials add up to: steps to result, and regimes."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from adabatch.search.trials import COMPLETE, Trial
from adabatch.study.fit import uncensored

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
    interval: of the steps; inf where trials like these do not reach the goal.
    by_curve: steps of each curve by itself.
  """

  steps: int | None
  curve: int | None
  interval: tuple[float, float]
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
  confidence: float = 0.95,
  resamples: int = 1000,
  seed: int = 0,
) -> StepsToTarget:
  """The smallest step at which any curve is strictly better than the goal.

      S = min_i min {s : v_i(s) < goal}

  Nothing is interpolated: a goal counts as reached when an evaluation saw it.

  The interval says how much S owes to the draw of metaparameters: trials are
  drawn anew from these, with replacement, and S is taken again. A minimum of
  resampled trials is never below the one at hand, so the interval begins at S
  or above, and a search that was lucky does not know it.

  Args:
    curves: (steps, values) of each feasible trial, equally long.
    goal: of the values.
    higher_is_better: whether values are to be above it.
    confidence: of the interval, in (0, 1).
    resamples: how often to draw.
    seed: of the draws.

  Raises:
    ValueError: for a goal that is not finite, and for a curve whose steps and
      values differ in number.

  >>> curves = [([10, 20, 30], [0.5, 0.3, 0.2]), ([10, 20], [0.4, 0.25])]
  >>> steps_to_target(curves, 0.3)[:2], steps_to_target(curves, 0.1).steps
  ((20, 1), None)

  Reference: Shallue et al., Measuring the Effects of Data Parallelism on Neural
  Network Training, 2018 (arXiv:1811.03600), section 3.
  """
  if not math.isfinite(goal):
    raise ValueError(f'the goal must be finite, got {goal}')
  if not 0 < confidence < 1:
    raise ValueError(f'confidence must be between 0 and 1, got {confidence}')
  if resamples < 1:
    raise ValueError(f'resamples must be at least 1, got {resamples}')
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
  if all(t is None for t in by_curve):
    return StepsToTarget(None, None, (math.inf, math.inf), by_curve)
  first = int(np.argmin(times))
  drawn = np.random.default_rng(seed).integers(
    len(times), size=(resamples, len(times))
  )
  # An order statistic, because nothing lies between a number and inf.
  low, high = np.quantile(
    times[drawn].min(1),
    [(1 - confidence) / 2, (1 + confidence) / 2],
    method='inverted_cdf',
  )
  return StepsToTarget(
    by_curve[first], first, (float(low), float(high)), by_curve
  )


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
