"""What a run keeps of its throughput while its processes are killed.

    python -m benchmarks.faults --minutes=30 --every=30 --log=docs/faults.json

Several processes train replicas (DiLoCo). Every so often one of them, drawn at
random, is killed, and started again some seconds later, as a scheduler would.
Those that are left go on by themselves. The examples trained are compared with
those of the same processes left alone, as torchft's users report it.
"""

import argparse
import json
import os
import pathlib
import platform
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
  add = parser.add_argument
  add('--minutes', type=float, default=30.0, help='of faults')
  add('--every', type=float, default=30.0, help='seconds between two faults')
  add('--alone', type=float, default=2.0, help='minutes without faults, before')
  add('--back', type=float, default=5.0, help='seconds until it starts again')
  add('--processes', type=int, default=2)
  add('--seed', type=int, default=0, help='of who is killed, and when')
  add('--log', type=pathlib.Path, help='JSON file for the result')
  return parser.parse_args()


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


class Slot:
  """One place among the processes; whoever is in it is started again."""

  def __init__(
    self, process: int, number: int, port: int, workdir: pathlib.Path
  ):
    self._output = (workdir.parent / f'{workdir.name}.{process}.txt').open('a')
    self._command = [
      sys.executable,
      'launch.py',
      '--config=configs/digits_mlp.py',
      f'--workdir={workdir}',
      '--distributed',
      f'--coordinator_address=localhost:{port}',
      f'--num_processes={number}',
      f'--process_id={process}',
      '--config.controller.name=constant',
      '--config.sync.name=diloco',
      f'--config.sync.replicas={number}',
      '--config.sync.min_replicas=1',
      '--config.processes.restarts=1000000',
      '--config.processes.lost_seconds=5',
      '--config.processes.rejoin_seconds=2',
      '--config.epochs=1000000',
      '--config.eval.every_epochs=1000',
      '--config.checkpoint.every_updates=200',
      '--config.checkpoint.best=False',
    ]
    self._process: subprocess.Popen | None = None
    self._ended = 0.0
    self.starts = 0

  def keep(self, back: float) -> None:
    """Starts it, or starts it again once it was gone long enough."""
    if self._process is not None and self._process.poll() is not None:
      self._process, self._ended = None, time.monotonic()
    if self._process is None and (
      not self.starts or time.monotonic() - self._ended > back
    ):
      self.starts += 1
      devices = '--xla_force_host_platform_device_count=1'
      self._process = subprocess.Popen(
        self._command,
        cwd=ROOT,
        env=os.environ | {'XLA_FLAGS': devices, 'JAX_PLATFORMS': 'cpu'},
        stdout=self._output,
        stderr=self._output,
        start_new_session=True,
      )

  @property
  def runs(self) -> bool:
    return self._process is not None and self._process.poll() is None

  def send(self, number: int) -> None:
    if self._process is not None and self.runs:
      os.killpg(self._process.pid, number)

  def end(self) -> int | None:
    """Waits; its exit status."""
    if self._process is None:
      return None
    try:
      return self._process.wait(60)
    except subprocess.TimeoutExpired:
      self.send(signal.SIGKILL)
      return self._process.wait()
    finally:
      self._output.close()


def last_record(workdir: pathlib.Path) -> dict:
  """The newest line of metrics.jsonl that is whole; {} if there is none."""
  try:
    lines = (workdir / 'metrics.jsonl').read_bytes().split(b'\n')
    return json.loads(lines[-2])
  except (OSError, IndexError, ValueError):
    return {}


def alone(slots: list[Slot], workdir: pathlib.Path, minutes: float) -> float:
  """Examples a second of processes that nobody disturbs."""
  for slot in slots:
    slot.keep(0.0)
  while not (first := last_record(workdir)):
    time.sleep(0.2)
    if not all(slot.runs for slot in slots):
      raise SystemExit('error: a process ended by itself: see its output')
  since = time.monotonic()
  time.sleep(60 * minutes)
  rate = last_record(workdir)['examples'] - first['examples']
  rate /= time.monotonic() - since
  for slot in slots:
    slot.send(signal.SIGTERM)
  for slot in slots:
    slot.end()
  return rate


def disturbed(
  slots: list[Slot], workdir: pathlib.Path, args: argparse.Namespace
) -> dict:
  """What became of a run whose processes are killed."""
  draw, faults = random.Random(args.seed), []
  for slot in slots:
    slot.keep(0.0)
  while not last_record(workdir):
    time.sleep(0.2)
  began = time.monotonic()
  ends, due = began + 60 * args.minutes, began + args.every
  first, most = last_record(workdir)['examples'], 0
  while (now := time.monotonic()) < ends:
    for slot in slots:
      slot.keep(args.back)
    if now >= due and any(slot.runs for slot in slots):
      victim = draw.choice([i for i, s in enumerate(slots) if s.runs])
      slots[victim].send(signal.SIGKILL)
      due += args.every
      most = last_record(workdir).get('examples', most)
      seconds = round(now - began, 1)
      faults.append({'seconds': seconds, 'process': victim, 'examples': most})
      print(
        f'{seconds:7.1f} s  fault {len(faults)}: process {victim} killed at '
        f'{most:,} examples',
        flush=True,
      )
    time.sleep(0.2)
  seconds = time.monotonic() - began
  last = last_record(workdir)['examples']
  for slot in slots:
    slot.send(signal.SIGTERM)  # to all at once: one may wait for another
  statuses = [slot.end() for slot in slots]
  return {
    'seconds': seconds,
    'examples': last - first,
    'faults': faults,
    'starts': [slot.starts for slot in slots],
    'exit_statuses': statuses,
  }


def main() -> None:
  args = parse()
  with tempfile.TemporaryDirectory() as scratch:
    directory = pathlib.Path(scratch)

    def slots(name: str) -> list[Slot]:
      port = free_port()
      return [
        Slot(i, args.processes, port, directory / name)
        for i in range(args.processes)
      ]

    found: list[Slot] = slots('alone')
    try:
      rate = alone(found, directory / 'alone', args.alone)
      print(f'left alone: {rate:,.0f} examples/s', flush=True)
      found = slots('disturbed')
      result = disturbed(found, directory / 'disturbed', args)
    finally:
      for slot in found:
        slot.send(signal.SIGKILL)
    kept = result['examples'] / (rate * result['seconds'])
    text = (directory / 'disturbed.0.txt').read_text()
  alone_, seconds = text.count('of 2 processes go on'), result['seconds']
  print(
    f'{len(result["faults"])} faults in {seconds / 60:.1f} minutes: '
    f'{kept:.1%} of the throughput kept'
  )
  if args.log is not None:
    about = {
      'command': f'minutes={args.minutes:g} every={args.every:g} '
      f'back={args.back:g} processes={args.processes} seed={args.seed}',
      'machine': f'{os.cpu_count()} {platform.machine()} cores',
      'examples_per_second_alone': rate,
      'share_kept': kept,
      'went_on_without_another': alone_,
    }
    args.log.write_text(json.dumps(about | result, indent=1) + '\n')


if __name__ == '__main__':
  main()
