"""Microseconds an update, by how many updates one program call does.

    python -m benchmarks.updates_per_call

Whole runs of the digits MLP with a constant batch size, side by side, repeated
in turn so that a disturbance of the machine does not fall on one of them alone.
Writes a log (`--log`) and prints a table: median (least, most).
"""

import json
import os
import pathlib
import platform
import statistics
import tempfile

import jax
from absl import app, flags, logging

from adabatch.train import train
from configs import digits_mlp

DOCS = pathlib.Path(__file__).parent.parent / 'docs'
LOG = flags.DEFINE_string(
  'log', str(DOCS / 'updates_per_call.json'), 'Where the log is written.'
)
REPEATS = flags.DEFINE_integer('repeats', 5, 'Runs of each kind.')

BATCH_SIZES = (16, 64, 256)
PER_CALL = (1, 20, 100)


def microseconds(batch_size: int, per_call: int) -> float:
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
  times = {(b, n): [] for b in BATCH_SIZES for n in PER_CALL}
  for _ in range(REPEATS.value):
    for (batch_size, per_call), values in times.items():
      values.append(microseconds(batch_size, per_call))
  log = {
    'hardware': f'{jax.device_count()} x {jax.devices()[0].device_kind}, '
    f'{platform.machine()}, {os.cpu_count()} cores',
    'jax': jax.__version__,
    'microseconds': {f'{b} x {n}': t for (b, n), t in times.items()},
  }
  pathlib.Path(LOG.value).write_text(json.dumps(log, indent=1) + '\n')
  print('| batch size | ' + ' | '.join(f'{n} a call' for n in PER_CALL) + ' |')
  print('|---' * (1 + len(PER_CALL)) + '|')
  for b in BATCH_SIZES:
    cells = [
      f'{statistics.median(t):.0f} ({min(t):.0f}–{max(t):.0f})'
      for t in (times[b, n] for n in PER_CALL)
    ]
    print(f'| {b} | ' + ' | '.join(cells) + ' |')


if __name__ == '__main__':
  app.run(main)
