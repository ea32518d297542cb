"""Checkpoints: one record for all that a run needs to go on.

A record holds the train state (arrays) and the host's side (plain JSON:
controller state, examples, clock, counters), and the checksums of both. It is
written in the background and becomes visible only when it is whole. Older ones
are removed once it was read back.
"""

import contextlib
import functools
import itertools
import json
import pathlib
import shutil
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from adabatch.config.files import WriteError
from adabatch.devices.agreed import decide
from adabatch.devices.checksums import checksums, differing
from adabatch.devices.mesh import any_process, is_first_process
from adabatch.train.orbax_errors import (
  Overheard,
  leave_out_abandoned_writes,
  quietly,
  writing_records,
)

VERSION = 3  # of a record
PAUSES = 0.1, 0.3, 1.0  # seconds, after each of which a read is tried again
# Orbax splits an array among the devices that have copies of it, and each slice
# is a program to compile: on 8 devices a second and more for a small network.
# Where a slice would be smaller than these bytes, one device writes it all.
SMALLEST_SLICE = 2**20


class Saved(NamedTuple):
  """A restored checkpoint.

  Attributes:
    update: updates done when it was written.
    state: the train state, placed like the template it was restored into.
    host: the JSON side.
  """

  update: int
  state: Any
  host: dict[str, Any]


class CheckpointError(RuntimeError):
  """No checkpoint of a directory that holds some could be read."""


class VersionError(CheckpointError):
  """A record that is whole, but of another version."""


class _DamagedError(Exception):
  """A record that is not what was written."""


def _signed(host: dict[str, Any], state: Any) -> dict[str, Any]:
  """The JSON of a record, as it will be read."""
  record = {'version': VERSION, 'host': host, 'state': checksums(state)}
  record = json.loads(json.dumps(record))
  return record | {'checksum': _checksum(record)}


def _checksum(record: dict[str, Any]) -> int:
  return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _verified(record: Any) -> dict[str, Any]:
  """What was signed.

  Raises:
    VersionError: if another version did.
    _DamagedError: if it was something else.
  """
  record = record if isinstance(record, dict) else {}
  signed = {'version', 'checksum'} & record.keys()
  if not signed and 'progress' in record:
    raise VersionError('was written by an earlier version of adabatch')
  rest = {k: v for k, v in record.items() if k != 'checksum'}
  if record.get('checksum') != _checksum(rest):
    raise _DamagedError('its JSON is not what was written')
  if record['version'] != VERSION:
    raise VersionError(
      f'is of version {record["version"]}, and this adabatch reads {VERSION}'
    )
  return rest


def _reason(error: Exception) -> str:
  return f'{type(error).__name__}: {(str(error).splitlines() or [""])[0][:200]}'


def _on_host(x: Any) -> np.ndarray:
  """Something of its shape that needs no memory, to restore into."""
  return np.broadcast_to(np.zeros((), x.dtype), x.shape)


def _handlers(overheard: Overheard) -> ocp.handlers.CheckpointHandlerRegistry:
  """What writes and reads the two sides of a record."""
  of = ocp.type_handlers
  kinds = of.create_type_handler_registry(
    (np.ndarray, of.NumpyHandler()),
    (
      jax.Array,
      of.ArrayHandler(min_slice_bytes_for_replica_parallel=SMALLEST_SLICE),
    ),
  )
  writer = overheard(ocp.PyTreeCheckpointHandler(type_handler_registry=kinds))
  reader = ocp.StandardCheckpointHandler()
  registry = ocp.handlers.create_default_handler_registry(
    host=overheard(ocp.JsonCheckpointHandler())
  )
  registry.add('state', ocp.args.PyTreeSave, writer)
  registry.add('state', ocp.args.StandardRestore, reader)
  return registry


