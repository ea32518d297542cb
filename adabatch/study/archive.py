"""Searches on disk, in the form in which the published ones came.

    DATASET/MODEL/OPTIMIZER/BATCH_SIZE/study.json
    DATASET/MODEL/OPTIMIZER/BATCH_SIZE/TRIAL_ID/metadata.json
    DATASET/MODEL/OPTIMIZER/BATCH_SIZE/TRIAL_ID/measurements.csv

So ours can be read by what reads theirs, and theirs by us. Names of parameters
and of the optimizer are theirs on disk and ours in memory.

Reference: Shallue et al., Measuring the Effects of Data Parallelism on Neural
Network Training, 2018 (arXiv:1811.03600); the archive is described in
google-research/batch_science on GitHub.
"""

import bz2
import csv
import fnmatch
import gzip
import io
import itertools
import json
import lzma
import math
import os
import pathlib
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

from adabatch.study.space import Parameter, make_space
from adabatch.study.trials import (
  COMPLETE,
  INCOMPLETE,
  INFEASIBLE,
  Search,
  Trial,
)

STUDY, METADATA, MEASUREMENTS = (
  'study.json',
  'metadata.json',
  'measurements.csv',
)

# Ours -> theirs. A name that is not here is the same in both.
PARAMETERS = {
  'learning_rate.base': 'learning_rate',
  'learning_rate.decay.final': 'end_learning_rate_factor',
  'optimizer.momentum': 'momentum',
  'optimizer.weight_decay': 'weight_decay',
  'task.label_smoothing': 'label_smoothing',
}
OPTIMIZERS = {'nesterov': 'nesterov_momentum'}
SCALES = {
  'linear': 'LINEAR_SCALE',
  'log': 'LOG_SCALE',
  'reverse_log': 'REVERSE_LOG_SCALE',
}

# Of one file in an archive, decompressed: a small archive may hold very much.
MOST_BYTES = 2**26

# The parsed files of one trial, by their names.
_Parts = dict[str, dict[str, Any]]


def read_search(directory: str | os.PathLike[str]) -> Search:
  """Reads the search whose `study.json` is in a directory.

  Raises:
    ValueError: naming the file that is missing or damaged.
  """
  directory = pathlib.Path(directory)
  trials: dict[str, _Parts] = {}
  for path in trial_directories(directory):
    parts = {name: _read(path / name) for name in (METADATA, MEASUREMENTS)}
    trials[path.name] = {k: v for k, v in parts.items() if v is not None}
  study = _read(directory / STUDY)
  if study is None:
    raise ValueError(f'{directory / STUDY} is missing')
  return _search(str(directory), study, trials)


