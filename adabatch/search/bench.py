"""A worker's place: where it takes points and trains them."""

import contextlib
import dataclasses
import json
import math
import pathlib
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adabatch import data
from adabatch.config import Config, ConfigError
from adabatch.config.files import writing
from adabatch.devices.population import Member, Population, place_splits
from adabatch.search import modes, population
from adabatch.search.population import Mode, Outcome
from adabatch.search.storage import (
  Claim,
  Entry,
  Ledger,
  Worker,
  locked,
  open_storage,
)
from adabatch.search.survey import (
  State,
  as_trial,
  ended,
  limits,
  objective,
  survey,
)
from adabatch.search.workload import (
  identity,
  make_goal,
  refuse_another,
  trial_config,
  trial_seed,
)
from adabatch.study.space import points
from adabatch.study.trials import COMPLETE, INFEASIBLE, Search, columns
from adabatch.train import train
from adabatch.train.build import Parts, build
from adabatch.train.open_splits import TextCache

SHOWN = 12  # points of a trial's curve on Optuna's dashboard
ATTEMPTS = 5  # trials for each one that is wanted, if none is to diverge


class Stopped(Exception):
  """The worker was asked to stop."""


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
    self._config = config
    self._worker: Worker | None = None
    self._reading = contextlib.ExitStack()
    self._cache = TextCache(self._text_directory, writer=True)
    self._arrays: tuple[Any, Any] | None = None
    self._parts: dict[str, Parts] = {}
    self._modes: dict[Any, Mode] = {}
    self._populations: dict[str, Population | None] = {}
    self._ledgers: dict[str, Ledger] = {}

  def open(self, tasks: Sequence[Task]) -> None:
    """Opens the storage, where all of the searches are.

    Raises:
      ConfigError: if it cannot be opened, or holds them with another config.
    """
    self.workdir.mkdir(parents=True, exist_ok=True)
    try:
      self._storage = open_storage(self._config.search.storage, self.workdir)
    except ConfigError:
      with contextlib.suppress(OSError):  # unless something is in it
        self.workdir.rmdir()
      raise
    self._worker = Worker(self.workdir, self._config.search.grace)
    try:
      for task in tasks:
        self.ledger(task)
    except ConfigError:
      self.close()
      raise

  def _text_directory(self, writer: bool) -> pathlib.Path:
    path = self.workdir / 'text'
    if writer:
      with writing(path):
        path.mkdir(parents=True, exist_ok=True)
      # Of several workers one turns the text into tokens.
      self._reading.enter_context(locked(path / 'lock'))
    return path

  def parts(self, task: Task) -> Parts:
    """The parts of a search's trials; the data are read once."""
    if task.name not in self._parts:
      with self._reading:
        found = build(task.config, self._devices, self._splits, self._cache)
      self._parts[task.name] = found
      inputs = found.recipe.inputs
      ours = inputs.train, inputs.evaluation
      if all(isinstance(split, data.Split) for split in ours):
        self._splits = ours
    return self._parts[task.name]

  def ledger(self, task: Task) -> Ledger:
    """The points of a search in the storage.

    Raises:
      ConfigError: if they belong to another config.
    """
    if task.name not in self._ledgers:
      assert self._worker is not None, 'open() makes it'
      ledger = Ledger(self._storage, task.name, task.space, self._worker)
      mine = identity(task.config)
      theirs = ledger.study.user_attrs.get('config')
      if theirs is None:
        ledger.study.set_user_attr('config', mine)
      refuse_another(f'{task.name} in the storage', theirs or mine, mine)
      self._ledgers[task.name] = ledger
    return self._ledgers[task.name]

  def population(self, task: Task) -> Population | None:
    """The programs of a search; None if its trials are runs of their own."""
    if task.name not in self._populations:
      parts, keys = self.parts(task), list(task.space)
      found = None
      if population.why_not(parts, keys) is None:
        if self._arrays is None:
          self._arrays = place_splits(parts.recipe)
        found = population.make_population(parts, keys, self._arrays)
      self._populations[task.name] = found
    return self._populations[task.name]

  def mode(self, task: Task, programs: Population) -> Mode:
    """How a search's trials are run: as configured, or by measuring."""
    s = task.config.search
    found = modes.candidates(
      programs,
      self.total_updates(task),
      s.most_members,
      (s.members, s.updates_per_call),
    )
    if len(found) == 1:
      return found[0]
    # Kept by the storage, because programs for one trial and for several differ
    # in the last bits: a search goes on as it began, whoever measures what.
    study = self.ledger(task).study
    device = (self._devices or jax.devices())[0].device_kind
    name = f'mode on {programs.devices} x {device}'
    kept = Mode(*study.user_attrs.get(name, (0, 0)))
    if kept in found:
      return kept
    # Momentum costs next to nothing, so optimizers share what was measured.
    key = programs.plan.batch_size, self.total_updates(task)
    if key not in self._modes:
      self._modes[key] = _fastest(task, programs, found)
    study.set_user_attr(name, list(self._modes[key]))
    return self._modes[key]

  def points(self, task: Task, numbers: Sequence[int]) -> list[dict]:
    """The parameters of some points that nobody has taken yet."""
    s, seed = task.config.search, task.config.seed
    if s.sampler == 'tpe':
      ledger = self.ledger(task)
      begun = ledger.begun()  # goes on as it began, whatever is known by now
      return [
        begun[n] if n in begun else ledger.suggest(task.first + n, seed)
        for n in numbers
      ]
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
    return self.parts(task).length.updates

  def _higher_is_better(self, task: Task) -> dict[str, bool]:
    return self.parts(task).recipe.task.higher_is_better

  def _limits(self, task: Task, some: Sequence[int]) -> list[int | None]:
    """Updates after which points need not go on, because an earlier one had
    reached the goal by then."""
    goal = make_goal(task.config)
    if goal.value is None or not task.config.search.early_stopping:
      return [None for _ in some]
    return limits(ended(self.ledger(task).entries()), goal, some)

  def _train_population(
    self, task: Task, claims: list[Claim], programs: Population, mode: Mode
  ) -> Iterator[tuple[Claim, dict[str, Any]]]:
    goal = make_goal(task.config)
    better = self._higher_is_better(task)
    members = [
      Member(
        trial_seed(task.config, task.first + c.point + 1),
        tuple(c.parameters[key] for key in task.space),
      )
      for c in claims
    ]
    before = self._limits(task, [claim.point for claim in claims])
    reached: dict[int, int] = {}

    def limit(i: int, known: Mapping[int, Outcome]) -> int | None:
      if goal.value is None or not task.config.search.early_stopping:
        return None
      for j, outcome in known.items():
        if j not in reached and outcome.evaluations:
          newest = outcome.evaluations[-1]
          if columns(newest.metrics, better)[goal.metric] < goal.value:
            reached[j] = newest.update
      steps = [reached[j] for j in reached if j <= i]
      if (earlier := before[i]) is not None:
        steps.append(earlier)
      return min(steps, default=None)

    for i, outcome in population.run(
      programs,
      self.parts(task),
      members,
      mode,
      limit=limit,
      stop=self.stop.is_set,
    ):
      yield claims[i], _result(outcome, better)

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
      # Its tokens are there since `parts`, so nobody waits for them.
      cache=TextCache(lambda writer: self.workdir / 'text', writer=True),
      last_update=self._limits(task, [claim.point])[0],
      quiet=True,
    )
    if summary['status'] == 'preempted':
      return
    with (directory / 'metrics.jsonl').open() as lines:
      evaluations = tuple(
        population.Evaluation(r['update'], r['examples'], r['seconds'], r)
        for r in map(_finite_or_nan, map(json.loads, lines))
        if r['kind'] == 'eval'
      )
    diverged = summary['status'] == 'diverged'
    updates = summary['diverged_update'] if diverged else summary['updates']
    outcome = Outcome(updates, diverged, evaluations)
    yield claim, _result(outcome, self._higher_is_better(task))
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
      dataset=config.data.name.replace('/', '-'),  # it names a directory
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
    """Other workers see this one gone."""
    if self._worker is not None:
      self._worker.close()


def _fastest(task: Task, programs: Population, found: list[Mode]) -> Mode:
  """By measuring, which it says."""
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
  return best


def _result(outcome: Outcome, better: dict[str, bool]) -> dict[str, Any]:
  evaluations = outcome.evaluations
  rows = [columns(evaluation.metrics, better) for evaluation in evaluations]
  names = columns(dict.fromkeys(better, 0.0), better)
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


def _finite_or_nan(record: dict[str, Any]) -> dict[str, Any]:
  """A line of `metrics.jsonl`, where null stands for what is not finite."""
  return {k: math.nan if v is None else v for k, v in record.items()}


def say(message: str) -> None:
  """A line on standard error."""
  with contextlib.suppress(OSError):  # a terminal that is gone
    print(message, file=sys.stderr, flush=True)
