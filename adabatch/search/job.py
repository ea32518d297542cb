"""The search itself: take points, train them, until enough have not diverged.

Any number of processes may do this with one storage. Points 0, 1, 2, ... of a
search are taken in this order, as many as can still be needed; what counts in
the end are the first ones of which so many as wanted did not diverge, each cut
to what it would have needed if they had run one after the other. So the result
depends neither on the number of workers nor on who died.
"""

import contextlib
import os
import pathlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict
from optuna.exceptions import OptunaError
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm

from adabatch import data
from adabatch.config import Config, ConfigError, refusing
from adabatch.config.files import (
  read_json,
  read_signed,
  write_json,
  write_signed,
)
from adabatch.config.ranges import check_numbers
from adabatch.config.smoke import shrink
from adabatch.controllers import parse_count
from adabatch.devices.programs import use_persistent_cache
from adabatch.search.bench import Bench, Stopped, Task, say
from adabatch.search.storage import locked
from adabatch.search.survey import best_trial, objective
from adabatch.search.workload import (
  check_search,
  identity,
  make_goal,
  refuse_another,
  search_space,
  trial_config,
)
from adabatch.study.archive_writer import write_search
from adabatch.study.space import Parameter, near_edges
from adabatch.study.trials import (
  COMPLETE,
  INFEASIBLE,
  Goal,
  Search,
  first_below,
  unmeasured,
)
from adabatch.train.build import check, check_values
from adabatch.train.rules import finds_limit, make_ladder
from adabatch.train.stop import stop_on_signals

PATIENCE = 0.5  # seconds between two looks at what others are working on
ARCHIVE_SECONDS = 30.0  # between two times that the trials are written


def widened(bench: Bench, generations: list[Task]) -> Task | None:
  """A search of a wider space, if the best point lies near an edge of this one.

  The last of several generations is of the widest space.
  """
  task = generations[-1]
  if len(generations) > task.config.search.widen:
    return None
  found = bench.read_all(generations)
  best = best_trial(found, make_goal(task.config))
  edges = [] if best is None else near_edges(task.space, best.parameters)
  space = dict(task.space)
  for key, side in edges:
    space[key] = allowed(task.config, key, space[key].widened(side), space[key])
  if space == task.space:
    return None
  # A larger budget finds another edge, and searches anew beyond it.
  trials = len(found.trials)
  name = f'{generations[0].name}/widened-{len(generations)}-after-{trials}'
  say(
    f'{name}: the best point is near '
    + ', '.join(f'the {side} end of {key}' for key, side in edges)
  )
  return Task(name, task.config, space, first=trials)


def allowed(
  config: Config, key: str, wider: Parameter, now: Parameter
) -> Parameter:
  """The wider range, if both its ends are values that the key may have."""
  try:
    for value in wider.values:
      check_numbers(trial_config(config, 1, {key: value}), parse_count)
  except ConfigError:
    return now
  return wider


def work(bench: Bench, tasks: Sequence[Task]) -> Iterator[tuple[int, Search]]:
  """Takes part in searches until all of them are done.

  Yields:
    After each piece of work, and when it is done, the index of a search and
    what it has found so far.

  Raises:
    Stopped: if the worker was asked to stop.
  """
  unfinished = {i: [task] for i, task in enumerate(tasks)}
  while unfinished:
    busy = False
    for i, generations in list(unfinished.items()):
      while bench.advance(generations[-1]):
        busy = True
        yield i, bench.read_all(generations)
      state = bench.survey(generations[-1])
      if state.free or state.running:
        continue  # others are at work on the last of it
      wider = widened(bench, generations)
      if wider is None:
        del unfinished[i]
        bench.forget(generations)
        yield i, bench.read_all(generations)
      else:
        generations.append(wider)
        busy = True
    if unfinished and not busy and bench.stop.wait(PATIENCE):
      raise Stopped