class Checkpoints:
  """The checkpoints of one run, in one directory.

  Attributes:
    spare: a record that is not removed for its age; None: there is none such.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    keep: int | None,
    warn: Callable[[str], None] = print,
  ):
    """The newest `keep` are kept; the directory is created with the first.

    Args:
      directory: may hold some.
      keep: how many; None: it is only read.
      warn: called with one line for each record that cannot be read back.
    """
    self._directory, self._keep = directory.absolute(), keep
    self.spare: int | None = None
    self._warn = warn
    self._reader = ThreadPoolExecutor(1)
    self._read_back: Future[None] | None = None
    self._told = False  # what could not be written
    self._overheard = Overheard()

  @functools.cached_property
  def _manager(self) -> ocp.CheckpointManager:
    writes = self._keep is not None
    options = ocp.CheckpointManagerOptions(
      create=writes,
      cleanup_tmp_directories=writes,
      # Processes meet by name, and two directories may be written at once.
      multiprocessing_options=ocp.options.MultiprocessingOptions(
        barrier_sync_key_prefix=self._directory.name
      ),
    )
    refused = writing_records if writes else contextlib.nullcontext
    with refused(self._directory), quietly():
      return ocp.CheckpointManager(
        self._directory,
        options=options,
        handler_registry=_handlers(self._overheard),
      )

  def updates(self) -> list[int]:
    """Of the records that are there, from the oldest."""
    if not self._directory.is_dir():
      return []
    if self._keep is None:  # Orbax fails at one that goes while it looks
      return self._named()
    with quietly():
      self._manager.reload()  # who removes or renames does not tell it
    return sorted(self._manager.all_steps())

  def _named(self) -> list[int]:
    """Those whose names are updates: a record has one once it is whole."""
    names = (path.name for path in self._directory.iterdir())
    return sorted(int(name) for name in names if name.isdigit())

  def save(self, update: int, state: Any, host: dict[str, Any]) -> None:
    """Writes a record in the background; returns once `state` was copied.

    Where there are then more than `keep` it is read back there as well, and the
    oldest are removed after that.

    Raises:
      WriteError: if this one or the one before cannot be written.
    """
    leave_out_abandoned_writes()
    with writing_records(self._directory):
      if update in self._manager.all_steps():
        return
      self.wait()
      self._manager.save(
        update,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(state),
          host=ocp.args.JsonSave(_signed(host, state)),
        ),
      )
    if is_first_process():
      template = jax.tree.map(_on_host, state)
      self._read_back = self._reader.submit(self._confirm, update, template)

  def _confirm(self, update: int, template: Any) -> None:
    """Removes what is too old, if this record can be read back."""
    self._manager.wait_until_finished()
    assert self._keep is not None, 'it is written'
    too_old = [u for u in self._named() if u <= update][: -self._keep]
    too_old = [old for old in too_old if old != self.spare]
    if not too_old:
      return
    try:
      self._read(update, template)
    # Where data are missing Orbax raises `Exception` itself.
    except Exception as error:  # noqa: BLE001
      self._warn(
        f'checkpoint of update {update} cannot be read back '
        f'({_reason(error)}): set aside as {self._set_aside(update)}, and '
        'those before it are kept'
      )
      return
    for old in too_old:
      shutil.rmtree(self._directory / str(old))

  def _set_aside(self, update: int) -> str:
    """Renames what cannot be read, so that nobody takes it for a record."""
    path = self._directory / str(update)
    for count in itertools.count(1):
      name = f'{update}.unreadable' + (f'-{count}' if count > 1 else '')
      if not (target := path.with_name(name)).exists():
        path.rename(target)
        return name
    raise AssertionError('it counts without end')

  def restore(self, template: Any, warn=print) -> Saved | None:
    """The newest readable record; None if there is none at all.

    A record that cannot be read (a disk that filled up, a file cut short, a bit
    that flipped) is reported and set aside as `N.unreadable`, and the one
    before it is taken. Processes agree on which one they take.

    Args:
      template: a state of the right structure, shapes and shardings; or a
        function that makes one from the record's host side, or raises a
        CheckpointError if the record is whole but not one to go on from.
      warn: called with one line for each record that could not be read.

    Raises:
      VersionError: if the newest readable one is of another version.
      CheckpointError: if there are records and none can be read.
    """
    # Another process may not see yet, or no longer, what the first does.
    updates, broken = decide(self.updates())[::-1], []
    if not updates:
      return None
    for update in updates:
      saved, reason, refused = None, 'by another process', None
      try:
        saved = self._read(update, template)
      except CheckpointError as error:
        refused = error
      # Where data are missing Orbax raises `Exception` itself.
      except Exception as error:  # noqa: BLE001
        reason = _reason(error)
      if any_process(saved is None and refused is None):
        warn(
          f'checkpoint of update {update} cannot be read ({reason}); trying '
          'the one before'
        )
        broken.append(update)
        continue
      if refused is not None:
        raise refused
      if broken:
        if is_first_process():
          for given_up in broken:
            self._set_aside(given_up)
        any_process(True)  # which waits for the first
        self.updates()
      return saved
    raise CheckpointError(
      f'none of the checkpoints in {self._directory} can be read: restore '
      'them from a copy, or start in another workdir'
    )

  def read(self, update: int | None, template: Any) -> Saved:
    """One record; nothing is changed on disk.

    Args:
      update: which; None: the newest.
      template: as for `restore`; None: the host's side alone.

    Raises:
      VersionError: if it is of another version.
      CheckpointError: if it is not there, or cannot be read.
    """
    updates = self.updates()
    if not updates:
      raise CheckpointError(f'{self._directory} holds no checkpoint')
    if update not in (None, *updates):
      raise CheckpointError(
        f'{self._directory} holds no checkpoint of update {update}, but of '
        f'{", ".join(map(str, updates))}'
      )
    update = updates[-1] if update is None else update
    try:
      return self._read(update, template)
    except CheckpointError:
      raise
    # Where data are missing Orbax raises `Exception` itself.
    except Exception as error:  # noqa: BLE001
      raise CheckpointError(
        f'checkpoint of update {update} in {self._directory} cannot be read '
        f'({_reason(error)}): restore it from a copy'
      ) from error

  def _read(self, update: int, template: Any) -> Saved:
    """A record, once more after each pause if it cannot be read."""
    for pause in PAUSES:
      try:
        return self._read_once(update, template)
      except CheckpointError:
        raise
      except Exception:  # noqa: BLE001
        time.sleep(pause)
    return self._read_once(update, template)

  def _read_once(self, update: int, template: Any) -> Saved:
    # Each process for itself: where one fails, none waits for it.
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
      primary_host=me, active_processes={me}
    )
    options = ocp.CompositeOptions(multiprocessing_options=alone)
    handler = ocp.CompositeCheckpointHandler(composite_options=options)
    path = self._directory / str(update)
    with (
      quietly(),
      ocp.Checkpointer(handler, multiprocessing_options=alone) as reader,
    ):

      def read(**args) -> Any:
        return reader.restore(path, args=ocp.args.Composite(**args))

      record = read(host=ocp.args.JsonRestore())['host']
      try:
        record = _verified(record)
      except VersionError as error:
        raise VersionError(
          f'the checkpoint of update {update} in {self._directory} {error}: '
          'start in another workdir, or use that version'
        ) from None
      host = record['host']
      if template is None:
        return Saved(update, None, host)
      if callable(template):
        template = template(host)
      state = read(state=ocp.args.StandardRestore(template))['state']
    if wrong := differing(state, record['state']):
      raise _DamagedError(f'{", ".join(wrong[:3])}: not what was written')
    return Saved(update, state, host)

  def drop_after(self, update: int) -> None:
    """Removes the records of later updates, which are to be done again."""
    self.wait()
    for later in self.updates():
      if later > update:
        with writing_records(self._directory):
          self._manager.delete(later)

  def check(self) -> None:
    """Raises what went wrong in the background, as soon as it is known.

    Raises:
      WriteError: if the newest record could not be written.
    """
    if '_manager' not in vars(self):
      return
    if self._overheard.errors or not self._busy():
      self.wait()

  def _busy(self) -> bool:
    reading = self._read_back
    return self._manager.is_saving_in_progress() or not (
      reading is None or reading.done()
    )

  def wait(self) -> None:
    """Returns when everything saved is on disk, and was read back."""
    if '_manager' not in vars(self):
      return
    try:
      with writing_records(self._directory):
        while jax.process_count() > 1 and self._busy():
          # Orbax would wait for the others.
          if self._overheard.errors:
            raise self._overheard.errors[0]
          time.sleep(0.01)
        reading, self._read_back = self._read_back, None
        if reading is not None:
          reading.result()
        self._manager.wait_until_finished()
    except WriteError:
      self._told = True
      raise

  def abandon(self, seconds: float = 5.0) -> None:
    """`close` where this process fails: others may not come to be waited for.

    Args:
      seconds: for a record that can be whole yet.
    """
    if jax.process_count() > 1 and '_manager' in vars(self):
      ends = time.monotonic() + seconds
      while self._busy() and time.monotonic() < ends:
        if self._overheard.errors:
          break
        time.sleep(0.01)
      if self._busy():
        self._reader.shutdown(wait=False)
        return
    self.close()

  def close(self) -> None:
    """Waits for what is being written; says once what could not be."""
    with self._reader:
      if '_manager' not in vars(self):
        return
      try:
        if not self._told:
          self.wait()
      finally:
        told = (WriteError,) if self._told else ()
        with contextlib.suppress(*told), writing_records(self._directory):
          self._manager.close()
