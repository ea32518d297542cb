"""Runs side by side: their names, and what tells their configs apart."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from adabatch.config import FREE, flatten
from adabatch.report.records import (
  Record,
  Records,
  ends,
  facts,
  has,
  read_columns,
  read_json,
)

# What makes no difference to what a run is an example of. The number of
# replicas may be changed on the way, but it changes what is computed.
ALIKE = FREE - {'sync.replicas'} | {'seed'}
DONE = frozenset(('completed', 'target_reached'))


class Run(NamedTuple):
  """A run among others.

  Attributes:
    label: the shortest path that tells it apart from them.
    train: its train records.
    evaluations: its eval records.
    config: flat; empty if it is not known.
    end: where it ends, by axis.
    known: what `facts` says of it.
  """

  label: str
  train: Records
  evaluations: Sequence[Record]
  config: Mapping[str, Any]
  end: Mapping[str, float]
  known: Mapping[str, Any]

  @property
  def diverged(self) -> bool:
    return self.known['status'] == 'diverged'

  @property
  def held_out(self) -> str | None:
    """The split that it is judged by; None if it has no evaluation."""
    splits = [str(r.get('split', '')) for r in self.evaluations]
    asked = self.config.get('data.eval_split')
    return asked if asked in splits else next(reversed(splits), None)


class Group(NamedTuple):
  """Runs that differ in nothing but their seed.

  Attributes:
    label: theirs.
    members: indices of the runs.
    seeds: how many there are of them.
  """

  label: str
  members: tuple[int, ...]
  seeds: int

  def name(self) -> str:
    """The label, and how many runs go by it if it is not one."""
    count = len(self.members)
    if count == 1:
      return self.label
    kind = 'seeds' if self.seeds == count else 'runs'
    return f'{self.label} ({count} {kind})'


def read_runs(paths: Sequence[str | os.PathLike[str]]) -> list[Run]:
  """The runs in directories, each with what there is of it so far.

  Raises:
    FileNotFoundError: naming a directory that holds no run.
    ValueError: if a directory is given twice, or runs cannot be compared.
  """
  folders = [pathlib.Path(path).resolve() for path in paths]
  for i, folder in enumerate(folders):
    if folder in folders[:i]:
      raise ValueError(f'{paths[i]} is given twice')
    if not (folder / 'metrics.jsonl').is_file():
      raise FileNotFoundError(_no_run(pathlib.Path(paths[i])))
  labels = labels_of(folders)
  runs = [_read(*pair) for pair in zip(labels, folders, strict=True)]
  _check_subjects(runs)
  return runs


def _no_run(path: pathlib.Path) -> str:
  start = f'{path} holds no run: '
  if not path.is_dir():
    what = 'is no directory' if path.exists() else 'does not exist'
    return f'{start}it {what}; give the --workdir of each run'
  if (path / 'trials').is_dir():
    return (
      f'{start}it is a search or a study, whose own page compares its trials: '
      f'python -m adabatch.report {path}'
    )
  if any(path.glob('*/metrics.jsonl')):
    return f'{start}there are some in it, give those: {path}/*'
  return f'{start}there is no metrics.jsonl; give the --workdir of each run'


def _read(label: str, folder: pathlib.Path) -> Run:
  train, evaluations = read_columns(folder)
  end = ends(train, evaluations)
  return Run(
    label,
    train,
    evaluations,
    config=flatten(read_json(folder / 'config.json')),
    end=end,
    known=facts(read_json(folder / 'summary.json'), evaluations, end),
  )


def labels_of(folders: Sequence[pathlib.PurePath]) -> list[str]:
  """The shortest paths that tell folders apart.

  >>> paths = ['/r/a/seed0/run', '/r/b/seed0/run', '/r/b/seed1/run']
  >>> labels_of([pathlib.PurePosixPath(path) for path in paths])
  ['a/seed0', 'b/seed0', 'b/seed1']
  """
  parts = [folder.parts for folder in folders]
  # What all end in says nothing.
  while len({p[-1] for p in parts}) == 1 and min(map(len, parts)) > 1:
    parts = [p[:-1] for p in parts]
  length = 1
  while len({p[-length:] for p in parts}) < len(set(parts)):
    length += 1
  return [str(pathlib.PurePath(*p[-length:])) for p in parts]


def subject(run: Run) -> dict[str, Any]:
  """What losses are of: only where it is the same can they be compared."""
  keys, config = ['task.name', 'data.name'], run.config
  # Whatever a task is called, what is learnt from text counts tokens.
  if has(run.train, 'tokens'):
    keys.append('data.tokenizer')
    # Nats per piece of a word depend on the pieces.
    if config.get('data.tokenizer') != 'bytes':
      keys.append('data.vocab_size')
  return {key: config[key] for key in keys if key in config}


def _check_subjects(runs: Sequence[Run]) -> None:
  """Refuses runs of different tasks; of what is not known nothing is said."""
  first = runs[0]
  for run in runs[1:]:
    ours, theirs = subject(first), subject(run)
    for key in [k for k in ours if k in theirs]:
      a, b = _name(ours[key]), _name(theirs[key])
      if a != b:
        raise ValueError(
          f'{first.label} has {key}={ours[key]} and {run.label} '
          f'{key}={theirs[key]}: only runs of one task on one data set can be '
          'compared'
        )


def _name(value: Any) -> Any:
  """Of data; the same folder may lie elsewhere on another machine."""
  kind, colon, path = str(value).partition(':')
  return f'{kind}:{pathlib.PurePath(path).name}' if colon else value


def _word(value: Any) -> str:
  return json.dumps(value, ensure_ascii=False, sort_keys=True)


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
  """Keys whose values differ -> the value in each run, as text.

  Rules' names come first, what changes no result and the seed last. A run
  without a config has no say.
  """
  keys = dict.fromkeys(key for run in runs for key in run.config)
  configs = [run.config for run in runs if run.config]
  found = {
    key: [_text(run.config, key) for run in runs]
    for key in keys
    if len({_text(config, key) for config in configs}) > 1
  }
  return dict(sorted(found.items(), key=lambda item: _rank(item[0])))


def _text(config: Mapping[str, Any], key: str) -> str:
  if key not in config:
    return '–'
  value = config[key]
  return value if isinstance(value, str) else _word(value)


def _rank(key: str) -> int:
  if key in ALIKE:
    return 3 if key in FREE else 2
  return 0 if key.endswith('.name') else 1


def groups_of(runs: Sequence[Run]) -> list[Group]:
  """The runs, those together that differ in their seed alone."""
  members: dict[str, list[int]] = {}
  for i, run in enumerate(runs):
    rest = {k: v for k, v in run.config.items() if k not in ALIKE}
    members.setdefault(_word(rest) if rest else str(i), []).append(i)
  labels = [
    _common([runs[i].label for i in indices]) for indices in members.values()
  ]
  groups = []
  for label, indices in zip(labels, members.values(), strict=True):
    # Two groups by one name would be worse than a long name.
    if labels.count(label) > 1:
      label = ', '.join(runs[i].label for i in indices)
    seeds = {runs[i].config.get('seed') for i in indices}
    groups.append(Group(label, tuple(indices), len(seeds)))
  return groups


def _common(labels: Sequence[str]) -> str:
  """What labels begin with, up to the last border; all of them if nothing.

  >>> _common(['adadamp/0', 'adadamp/1']), _common(['a_s0', 'a_s1'])
  ('adadamp', 'a')
  >>> _common(['one', 'two']), _common(['0', '1', '2', '3'])
  ('one, two', '0 … 3')
  """
  if len(labels) == 1:
    return labels[0]
  start = os.path.commonprefix(list(labels))
  borders = [i for i, letter in enumerate(start) if letter in '/_-. ']
  if borders and borders[-1]:
    return start[: borders[-1]]
  return f'{labels[0]} … {labels[-1]}' if labels[3:] else ', '.join(labels)
