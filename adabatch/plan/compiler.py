"""One program by the compiler of a machine, or what is known of it already.

To compile takes minutes where a network is large, and what comes out depends on
the program and the compiler alone: so it is kept, in the user's cache
directory, under a digest of both.
"""

import base64
import hashlib
import importlib.metadata
import pathlib
import time
import zlib
from typing import Any, NamedTuple

from jax.errors import JaxRuntimeError

from adabatch.config.files import read_signed, write_signed, writing
from adabatch.devices.programs import memory_of
from adabatch.devices.stored_programs import settings
from adabatch.plan import hlo
from adabatch.plan.topology import Topology
from adabatch.train.memory import out_of_memory

MEMORY = ('argument', 'output', 'alias', 'temp', 'generated_code')


class Compiled(NamedTuple):
  """What is known of a program that was compiled.

  Attributes:
    cost: of running it once.
    memory: bytes on each device by kind (MEMORY), and `peak`.
    seconds: that compiling took.
    flops: of running it once on a device, as the compiler counts: what stands
      in a loop once. None where it does not.
  """

  cost: hlo.Cost
  memory: dict[str, int]
  seconds: float
  flops: float | None


class TooLarge(NamedTuple):
  """A program that the compiler refuses, for it needs more than there is.

  Attributes:
    why: what it says.
  """

  why: str


class Compiler:
  """Of a machine.

  Attributes:
    versions: of JAX and of the compiler, by package.
  """

  def __init__(self, machine: Topology, keep: pathlib.Path | None):
    """`keep` is where figures are kept; None: nowhere."""
    packages = 'jax', 'jaxlib', *machine.compiler
    self.versions = {
      name: importlib.metadata.version(name) for name in packages
    }
    self._keep, self._platform = keep, machine.devices[0].platform
    place = machine.generation, machine.shape, machine.slices, machine.target
    self._about = repr((self.versions, place, settings(self._platform)))

  def __call__(self, lowered: Any) -> Compiled | TooLarge:
    """Compiles it, if it was not compiled before."""
    if self._keep is None:
      return _read(_compile(lowered, self._platform))
    digest = hashlib.blake2b(self._about.encode(), digest_size=16)
    digest.update(lowered.as_text().encode())
    path = self._keep / f'{digest.hexdigest()}.json'
    known = read_signed(path)
    if known is None:
      known = _compile(lowered, self._platform)
      with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
      write_signed(path, known)
    return _read(known)


def too_large(error: Exception) -> str | None:
  """What a compiler says of memory that does not suffice; None of the rest."""
  text = ' '.join(str(error).split())
  return text[:300] if out_of_memory(error) else None


def _compile(lowered: Any, platform: str) -> dict[str, Any]:
  """What the compiler says of it, or why it refuses; plain data."""
  begin = time.perf_counter()
  try:
    compiled = lowered.compile()
  except JaxRuntimeError as error:
    why = too_large(error)
    if why is None:
      raise
    return {'why': why}
  seconds = time.perf_counter() - begin
  found = compiled.memory_analysis()
  memory = {
    kind: int(getattr(found, f'{kind}_size_in_bytes')) for kind in MEMORY
  }
  memory['peak'] = memory_of(compiled, platform) or 0
  flops = (compiled.cost_analysis() or {}).get('flops')
  packed = base64.b64encode(zlib.compress(compiled.as_text().encode()))
  return {
    'memory': memory,
    'seconds': seconds,
    'flops': flops,
    'text': packed.decode(),
  }


def _read(known: dict[str, Any]) -> Compiled | TooLarge:
  if 'why' in known:
    return TooLarge(known['why'])
  text = zlib.decompress(base64.b64decode(known['text'])).decode()
  about = known['memory'], known['seconds'], known['flops']
  return Compiled(hlo.read(text), *about)