class Progress:
  """What a person sees: a bar on a terminal, else a line now and then."""

  def __init__(self, wanted: int, seconds_between_lines: float = 10.0):
    self._bar = (
      tqdm(total=wanted, unit='trial', dynamic_ncols=True)
      if sys.stderr.isatty()
      else None
    )
    self._wanted, self._between = wanted, seconds_between_lines
    self._last = time.monotonic()

  def show(self, searches: Iterable[Search]) -> None:
    """Trials that did not diverge count."""
    trials = [trial for search in searches for trial in search.trials]
    done = sum(trial.status == COMPLETE for trial in trials)
    if self._bar is not None:
      self._bar.set_postfix_str(f'{len(trials) - done} diverged', refresh=False)
      self._bar.update(done - self._bar.n)
    elif time.monotonic() - self._last >= self._between:
      self._last = time.monotonic()
      say(
        f'{done} of {self._wanted} trials, {len(trials) - done} more diverged'
      )

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


def run_job(
  job: str,
  config: Config,
  workdir: str | os.PathLike[str],
  make_tasks: Callable[[Config], list[Task]],
  conclude: Callable[[Goal, Sequence[Search]], dict[str, Any]],
  *,
  devices: Sequence[Any] | None = None,
  splits: tuple[data.Split, data.Split] | None = None,
  stop: threading.Event | None = None,
) -> dict[str, Any]:
  """Runs searches to their end, or goes on with them; returns the summary.

  Args:
    job: `search` or `study`.
    config: the whole config.
    workdir: directory of the job; made if it does not exist.
    make_tasks: config -> the searches.
    conclude: (goal, what was found) -> more for the summary.
    devices: devices to use; None for all.
    splits: training and evaluation split of the caller's own arrays.
    stop: set it to stop cleanly, as SIGTERM does.

  Raises:
    ConfigError: for a config or a storage that cannot be used.
    data.DatasetError: for a data set that is not there.
  """
  begin = time.monotonic()
  check_values(config)
  if config.compilation_cache:
    use_persistent_cache()
  if jax.process_count() > 1:
    raise ConfigError(
      f'a {job} is shared by workers that do not know one another: start them '
      'without --distributed, with one --workdir or search.storage for all'
    )
  tasks = make_tasks(config)
  count = len(jax.devices() if devices is None else devices)
  check_tasks(tasks, count)
  path = pathlib.Path(workdir).absolute()
  check_directory(path, job, config)
  stop = stop or threading.Event()
  bench = Bench(config, path, devices=devices, splits=splits, stop=stop)
  # Before anything is written: a set that is not there ends it here.
  parts = bench.parts(tasks[0])
  examples = parts.extent.epoch
  goal = make_goal(config, parts.recipe.inputs.train.num_classes)
  for task in tasks:
    make_ladder(task.config, count, examples)  # of sizes above the set
  with failing(path):
    bench.open(tasks)
    (path / 'trials').mkdir(exist_ok=True)
    with locked(path / 'workers' / 'files.lock'):
      write_json(path / 'config.json', config.to_dict())
  try:
    with stop_on_signals(stop), failing(path):
      status, searches = searched(bench, tasks, path)
  finally:
    bench.close()
  summary = {
    'job': job,
    'status': status,
    'metric': goal.metric,
    'goal': goal.value,
    'higher_is_better': False,
    'trials': count_trials(searches),
    'train_examples': examples,
    'seconds': time.monotonic() - begin,  # of this worker, since its start
    **conclude(goal, searches),
  }
  with failing(path), locked(path / 'workers' / 'files.lock'):
    write_signed(path / 'summary.json', summary)
  return summary


def check_tasks(tasks: Iterable[Task], devices: int) -> None:
  """Refuses searches whose configs, or ends of whose spaces, cannot be run."""
  for task in tasks:
    if finds_limit(task.config):
      raise ConfigError(
        "buckets.max_per_device='auto' is for a single run, and would be "
        'looked for in every trial: give a number'
      )
    if (most := task.config.buckets.grow_to) is not None:
      raise ConfigError(
        f'buckets.grow_to={most} is for a single run, and trials would not be '
        'started again: leave it out'
      )
    check(task.config, devices)
    for end in (0.0, 1.0):
      ends = {key: p.at(end) for key, p in task.space.items()}
      with refusing('search.space'):
        check(trial_config(task.config, 1, ends), devices)


