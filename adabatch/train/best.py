"""The checkpoint of the best evaluation: held in memory until it is written.

It is written before a checkpoint of later updates is, so that whatever a run
goes on from, the best before that is on disk too; and not at all while the
newest checkpoint is the best one. A run that is killed goes back to its newest
checkpoint and evaluates anew what came after.
"""

import copy
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from adabatch.train.calls import Progress
from adabatch.train.checkpoints import Saved

# (update, state, host's side) is kept.
Save = Callable[[int, Any, dict[str, Any]], None]


class Best:
  """Keeps the best checkpoint.

  Args:
    save: writes one.
    saved: what is gone on from; None: a start.
  """

  def __init__(self, save: Save, saved: Saved | None):
    self._save, self._held = save, None
    if saved is not None and _is_best(saved):
      self.hold(*saved)

  def hold(self, update: int, state: Any, host: dict[str, Any]) -> None:
    """What is best from now on; copied, so that training may go on.

    Several processes write it at once, from their devices: of replicas none of
    them has all, and what one holds in memory Orbax does not take from many.
    """
    if jax.process_count() > 1:
      self._save(update, state, host)
      return
    # On a CPU what `device_get` gives is the memory of the array itself.
    copied = jax.tree.map(np.array, jax.device_get(state))
    self._held = Saved(update, copied, copy.deepcopy(host))

  def after(self, saved: Saved | None) -> 'Best':
    """The same where the run went back; what it had found since is dropped."""
    return Best(self._save, saved)

  def write(self, update: int) -> None:
    """Before a checkpoint of this update is written."""
    if self._held is not None and self._held.update < update:
      self._save(*self._held)
      self._held = None


def _is_best(saved: Saved) -> bool:
  return Progress(**saved.host['progress']).best_update == saved.update
