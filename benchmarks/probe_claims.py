"""What a probe says, and what following it buys.

    python -m benchmarks.probe_claims --data_dir=DIRECTORY_OF_TFDS_SETS \\
        --workdir=DIRECTORY [--only=fc,cnn,shakespeare] [--probe_alone]

For each network a run with a constant batch is trained and probed. Then the
ramp that the probe recommends is trained against constant batches, the small
one and the largest of the ramp, at equal examples, all by the same rule of the
rate: for each of them its factor is chosen among five or more by the held-out
loss of one seed, and the figures are those of three other seeds on the test
split. The fully connected network, of which docs/ have a study of the steps to
a goal at each batch size, is also asked what costs 20 % more examples. Runs lie
in DIRECTORY and are made once, so that the same command goes on where it was.
Writes `docs/probe_claims.json`.
"""

import argparse
import functools
import importlib
import json
import math
import pathlib
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from absl import logging

from adabatch.config import Config
from adabatch.devices.agreed import digest
from adabatch.train import train
from adabatch.train.probe_job import probe
from benchmarks import measure
from benchmarks.probe_and_study import against_study, of_study

STEP = 1.7  # between rates
RATES = tuple(STEP**i for i in (-2, -1, 0, 1, 2))  # times those of the rule
FARTHEST = 4  # steps that are gone beyond them, while the last is the best
TUNING_SEED, SEEDS = 0, (1, 2, 3)


class Case(NamedTuple):
  """A network, its run and its probe.

  Attributes:
    config: a file of `configs/`.
    batch_size: of the run that is probed, and of the small arm.
    updates: of that run.
    every: updates between its checkpoints.
    keys: of all runs.
    run: of the run that is probed.
    arms: of the runs that follow or do not follow its ramp.
    probe: of the probe.
    test: keys of the last runs, such as another split.
    study: a study of the same network, in docs/; '': there is none.
  """

  config: str
  batch_size: int
  updates: int
  every: int
  keys: dict[str, Any]
  run: dict[str, Any]
  arms: dict[str, Any]
  probe: dict[str, Any]
  test: dict[str, Any]
  study: str = ''


