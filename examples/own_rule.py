"""A batch-size rule of one's own: larger by a factor when the loss stalls.

    python launch.py --config=examples/own_rule.py \\
        --config.controller.plateau.factor=4.0

A rule is two pure functions on plain numbers. `controller.every` and the other
wrappers go around it, beyond `controller.max_batch_size` the learning rate is
damped, and its state, a NamedTuple, is kept in the checkpoints.
"""

from typing import NamedTuple

import adabatch
from adabatch import config
from adabatch.controllers import BatchSizeController, always


class State(NamedTuple):
  batch_size: float
  best: float = float('inf')
  since: float = 0.0  # decisions without a better loss


def plateau(*, initial_batch_size, factor=2.0, patience=2, most=256.0):
  """Grows by `factor`, up to `most`, after `patience` decisions without a
  better loss."""

  def init():
    return State(float(initial_batch_size))

  def update(state, signals):
    if signals.loss is None:  # before the first update
      return state.batch_size, state
    if signals.loss < state.best:
      state = State(state.batch_size, signals.loss)
    else:
      state = state._replace(since=state.since + 1)
    if state.since >= patience:
      state = State(min(state.batch_size * factor, most), state.best)
    return state.batch_size, state

  return BatchSizeController(init, update, frozenset({'loss'}), always)


def get_config():
  c = config.default()
  c.epochs = 10.0
  c.controller.initial_batch_size = 16
  c.controller.max_batch_size = 128
  c.controller.every = 5
  adabatch.register(c, 'controller', 'plateau', plateau)
  return c
