"""Single bits of what a run leaves are flipped; none may change a result.

    python -m benchmarks.flipped_bits --flips=1000 --log=docs/flipped_bits.json

A small run is stopped half-way. Then, for each flip, a copy of its directory
gets one wrong bit, in each kind of file in turn; the copy is read as users read
it (`load`), and trained on. What comes of it is

    refused       one line says what cannot be read
    fell back     a line says so, and the results are those without the flip
    harmless      nobody reads that bit: the results are the same
    noticed       a line says so, and only lines of the log are others
    WRONG         parameters, summary or log are others
    TRACEBACK     an error that is not said in a line
    CRASHED       the interpreter died, or nothing ended within two minutes

The last three are failures, and make the exit status 1. The log is written
after each flip; started again, it goes on with the next.
"""

import argparse
import contextlib
import io
import json
import pathlib
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from adabatch import data
from adabatch.config import Config, ConfigError
from adabatch.config.files import write_json
from adabatch.search.job import search
from adabatch.study import archive
from adabatch.train import train
from adabatch.train.checkpoints import CheckpointError
from adabatch.train.load import load
from benchmarks.disturbances import flip
from benchmarks.torture_jobs import differences, records, results, without_clock
from configs import digits_mlp, study_digits_mlp

HALF, WHOLE = 30, 40  # updates
SECONDS = 120  # after which a run is given up
ONE_LINE = (ConfigError, CheckpointError, data.DatasetError)
FAILURES = ('WRONG', 'TRACEBACK', 'CRASHED')
OUTCOMES = ('harmless', 'fell back', 'noticed', 'refused', *FAILURES)


def newest(workdir: pathlib.Path) -> pathlib.Path:
  return records(workdir / 'checkpoints')[-1]


FINISHED = 'summary of a finished run'
# Kind of file -> all of that kind.
FILES: dict[str, Callable[[pathlib.Path], Any]] = {
  'arrays': lambda run: (newest(run) / 'state').rglob('*'),
  'JSON of a checkpoint': lambda run: (newest(run) / 'host').rglob('*'),
  'best': lambda run: records(run / 'best')[-1].rglob('*'),
  'rest of a checkpoint': lambda run: newest(run).glob('*'),
  'metrics.jsonl': lambda run: run.glob('metrics.jsonl'),
  'config.json': lambda run: run.glob('config.json'),
  'inputs.json': lambda run: run.glob('inputs.json'),
  'summary.json': lambda run: run.glob('summary.json'),
  FINISHED: lambda run: run.glob('summary.json'),
  'events': lambda run: (run / 'tensorboard').glob('*'),
  'search archive': lambda run: (run / 'trials').rglob('*'),
}
# Kind -> what users load where it is read.
LOADED = {
  'arrays': 'last',
  'JSON of a checkpoint': 'last',
  'rest of a checkpoint': 'last',
  'best': 'best',
  'config.json': 'last',
  'inputs.json': 'last',
}


def training() -> Config:
  """Small, with a rule that has a state and a best that is not the newest."""
  c = digits_mlp.get_config()
  c.model.mlp.hidden_sizes = (16,)
  c.epochs = 100.0
  c.controller.adadamp.loss_source = 'ema'
  c.controller.max_batch_size = 32
  c.controller.every = 5
  c.checkpoint.every_updates = 10
  c.log.every_updates = 1
  c.eval.every_epochs = 0.09
  return c


def searching() -> Config:
  c = study_digits_mlp.get_config()
  c.epochs = 2.0
  c.search.trials, c.search.members, c.search.updates_per_call = 6, 2, 4
  c.controller.name = 'constant'
  c.controller.max_batch_size = 32
  return c


def loaded(workdir: pathlib.Path, which: str) -> dict[str, Any]:
  """What `load` makes of a run."""
  network = load(workdir, which)
  leaves = jax.tree_util.tree_leaves_with_path(
    {'params': network.params, **network.model_state}
  )
  found: dict[str, Any] = {
    f'load: {jax.tree_util.keystr(path)}': np.asarray(leaf).tobytes()
    for path, leaf in leaves
  }
  for name in ('update', 'classes', 'mean', 'std'):
    found[f'load: {name}'] = repr(getattr(network, name))
  return found


