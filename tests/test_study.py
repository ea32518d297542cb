"""Steps to result and their fit, against slow twins and known curves."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from adabatch.search.space import Parameter
from adabatch.search.trials import (
  COMPLETE,
  ERROR,
  INCOMPLETE,
  INFEASIBLE,
  Search,
  Trial,
)
from adabatch.study import (
  best_under,
  fit_critical_batch_size,
  format_table,
  predict,
  regimes,
  steps_to_target,
  summarize,
  to_json,
)

SIZES = 2.0 ** np.arange(12)
ROOT = Path(__file__).parents[1]


def curve(min_steps, critical, sizes=SIZES):
  return min_steps * (1 + critical / sizes)


def noisy(steps, seed, scale):
  rng = np.random.default_rng(seed)
  return steps * np.exp(rng.normal(0, scale, len(steps)))


# The fit.


@pytest.mark.parametrize('min_steps', [1e-3, 1.0, 150.0, 1e7])
@pytest.mark.parametrize('critical', [1e-4, 1.0, 64.0, 3e3, 1e7])
@pytest.mark.parametrize('count', [3, 12])
def test_a_curve_without_noise_is_found(min_steps, critical, count):
  sizes = SIZES[:: len(SIZES) // count]
  fit = fit_critical_batch_size(sizes, curve(min_steps, critical, sizes))
  assert fit.min_steps == pytest.approx(min_steps, rel=1e-5)
  assert fit.critical_batch_size == pytest.approx(critical, rel=1e-5)
  assert fit.min_examples == pytest.approx(min_steps * critical, rel=1e-5)
  assert fit.points == count
  for size in (0.5, 100, 1e6):
    assert predict(fit, size) == pytest.approx(
      min_steps * (1 + critical / size), rel=1e-5
    )


def slow_fit(sizes, steps, confidence):
  """The fit and its intervals from a grid over both numbers."""
  s, c = np.meshgrid(
    np.linspace(math.log(20), math.log(500), 901),
    np.linspace(math.log(5), math.log(900), 901),
  )
  squares = sum(
    (math.log(step) - s - np.log1p(np.exp(c) / size)) ** 2
    for size, step in zip(sizes, steps, strict=True)
  )
  n = len(sizes)
  quantile = stats.f.ppf(confidence, 1, n - 2)
  inside = squares <= squares.min() * (1 + quantile / (n - 2))
  best = np.unravel_index(squares.argmin(), squares.shape)
  found = [(a[best], a[inside].min(), a[inside].max()) for a in (s, c)]
  return np.exp(found).ravel()


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('confidence', [0.5, 0.95])
@pytest.mark.parametrize(('every', 'noise'), [(1, 0.1), (3, 0.03)])
def test_the_fit_is_the_one_of_a_grid(seed, confidence, every, noise):
  sizes = SIZES[::every]
  steps = noisy(curve(100, 64, sizes), seed, noise)
  fit = fit_critical_batch_size(sizes, steps, confidence=confidence)
  found = [
    fit.min_steps,
    *fit.min_steps_interval,
    fit.critical_batch_size,
    *fit.critical_batch_size_interval,
  ]
  # The grid's own steps are 0.36 % and 0.58 %.
  slow = slow_fit(sizes, steps, confidence)
  np.testing.assert_allclose(found, slow, rtol=0.015)


def test_intervals_hold_the_truth_as_often_as_they_say():
  held = {0.5: np.zeros(2), 0.95: np.zeros(2)}
  trials = 80
  for seed, level in itertools.product(range(trials), held):
    steps = noisy(curve(100, 64), seed, 0.2)
    fit = fit_critical_batch_size(SIZES, steps, confidence=level)
    low, high = zip(
      fit.min_steps_interval, fit.critical_batch_size_interval, strict=True
    )
    held[level] += [low[0] <= 100 <= high[0], low[1] <= 64 <= high[1]]
  for level, counts in held.items():
    slack = 4 * math.sqrt(level * (1 - level) / trials)
    assert np.all(abs(counts / trials - level) < slack), (level, counts)


def test_intervals_are_open_where_the_data_do_not_bound_them():
  perfect = fit_critical_batch_size(SIZES, 1e6 / SIZES)
  assert perfect.min_steps == 0
  assert perfect.critical_batch_size == math.inf
  assert perfect.min_examples == pytest.approx(1e6)
  assert predict(perfect, 50) == pytest.approx(2e4)
  flat = fit_critical_batch_size(SIZES, [300] * len(SIZES))
  assert flat.critical_batch_size == flat.min_examples == 0
  assert flat.min_steps == predict(flat, 9) == pytest.approx(300)
  for seed in range(5):
    fit = fit_critical_batch_size(SIZES, noisy(1e6 / SIZES, seed, 0.1))
    low, high = fit.critical_batch_size_interval
    assert high == math.inf
    assert SIZES[-1] < low < math.inf
    assert fit.min_steps_interval[0] == 0
    assert 0 < fit.min_steps_interval[1] < 1e6 / SIZES[-1]
    fit = fit_critical_batch_size(SIZES, noisy(300 + 0 * SIZES, seed, 0.1))
    low, high = fit.critical_batch_size_interval
    assert low == 0
    assert 0 < high < 2
    low, high = fit.min_steps_interval
    assert 200 < low < fit.min_steps < high < 450


@pytest.mark.parametrize('absent', [None, math.nan, math.inf])
def test_the_fit_leaves_out_censored_sizes(absent):
  steps = [1100.0, absent, 200.0, 110.0, absent]
  fit = fit_critical_batch_size([1, 5, 10, 100, 1000], steps)
  assert fit == fit_critical_batch_size([1, 10, 100], [1100.0, 200.0, 110.0])


@pytest.mark.parametrize(
  ('sizes', 'steps', 'options', 'message'),
  [
    ([1, 2], [2, 1], {}, 'needs 3 different batch sizes with steps, got 2'),
    ([1, 2, 2], [3, 2, 1], {}, 'got 2 among 3'),
    ([1, 2, 4], [3, None, 1], {}, 'got 2 among 3'),
    ([1, 2, 4], [3, 2], {}, '3 batch sizes and 2 steps'),
    ([1, 0, 4], [3, 2, 1], {}, 'must be positive, got 0'),
    ([1, 2, 4], [3, 2, 0], {}, 'must be positive, got 0'),
    ([1, 2, 4], [3, 2, 1], {'confidence': 1}, 'between 0 and 1, got 1'),
  ],
)
def test_what_cannot_be_fitted_is_refused(sizes, steps, options, message):
  with pytest.raises(ValueError, match=message):
    fit_critical_batch_size(sizes, steps, **options)


# Steps to target.


def random_curves(seed, higher):
  rng = np.random.default_rng(seed)
  curves = []
  for _ in range(rng.integers(1, 9)):
    count = rng.integers(0, 12)
    # Few values, so that goals are often hit exactly and steps often tie.
    values = rng.integers(0, 8, count) / 8.0
    values[rng.random(count) < 0.1] = math.nan
    values[rng.random(count) < 0.05] = math.inf if higher else -math.inf
    curves.append((np.cumsum(rng.integers(1, 4, count)), values))
  return curves


def slow_steps(curves, goal, higher):
  found = []
  for steps, values in curves:
    hits = [
      int(s)
      for s, v in zip(steps, values, strict=True)
      if math.isfinite(v) and (v > goal if higher else v < goal)
    ]
    found.append(min(hits) if hits else None)
  return found


@pytest.mark.parametrize('higher', [False, True])
def test_steps_to_target_is_the_obvious_loop(higher):
  reached = 0
  for seed in range(100):
    curves = random_curves(seed, higher)
    goal = 0.75 if higher else 0.25
    result = steps_to_target(curves, goal, higher_is_better=higher)
    slow = slow_steps(curves, goal, higher)
    assert list(result.by_curve) == slow
    steps = [s for s in slow if s is not None]
    assert result.steps == (min(steps) if steps else None)
    assert result.curve == (slow.index(min(steps)) if steps else None)
    reached += bool(steps)
  assert 20 < reached < 95


def test_a_goal_met_exactly_is_not_reached():
  curves = [([10, 20], [0.5, 0.3])]
  assert steps_to_target(curves, 0.3).steps is None
  assert steps_to_target(curves, np.nextafter(0.3, 1)).steps == 20
  assert steps_to_target(curves, 0.5, higher_is_better=True).steps is None


def test_the_interval_is_the_bootstrap_of_the_minimum():
  """Of which P(min > t) = (share of trials above t)^n is known."""
  for seed in range(5):
    rng = np.random.default_rng(seed)
    times = np.sort(rng.choice(10_000, 40, replace=False)) + 1
    curves = [([t], [0.0]) for t in rng.permutation(times)]
    for confidence in (0.8, 0.95):
      low, high = steps_to_target(
        curves, 1.0, confidence=confidence, resamples=20_000, seed=seed
      ).interval
      above = ((40 - np.arange(1, 41)) / 40) ** 40
      assert low == times[0]
      expected = times[np.argmax(1 - above >= (1 + confidence) / 2)]
      assert high == expected


def test_the_interval_is_open_where_few_trials_reach_the_goal():
  hopeless = ([10], [1.0])
  one = steps_to_target([([10], [0.0])] + [hopeless] * 9, 0.5)
  assert (one.steps, one.interval) == (10, (10, math.inf))
  none = steps_to_target([hopeless] * 9, 0.5)
  assert (none.steps, none.curve) == (None, None)
  assert none.interval == (math.inf, math.inf)
  assert steps_to_target([], 0.5).by_curve == ()
  many = steps_to_target([([10], [0.0])] * 5 + [hopeless] * 5, 0.5)
  assert many.interval == (10, 10)


def test_the_seed_decides_the_interval():
  curves = [([t], [0.0]) for t in range(1, 1000)]
  ends = {
    steps_to_target(curves, 0.5, resamples=20, seed=seed).interval
    for seed in (0, 0, 1, 2)
  }
  assert len(ends) == 3


@pytest.mark.parametrize(
  ('curves', 'goal', 'options', 'message'),
  [
    ([([1, 2], [0.5])], 0.5, {}, 'curve 0 has 2 steps and 1 values'),
    ([], math.nan, {}, 'must be finite, got nan'),
    ([], 0.5, {'confidence': 0}, 'between 0 and 1, got 0'),
    ([], 0.5, {'resamples': 0}, 'at least 1, got 0'),
  ],
)
def test_steps_to_target_refuses(curves, goal, options, message):
  with pytest.raises(ValueError, match=message):
    steps_to_target(curves, goal, **options)


# Regimes.

P, D, M, C = (
  'perfect scaling',
  'diminishing returns',
  'maximal data parallelism',
  'censored',
)


@pytest.mark.parametrize(
  ('sizes', 'steps', 'labels', 'perfect_up_to', 'maximal_from'),
  [
    ([1, 2, 4, 8], [800, 400, 200, 100], 'PPPP', 8, None),
    ([1, 2, 4, 8], [100, 100, 100, 100], 'PMMM', 1, 2),
    ([1, 2, 4, 8, 16, 32], [640, 320, 200, 150, 110, 100], 'PPPDMM', 4, 16),
    # On both sides of half an octave.
    ([1, 2], [100, 70], 'PP', 2, None),
    ([1, 2], [100, 71], 'PM', 1, 2),
    ([1, 8, 16], [1000, 282, 200], 'PMM', 1, 8),
    ([1, 8, 16], [1000, 283, 200], 'PDM', 1, 16),
    ([1, 16, 32], [10000, 1414, 1000], 'PMM', 1, 16),
    ([1, 16, 32], [10000, 1415, 1000], 'PDM', 1, 32),
    # What scales better than perfectly scales perfectly.
    ([1, 2, 4], [100, 30, 25], 'PPP', 4, None),
    # Neither regime goes on past its end.
    ([1, 2, 4, 8], [100, 90, 25, 24], 'PDMM', 1, 4),
    ([1, 2, 4, 8], [1000, 950, 100, 900], 'PDDD', 1, None),
    ([1, 2, 4, 8], [1000, 95, 960, 100], 'PPDM', 2, 8),
    ([1, 2, 4, 8, 16], [None, 400, 200, 180, None], 'CPPMC', 4, 8),
    ([2, 1, 8, 4], [100, 200, 95, math.inf], 'PPMC', 2, 8),
    ([1, 2], [None, math.nan], 'CC', None, None),
    ([], [], '', None, None),
  ],
)
def test_regimes(sizes, steps, labels, perfect_up_to, maximal_from):
  names = {'P': P, 'D': D, 'M': M, 'C': C}
  expected = tuple(names[label] for label in labels)
  assert regimes(sizes, steps) == (expected, perfect_up_to, maximal_from)
  # The order in which sizes are given says nothing.
  again = regimes(sizes[::-1], steps[::-1])
  assert again == (expected[::-1], perfect_up_to, maximal_from)


def test_regimes_refuse():
  with pytest.raises(ValueError, match='2 batch sizes and 1 steps'):
    regimes([1, 2], [3])


# Trials.


def trial(number, values, status=COMPLETE, every=10, **parameters):
  steps = every * np.arange(1, len(values) + 1)
  columns = {'step': steps, ERROR: np.array(values), 'seconds': steps / 4}
  return Trial(number, parameters, status, every * len(values), columns)


def search(batch_size, trials, **changes):
  space = {'learning_rate.base': Parameter('log', (1e-4, 1.0))}
  return Search(
    'mnist', 'mlp', 'sgd', batch_size, space, 100, False, trials
  )._replace(**changes)


def test_best_under_keeps_to_its_budgets():
  trials = [
    trial(1, [0.9, 0.5, 0.3, 0.2]),
    trial(2, [0.8, math.nan, 0.4, 0.1]),
    trial(3, [0.0, -math.inf, 0.0], INFEASIBLE),
    trial(4, [0.0], INCOMPLETE),
  ]
  assert best_under(trials, ERROR) == 0.1
  assert best_under(trials, ERROR, steps=30) == 0.3
  assert best_under(trials, ERROR, steps=29) == 0.5
  assert best_under(trials, ERROR, steps=9) is None
  assert best_under(trials, ERROR, examples=320, batch_size=8) == 0.1
  assert best_under(trials, ERROR, examples=319, batch_size=8) == 0.3
  assert best_under(trials, ERROR, steps=20, examples=319, batch_size=8) == 0.5
  assert best_under(trials, ERROR, higher_is_better=True) == 0.9
  assert best_under(trials[2:], ERROR) is None
  with pytest.raises(ValueError, match='needs the batch_size'):
    best_under(trials, ERROR, examples=319)
  with pytest.raises(ValueError, match="trial 1 has no measurement 'loss'"):
    best_under(trials, 'loss')


def test_a_row_says_what_happened():
  rate = 'learning_rate.base'
  trials = [
    trial(1, [0.9, 0.5, 0.3, 0.25], **{rate: 0.01}),
    trial(2, [0.9, 0.2], INFEASIBLE, **{rate: 1.0}),
    trial(3, [0.9, 0.3, 0.2], **{rate: 0.9}),
    trial(4, [0.1], INCOMPLETE),
    Trial(5, {}, INFEASIBLE, 0, {}),
  ]
  (work,) = summarize([search(32, trials[::-1])], ERROR, 0.3)
  (row,) = work.rows
  assert row == row._replace(
    batch_size=32,
    steps=30,
    examples=960,
    seconds=7.5,
    trial=3,
    parameters={rate: 0.9},
    reached=2,
    feasible=2,
    infeasible=2,
    incomplete=1,
    longest=40,
    edges=((rate, 'high'),),
    best=0.2,
  )
  assert row.interval == (30, 40)
  assert work.fit is None
  assert work.regimes.labels == (P,)
  (work,) = summarize([search(32, trials)], ERROR, 0.2)
  (row,) = work.rows
  assert row == row._replace(
    steps=None,
    examples=None,
    seconds=None,
    interval=(math.inf, math.inf),
    trial=None,
    parameters={},
    reached=0,
    longest=40,
    edges=(),
    best=0.2,
  )
  assert work.regimes.labels == (C,)


def test_a_goal_may_lie_above():
  (work,) = summarize(
    [search(8, [trial(1, [0.1, 0.6]), trial(2, [0.5])], early_stopping=True)],
    ERROR,
    0.5,
    higher_is_better=True,
  )
  assert (work.rows[0].steps, work.rows[0].best) == (20, 0.6)


def test_trials_that_stop_early_are_judged_in_their_order():
  """The second, cut where the first reached the goal, had not diverged yet."""
  trials = [
    trial(1, [0.5, 0.2, 0.1]),
    trial(2, [0.9, 0.8, 0.7], INFEASIBLE),
    trial(3, [0.9, 0.9, 0.1]),
  ]
  (plain,) = summarize([search(8, trials)], ERROR, 0.3)
  (early,) = summarize([search(8, trials, early_stopping=True)], ERROR, 0.3)
  assert plain.rows[0].steps == early.rows[0].steps == 20
  counts = [
    (row.feasible, row.infeasible, row.reached, row.longest)
    for row in (*plain.rows, *early.rows)
  ]
  assert counts == [(2, 1, 2, 30), (3, 0, 1, 20)]


def known_searches(min_steps, critical, sizes, scale=0.0, seed=0):
  """Searches whose best trial reaches 0.1 just after S(B), and two worse."""
  rng = np.random.default_rng(seed)
  found = []
  for size in sizes:
    steps = round(
      min_steps * (1 + critical / size) * math.exp(rng.normal(0, scale))
    )
    slower = [Trial(
      number,
      {'learning_rate.base': 0.01 * number},
      COMPLETE,
      3 * steps,
      {'step': steps * np.array([1, 2, 3]),
       ERROR: np.array([0.1 if number < 3 else 0.09, 0.1, 0.1])},
    ) for number in (1, 2, 3)]  # fmt: skip
    found.append(search(size, slower))
  return found


def test_searches_are_grouped_and_sorted():
  sizes = [64, 1, 8, 512]
  searches = known_searches(1000, 20, sizes)
  other = [s._replace(optimizer='nesterov') for s in searches[:2]]
  nesterov, sgd = summarize([*searches, *other], ERROR, 0.1)
  assert (nesterov.optimizer, sgd.optimizer) == ('nesterov', 'sgd')
  assert [row.batch_size for row in nesterov.rows] == [1, 64]
  assert [row.batch_size for row in sgd.rows] == [1, 8, 64, 512]
  assert nesterov.fit is None
  assert sgd.fit is not None
  assert sgd.fit.min_steps == pytest.approx(1000, rel=0.01)
  assert sgd.fit.critical_batch_size == pytest.approx(20, rel=0.01)
  assert all(row.trial == 3 for row in sgd.rows)
  assert sgd.regimes.perfect_up_to == 8


def test_two_searches_at_one_size_are_refused():
  with pytest.raises(ValueError, match='two searches of mnist/mlp/sgd at'):
    summarize([search(8, []), search(8, [])], ERROR, 0.1)


def test_an_unknown_metric_is_refused():
  with pytest.raises(ValueError, match=f'choose one of {ERROR}, seconds'):
    summarize([search(8, [trial(1, [0.5])])], 'val/loss', 0.1)


def test_json_is_plain_and_says_null_for_what_is_not_known():
  searches = known_searches(1e-9, 1e15, [1, 2, 4, 8])
  censored = search(16, [trial(1, [0.5])])
  (work,) = json.loads(
    json.dumps(
      to_json(summarize([*searches, censored], ERROR, 0.1)), allow_nan=False
    )
  )
  assert work['rows'][4]['steps'] is None
  assert work['rows'][4]['interval'] == [None, None]
  assert work['rows'][0]['parameters'] == {'learning_rate.base': 0.03}
  assert work['fit']['critical_batch_size_interval'][1] is None
  assert work['regimes']['labels'][4] == C


def test_the_table_is_aligned_and_marks_what_is_censored():
  searches = known_searches(1000, 20, [1, 8, 64])
  best = trial(1, [0.5] * 7, **{'learning_rate.base': 0.99})
  (work,) = summarize([*searches, search(512, [best])], ERROR, 0.1)
  title, _, *table, _, fitted = format_table(work).splitlines()
  assert title == 'mnist, mlp, sgd'
  assert len({len(line) for line in table}) == 1
  assert table[0].split('|')[1].strip() == 'batch size'
  cells = [[c.strip() for c in line.split('|')[1:-1]] for line in table]
  assert cells[2][:2] == ['1', '21000']
  assert cells[2][5:7] == ['3 / 0 / 1', 'learning_rate.base 0.03']
  assert cells[5] == ['512', '> 70', '', '', C, '1 / 0 / 0', '', '']
  assert 'B_crit 20.01 (' in fitted
  (work,) = summarize([search(8, [best])], ERROR, 0.6)
  assert 'learning_rate.base (high)' in format_table(work)
  assert 'fewer than 3 batch sizes reached' in format_table(work)


def test_studies_need_no_jax():
  blocked = ('jax', 'flax', 'optax', 'optuna', 'matplotlib')
  code = '\n'.join(
    ['import sys', *(f'sys.modules[{name!r}] = None' for name in blocked)]
    + ['import adabatch.study, adabatch.search.archive']
    + ['print(*sorted(m for m in sys.modules if m.startswith("adabatch.")))']
  )
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert {m.split('.')[1] for m in done.stdout.split()} == {'search', 'study'}
