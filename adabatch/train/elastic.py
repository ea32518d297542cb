"""Processes that are lost, and come back: who goes on, with how many replicas.

Those that are left start the same command again, meet, and go on from the last
checkpoint with their share of the replicas. A process that comes later leaves a
note in the run's directory; at the next checkpoint all start again, with it.
"""

import contextlib
import pathlib
import threading
from collections.abc import Callable

import jax

from adabatch.config import Config, ConfigError
from adabatch.devices.agreed import decide
from adabatch.devices.mesh import any_process
from adabatch.devices.processes import Patience, start_again


def patience(
  config: Config,
  workdir: pathlib.Path,
  processes: int | None,
  process: int | None,
  *,
  distributed: bool = False,
) -> Patience:
  """How a process waits for the others, and what it does without them.

  Args:
    config: the whole config.
    workdir: of the run.
    processes: how many there are to be; None: the cluster knows.
    process: which one this is.
    distributed: whether there are to be several.

  Raises:
    ConfigError: where it cannot be done.
  """
  c, least = config.processes, None
  if config.sync.min_replicas is not None and distributed:
    if processes is None:
      raise ConfigError(
        'sync.min_replicas needs to know who is to come: give '
        '--coordinator_address, --num_processes and --process_id'
      )
    if not config.sync.replicas or config.sync.replicas % processes:
      raise ConfigError(
        f'sync.min_replicas needs as many replicas on each process, got '
        f'sync.replicas={config.sync.replicas} and {processes} processes'
      )
    for key in ('initial_batch_size', 'max_batch_size', 'min_batch_size'):
      size = config.controller[key]
      if isinstance(size, int) and size % config.sync.replicas:
        raise ConfigError(
          f'controller.{key}={size} cannot be shared equally by sync.replicas='
          f'{config.sync.replicas}: only where some are lost is it rounded up'
        )
    each = config.sync.replicas // processes
    least = min(-(-config.sync.min_replicas // each), processes)

  def knock() -> None:
    if c.restarts and workdir.is_dir():
      with contextlib.suppress(OSError):  # it is tried again
        (workdir / f'{_NOTE}{process}').touch()

  return Patience(
    start_seconds=c.start_seconds,
    lost_seconds=c.lost_seconds,
    restarts=c.restarts,
    rejoin_seconds=c.rejoin_seconds,
    least=least,
    knock=knock,
  )


def with_those_left(config: Config, processes: int | None) -> Config:
  """The config with the replicas of the processes that are there.

  Args:
    config: the whole config.
    processes: how many there were to be.
  """
  here = jax.process_count()
  if processes is None or here == processes:
    return config
  config = config.copy_and_resolve_references()
  config.sync.replicas = config.sync.replicas * here // processes
  return config


_NOTE = '.joining.'


def forget_newcomers(workdir: pathlib.Path) -> None:
  """Who left a note has come, or leaves another one."""
  for note in workdir.glob(f'{_NOTE}*'):
    note.unlink(missing_ok=True)


def let_in(
  workdir: pathlib.Path, wait: Callable[[], None], stop: threading.Event
) -> None:
  """Starts all processes again if one waits to join; after a checkpoint.

  Args:
    workdir: of the run.
    wait: called before, to return once the checkpoint is on disk.
    stop: whether the run was asked to stop, which comes first.
  """
  names = [note.name for note in workdir.glob(f'{_NOTE}*')]
  if decide(sorted(names)):
    wait()
    if not any_process(stop.is_set()):  # and all have waited
      start_again('a process waits to join')
