"""Whether a long run grows: memory, open files and threads over its time.

    python -m benchmarks.soak --minutes=30 --log=docs/soak.json \\
        --picture=docs/soak.png

One run of a small network on streamed images, which changes its batch size
every thousand examples, and evaluates and writes checkpoints all the time. It
is watched from outside and ended by SIGTERM. The first tenth, in which all
programs are compiled, is left out; growth is that from the first third of the
rest to the last, of the mean rate of updates and of what is held in nine of ten
samples at most. The exit status is 1 if memory, open files or threads grew by
2 % or more.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from matplotlib.figure import Figure

from adabatch.config.files import write_json
from adabatch.report.scales import linear_ticks, tick_labels
from adabatch.report.style import LIGHT
from benchmarks.torture_jobs import ROOT, SMALL_CNN, make_images

Statistic = Callable[[Sequence[float]], Any]

SAMPLES = 360
WARM_UP = 0.1  # share of the samples that is left out
MOST = 2.0  # percent
# Another size every thousand examples, for longer than it takes.
TABLE = ' '.join(f'{i}K:{(8, 64, 16, 32)[i % 4]}' for i in range(30_000))
KEYS = SMALL_CNN | {
  'epochs': 1e9,
  'data.eval_split': 'val',
  'data.placement': 'streaming',
  'data.image_size': 16,
  'data.workers': 1,
  'optimizer.name': 'sgd',
  'learning_rate.base': 0.001,
  'controller.name': 'step_table',
  'controller.step_table.table': TABLE,
  'controller.initial_batch_size': 8,
  'controller.max_batch_size': 64,
  'controller.every': 2,
  # TensorStore (0.1.86) keeps a part of each save for ever, of what it
  # tells Orbax in JSON. So here it is one every few seconds, not ten a second.
  'checkpoint.every_updates': 2000,
  'eval.every_epochs': 300.0,
}


def last_update(metrics: pathlib.Path) -> int:
  """Of the last whole line; 0 before there is one."""
  if not metrics.exists():
    return 0
  with metrics.open('rb') as file:
    file.seek(max(0, metrics.stat().st_size - 4096))
    whole = file.read().rpartition(b'\n')[0].splitlines()
  return json.loads(whole[-1])['update'] if whole else 0


def sample(pid: int, metrics: pathlib.Path) -> dict[str, float]:
  """What a process holds now, without its readers."""
  process = pathlib.Path(f'/proc/{pid}')
  pages = int((process / 'statm').read_text().split()[1])
  return {
    'resident_bytes': pages * os.sysconf('SC_PAGE_SIZE'),
    'open_files': len(os.listdir(process / 'fd')),
    'threads': len(os.listdir(process / 'task')),
    'updates': last_update(metrics),
  }


def growth(values: Sequence[float], statistic: Statistic) -> float:
  """Percent from the first third to the last.

  >>> growth([100, 100, 500, 700, 110, 110], np.mean)
  10.0
  """
  third = max(1, len(values) // 3)
  first, last = statistic(values[:third]), statistic(values[-third:])
  return round(100 * float(last / first - 1), 3)


def most(values: Sequence[float]) -> float:
  """What is held at its fullest: files open and close all the time."""
  return float(np.quantile(values, 0.9))


def watch(
  workdir: pathlib.Path, data: pathlib.Path, minutes: float
) -> list[dict[str, float]]:
  """Starts the run, samples it and ends it."""
  keys = KEYS | {'data.name': f'folder:{data}'}
  command = [sys.executable, 'launch.py', '--config=configs/digits_mlp.py']
  command += [f'--workdir={workdir}']
  command += [f'--config.{key}={value}' for key, value in keys.items()]
  metrics, samples = workdir / 'metrics.jsonl', []
  process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
  try:
    while not last_update(metrics):
      if process.poll() is not None:
        sys.exit('the run ended before its first update')
      time.sleep(0.1)
    begin, between = time.monotonic(), 60 * minutes / SAMPLES
    for i in range(SAMPLES):
      time.sleep(max(0.0, begin + i * between - time.monotonic()))
      if process.poll() is not None:
        sys.exit(f'the run ended with status {process.returncode}')
      now = time.monotonic() - begin
      samples.append({'seconds': now} | sample(process.pid, metrics))
      if not i % (SAMPLES // 30):
        shown = ', '.join(f'{k} {v:,.0f}' for k, v in samples[-1].items())
        print(shown, flush=True)
    os.kill(process.pid, signal.SIGTERM)
    if process.wait(120) not in (143, -signal.SIGTERM):
      sys.exit(f'SIGTERM: status {process.returncode}')
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()
  return samples


# Of a sample -> its name, what its unit is, what of a third is compared.
PANELS: dict[str, tuple[str, float, Statistic]] = {
  'resident_bytes': ('resident memory (MB)', 1e6, most),
  'open_files': ('open files', 1.0, most),
  'threads': ('threads', 1.0, most),
  'updates_per_second': ('updates a second', 1.0, np.mean),
}


def columns(samples: list[dict[str, float]]) -> dict[str, list[float]]:
  """Of each panel, with the rate since the sample before, and the time."""
  times, updates = (
    np.array([s[key] for s in samples]) for key in ('seconds', 'updates')
  )
  found = {key: [s[key] for s in samples] for key in samples[0]}
  rates = np.diff(updates) / np.diff(times)
  found['updates_per_second'] = [rates[0], *rates]
  return found


def draw(found: dict[str, list[float]], grown: dict[str, float]) -> Figure:
  """A panel each, against minutes, from zero on."""
  figure = Figure(figsize=(9, 5.2), dpi=150, facecolor=LIGHT['paper'])
  minutes = np.array(found['seconds']) / 60
  for i, (key, (label, unit, _)) in enumerate(PANELS.items()):
    axes = figure.add_subplot(2, 2, i + 1)
    values = np.array(found[key]) / unit
    axes.plot(minutes, values, color=LIGHT['s1'], linewidth=1.6)
    axes.axvspan(0, WARM_UP * minutes[-1], color=LIGHT['card'], zorder=0)
    for which, high in (('x', minutes[-1]), ('y', 1.15 * values.max() or 1.0)):
      ticks = linear_ticks(0, float(high))
      axes.set(**{f'{which}lim': (0, high)})
      axes.set(**{f'{which}ticks': ticks})
      axes.set(**{f'{which}ticklabels': tick_labels(ticks)})
    title = f'{label}: {grown[key]:+.2f} %'
    axes.set_title(title, color=LIGHT['ink'], fontsize=11, loc='left')
    axes.tick_params(length=0, colors=LIGHT['soft'], labelsize=10)
    axes.grid(color=LIGHT['grid'], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.spines['bottom'].set_color(LIGHT['grid'])
    if i > 1:
      axes.set_xlabel('minutes', color=LIGHT['ink'], fontsize=11)
  figure.tight_layout()
  return figure


def of_lines(metrics: pathlib.Path) -> dict[str, int]:
  """How often the batch size changed, and how many evaluations there were."""
  switches = evaluations = before = 0
  with metrics.open() as file:
    for line in map(json.loads, file):
      evaluations += line['kind'] == 'eval'
      size = line.get('batch_size', before)
      switches += size != before
      before = size
  return {'batch_size_changes': switches, 'evaluations': evaluations}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--minutes', type=float, default=30.0, help='length of the run')
  add('--log', default='docs/soak.json', help='written')
  add('--picture', default='docs/soak.png', help='written')
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  given = parse(argv)
  logging.set_verbosity(logging.WARNING)
  # So that the run is ended.
  signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
  with tempfile.TemporaryDirectory(prefix='soak-') as directory:
    workdir, data = (pathlib.Path(directory) / d for d in ('run', 'images'))
    make_images(data)
    samples = watch(workdir, data, given.minutes)
    summary = json.loads((workdir / 'summary.json').read_text())
    counted = of_lines(workdir / 'metrics.jsonl')
  found, held = columns(samples), list(PANELS)[:3]
  warm = int(WARM_UP * len(samples))
  grown = {
    key: growth(found[key][warm:], statistic)
    for key, (_, _, statistic) in PANELS.items()
  }
  totals = ('updates', 'examples', 'compilations')
  log: dict[str, Any] = {
    'hardware': f'{platform.machine()}, {os.cpu_count()} cores',
    'versions': {'python': platform.python_version(), 'jax': jax.__version__},
    'minutes': given.minutes,
    'growth_percent': grown,
    **counted,
    **{key: summary[key] for key in totals},
  }
  for key, value in log.items():
    print(f'{key}: {value}')
  log['samples'] = {
    key: [round(value, 1) for value in found[key]]
    for key in ('seconds', 'updates', *held)
  }
  write_json(pathlib.Path(given.log), log)
  draw(found, grown).savefig(given.picture)
  return int(any(grown[key] >= MOST for key in held))


if __name__ == '__main__':
  sys.exit(main())
