"""Device-seconds of AdaDamp from 16 to 512, on all devices and as needed.

    python -m benchmarks.devices_as_needed

Whole runs of the digits MLP on eight virtual devices of the CPU, in turn, so
that a disturbance of the machine does not fall on one kind alone. Writes a log
(`--log`) and prints a table: median (least–most) of the ratios.
"""

import json
import pathlib
import statistics
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
from absl import app, flags, logging

from adabatch.train import train
from benchmarks import measure
from configs import digits_mlp

LOG = flags.DEFINE_string(
  'log',
  str(measure.DOCS / 'devices_as_needed.json'),
  'Where the log is written.',
)
PAIRS = flags.DEFINE_integer('pairs', 5, 'Runs of each kind.')

DEVICES = 8
LEAST = 16, 64  # examples on each device in use
GOAL = 0.6  # of the device-seconds of all
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


def rows(ratios: dict[int, dict[str, list[float]]]) -> Iterator[dict[str, Any]]:
  """Lines of the table: as needed / always."""
  for least, of in ratios.items():
    for name, values in of.items():
      row: dict[str, Any] = {'name': f'{name}, at least {least} examples each'}
      if name == 'largest difference of a loss':
        yield row | {'relative': f'{max(values):.1e}'}
        continue
      row['ratio'] = measure.spread(values)
      if name == 'device_seconds':
        met = statistics.median(values) <= GOAL
        row |= {'goal': f'≤ {GOAL:.2f}', 'met': 'yes' if met else 'no'}
      yield row


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  jax.config.update('jax_num_cpu_devices', DEVICES)
  found: dict[int, list[dict[str, Any]]] = {least: [] for least in LEAST}
  for _ in range(PAIRS.value):
    always = run(None)
    for least, pairs in found.items():
      pairs.append(compared(always, run(least)))
  ratios = {
    least: {name: [p[name] for p in pairs] for name in pairs[0]}
    for least, pairs in found.items()
  }
  table = list(rows(ratios))
  measure.write(LOG.value, measure.record(ratios=ratios, rows=table))
  print(
    measure.table(
      ['as needed / always', 'ratio'],
      ([r['name'], r.get('ratio') or r['relative']] for r in table),
    )
  )


if __name__ == '__main__':
  app.run(main)
