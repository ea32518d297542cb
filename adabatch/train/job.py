"""A run in its directory: checkpoints, files and console around the loop."""

import contextlib
import functools
import math
import os
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

import jax

from adabatch import data
from adabatch.config import Config
from adabatch.config.smoke import shrink
from adabatch.devices.mesh import is_first_process
from adabatch.devices.programs import Stored, use_persistent_cache
from adabatch.devices.stored_programs import StoredPrograms
from adabatch.train import agreement, elastic
from adabatch.train.beginning import Beginning
from adabatch.train.build import Parts, build, check
from adabatch.train.calls import Progress
from adabatch.train.checkpoints import Saved
from adabatch.train.console import Console
from adabatch.train.initial import start_from
from adabatch.train.kept import Kept
from adabatch.train.log_file import LogFile
from adabatch.train.loop import loop
from adabatch.train.open_splits import TextCache
from adabatch.train.profile import Profile
from adabatch.train.stop import stop_on_signals
from adabatch.train.time_left import TimeLeft
from adabatch.train.watchdog import Watchdog
from adabatch.train.workdir import Workdir


def train(
  config: Config,
  workdir: str | os.PathLike[str],
  *,
  devices: Sequence[Any] | None = None,
  splits: tuple[data.Split, data.Split] | None = None,
  stop: threading.Event | None = None,
  cache: TextCache | None = None,
  last_update: int | None = None,
  quiet: bool = False,
) -> dict[str, Any]:
  """Trains to the end of the config, or resumes a run that was cut short.

  Args:
    config: see `adabatch.config.default`.
    workdir: directory of the run; made if it does not exist.
    devices: devices to use; None for all of all processes.
    splits: training and evaluation split of your own arrays, made with
      `data.from_arrays`; None to load what `config.data` names.
    stop: set it to stop the run cleanly, as SIGTERM does.
    cache: for the tokens of a text set; None: in `workdir`.
    last_update: cuts the run short there, without an evaluation that it would
      not have had; unlike `max_updates` it may be another one whenever the run
      is resumed.
    quiet: whether nothing is told of what comes before the first update, as of
      the trials of a search.

  Returns:
    What `summary.json` holds.

  Raises:
    ConfigError: for a config or a directory that cannot be used.
    data.DatasetError: for a data set that is not there.
    Differ: where several processes were started differently.
    WriteError: if the disk is full or fails; the last checkpoint is whole.
  """
  if config.compilation_cache:
    use_persistent_cache()
  stop = stop or threading.Event()
  files, first = Workdir(workdir), is_first_process()
  cut = math.inf if last_update is None else last_update
  agreement.same_start(config, files.path, cut)
  config = _checked(config, len(jax.devices() if devices is None else devices))
  files.check(config)
  with contextlib.ExitStack() as stack:
    stack.callback(files.unlock)  # which a text set has locked already
    cache = cache or TextCache(files.text_directory, first)
    closed = functools.partial(_closed, stack)
    log = files.path / _log_name()
    console = closed(Console(0, enabled=first, log=LogFile(log)))
    if not quiet:
      console.stage(f'reading {config.data.name}')
    parts = _agreed(build(config, devices, splits, cache))
    console.expect(parts.length.examples, TimeLeft(parts))
    stored = _stored(parts, console)
    stack.enter_context(stop_on_signals(stop))
    if first:
      files.lock()
      elastic.forget_newcomers(files.path)
    files.check(config)
    watchdog = closed(_watchdog(config, log, console))
    kept = stack.enter_context(Kept(parts, files, console, stop))
    saved = kept.resume()
    summary = files.read_summary()
    if summary is not None and _complete(parts, saved, summary, cut):
      kept.log.check(summary['updates'])
      console.say(f'{files.path} is complete: nothing to do')
      return summary
    kept.drop_after(saved)
    if saved is None and config.init_from is not None:
      parts = start_from(parts, config.init_from, console.say)
    steps = loop(
      parts,
      saved,
      kept.save,
      save_best=kept.save_best if config.checkpoint.best else None,
      stop=stop,
      cut=cut,
      warn=console.warn,
      doing=watchdog if quiet else Beginning(console, watchdog),
      restore=kept.go_back,
      stored=stored,
      profile=closed(Profile(config, files.path, console.say)),
    )
    for kind, record in closed(steps):
      kept.write(kind, record)
    return record


def _agreed(parts: Parts) -> Parts:
  """The same parts, if all processes opened the same data."""
  agreement.same_data(parts.fingerprints)
  return parts


def _closed(stack: contextlib.ExitStack, thing: Any) -> Any:
  return stack.enter_context(contextlib.closing(thing))


def _checked(config: Config, devices: int) -> Config:
  """The config that is run, without the data as far as is known."""
  check(config, devices)
  return shrink(config) if config.smoke else config


def _stored(parts: Parts, console: Console) -> Stored | None:
  """Where programs may be that were compiled before."""
  directory = parts.config.compilation.programs
  if directory is None:
    return None
  return StoredPrograms(
    directory, parts.recipe.devices, say=console.say, warn=console.warn
  )


def _log_name() -> str:
  """Of what this process says."""
  return 'log.txt' if is_first_process() else f'log.{jax.process_index()}.txt'


def _watchdog(config: Config, log: pathlib.Path, console: Console) -> Watchdog:
  return Watchdog(
    log,
    config.watchdog.seconds,
    console.warn,
    abort=config.watchdog.abort,
  )


def _complete(
  parts: Parts, saved: Saved | None, summary: dict[str, Any], cut: float
) -> bool:
  """Whether the run has been done to its end, or to where it is cut."""
  # A run that was cut short may have gone beyond where it is now to end.
  if saved is None or summary['status'] in ('preempted', 'grow'):
    return False
  at = Progress(**saved.host['progress'])
  return at.over(parts.end, cut)
