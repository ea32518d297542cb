"""How many updates one call of a program does.

A call costs the host a few hundred microseconds, whatever is in it, so short
updates are done several in a call, in a loop. With `updates_per_call='auto'` a
rule says whether there is a loop, because with one results may differ by
rounding, and the same config is to train the same each time: there is none
where convolutions run on a CPU, which XLA does far slower in a loop, and none
where an update keeps an accelerator busy for so long that the host is ahead
anyway. How many updates a call then does changes nothing that is computed, and
is measured: as many as take a short while.
"""

import math
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from adabatch.config import Config
from adabatch.controllers.buckets import Bucket
from adabatch.devices.mesh import of_first_process

MOST = 256  # updates of a call, beyond which its own cost is not seen
MOST_INDICES = 2**18  # of examples, a call's: what the host copies at most
# Of an update on an accelerator, which takes a few hundred microseconds then.
LITTLE = 2e10  # floating-point operations
# After so long a run listens to who stops it; a call costs the 100th part.
CALL_SECONDS = 0.05
MEASURED = 8  # calls in each bucket: the first is slow, and soon few of many


def is_automatic(config: Config) -> bool:
  return config.updates_per_call == 'auto'


def most_in_a_call(config: Config, updates: int, looped: bool) -> int:
  """`updates_per_call`, or less where calls always end sooner.

  Args:
    config: the whole config.
    updates: of the run, at most.
    looped: whether there is a loop where nobody says it.
  """
  c, checkpoint = config.controller, config.checkpoint.every_updates
  decisions = [] if c.name == 'constant' else [max(c.every, c.wait)]
  most = config.updates_per_call
  if is_automatic(config):
    most = MOST if looped else 1
  return min(most, updates, checkpoint, *decisions)


class Work(NamedTuple):
  """What a function computes.

  Attributes:
    flops: of matrix products and convolutions.
    convolves: whether there are any of the latter.
  """

  flops: float
  convolves: bool


def work_of(jaxpr: Any) -> Work:
  """Counts the products of a function, in loops as often as they go round.

  Of a loop of unknown length once; of the branches of a conditional all.

  Args:
    jaxpr: of it, from `jax.make_jaxpr`.

  >>> import numpy as np
  >>> x, w = np.ones((2, 4)), np.ones((3, 4, 4))
  >>> run = lambda x, w: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]
  >>> work_of(jax.make_jaxpr(run)(x, w)).flops
  192.0
  """
  flops, convolves = 0.0, False
  for eqn in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    name, p = eqn.primitive.name, eqn.params
    out = math.prod(getattr(eqn.outvars[0].aval, 'shape', ()))
    if name == 'dot_general':
      ((contracted, _), _), shape = p['dimension_numbers'], eqn.invars[0].aval
      flops += 2.0 * out * math.prod(shape.shape[i] for i in contracted)
    elif name == 'conv_general_dilated':
      # The kernel has as many numbers for each channel that comes out.
      kernel, where = eqn.invars[1].aval.shape, p['dimension_numbers'].rhs_spec
      flops += 2.0 * out * math.prod(kernel) / kernel[where[0]]
      convolves = True
    times = p['length'] if name == 'scan' else 1
    for inner in jax.tree.leaves(
      list(p.values()), is_leaf=lambda x: hasattr(x, 'eqns')
    ):
      if hasattr(inner, 'eqns'):
        more = work_of(inner)
        flops += times * more.flops
        convolves |= more.convolves
  return Work(flops, convolves)


def is_looped(
  platform: str,
  model: nn.Module,
  variables: Any,
  example: jax.ShapeDtypeStruct,
  bucket: Bucket,
) -> bool:
  """Whether updates are short enough for a loop, and fit for one.

  Args:
    platform: of the devices.
    model, variables: and the shapes of its variables.
    example: shape of a batch with one of its inputs.
    bucket: the smallest one.
  """
  forward = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))
  work = work_of(forward(variables, example))
  if platform == 'cpu':
    return not work.convolves
  # Backwards there are two products for each one forwards.
  return 3 * work.flops * bucket.slots_per_device < LITTLE


class Pace:
  """How many updates a call does, by what the first ones took.

  All processes say the same: the first one's clock counts.

  Attributes:
    most: updates of the next call.
    measures: whether what calls take is to be told.
  """

  def __init__(self, automatic: bool):
    """`automatic`: else as many as there is room for."""
    self._automatic = automatic
    # Of all that were measured: where a report comes late the next is early.
    self._known: dict[Bucket, tuple[int, int, float]] = {}
    self._bucket: Bucket | None = None
    self._room = self.most = 1
    self.measures = False

  def begin(self, bucket: Bucket, room: int) -> None:
    """Calls of at most `room` updates in a bucket are next."""
    self._bucket, self._room = bucket, room
    self._decide(bucket)

  def saw(self, bucket: Bucket, updates: int, seconds: float) -> None:
    """What a call of so many updates in a bucket took."""
    if bucket == self._bucket:
      calls, done, spent = self._known.get(bucket, (0, 0, 0.0))
      spent += of_first_process(seconds)
      self._known[bucket] = calls + 1, done + updates, spent
      self._decide(bucket)

  def _decide(self, bucket: Bucket) -> None:
    calls, done, spent = self._known.get(bucket, (0, 0, 0.0))
    free = self._automatic and self._room > 1
    self.most, self.measures = self._room, free and calls < MEASURED
    if free:
      fit = int(CALL_SECONDS * done / max(spent, 1e-9))
      self.most = max(1, min(self._room, fit))
