"""What a change of the batch size costs.

    python -m benchmarks.switching

The small CNN on made-up images of Fashion-MNIST's shape. A run of 30 epochs, as
its config has them, whose batch size doubles from 8 to 1,024 after as many
updates each time, without any cache of compiled programs, tells which share of
its time waits for compilers; the first program is waited for before that. And
each bucket of that ladder is compiled and then entered in turn: its first
update over the median of those after it, each waited for. Writes a log
(`--log`).
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
from benchmarks.steady_state import made_up
from configs import fashion_mnist_cnn

SIZES = tuple(8 * 2**i for i in range(8))
EVERY = 30 * 60_000 // sum(SIZES)  # updates at each size, of the run
ENTERED = 20  # updates of a bucket whose first is compared


def make_config(sizes: Sequence[int] = SIZES, every: int = EVERY) -> Config:
  """Doubles its batch size until the largest."""
  config, begin, table = fashion_mnist_cnn.get_config(), 0, []
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
      'controller.step_table.table': ' '.join(table),
      'eval.every_epochs': 1e6,
      'checkpoint.every_updates': 10**6,
      'compilation_cache': False,
    }
  )
  return config


def first_over_median(
  config: Config, splits: Any, sizes: Sequence[int], updates: int = ENTERED
) -> list[float]:
  """Of each bucket, entered from another; all compiled before."""
  parts = build(config, None, splits)
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


def stalled(config: Config, splits: Any) -> tuple[float, float]:
  """What of a run waits for compilers.

  Returns:
    The share of its training, waits included; and the seconds until the first
    program was there, which are not part of it.
  """
  silent = contextlib.redirect_stderr(io.StringIO())
  with tempfile.TemporaryDirectory() as workdir, silent:
    summary = train(config, workdir, splits=splits)
  waits = summary['stall_seconds']
  share = waits / (summary['seconds'] + waits)
  return share, summary['first_compile_seconds']


def figures(
  repeats: int,
  *,
  sizes: Sequence[int] = SIZES,
  every: int = EVERY,
  examples: int = 60_000,
) -> dict[str, Any]:
  """Both figures, `repeats` times.

  Args:
    repeats: how often each is measured.
    sizes: of the ladder.
    every: updates of the run at each.
    examples: that are made up.
  """
  config = make_config(sizes, every)
  splits = made_up(config, examples)
  ratios = [first_over_median(config, splits, sizes) for _ in range(repeats)]
  waits = [stalled(config, splits) for _ in range(repeats)]
  shares, firsts = zip(*waits, strict=True)
  return {
    'buckets': len(sizes),
    'first_over_median': [ratio for lap in ratios for ratio in lap],
    'stalled': shares,
    'first_program_seconds': firsts,
  }


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--log', default=measure.DOCS / 'switching.json')
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--quick', action='store_true', help='a short try')
  given = parser.parse_args(argv)
  logging.set_verbosity(logging.ERROR)
  repeats = 1 if given.quick else given.repeats
  short: dict[str, Any] = {'every': 20, 'examples': 4096} if given.quick else {}
  found = figures(repeats, **short)
  measure.write(given.log, measure.record(quick=given.quick, **found))
  ratios, share = found['first_over_median'], found['stalled']
  print(f'first update over the median: {measure.spread(ratios)}')
  percent = [100 * s for s in share]
  print(f'waits for compilers: {measure.spread(percent, 1)} %')
  firsts = measure.spread(found['first_program_seconds'])
  print(f'the first program before that: {firsts} s')
  return 0


if __name__ == '__main__':
  raise SystemExit(main())
