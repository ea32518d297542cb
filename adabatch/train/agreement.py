"""Processes of one run that were started alike, and that stay alike.

Each would train on its own config and data, and the sums over devices would mix
them in silence; so they are compared before anything is read, when the data are
known, and at each checkpoint.
"""

import hashlib
import importlib.metadata
import math
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import jax

import adabatch
from adabatch.config import Config, flatten
from adabatch.devices.agreed import agree

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
# Keys that may be others on each process, and tables of such keys.
OWN = ('data.data_dir', 'data.workers', 'compilation_cache')
OWN_TABLES = ('processes.', 'watchdog.')
# What each process measures for itself.
MEASURED = ('seconds', 'device_seconds', 'probe_seconds')


def same_start(
  config: Config, workdir: pathlib.Path, cut: float = math.inf
) -> None:
  """Compares what the processes were started with.

  Args:
    config: the whole config.
    workdir: of the run.
    cut: update at which it is cut short.

  Raises:
    Differ: naming the keys and the processes.
  """
  if jax.process_count() == 1:
    return
  keys = {
    key: value
    for key, value in flatten(config).items()
    if key not in OWN and not key.startswith(OWN_TABLES)
  }
  about = {'workdir': str(workdir), 'last_update': cut}
  agree('start', keys | about | _versions())


def _versions() -> dict[str, str]:
  versions = {
    f'version of {name}': importlib.metadata.version(name) for name in PACKAGES
  }
  found = hashlib.blake2b(digest_size=8)
  (root,) = adabatch.__path__
  for path in sorted(pathlib.Path(root).rglob('*.py')):
    found.update(path.read_bytes())
  return versions | {
    'version of Python': platform.python_version(),
    'source of adabatch': found.hexdigest(),
  }


def same_data(fingerprints: Mapping[str, str]) -> None:
  """Compares the data that they opened.

  Raises:
    Differ: naming the split and the processes.
  """
  agree('data', fingerprints)


def same_run(update: int, host: Mapping[str, Any]) -> None:
  """Compares where they are.

  Args:
    update: at which a checkpoint is due.
    host: the host's side of it.

  Raises:
    Differ: naming what differs; the last checkpoint is as it was.
  """
  if jax.process_count() == 1:
    return
  agree(
    'state at a checkpoint',
    {'update': update} | flatten(_without_measured(host)),
  )


def _without_measured(value: Any) -> Any:
  if not isinstance(value, Mapping):
    return value
  return {
    k: _without_measured(v) for k, v in value.items() if k not in MEASURED
  }
