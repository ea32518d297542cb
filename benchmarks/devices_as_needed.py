"""Device-seconds of AdaDamp from 16 to 512, on all devices and as needed.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
      python -m benchmarks.devices_as_needed

Whole runs of the digits MLP, in turn, so that a disturbance of the machine does
not fall on one kind alone. Writes a log (`--log`) and prints a table: median
(least–most) of the ratios.
"""

import json
import os
import pathlib
import platform
import statistics
import tempfile
from typing import Any

import jax
from absl import app, flags, logging

from adabatch.train import train
from configs import digits_mlp

DOCS = pathlib.Path(__file__).parent.parent / 'docs'
LOG = flags.DEFINE_string(
  'log', str(DOCS / 'devices_as_needed.json'), 'Where the log is written.'
)
PAIRS = flags.DEFINE_integer('pairs', 5, 'Runs of each kind.')

LEAST = 16, 64  # examples on each device in use
SHOWN = 'updates', 'examples', 'seconds', 'device_seconds', 'devices'


def run(least: int | None) -> dict[str, Any]:
  """A run's totals, and the batch size, loss and devices of each update."""
  config = digits_mlp.get_config()
  config.update_from_flattened_dict(
    {
      'epochs': 10.0,
      'learning_rate.base': 0.01,
      'controller.name': 'adadamp',
      'controller.initial_batch_size': 16,
      'controller.max_batch_size': 512,
      'buckets.min_per_device': least,
      'log.every_updates': 1,
    }
  )
  with tempfile.TemporaryDirectory() as workdir:
    summary = train(config, workdir)
    lines = pathlib.Path(workdir, 'metrics.jsonl').read_text().splitlines()
  updates = [r for r in map(json.loads, lines) if r['kind'] == 'train']
  return {key: summary[key] for key in SHOWN} | {
    name: [r.get(name, jax.device_count()) for r in updates]
    for name in ('batch_size', 'loss', 'devices')
  }


def compared(always: dict[str, Any], needed: dict[str, Any]) -> dict[str, Any]:
  """A pair of runs, of which the second uses as many devices as needed."""
  if always['batch_size'] != needed['batch_size']:
    raise ValueError('the batch sizes are not the same')
  losses = zip(always['loss'], needed['loss'], strict=True)
  return {
    'device_seconds': needed['device_seconds'] / always['device_seconds'],
    'seconds': needed['seconds'] / always['seconds'],
    'devices by update': sum(needed['devices']) / sum(always['devices']),
    'largest difference of a loss': max(abs(a - b) / a for a, b in losses),
  }


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  found: dict[int, list[dict[str, Any]]] = {least: [] for least in LEAST}
  for _ in range(PAIRS.value):
    always = run(None)
    for least, pairs in found.items():
      pairs.append(compared(always, run(least)))
  ratios = {
    least: {name: [p[name] for p in pairs] for name in pairs[0]}
    for least, pairs in found.items()
  }
  log = {
    'hardware': f'{jax.device_count()} x {jax.devices()[0].device_kind}, '
    f'{platform.machine()}, {os.cpu_count()} cores',
    'jax': jax.__version__,
    'as needed / always': ratios,
  }
  pathlib.Path(LOG.value).write_text(json.dumps(log, indent=1) + '\n')
  columns = [f'at least {least} each' for least in LEAST]
  print('| as needed / always | ' + ' | '.join(columns) + ' |')
  print('|---' * (1 + len(LEAST)) + '|')
  for name in ratios[LEAST[0]]:
    values = [of[name] for of in ratios.values()]
    cells = [
      f'{statistics.median(v):.2g} ({min(v):.2g}–{max(v):.2g})' for v in values
    ]
    print(f'| {name} | ' + ' | '.join(cells) + ' |')


if __name__ == '__main__':
  app.run(main)
