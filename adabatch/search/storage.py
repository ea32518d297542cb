"""Trials in an Optuna storage, shared by any number of workers.

A *point* is one choice of metaparameters, by its number in a sequence written
down in advance. A worker takes a point by adding a running Optuna trial for it;
of two that were added for the same point the one with the lower number is
valid, and the other worker withdraws. A trial whose worker has died is marked
as failed, which only one worker can do, and its point is free again. So no
point is lost, and none is counted twice, with any storage that numbers its
trials one after the other.
"""

import contextlib
import datetime
import fcntl
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import optuna
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from adabatch.config import ConfigError
from adabatch.study.space import Space

BEATS = 4  # signs of life in the time after which a worker counts as dead
OPENINGS, OPENING_SECONDS = 5, 0.3  # attempts, and the time between two
SQLITE_TIMEOUT = 120.0  # seconds to wait for another worker's transaction


def open_storage(url: str | None, workdir: pathlib.Path) -> BaseStorage:
  """An Optuna storage: SQLite in the directory, or what the URL names.

  Args:
    url: None; a database URL that SQLAlchemy knows; `journal:PATH` for Optuna's
      journal in a file, for file systems on which SQLite does not lock.
    workdir: of the search.

  Raises:
    ConfigError: if it cannot be opened.
  """
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  url = url or _sqlite_url(workdir / 'trials.db')
  kind, _, path = url.partition(':')
  if kind != 'journal' and '://' not in url:
    raise ConfigError(
      f'search.storage={url!r} is no storage: give journal:PATH or a database '
      'URL such as sqlite:///PATH or postgresql://USER@HOST/NAME'
    )
  for attempt in range(OPENINGS):
    try:
      if kind == 'journal':
        return JournalStorage(JournalFileBackend(path))
      arguments = {'timeout': SQLITE_TIMEOUT} if kind == 'sqlite' else {}
      return RDBStorage(url, engine_kwargs={'connect_args': arguments})
    # What is raised depends on the database's own driver.
    except Exception as error:  # noqa: BLE001
      # Another worker that creates the tables at this moment is no obstacle.
      if isinstance(error, DBAPIError) and attempt + 1 < OPENINGS:
        time.sleep(OPENING_SECONDS)
        continue
      reason = ' '.join(str(error).split())
      raise ConfigError(
        f'cannot open search.storage={url!r}: {reason}'
      ) from None
  raise AssertionError('the last attempt returns or raises')


def _sqlite_url(path: pathlib.Path) -> str:
  """A path may hold what means something in a URL.

  >>> _sqlite_url(pathlib.Path('/a?b/c#%.db'))
  'sqlite:////a%3Fb/c%23%25.db'
  """
  url = sqlalchemy.URL.create('sqlite', database=str(path))
  return url.render_as_string()


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
  """One process at a time."""
  file = os.open(path, os.O_CREAT | os.O_RDWR)
  try:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
  finally:
    os.close(file)


class Worker:
  """This process's signs of life.

  A lock on a file tells at once whether a worker on the same file system lives;
  a time that is written now and then tells it for one that is elsewhere.

  Attributes:
    name: unlike any other worker's.
  """

  def __init__(self, workdir: pathlib.Path, grace: float):
    """`grace`: seconds without a sign of life after which one is dead."""
    self.name, self._grace, self._host = uuid.uuid4().hex, grace, _host()
    self._directory = workdir / 'workers'
    self._directory.mkdir(parents=True, exist_ok=True)
    self._path = self._directory / self.name
    self._file = os.open(self._path, os.O_CREAT | os.O_RDWR)
    fcntl.flock(self._file, fcntl.LOCK_EX)
    os.write(self._file, self._host.encode())

  @contextlib.contextmanager
  def beating(self, study: optuna.Study) -> Iterator[None]:
    """Writes a sign of life into a study as long as work on it goes on."""
    key, ended = self._key(self.name), threading.Event()

    def beat() -> None:
      while not ended.wait(self._grace / BEATS):
        # A storage that cannot be reached now may be there the next time.
        with contextlib.suppress(
          optuna.exceptions.OptunaError, SQLAlchemyError, OSError
        ):
          study.set_user_attr(key, [time.time(), self._grace])

    study.set_user_attr(key, [time.time(), self._grace])
    thread = threading.Thread(target=beat, daemon=True, name='beat')
    thread.start()
    try:
      yield
    finally:
      ended.set()
      thread.join()

  def alive(self, name: str, study: optuna.Study) -> bool:
    """Whether a worker lives, as far as can be known."""
    if name == self.name:
      return True
    try:
      file = os.open(self._directory / name, os.O_RDWR)
    except FileNotFoundError:
      return self._was_seen(name, study)
    try:
      # Not every file system shares its locks between machines.
      if os.read(file, 1000).decode() != self._host:
        return self._was_seen(name, study)
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
    finally:
      os.close(file)
    return False

  def _was_seen(self, name: str, study: optuna.Study) -> bool:
    seen, grace = study.user_attrs.get(self._key(name), (0.0, 0.0))
    return time.time() - seen < grace

  @staticmethod
  def _key(name: str) -> str:
    return f'worker {name}'

  def close(self) -> None:
    self._path.unlink(missing_ok=True)
    os.close(self._file)


