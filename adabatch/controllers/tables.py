"""Texts in which sizes and counts are written down."""

import math
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
    entries = [(_parse_count(count), float(size)) for count, size in pairs]
  except (TypeError, ValueError, InvalidOperation):
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
    start, increment, samples = map(_parse_count, text.split())
  except (ValueError, InvalidOperation):
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


def _parse_count(count: Any) -> float:
  if not isinstance(count, str):
    return float(count)
  scale = _SUFFIXES.get(count[-1:].upper())
  # Decimal, because 1.1 * 10**6 is not 1,100,000 in binary.
  number = Decimal(count[:-1] if scale else count)
  return float(number * (scale or 1))
