"""What a compiled program does, read from its text.

XLA writes beside each instruction of a TPU's program what its own cost model
expects of it (`estimated_cycles`), and for each loop, where it knows, how often
it goes round. What stands in a loop counts so many times.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

BYTES = {
  'pred': 1.0,
  's4': 0.5,
  'u4': 0.5,
  's8': 1.0,
  'u8': 1.0,
  'f8e4m3fn': 1.0,
  'f8e5m2': 1.0,
  's16': 2.0,
  'u16': 2.0,
  'f16': 2.0,
  'bf16': 2.0,
  's32': 4.0,
  'u32': 4.0,
  'f32': 4.0,
  's64': 8.0,
  'u64': 8.0,
  'f64': 8.0,
  'c64': 8.0,
}
COLLECTIVES = frozenset(
  [
    'all-reduce',
    'all-gather',
    'reduce-scatter',
    'all-to-all',
    'collective-permute',
  ]
)
UNKNOWN = 2**62  # cycles that XLA writes where it does not know
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,]*)\]')
_COMPUTATION = re.compile(r'\n(?=(?:ENTRY )?%?[\w.\-]+ \()')
_NAME = re.compile(r'\s*(ENTRY )?%?([\w.\-]+) \(')
_INSTRUCTION = re.compile(
  r'^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>.*?) '
  r'(?P<op>[a-z][\w\-]*)\((?P<rest>.*)$'
)
# What moves nothing, or whose traffic is that of another instruction.
_FREE = frozenset(
  [
    'after-all',
    'bitcast',
    'constant',
    'get-tuple-element',
    'optimization-barrier',
    'parameter',
    'tuple',
  ]
)


# What reads a part of its first operand.
_CHOOSES = frozenset(['dynamic-slice', 'gather', 'slice'])


class Collective(NamedTuple):
  """One kind of exchange between devices.

  Attributes:
    kind: of COLLECTIVES.
    times: how often an update does it.
    bytes: of each.
    overlapped: whether other work goes on meanwhile.
    devices: that take part in each; None: not said.
  """

  kind: str
  times: int
  bytes: float
  overlapped: bool
  devices: int | None


class Cost(NamedTuple):
  """Of a program.

  Attributes:
    cycles: the compiler's estimate; of a conditional its cheapest branch, for
      what is done seldom has the other.
    traffic: bytes that instructions read from and write to the large memory.
    unknown: instructions of which it has none.
    collectives: all of them.
    aliased: arguments whose memory the results take over.
    spared: beside them, those of the other branches.
  """

  cycles: float
  traffic: float
  unknown: int
  collectives: tuple[Collective, ...]
  aliased: int
  spared: float = 0.0


def size_of(shape: str) -> float:
  """Bytes of all arrays in a shape.

  >>> size_of('(f32[128]{0:T(128)S(1)}, bf16[2,3]{1,0}, s32[])')
  528.0
  """
  return sum(
    BYTES.get(kind, 0.0) * math.prod(int(n) for n in sides.split(',') if n)
    for kind, sides in _ARRAY.findall(shape)
  )


def large(shape: str) -> float:
  """Bytes of the arrays in a shape that lie in the large memory.

  >>> large('(f32[128]{0:T(128)S(1)}, f32[2]{0:T(128)})')
  8.0
  """
  arrays = re.findall(r'([a-z]\w*\[[\d,]*\])(\{[^}]*\})?', shape)
  return sum(size_of(array) for array, lies in arrays if 'S(' not in lies)


def read(text: str) -> Cost:
  """What `compiled.as_text()` says.

  Args:
    text: of a scheduled module.

  Raises:
    ValueError: if it is no module.
  """
  computations, entry = {}, None
  for part in _COMPUTATION.split(text):
    if (match := _NAME.match(part)) is not None:
      computations[match[2]] = part
      entry = match[2] if match[1] else entry
  if entry is None:
    raise ValueError('the text holds no ENTRY computation')

  @functools.cache
  def chosen(name: str) -> dict[int, float]:
    return _chosen(computations.get(name, ''))

  @functools.cache
  def cost(name: str) -> Cost:
    cycles, traffic, unknown, spared = 0.0, 0.0, 0, 0.0
    found: list[Collective] = []
    shapes: dict[str, str] = {}
    for line in computations[name].splitlines():
      match = _INSTRUCTION.match(line)
      if match is None:
        continue
      op = match['op']
      shapes[match['name']] = match['shape']
      if op in ('while', 'call', 'conditional'):
        times = _trips(line, computations) if op == 'while' else 1
        callees = _branches(line)
        inners = [*map(cost, callees or [_called(line, 'body')])]
        least = inners
        if op == 'conditional':
          least = [min(inners, key=lambda inner: inner.cycles)]
        spared += times * sum(i.cycles + i.spared for i in inners)
        for inner in least:
          spared -= times * inner.cycles
          cycles += times * inner.cycles
          traffic += times * inner.traffic
          unknown += inner.unknown
        for inner in inners:
          found += [
            c._replace(times=c.times * times) for c in inner.collectives
          ]
        continue
      if op in ('call-start', 'async-start'):  # on cores of its own, meanwhile
        inner = cost(_branches(line)[0])
        found += [c._replace(overlapped=True) for c in inner.collectives]
      traffic += _traffic(op, match, shapes, chosen)
      estimate = re.search(r'"estimated_cycles":"(\d+)"', line)
      if estimate is not None and int(estimate[1]) < UNKNOWN:
        cycles += int(estimate[1])
      elif estimate is not None:
        unknown += 1
      if (collective := _collective(op, match['shape'], line)) is not None:
        found.append(collective)
    return Cost(cycles, traffic, unknown, tuple(found), 0, spared)

  alias = re.search(r'input_output_alias=\{(.*?)\}, (?:entry|allow)', text)
  aliased = 0 if alias is None else len(re.findall(r'\(\d+, \{', alias[1]))
  return cost(entry)._replace(aliased=aliased)


def _traffic(
  op: str,
  match: re.Match[str],
  shapes: dict[str, str],
  chosen: Callable[[str], dict[int, float]],
) -> float:
  """Bytes in the large memory of one instruction.

  Args:
    op: its kind.
    match: of its line.
    shapes: of what was computed before it.
    chosen: see `_chosen`.
  """
  if op in _FREE or op.endswith('-done') or op == 'call-start':
    return 0.0
  if op == 'copy-start':  # what is copied, where it comes from or goes to
    return large(','.join(_arrays(match['shape'])[:2]))
  operands = re.findall(r'%([\w.\-]+)', match['rest'].split('), ')[0])
  parts: dict[int, float] = {}
  if op in _CHOOSES:
    parts = {0: size_of(match['shape'])}
  elif op == 'fusion':
    parts = chosen(_called(match['rest'], 'calls'))
  read = (large(shapes.get(name, '')) for name in operands)
  return large(match['shape']) + sum(
    min(size, parts.get(i, size)) for i, size in enumerate(read)
  )


def _chosen(text: str) -> dict[int, float]:
  """Of parameters of which a computation reads some rows alone, their bytes."""
  names: dict[str, int] = {}
  found: dict[int, float] = {}
  for line in text.splitlines():
    match = _INSTRUCTION.match(line)
    if match is None:
      continue
    if match['op'] == 'parameter':
      names[match['name']] = int(match['rest'].split(')')[0])
      continue
    operands = re.findall(r'%([\w.\-]+)', match['rest'].split('), ')[0])
    for place, name in enumerate(operands):
      if name in names:
        some = match['op'] in _CHOOSES and place == 0
        size = size_of(match['shape']) if some else math.inf
        found[names[name]] = found.get(names[name], 0.0) + size
  return {i: size for i, size in found.items() if math.isfinite(size)}


def _arrays(shape: str) -> list[str]:
  return re.findall(r'[a-z]\w*\[[\d,]*\](?:\{[^}]*\})?', shape)


def _collective(op: str, shape: str, line: str) -> Collective | None:
  kind = op.removesuffix('-start')
  if kind not in COLLECTIVES:
    return None
  started = op != kind
  size = size_of(shape)
  if started and kind != 'all-reduce':
    size /= 2  # the shape holds what goes in beside what comes out
  return Collective(kind, 1, size, started, _members(line))


def _members(line: str) -> int | None:
  """Devices of the first group.

  >>> _members('replica_groups={{0,1,2,3}}, use'), _members('={{0,2},{1,3}}')
  (4, None)
  >>> _members('replica_groups=[8,32]<=[256]')
  32
  """
  match = re.search(r'replica_groups=\{\{([\d,]*)\}', line)
  if match is not None:
    return len(match[1].split(','))
  match = re.search(r'replica_groups=\[(\d+),(\d+)\]', line)
  return None if match is None else int(match[2])


def _called(line: str, what: str) -> str:
  match = re.search(rf'{what}=%?([\w.\-]+)', line)
  if match is None:
    raise ValueError(f'no {what} in {line[:200]}')
  return match[1]


def _branches(line: str) -> list[str]:
  found = re.findall(
    r'(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)',
    line,
  )
  match = re.search(r'branch_computations=\{([^}]*)\}', line)
  return found + (re.findall(r'%?([\w.\-]+)', match[1]) if match else [])


def _trips(line: str, computations: dict[str, str]) -> int:
  """How often a loop goes round; 1 where nobody says."""
  known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', line)
  if known is not None:
    return int(known[1])
  condition = computations.get(_called(line, 'condition'), '')
  bounds = re.findall(r's32\[\][^=]*constant\((\d+)\)', condition)
  return max(map(int, bounds), default=1)
