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

from typing import Any

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
MEASURED = 3  # calls in each bucket, of which the fastest counts


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
  forward = jax.jit(lambda v, x: model.apply(v, x, train=False))
  lowered = forward.lower(variables, example)
  if platform == 'cpu':
    return 'stablehlo.convolution' not in lowered.as_text()
  found: Any = lowered.cost_analysis()
  # Backwards there are two products for each one forwards.
  return 3 * found.get('flops', 0.0) * bucket.slots_per_device < LITTLE


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
    self._seconds: dict[Bucket, list[float]] = {}
    self._bucket: Bucket | None = None
    self._room = self.most = 1
    self.measures = False

  def begin(self, bucket: Bucket, room: int) -> None:
    """Calls of at most `room` updates in a bucket are next."""
    self._bucket, self._room = bucket, room
    self._decide(bucket)

  def saw(self, bucket: Bucket, seconds: float) -> None:
    """What an update of a call in a bucket took."""
    if bucket == self._bucket:
      seconds = max(of_first_process(seconds), 1e-9)
      self._seconds.setdefault(bucket, []).append(seconds)
      self._decide(bucket)

  def _decide(self, bucket: Bucket) -> None:
    known = self._seconds.get(bucket, [])
    free = self._automatic and self._room > 1
    self.most, self.measures = self._room, free and len(known) < MEASURED
    if free:
      fit = int(CALL_SECONDS / min(known)) if known else 1
      self.most = max(1, min(self._room, fit))
