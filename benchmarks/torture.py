"""Real runs are disturbed at random moments; what they end in must be the same.

    python -m benchmarks.torture --kills=50 --seed=0 --log=docs/torture.json

Each try starts a job (`torture_jobs.py`) in a directory of its own, waits for a
random moment, disturbs it once and then starts the same command again, as a
scheduler would, until it completes. Parameters, optimizer state, the lines of
`metrics.jsonl`, `summary.json` and a search's table must be those of the
undisturbed run of the same setting, to the bit and without the seconds. A try
counts only if the disturbance met a running process; else another moment is
drawn.

The log has one entry for each try and is written after each; started again with
the same log and seed, it goes on with the next. The exit status is 1 if
anything differed. A full disk is a small tmpfs where one may be mounted (as
root), else a limit on the size of files (RLIMIT_FSIZE).
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from absl import logging

from adabatch.config.files import write_json
from benchmarks.disturbances import (
  KINDS,
  PATIENCE,
  POLL,
  Away,
  Commands,
  Moment,
  Undisturbed,
  disturb,
  flip,
  lines_of,
  small_disk,
  watch,
  wheres,
)
from benchmarks.torture_jobs import (
  JOBS,
  Setting,
  differences,
  make_data,
  records,
  results,
  settings,
)

DRAWS = 5  # of a moment, until one meets a running process
RESTARTS = 5  # after which a run is given up


# One try.


def undisturbed(
  setting: Setting, place: pathlib.Path, data: pathlib.Path
) -> Undisturbed:
  """Runs it once; a run that fails without a disturbance ends it all."""
  workdir = place / 'run' / 'w'
  saves: set[str] = set()

  def look() -> None:
    saves.update(path.name for path in records(workdir / 'checkpoints'))

  workdir.parent.mkdir(parents=True)
  with Commands(setting, place, data) as running:
    running.wait(PATIENCE, look)
    seconds = time.monotonic() - running.begin
    running.check()
  metrics = workdir / 'metrics.jsonl'
  text = metrics.read_text() if metrics.exists() else ''
  lines = [json.loads(line) for line in text.splitlines()]
  return Undisturbed(results(workdir), seconds, lines, len(saves))


def interrupt(
  setting: Setting,
  kind: str,
  moment: Moment,
  done: Undisturbed,
  rng: random.Random,
  place: pathlib.Path,
  data: pathlib.Path,
  disk: str,
) -> dict[str, Any] | None:
  """Starts it and disturbs it; None if that did not meet a running process."""
  workdir = place / 'run' / 'w'
  with Commands(setting, place, data) as running:
    come = watch(moment, done, workdir, running.begin)
    deadline = running.begin + PATIENCE
    while running.running() and not come() and time.monotonic() < deadline:
      time.sleep(POLL)
    running.check()
    time.sleep(moment.delay)
    at = time.monotonic()
    met, ended = disturb(kind, running, rng, disk, place / 'run')
    two = len(records(workdir / 'checkpoints')) > 1
    if not met or (kind in ('read', 'flip') and not two):
      return None
    return {
      'lines': lines_of(workdir),
      'exits': [running.status()],
      'ended': ended,
      'ended_seconds': round(time.monotonic() - at, 2),
      'tracebacks': running.text().count('Traceback (most'),
    }


def recover(
  setting: Setting,
  place: pathlib.Path,
  data: pathlib.Path,
  found: dict[str, Any],
  away: Away | None,
) -> str:
  """Starts it until it completes; the last line of a run that does not."""
  workdir = place / 'run' / 'w'
  text = ''
  for restart in range(1, RESTARTS + 1):
    with Commands(setting, place, data) as running:

      def look(begin=running.begin) -> None:
        if away is not None:
          away.look()
        if 'recovery_seconds' not in found and (
          lines_of(workdir) > found['lines'] > 0
        ):
          found['recovery_seconds'] = round(time.monotonic() - begin, 2)

      ended = running.wait(PATIENCE, look)
      if away is not None:
        away.back()
      text = running.text()
      found['restarts'] = restart
      found['exits'].append(running.status())
      found['tracebacks'] += text.count('Traceback (most')
      if not any(running.status()):
        seconds = round(time.monotonic() - running.begin, 2)
        found.setdefault('recovery_seconds', seconds)
        return ''
      found['ended'] &= ended
  return text.strip().rpartition('\n')[2] or 'nothing was said'


def shared_memory() -> int:
  """Bytes that readers hold; what a killed run left is swept by the next."""
  files = pathlib.Path('/dev/shm').glob('*')
  return sum(file.stat().st_size for file in files if file.is_file())


def attempt(
  setting: Setting,
  kind: str,
  done: Undisturbed,
  rng: random.Random,
  place: pathlib.Path,
  data: pathlib.Path,
) -> dict[str, Any]:
  """One disturbance with all that follows; an entry of the log."""
  entry: dict[str, Any] = setting._asdict() | {'kind': kind}
  shared = shared_memory()
  for draw in range(1, DRAWS + 1):
    where = rng.choice(wheres(done))
    share, delay = round(rng.random(), 3), round(0.03 * rng.random(), 4)
    moment = Moment(where, share, delay)
    here = place / str(draw)
    entry |= {'moment': moment._asdict(), 'draws': draw, 'interrupted': False}
    with contextlib.ExitStack() as stack:
      disk = ''
      if kind == 'disk':
        disk = stack.enter_context(small_disk(here / 'run'))
        entry['disk'] = disk
      else:
        (here / 'run').mkdir(parents=True)
      found = interrupt(setting, kind, moment, done, rng, here, data, disk)
      if found is None:
        continue
      away, workdir = None, here / 'run' / 'w'
      newest = records(workdir / 'checkpoints')[-1:]
      if kind == 'flip':
        what = flip(newest[0].rglob('*'), rng)
        entry['what'] = what.replace(f'{workdir}/', '')
      elif kind == 'read':
        away = Away(newest[0], here / 'away', rng)
        entry['what'] = str(away.path.relative_to(workdir))
      # A run that stood still for a while has gone on by itself.
      over = not any(found['exits'][0])
      failed = '' if over else recover(setting, here, data, found, away)
      left = shared_memory() - shared
      entry |= found | {'interrupted': True, 'shared_memory_bytes': left}
      if failed:
        return entry | {'differs': [f'not completed: {failed[:300]}']}
      differs = differences(results(workdir), done.results)
      more = [f'and {len(differs) - 10} more'] if len(differs) > 10 else []
      return entry | {'differs': differs[:10] + more}
  return entry


# All.


def draw(
  seed: int, number: int, kinds: list[str], there: list[Setting]
) -> tuple[Setting, str, random.Random]:
  """Of a try by its number: each kind in turn, on settings in random order."""
  kinds = random.Random(f'{seed}').sample(kinds, len(kinds))
  kind = kinds[number % len(kinds)]
  fitting = [setting for setting in there if fits(kind, setting)]
  order = random.Random(f'{seed} {kind}').sample(fitting, len(fitting))
  setting = order[number // len(kinds) % len(order)]
  return setting, kind, random.Random(f'{seed} {number}')


def fits(kind: str, setting: Setting) -> bool:
  """Whether a setting can be disturbed so.

  >>> fits('lost', Setting('text', 1)), fits('flip', Setting('search', 1))
  (False, False)
  """
  if kind in ('lost', 'kill'):  # of two, a killed process is a lost one
    return (kind == 'lost') == (setting.processes > 1)
  return kind not in ('read', 'flip') or JOBS[setting.name].checkpoints


def line_of(entry: dict[str, Any]) -> str:
  """What a person reads of a try."""
  setting = Setting(entry['name'], entry['devices'], entry['processes'])
  start = f'{setting}: {entry["kind"]} at {entry["moment"]["where"]}'
  if not entry['interrupted']:
    return f'{start}: met no running process in {entry["draws"]} draws'
  differs = ', '.join(entry['differs']) or 'equal'
  notes = [] if entry['ended'] else ['HUNG']
  notes += [f'{entry["tracebacks"]} tracebacks'] if entry['tracebacks'] else []
  return ', '.join(
    [
      f'{start}: {differs}',
      f'{entry.get("restarts", 0)} restarts',
      f'ended after {entry["ended_seconds"]:.1f} s',
      f'recovered in {entry.get("recovery_seconds", 0.0):.1f} s',
      *notes,
    ]
  )


def open_log(path: pathlib.Path, seed: int) -> dict[str, Any]:
  """The log that is gone on with, or a new one."""
  if path.exists():
    log = json.loads(path.read_text())
    if log['seed'] != seed:
      sys.exit(f'{path} is of seed {log["seed"]}: give that, or another --log')
    return log
  return {
    'hardware': f'{platform.machine()}, {os.cpu_count()} cores',
    'versions': {'python': platform.python_version(), 'jax': jax.__version__},
    'seed': seed,
    'kinds': KINDS,
    'tries': [],
  }


def torture(
  log: dict[str, Any],
  path: pathlib.Path,
  directory: pathlib.Path,
  kills: int,
  kinds: list[str],
  there: list[Setting],
) -> None:
  """Tries until so many disturbances as wanted met a running process."""
  kinds = [kind for kind in kinds if any(fits(kind, s) for s in there)]
  done: dict[Setting, Undisturbed] = {}
  tries, data = log['tries'], directory / 'data'
  while (met := sum(t['interrupted'] for t in tries)) < kills:
    if len(tries) >= 2 * kills + DRAWS:
      print('too many tries met no running process')
      break
    setting, kind, rng = draw(log['seed'], len(tries), kinds, there)
    make_data(data, JOBS[setting.name].data)
    if setting not in done:
      with tempfile.TemporaryDirectory(dir=directory) as place:
        done[setting] = undisturbed(setting, pathlib.Path(place), data)
      print(f'{setting}: {done[setting].seconds:.1f} s undisturbed', flush=True)
    with tempfile.TemporaryDirectory(dir=directory) as place:
      place = pathlib.Path(place)
      entry = attempt(setting, kind, done[setting], rng, place, data)
    tries.append(entry)
    write_json(path, log)
    met += entry['interrupted']
    print(f'{met} of {kills}  {line_of(entry)}', flush=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )

  def add(name: str, default: Any, meaning: str, **options: Any) -> None:
    parser.add_argument(f'--{name}', default=default, help=meaning, **options)

  def some(known: Iterable[str]):
    def read(text: str) -> list[str]:
      if unknown := set(text.split(',')) - set(known):
        raise argparse.ArgumentTypeError(
          f'{", ".join(unknown)} is none of {", ".join(known)}'
        )
      return text.split(',')

    return read

  kinds = '; '.join(f'{kind}: {what}' for kind, what in KINDS.items())
  add('kills', 50, 'disturbances in all', type=int)
  add('seed', 0, 'draws jobs, kinds and moments', type=int)
  add('log', 'docs/torture.json', 'written, or gone on with')
  add('jobs', list(JOBS), f'some of {", ".join(JOBS)}', type=some(JOBS))
  add('kinds', list(KINDS), f'some of {kinds}', type=some(KINDS))
  add('directory', None, 'of the runs; the default is a temporary one')
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  given = parse(argv)
  logging.set_verbosity(logging.ERROR)
  # So that everything is tidied up.
  signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
  path = pathlib.Path(given.log)
  log = open_log(path, given.seed)
  with contextlib.ExitStack() as stack:
    directory = pathlib.Path(
      given.directory
      or stack.enter_context(tempfile.TemporaryDirectory(prefix='torture-'))
    ).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    there = settings(given.jobs)
    torture(log, path, directory, given.kills, given.kinds, there)
  met = [entry for entry in log['tries'] if entry['interrupted']]
  bad = [entry for entry in met if entry['differs'] or not entry['ended']]
  counts = Counter(entry['kind'] for entry in met)
  print(', '.join(f'{kind} {count}' for kind, count in counts.items()))
  print(f'{len(met)} disturbances, {len(bad)} with another end')
  return int(bool(bad))


if __name__ == '__main__':
  sys.exit(main())
