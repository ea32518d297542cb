"""Ways of training side by side, each with a learning rate of its own.

The rate of an arm is chosen on training images held out, with one seed; where
the best lies at the edge of the arm's rates, more are tried beyond it. The
figures come from training on everything with other seeds, on the test split.
"""

import json
import pathlib
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from adabatch.config import Config
from adabatch.train import train
from benchmarks import measure

SUMMARY_KEYS = (
  'status',
  'updates',
  'examples',
  'seconds',
  'compilations',
  'buckets_visited',
  'compile_seconds',
  'stall_seconds',
  'sync_count',
  'sync_bytes',
)
# How often the rates of an arm are extended beyond their edge.
EXTENSIONS = 3


class Arm(NamedTuple):
  """One way of training.

  Attributes:
    overrides: of the config, by dotted key.
    rates: learning rates to try first, in increasing order, a factor of 2
      apart.
    scale: what the config's base rate is multiplied by at this batch size.
  """

  overrides: dict[str, Any]
  rates: tuple[float, ...]
  scale: float = 1.0


class Splits(NamedTuple):
  """Names of the splits: to choose the rate, and for the figures."""

  tune_train: str = 'train[:50000]'
  tune_eval: str = 'train[50000:]'
  final_train: str = 'train'
  final_eval: str = 'test'


def _run(
  config: Config,
  name: str,
  arm: Arm,
  rate: float,
  seed: int,
  splits: Splits,
  runs: pathlib.Path,
  *,
  held_out: bool,
) -> dict:
  """One run, or its summary if it was made before."""
  split = splits.tune_eval if held_out else splits.final_eval
  config.update_from_flattened_dict(
    {
      **arm.overrides,
      'seed': seed,
      'learning_rate.base': rate / arm.scale,
      'data.train_split': (
        splits.tune_train if held_out else splits.final_train
      ),
      'data.eval_split': split,
      # Every run compiles for itself, so that the stalls are those of a first
      # run.
      'compilation_cache': False,
    }
  )
  kind = 'tune' if held_out else 'final'
  workdir = runs / f'{kind}-{name.replace(" ", "-")}-{rate}-{seed}'
  summary = train(config, workdir)
  final = summary['final'].get(split, {})
  return {
    'arm': name,
    'rate': rate,
    'seed': seed,
    'split': split,
    'accuracy': final.get('accuracy', 0.0),
    'loss': final.get('loss'),
    **{key: summary[key] for key in SUMMARY_KEYS},
  }


def _tune(arm: Arm, run: Callable[[float], dict]) -> list[dict]:
  """A run at each of the rates, and beyond the edge where that is better."""
  trials = [run(rate) for rate in arm.rates]
  for _ in range(EXTENSIONS):
    best = best_rate(trials)
    rates = [trial['rate'] for trial in trials]
    if best == max(rates):
      trials.append(run(2 * best))
    elif best == min(rates):
      trials.append(run(best / 2))
    else:
      break
  return trials


def best_rate(trials: list[dict]) -> float:
  return max(trials, key=lambda trial: trial['accuracy'])['rate']


def compare(
  arms: dict[str, Arm],
  make_config: Callable[[], Config],
  *,
  seeds: int,
  runs: pathlib.Path,
  splits: Splits | None = None,
  tuned: pathlib.Path | None = None,
) -> dict[str, Any]:
  """Tunes every arm, then trains each with so many seeds; returns the log.

  With `tuned`, a log, its rates are taken over.
  """
  splits = splits or Splits()

  def run(name: str, rate: float, seed: int, *, held_out: bool) -> dict:
    config, arm = make_config(), arms[name]
    return _run(config, name, arm, rate, seed, splits, runs, held_out=held_out)

  if tuned is None:
    tuning = [
      _tune(arm, lambda rate, name=name: run(name, rate, 0, held_out=True))
      for name, arm in arms.items()
    ]
  else:
    known = json.loads(tuned.read_text())['tuning']
    tuning = [of_arm(known, name) for name in arms]
  final = [
    run(name, best_rate(trials), 1 + i, held_out=False)
    for name, trials in zip(arms, tuning, strict=True)
    for i in range(seeds)
  ]
  return measure.record(
    epochs=make_config().epochs,
    tuning=[trial for trials in tuning for trial in trials],
    final=final,
  )


def of_arm(runs: list[dict], name: str) -> list[dict]:
  return [run for run in runs if run['arm'] == name]


def spread(values: list[float], digits: int) -> str:
  """Mean and standard deviation."""
  mean, deviation = statistics.mean(values), statistics.stdev(values)
  return f'{mean:,.{digits}f} ± {deviation:,.{digits}f}'
