"""What runs take to come equally far, and a sentence that says so."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adabatch.report.compared import ALIKE, DONE, Group, Run
from adabatch.report.layout import duration, quantity
from adabatch.report.records import (
  AXES,
  NOT_METRICS,
  column,
  lower_is_better,
  positions,
)

# How the least of each is said, and others' in proportion to it.
LEAST = {
  'updates': ('the fewest updates', 'as many'),
  'examples': ('the fewest examples', 'as many'),
  'seconds': ('the least time', 'as long'),
}


class Milestone(NamedTuple):
  """The best value of a metric that all runs reached.

  Attributes:
    split: that it is of.
    metric: its name.
    value: the worst run's best one.
    best: of each run; NaN for one that was not evaluated.
    costs: what each run took to be as good, by axis; None if it was not.
  """

  split: str
  metric: str
  value: float
  best: Sequence[float]
  costs: Sequence[Mapping[str, float] | None]


def metrics_of(runs: Sequence[Run], split: str) -> list[str]:
  """Names of what was ever measured on a split, the loss first."""
  names = {'loss': None} | {
    key: None
    for run in runs
    for record in run.evaluations
    if record.get('split', '') == split
    for key in record
    if key not in NOT_METRICS
  }
  return [n for n in names if any(map(math.isfinite, bests(runs, split, n)))]


def bests(runs: Sequence[Run], split: str, metric: str) -> list[float]:
  """The best value of each run; NaN where there is none."""
  found = []
  for run in runs:
    values = column(_of_split(run, split), metric)
    best = min if lower_is_better(metric) else max
    found.append(best(values[np.isfinite(values)], default=math.nan))
  return found


def _of_split(run: Run, split: str):
  return [r for r in run.evaluations if r.get('split', '') == split]


def common_split(runs: Sequence[Run]) -> str | None:
  """The held-out split of all runs that were evaluated, if it is one."""
  splits = {run.held_out for run in runs if run.held_out is not None}
  return splits.pop() if len(splits) == 1 else None


def milestone(runs: Sequence[Run], split: str, metric: str) -> Milestone | None:
  """The best value that all runs reached, and what each took to.

  Of runs that diverged, or were not evaluated, it is not asked; with less than
  two others there is none. A run has reached a value at its first evaluation
  that is as good.
  """
  lower = lower_is_better(metric)
  best = bests(runs, split, metric)
  asked = [
    value
    for value, run in zip(best, runs, strict=True)
    if math.isfinite(value) and not run.diverged
  ]
  if len(asked) < 2:
    return None
  value = max(asked) if lower else min(asked)
  costs = []
  for run in runs:
    records = _of_split(run, split)
    values = column(records, metric)
    there = np.flatnonzero(values <= value if lower else values >= value)
    places = positions(records)
    costs.append(
      {axis: float(places[axis][there[0]]) for axis in AXES}
      if there.size
      else None
    )
  return Milestone(split, metric, float(value), best, costs)


def group_costs(
  groups: Sequence[Group], reached: Milestone
) -> dict[str, dict[str, float]]:
  """Label of each group that got there -> its median cost, by axis."""
  found = {}
  for group in groups:
    costs = [c for i in group.members if (c := reached.costs[i]) is not None]
    if costs:
      found[group.label] = {
        axis: statistics.median(cost[axis] for cost in costs) for axis in AXES
      }
  return found


def amount(axis: str, value: float) -> str:
  """Of updates, examples or seconds."""
  return duration(value) if axis == 'seconds' else quantity(value)


def times(ratio: float) -> str:
  """A ratio above one, as precise as one says it.

  >>> times(1.031), times(9.87), times(123.4)
  ('1.03', '9.9', '120')
  """
  return f'{ratio:.2f}' if ratio < 2 else quantity(float(f'{ratio:.2g}'))


def listed(words: Sequence[str]) -> str:
  """
  >>> listed(['a', 'b', 'c'])
  'a, b and c'
  """
  *start, last = words
  return f'{", ".join(start)} and {last}' if start else last


def _least(axis: str, costs: Mapping[str, Mapping[str, float]]) -> str:
  """Who took the least, and how much more the others."""
  values = {label: cost[axis] for label, cost in costs.items()}
  least = min(values.values())
  winners = [label for label, value in values.items() if value == least]
  others = [value for value in values.values() if value > least]
  name, as_much = LEAST[axis]
  if not others:
    all_ = 'both' if len(values) == 2 else 'all'
    return f'{all_} took {with_unit(axis, [least])}'
  ends = sorted({min(others), max(others)})
  if least > 0:
    said = [times(value / least) for value in ends]
    more = f'{" to ".join(dict.fromkeys(said))} times {as_much}'
  else:
    more = with_unit(axis, ends)
  rest = [label for label, value in values.items() if value > least]
  who = rest[0] if len(rest) == 1 else 'the others'
  return f'{listed(winners)} took {name} ({amount(axis, least)}; {who} {more})'


def with_unit(axis: str, values: Sequence[float]) -> str:
  """One amount, or the least and the most.

  >>> with_unit('updates', [3, 1, 2]), with_unit('examples', [1])
  ('1 to 3 updates', '1 example')
  """
  ends = dict.fromkeys(amount(axis, v) for v in (min(values), max(values)))
  said = ' to '.join(ends)
  if axis == 'seconds':
    return said
  return f'{said} {axis[:-1] if said == "1" else axis}'


def differences(keys: Mapping[str, Sequence[str]]) -> str:
  """What differs, in a few words."""
  said = [key for key in keys if key not in ALIKE]
  if not said:
    return 'in their seed alone' if 'seed' in keys else 'in no key of a result'
  words = []
  for key in said[:3]:
    values = list(dict.fromkeys(keys[key]))
    short = len(values) <= 4 and max(map(len, values)) <= 24
    words.append(f'{key} ({", ".join(values)})' if short else key)
  if len(said) > 3:
    words.append(f'{len(said) - 3} other key{"s" if len(said) > 4 else ""}')
  return f'in {listed(words)}'


def left_out(runs: Sequence[Run], reached: Milestone) -> dict[str, str]:
  """Label of each run that was not asked to reach a value -> why."""
  return {
    run.label: 'diverged' if run.diverged else 'has no evaluation'
    for run, best in zip(runs, reached.best, strict=True)
    if run.diverged or not math.isfinite(best)
  }


def sentence(
  runs: Sequence[Run],
  groups: Sequence[Group],
  keys: Mapping[str, Sequence[str]],
  reached: Milestone | None,
) -> str:
  """What differs between runs, and what it bought at an equal metric.

  Args:
    runs: they.
    groups: of them, that differ in their seed alone.
    keys: what `differing` returns.
    reached: what all of them reached; None if there is no such value.
  """
  start = f'These runs differ {differences(keys)}'
  if reached is None:
    return (
      f'{start}; nothing can be said at an equal loss, because fewer than '
      'two of them have evaluations of one split.'
    )
  out = left_out(runs, reached)
  all_ = 'both' if len(runs) == 2 else 'all'
  but = f' but {listed([f"{k} ({v})" for k, v in out.items()])}' if out else ''
  going = any(r.known['status'] not in DONE | {'diverged'} for r in runs)
  so_far = ' so far' if going else ''
  start = (
    f'{start}: to a {reached.split} {reached.metric} of '
    f'{quantity(reached.value)}, the best{so_far} that {all_}{but} reached,'
  )
  costs = group_costs(groups, reached)
  if len(costs) > 1:
    return f'{start} {listed([_least(axis, costs) for axis in AXES])}.'
  own = [cost for cost in reached.costs if cost is not None]
  spans = [with_unit(axis, [cost[axis] for cost in own]) for axis in AXES]
  return f'{start} they took {listed(spans)}.'
