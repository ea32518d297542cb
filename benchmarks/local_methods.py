"""Replicas that agree seldom, against small and large batches.

    python -m benchmarks.local_methods --data_dir=DIRECTORY_OF_TFDS_SETS
    python -m benchmarks.local_methods --from_log

Fashion-MNIST, a small CNN, equal examples for every arm; `tuned_arms` says how
rates are chosen and figures made. Sixteen replicas take 32 examples each; the
large batch is their 512 examples in one, the small batch 32. The learning rate
is divided by 10 after a half and three quarters of the training, where
post-local SGD begins to agree every 16 updates only.

Writes the log `docs/local_methods.json`, the picture `docs/local_methods.png`
and the table in `docs/local_methods.md`; with `--from_log` only the latter two,
from the log. Runs that are in `--runs` already are not repeated.
"""

import json
import pathlib
import re
import statistics

from absl import app, flags, logging
from matplotlib.figure import Figure

from benchmarks import measure, tuned_arms
from benchmarks.tuned_arms import Arm, of_arm, spread
from configs import fashion_mnist_cnn

DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where the TFDS sets lie.')
RUNS = flags.DEFINE_string(
  'runs', 'runs/local_methods', 'Where the runs are kept.'
)
EPOCHS = flags.DEFINE_float('epochs', 8.0, 'Epochs of every run.')
SEEDS = flags.DEFINE_integer('seeds', 5, 'Seeds of the final runs.')
FROM_LOG = flags.DEFINE_bool('from_log', False, 'Train nothing.')

DOCS = pathlib.Path(__file__).parent.parent / 'docs'
REPLICAS, SHARE = 16, 32
LARGE = {
  'controller.initial_batch_size': REPLICAS * SHARE,
  'learning_rate.scaling': 'linear',
  'learning_rate.reference_batch_size': SHARE,
  'learning_rate.warmup.kind': 'gradual',
  'learning_rate.warmup.epochs': 0.5,
}
LOCAL = {**LARGE, 'sync.replicas': REPLICAS, 'sync.local_steps': 16}
LARGE_RATES = (0.025, 0.05, 0.1, 0.2)
ARMS = {
  'small batch': Arm({}, (0.005, 0.01, 0.02, 0.04)),
  'large batch': Arm(LARGE, LARGE_RATES, REPLICAS),
  'local SGD': Arm({**LOCAL, 'sync.name': 'local_sgd'}, LARGE_RATES, REPLICAS),
  'post-local SGD': Arm(
    {**LOCAL, 'sync.name': 'post_local_sgd'}, LARGE_RATES, REPLICAS
  ),
  # Learners have no momentum of their own, and the rate of one alone.
  'SMA': Arm(
    {
      'controller.initial_batch_size': REPLICAS * SHARE,
      'optimizer.name': 'sgd',
      'sync.name': 'sma',
      'sync.replicas': REPLICAS,
      'sync.local_steps': 1,
    },
    (0.05, 0.1, 0.2, 0.4),
  ),
}
COLORS = ('#5d6673', '#23272f', '#1f65c8', '#1b8a5a', '#d35312')


def make_config():
  config = fashion_mnist_cnn.get_config()
  config.epochs = EPOCHS.value
  config.data.data_dir = DATA_DIR.value
  config.optimizer.name = 'nesterov'
  config.optimizer.weight_decay = 1e-4
  config.controller.name = 'constant'
  config.learning_rate.decay.name = 'piecewise'
  config.learning_rate.decay.factor = 0.1
  config.learning_rate.decay.boundaries = (
    EPOCHS.value / 2,
    3 * EPOCHS.value / 4,
  )
  return config


def table(log: dict) -> str:
  """The arms side by side, as Markdown."""
  rows = [
    '| arm | learning rate | updates | syncs | MB averaged by a replica | '
    'test accuracy (%) | training seconds |',
    '|---|---|---|---|---|---|---|',
  ]
  for arm in ARMS:
    mine = of_arm(log['final'], arm)
    first = mine[0]
    rows.append(
      f'| {arm} | {first["rate"]:g} | {first["updates"]:,} '
      f'| {first["sync_count"]:,} | {first["sync_bytes"] / 1e6:,.0f} '
      f'| {spread([100 * r["accuracy"] for r in mine], 2)} '
      f'| {spread([r["seconds"] for r in mine], 1)} |'
    )
  return '\n'.join(rows)


def draw(log: dict, path: pathlib.Path) -> None:
  """Test accuracy against syncs and seconds: a dot for each seed, and means."""
  figure = Figure(figsize=(9, 3.6), layout='constrained')
  left, right = figure.subplots(1, 2, sharey=True)
  columns: list[tuple] = [
    (left, 'sync_count', 'syncs (for one model: updates)'),
    (right, 'seconds', 'training seconds'),
  ]
  for (axes, key, label), (name, color) in (
    (column, arm)
    for column in columns
    for arm in zip(ARMS, COLORS, strict=True)
  ):
    mine = of_arm(log['final'], name)
    x = [r[key] for r in mine]
    y = [100 * r['accuracy'] for r in mine]
    axes.plot(x, y, 'o', color=color, alpha=0.35, markersize=4, mew=0)
    axes.errorbar(
      statistics.mean(x),
      statistics.mean(y),
      statistics.stdev(y),
      fmt='D',
      color=color,
      capsize=4,
      label=name,
    )
    axes.set_xlabel(label)
    axes.grid(color='#e3e7ec')
  left.set_xscale('log')
  left.set_ylabel('test accuracy (%), mean ± s.d.')
  right.legend(frameon=False, fontsize='small')
  figure.savefig(path, dpi=150)


def insert(page: pathlib.Path, text: str) -> None:
  """Puts the table between the page's two marks."""
  pattern = re.compile(r'(<!-- table -->\n).*(\n<!-- end -->)', re.S)

  def put(match: re.Match) -> str:
    return match[1] + text + match[2]

  page.write_text(pattern.sub(put, page.read_text()))


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  if not FROM_LOG.value:
    runs = pathlib.Path(RUNS.value)
    log = tuned_arms.compare(ARMS, make_config, seeds=SEEDS.value, runs=runs)
    measure.write(DOCS / 'local_methods.json', log)
  log = json.loads((DOCS / 'local_methods.json').read_text())
  draw(log, DOCS / 'local_methods.png')
  insert(DOCS / 'local_methods.md', table(log))
  print(table(log))


if __name__ == '__main__':
  app.run(main)
