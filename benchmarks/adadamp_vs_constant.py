"""AdaDamp against constant batch sizes on Fashion-MNIST, each tuned alike.

    python -m benchmarks.adadamp_vs_constant --data_dir=DIRECTORY_OF_TFDS_SETS

Every arm has the same number of epochs; `tuned_arms` says how rates are chosen
and figures made. Writes the log (`--log`) and prints the table of the README
and of docs/results.md; runs that are in `--runs` already are not repeated.
"""

import pathlib

from absl import app, flags, logging

from benchmarks import measure, tuned_arms
from benchmarks.tuned_arms import Arm, of_arm, spread
from configs import fashion_mnist_cnn

DOCS = pathlib.Path(__file__).parent.parent / 'docs'
LOG = flags.DEFINE_string(
  'log', str(DOCS / 'adadamp_vs_constant.json'), 'Where the log is written.'
)
DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where the TFDS sets lie.')
RUNS = flags.DEFINE_string(
  'runs', 'runs/adadamp_vs_constant', 'Where the runs are kept.'
)
EPOCHS = flags.DEFINE_float('epochs', 12.0, 'Epochs of every run.')
SEEDS = flags.DEFINE_integer('seeds', 3, 'Seeds of the final runs.')
TUNED = flags.DEFINE_string(
  'tuned', None, 'A log whose learning rates are taken over.'
)
MAX_PER_DEVICE = flags.DEFINE_integer(
  'max_per_device', None, 'Examples a device processes at once.'
)

SMALL_RATES = (0.005, 0.01, 0.02, 0.04)
LARGE_RATES = (0.0125, 0.025, 0.05, 0.1, 0.2)
ARMS = {
  'adadamp': Arm({'controller.name': 'adadamp'}, SMALL_RATES),
  'constant 32': Arm({'controller.name': 'constant'}, SMALL_RATES),
  'constant 1024': Arm(
    {
      'controller.name': 'constant',
      'controller.initial_batch_size': 1024,
    },
    LARGE_RATES,
  ),
}


def make_config():
  config = fashion_mnist_cnn.get_config()
  config.epochs = EPOCHS.value
  config.data.data_dir = DATA_DIR.value
  if MAX_PER_DEVICE.value is not None:
    config.buckets.max_per_device = MAX_PER_DEVICE.value
  return config


def table(runs: list[dict]) -> str:
  """The arms side by side, as Markdown."""
  rows = [
    '| batch size | learning rate | updates | test accuracy (%) | '
    'training seconds | of them stalled (%) |',
    '|---|---|---|---|---|---|',
  ]
  for arm in ARMS:
    mine = of_arm(runs, arm)
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
  runs = pathlib.Path(RUNS.value)
  log = tuned_arms.compare(
    ARMS,
    make_config,
    seeds=SEEDS.value,
    runs=runs,
    tuned=pathlib.Path(TUNED.value) if TUNED.value else None,
  )
  measure.write(LOG.value, log)
  print(table(log['final']))


if __name__ == '__main__':
  app.run(main)
