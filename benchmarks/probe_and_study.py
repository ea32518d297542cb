"""The two ways of asking for a critical batch size, of one network.

A study trains from the start at each batch size, with a learning rate that is
tuned for it, and counts the examples to a goal. A probe branches from one run,
tunes the rate of each branch, and compares losses after the same examples. To
be the same question, its epsilon has to be what 20 % more examples buy there:
with L(n) the held-out loss of the run after n examples, a branch of Delta
examples from n_0 on may lose

    epsilon = L(n_0 + Delta / 1.2) - L(n_0 + Delta).

It is that of the run at its own rate, known to within an error that the
interval of the size takes in.
"""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from adabatch import study
from adabatch.config import Config
from adabatch.report.records import read_metrics
from adabatch.study import archive
from adabatch.study.critical import Difference, critical, to_json
from adabatch.study.trials import ERROR
from adabatch.train.probe_job import probe
from benchmarks import measure

OVERHEAD = 0.2  # examples beyond those of a small batch, as a share of them


def epsilon_of_examples(
  examples: Sequence[float], losses: Sequence[float], start: int, branch: int
) -> tuple[float, float]:
  """What (1 + OVERHEAD) times as many examples buy, and its standard error.

  From a straight line through the losses against log examples, over the second
  half of the branch and a little beyond.

  Args:
    examples: where the run was evaluated.
    losses: what came of it.
    start: examples before the branch.
    branch: Delta.

  >>> n = np.arange(100, 2000, 10)
  >>> epsilon, _ = epsilon_of_examples(n, 3 - np.log(n), 0, 1000)
  >>> print(f'{epsilon:.3f}')  # log 1.2
  0.182
  """
  n, loss = np.asarray(examples, float), np.asarray(losses, float)
  near = (n >= start + branch / 2) & (n <= start + 1.2 * branch)
  if near.sum() < 5:
    raise ValueError(
      f'{near.sum()} evaluations between {start + branch // 2} and '
      f'{start + 6 * branch // 5} examples: evaluate the run more often'
    )
  (slope, _), covariance = np.polyfit(np.log(n[near]), loss[near], 1, cov=True)
  shorter = start + branch / (1 + OVERHEAD)
  logs = float(np.log(shorter) - np.log(start + branch))
  epsilon = float(slope) * logs
  error = float(np.sqrt(covariance[0, 0])) * -logs
  if not epsilon > 0:
    raise ValueError(
      f'the loss does not fall up to {start + branch} examples: probe where '
      'the run still learns, or train it with a lower rate'
    )
  return epsilon, error


def overhead_of_rows(
  sizes: Sequence[int], examples: Sequence[float]
) -> float | None:
  """The size that needs (1 + OVERHEAD) times the examples of the first.

  Between two sizes by interpolation in logarithms; None if none does.

  >>> print(f'{overhead_of_rows([32, 64, 256], [100, 100, 120]):.0f}')
  256
  """
  over = np.log(np.asarray(examples) / examples[0])
  beyond = np.flatnonzero(over >= np.log(1 + OVERHEAD) - 1e-12)
  if not len(beyond):
    return None
  i, logs = beyond[0], np.log(sizes)
  ends = slice(i - 1, i + 1)
  return float(np.exp(np.interp(np.log(1 + OVERHEAD), over[ends], logs[ends])))


def of_study(name: str, optimizer: str, goal: float, reference: int) -> Any:
  """What a study of docs/ says: its fit, and where the overhead is reached."""
  searches = archive.read_tree(measure.DOCS / f'{name}.tar.xz')
  (workload,) = (
    w
    for w in study.summarize(searches, ERROR, goal)
    if w.optimizer == optimizer
  )
  fit = workload.fit
  assert fit is not None
  (row,) = (r for r in workload.rows if r.batch_size == reference)
  low, high = fit.critical_batch_size_interval
  counted = [
    (r.batch_size, r.examples)
    for r in workload.rows
    if r.batch_size >= reference and r.examples is not None
  ]

  def overhead(critical_size: float) -> float:
    other = fit._replace(critical_batch_size=critical_size)
    return study.overhead_batch_size(other, OVERHEAD, reference)

  return {
    'name': name,
    'optimizer': optimizer,
    'critical_batch_size': fit.critical_batch_size,
    'interval': [low, high],
    'overhead_batch_size': overhead(fit.critical_batch_size),
    'overhead_interval': [overhead(low), overhead(high)],
    'overhead_of_rows': overhead_of_rows(*zip(*counted, strict=True)),
    'examples_to_goal': row.examples,
  }


def against_study(
  config: Config,
  workdir: pathlib.Path,
  study_of: Callable[[int], dict[str, Any]],
) -> dict[str, Any]:
  """Of each checkpoint the size at which 20 % more examples are needed.

  Args:
    config: of a run that is there, and of a probe with tuned rates.
    workdir: of the run.
    study_of: what the study says, of a batch size that is compared with.
  """
  found = probe(config, workdir)
  _, records = read_metrics(workdir)
  rows = []
  for one in found['points']:
    branch, reference = one['branch_examples'], one['batch_size']
    epsilon, error = epsilon_of_examples(
      [r['examples'] for r in records],
      [r['loss'] for r in records],
      one['examples'],
      branch,
    )
    table = [_difference(r) for r in one['table']]
    size = critical(table, reference, epsilon)
    # The ends of the interval at the ends of that of epsilon.
    less = max(epsilon - 1.96 * error, 1e-9)
    size = size._replace(
      low=critical(table, reference, less).low,
      high=critical(table, reference, epsilon + 1.96 * error).high,
    )
    factors = config.probe.multipliers
    ends = min(factors), max(factors)
    rows.append(
      {
        'examples': one['examples'],
        'branch_examples': branch,
        'epsilon': epsilon,
        'epsilon_error': error,
        'at_an_end': [
          r['batch_size'] for r in one['table'] if r['multiplier'] in ends
        ],
        **to_json(size),
        'table': one['table'],
      }
    )
  reference = found['points'][0]['batch_size']
  return {'study': study_of(reference), 'points': rows, 'cost': found['cost']}


def _difference(row: Mapping[str, Any]) -> Difference:
  """A row of `probe.json`, where what is not finite is None."""
  values: dict[str, Any] = {
    name: math.inf if row[name] is None else row[name]
    for name in Difference._fields
  }
  return Difference(**values)
