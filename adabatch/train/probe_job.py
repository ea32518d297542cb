"""`--job=probe`: how large a batch may be, asked of a run's checkpoints."""

import contextlib
import itertools
import json
import os
import pathlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from adabatch import data
from adabatch.config import Config, ConfigError, choose, refusing
from adabatch.config.files import finite, write_json, write_signed
from adabatch.config.smoke import shrink
from adabatch.controllers import parse_count
from adabatch.devices.agreed import decide
from adabatch.devices.checksums import checksums
from adabatch.devices.losses import ExampleLosses
from adabatch.devices.mesh import is_first_process
from adabatch.devices.point_noise import (
  NoiseScale,
  PointNoise,
  second_moment,
)
from adabatch.train import agreement
from adabatch.train.branches import (
  RATES,
  Branch,
  Branches,
  Point,
  noise_exponent,
  point_of,
)
from adabatch.train.build import Parts, build, check_values
from adabatch.train.checkpoints import CheckpointError, Checkpoints, Saved
from adabatch.train.load import read_checkpoint
from adabatch.train.open_splits import TextCache
from adabatch.train.probe_results import describe_point, describe_run
from adabatch.train.probe_store import Made, ProbeStore
from adabatch.train.workdir import Workdir

# Of a process that does not read the files.
NOTHING = Made(ExampleLosses(np.zeros(0), np.zeros(0)), 0.0)
BATCHES = 32  # of the largest size, in a branch of the default length


def probe(
  config: Config,
  workdir: str | os.PathLike[str],
  *,
  devices: Sequence[Any] | None = None,
  splits: tuple[data.Split, data.Split] | None = None,
  stop: threading.Event | None = None,
) -> dict[str, Any]:
  """Branches from checkpoints of a run; the run's directory is only read.

  Writes `probe.json` and `summary.json` to `probe.directory`. Started again it
  makes only the branches that are not there; several at once share them.

  Args:
    config: that of the run, but for the keys that are free.
    workdir: of the run, which may be going on.
    devices: devices to use; None for all of all processes.
    splits: training and evaluation split of the caller's own arrays.
    stop: set it to end cleanly before the next branch.

  Returns:
    What `summary.json` holds.

  Raises:
    ConfigError: for a directory without checkpoints, a config that is not its,
      or a probe that cannot be made.
    data.DatasetError: for a data set that is not there.
    CheckpointError: if a checkpoint cannot be read.
    WriteError: if a file cannot be written.
  """
  stop = stop or threading.Event()
  check_values(config)
  files, config = Workdir(workdir), config.copy_and_resolve_references()
  agreement.same_start(config, files.path)
  if files.read_inputs() is None or not files.has_checkpoints():
    raise ConfigError(
      f'{files.path} holds no checkpoints: give --workdir of a run'
    )
  files.check(config)
  _check(config)
  if config.smoke:
    config = shrink(config)
  place = directory_of(config, files.path)
  parts = build(config, devices, splits, _cache(files))
  agreement.same_data(parts.fingerprints)
  _check_data(parts)
  with contextlib.ExitStack() as stack:
    there = Checkpoints(files.path / 'checkpoints', keep=None)
    stack.enter_context(contextlib.closing(there))
    job = Job(parts, files, place, stop)
    found, status = [], 'completed'
    for saved in _chosen(parts, files, there):
      one = job.run(saved)
      if one is None:
        status = 'preempted'
        break
      found.append(one)
      _write(place, parts, found, status='running')
  return _write(place, parts, found, status=status)


def directory_of(config: Config, workdir: pathlib.Path) -> pathlib.Path:
  """Where a probe writes: never into the run."""
  if config.probe.directory is None:
    return workdir.with_name(f'{workdir.name}-probe')
  place = pathlib.Path(config.probe.directory).absolute()
  if place == workdir or workdir in place.parents:
    raise ConfigError(
      f'probe.directory={config.probe.directory!r} lies in the run, which is '
      'only read: give another'
    )
  return place


def _check(config: Config) -> None:
  """Refuses what can be refused without the data."""
  p = config.probe
  choose(dict.fromkeys(RATES), p.learning_rate, 'probe.learning_rate')
  for key in ('factors', 'multipliers'):
    if not p[key] or len(set(p[key])) < len(p[key]):
      raise ConfigError(
        f'probe.{key}={tuple(p[key])}: give at least one, and each once'
      )
  if 1 not in p.factors:
    raise ConfigError(
      f'probe.factors={tuple(p.factors)} lacks 1, with which the others are '
      'compared: add it'
    )
  if p.learning_rate != 'none':
    noise_exponent(config)
  if config.sync.name != 'synchronous':
    raise ConfigError(
      f'sync.name={config.sync.name!r} shares a batch among models that '
      "differ, and branches have one: probe a run with sync.name='synchronous'"
    )
  if config.data.eval_split == config.data.train_split:
    raise ConfigError(
      f"data.eval_split='{config.data.eval_split}' is what is trained on, and "
      'a probe compares losses on held-out examples: probe a run with another'
    )


