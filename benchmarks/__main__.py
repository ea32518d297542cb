"""Every figure of docs/performance.md, by one command.

    python -m benchmarks --data_dir=DIRECTORY_OF_TFDS_SETS

Runs the benchmarks one after the other, each in a process of its own with a
limit of minutes; prints their tables, and writes what they found to
docs/performance.json and the page docs/performance.md. `--only NAME,...` runs
some, the others keep what they found before; `--quick` tries everything in
minutes, in another directory. What cannot run here stays blank, and the page
says why; what fails says so, and the exit status is 1.
"""

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks import measure, page

ROOT = pathlib.Path(__file__).parent.parent
PASSED_ON = ('data_dir', 'python', 'adadamp')


class Entry(NamedTuple):
  """How one benchmark is run.

  Attributes:
    minutes: after which it is ended.
    options: of PASSED_ON that it takes.
    quick: its arguments for a short try; None: it has no short one.
    lacks: what it cannot do without and is not here; '' if nothing.
  """

  minutes: float
  options: tuple[str, ...] = ()
  quick: tuple[str, ...] | None = ('--quick',)
  lacks: Callable[[argparse.Namespace], str] = lambda given: ''


def lacks_peer(given: argparse.Namespace) -> str:
  if given.python and given.adadamp:
    return ''
  return 'needs --python (with PyTorch) and --adadamp'


def lacks_tensorflow(given: argparse.Namespace) -> str:
  del given
  found = importlib.util.find_spec('tensorflow')
  return '' if found else 'needs TensorFlow (the extra prepare)'


def lacks_compiler(given: argparse.Namespace) -> str:
  del given
  found = importlib.util.find_spec('libtpu')
  return '' if found else "needs the TPU's compiler (the extra tpu)"


def lacks_gpu(given: argparse.Namespace) -> str:
  import jax

  if given.quick or jax.default_backend() == 'gpu':
    return ''
  return 'no GPU was at hand'


ENTRIES = {
  'steady_state': Entry(40, ('data_dir',)),
  'peer_adadamp': Entry(40, PASSED_ON, lacks=lacks_peer),
  'updates_per_call': Entry(15, quick=('--repeats=1',)),
  'switching': Entry(10),
  'trials_per_hour': Entry(30, quick=('--repeats=1', '--batch_sizes=64')),
  'input_pipeline': Entry(
    15, ('data_dir',), ('--repeats=1', '--seconds=1'), lacks_tensorflow
  ),
  'tpu_steps': Entry(120, quick=None, lacks=lacks_compiler),
  'tpu_text': Entry(120, quick=None, lacks=lacks_compiler),
  'host_part': Entry(10),
  'devices_as_needed': Entry(20),
  'resnet50_images': Entry(15, quick=None, lacks=lacks_gpu),
  'gpu': Entry(9, quick=('--smoke',), lacks=lacks_gpu),
}


def run(name: str, given: argparse.Namespace, docs: pathlib.Path) -> str:
  """Runs one; 'done', or why not."""
  entry, log = ENTRIES[name], docs / f'{name}.json'
  if importlib.util.find_spec(f'benchmarks.{name}') is None:
    return 'not in this version'
  if why := entry.lacks(given):
    return why
  arguments = [
    f'--{option}={getattr(given, option)}'
    for option in entry.options
    if getattr(given, option)
  ]
  if given.quick:
    if entry.quick is None:
      return 'has no quick form'
    arguments += entry.quick
  arguments.append(f'--log={log}')
  command = [sys.executable, '-m', f'benchmarks.{name}', *arguments]
  try:
    done = subprocess.run(
      command,
      cwd=ROOT,
      stderr=subprocess.PIPE,
      text=True,
      timeout=60 * entry.minutes,
    )
  except subprocess.TimeoutExpired:
    return f'failed: ran over {entry.minutes:g} minutes'
  if done.returncode:
    last = (done.stderr.strip() or 'without a word').splitlines()[-1]
    return f'failed: {last}'
  return 'done'


def collect(
  docs: pathlib.Path, statuses: dict[str, str]
) -> dict[str, dict[str, Any]]:
  """What there is of each: its status and its log."""
  path, entries = docs / 'performance.json', {}
  if path.exists():
    entries = json.loads(path.read_text())['figures']
  for name in ENTRIES:
    entry = {'status': 'not run'} | entries.get(name, {})
    if name in statuses:
      entry['status'] = statuses[name]
    log = docs / f'{name}.json'
    if log.exists():
      entry['log'] = json.loads(log.read_text())
    entries[name] = entry
  return entries


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--only', default=','.join(ENTRIES))
  parser.add_argument('--quick', action='store_true', help='a short try')
  parser.add_argument('--docs', type=pathlib.Path, help='where all is written')
  parser.add_argument('--data_dir', help='where the TFDS sets lie')
  parser.add_argument('--python', help='of an environment with PyTorch')
  parser.add_argument('--adadamp', help="holds the authors' damping.py")
  given = parser.parse_args(argv)
  names = [name for name in given.only.split(',') if name]
  if unknown := sorted(set(names) - set(ENTRIES)):
    parser.error(
      f'--only={",".join(unknown)}: choose among {", ".join(ENTRIES)}'
    )
  quick = ROOT / 'runs' / 'quick'
  docs = given.docs or (quick if given.quick else measure.DOCS)
  docs.mkdir(parents=True, exist_ok=True)
  statuses = {}
  for name in names:
    print(f'\n== {name}', flush=True)
    statuses[name] = run(name, given, docs)
    print(f'{name}: {statuses[name]}', flush=True)
    entries = collect(docs, statuses)
    measure.write(docs / 'performance.json', {'figures': entries})
  if not names:
    entries = collect(docs, {})
    measure.write(docs / 'performance.json', {'figures': entries})
  print(f'\n{page.write(docs)}')
  return int(any(s.startswith('failed') for s in statuses.values()))


if __name__ == '__main__':
  raise SystemExit(main())
