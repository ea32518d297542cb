"""AdaDamp against constant batch sizes on Fashion-MNIST, each tuned alike.

    python -m benchmarks.adadamp_vs_constant --data_dir=DIRECTORY_OF_TFDS_SETS

Every arm has the same number of epochs and of learning rates. The rate is
chosen on 10,000 training images held out, with one seed; the figures come from
training on all 60,000 with other seeds, on the test split. Writes the log
`docs/adadamp_vs_constant.json` and prints the table of the README; runs that
are in `--runs` already are not repeated.
"""

import json
import os
import pathlib
import platform
import statistics

import jax
from absl import app, flags, logging

from adabatch.train import train
from configs import fashion_mnist_cnn

DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where the TFDS sets lie.')
RUNS = flags.DEFINE_string(
  'runs', 'runs/adadamp_vs_constant', 'Where the runs are kept.'
)
EPOCHS = flags.DEFINE_float('epochs', 12.0, 'Epochs of every run.')
SEEDS = flags.DEFINE_integer('seeds', 3, 'Seeds of the final runs.')

SMALL_RATES = (0.005, 0.01, 0.02, 0.04)
LARGE_RATES = (0.0125, 0.025, 0.05, 0.1, 0.2)
ARMS = {
  'adadamp': ({'controller.name': 'adadamp'}, SMALL_RATES),
  'constant 32': ({'controller.name': 'constant'}, SMALL_RATES),
  'constant 1024': (
    {
      'controller.name': 'constant',
      'controller.initial_batch_size': 1024,
    },
    LARGE_RATES,
  ),
}
LOG = pathlib.Path(__file__).parent.parent / 'docs/adadamp_vs_constant.json'


def run(arm: str, rate: float, seed: int, held_out: bool) -> dict:
  """One run, or its summary if it was made before."""
  config = fashion_mnist_cnn.get_config()
  config.update_from_flattened_dict(
    {
      **ARMS[arm][0],
      'epochs': EPOCHS.value,
      'seed': seed,
      'learning_rate.base': rate,
      'data.data_dir': DATA_DIR.value,
      'data.train_split': 'train[:50000]' if held_out else 'train',
      'data.eval_split': 'train[50000:]' if held_out else 'test',
      # Every run compiles for itself, so that the stalls are those of a first
      # run.
      'compilation_cache': False,
    }
  )
  kind = 'tune' if held_out else 'final'
  name = f'{kind}-{arm.replace(" ", "-")}-{rate}-{seed}'
  summary = train(config, pathlib.Path(RUNS.value) / name)
  final = summary['final'].get(config.data.eval_split, {})
  return {
    'arm': arm,
    'rate': rate,
    'seed': seed,
    'split': config.data.eval_split,
    'accuracy': final.get('accuracy', 0.0),
    'loss': final.get('loss'),
    **{
      key: summary[key]
      for key in (
        'status',
        'updates',
        'examples',
        'seconds',
        'compilations',
        'buckets_visited',
        'compile_seconds',
        'stall_seconds',
      )
    },
  }


def spread(values: list[float], digits: int) -> str:
  mean, deviation = statistics.mean(values), statistics.stdev(values)
  return f'{mean:,.{digits}f} ± {deviation:,.{digits}f}'


def table(runs: list[dict]) -> str:
  """The arms side by side, as Markdown."""
  rows = [
    '| batch size | learning rate | updates | test accuracy (%) | '
    'training seconds | of them stalled (%) |',
    '|---|---|---|---|---|---|',
  ]
  for arm in ARMS:
    mine = [r for r in runs if r['arm'] == arm]
    rows.append(
      f'| {arm} | {mine[0]["rate"]} '
      f'| {spread([r["updates"] for r in mine], 0)} '
      f'| {spread([100 * r["accuracy"] for r in mine], 2)} '
      f'| {spread([r["seconds"] for r in mine], 1)} '
      f'| {spread([100 * r["stall_seconds"] / r["seconds"] for r in mine], 1)} '
      '|'
    )
  return '\n'.join(rows)


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  tuning, final = [], []
  for arm, (_, rates) in ARMS.items():
    trials = [run(arm, rate, seed=0, held_out=True) for rate in rates]
    tuning += trials
    best = max(trials, key=lambda trial: trial['accuracy'])['rate']
    if best in (min(rates), max(rates)):
      print(f'note: the best rate of {arm}, {best}, lies at the edge')
    final += [
      run(arm, best, seed=1 + i, held_out=False) for i in range(SEEDS.value)
    ]
  log = {
    'hardware': f'{jax.device_count()} x {jax.devices()[0].device_kind}, '
    f'{platform.machine()}, {os.cpu_count()} cores',
    'jax': jax.__version__,
    'epochs': EPOCHS.value,
    'tuning': tuning,
    'final': final,
  }
  LOG.write_text(json.dumps(log, indent=1) + '\n')
  print(table(final))


if __name__ == '__main__':
  app.run(main)
