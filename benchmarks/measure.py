"""What every figure has: ways that take turns, spread, hardware, versions.

Needs nothing but the standard library; hardware is asked of JAX where that is
installed.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

DOCS = pathlib.Path(__file__).parent.parent / 'docs'


def hardware() -> str:
  """Of this machine, in words; accelerators as JAX sees them."""
  host = f'{platform.machine()}, {len(os.sched_getaffinity(0))} cores'
  if importlib.util.find_spec('jax') is None:
    return host
  import jax  # not where PyTorch alone is measured

  return f'{jax.device_count()} x {jax.devices()[0].device_kind}, {host}'


def versions(*packages: str) -> dict[str, str]:
  """Of Python, and of those of the packages that are installed."""
  found = {'python': platform.python_version()}
  for package in packages or ('jax', 'jaxlib', 'flax', 'optax', 'numpy'):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[package] = importlib.metadata.version(package)
  return found


def record(**figures: Any) -> dict[str, Any]:
  """Figures, with where they were measured and how busy that was."""
  return {
    'hardware': hardware(),
    'load': round(os.getloadavg()[0], 2),  # others at work on the machine
    'versions': versions(),
    **figures,
  }


def write(path: str | os.PathLike[str], log: Mapping[str, Any]) -> None:
  pathlib.Path(path).write_text(json.dumps(log, indent=1) + '\n')


def side_by_side(
  ways: Mapping[Any, Callable[[], Any]], repeats: int, *, warm: bool = True
) -> dict[Any, list[Any]]:
  """What each way gives, `repeats` times, the ways taking turns.

  A disturbance of the machine so falls on all of them, and every second time
  the order is turned round. `warm`: a first round, which compiles, is left out.

  >>> side_by_side({'a': lambda: 1, 'b': lambda: 2}, 2)
  {'a': [1, 1], 'b': [2, 2]}
  """
  found: dict[Any, list[Any]] = {name: [] for name in ways}
  for repeat in range(-1 if warm else 0, repeats):
    for name in list(ways)[:: -1 if repeat % 2 else 1]:
      value = ways[name]()
      if repeat >= 0:
        found[name].append(value)
  return found


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
  """Pair by pair, of what was measured one beside the other.

  >>> ratios([2.0, 3.0], [1.0, 2.0])
  [2.0, 1.5]
  """
  return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(values: Iterable[float], digits: int = 2) -> str:
  """Median (least–most).

  >>> spread([1.0, 3.0, 2.0], 0)
  '2 (1–3)'
  """
  numbers = list(values)
  middle, least, most = (
    f'{value:,.{digits}f}'
    for value in (statistics.median(numbers), min(numbers), max(numbers))
  )
  return f'{middle} ({least}–{most})'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """In Markdown.

  >>> print(table(['a', 'b'], [['1', '2']]))
  | a | b |
  |---|---|
  | 1 | 2 |
  """
  lines = [columns, *rows]
  text = [f'| {" | ".join(line)} |' for line in lines]
  return '\n'.join([text[0], '|---' * len(columns) + '|', *text[1:]])