def searched(
  bench: Bench, tasks: Sequence[Task], path: pathlib.Path
) -> tuple[str, list[Search]]:
  """Takes part until the end, or until it is asked to stop; keeps the trials.

  Returns:
    The status, and what was found by everybody so far.
  """
  status = 'completed'
  progress = Progress(sum(task.config.search.trials for task in tasks))
  found: dict[int, Search] = {}
  changed: set[int] = set()
  written = time.monotonic()
  try:
    for i, one in work(bench, tasks):
      found[i] = one
      changed.add(i)
      progress.show(found.values())
      if time.monotonic() - written > ARCHIVE_SECONDS:
        written = time.monotonic()
        write_archive(path, [found[i] for i in changed])
        changed.clear()
  except Stopped:
    status = 'preempted'
  finally:
    progress.close()
  write_archive(path, [found[i] for i in changed])
  return status, [
    found[i] if i in found else bench.read(task) for i, task in enumerate(tasks)
  ]


def check_directory(path: pathlib.Path, job: str, config: Config) -> None:
  """Refuses a directory of something else."""
  if (path / 'metrics.jsonl').exists():
    raise ConfigError(f'{path} holds a training run: choose another --workdir')
  before = (read_signed(path / 'summary.json') or {}).get('job', job)
  if before != job:
    raise ConfigError(f'{path} holds a {before}: choose another --workdir')
  old = read_json(path / 'config.json')
  if old:
    refuse_another(str(path), identity(ConfigDict(old)), identity(config))


def write_archive(path: pathlib.Path, searches: Iterable[Search]) -> None:
  """All trials that have ended, in the published form."""
  with locked(path / 'workers' / 'files.lock'):
    for search in searches:
      if search.trials:
        write_search(path / 'trials', search, replace=True)


@contextlib.contextmanager
def failing(path: pathlib.Path) -> Iterator[None]:
  """Says in one line what cannot be read or written."""
  try:
    yield
  except (OptunaError, SQLAlchemyError) as error:
    reason = ' '.join(str(error).split())
    raise ConfigError(
      f'the storage of the trials failed ({reason}): what has ended is kept, '
      'start the command again'
    ) from error
  except OSError as error:
    raise ConfigError(
      f'cannot use {error.filename or path} ({error.strerror}): make room or '
      'choose another --workdir'
    ) from error


def count_trials(searches: Sequence[Search]) -> dict[str, int]:
  """Trials by their status, and how many complete ones were not evaluated."""
  counts = Counter(t.status for search in searches for t in search.trials)
  found = {status.lower(): counts[status] for status in (COMPLETE, INFEASIBLE)}
  return found | {'unmeasured': unmeasured(searches)}


def conclude_search(goal: Goal, searches: Sequence[Search]) -> dict[str, Any]:
  """The best trial of a search."""
  (found,) = searches
  best = best_trial(found, goal)
  if best is None:
    return {'best': None}
  steps = None
  if goal.value is not None:
    steps = first_below(best, goal.metric, goal.value)
  return {
    'best': {
      'trial': best.number,
      'steps': steps,
      'value': objective(best, Goal(goal.metric, None), 1),
      'parameters': best.parameters,
      'edges': near_edges(found.space, best.parameters),
    }
  }


def search(
  config: Config, workdir: str | os.PathLike[str], **options: Any
) -> dict[str, Any]:
  """Searches the metaparameters of one config; see `run_job`."""

  def make_tasks(config: Config) -> list[Task]:
    check_search(config)
    if config.smoke:
      config = shrink_search(config)
    c = config.controller
    rule = '' if c.name == 'constant' else f'{c.name}-'
    name = task_name(config, f'{rule}{c.initial_batch_size}')
    return [Task(name, config, search_space(config))]

  return run_job(
    'search', config, workdir, make_tasks, conclude_search, **options
  )


def task_name(config: Config, last: str) -> str:
  """What a search is called in the storage.

  >>> from adabatch.config import default
  >>> task_name(default(), '64')
  'digits/mlp/momentum/64'
  """
  data = config.data.name.replace('/', '-')  # it names a directory
  names = data, config.model.name, config.optimizer.name, last
  return '/'.join(names)


def shrink_search(config: Config) -> Config:
  """A short try: at most two trials at two batch sizes, a few updates each."""
  small = shrink(config)
  with small.ignore_type():
    small.update_from_flattened_dict(
      {
        'controller.name': 'constant',
        'controller.max_batch_size': 4,
        'target.value': config.target.value,
        'search.trials': min(2, config.search.trials),
        'search.members': 2,
        'search.updates_per_call': 1,
        'study.batch_sizes': (4, 8)[: len(config.study.batch_sizes)],
      }
    )
  return small
