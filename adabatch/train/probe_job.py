"""`--job=probe`: how large a batch may be, asked of a run's checkpoints."""

import contextlib
import json
import os
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

import jax

from adabatch import data
from adabatch.config import Config, ConfigError, choose
from adabatch.config.files import finite, write_json, write_signed
from adabatch.config.smoke import shrink
from adabatch.devices.mesh import is_first_process
from adabatch.devices.programs import use_persistent_cache
from adabatch.train import agreement
from adabatch.train.branches import RATES, noise_exponent
from adabatch.train.build import Parts, build, check_values
from adabatch.train.open_splits import TextCache
from adabatch.train.probe_points import Asked, check_held_out, opened
from adabatch.train.probe_results import describe_run
from adabatch.train.probe_store import ProbeStore
from adabatch.train.probe_work import Work, say
from adabatch.train.probe_workers import Workers, check_workers
from adabatch.train.stop import stop_on_signals
from adabatch.train.workdir import Workdir


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
    stop: set it to end cleanly, as SIGTERM does.

  Returns:
    What `probe.json` holds.

  Raises:
    ConfigError: for a directory without checkpoints, a config that is not its,
      or a probe that cannot be made.
    data.DatasetError: for a data set that is not there.
    CheckpointError: if a checkpoint cannot be read.
    WriteError: if a file cannot be written.
  """
  stop = stop or threading.Event()
  files = Workdir(workdir)
  config = _checked(config, files)
  place = directory_of(config, files.path)
  parts = _build(config, files, devices, splits)
  check_workers(parts, splits)
  with contextlib.ExitStack() as stack:
    asked = Asked(parts, files, stack.enter_context(opened(files)))
    store = ProbeStore(place)
    if is_first_process():
      store.open()
    stack.enter_context(stop_on_signals(stop))
    sharing: list[Workers] = []

    def check() -> None:
      for workers in sharing:
        workers.check()

    work = stack.enter_context(
      contextlib.closing(Work(parts, store, stop, check=check))
    )
    found, status = [], 'completed'
    for saved in asked:
      if config.probe.workers > 1 and not sharing:
        sharing.append(_workers(parts, files, place, asked))
        stack.callback(sharing[0].close)
      one = work.run(saved)
      del saved  # before the next is read
      if one is None:
        status = 'preempted'
        break
      found.append(one)
      _write(place, parts, found, status='running')
  return _write(place, parts, found, status=status)


def share(
  config: Config,
  workdir: str | os.PathLike[str],
  place: pathlib.Path,
  updates: Sequence[int],
  *,
  devices: int,
  stop: threading.Event,
) -> None:
  """What a worker does of a probe: it makes branches, and writes no result.

  Args:
    config: of the run.
    workdir: of it.
    place: directory of the probe.
    updates: of the checkpoints.
    devices: how many to use.
    stop: set it to end cleanly.

  Raises:
    ConfigError: for fewer devices, and as `probe`.
  """
  files = Workdir(workdir)
  there = jax.devices()[:devices]
  if len(there) < devices:
    raise ConfigError(
      f'this worker has {len(there)} devices, and the probe {devices}: start '
      'the same command several times instead'
    )
  parts = _build(_checked(config, files), files, there, None)
  with (
    opened(files) as checkpoints,
    contextlib.closing(
      Work(parts, ProbeStore(place), stop, alone=False)
    ) as work,
  ):
    for saved in Asked(parts, files, checkpoints, updates):
      if work.run(saved) is None:
        return


def _checked(config: Config, files: Workdir) -> Config:
  """The config that is probed, without the data as far as is known."""
  check_values(config)
  config = config.copy_and_resolve_references()
  if config.compilation_cache:
    use_persistent_cache()
  agreement.same_start(config, files.path)
  if config.smoke:
    config = shrink(config)
  if files.read_inputs() is None or not files.has_checkpoints():
    raise ConfigError(
      f'{files.path} holds no checkpoints: give --workdir of a run'
    )
  files.check(config)
  _check(config)
  return config


def _build(
  config: Config,
  files: Workdir,
  devices: Sequence[Any] | None,
  splits: tuple[data.Split, data.Split] | None,
) -> Parts:
  # The tokens of the run, which are there; nothing is locked.
  cache = TextCache(lambda writer: files.path / 'text', False, wait_seconds=0.0)
  parts = build(config, devices, splits, cache)
  agreement.same_data(parts.fingerprints)
  check_held_out(parts)
  return parts


def _workers(
  parts: Parts, files: Workdir, place: pathlib.Path, asked: Asked
) -> Workers:
  return Workers(
    parts.config,
    files.path,
    place,
    asked.left,
    devices=parts.recipe.devices.size,
    say=say,
  )


def directory_of(config: Config, workdir: pathlib.Path) -> pathlib.Path:
  """Where a probe writes: never into the run."""
  if config.probe.directory is None:
    return workdir.with_name(f'{workdir.name}-probe')
  place = pathlib.Path(config.probe.directory).absolute()
  run, real = workdir.resolve(), place.resolve()
  if real == run or run in real.parents:
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


def _write(
  place: pathlib.Path,
  parts: Parts,
  points: list[dict[str, Any]],
  *,
  status: str,
) -> dict[str, Any]:
  """`probe.json` with all that was found, and the summary without tables."""
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
