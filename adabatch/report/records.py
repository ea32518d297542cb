"""What a run left behind: its records, and what they add up to."""

import json
import math
import os
import pathlib
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from adabatch.config import files

Record = dict[str, Any]

# The x axes of the page and the key of each in a record. With a moving batch
# size the three tell different stories: updates are the serial work, examples
# the total work, seconds what one waits for.
AXES = {'updates': 'update', 'examples': 'examples', 'seconds': 'seconds'}

HUGE = 1e30  # treated as not finite: no axis is readable that reaches so far
NOT_METRICS = frozenset(('kind', 'epoch', 'split', *AXES.values()))


def read_metrics(
  workdir: str | os.PathLike[str],
) -> tuple[list[Record], list[Record]]:
  """Reads `WORKDIR/metrics.jsonl` into its train and its eval records.

  A last line that a killed process left unfinished is ignored. An unreadable
  line elsewhere is skipped with a warning, because it is not expected.

  Raises:
    FileNotFoundError: if the directory holds no `metrics.jsonl`.
  """
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} does not exist; give the directory of a run, a search or a study'
      ' (its --workdir), or --metric and --goal with an archive of trials'
    )
  records: dict[str, list[Record]] = defaultdict(list)
  # A process can be killed between two bytes of one character.
  with path.open(encoding='utf-8', errors='replace') as lines:
    for i, line in enumerate(lines, start=1):
      try:
        record = json.loads(line)
        records[record['kind']].append(record)
      except (ValueError, KeyError, TypeError):
        if line.endswith('\n'):
          warnings.warn(f'{path}:{i} is not a record, skipped', stacklevel=2)
  return records['train'], records['eval']


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file; {} if there is none, or not a whole one."""
  value = files.read_json(path)
  return value if isinstance(value, dict) else {}


def number(value: Any) -> float:
  """A JSON value as a float; NaN if it is not a number one could draw.

  >>> number(3), number(None), number('nan'), number(1e300)
  (3.0, nan, nan, nan)
  """
  try:
    value = float(value)
  except (TypeError, ValueError):
    return math.nan
  return value if abs(value) < HUGE else math.nan


def lower_is_better(metric: str) -> bool:
  """Whether less of a metric is better, by the end of its name.

  >>> [lower_is_better(m) for m in ('loss', 'mean_squared_error', 'accuracy')]
  [True, True, False]
  """
  return metric.endswith(('loss', 'perplexity', 'error'))


def column(records: Iterable[Record], key: str) -> np.ndarray:
  """One key of all records as a float array, NaN where it is not a number.

  >>> column([{'loss': 2.5}, {'loss': None}, {}], 'loss')
  array([2.5, nan, nan])
  """
  return np.array([number(record.get(key)) for record in records], float)


def positions(records: Sequence[Record]) -> dict[str, np.ndarray]:
  """The x values of records for every axis."""
  return {axis: column(records, key) for axis, key in AXES.items()}


def facts(
  summary: Mapping[str, Any],
  eval_records: Sequence[Record],
  end: Mapping[str, float],
) -> dict[str, Any]:
  """The summary; where it says nothing, what the records say.

  A run that was preempted and resumed still has its old summary, until it ends
  again; its records go further then, to `end`, and it is ignored.

  >>> facts({}, [{'split': 'test', 'loss': 1.5, 'accuracy': 0.5},
  ...            {'split': 'test', 'loss': 2.0, 'accuracy': 0.6}], {})
  ... # doctest: +NORMALIZE_WHITESPACE
  {'status': 'unfinished', 'best': {'test': {'loss': 1.5, 'accuracy': 0.6}},
   'final': {'test': {'loss': 2.0, 'accuracy': 0.6}}}
  """
  best: dict[str, dict[str, float]] = {}
  final: dict[str, dict[str, float]] = {}
  for record in eval_records:
    split = str(record.get('split', ''))
    for metric, value in record.items():
      value = number(value)
      if metric not in NOT_METRICS and math.isfinite(value):
        better = min if lower_is_better(metric) else max
        scores = best.setdefault(split, {})
        scores[metric] = better(scores.get(metric, value), value)
        final.setdefault(split, {})[metric] = value
  found = {'status': 'unfinished', **end, 'best': best, 'final': final}
  if number(summary.get('updates')) < end.get('updates', 0):
    return found | {'status': f'resumed after {summary.get("status")}'}
  return found | {k: v for k, v in summary.items() if v not in (None, {})}