CASES = {
  'shakespeare': Case(
    config='transformer_shakespeare',
    batch_size=8,
    updates=4900,
    every=980,
    keys={
      'learning_rate.warmup.kind': 'gradual',
      'learning_rate.warmup.length': 1600,
      'learning_rate.warmup.unit': 'examples',
      'learning_rate.warmup.start': 0.0,
      # That of the config, 3e-3 at 16, at the size of the run.
      'learning_rate.base': 3e-3 * math.sqrt(8 / 16),
      'learning_rate.reference_batch_size': 8,
      'eval.every_epochs': 1.0,
    },
    run={'learning_rate.decay.name': 'constant', 'checkpoint.keep': 5},
    arms={'max_examples': 31_360},
    probe={
      'probe.at': '7840 15680 31360',
      'probe.factors': (1.0, 4.0, 8.0, 16.0, 32.0),
      'probe.examples': 3072,
      'probe.repeats': 2,
    },
    test={'data.eval_split': 'test'},
  ),
  'cnn': Case(
    config='fashion_mnist_cnn',
    batch_size=32,
    updates=6000,
    every=1500,
    keys={
      'data.train_split': 'train[:50000]',
      'data.eval_split': 'train[50000:]',
      'learning_rate.scaling': 'linear',
      'learning_rate.reference_batch_size': 32,
      'eval.every_epochs': 1.0,
    },
    run={'learning_rate.decay.name': 'constant', 'checkpoint.keep': 4},
    arms={'learning_rate.decay.name': 'cosine'},
    probe={
      'probe.at': '48000 96000 144000',
      'probe.factors': (0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
      'probe.examples': 8192,
      'probe.repeats': 4,
    },
    test={'data.eval_split': 'test'},
  ),
  'fc': Case(
    config='study_fashion_mnist_fc',
    batch_size=32,
    updates=10_500,
    every=500,
    keys={
      'max_updates': None,
      'optimizer.name': 'nesterov',
      'optimizer.momentum': 0.95,
      'learning_rate.base': 0.002,
      'learning_rate.scaling': 'linear',
      'learning_rate.reference_batch_size': 32,
    },
    run={
      'learning_rate.decay.name': 'constant',
      'checkpoint.keep': 210,
      'checkpoint.every_updates': 50,
      'eval.growth': 1.01,
    },
    arms={'learning_rate.decay.name': 'cosine', 'eval.every_epochs': 1.0},
    probe={
      'probe.at': '1600 4800 16000 48000 96000',
      'probe.factors': (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
      'probe.examples': 49_152,
      'probe.repeats': 4,
    },
    test={'data.eval_split': 'test'},
    study='fashion_mnist_fc',
  ),
}


def read_config(case: Case) -> Config:
  """As its file has it."""
  return importlib.import_module(f'configs.{case.config}').get_config()


def make_config(case: Case, data_dir: str | None, **overrides: Any) -> Config:
  """Of a run in constant batches, with some keys changed."""
  config = read_config(case)
  config.update_from_flattened_dict(
    {
      'data.data_dir': data_dir,
      'target.value': None,
      'epochs': 1e6,
      'max_examples': case.updates * case.batch_size,
      'controller.name': 'constant',
      'controller.initial_batch_size': case.batch_size,
      'controller.max_batch_size': case.batch_size,
      'checkpoint.every_updates': case.every,
      'checkpoint.best': False,
      **case.keys,
      **overrides,
    }
  )
  return config


def probe_run(
  case: Case, directory: pathlib.Path, data_dir: str | None
) -> dict[str, Any]:
  """Trains the run and probes it; what `probe.json` holds."""
  config = make_config(case, data_dir, **case.run)
  summary = train(config, directory / 'run')
  config.update_from_flattened_dict(
    case.probe | {'probe.directory': str(directory / 'probe')}
  )
  found = probe(config, directory / 'run')
  return {
    'run': {k: summary[k] for k in ('updates', 'examples', 'seconds')},
    'probe': found
    | {'directory': None, 'run': found['run'] | {'directory': None}},
  }


def ask_both(
  case: Case, directory: pathlib.Path, data_dir: str | None
) -> dict[str, Any]:
  """The study of the same network, and a probe that asks what it asks."""
  config = make_config(case, data_dir, **case.run)
  config.update_from_flattened_dict(
    case.probe
    | {
      'probe.directory': str(directory / 'probe_tuned'),
      'probe.learning_rate': 'tune',
      'probe.multipliers': tuple(STEP**i for i in range(-6, 4)),
    }
  )
  goal = 1 - read_config(case).target.value
  says = functools.partial(of_study, case.study, config.optimizer.name, goal)
  return against_study(config, directory / 'run', says)


def arms(found: dict[str, Any], case: Case) -> dict[str, dict[str, Any]]:
  """Keys of each arm; the large batch has the rate of the ramp's last."""
  ramp = found['probe']['ramp']
  assert ramp['words'] is None, ramp['words']
  largest = ramp['steps'][-1][1]
  if largest == case.batch_size:
    return {'small': {}}
  rule = {k: v for k, v in ramp['keys'].items() if 'controller' not in k}
  most = {'controller.max_batch_size': largest}
  return {
    'small': {},
    'large': rule | most | {'controller.initial_batch_size': largest},
    'ramp': ramp['keys'] | most | {'controller.every': 1},
  }


def tune(run: Callable[[float], dict[str, Any]]) -> list[dict[str, Any]]:
  """A run at each rate; farther ones, while the best is the last."""
  found = {}
  wanted = set(RATES)
  while wanted:
    found |= {rate: run(rate) for rate in sorted(wanted)}
    best = best_of(found.values())
    least, most = min(found), max(found)
    wanted = {best / STEP} if best == least else set()
    wanted |= {best * STEP} if best == most else set()
    if len(found) >= len(RATES) + FARTHEST:
      break
  return [found[rate] for rate in sorted(found)]


def best_of(runs: Iterable[dict[str, Any]]) -> float:
  """The rate of the least loss."""
  whole = [r for r in runs if r['status'] == 'completed']
  if not whole:
    raise ValueError('no rate trained to the end: lower the rate of the config')
  return min(whole, key=lambda r: r['loss'])['rate']


def train_arms(
  found: dict[str, Any],
  case: Case,
  directory: pathlib.Path,
  data_dir: str | None,
) -> dict[str, Any]:
  """Of each arm the losses of its rates, and of its seeds at the best."""
  rows = {}
  base = make_config(case, data_dir).learning_rate.base
  for name, keys in arms(found, case).items():

    def run(rate: float, seed: int, k=keys, n=name, **more) -> dict[str, Any]:
      over = {'learning_rate.base': base * rate, 'seed': seed}
      over |= case.arms | k | more
      place = directory / 'arms' / f'{n}-{digest(k)[:8]}-{rate:g}-{seed}'
      summary = train(make_config(case, data_dir, **over), place)
      (final,) = summary['final'].values() or ({'loss': float('inf')},)
      return {
        'rate': rate,
        'seed': seed,
        'updates': summary['updates'],
        'examples': summary['examples'],
        'seconds': summary['seconds'],
        'status': summary['status'],
        **final,
      }

    tuned = tune(functools.partial(run, seed=TUNING_SEED))
    best = best_of(tuned)
    seeds = [run(best, seed, **case.test) for seed in SEEDS]
    rows[name] = {'keys': keys, 'tuned': tuned, 'rate': best, 'seeds': seeds}
    losses = [r['loss'] for r in seeds]
    print(
      f'{name}: {statistics.mean(losses):.4f} ± {statistics.stdev(losses):.4f} '
      f'after {seeds[0]["updates"]:,} updates, at {best:g} of the rate',
      flush=True,
    )
  return rows


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--log', default=measure.DOCS / 'probe_claims.json')
  parser.add_argument('--data_dir', help='where the TFDS sets lie')
  parser.add_argument('--workdir', required=True, help='where the runs lie')
  parser.add_argument('--only', default=','.join(reversed(CASES)))
  parser.add_argument(
    '--probe_alone', action='store_true', help='without following the ramp'
  )
  given = parser.parse_args(argv)
  logging.set_verbosity(logging.ERROR)
  if unknown := set(given.only.split(',')) - set(CASES):
    parser.error(
      f'--only: unknown {", ".join(unknown)}, choose of {", ".join(CASES)}'
    )
  path = pathlib.Path(given.log)
  rows = json.loads(path.read_text())['rows'] if path.exists() else {}
  for name in given.only.split(','):
    case, directory = CASES[name], pathlib.Path(given.workdir) / name
    found = probe_run(case, directory, given.data_dir)
    before = rows.get(name, {})
    rows[name] = found
    if before.get('probe', {}).get('ramp') == found['probe']['ramp']:
      rows[name] = before | found
    measure.write(path, measure.record(rows=rows))
    for point in found['probe']['points']:
      print(f'{name}, {point["examples"]:,}: {point["verdict"]}', flush=True)
    if case.study:
      rows[name]['study'] = ask_both(case, directory, given.data_dir)
      measure.write(path, measure.record(rows=rows))
    if not given.probe_alone:
      rows[name]['arms'] = train_arms(found, case, directory, given.data_dir)
      measure.write(path, measure.record(rows=rows))
  return 0


if __name__ == '__main__':
  raise SystemExit(main())