def read_tree(path: str | os.PathLike[str], pattern: str = '*') -> list[Search]:
  """Reads all searches below a directory, or in a tar archive.

  An archive is read once from its beginning to its end and not unpacked.

  Args:
    path: a directory, or a tar archive, which may be compressed.
    pattern: of the directories of searches in it, such as
      `batch_science/mnist/*`, where `*` stands for slashes too.

  Returns:
    The searches, by workload and batch size. Workloads of one name may be there
    twice, in `mnist/` and in `solution_quality/mnist/`.

  Raises:
    ValueError: naming the file that is missing or damaged; if nothing is there.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    found = _read_directories(path, pattern)
  elif path.is_file():
    found = _read_tar(path, pattern)
  else:
    raise ValueError(f'{path} is neither a directory nor a tar archive')
  if not found:
    raise ValueError(f'no {STUDY} in {path} in a directory like {pattern!r}')

  def order(place: str):
    s = found[place]
    return s.dataset, s.model, s.optimizer, s.batch_size, place

  return [found[place] for place in sorted(found, key=order)]


def trial_directories(directory: pathlib.Path) -> list[pathlib.Path]:
  """In no order. Other directories are none of ours, or half written."""
  try:
    entries = list(os.scandir(directory))
  except (FileNotFoundError, NotADirectoryError) as e:
    raise ValueError(f'{directory} is no directory of a search') from e
  names = [e.name for e in entries if e.name.isdecimal() and e.is_dir()]
  return [directory / name for name in names]


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  try:
    return _parsed(str(path), path.read_bytes())
  except FileNotFoundError:
    return None


def _read_directories(root: pathlib.Path, pattern: str) -> dict[str, Search]:
  found = {}
  for directory, below, files in os.walk(root):
    if STUDY not in files:
      continue
    below.clear()  # Trials, which are many, hold no searches.
    place = pathlib.Path(directory).relative_to(root).as_posix()
    if fnmatch.fnmatchcase(place, pattern):
      found[place] = read_search(directory)
  return found


def _read_tar(path: pathlib.Path, pattern: str) -> dict[str, Search]:
  studies: dict[str, dict[str, Any]] = {}
  trials: dict[str, dict[str, _Parts]] = defaultdict(lambda: defaultdict(dict))
  for name, content in _tar_files(path, pattern):
    directory, number, file = _split(name)
    # Parsed at once: the text of all would be far larger than its numbers.
    value = _parsed(f'{path}:{name}', content)
    if file == STUDY:
      studies[directory] = value
    else:
      trials[directory][number][file] = value
  return {
    place or '.': _search(f'{path}:{place}', study, trials[place])
    for place, study in studies.items()
  }


def _split(name: str) -> tuple[str, str, str]:
  """Directory of the search, number of the trial if it is of one, and file.

  >>> _split('mnist/mlp/sgd/32/7/metadata.json')
  ('mnist/mlp/sgd/32', '7', 'metadata.json')
  """
  directory, _, file = name.rpartition('/')
  if file == STUDY:
    return directory, '', file
  directory, _, number = directory.rpartition('/')
  return directory, number, file


def _is_wanted(name: str, pattern: str) -> bool:
  directory, number, file = _split(name)
  if file != STUDY and not (
    file in (METADATA, MEASUREMENTS) and number.isdecimal()
  ):
    return False
  return fnmatch.fnmatchcase(directory or '.', pattern)


def _tar_files(path: pathlib.Path, pattern: str) -> Iterator[tuple[str, bytes]]:
  try:
    with (
      _opened(path) as f,
      tarfile.open(fileobj=(stream := _Bounded(path, f)), mode='r|') as tar,  # pyright: ignore
    ):
      while member := tar.next():
        # It keeps all that it has seen, hundreds of thousands here.
        tar.members = []  # pyright: ignore
        name = member.name.removeprefix('./')
        if member.size > MOST_BYTES:
          raise _too_large(f'{path}:{name} takes {member.size:,} bytes')
        stream.left = 2 * MOST_BYTES
        if member.isfile() and _is_wanted(name, pattern):
          content = tar.extractfile(member)
          yield name, content.read() if content else b''
  except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as e:
    raise ValueError(f'{path} is no whole tar archive: {e}') from e


class _Bounded:
  """A file of which so much may be read until the next file in it was found.

  Also what tarfile reads before it tells of a file, such as long names.
  """

  def __init__(self, path: pathlib.Path, file: IO[bytes] | gzip.GzipFile):
    self.left = 2 * MOST_BYTES
    self._path, self._file = path, file

  def read(self, size: int) -> bytes:
    block = self._file.read(size)
    self.left -= len(block)
    if self.left < 0:
      raise _too_large(f'{self._path} has a header of more')
    return block


def _too_large(what: str) -> ValueError:
  return ValueError(
    f'{what}, and a file in an archive of trials has {MOST_BYTES:,} at most: '
    'leave it out, or unpack the archive and give the directory'
  )


def _opened(path: pathlib.Path) -> IO[bytes] | gzip.GzipFile:
  """The archive, decompressed.

  By the decompressors themselves, because tarfile takes a compressed stream
  that breaks off between two files for one that ends there.
  """
  with path.open('rb') as f:
    start = f.read(6)
    f.seek(-min(512, path.stat().st_size), os.SEEK_END)
    end = f.read()
  if start.startswith(b'BZh'):
    return bz2.open(path)
  if start.startswith(b'\xfd7zXZ\0'):
    return lzma.open(path)
  if start.startswith(b'\x1f\x8b'):
    return gzip.open(path)
  if len(end) < 512 or any(end):
    raise EOFError('its end is missing')
  return path.open('rb')


def _parsed(where: str, content: bytes) -> dict[str, Any]:
  try:
    if where.endswith('.csv'):
      return _columns(content.decode())
    value = json.loads(content)
    if not isinstance(value, dict):
      raise ValueError('it holds no object')
  except (ValueError, csv.Error) as e:
    raise ValueError(f'{where} is damaged: {e}') from e
  return value


def _columns(text: str) -> dict[str, np.ndarray]:
  """The columns of a CSV by name; {} if not even these are there.

  >>> _columns('step,error\\n10,0.5\\n20,\\n')
  {'step': array([10, 20]), 'error': array([0.5, nan])}
  """
  names, *rows = [row for row in csv.reader(io.StringIO(text)) if row] or [[]]
  if not names:
    return {}
  if 'step' not in names or len(set(names)) < len(names):
    raise ValueError(f'its columns are {",".join(names)}')
  if any(len(row) != len(names) for row in rows):
    raise ValueError('its lines have different lengths')
  fields = itertools.chain.from_iterable(rows)
  table = np.array([float(field) if field else math.nan for field in fields])
  table = np.ascontiguousarray(table.reshape(len(rows), len(names)).T)
  columns: dict[str, np.ndarray] = dict(zip(names, table, strict=True))
  steps = columns['step']
  if not np.all(np.isfinite(steps) & (np.trunc(steps) == steps)):
    raise ValueError('its steps are not all whole numbers')
  return columns | {'step': steps.astype(np.int64)}


def _search(
  where: str, study: Mapping[str, Any], trials: Mapping[str, _Parts]
) -> Search:
  try:
    space = make_space(
      _space_row(key, config)
      for key, config in study['parameter_configs'].items()
    )
    search = Search(
      dataset=str(study['dataset']),
      model=str(study['model']),
      optimizer=_our_name(study['optimizer'], OPTIMIZERS),
      batch_size=_whole(study['batch_size']),
      space=space,
      train_steps=_whole(study['train_steps']),
      early_stopping=bool(study['early_stopping']),
      trials=(),
    )
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    raise ValueError(f'{where}/{STUDY} is damaged: {_said(e)}') from e
  found = [
    _trial(f'{where}/{number}', number, parts, space)
    for number, parts in trials.items()
  ]
  found.sort(key=lambda trial: trial.number)
  for trial, after in itertools.pairwise(found):
    if trial.number == after.number:
      raise ValueError(f'{where} has two trials {trial.number}')
  return search._replace(trials=tuple(found))


def _trial(
  where: str, number: str, parts: _Parts, space: Mapping[str, Parameter]
) -> Trial:
  if METADATA not in parts:
    raise ValueError(f'{where}/{METADATA} is missing')
  metadata = parts[METADATA]
  measurements = parts.get(MEASUREMENTS, {})
  try:
    status = metadata['status']
    if status not in (COMPLETE, INFEASIBLE, INCOMPLETE):
      raise ValueError(f'unknown status {status!r}')
    parameters = {
      _our_name(key, PARAMETERS): value
      for key, value in metadata['parameters'].items()
    }
    for key in parameters.keys() & space.keys():
      if space[key].scale == 'integer':
        parameters[key] = _whole(parameters[key])
    trial = Trial(
      number=_whole(metadata.get('trial_id', number)),
      parameters=parameters,
      status=status,
      steps=_whole(metadata['steps']),
      measurements=measurements,
    )
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    raise ValueError(f'{where}/{METADATA} is damaged: {_said(e)}') from e
  if status == COMPLETE and not measurements:
    raise ValueError(f'{where}/{MEASUREMENTS} is missing, or has no columns')
  return trial


def _space_row(key: str, config: Mapping[str, Any]) -> tuple[Any, ...]:
  """A row of a space from theirs, as `make_space` takes it."""
  key, kind = _our_name(key, PARAMETERS), config['type']
  if kind == 'DISCRETE':
    return (key, 'discrete', *config['feasible_points'])
  low, high = config['min_value'], config['max_value']
  if low == high:
    return key, 'discrete', low
  if kind == 'INTEGER':
    return key, 'integer', low, high
  if kind != 'DOUBLE':
    raise ValueError(f'unknown type {kind!r} of {key}')
  # A scale that is not said is linear, as wherever it needs no saying.
  scale = config.get('scale') or SCALES['linear']
  return key, _our_name(scale, SCALES), low, high


def _our_name(name: str, names: Mapping[str, str]) -> str:
  """The inverse of a table of names; what is not in it stays as it is.

  >>> _our_name('nesterov_momentum', OPTIMIZERS), _our_name('sgd', OPTIMIZERS)
  ('nesterov', 'sgd')
  """
  return next((ours for ours, theirs in names.items() if theirs == name), name)


def _whole(value: Any) -> int:
  """The whole number that a JSON value is, however it is written."""
  number = float(value)
  if number % 1:
    raise ValueError(f'{value} is not a whole number')
  return int(value)


def _said(error: Exception) -> str:
  if isinstance(error, KeyError):
    return f'it has no {error.args[0]!r}'
  return str(error)
