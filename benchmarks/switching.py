"""What a change of the batch size costs.

    python -m benchmarks.switching

A run whose batch size doubles every 20 updates, from 8 to 1,024, with an empty
cache of compiled programs, tells the share of its
training time that waits for compilers. And each bucket of such a ladder is
compiled and entered in turn: its first update over the median of those after
it, on synchronised updates. Writes a log (`--log`) and prints a table.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging

from adabatch.config import Config
from adabatch.controllers.buckets import Plan, bucket_for
from adabatch.devices.messages import Call
from adabatch.devices.trainer import Trainer
from adabatch.train import train
from adabatch.train.build import build
from benchmarks import measure
from configs import digits_mlp

SIZES = tuple(8 * 2**i for i in range(8))
EVERY = 20  # updates at each size


def make_config(sizes: Sequence[int] = SIZES, every: int = EVERY) -> Config:
  """Doubles its batch size until the largest."""
  config, begin, table = digits_mlp.get_config(), 0, []
  for size in sizes:
    table.append(f'{begin}:{size}')
    begin += every * size
  config.update_from_flattened_dict(
    {
      'epochs': 1e6,
      'max_updates': every * len(sizes),
      'controller.name': 'step_table',
      'controller.initial_batch_size': sizes[0],
      'controller.max_batch_size': sizes[-1],
      'controller.every': every,
      'controller.step_table.table': ' '.join(table),
      'eval.every_epochs': 1e6,
      'checkpoint.every_updates': 10**6,
      'compilation_cache': False,
    }
  )
  return config


def first_over_median(
  config: Config, sizes: Sequence[int] = SIZES, updates: int = EVERY
) -> list[float]:
  """Of each bucket, entered from another; all compiled before."""
  parts = build(config)
  trainer = Trainer(parts.recipe)
  calls = []
  for size in sizes:
    bucket = bucket_for(size, parts.ladder)
    calls.append(Call(0, 0, 1, Plan(float(size), size, 1.0, bucket)))
  for call in calls:
    trainer.compile(call)

  def seconds(call: Call, update: int) -> float:
    begin = time.perf_counter()
    if not trainer.ready(call):
      trainer.compile(call)  # known already, and only looked up
    trainer.dispatch(call._replace(update=update), stop=False)
    jax.block_until_ready(trainer.state)
    return time.perf_counter() - begin

  done, found = 0, []
  for lap in range(2):  # in the first everything is slow for the first time
    for call in calls:
      times = [seconds(call, done + i) for i in range(updates)]
      done += updates
      if lap:
        found.append(times[0] / statistics.median(times[1:]))
  trainer.close()
  return found


def stalled(config: Config) -> float:
  """Share of a run's training time that waits for compilers."""
  silent = contextlib.redirect_stderr(io.StringIO())
  with tempfile.TemporaryDirectory() as workdir, silent:
    summary = train(config, workdir)
  return summary['stall_seconds'] / summary['seconds']


def figures(repeats: int, sizes: Sequence[int] = SIZES) -> dict[str, Any]:
  config = make_config(sizes)
  return {
    'buckets': len(sizes),
    'first_over_median': [
      ratio
      for _ in range(repeats)
      for ratio in first_over_median(config, sizes)
    ],
    'stalled': [stalled(config) for _ in range(repeats)],
  }


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--log', default=measure.DOCS / 'switching.json')
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--quick', action='store_true', help='a short try')
  given = parser.parse_args(argv)
  logging.set_verbosity(logging.ERROR)
  repeats = 1 if given.quick else given.repeats
  found = figures(repeats)
  measure.write(given.log, measure.record(quick=given.quick, **found))
  ratios, share = found['first_over_median'], found['stalled']
  print(f'first update over the median: {measure.spread(ratios)}')
  percent = [100 * s for s in share]
  print(f'waits for compilers: {measure.spread(percent, 1)} %')
  return 0


if __name__ == '__main__':
  raise SystemExit(main())
