"""Searches written in the form of the published ones; see `archive`."""

import csv
import io
import json
import os
import pathlib
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from adabatch.study.archive import (
  MEASUREMENTS,
  METADATA,
  OPTIMIZERS,
  PARAMETERS,
  SCALES,
  STUDY,
  trial_directories,
)
from adabatch.study.space import Parameter
from adabatch.study.trials import COMPLETE, Search, Trial


def write_search(
  root: str | os.PathLike[str], search: Search, *, replace: bool = False
) -> pathlib.Path:
  """Writes a search below `root`; its directory.

  Whatever kills it, a trial that is there is whole, and the next call goes on
  from it: files that are right already are left alone. `study.json` comes last,
  so no reader takes the first trials of a search for all of it.

  Measurements are kept to 7 significant digits, as in the published files, and
  can round onto a goal from which they were less than that away.

  Args:
    root: of the tree; made if it is not there.
    search: to be written.
    replace: whether to remove trials that are there and not in the search.

  Raises:
    ValueError: for what the form cannot hold, and if trials of another search
      are in the directory.
  """
  files = dict(_search_files(search))
  directory = pathlib.Path(root) / _place(search)
  directory.mkdir(parents=True, exist_ok=True)
  for path in trial_directories(directory):
    if path.name not in files and replace:
      shutil.rmtree(path)
    elif path.name not in files:
      raise ValueError(f'{path} is of another search: give another directory')
  for name, content in files.items():
    if isinstance(content, bytes):
      _write_file(directory / name, content)
    else:
      _write_trial(directory / name, content)
  return directory


def write_tar(
  path: str | os.PathLike[str], searches: Iterable[Search]
) -> pathlib.Path:
  """Writes searches to one archive; the same searches give the same bytes.

  Args:
    path: of the archive, which ends in `.tar.xz`.
    searches: to be written, in any order.

  Returns:
    The path.

  Raises:
    ValueError: for another ending, for what the form cannot hold, and for two
      searches that have the same place in it.
  """
  path = pathlib.Path(path)
  if not path.name.endswith('.tar.xz'):
    raise ValueError(f'{path} is not named as what it will be: use .tar.xz')
  files: dict[str, bytes] = {}
  for search in searches:
    place = _place(search)
    if f'{place}/{STUDY}' in files:
      raise ValueError(f'two searches of {place}: write them apart')
    for name, content in _search_files(search):
      if isinstance(content, bytes):
        files[f'{place}/{name}'] = content
      else:
        files |= {f'{place}/{name}/{k}': v for k, v in content.items()}
  partial = _partial(path)
  try:
    with tarfile.open(partial, 'w:xz', format=tarfile.PAX_FORMAT) as tar:
      for name, content in sorted(files.items()):
        # Time, owner and mode stay at their constant defaults.
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
  return path


def _place(search: Search) -> str:
  optimizer = OPTIMIZERS.get(search.optimizer, search.optimizer)
  for name in (search.dataset, search.model, optimizer):
    if not name or name.startswith('.') or '/' in name or os.sep in name:
      raise ValueError(f'{name!r} cannot be the name of a directory')
  return f'{search.dataset}/{search.model}/{optimizer}/{search.batch_size}'


def _partial(path: pathlib.Path) -> pathlib.Path:
  # One name, not a random one: the next attempt takes away what this one left.
  return path.with_name(f'.{path.name}.partial')


def _write_file(path: pathlib.Path, content: bytes) -> None:
  if path.is_file() and path.read_bytes() == content:
    return
  partial = _partial(path)
  partial.write_bytes(content)
  os.replace(partial, path)


def _write_trial(path: pathlib.Path, files: Mapping[str, bytes]) -> None:
  if path.is_dir():
    if MEASUREMENTS not in files:
      (path / MEASUREMENTS).unlink(missing_ok=True)
    for name, content in files.items():
      _write_file(path / name, content)
    return
  partial = _partial(path)
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir()
  for name, content in files.items():
    (partial / name).write_bytes(content)
  os.replace(partial, path)


def _search_files(
  search: Search,
) -> Iterator[tuple[str, bytes | dict[str, bytes]]]:
  """Names and contents: a mapping for a trial, and `study.json` at last."""
  numbers = [trial.number for trial in search.trials]
  if len(set(numbers)) < len(numbers):
    raise ValueError(f'two trials of {_place(search)} have the same number')
  for trial in search.trials:
    yield str(trial.number), _trial_files(_place(search), trial)
  yield (
    STUDY,
    _json_bytes(
      {
        'batch_size': search.batch_size,
        'dataset': search.dataset,
        'early_stopping': search.early_stopping,
        'model': search.model,
        'optimizer': OPTIMIZERS.get(search.optimizer, search.optimizer),
        'parameter_configs': {
          key: _parameter_config(parameter)
          for key, parameter in _their_names(search.space).items()
        },
        'train_steps': search.train_steps,
      }
    ),
  )


def _trial_files(place: str, trial: Trial) -> dict[str, bytes]:
  where = f'trial {trial.number} of {place}'
  if trial.number < 0:
    raise ValueError(f'{where} needs a number that is not negative')
  if trial.status == COMPLETE and not trial.measurements:
    raise ValueError(f'{where} is {COMPLETE} but was not measured')
  metadata = {
    'parameters': _their_names(trial.parameters),
    'status': trial.status,
    'steps': trial.steps,
    'trial_id': trial.number,
  }
  files = {METADATA: _json_bytes(metadata)}
  if not trial.measurements:
    return files
  # Metadata last: it says that a trial is complete.
  return {MEASUREMENTS: _csv_bytes(where, trial.measurements)} | files


def _their_names(values: Mapping[str, Any]) -> dict[str, Any]:
  named = {PARAMETERS.get(key, key): value for key, value in values.items()}
  if len(named) < len(values):
    raise ValueError(f'two parameters have one published name: {list(values)}')
  return named


def _parameter_config(parameter: Parameter) -> dict[str, Any]:
  if parameter.scale == 'discrete':
    return {'feasible_points': list(parameter.values), 'type': 'DISCRETE'}
  low, high = parameter.values
  return {
    'max_value': high,
    'min_value': low,
    'scale': SCALES.get(parameter.scale, ''),
    'type': 'INTEGER' if parameter.scale == 'integer' else 'DOUBLE',
  }


def _json_bytes(value: Mapping[str, Any]) -> bytes:
  return (json.dumps(value, indent=2, sort_keys=True) + '\n').encode()


def _csv_bytes(where: str, measurements: Mapping[str, np.ndarray]) -> bytes:
  if 'step' not in measurements:
    raise ValueError(f'{where} has measurements without a column step')
  if len({len(column) for column in measurements.values()}) > 1:
    raise ValueError(f'{where} has measurements of different lengths')
  rest = {k: v for k, v in measurements.items() if k != 'step'}
  columns = [[f'{int(step)}' for step in measurements['step']]]
  columns += [[f'{value:.7g}' for value in column] for column in rest.values()]
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['step', *rest])
  writer.writerows(zip(*columns, strict=True))
  return text.getvalue().encode()