def _check_data(parts: Parts) -> None:
  prints = parts.fingerprints
  if data.same_data(prints['training'], prints['evaluation']):
    raise ConfigError(
      'the evaluation split has the examples of the training split, and a '
      'probe compares losses on held-out ones: probe a run with another'
    )


def _cache(files: Workdir) -> TextCache:
  """The tokens of the run, which are there; nothing is locked."""
  return TextCache(lambda writer: files.path / 'text', False)


def _chosen(
  parts: Parts, files: Workdir, there: Checkpoints
) -> Iterator[Saved]:
  """The checkpoints of `probe.at`, from the oldest, each read when it is due.

  Raises:
    ConfigError: if one is not there, or of other data.
  """
  asked = parts.config.probe.at
  updates = decide(there.updates())
  if asked == 'last':
    updates = updates[-1:]
  elif asked != 'all':
    wanted = _counts(asked)
    by_examples = {}
    for update in updates:
      host = there.read(update, None).host
      by_examples[host['progress']['examples']] = update
    if missing := [n for n in wanted if n not in by_examples]:
      raise ConfigError(
        f'probe.at={asked!r}: {files.path} has no checkpoint after '
        f'{missing[0]} examples, but after '
        f'{", ".join(map(str, sorted(by_examples)))}'
      )
    updates = sorted(by_examples[n] for n in wanted)
  for update in updates:
    try:
      saved = read_checkpoint(files, parts, update)
    except (CheckpointError, ConfigError):
      # A run that goes on removes its oldest ones.
      if asked == 'all' and update not in there.updates():
        continue
      raise
    for which, here in parts.fingerprints.items():
      if not data.same_data(saved.host['data'][which], here):
        raise ConfigError(
          f'{files.path} was trained on other {which} data '
          f'({saved.host["data"][which]} there, {here} here): give those'
        )
    yield saved


def _counts(text: str) -> list[int]:
  with refusing('probe.at'):
    return [int(parse_count(word)) for word in str(text).split()]


class Task(NamedTuple):
  """A branch, and what it is called.

  Attributes:
    factor: of the batch size.
    multiplier: of the learning rate of the rule.
    repeat: which stretch of the data order.
    branch: how it grows.
  """

  factor: float
  multiplier: float
  repeat: int
  branch: Branch


def tasks_of(config: Config, batch_size: int, examples: int) -> list[Task]:
  """The branches of a point.

  Args:
    config: of the run.
    batch_size: B at the point.
    examples: of each branch.

  Raises:
    ConfigError: for a batch of less than one example.
  """
  p = config.probe
  exponent = 0.0 if p.learning_rate == 'none' else noise_exponent(config)
  multipliers = p.multipliers if p.learning_rate == 'tune' else (1.0,)
  found = []
  for repeat, factor in itertools.product(range(p.repeats), sorted(p.factors)):
    size = round(factor * batch_size)
    if factor * batch_size < 1:
      raise ConfigError(
        f'probe.factors: {factor:g} of a batch of {batch_size} is less than '
        f'one example: give at least {1 / batch_size:g}'
      )
    for multiplier in multipliers:
      rate = (size / batch_size) ** exponent * multiplier
      branch = Branch(size, rate, repeat * examples)
      found.append(Task(factor, multiplier, repeat, branch))
  return found


def examples_of(parts: Parts, point: Point) -> int:
  """Delta: of each branch of a point.

  Raises:
    ConfigError: if there are not so many, or a batch is larger than that.
  """
  p, epoch = parts.config.probe, parts.extent.epoch
  largest = round(max(p.factors) * point.plan.batch_size)
  if largest > epoch:
    raise ConfigError(
      f'probe.factors: {max(p.factors):g} of a batch of '
      f'{point.plan.batch_size} is above the {epoch} examples of the training '
      'split: leave it out'
    )
  if p.examples is None:
    wanted = BATCHES * largest
  else:
    with refusing('probe.examples'):
      wanted = int(parse_count(p.examples))
  left = parts.end.examples - point.examples
  # A run that is over is gone on with over one more epoch.
  over = left <= 0
  left = epoch if over else left
  if wanted * p.repeats > left:
    what = 'in an epoch' if over else 'left of the run'
    given = f'={p.examples}' if p.examples is not None else f' is {wanted}'
    raise ConfigError(
      f'probe.examples{given}, and with probe.repeats={p.repeats} that is more '
      f'than the {left} examples {what} after update {point.update}: lower '
      f'it, to at most {left // p.repeats}'
    )
  if wanted < largest:
    raise ConfigError(
      f'probe.examples={p.examples} is less than a batch of {largest}: raise '
      'it, or leave out large probe.factors'
    )
  return wanted


