"""What a run keeps while it trains: checkpoints, and the log beside them."""

import contextlib
import threading
from typing import Any

from adabatch import data
from adabatch.config import ConfigError
from adabatch.devices.mesh import is_first_process
from adabatch.devices.trainer import template
from adabatch.train import agreement, elastic
from adabatch.train.build import Parts
from adabatch.train.checkpoints import Checkpoints, Saved
from adabatch.train.console import Console
from adabatch.train.load import describe
from adabatch.train.log import Log
from adabatch.train.metrics import Mark
from adabatch.train.workdir import Workdir


class Kept:
  """The checkpoints of a run and its log, which go together.

  Attributes:
    log: of the records.
  """

  def __init__(
    self,
    parts: Parts,
    files: Workdir,
    console: Console,
    stop: threading.Event,
  ):
    """Nothing is read or written yet."""
    self._parts, self._files, self._console = parts, files, console
    self._stop = stop
    keep = parts.config.checkpoint.keep
    self._checkpoints = Checkpoints(
      files.path / 'checkpoints', keep, console.say
    )
    self._best = Checkpoints(files.path / 'best', 1, console.say)
    inputs = parts.recipe.inputs
    self.log = Log(
      parts.config,
      files,
      console,
      about=describe(inputs),
      tokenizer=b'' if inputs.tokenizer is None else inputs.tokenizer.model,
      enabled=is_first_process(),
    )

  def restore(self) -> Saved | None:
    """The newest checkpoint, if it is of a run on the same data.

    Raises:
      ConfigError: if it is not.
      CheckpointError: if there are some and none can be read.
    """

    def state(host: dict[str, Any]) -> Any:
      return template(self._parts.recipe, host['replicas']['replicas'])

    saved = self._checkpoints.restore(state, warn=self._console.say)
    self.log.restored(_mark(saved))
    self._best.spare = _best_update(saved)
    if saved is None:
      return None
    for which, here in self._parts.fingerprints.items():
      there = saved.host['data'][which]
      if not data.same_data(there, here):
        raise ConfigError(
          f'{self._files.path} belongs to a run on other {which} data ({there} '
          f'there, {here} here); choose another workdir'
        )
    return saved

  def resume(self) -> Saved | None:
    """`restore` at the start of a run, which says so."""
    saved = self.restore()
    if saved is not None:
      self._console.say(
        f'resumed at update {saved.update} from {self._files.path}'
      )
    return saved

  def drop_after(self, saved: Saved | None) -> None:
    """Removes what was best later, which is to be done again."""
    self._best.drop_after(-1 if saved is None else saved.update)

  def go_back(self) -> Saved | None:
    """The newest checkpoint once more, for a run that goes back to it."""
    self._wait()
    saved = self.restore()
    self.drop_after(saved)
    return saved

  def save(self, update: int, state: Any, host: dict[str, Any]) -> None:
    """A checkpoint, once all processes are found to be at the same thing.

    Raises:
      Differ: if they are not.
      WriteError: if it, or the one before, cannot be written.
    """
    agreement.same_run(update, host)
    self._checkpoints.save(update, state, host | self.log.saving())
    # Whoever goes back to this one finds what was the best then.
    self._best.spare = host['progress']['best_update']
    if self._parts.config.processes.restarts:
      elastic.let_in(self._files.path, self._wait, self._stop)

  def _wait(self) -> None:
    self._best.wait()
    self._checkpoints.wait()

  def save_best(self, *record: Any) -> None:
    """That of the best evaluation."""
    self._files.check_in_place()
    self._best.save(*record)

  def write(self, kind: str, record: dict[str, Any]) -> None:
    """A record of the loop; raises what went wrong in the background."""
    self.log.write(kind, record)
    for checkpoints in (self._checkpoints, self._best):
      checkpoints.check()

  def __enter__(self) -> 'Kept':
    return self

  def __exit__(self, kind: Any, *error: Any) -> None:
    """Waits for what is being written; not for long where the run failed."""
    with contextlib.ExitStack() as stack:
      for checkpoints in (self._checkpoints, self._best):
        stack.callback(checkpoints.abandon if kind else checkpoints.close)
      self.log.close()


def _best_update(saved: Saved | None) -> int | None:
  return None if saved is None else saved.host['progress']['best_update']


def _mark(saved: Saved | None) -> Mark | None:
  """Of the lines until a checkpoint; None: it does not say."""
  known = {} if saved is None else saved.host.get('metrics')
  return None if known is None else Mark(**known)
