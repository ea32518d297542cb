"""The figures of one GPU, in under 8 minutes.

    python -m benchmarks.gpu

Needs the checkout with its extra `train` and a JAX for GPUs; data are made up.
PyTorch, where it is installed, is the peer of ResNet-50. Each part runs in a
process of its own with a limit of seconds: what runs over or fails is reported
so, the next part goes on, and the exit status is 1. `--smoke` tries all with
tiny sizes, on a CPU too. Writes docs/gpu.json and prints a table.
"""

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import measure
from benchmarks.gpu_parts import PARTS

ROOT = pathlib.Path(__file__).parent.parent


def of_part(name: str, smoke: bool) -> list[list[Any]]:
  """Its figures."""
  return [list(figure) for figure in PARTS[name].run(smoke)]


def in_process(
  name: str, smoke: bool, seconds: float | None = None
) -> dict[str, Any]:
  """Its status and figures; it is ended after so many seconds."""
  part = PARTS[name]
  if importlib.util.find_spec(part.needs) is None:
    return {'status': f'{part.needs} is not installed'}
  limit, begin = seconds or part.seconds, time.perf_counter()
  command = [sys.executable, '-m', 'benchmarks.gpu', f'--part={name}']
  try:
    done = subprocess.run(
      command + ['--smoke'] * smoke,
      cwd=ROOT,
      capture_output=True,
      text=True,
      timeout=limit,
    )
  except subprocess.TimeoutExpired:
    return {'status': f'failed: ran over its {limit:g} seconds'}
  if done.returncode:
    lines = done.stderr.strip().splitlines() or ['without a word']
    return {'status': f'failed: {lines[-1][:300]}'}
  taken = round(time.perf_counter() - begin, 1)
  figures = json.loads(done.stdout.splitlines()[-1])
  return {'status': 'done', 'seconds': taken, 'figures': figures}


def default_backend() -> str:
  """JAX's, asked in another process, so that this one keeps no memory of it."""
  asked = subprocess.run(
    [sys.executable, '-c', 'import jax; print(jax.default_backend())'],
    check=True,
    capture_output=True,
    text=True,
  )
  return asked.stdout.split()[-1]


def table(parts: dict[str, dict[str, Any]]) -> str:
  rows = []
  for name, found in parts.items():
    if found['status'] == 'done':
      rows += [figure[:2] for figure in found['figures']]
    else:
      rows.append([PARTS[name].meaning, found['status']])
  return measure.table(['figure', 'found'], rows)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--log', default=measure.DOCS / 'gpu.json')
  parser.add_argument('--only', default=','.join(PARTS))
  parser.add_argument(
    '--smoke', action='store_true', help='tiny, on any device'
  )
  parser.add_argument('--part', choices=PARTS, help=argparse.SUPPRESS)
  given = parser.parse_args(argv)
  if given.part:
    print(json.dumps(of_part(given.part, given.smoke)))
    return 0
  names = given.only.split(',')
  if unknown := sorted(set(names) - set(PARTS)):
    parser.error(f'--only={",".join(unknown)}: choose among {", ".join(PARTS)}')
  backend = default_backend()
  if backend != 'gpu' and not given.smoke:
    raise SystemExit(
      f'benchmarks.gpu needs a GPU, and JAX has a {backend} here: give --smoke '
      'for a try of everything with tiny sizes'
    )
  parts = {}
  for name in names:
    parts[name] = in_process(name, given.smoke)
    print(f'{name}: {parts[name]["status"]}', flush=True)
  measure.write(given.log, measure.record(quick=given.smoke, parts=parts))
  print(table(parts))
  return int(any(p['status'].startswith('failed') for p in parts.values()))


if __name__ == '__main__':
  raise SystemExit(main())
