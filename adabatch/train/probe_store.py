"""What the branches of a probe came to, on disk: each is made once."""

import contextlib
import fcntl
import io
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from adabatch.config import ConfigError
from adabatch.config.files import write_whole
from adabatch.devices.agreed import digest
from adabatch.devices.losses import ExampleLosses


class Made(NamedTuple):
  """A branch that has been made.

  Attributes:
    losses: of the held-out examples.
    seconds: that it took.
  """

  losses: ExampleLosses
  seconds: float


class ProbeStore:
  """Branches by what makes them what they are.

  Several processes may share a directory: who makes a branch holds its lock,
  which goes with the process.
  """

  def __init__(self, directory: pathlib.Path):
    """The directory is made if it is not there.

    Raises:
      ConfigError: if it cannot be.
    """
    self._directory = directory / 'branches'
    try:
      self._directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise ConfigError(
        f'cannot write to {directory} ({error.strerror}): give another '
        'probe.directory'
      ) from None

  def _path(self, about: dict[str, Any]) -> pathlib.Path:
    name = f'{about["update"]}-{about["batch_size"]}-{digest(about)}'
    return self._directory / f'{name}.npz'

  def read(self, about: dict[str, Any]) -> Made | None:
    """A branch, if it was made; one that cannot be read was not.

    Args:
      about: what makes it what it is, plain data.
    """
    try:
      with np.load(self._path(about)) as found:
        losses = ExampleLosses(found['losses'], found['weights'])
        return Made(losses, float(found['seconds']))
    except FileNotFoundError:
      return None
    except (OSError, ValueError, KeyError, EOFError):  # a file that was cut
      return None

  def write(self, about: dict[str, Any], made: Made) -> None:
    """Keeps a branch."""
    buffer = io.BytesIO()
    np.savez_compressed(
      buffer,
      losses=made.losses.losses,
      weights=made.losses.weights,
      seconds=made.seconds,
      about=json.dumps(about),
    )
    write_whole(self._path(about), buffer.getvalue())

  @contextlib.contextmanager
  def claim(self, about: dict[str, Any]) -> Iterator[bool]:
    """Whether nobody else is making this branch; none will while it lasts."""
    path = self._path(about).with_suffix('.lock')
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        yield False
        return
      yield True
      path.unlink(missing_ok=True)
    finally:
      os.close(file)