def resumed(workdir: pathlib.Path) -> dict[str, Any]:
  train(training(), workdir, last_update=WHOLE)
  return results(workdir)


def started_again(workdir: pathlib.Path) -> dict[str, Any]:
  """There is nothing to do."""
  summary = train(training(), workdir, last_update=HALF)
  told = {f'told: {k}': v for k, v in without_clock(summary).items()}
  return told | results(workdir)


def searched(workdir: pathlib.Path) -> dict[str, Any]:
  """An archive that cannot be read is written anew by its search."""
  with contextlib.suppress(ValueError):
    archive.read_tree(workdir / 'trials')
  search(searching(), workdir)
  return results(workdir)


def ways(kind: str) -> dict[str, Callable[[pathlib.Path], dict[str, Any]]]:
  """What is done with a directory, in order, by who reads that kind."""
  if kind == 'search archive':
    return {'searched on': searched}
  if kind == FINISHED:
    return {'started again': started_again}
  if kind not in LOADED:
    return {'trained on': resumed}
  which = LOADED[kind]
  return {'loaded': lambda run: loaded(run, which), 'trained on': resumed}


def said(text: str) -> list[str]:
  """Lines, but for those that tell how fast it is."""
  lines = text.splitlines()
  return [line for line in lines if line and 'examples/s' not in line]


def call(
  way: Callable[[pathlib.Path], dict[str, Any]], workdir: pathlib.Path
) -> tuple[dict[str, Any] | Exception, list[str]]:
  """What comes of it, and what is said meanwhile."""
  text = io.StringIO()
  with contextlib.redirect_stderr(text), contextlib.redirect_stdout(text):
    signal.alarm(SECONDS)
    try:
      found = way(workdir)
    # Whatever it is, it is what is looked for.
    except Exception as error:  # noqa: BLE001
      found = error
    finally:
      signal.alarm(0)
  return found, said(text.getvalue().replace(str(workdir), 'WORKDIR'))


def judge(
  found: dict[str, Any] | Exception,
  lines: list[str],
  expected: dict[str, Any],
  expected_lines: list[str],
) -> tuple[str, str]:
  """One of OUTCOMES, and why.

  >>> judge({'metrics.jsonl: line 3': 1}, [], {'metrics.jsonl: line 3': 2}, [])
  ('WRONG', 'metrics.jsonl: line 3')
  """
  if isinstance(found, TimeoutError):
    return 'CRASHED', 'nothing ended'
  if isinstance(found, Exception):
    one = isinstance(found, ONE_LINE) and '\n' not in str(found)
    why = f'{type(found).__name__}: {found}'
    return 'refused' if one else 'TRACEBACK', why
  new = [line for line in lines if line not in expected_lines]
  differs = differences(found, expected)
  if any('Traceback' in line for line in new):
    return 'TRACEBACK', '\n'.join(new)[-1000:]
  if not differs:
    return ('fell back', new[0][:300]) if new else ('harmless', '')
  lines_alone = all(name.startswith('metrics.jsonl') for name in differs)
  if new and lines_alone:
    return 'noticed', new[0][:300]
  return 'WRONG', ', '.join(differs)[:300]


