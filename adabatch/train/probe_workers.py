"""More processes of this machine that share the branches of a probe.

Each is given the config on its standard input, which stays open: where it is
closed, whatever became of the first process, a worker ends as well.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax

from adabatch import config as config_lib
from adabatch.config import Config, ConfigError
from adabatch.train.build import Parts
from adabatch.train.register import REGISTRIES
from adabatch.train.tasks import is_of_here

SECONDS = 10.0  # for a worker to end by itself


def check_workers(parts: Parts, splits: Any) -> None:
  """Refuses more processes where they cannot do the same.

  Args:
    parts: of the run.
    splits: of the caller's own; None: what the config names.

  Raises:
    ConfigError: in one line.
  """
  config = parts.config
  if config.probe.workers == 1:
    return
  asked = f'probe.workers={config.probe.workers}'
  platform = parts.recipe.devices.platform
  if platform != 'cpu':
    raise ConfigError(
      f'{asked} is for CPUs, and here each process would want the same '
      f'{platform}: set it to 1'
    )
  if jax.process_count() > 1:
    raise ConfigError(
      f'{asked} is for one process, and there are {jax.process_count()}, which '
      'make each branch together: set it to 1'
    )
  theirs = [
    f'{table}.name={config[table].name!r}'
    for table, (registry, _) in REGISTRIES.items()
    if (name := config[table].name) in registry
    and not is_of_here(registry[name])
  ]
  if splits is not None:
    theirs.append('your own splits')
  if theirs:
    raise ConfigError(
      f'{asked}: {theirs[0]} cannot be sent to another process: set it to 1, '
      'and start the same command several times instead'
    )


class Workers:
  """Processes that make branches of the same points."""

  def __init__(
    self,
    config: Config,
    workdir: pathlib.Path,
    directory: pathlib.Path,
    updates: Sequence[int],
    *,
    devices: int,
    say: Callable[[str], None],
  ):
    """Starts one less than `probe.workers`.

    Args:
      config: of the run.
      workdir: of it.
      directory: of the probe.
      updates: of the checkpoints.
      devices: that each uses.
      say: is told which failed.
    """
    self._say = say
    given = {
      'config': config.to_dict(),
      'workdir': str(workdir),
      'directory': str(directory),
      'updates': list(updates),
      'devices': devices,
    }
    line = json.dumps(given).encode() + b'\n'
    root = str(pathlib.Path(config_lib.__file__).parents[2])
    paths = [root, os.environ.get('PYTHONPATH', '')]
    environment = os.environ | {
      'PYTHONPATH': os.pathsep.join(filter(None, paths)),
      'JAX_PLATFORMS': 'cpu',
    }
    self._running: dict[int, tuple[subprocess.Popen[bytes], Any]] = {}
    for number in range(2, config.probe.workers + 1):
      said = tempfile.TemporaryFile()  # noqa: SIM115
      process = subprocess.Popen(
        [sys.executable, '-m', 'adabatch.train.probe_worker'],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=said,
        env=environment,
      )
      self._running[number] = process, said
      assert process.stdin is not None, 'it is a pipe'
      with contextlib.suppress(BrokenPipeError):  # `check` tells of it
        process.stdin.write(line)
        process.stdin.flush()

  def check(self) -> None:
    """Says of each that has failed why, once; the others do its work."""
    for number, (process, said) in list(self._running.items()):
      if process.poll() is None:
        continue
      del self._running[number]
      if process.returncode:
        said.seek(0)
        lines = said.read().decode(errors='replace').split('\n')
        last = next((line for line in reversed(lines) if line.strip()), '')
        self._say(
          f'worker {number} of probe.workers ended with status '
          f'{process.returncode}, and its branches are made by the others: '
          f'{last.strip() or "it said nothing"}'
        )
      said.close()
      _hang_up(process)

  def close(self) -> None:
    """Ends them all."""
    self.check()
    for process, _ in self._running.values():
      _hang_up(process)
    for process, said in self._running.values():
      for end in (lambda: None, process.terminate, process.kill):
        end()
        try:
          process.wait(SECONDS)
          break
        except subprocess.TimeoutExpired:
          continue
      said.close()
    self._running.clear()


def _hang_up(process: subprocess.Popen[bytes]) -> None:
  assert process.stdin is not None, 'it is a pipe'
  with contextlib.suppress(BrokenPipeError):
    process.stdin.close()