def _host() -> str:
  """Tells this machine from others, and from itself before a restart."""
  boot = pathlib.Path('/proc/sys/kernel/random/boot_id')
  return f'{socket.gethostname()} {boot.read_text() if boot.exists() else ""}'


class Claim(NamedTuple):
  """A point that this worker has taken.

  Attributes:
    point: its number, from 0.
    parameters: metaparameters by name.
    trial_id: of the Optuna trial.
  """

  point: int
  parameters: dict[str, float]
  trial_id: int


class Entry(NamedTuple):
  """What the storage holds of a point.

  Attributes:
    point: its number, from 0.
    parameters: metaparameters by name.
    result: what its worker left when it had ended; None while it runs.
  """

  point: int
  parameters: dict[str, float]
  result: dict[str, Any] | None


class Ledger:
  """The points of one search: which are done, which are being worked on."""

  def __init__(
    self, storage: BaseStorage, name: str, space: Space, worker: Worker
  ):
    self._worker, self._space = worker, space
    self.study = optuna.create_study(
      storage=storage, study_name=name, load_if_exists=True
    )
    self._storage = self.study._storage

  def entries(self) -> dict[int, Entry]:
    """By point: every one that is done or being worked on."""
    return {
      point: Entry(point, trial.user_attrs['parameters'], _result(trial))
      for point, trial in self._valid().items()
    }

  def _valid(self) -> dict[int, FrozenTrial]:
    valid: dict[int, FrozenTrial] = {}
    for trial in self.study.get_trials(deepcopy=False):
      if trial.state != TrialState.FAIL and 'point' in trial.user_attrs:
        valid.setdefault(trial.user_attrs['point'], trial)
    return dict(sorted(valid.items()))

  def begun(self) -> dict[int, dict[str, float]]:
    """The parameters of points that somebody took and did not finish."""
    return {
      trial.user_attrs['point']: trial.user_attrs['parameters']
      for trial in self.study.get_trials(deepcopy=False)
      if trial.state == TrialState.FAIL and 'point' in trial.user_attrs
    }

  def bury(self) -> None:
    """Frees the points of workers that have died."""
    alive: dict[str, bool] = {}
    for trial in self._valid().values():
      if trial.state != TrialState.RUNNING:
        continue
      name = trial.user_attrs['worker']
      if name not in alive:
        alive[name] = self._worker.alive(name, self.study)
      if not alive[name]:
        self._fail(trial._trial_id)

  def _fail(self, trial_id: int) -> bool:
    try:
      self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
    except optuna.exceptions.UpdateFinishedTrialError:
      return False
    return True

  def take(self, point: int, parameters: dict[str, float]) -> Claim | None:
    """Takes a point, if nobody else was quicker."""
    trial = create_trial(
      state=TrialState.RUNNING,
      params=_shown(parameters, self._space),
      distributions=distributions(self._space),
      user_attrs={
        'point': point,
        'parameters': parameters,
        'worker': self._worker.name,
        'token': (token := uuid.uuid4().hex),
      },
    )
    trial.datetime_start = datetime.datetime.now()
    self.study.add_trial(trial)
    trials = self.study.get_trials(deepcopy=False)
    mine = next(t for t in trials if t.user_attrs.get('token') == token)
    first = self._valid().get(point)
    if first is not None and first._trial_id == mine._trial_id:
      return Claim(point, parameters, mine._trial_id)
    self._fail(mine._trial_id)
    return None

  def finish(
    self,
    claim: Claim,
    result: dict[str, Any],
    value: float | None,
    curve: dict[int, float],
  ) -> bool:
    """Records how a trial ended; False if it had been taken for dead.

    Args:
      claim: of the trial.
      result: what `entries` will give.
      value: what a sampler minimises; None for a trial that diverged.
      curve: the metric by update, for Optuna's dashboard.
    """
    state = TrialState.PRUNED if value is None else TrialState.COMPLETE
    try:
      for step, metric in curve.items():
        self._storage.set_trial_intermediate_value(claim.trial_id, step, metric)
      # Before the state: nothing can be added to a trial that has ended.
      self._storage.set_trial_user_attr(claim.trial_id, 'result', result)
      values = None if value is None else [value]
      self._storage.set_trial_state_values(claim.trial_id, state, values)
    except optuna.exceptions.UpdateFinishedTrialError:
      return False
    return True

  def release(self, claim: Claim) -> None:
    """Gives a point back that was not finished."""
    self._fail(claim.trial_id)

  def working(self) -> contextlib.AbstractContextManager[None]:
    """While it is open, other workers see this one live."""
    return self._worker.beating(self.study)

  def suggest(self, point: int, seed: int) -> dict[str, float]:
    """What Optuna's TPE would try next, knowing the trials that have ended."""
    sampler = optuna.samplers.TPESampler(
      seed=_folded(seed, point), multivariate=True
    )
    known = optuna.create_study(sampler=sampler)
    for trial in self._valid().values():
      if trial.state.is_finished():
        known.add_trial(trial)
    trial = known.ask(distributions(self._space))
    return _meant(trial.params, self._space)