class Victims:
  """A run stopped half-way and a finished search, and what comes of them."""

  def __init__(self, directory: pathlib.Path):
    self._directory = directory
    train(training(), directory / 'run', last_update=HALF)
    search(searching(), directory / 'search')
    if not (directory / 'run' / 'best').exists():
      sys.exit('the best checkpoint is the newest: choose another HALF')
    self._expected = {}
    for kind in FILES:
      with self.copy(kind) as copy:
        expected = {name: call(way, copy) for name, way in ways(kind).items()}
      self._expected[kind] = expected
      for found, _ in expected.values():
        if isinstance(found, Exception):
          raise found

  @contextlib.contextmanager
  def copy(self, kind: str):
    name = 'search' if kind == 'search archive' else 'run'
    with tempfile.TemporaryDirectory(dir=self._directory) as place:
      yield shutil.copytree(self._directory / name, pathlib.Path(place) / 'w')

  def attack(self, kind: str, rng: random.Random) -> dict[str, Any]:
    """One flip; an entry of the log: what was done -> outcome, and why."""
    with self.copy(kind) as copy:
      what = flip(FILES[kind](copy), rng).replace(f'{copy}/', '')
      outcomes = {}
      for name, way in ways(kind).items():
        outcome, why = judge(*call(way, copy), *self._expected[kind][name])
        outcomes[name] = outcome, why.replace(str(copy), 'WORKDIR')[:200]
    return {'kind': kind, 'what': what, 'outcomes': outcomes}


def table(flips: list[dict[str, Any]]) -> list[str]:
  """Outcomes by kind and by what was done, as lines of Markdown."""
  lines = [f'| file | | {" | ".join(OUTCOMES)} |', '|---' * 9 + '|']
  for kind in FILES:
    for name in ways(kind):
      some = [f['outcomes'] for f in flips if f['kind'] == kind]
      counts = Counter(o[name][0] for o in some if name in o)
      cells = ' | '.join(str(counts[outcome]) for outcome in OUTCOMES)
      lines.append(f'| {kind} | {name} | {cells} |')
  return lines


def failures(entry: dict[str, Any]) -> list[str]:
  """What went wrong with a flip, as lines."""
  return [
    f'{entry["what"]}, {name}: {outcome}, {why}'
    for name, (outcome, why) in entry['outcomes'].items()
    if outcome in FAILURES
  ]


def attack_all(
  log: dict[str, Any], path: pathlib.Path, victims: Victims, wanted: int
) -> None:
  kinds, flips = list(FILES), log['flips']
  while len(flips) < wanted:
    number = len(flips)
    kind = kinds[number % len(kinds)]
    if log.pop('at', None) == number:
      died = dict.fromkeys(ways(kind), ('CRASHED', 'the interpreter died'))
      entry = {'kind': kind, 'what': '', 'outcomes': died}
    else:
      # Whatever ends the interpreter here is found there by the next one.
      write_json(path, log | {'at': number})
      try:
        entry = victims.attack(kind, random.Random(f'{log["seed"]} {number}'))
      except BaseException:
        write_json(path, log)
        raise
    flips.append(entry)
    write_json(path, log)
    for line in failures(entry):
      print(f'{number + 1}: {line}', flush=True)
    if not (number + 1) % 50:
      print(f'{number + 1} of {wanted}', flush=True)


def out_of_time(number, frame):
  del number, frame
  raise TimeoutError


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  default = 'docs/flipped_bits.json'
  parser.add_argument('--flips', type=int, default=1000, help='bits in all')
  parser.add_argument(
    '--seed', type=int, default=0, help='draws files and bits'
  )
  parser.add_argument('--log', default=default, help='written, or gone on with')
  given = parser.parse_args(argv)
  logging.set_verbosity(logging.FATAL)
  signal.signal(signal.SIGALRM, out_of_time)
  path = pathlib.Path(given.log)
  log: dict[str, Any] = {'seed': given.seed, 'flips': []}
  if path.exists():
    log |= json.loads(path.read_text())
  if log['seed'] != given.seed:
    sys.exit(f'{path} is of seed {log["seed"]}: give that, or another --log')
  with tempfile.TemporaryDirectory(prefix='flipped-') as directory:
    programs = pathlib.Path(directory) / 'programs'
    jax.config.update('jax_compilation_cache_dir', str(programs))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    attack_all(log, path, Victims(pathlib.Path(directory)), given.flips)
  print('\n'.join(table(log['flips'])))
  return int(any(map(failures, log['flips'])))


if __name__ == '__main__':
  sys.exit(main())
