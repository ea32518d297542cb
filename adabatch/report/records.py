"""What a run left behind: its records, and what they add up to."""

import json
import math
import os
import pathlib
import warnings
from array import array
from collections.abc import Iterator, Mapping, Sequence
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


class Columns:
  """Train records as columns, 8 bytes a value: a run may have millions.

  Only what a page draws is kept. As records they take twenty times as much.

  >>> train = Columns()
  >>> train.append({'update': 1, 'loss': None, 'tokens': 64})
  >>> len(train), train.column('loss'), 'tokens' in train
  (1, array([nan]), True)
  """

  KEYS = (
    *AXES.values(),
    'batch_size',
    'nominal_batch_size',
    'learning_rate',
    'loss',
    'gradient_noise_scale',
  )

  def __init__(self) -> None:
    self._columns = {key: array('d') for key in self.KEYS}
    self._seen: set[str] = set()

  def append(self, record: Record) -> None:
    self._seen.update(record)
    for key, values in self._columns.items():
      values.append(number(record.get(key)))

  def column(self, key: str) -> np.ndarray:
    """One of `KEYS`, NaN where it is not a number."""
    return np.frombuffer(self._columns[key])

  def __len__(self) -> int:
    return len(self._columns['update'])

  def __contains__(self, key: str) -> bool:
    """Whether any record has it."""
    return key in self._seen


Records = Columns | Sequence[Record]


def read_metrics(
  workdir: str | os.PathLike[str],
) -> tuple[list[Record], list[Record]]:
  """Reads `WORKDIR/metrics.jsonl` into its train and its eval records.

  A last line that a killed process left unfinished is ignored. An unreadable
  line elsewhere is skipped with a warning, because it is not expected.

  Raises:
    FileNotFoundError: if the directory holds no `metrics.jsonl`.
  """
  records: dict[str, list[Record]] = {'train': [], 'eval': []}
  for kind, record in _read(workdir):
    records[kind].append(record)
  return records['train'], records['eval']


def read_columns(
  workdir: str | os.PathLike[str],
) -> tuple[Columns, list[Record]]:
  """Like `read_metrics`, line by line into columns; evaluations are few."""
  train, evaluations = Columns(), []
  for kind, record in _read(workdir):
    (train if kind == 'train' else evaluations).append(record)
  return train, evaluations


def _read(workdir: str | os.PathLike[str]) -> Iterator[tuple[str, Record]]:
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} does not exist; give the directory of a run, a search, a study '
      '(its --workdir) or a probe, or --metric and --goal with an archive of '
      'trials'
    )
  # A process can be killed between two bytes of one character.
  with path.open(encoding='utf-8', errors='replace') as lines:
    for i, line in enumerate(lines, start=1):
      try:
        record = json.loads(line)
        kind = record['kind']
      except (ValueError, KeyError, TypeError):
        if line.endswith('\n'):
          warnings.warn(f'{path}:{i} is not a record, skipped', stacklevel=2)
      else:
        if kind in ('train', 'eval'):
          yield kind, record


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file; {} if there is none, or not a whole one."""
  value = files.read_json(path)
  if not isinstance(value, dict):
    return {}
  return {k: v for k, v in value.items() if k != 'checksum'}


def device_time(summary: Mapping[str, Any]) -> tuple[float, float] | None:
  """Device-seconds of a run, and their share of those of all devices always.

  None where it used all of them, or nobody knows.

  >>> device_time({'seconds': 10.0, 'devices': 8, 'device_seconds': 20.0})
  (20.0, 0.25)
  """
  names = 'seconds', 'devices', 'device_seconds'
  seconds, devices, used = (number(summary.get(name)) for name in names)
  share = used / (seconds * devices) if seconds * devices > 0 else math.nan
  return (used, share) if share < 0.995 else None


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


def column(records: Records, key: str) -> np.ndarray:
  """One key of all records as a float array, NaN where it is not a number.

  >>> column([{'loss': 2.5}, {'loss': None}, {}], 'loss')
  array([2.5, nan, nan])
  """
  if isinstance(records, Columns):
    return records.column(key)
  return np.array([number(record.get(key)) for record in records], float)


def set_column(records: Records, key: str) -> np.ndarray:
  """A column of what is set for an update, for a line that goes in steps.

  A step goes back to the record before. The last batch of a run is cut at its
  last example, so its step would show a size and a rate that the updates
  before it did not have: the size becomes their mean, the rate unknown.

  >>> full = {'update': 10, 'examples': 640, 'batch_size': 64}
  >>> cut = {'update': 20, 'examples': 1804, 'batch_size': 12}
  >>> set_column([full, cut], 'batch_size')
  array([ 64., 128.])
  """
  values = np.array(column(records, key))
  if len(values) < 2:
    return values
  update, examples, size = (
    column(records, k)[-2:] for k in ('update', 'examples', 'batch_size')
  )
  others = update[1] - update[0] - 1
  if others > 0:
    mean = (examples[1] - examples[0] - size[1]) / others
    if mean > size[1]:
      values[-1] = mean if key == 'batch_size' else np.nan
  return values


def has(records: Records, key: str) -> bool:
  """Whether any of the records has a key."""
  if isinstance(records, Columns):
    return key in records
  return any(key in record for record in records)


def positions(records: Records) -> dict[str, np.ndarray]:
  """The x values of records for every axis."""
  return {axis: column(records, key) for axis, key in AXES.items()}


def ends(*parts: Records) -> dict[str, float]:
  """Where the last of some records stands on every axis; 0 without any.

  >>> ends([{'update': 3}, {}], [{'update': 2, 'seconds': 1.5}])
  {'updates': 3.0, 'examples': 0.0, 'seconds': 1.5}
  """
  places = [positions(part) for part in parts]
  return {
    axis: float(max(np.nanmax(x[axis], initial=0) for x in places))
    for axis in AXES
  }


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