def _result(trial: FrozenTrial) -> dict[str, Any] | None:
  return trial.user_attrs['result'] if trial.state.is_finished() else None


def _folded(seed: int, point: int) -> int:
  """A seed for Optuna, which takes 32 bits; both halves of ours count.

  >>> _folded(0, 1), _folded(2**32, 1)
  (1, 1000004)
  """
  return ((seed ^ seed >> 32) * 1_000_003 + point) % 2**32


# Optuna has no reversed logarithmic scale: it is shown 1 - value on a
# logarithmic one.


def _name(key: str, scale: str) -> str:
  return f'1 - {key}' if scale == 'reverse_log' else key


def distributions(space: Space) -> dict[str, Any]:
  """The space as Optuna sees it.

  >>> from adabatch.study.space import Parameter
  >>> list(distributions({'m': Parameter('reverse_log', (0.9, 0.99))}))
  ['1 - m']
  """
  found: dict[str, Any] = {}
  for key, parameter in space.items():
    scale, values = parameter
    name = _name(key, scale)
    if scale == 'discrete':
      found[name] = CategoricalDistribution(values)
    elif scale == 'integer':
      low, high = values
      found[name] = optuna.distributions.IntDistribution(int(low), int(high))
    elif scale == 'reverse_log':
      low, high = values
      found[name] = FloatDistribution(1 - high, 1 - low, log=True)
    else:
      found[name] = FloatDistribution(*values, log=scale == 'log')
  return found


def _shown(parameters: dict[str, float], space: Space) -> dict[str, Any]:
  shown = {}
  for key, (scale, values) in space.items():
    value = parameters[key]
    if scale == 'reverse_log':
      low, high = 1 - values[1], 1 - values[0]
      # 1 - (1 - x) may lie an ulp outside.
      value = min(max(1 - value, low), high)
    elif scale in ('log', 'linear'):
      value = min(max(value, values[0]), values[1])
    shown[_name(key, scale)] = value
  return shown


def _meant(params: dict[str, Any], space: Space) -> dict[str, float]:
  meant = {}
  for key, (scale, _) in space.items():
    value = params[_name(key, scale)]
    meant[key] = 1 - value if scale == 'reverse_log' else value
  return meant
