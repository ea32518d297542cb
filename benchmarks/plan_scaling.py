"""What the plan's model of scaling says of CPU devices, and what they take.

    python -m benchmarks.plan_scaling

One machine stands for chips: 1, 2, 4 and 8 virtual CPU devices, each number in
a process of its own, run updates of a real network by the real Trainer. Times
of one device at some microbatches make the plan's own `StepTimes`; from them
the other numbers of devices are predicted, and batch sizes between.

Unlike chips, virtual devices share the cores. One device keeps u of c cores
busy (its processor time by its time), and n devices have n times the work of
one, so that they take, where nobody else wants the cores,

    free = T(m, k) * max(1, n u / c),

and where others leave them no more than they left the one,

    taken = n T(m, k).

Processor time does not depend on others, or hardly: that of n devices should be

    work = n W(m, k),

where W is the same model of one device's processor times. What devices exchange
is taken to cost nothing. Processes take turns, a measurement of each at a time,
so that a disturbance does not fall on one of them alone; a time is the median
of several. Writes a log (`--log`) and prints a table (`--from_log`: of what the
log holds); ratios are predicted by measured.
"""

import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags

from adabatch import config as config_lib
from adabatch import data
from adabatch.controllers import buckets
from adabatch.devices.messages import Call
from adabatch.devices.trainer import Trainer
from adabatch.plan.step_times import Point, StepTimes
from adabatch.train.build import build

ROOT = pathlib.Path(__file__).parent.parent
LOG = flags.DEFINE_string(
  'log',
  str(ROOT / 'docs' / 'plan_scaling_cpu.json'),
  'Where the log is written.',
)
REPEATS = flags.DEFINE_integer('repeats', 7, 'Measurements of each time.')
SECONDS = flags.DEFINE_float('seconds', 0.6, 'That a measurement takes, about.')
FROM_LOG = flags.DEFINE_bool('from_log', False, 'Measures nothing.')
WORKER = flags.DEFINE_string('worker', '', 'Of its own use: the network.')

DEVICES = (1, 2, 4, 8)
BATCH_SIZES = (32, 64, 128, 256)
MAX_PER_DEVICE = 64
# Microbatches and accumulated ones that make the model, on one device.
KNOWN = ((4, 1), (16, 1), (64, 1), (64, 2))
EXAMPLES = 2048
NETWORKS: dict[str, dict[str, Any]] = {
  'ResNet-8': {
    'model.name': 'cifar_resnet',
    'model.cifar_resnet.depth': 8,
    'model.cifar_resnet.batch_norm_group': 0,
  },
  'MLP': {'model.name': 'mlp', 'model.mlp.hidden_sizes': (1024, 1024)},
}


def _trainer(network: str) -> tuple[Trainer, buckets.Ladder]:
  """On all devices of this process, with made-up images of CIFAR's size."""
  config = config_lib.default()
  config.update_from_flattened_dict(
    {
      'controller.name': 'constant',
      'controller.initial_batch_size': max(BATCH_SIZES),
      'controller.max_batch_size': max(BATCH_SIZES),
      'buckets.max_per_device': MAX_PER_DEVICE,
      **NETWORKS[network],
    }
  )
  rng = np.random.default_rng(0)
  split = data.from_arrays(
    {
      'image': rng.integers(0, 256, (EXAMPLES, 32, 32, 3), np.uint8),
      'label': rng.integers(0, 10, EXAMPLES),
    },
    10,
  )
  parts = build(config, jax.devices(), (split, split))
  return Trainer(parts.recipe), parts.ladder


def _measure(trainer: Trainer, bucket: buckets.Bucket) -> dict[str, float]:
  """Seconds of an update, and processor seconds."""
  size = bucket.slots
  plan = buckets.Plan(float(size), size, 1.0, bucket)
  call = Call(0, 0, 1, plan)

  def run(updates: int) -> None:
    for i in range(updates):
      trainer.dispatch(call._replace(update=i), stop=False)
      jax.block_until_ready(trainer.state)

  trainer.compile(call)
  run(1)
  begin = time.perf_counter()
  run(2)
  number = max(int(SECONDS.value * 2 / (time.perf_counter() - begin)), 2)
  begin, busy = time.perf_counter(), time.process_time()
  run(number)
  return {
    'seconds': (time.perf_counter() - begin) / number,
    'busy': (time.process_time() - busy) / number,
  }


def worker(network: str) -> None:
  """Answers each line, a microbatch and how many of them, with a time."""
  trainer, _ = _trainer(network)
  for line in sys.stdin:
    size, steps = json.loads(line)
    bucket = buckets.Bucket(size, steps, jax.device_count())
    print(json.dumps(_measure(trainer, bucket)), flush=True)
  trainer.close()


class Worker:
  """A process with so many devices."""

  def __init__(self, network: str, devices: int):
    flag = f'--xla_force_host_platform_device_count={devices}'
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'benchmarks.plan_scaling', f'--worker={network}']
      + [f'--seconds={SECONDS.value}'],
      cwd=ROOT,
      env=os.environ | {'XLA_FLAGS': flag, 'JAX_PLATFORMS': 'cpu'},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def ask(self, size: int, steps: int) -> dict[str, float]:
    stdin, stdout = self._process.stdin, self._process.stdout
    assert stdin is not None
    assert stdout is not None
    print(json.dumps([size, steps]), file=stdin, flush=True)
    return json.loads(stdout.readline())

  def close(self) -> None:
    self._process.communicate()


