"""What the host does for an update of one call: microseconds, Python calls.

    python -m benchmarks.host_part

Runs of the digits MLP with one update a call, their program replaced by
something that returns at once, so that what is left is the loop itself: the
order of the data, packing, reports, what is due. What JAX needs to start a
program is not in it. Writes a log (`--log`).
"""

import argparse
import gzip
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from adabatch.devices.messages import Call, Report
from adabatch.devices.trainer import Trainer
from adabatch.train import train
from adabatch.train.build import Parts, build
from adabatch.train.loop import loop
from benchmarks import measure
from configs import digits_mlp

GOAL = 40.0  # microseconds
WARM_UP = 100  # updates
RUNS = 'ThunkExecutor::Execute'  # a program on a CPU, in a trace
BATCH_SIZES = (16, 64, 256)


def make_parts(batch_size: int, updates: int) -> Parts:
  config = digits_mlp.get_config()
  config.update_from_flattened_dict(
    {
      'epochs': 1e6,
      'max_updates': updates,
      'updates_per_call': 1,
      'controller.name': 'constant',
      'controller.initial_batch_size': batch_size,
      'eval.every_epochs': 1e6,
      'checkpoint.every_updates': 10**6,
      'log.every_updates': WARM_UP,
    }
  )
  return build(config, jax.devices()[:1])


class Idle(Trainer):
  """Its programs do nothing, and report that all is well."""

  def compile(self, call: Call, ahead: Any = ()) -> None:
    super().compile(call, ahead)
    well = Report(*[1.0] * 5, stop=0.0, weight=1.0)
    reports = jax.device_put(np.array(well, np.float32).reshape(1, 1, -1))
    self._program: Any = lambda state, data, batch: (state, reports)


def watched(parts: Parts, updates: int, profile: Any = None) -> float:
  """Seconds of the updates after the first ones."""
  import adabatch.train.loop as module

  before, begin = module.Trainer, 0.0
  module.Trainer = Idle
  try:
    for kind, record in loop(parts):
      if kind == 'train' and record['update'] == WARM_UP:
        begin = time.perf_counter()
        sys.setprofile(profile)
      elif kind == 'train' and record['update'] == updates:
        sys.setprofile(None)
        return time.perf_counter() - begin
  finally:
    module.Trainer = before
    sys.setprofile(None)
  raise AssertionError('the last update was not recorded')


def busy(batch_size: int, updates: int) -> float:
  """Share of a trace in which a program runs, in a run as it is by default."""
  config = digits_mlp.get_config()
  config.update_from_flattened_dict(
    {
      'epochs': 1e6,
      'max_updates': updates,
      'controller.name': 'constant',
      'controller.initial_batch_size': batch_size,
      'eval.every_epochs': 1e6,
      'checkpoint.every_updates': 10**6,
      'log.profile': (updates // 2, updates // 2 + 2000),
    }
  )
  with tempfile.TemporaryDirectory() as workdir:
    train(config, workdir, devices=jax.devices()[:1])
    (path,) = pathlib.Path(workdir).glob('profile/**/*.trace.json.gz')
    events = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
  # Of one inside another the outer one counts.
  spans = sorted(
    (event['ts'], event['ts'] + event['dur'])
    for event in events
    if event.get('name', '').startswith(RUNS)
  )
  covered, until = 0.0, spans[0][0]
  for begin, end in spans:
    covered += max(0.0, end - max(begin, until))
    until = max(until, end)
  return covered / (until - spans[0][0])


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--log', default=measure.DOCS / 'host_part.json')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--quick', action='store_true', help='a short try')
  given = parser.parse_args(argv)
  logging.set_verbosity(logging.ERROR)
  updates = 1000 if given.quick else 10_000
  updates += WARM_UP
  rows = []
  for size in BATCH_SIZES:
    parts = make_parts(size, updates)
    times = [
      1e6 * watched(parts, updates) / (updates - WARM_UP)
      for _ in range(given.repeats)
    ]
    calls = 0

    def count(frame, event, arg):
      nonlocal calls
      calls += event == 'call'

    watched(parts, updates, count)
    median = statistics.median(times)
    rows.append(
      {
        'name': f"the host's part of an update at {size}, one a call",
        'goal': f'≤ {GOAL:.0f} µs',
        'met': 'yes' if median <= GOAL else 'no',
        'microseconds': measure.spread(times, 1),
        'python_calls': round(calls / (updates - WARM_UP), 1),
        'each': times,
      }
    )
    print(rows[-1]['name'], rows[-1]['microseconds'], rows[-1]['python_calls'])
    shares = [busy(size, 8000) for _ in range(given.repeats)]
    rows.append(
      {
        'name': f'share of a trace in which a program runs, at {size}',
        'busy': measure.spread(shares),
        'each': shares,
      }
    )
    print(rows[-1]['name'], rows[-1]['busy'])
  measure.write(given.log, measure.record(quick=given.quick, rows=rows))
  return 0


if __name__ == '__main__':
  raise SystemExit(main())
