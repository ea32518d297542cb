"""Texts in which sizes and counts are written down."""

import ast
import math
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

_SUFFIXES = {'K': 10**3, 'M': 10**6, 'B': 10**9, 'T': 10**12}


def parse_table(table: Any) -> list[tuple[float, float]]:
  """The (count, size) entries of a `step_table`.

  Raises:
    ValueError: the table is malformed.

  >>> parse_table('0:64 1.5K:128')
  [(0.0, 64.0), (1500.0, 128.0)]
  """
  advice = "write it like '0:64 250K:128' or [(0, 64), (250_000, 128)]"
  try:
    if isinstance(table, str):
      pairs = [entry.split(':') for entry in table.split()]
    else:
      pairs = list(table)
    entries = [(float(parse_count(n)), float(size)) for n, size in pairs]
  except (TypeError, ValueError):
    raise ValueError(f'table={table!r} is malformed; {advice}') from None
  counts = [count for count, _ in entries]
  if (
    not entries
    or not all(math.isfinite(x) for entry in entries for x in entry)
    or counts[0] < 0
    or any(a >= b for a, b in zip(counts, counts[1:], strict=False))
    or any(size < 1 for _, size in entries)
  ):
    raise ValueError(
      f'table={table!r} needs rising counts from 0 and sizes >= 1; {advice}'
    )
  return entries


def read_table(
  table: Any, unit: str, tokens_per_example: float | None
) -> list[tuple[float, float]]:
  """The entries of a `step_table`, in examples.

  Args:
    table: as `parse_table` takes it, with sizes in examples; or OLMo-core's
      `batch_sizes` and `schedule`, with all in tokens, as `parse_olmo` does.
    unit: of the counts, 'examples', 'epochs' or 'tokens'.
    tokens_per_example: for 'tokens'.

  Returns:
    (count, size) pairs; counts in epochs where `unit` is.

  Raises:
    ValueError: the table is malformed, or has sizes that are no whole number of
      examples.

  >>> read_table('0:64 1K:128', 'tokens', 10)
  [(0.0, 64.0), (100.0, 128.0)]
  >>> theirs = 'batch_sizes=[640], schedule=[Duration.tokens(0)]'
  >>> read_table(theirs, 'tokens', 10)
  [(0.0, 64.0)]
  """
  each = per_example(unit, tokens_per_example)
  if not (isinstance(table, str) and 'batch_sizes' in table):
    return [(count / each, size) for count, size in parse_table(table)]
  if unit != 'tokens':
    raise ValueError(
      f'a table with batch_sizes and a schedule counts tokens, not {unit}: set '
      "unit to 'tokens'"
    )
  entries = parse_olmo(table)
  for _, size in entries:
    if size % each:
      raise ValueError(
        f'a batch of {size:g} tokens is no whole number of examples of '
        f'{each:g} tokens: change it or the length of an example'
      )
  return [(count / each, size / each) for count, size in entries]


def parse_olmo(text: str) -> list[tuple[float, float]]:
  """(tokens, tokens of a batch) entries of OLMo-core's batch-size schedule.

  Args:
    text: the arguments of its `BatchSizeSchedulerCallback`, with or without the
      name of that around them; or a dictionary of them, as its configs are
      saved, with durations `{"value": 0, "unit": "tokens"}`. Numbers may be
      products.

  Raises:
    ValueError: it is something else, has other units than tokens or does not
      rise from 0.

  Reference: `BatchSizeSchedulerCallback` of OLMo-core,
  https://github.com/allenai/OLMo-core

  >>> parse_olmo('batch_sizes=[2 * 4096, 4 * 4096], '
  ...            'schedule=[Duration.tokens(0), Duration.tokens(1_000_000)]')
  [(0.0, 8192.0), (1000000.0, 16384.0)]
  """
  try:
    sizes, starts = _olmo_lists(text)
    if len(sizes) != len(starts):
      raise ValueError(f'{len(sizes)} sizes and {len(starts)} durations')
    entries = [
      (_number(_tokens(start)), _number(size))
      for start, size in zip(starts, sizes, strict=True)
    ]
  except (SyntaxError, KeyError, ValueError) as error:
    raise ValueError(
      f'{text!r} is malformed ({error}); write it like batch_sizes=[1024 * '
      '4096, ...], schedule=[Duration.tokens(0), ...], with numbers alone'
    ) from None
  if not entries or entries[0][0] != 0:
    raise ValueError(f'{text!r} does not start at 0: give the size from there')
  return parse_table(entries)


