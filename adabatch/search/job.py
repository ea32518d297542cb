"""The search itself: take points, train them, until enough have not diverged.

Any number of processes may do this with one storage. Point 0, 1, 2, ... of a
search are taken in this order, as many as can still be needed; what counts in
the end are the first ones of which so many as wanted did not diverge, each cut
to what it would have needed if they had run one after the other. So the result
depends neither on the number of workers nor on who died.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from adabatch import config as config_lib
from adabatch import data, metrics
from adabatch.config import Config, ConfigError, refusing
from adabatch.experiment import Experiment, build, check
from adabatch.inputs import TextCache
from adabatch.search import archive, modes, population
from adabatch.search.population import Member, Mode, Outcome, Population
from adabatch.search.space import near_edges, points
from adabatch.search.storage import Claim, Entry, Ledger, Worker, open_storage
from adabatch.search.trials import (
  COMPLETE,
  INFEASIBLE,
  Search,
  Trial,
  first_below,
  judge,
)
from adabatch.search.workload import (
  Goal,
  at_batch_size,
  check_search,
  columns,
  identity,
  make_goal,
  search_space,
  trial_config,
)
from adabatch.smoke import shrink
from adabatch.step_cache import use_persistent_cache
from adabatch.stop import stop_on_signals
from adabatch.train import train
from adabatch.workdir import write_json

PATIENCE = 0.5  # seconds between two looks at what others are working on
SHOWN = 12  # points of a trial's curve on Optuna's dashboard
ARCHIVE_SECONDS = 30.0  # between two times that the trials are written
ATTEMPTS = 5  # trials for each one that is wanted, if none is to diverge


class Stopped(Exception):
  """The worker was asked to stop."""


def as_trial(entry: Entry, offset: int = 0) -> Trial:
  """A point that has ended."""
  assert entry.result is not None
  return Trial(
    number=offset + entry.point + 1,
    parameters=entry.parameters,
    status=entry.result['status'],
    steps=entry.result['steps'],
    measurements={
      name: np.asarray(values, np.int64 if name == 'step' else np.float64)
      for name, values in entry.result['columns'].items()
    },
  )


def ended(entries: Mapping[int, Entry]) -> list[Trial]:
  """The trials of all points that have ended, by number."""
  done = [entry for entry in entries.values() if entry.result is not None]
  return [as_trial(entry) for entry in sorted(done, key=lambda e: e.point)]


class State(NamedTuple):
  """How far a search is.

  Attributes:
    counted: trials that count, judged, in the order of their numbers.
    free: points to be taken next.
    running: how many of the points that are needed others are working on.
  """

  counted: list[Trial]
  free: list[int]
  running: int


def survey(
  entries: Mapping[int, Entry], goal: Goal | None, wanted: int, most: int
) -> State:
  """What is done and what is to be done, by the points in their order.

  Args:
    entries: by point.
    goal: that cuts later trials; None: none does.
    wanted: trials that do not diverge.
    most: points there are.
  """
  value = None if goal is None else goal.value
  judged = {
    trial.number - 1: trial
    for trial in judge(ended(entries), goal and goal.metric, value)
  }
  state = State([], [], 0)
  left = wanted
  for point in range(most):
    if left == 0:
      break
    if point in judged:
      state.counted.append(judged[point])
      left -= judged[point].status == COMPLETE
      continue
    left -= 1
    if point in entries:
      state = state._replace(running=state.running + 1)
    else:
      state.free.append(point)
  return state


@dataclasses.dataclass
class Task:
  """One search: a workload at one batch size, in one space.

  Attributes:
    name: in the storage.
    config: of all its trials.
    space: what is searched.
    first: number of its first trial, less 1; not 0 in a widened space.
  """

  name: str
  config: Config
  space: dict[str, Any]
  first: int = 0


class Bench:
  """A worker's place: the storage, the data on the devices, the programs."""

  def __init__(
    self,
    config: Config,
    workdir: pathlib.Path,
    *,
    devices: Sequence[Any] | None,
    splits: tuple[data.Split, data.Split] | None,
    stop: threading.Event,
  ):
    self.workdir, self.stop = workdir, stop
    self._devices, self._splits = devices, splits
    self._storage = open_storage(config.search.storage, workdir)
    self._worker = Worker(workdir, config.search.grace)
    self._cache = TextCache(self._text_directory, jax.process_index() == 0)
    self._arrays: tuple[Any, Any] | None = None
    self._experiments: dict[str, Experiment] = {}
    self._modes: dict[Any, Mode] = {}
    self._populations: dict[str, Population | None] = {}
    self._ledgers: dict[str, Ledger] = {}

  def _text_directory(self, writer: bool) -> pathlib.Path:
    path = self.workdir / 'text'
    if writer:
      path.mkdir(exist_ok=True)
    return path

  def experiment(self, task: Task) -> Experiment:
    """The parts of a search's trials; the data are read once."""
    if task.name not in self._experiments:
      # Of several workers one turns a text into tokens.
      with locked(self.workdir / 'workers' / 'data.lock'):
        found = build(task.config, self._devices, self._splits, self._cache)
      self._experiments[task.name] = found
      ours = found.inputs.train, found.inputs.evaluation
      if all(isinstance(split, data.Split) for split in ours):
        self._splits = ours
    return self._experiments[task.name]

  def ledger(self, task: Task) -> Ledger:
    """The points of a search in the storage.

    Raises:
      ConfigError: if they belong to another config.
    """
    if task.name not in self._ledgers:
      ledger = Ledger(self._storage, task.name, task.space, self._worker)
      mine = identity(task.config)
      theirs = ledger.study.user_attrs.get('config')
      if theirs is None:
        ledger.study.set_user_attr('config', mine)
      elif keys := config_lib.differences(theirs, mine):
        shown = ', '.join(
          f'{k} ({theirs.get(k)!r} there, {mine.get(k)!r} here)'
          for k in keys[:3]
        )
        raise ConfigError(
          f'the storage holds {task.name} with another config: {shown}; choose '
          'another --workdir or search.storage'
        )
      self._ledgers[task.name] = ledger
    return self._ledgers[task.name]

  def population(self, task: Task) -> Population | None:
    """The programs of a search; None if its trials are runs of their own."""
    if task.name not in self._populations:
      experiment = self.experiment(task)
      keys = list(task.space)
      found = None
      if population.why_not(task.config, experiment, keys) is None:
        if self._arrays is None:
          self._arrays = population.place_splits(experiment)
        found = Population(task.config, experiment, keys, self._arrays)
      self._populations[task.name] = found
    return self._populations[task.name]

  def mode(self, task: Task, programs: Population) -> Mode:
    """How a search's trials are run: as configured, or by measuring."""
    s = task.config.search
    # Momentum costs next to nothing, so optimizers share what was measured.
    key = programs.plan.batch_size, programs.total_updates
    if key not in self._modes:
      found = modes.candidates(
        programs, s.most_members, (s.members, s.updates_per_call)
      )
      if len(found) > 1:
        middle = tuple(p.at(0.5) for p in task.space.values())
        members = [Member(task.config.seed, middle)]
        measured = modes.seconds_per_update(programs, members, found)
        best = modes.choose(measured)
        say(
          f'{task.name}: {best.members} trial(s) at once on a device, '
          f'{best.updates_per_call} update(s) a call '
          f'({1e6 * measured[best]:,.0f} us an update; '
          + ', '.join(
            f'{m.members} x {m.updates_per_call}: {1e6 * t:,.0f}'
            for m, t in measured.items()
            if m != best
          )
          + ')'
        )
        found = [best]
      self._modes[key] = found[0]
    return self._modes[key]

  def points(self, task: Task, numbers: Sequence[int]) -> list[dict]:
    """The parameters of some points that nobody has taken yet."""
    s, seed = task.config.search, task.config.seed
    if s.sampler == 'tpe':
      ledger = self.ledger(task)
      return [ledger.suggest(task.first + n, seed) for n in numbers]
    # A widened space is sampled anew.
    known = points(task.space, s.sampler, seed + task.first, max(numbers) + 1)
    return [known[n] for n in numbers]

  def advance(self, task: Task) -> bool:
    """Takes some points of a search and trains them.

    Returns:
      Whether there was something to do.

    Raises:
      Stopped: if the worker was asked to stop meanwhile.
    """
    ledger = self.ledger(task)
    ledger.bury()
    state = self.survey(task)
    if not state.free:
      return False
    if self.stop.is_set():
      raise Stopped
    programs = self.population(task)
    mode = Mode(1, 1) if programs is None else self.mode(task, programs)
    devices = 1 if programs is None else programs.devices
    some = state.free[: mode.members * devices]
    with ledger.working():
      claims = [
        claim
        for point, parameters in zip(some, self.points(task, some), strict=True)
        if (claim := ledger.take(point, parameters)) is not None
      ]
      left = {claim.point: claim for claim in claims}
      try:
        if claims and programs is None:
          results = self._train(task, claims[0])
        elif claims and programs is not None:
          results = self._train_population(task, claims, programs, mode)
        else:
          results = iter(())
        for claim, result in results:
          del left[claim.point]
          self._record(task, claim, result)
      finally:
        for claim in left.values():
          ledger.release(claim)
    if left and self.stop.is_set():
      raise Stopped
    return True

  def _record(self, task: Task, claim: Claim, result: dict[str, Any]) -> None:
    goal = make_goal(task.config)
    trial = as_trial(Entry(claim.point, claim.parameters, result))
    curve = trial.measurements[goal.metric]
    steps = trial.measurements['step']
    shown = np.unique(np.linspace(0, len(steps) - 1, SHOWN).astype(int))
    value = None
    if trial.status != INFEASIBLE:
      value = objective(trial, goal, self.total_updates(task))
    recorded = self.ledger(task).finish(
      claim,
      result,
      value,
      {int(steps[i]): float(curve[i]) for i in shown if len(steps)},
    )
    if not recorded:
      say(f'{task.name}: trial {claim.point + 1} was given to another worker')

  def total_updates(self, task: Task) -> int:
    """Updates of a trial that nothing ends earlier."""
    e, c = self.experiment(task), task.config
    updates = -(-e.total_examples // c.controller.initial_batch_size)
    return updates if c.max_updates is None else min(updates, c.max_updates)

  def _limit(self, task: Task, point: int) -> int | None:
    """Updates after which a point need not go on, because an earlier one had
    reached the goal by then."""
    goal = make_goal(task.config)
    if goal.value is None or not task.config.search.early_stopping:
      return None
    before = [
      t for t in ended(self.ledger(task).entries()) if t.number <= point
    ]
    reached = [first_below(t, goal.metric, goal.value) for t in before]
    return min((steps for steps in reached if steps is not None), default=None)

  def _train_population(
    self, task: Task, claims: list[Claim], programs: Population, mode: Mode
  ) -> Iterator[tuple[Claim, dict[str, Any]]]:
    goal = make_goal(task.config)
    seed = task.config.seed + task.first + 1
    members = [
      Member(seed + claim.point, tuple(claim.parameters.values()))
      for claim in claims
    ]
    before = [self._limit(task, claim.point) for claim in claims]
    reached: dict[int, int] = {}

    def limit(i: int, known: Mapping[int, Outcome]) -> int | None:
      if goal.value is None or not task.config.search.early_stopping:
        return None
      for j, outcome in known.items():
        if j not in reached and outcome.evaluations:
          newest = outcome.evaluations[-1]
          if columns(newest.metrics)[goal.metric] < goal.value:
            reached[j] = newest.update
      steps = [reached[j] for j in reached if j <= i]
      if (earlier := before[i]) is not None:
        steps.append(earlier)
      return min(steps, default=None)

    for i, outcome in programs.run(
      members, mode, limit=limit, stop=self.stop.is_set
    ):
      yield claims[i], _result(outcome)

  def _train(
    self, task: Task, claim: Claim
  ) -> Iterator[tuple[Claim, dict[str, Any]]]:
    number = task.first + claim.point + 1
    config = trial_config(task.config, number, claim.parameters)
    directory = self.workdir / 'runs' / task.name / str(number)
    summary = train(
      config,
      directory,
      devices=self._devices,
      splits=self._splits,
      stop=self.stop,
      cache=self._cache,
      last_update=self._limit(task, claim.point),
    )
    if summary['status'] == 'preempted':
      return
    lines = (directory / 'metrics.jsonl').read_text().splitlines()
    records = [json.loads(line) for line in lines]
    evaluations = tuple(
      population.Evaluation(
        record['update'], record['examples'], record['seconds'], record
      )
      for record in records
      if record['kind'] == 'eval'
    )
    diverged = summary['status'] == 'diverged'
    updates = summary['diverged_update'] if diverged else summary['updates']
    yield claim, _result(Outcome(updates, diverged, evaluations))
    # The curve is kept; a trial is not gone on with.
    shutil.rmtree(directory / 'checkpoints', ignore_errors=True)

  # Of a whole search.

  def survey(self, task: Task) -> State:
    """How far a search is."""
    s = task.config.search
    goal = make_goal(task.config) if s.early_stopping else None
    most = s.max_trials or ATTEMPTS * s.trials
    return survey(self.ledger(task).entries(), goal, s.trials, most)

  def read(self, task: Task) -> Search:
    """What a search has found so far."""
    config, goal = task.config, make_goal(task.config)
    counted = self.survey(task).counted
    return Search(
      dataset=config.data.name,
      model=config.model.name,
      optimizer=config.optimizer.name,
      batch_size=config.controller.initial_batch_size,
      space=task.space,
      train_steps=self.total_updates(task),
      early_stopping=config.search.early_stopping and goal.value is not None,
      trials=[t._replace(number=task.first + t.number) for t in counted],
    )

  def read_all(self, generations: Sequence[Task]) -> Search:
    """The same of a search whose space was widened, with the widest space."""
    found = [self.read(task) for task in generations]
    trials = [trial for search in found for trial in search.trials]
    return found[-1]._replace(trials=trials)

  def forget(self, generations: Sequence[Task]) -> None:
    """Frees the programs of a search that is done."""
    for task in generations:
      self._populations.pop(task.name, None)

  def close(self) -> None:
    self._worker.close()


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
    space[key] = space[key].widened(side)
  if space == task.space:
    return None
  name = f'{generations[0].name}/widened-{len(generations)}'
  say(
    f'{name}: the best point is near '
    + ', '.join(f'the {side} end of {key}' for key, side in edges)
  )
  return Task(name, task.config, space, first=len(found.trials))


def best_trial(search: Search, goal: Goal) -> Trial | None:
  """The trial that reached the goal first, or came nearest to it."""
  complete = [t for t in search.trials if t.status == COMPLETE]
  return min(
    complete,
    key=lambda t: objective(t, goal, search.train_steps),
    default=None,
  )


def work(bench: Bench, tasks: Sequence[Task]) -> Iterator[list[list[Task]]]:
  """Takes part in searches until all of them are done.

  Yields:
    After each piece of work, the generations of every search.

  Raises:
    Stopped: if the worker was asked to stop.
  """
  lines = [[task] for task in tasks]
  unfinished = list(lines)
  while unfinished:
    busy = False
    for generations in list(unfinished):
      while bench.advance(generations[-1]):
        busy = True
        yield lines
      state = bench.survey(generations[-1])
      if state.free or state.running:
        continue  # others are at work on the last of it
      wider = widened(bench, generations)
      if wider is None:
        unfinished.remove(generations)
        bench.forget(generations)
      else:
        generations.append(wider)
        busy = True
    if unfinished and not busy and bench.stop.wait(PATIENCE):
      raise Stopped
  yield lines


def objective(trial: Trial, goal: Goal, total: int) -> float:
  """What a sampler minimises: updates to the goal, else how far it is away.

      s                            if the goal was reached in s updates
      total (1 + best - goal)      if it was not
      best                         if there is no goal

  >>> trial = Trial(1, {}, COMPLETE, 9, {'step': np.array([4, 9]),
  ...               'e': np.array([0.5, 0.2])})
  >>> objective(trial, Goal('e', 0.3), 9), objective(trial, Goal('e', 0.1), 9)
  (9.0, 9.9)
  """
  values = trial.measurements[goal.metric]
  best = float(np.min(values[np.isfinite(values)], initial=np.inf))
  best = min(best, 1e6)
  if goal.value is None:
    return best
  reached = first_below(trial, goal.metric, goal.value)
  return float(total * (1 + best - goal.value)) if reached is None else reached


def _result(outcome: Outcome) -> dict[str, Any]:
  evaluations = outcome.evaluations
  rows = [columns(evaluation.metrics) for evaluation in evaluations]
  names = columns({'loss': 0.0, 'accuracy': 0.0})
  return {
    'status': INFEASIBLE if outcome.diverged else COMPLETE,
    'steps': outcome.updates,
    'columns': {
      'step': [e.update for e in evaluations],
      'examples': [e.examples for e in evaluations],
      'seconds': [round(e.seconds, 6) for e in evaluations],
      **{name: [float(row[name]) for row in rows] for name in names},
    },
  }


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
  """One process at a time."""
  file = os.open(path, os.O_CREAT | os.O_RDWR)
  try:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
  finally:
    os.close(file)


def say(message: str) -> None:
  """A line on standard error."""
  print(message, file=sys.stderr, flush=True)


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

  def show(self, searches: Sequence[Search]) -> None:
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
    devices: devices to use; None for all.
    splits: training and evaluation split of the caller's own arrays.
    stop: set it to stop cleanly, as SIGTERM does.

  Raises:
    ConfigError: for a config or a storage that cannot be used.
    data.DatasetError: for a data set that is not there.
  """
  begin = time.monotonic()
  if config.compilation_cache:
    use_persistent_cache()
  tasks = make_tasks(config)
  count = len(jax.devices() if devices is None else devices)
  for task in tasks:
    check(task.config, count)
    for end in (0.0, 1.0):
      ends = {key: p.at(end) for key, p in task.space.items()}
      with refusing('search.space'):
        check(trial_config(task.config, 1, ends), count)
  path = make_directory(workdir, config)
  stop = stop or threading.Event()
  bench = Bench(config, path, devices=devices, splits=splits, stop=stop)
  goal = make_goal(config)
  progress = Progress(len(tasks) * config.search.trials)
  lines, status = [[task] for task in tasks], 'completed'
  written = time.monotonic()
  try:
    with stop_on_signals(stop):
      try:
        for lines in work(bench, tasks):
          searches = [bench.read_all(line) for line in lines]
          progress.show(searches)
          if time.monotonic() - written > ARCHIVE_SECONDS:
            written = time.monotonic()
            write_archive(path, searches)
      except Stopped:
        status = 'preempted'
    searches = [bench.read_all(line) for line in lines]
  finally:
    progress.close()
    bench.close()
  write_archive(path, searches)
  summary = summarize_job(job, status, goal, searches)
  summary['seconds'] = time.monotonic() - begin
  write_json(path / 'summary.json', metrics.finite(summary))
  return summary


def write_archive(path: pathlib.Path, searches: Sequence[Search]) -> None:
  """All trials that have ended, in the published form."""
  with locked(path / 'workers' / 'archive.lock'):
    for search in searches:
      if search.trials:
        archive.write_search(path / 'trials', search)


def make_directory(
  workdir: str | os.PathLike[str], config: Config
) -> pathlib.Path:
  """The job's directory, with its config.

  Raises:
    ConfigError: if it holds something else, or cannot be written.
  """
  path = pathlib.Path(workdir).absolute()
  if (path / 'metrics.jsonl').exists():
    raise ConfigError(f'{path} holds a training run: choose another --workdir')
  try:
    path.mkdir(parents=True, exist_ok=True)
    (path / 'workers').mkdir(exist_ok=True)
    write_json(path / 'config.json', config.to_dict())
  except OSError as error:
    raise ConfigError(
      f'cannot write to workdir {path} ({error.strerror}): choose another '
      '--workdir'
    ) from None
  return path


def summarize_job(
  job: str, status: str, goal: Goal, searches: Sequence[Search]
) -> dict[str, Any]:
  """What `summary.json` holds of a search or a study."""
  counts = Counter(t.status for search in searches for t in search.trials)
  summary = {
    'job': job,
    'status': status,
    'metric': goal.metric,
    'goal': goal.value,
    'higher_is_better': False,
    'trials': {s.lower(): counts[s] for s in (COMPLETE, INFEASIBLE)},
  }
  best = [
    (objective(trial, goal, search.train_steps), trial, search)
    for search in searches
    if (trial := best_trial(search, goal)) is not None
  ]
  summary['best'] = [
    {
      'optimizer': search.optimizer,
      'batch_size': search.batch_size,
      'trial': trial.number,
      'steps': (
        None
        if goal.value is None
        else first_below(trial, goal.metric, goal.value)
      ),
      'value': objective(trial, Goal(goal.metric, None), 1),
      'parameters': trial.parameters,
    }
    for _, trial, search in best
  ]
  return summary


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

  return run_job('search', config, workdir, make_tasks, **options)


def study(
  config: Config, workdir: str | os.PathLike[str], **options: Any
) -> dict[str, Any]:
  """Searches anew at each batch size and for each optimizer; see `run_job`."""

  def make_tasks(config: Config) -> list[Task]:
    check_search(config)
    if make_goal(config).value is None:
      raise ConfigError('a study needs a goal: set target.value')
    s = config.study
    for key, values in (
      ('batch_sizes', s.batch_sizes),
      ('optimizers', s.optimizers),
    ):
      if not values or len(set(values)) < len(values):
        raise ConfigError(
          f'study.{key}={tuple(values)}: give at least one, and each once'
        )
    if config.smoke:
      config = shrink_search(config)
    tasks = []
    for optimizer in config.study.optimizers:
      for batch_size in config.study.batch_sizes:
        one = at_batch_size(config, optimizer, batch_size)
        name = task_name(one, str(batch_size))
        tasks.append(Task(name, one, search_space(one)))
    return tasks

  return run_job('study', config, workdir, make_tasks, **options)


def task_name(config: Config, last: str) -> str:
  """What a search is called in the storage.

  >>> task_name(config_lib.default(), '64')
  'digits/mlp/momentum/64'
  """
  names = config.data.name, config.model.name, config.optimizer.name, last
  return '/'.join(names)


def shrink_search(config: Config) -> Config:
  """A short try: two trials at two batch sizes, a few updates each."""
  small = shrink(config)
  with small.ignore_type():
    small.update_from_flattened_dict(
      {
        'controller.name': 'constant',
        'controller.max_batch_size': 4,
        'target.value': config.target.value,
        'search.trials': 2,
        'search.members': 2,
        'search.updates_per_call': 1,
        'study.batch_sizes': (4, 8),
      }
    )
  return small
