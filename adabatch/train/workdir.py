"""The directory of one run: whose it is, and the files that sum it up."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from adabatch import config as config_lib
from adabatch.config import Config, ConfigError
from adabatch.config.files import (
  WriteError,
  checksum,
  read_json,
  read_signed,
  write_json,
  write_signed,
  write_whole,
  writing,
)

CONFIG, INPUTS = 'config.json', 'inputs.json'


class Workdir:
  """A run's directory. Reading it changes nothing; `open` creates it."""

  def __init__(self, path: str | os.PathLike[str]):
    self.path = pathlib.Path(path).absolute()
    self._lock: int | None = None

  def _config_path(self) -> pathlib.Path:
    return self.path / CONFIG

  def _holds_results(self) -> bool:
    metrics = self.path / 'metrics.jsonl'
    written = metrics.exists() and metrics.stat().st_size > 0
    return written or self.has_checkpoints()

  def has_checkpoints(self) -> bool:
    directories = (self.path / name for name in ('checkpoints', 'best'))
    return any(path.is_dir() and any(path.iterdir()) for path in directories)

  def lock(self) -> None:
    """Keeps other runs out of the directory, if it exists, until `unlock`.

    Raises:
      ConfigError: if another run is at work in it, or it cannot be read.
    """
    if self._lock is not None or not self.path.is_dir():
      return
    try:
      self._lock = os.open(self.path, os.O_RDONLY)
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ConfigError(
        f'another run is at work in {self.path}: wait for it, or choose '
        'another --workdir'
      ) from None
    except OSError as error:
      raise ConfigError(
        f'cannot use workdir {self.path} ({error.strerror}): choose another '
        '--workdir'
      ) from None

  def unlock(self) -> None:
    if self._lock is not None:
      os.close(self._lock)
      self._lock = None

  def check_in_place(self) -> None:
    """Refuses to write where the locked directory no longer is.

    Raises:
      WriteError: if it was moved or deleted.
    """
    if self._lock is None:  # another process has it
      return
    with writing(self.path):
      try:
        there = os.path.samestat(os.fstat(self._lock), os.stat(self.path))
      except (FileNotFoundError, NotADirectoryError):
        there = False
    if not there:
      why = 'it was moved or deleted while the run was at work in it'
      raise WriteError(errno.ENOENT, why, str(self.path))

  def check(self, config: Config) -> None:
    """Refuses a directory that holds the results of another config.

    Raises:
      ConfigError: in one line that names the keys that differ.
    """
    if not self._config_path().exists():
      if self._holds_results():
        raise ConfigError(
          f'{self.path} holds results but no config.json, so they cannot be '
          'continued: choose another --workdir'
        )
      return
    if not self._holds_results():
      return
    try:
      old = json.loads(self._config_path().read_text())
      old = config_lib.flatten(old)
    except (ValueError, AttributeError) as error:
      raise ConfigError(
        f'{self._config_path()} is not a config ({error}): restore it, or '
        'choose another --workdir'
      ) from None
    new = config_lib.flatten(json.loads(json.dumps(config.to_dict())))
    keys = config_lib.differences(old, new)
    if keys:
      shown = ', '.join(
        f'{k} ({old.get(k)!r} there, {new.get(k)!r} here)' for k in keys[:5]
      )
      more = f' and {len(keys) - 5} more' if len(keys) > 5 else ''
      raise ConfigError(
        f'{self.path} belongs to a run with another config: {shown}{more}; '
        'choose another --workdir'
      )

  def read_config(self) -> Config:
    """The run's config; keys of today that it lacks have their defaults.

    Raises:
      ConfigError: if there is none.
    """
    found = read_json(self._config_path())
    if found is None:
      raise ConfigError(f'{self.path} holds no config.json')
    return config_lib.of_json(found)

  def read_inputs(self) -> dict[str, Any] | None:
    """What `open` was told of the data; None where there is no run.

    Raises:
      ConfigError: where that, or the config, is not what was written.
    """
    found = read_json(self.path / INPUTS)
    if found is None:
      return None
    whole = isinstance(found, dict)
    sums = found.pop('checksums', None) if whole else None
    there = {CONFIG: read_json(self._config_path()), INPUTS: found}
    for name, content in there.items():
      if not isinstance(sums, dict) or sums.get(name) != checksum(content):
        raise ConfigError(
          f'{self.path / name} is not what the run wrote: restore it from a '
          'copy, or start the same command again, which writes it anew'
        )
    return found

  def open(
    self, config: Config, about: dict[str, Any], tokenizer: bytes = b''
  ) -> None:
    """Creates the directory and writes `config.json` and `inputs.json`.

    Args:
      config: of the run.
      about: its data, as `load.describe` has them.
      tokenizer: the model of one that has been learnt, for `tokenizer.model`.

    Raises:
      ConfigError: if it cannot be written.
    """
    with self._writing():
      self.path.mkdir(parents=True, exist_ok=True)
      self.lock()
      keys = config.to_dict()
      write_json(self._config_path(), keys)
      sums = {CONFIG: checksum(keys), INPUTS: checksum(about)}
      write_json(self.path / INPUTS, about | {'checksums': sums})
      if tokenizer:
        write_whole(self.tokenizer_path(), tokenizer)

  def tokenizer_path(self) -> pathlib.Path:
    """Beside the tokens, which are large and need not be kept."""
    return self.path / 'tokenizer.model'

  def text_directory(self, writer: bool) -> pathlib.Path:
    """The directory for the tokens of a text.

    Args:
      writer: whether to create it, and keep other runs out.

    Raises:
      ConfigError: if it cannot be written, or another run is at work.
    """
    text = self.path / 'text'
    if writer:
      with self._writing():
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        text.mkdir(exist_ok=True)
    return text

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise ConfigError(
        f'cannot write to workdir {self.path} ({error.strerror}): mend that, '
        'or choose another --workdir'
      ) from None

  def read_summary(self) -> dict[str, Any] | None:
    """`summary.json`; None if there is none, or it is not what was written."""
    return read_signed(self.path / 'summary.json')

  def write_plan(self, plan: dict[str, Any]) -> None:
    """Writes `plan.json`, where there may be no run yet.

    Raises:
      ConfigError: if it cannot be written.
    """
    with self._writing():
      self.path.mkdir(parents=True, exist_ok=True)
      write_json(self.path / 'plan.json', plan)

  def write_summary(self, summary: dict[str, Any]) -> None:
    """Writes `summary.json`.

    Raises:
      WriteError: if it cannot be written.
    """
    self.check_in_place()
    write_signed(self.path / 'summary.json', summary)
