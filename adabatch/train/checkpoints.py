"""Checkpoints: one record for all that a run needs to go on.

A record holds the train state (arrays) and the host's side (plain JSON:
controller state, examples, clock, counters). It is written in the background
and becomes visible only when it is whole.
"""

import contextlib
import functools
import inspect
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from adabatch.train.write_errors import (
  leave_out_abandoned_writes,
  writing_records,
)


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


def _silence_abandoned_reads() -> None:
  """Leaves it at one line about a broken record.

  When one of its reads fails Orbax abandons the others, and each of those
  prints a page: when it ends (its event loop is closed) or is collected.
  """
  hook = sys.unraisablehook

  def say_the_rest(unraisable):
    read = unraisable.object
    of_orbax = inspect.iscoroutine(read) and 'orbax' in read.cr_code.co_filename
    closed = str(unraisable.exc_value) == 'Event loop is closed'
    if not (of_orbax or closed):
      hook(unraisable)

  sys.unraisablehook = say_the_rest


class Checkpoints:
  """The checkpoints of one run, in one directory."""

  def __init__(self, directory: pathlib.Path, keep: int | None):
    """The newest `keep` are kept; the directory is created with the first.

    None: it is only read.
    """
    self._directory, self._keep = directory.absolute(), keep

  @functools.cached_property
  def _manager(self) -> ocp.CheckpointManager:
    writes = self._keep is not None
    options = ocp.CheckpointManagerOptions(
      max_to_keep=self._keep,
      create=writes,
      cleanup_tmp_directories=writes,
      # Processes meet by name, and two directories may be written at once.
      multiprocessing_options=ocp.options.MultiprocessingOptions(
        barrier_sync_key_prefix=self._directory.name
      ),
    )
    refused = writing_records if writes else contextlib.nullcontext
    with refused(self._directory):
      return ocp.CheckpointManager(self._directory, options=options)

  def updates(self) -> list[int]:
    """Of the records that are there, from the oldest."""
    return sorted(self._manager.all_steps()) if self._directory.is_dir() else []

  def save(self, update: int, state: Any, host: dict[str, Any]) -> None:
    """Writes a record in the background; returns once `state` was copied.

    Raises:
      WriteError: if this one or the one before cannot be written.
    """
    leave_out_abandoned_writes()
    with writing_records(self._directory):
      if update in self._manager.all_steps():
        return
      self._manager.save(
        update,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host)
        ),
      )

  def restore(self, template: Any, warn=print) -> Saved | None:
    """The newest readable record; None if there is none at all.

    A record that cannot be read (a disk that filled up, a file cut short) is
    reported and removed, and the one before it is taken.

    Args:
      template: a state of the right structure, shapes and shardings; or a
        function that makes one from the record's host side, or raises a
        CheckpointError if the record is whole but not one to go on from.
      warn: called with one line for each record that could not be read.

    Raises:
      CheckpointError: if there are records and none can be read.
    """
    if not self._directory.is_dir() or not any(self._directory.iterdir()):
      return None
    updates = sorted(self._manager.all_steps(), reverse=True)
    if not updates:
      return None
    hook, broken = sys.unraisablehook, []
    _silence_abandoned_reads()
    try:
      for update in updates:
        try:
          record = self._read(update, template)
        except CheckpointError:
          raise
        # Where data are missing Orbax raises `Exception` itself.
        except Exception as error:  # noqa: BLE001
          reason = (str(error).splitlines() or [''])[0][:200]
          warn(
            f'checkpoint of update {update} cannot be read '
            f'({type(error).__name__}: {reason}); trying the one before'
          )
          broken.append(update)
          continue
        for given_up in broken:
          self._manager.delete(given_up)
        return record
    finally:
      if not broken:
        sys.unraisablehook = hook
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
        f'checkpoint of update {update} in {self._directory} cannot be read: '
        f'{(str(error).splitlines() or [""])[0][:200]}'
      ) from error

  def _read(self, update: int, template: Any) -> Saved:
    def read(**args) -> Any:
      return self._manager.restore(update, args=ocp.args.Composite(**args))

    host = read(host=ocp.args.JsonRestore())['host']
    if template is None:
      return Saved(update, None, host)
    if callable(template):
      template = template(host)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    state = read(state=ocp.args.StandardRestore(abstract))['state']
    return Saved(update, state, host)

  def drop_after(self, update: int) -> None:
    """Removes the records of later updates, which are to be done again."""
    for later in self.updates():
      if later > update:
        with writing_records(self._directory):
          self._manager.delete(later)

  def check(self) -> None:
    """Raises what went wrong in the background, as soon as it is known.

    Raises:
      WriteError: if the newest record could not be written.
    """
    if '_manager' in vars(self) and not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Returns when everything saved is on disk."""
    with writing_records(self._directory):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for what is being written."""
    if '_manager' in vars(self):
      with writing_records(self._directory):
        self._manager.close()