class Job:
  """Makes the branches of one point after the other."""

  def __init__(
    self,
    parts: Parts,
    files: Workdir,
    place: pathlib.Path,
    stop: threading.Event,
  ):
    self._parts, self._files, self._stop = parts, files, stop
    self._store = ProbeStore(place)

  def run(self, saved: Saved) -> dict[str, Any] | None:
    """What a checkpoint says; None if it was stopped before."""
    parts, p = self._parts, self._parts.config.probe
    point = point_of(parts, saved.host)
    size = point.plan.batch_size
    examples = examples_of(parts, point)
    tasks = tasks_of(parts.config, size, examples)
    identity = self._identity(saved, examples)
    rule = p.learning_rate != 'none'
    branches = Branches(
      parts,
      size,
      memory=rule,
      exponent=noise_exponent(parts.config) if rule else 1.0,
      warmup=p.warmup,
    )
    with contextlib.closing(branches):
      for task in tasks:
        branches.ladder(task.branch.batch_size)  # refuses before any is made
      made = self._make(branches, saved, point, tasks, identity, examples)
    if made is None:
      return None
    began = time.perf_counter()
    noise = self._noise(saved)
    if not is_first_process():
      return {}
    return describe_point(
      parts,
      point,
      [(t.factor, t.multiplier, t.repeat, t.branch) for t in tasks],
      made,
      noise,
      examples=examples,
      evaluated=branches.evaluated,
      seconds=time.perf_counter() - began,
    )

  def _identity(self, saved: Saved, examples: int) -> dict[str, Any]:
    p = self._parts.config.probe
    return {
      'update': saved.update,
      'state': checksums(saved.state),
      'data': self._parts.fingerprints,
      'examples': examples,
      'warmup': p.warmup,
      'memory': p.learning_rate != 'none',
    }

  def _make(
    self,
    branches: Branches,
    saved: Saved,
    point: Point,
    tasks: Sequence[Task],
    identity: dict[str, Any],
    examples: int,
  ) -> list[Made] | None:
    """All branches, those that others make among them."""
    store, alone = self._store, jax.process_count() == 1
    abouts = [identity | task.branch._asdict() for task in tasks]
    made: dict[int, Made] = {}
    bar = tqdm(
      total=len(tasks),
      desc=f'probe of update {saved.update}',
      unit=' branches',
      disable=not is_first_process(),
    )
    with bar:
      while len(made) < len(tasks):
        before = len(made)
        for i, task in enumerate(tasks):
          if i in made:
            continue
          if self._stop.is_set():
            return None
          one = store.read(abouts[i])
          if not decide(one is not None):
            claim = store.claim(abouts[i]) if alone else _always()
            with claim as mine:
              if mine:
                one = self._grow(branches, saved, point, task, examples)
                if one is None:
                  return None
                if is_first_process():
                  store.write(abouts[i], one)
          if not alone or one is not None:
            made[i] = one or NOTHING
            bar.update()
        if len(made) == before:  # others are at the rest
          time.sleep(0.5)
    return [made[i] for i in range(len(tasks))]

  def _grow(
    self,
    branches: Branches,
    saved: Saved,
    point: Point,
    task: Task,
    examples: int,
  ) -> Made | None:
    began = time.perf_counter()
    losses = branches.grow(
      saved.state, point, task.branch, examples, stop=self._stop.is_set
    )
    if losses is None:
      return None
    return Made(losses, time.perf_counter() - began)

  def _noise(self, saved: Saved) -> dict[str, NoiseScale | None]:
    """Of the checkpoint's gradients, plain and as Adam takes them."""
    parts, o = self._parts, self._parts.config.optimizer
    asked = parts.config.probe.noise_examples
    noise = PointNoise(parts.recipe, asked, lambda split: lambda r, why: None)
    found = {'simple': noise.take(saved.state)}
    moment = second_moment(saved.state.opt_state)
    if moment is not None:
      weights = jax.tree.map(
        lambda v: 1 / (jnp.sqrt(v) + o.epsilon), moment(o.beta2)
      )
      found['adam'] = noise.take(saved.state, weights)
    return found


@contextlib.contextmanager
def _always() -> Iterator[bool]:
  yield True


def _write(
  place: pathlib.Path,
  parts: Parts,
  points: list[dict[str, Any]],
  *,
  status: str,
) -> dict[str, Any]:
  """`probe.json` with all that was found, and its summary."""
  if not is_first_process():
    return {'job': 'probe', 'status': status}
  found = describe_run(parts, points) | {'status': status}
  found |= {'directory': str(place)}
  found = json.loads(json.dumps(finite(found)))
  write_json(place / 'probe.json', found)
  numbers = {k: v for k, v in found.items() if k != 'points'}
  points = [
    {k: v for k, v in one.items() if k != 'table'} for one in found['points']
  ]
  write_signed(place / 'summary.json', numbers | {'points': points})
  return found