def measure(network: str) -> dict[str, list[dict[str, float]]]:
  """'devices x m x k' -> its measurements."""
  wanted = {(1, m, k): None for m, k in KNOWN}
  for devices in DEVICES:
    rungs = buckets.Ladder(BATCH_SIZES, devices, MAX_PER_DEVICE, 'up')
    for batch_size in BATCH_SIZES:
      size, steps, _ = buckets.bucket_for(batch_size, rungs)
      wanted[devices, size, steps] = None
  workers = {devices: Worker(network, devices) for devices in DEVICES}
  found: dict[str, list[dict[str, float]]] = {}
  for _ in range(REPEATS.value):
    for devices, size, steps in wanted:
      name = f'{devices} x {size} x {steps}'
      answer = workers[devices].ask(size, steps)
      found.setdefault(name, []).append(answer)
  for one in workers.values():
    one.close()
  return found


def compare(
  found: dict[str, list[dict[str, float]]], cores: int
) -> list[dict[str, Any]]:
  """Rows of what was predicted beside what was measured."""
  median = {
    what: {n: statistics.median(x[what] for x in v) for n, v in found.items()}
    for what in ('seconds', 'busy')
  }
  alone = {(m, k): f'1 x {m} x {k}' for m, k in KNOWN}
  times, work = (
    StepTimes(Point(m, k, median[what][n]) for (m, k), n in alone.items())
    for what in ('seconds', 'busy')
  )
  used = statistics.median(
    median['busy'][name] / median['seconds'][name] for name in alone.values()
  )
  rows = []
  for devices in DEVICES:
    rungs = buckets.Ladder(BATCH_SIZES, devices, MAX_PER_DEVICE, 'up')
    for batch_size in BATCH_SIZES:
      size, steps, _ = buckets.bucket_for(batch_size, rungs)
      name = f'{devices} x {size} x {steps}'
      seconds = [x['seconds'] for x in found[name]]
      measured, busy = median['seconds'][name], median['busy'][name]
      one = times(size, steps)
      free = one * max(1.0, devices * used / cores)
      rows.append(
        {
          'devices': devices,
          'batch_size': batch_size,
          'microbatch_size': size,
          'accumulation_steps': steps,
          'fitted': devices == 1 and (size, steps) in KNOWN,
          'measured': measured,
          'least': min(seconds),
          'most': max(seconds),
          'cores_used': busy / measured,
          'free': free,
          'free_ratio': free / measured,
          'taken': devices * one,
          'taken_ratio': devices * one / measured,
          'measured_work': busy,
          'work': devices * work(size, steps),
          'work_ratio': devices * work(size, steps) / busy,
        }
      )
  return rows


def show(network: str, rows: list[dict[str, Any]]) -> None:
  """A table, and how many predictions are near."""
  print(f'\n{network}: milliseconds of an update, median (least, most)\n')
  columns = 'devices', 'batch size', 'm x k', 'measured', 'cores used'
  print(f'| {" | ".join(columns)} | free | taken | work |')
  print('|---' * 8 + '|')
  for row in rows:
    ms = {k: 1e3 * row[k] for k in ('measured', 'least', 'most')}
    print(
      f'| {row["devices"]} | {row["batch_size"]} '
      f'| {row["microbatch_size"]} x {row["accumulation_steps"]} '
      f'| {ms["measured"]:.1f} ({ms["least"]:.1f}–{ms["most"]:.1f}) '
      f'| {row["cores_used"]:.2f} | {row["free_ratio"]:.2f} '
      f'| {row["taken_ratio"]:.2f} | {row["work_ratio"]:.2f}'
      f'{" (fitted)" if row["fitted"] else ""} |'
    )
  new = [row for row in rows if not row['fitted']]
  for kind in ('free', 'taken', 'work'):
    ratios = [row[f'{kind}_ratio'] for row in new]
    near = sum(0.8 <= ratio <= 1.2 for ratio in ratios)
    print(
      f'{kind}: {near} of {len(ratios)} within 20 %, from {min(ratios):.2f} to '
      f'{max(ratios):.2f}'
    )


def main(argv: list[str]) -> None:
  del argv
  if WORKER.value:
    worker(WORKER.value)
    return
  path, cores = pathlib.Path(LOG.value), len(os.sched_getaffinity(0))
  if FROM_LOG.value:
    log = json.loads(path.read_text())
    cores = log['cores']
  else:
    log = {
      'hardware': f'{platform.machine()}, {cores} cores, shared with others',
      'cores': cores,
      'jax': jax.__version__,
      'load': [os.getloadavg()[0]],  # of the last minute, before and after
      'repeats': REPEATS.value,
      'networks': {},
    }
    for network in NETWORKS:
      log['networks'][network] = {'measurements': measure(network)}
      log['load'].append(os.getloadavg()[0])
  for network, of_one in log['networks'].items():
    of_one['rows'] = compare(of_one['measurements'], cores)
    show(network, of_one['rows'])
  path.write_text(json.dumps(log, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