def _olmo_lists(text: str) -> tuple[list[ast.expr], list[ast.expr]]:
  """The entries of `batch_sizes` and of `schedule`."""
  text = text.strip()
  whole = (
    text
    if text.startswith('{') or '(batch_sizes' in ''.join(text.split())
    else f'_({text})'
  )
  call = ast.parse(whole, mode='eval').body
  given = _fields(call)
  found = given.pop('batch_sizes', None), given.pop('schedule', None)
  for key in given.keys() - {'enabled', '_CLASS_', 'priority'}:
    raise ValueError(f'unknown {key}')
  lists = [
    part.elts for part in found if isinstance(part, ast.List | ast.Tuple)
  ]
  if len(lists) != 2:
    raise ValueError('it needs two lists')
  return lists[0], lists[1]


def _fields(node: ast.expr) -> dict[str, ast.expr]:
  """Keyword arguments of a call, or entries of a dictionary."""
  if isinstance(node, ast.Call) and not node.args:
    return {str(word.arg): word.value for word in node.keywords}
  if isinstance(node, ast.Dict):
    names = [key.value for key in node.keys if isinstance(key, ast.Constant)]
    return dict(zip(map(str, names), node.values, strict=True))
  raise ValueError(f'{ast.unparse(node)} is not understood')


def _tokens(node: ast.expr) -> ast.expr:
  """The number in `Duration.tokens(number)`, or in what that is saved as."""
  if isinstance(node, ast.Call) and len(node.args) == 1:
    unit, value = ast.unparse(node.func).rpartition('.')[2], node.args[0]
  else:
    fields = _fields(node)
    unit, value = fields['unit'], fields['value']
    unit = ast.unparse(unit).rpartition('.')[2].strip('\'"')
  if unit != 'tokens':
    raise ValueError(f'{ast.unparse(node)} is not in tokens')
  return value


_BY_SIGN: dict[type, Callable[[float, float], float]] = {
  ast.Mult: lambda a, b: a * b,
  ast.Pow: lambda a, b: a**b,
}


def _number(node: ast.expr) -> float:
  """A number, or a product or power of numbers."""
  if isinstance(node, ast.BinOp) and type(node.op) in _BY_SIGN:
    return _BY_SIGN[type(node.op)](_number(node.left), _number(node.right))
  if isinstance(node, ast.Call) and ast.unparse(node.func) == 'int':
    return _number(*node.args)
  if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
    return float(node.value)
  raise ValueError(f'{ast.unparse(node)} is no number')


def parse_ramp(text: str) -> tuple[float, float, float]:
  """What Megatron's --rampup-batch-size is given: start, increment, samples.

  Args:
    text: three counts with spaces between them, with suffixes as in a table.

  Raises:
    ValueError: they are not three.

  >>> parse_ramp('32 32 65_000K')
  (32.0, 32.0, 65000000.0)
  """
  try:
    start, increment, samples = map(parse_count, text.split())
  except ValueError:
    raise ValueError(
      f"{text!r} is malformed; write it like '32 32 65000K': start, increment, "
      'samples'
    ) from None
  return start, increment, samples


def per_example(unit: str, tokens_per_example: float | None) -> float:
  """How much of a unit one example is.

  Raises:
    ValueError: for tokens, without knowing how many.

  >>> per_example('examples', 128), per_example('tokens', 128)
  (1.0, 128.0)
  """
  if unit != 'tokens':
    return 1.0
  if tokens_per_example is None:
    raise ValueError(
      "unit='tokens' was given without tokens_per_example, which images do not "
      'have; set unit to examples or epochs'
    )
  return float(tokens_per_example)


def parse_count(count: Any) -> Any:
  """What a count is, that may be a text with K, M, B or T.

  Args:
    count: a text, or a number, which is returned as it is.

  Raises:
    ValueError: the text is none such.

  >>> parse_count('1.3T'), parse_count('250K'), parse_count(7)
  (1300000000000.0, 250000.0, 7)
  """
  if not isinstance(count, str):
    return count
  scale = _SUFFIXES.get(count[-1:].upper())
  try:
    # Decimal, because 1.1 * 10**6 is not 1,100,000 in binary.
    return float(Decimal(count[:-1] if scale else count) * (scale or 1))
  except InvalidOperation:
    raise ValueError(
      f"{count!r} is no count; write a number, or one like '2.5B' with K, M, B "
      'or T'
    ) from None
