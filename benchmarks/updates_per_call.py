"""Microseconds an update, by how many updates one program call does.

    python -m benchmarks.updates_per_call

Whole runs of the digits MLP with a constant batch size, side by side, repeated
in turn so that a disturbance of the machine does not fall on one of them alone.
Writes a log (`--log`) and prints a table: median (least, most).
"""

import functools
import itertools
import tempfile

from absl import app, flags, logging

from adabatch.train import train
from benchmarks import measure
from configs import digits_mlp

LOG = flags.DEFINE_string(
  'log',
  str(measure.DOCS / 'updates_per_call.json'),
  'Where the log is written.',
)
REPEATS = flags.DEFINE_integer('repeats', 5, 'Runs of each kind.')

BATCH_SIZES = (16, 64, 256)
PER_CALL = (1, 20, 100, 'auto')


def microseconds(batch_size: int, per_call: int | str) -> float:
  """Training seconds of a run of 2,000 updates, by update."""
  config = digits_mlp.get_config()
  config.update_from_flattened_dict(
    {
      'epochs': 1e6,
      'max_updates': 2000,
      'updates_per_call': per_call,
      'controller.name': 'constant',
      'controller.initial_batch_size': batch_size,
      'log.every_updates': 1000,
      'eval.every_epochs': 1e6,
      'checkpoint.every_updates': 2000,
    }
  )
  with tempfile.TemporaryDirectory() as workdir:
    summary = train(config, workdir)
  return 1e6 * summary['seconds'] / summary['updates']


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  kinds = list(itertools.product(BATCH_SIZES, PER_CALL))
  times = measure.side_by_side(
    {kind: functools.partial(microseconds, *kind) for kind in kinds},
    REPEATS.value,
    warm=False,
  )
  found = {f'{b} x {n}': t for (b, n), t in times.items()}
  measure.write(LOG.value, measure.record(microseconds=found))
  rows = [
    [str(b), *(measure.spread(times[b, n], 0) for n in PER_CALL)]
    for b in BATCH_SIZES
  ]
  columns = ['batch size', *(f'{n} a call' for n in PER_CALL[:-1]), 'auto']
  print(measure.table(columns, rows))


if __name__ == '__main__':
  app.run(main)
