"""Searches on disk: the published form, and ours in it."""

import bz2
import gzip
import itertools
import json
import lzma
import math
import os
import pathlib
import tarfile
import tracemalloc

import numpy as np
import pytest

from adabatch.study import archive, summarize
from adabatch.study.archive import read_search, read_tree
from adabatch.study.archive_writer import write_search, write_tar
from adabatch.study.space import Parameter
from adabatch.study.trials import (
  COMPLETE,
  ERROR,
  INCOMPLETE,
  INFEASIBLE,
  LOSS,
  Search,
  Trial,
)

SPACE = {
  'learning_rate.base': Parameter('log', (1e-4, 10.0)),
  'optimizer.momentum': Parameter('reverse_log', (0.9, 0.9999)),
  'optimizer.weight_decay': Parameter('linear', (0.0, 0.01)),
  'learning_rate.decay.final': Parameter('log', (1e-4, 0.1)),
  'task.label_smoothing': Parameter('discrete', (0.0, 0.01, 0.1)),
  'learning_rate_decay_steps': Parameter('integer', (300000, 600000)),
  'optimizer.beta2': Parameter('linear', (0.9, 0.999)),
}
THEIR_NAMES = {
  'learning_rate',
  'momentum',
  'weight_decay',
  'end_learning_rate_factor',
  'label_smoothing',
  'learning_rate_decay_steps',
  'optimizer.beta2',
}


def random_search(seed, batch_size=32, **changes):
  """With trials of all kinds, and values that 7 digits hold."""
  rng = np.random.default_rng(seed)
  trials = []
  for number in range(1, 12):
    count = 0 if number == 5 else int(rng.integers(1, 30))
    values = [float(f'{v:.7g}') for v in rng.lognormal(0, 4, count)]
    columns = {
      'step': np.cumsum(rng.integers(1, 500, count)),
      LOSS: np.where(rng.random(count) < 0.2, math.nan, values),
      'seconds': np.arange(count, dtype=float),
    }
    status = INFEASIBLE if number in (5, 6) else COMPLETE
    if number == 7:
      columns, status = {}, INCOMPLETE
    trials.append(
      Trial(
        number,
        {key: p.at(float(rng.random())) for key, p in SPACE.items()},
        status,
        int(columns['step'][-1]) if count and columns else 0,
        columns,
      )
    )
  return Search(
    'mnist', 'mlp', 'nesterov', batch_size, SPACE, 5000, False, tuple(trials)
  )._replace(**changes)


def assert_same(a, b):
  """Equal in all, down to the types and the last bits."""
  assert a._replace(trials=()) == b._replace(trials=())
  assert len(a.trials) == len(b.trials)
  for x, y in zip(a.trials, b.trials, strict=True):
    assert x._replace(measurements={}) == y._replace(measurements={})
    assert x.measurements.keys() == y.measurements.keys()
    for key, column in x.measurements.items():
      np.testing.assert_array_equal(column, y.measurements[key], strict=True)


def contents(root):
  return {
    path.relative_to(root).as_posix(): path.read_bytes()
    for path in root.rglob('*')
    if path.is_file()
  }


@pytest.mark.parametrize('seed', range(3))
def test_what_is_written_is_read(tmp_path, seed):
  search = random_search(seed, early_stopping=bool(seed % 2))
  directory = write_search(tmp_path, search)
  assert directory == tmp_path / 'mnist/mlp/nesterov_momentum/32'
  again = read_search(directory)
  assert_same(again, search)
  kinds = {type(v) for t in again.trials for v in t.parameters.values()}
  assert kinds == {float, int}
  (from_tree,) = read_tree(tmp_path)
  assert_same(from_tree, search)


def test_names_on_disk_are_the_published_ones(tmp_path):
  directory = write_search(tmp_path, random_search(0))
  study = json.loads((directory / 'study.json').read_text())
  assert study.keys() == {
    'batch_size',
    'dataset',
    'early_stopping',
    'model',
    'optimizer',
    'parameter_configs',
    'train_steps',
  }
  assert study['optimizer'] == 'nesterov_momentum'
  configs = study['parameter_configs']
  assert configs.keys() == THEIR_NAMES
  assert configs['learning_rate'] == {
    'max_value': 10.0,
    'min_value': 0.0001,
    'scale': 'LOG_SCALE',
    'type': 'DOUBLE',
  }
  assert configs['momentum']['scale'] == 'REVERSE_LOG_SCALE'
  assert configs['weight_decay']['scale'] == 'LINEAR_SCALE'
  decay = configs['learning_rate_decay_steps']
  assert (decay['scale'], decay['type']) == ('', 'INTEGER')
  assert configs['label_smoothing'] == {
    'feasible_points': [0.0, 0.01, 0.1],
    'type': 'DISCRETE',
  }
  metadata = json.loads((directory / '1/metadata.json').read_text())
  assert metadata.keys() == {'parameters', 'status', 'steps', 'trial_id'}
  assert metadata['parameters'].keys() == THEIR_NAMES
  text = (directory / '5/measurements.csv').read_text()
  assert text == f'step,{LOSS},seconds\n'


def test_numbers_in_measurements_have_7_digits(tmp_path):
  columns = {
    ERROR: np.array([1 / 3, 0.1, math.nan, 1e-30]),
    'step': np.array([1, 10, 1234567, 123456789]),
  }
  trial = Trial(3, {}, COMPLETE, 123456789, columns)
  directory = write_search(tmp_path, random_search(0, trials=(trial,)))
  assert (directory / '3/measurements.csv').read_text() == (
    f'step,{ERROR}\n1,0.3333333\n10,0.1\n1234567,nan\n123456789,1e-30\n'
  )
  kept = read_search(directory).trials[0].measurements
  assert kept['step'].dtype == np.int64
  assert kept['step'][-1] == 123456789
  # What was rounded once is not rounded again.
  before = contents(tmp_path)
  write_search(tmp_path, read_search(directory))
  assert contents(tmp_path) == before


PUBLISHED_STUDY = """{
  "batch_size": 256, 
  "dataset": "imagenet", 
  "early_stopping": false, 
  "model": "resnet_50", 
  "optimizer": "nesterov_momentum", 
  "parameter_configs": {
    "end_learning_rate_factor": {
      "max_value": 0.1, 
      "min_value": 0.0001, 
      "scale": "LOG_SCALE", 
      "type": "DOUBLE"
    }, 
    "label_smoothing": {
      "feasible_points": [
        0.0, 
        0.01, 
        0.1
      ], 
      "type": "DISCRETE"
    }, 
    "learning_rate": {
      "max_value": 10.0, 
      "min_value": 0.0001, 
      "scale": "LOG_SCALE", 
      "type": "DOUBLE"
    }, 
    "learning_rate_decay_steps": {
      "max_value": 600000.0, 
      "min_value": 300000.0, 
      "scale": "", 
      "type": "INTEGER"
    }, 
    "momentum": {
      "max_value": 0.9999, 
      "min_value": 0.9, 
      "scale": "REVERSE_LOG_SCALE", 
      "type": "DOUBLE"
    }
  }, 
  "train_steps": 0
}"""  # noqa: W291
PUBLISHED_METADATA = """{
  "_internal_study_name": "resnet-20180601-smooth-bs256", 
  "_internal_trial_id": 2, 
  "parameters": {
    "end_learning_rate_factor": 0.0002861573844378761, 
    "label_smoothing": 0.01, 
    "learning_rate": 0.0124894465250831, 
    "learning_rate_decay_steps": 522526, 
    "momentum": 0.9788223543494348
  }, 
  "status": "COMPLETE", 
  "steps": 600000, 
  "trial_id": 2
}"""  # noqa: W291
PUBLISHED_MEASUREMENTS = """\
step,train/cross_entropy_error,train/classification_error,\
val/cross_entropy_error,val/classification_error,test/cross_entropy_error,\
test/classification_error
0,6.90948,0.999223,6.90956,0.99904,6.90984,0.999301
1000,6.79853,0.993921,6.84734,0.99416,6.81384,0.993566
2000,nan,0.956254,6.18395,0.95976,,0.957578
597500,0.592795,0.120157,1.13756,0.24424,1.00505,0.213348
"""


def published(root):
  directory = root / 'imagenet_subsets/half/imagenet/resnet_50/nesterov/256'
  trial = directory / '2'
  trial.mkdir(parents=True)
  (directory / 'study.json').write_text(PUBLISHED_STUDY)
  (trial / 'metadata.json').write_text(PUBLISHED_METADATA)
  (trial / 'measurements.csv').write_text(PUBLISHED_MEASUREMENTS)
  return directory


def test_the_published_form_is_read(tmp_path):
  published(tmp_path)
  (search,) = read_tree(tmp_path)
  assert search[:4] == ('imagenet', 'resnet_50', 'nesterov', 256)
  assert (search.train_steps, search.early_stopping) == (0, False)
  assert search.space == {
    key: SPACE[key]
    for key in SPACE
    if key not in ('optimizer.weight_decay', 'optimizer.beta2')
  }
  assert type(search.space['learning_rate_decay_steps'].values[0]) is int
  (trial,) = search.trials
  assert (trial.number, trial.status, trial.steps) == (2, COMPLETE, 600000)
  assert trial.parameters == {
    'learning_rate.decay.final': 0.0002861573844378761,
    'task.label_smoothing': 0.01,
    'learning_rate.base': 0.0124894465250831,
    'learning_rate_decay_steps': 522526,
    'optimizer.momentum': 0.9788223543494348,
  }
  assert list(trial.measurements) == [
    'step',
    *(
      f'{split}/{metric}_error'
      for split in ('train', 'val', 'test')
      for metric in ('cross_entropy', 'classification')
    ),
  ]
  assert trial.measurements['step'].tolist() == [0, 1000, 2000, 597500]
  assert trial.measurements[ERROR][-1] == 0.24424
  np.testing.assert_array_equal(
    trial.measurements['test/cross_entropy_error'],
    [6.90984, 6.81384, math.nan, 1.00505],
  )
  assert math.isnan(trial.measurements['train/cross_entropy_error'][2])
  (workload,) = summarize([search], ERROR, 0.25)
  assert workload.rows[0].steps == 597500


def edited(path, **changes):
  value = json.loads(path.read_text()) | changes
  path.write_text(json.dumps(value))


def test_more_or_less_than_published_is_read_too(tmp_path):
  directory = published(tmp_path)
  configs = json.loads(PUBLISHED_STUDY)['parameter_configs']
  configs['learning_rate'] |= {'min_value': 0.1, 'max_value': 0.1, 'note': 'x'}
  edited(directory / 'study.json', hardware='TPU', parameter_configs=configs)
  metadata = json.loads(PUBLISHED_METADATA) | {'host': 'x', 'steps': 6e5}
  metadata['parameters']['learning_rate_decay_steps'] = 522526.0
  internal = [key for key in metadata if key.startswith('_internal')]
  for key in internal:
    del metadata[key]
  (directory / '2/metadata.json').write_text(json.dumps(metadata))
  (directory / '2/notes.txt').write_text('of no interest')
  (directory / 'plots').mkdir()
  (directory / '.3.partial').mkdir()
  (directory / '.3.partial/metadata.json').write_text('{')
  # A trial that diverged at once, twice: with a header, and with nothing.
  metadata |= {'trial_id': 4, 'status': INFEASIBLE, 'steps': 0}
  for number, text in (('4', 'step,val/average_precision\r\n'), ('10', None)):
    (directory / number).mkdir()
    (directory / number / 'metadata.json').write_text(
      json.dumps(metadata | {'trial_id': int(number)})
    )
    if text is not None:
      (directory / number / 'measurements.csv').write_text(text)
  search = read_search(directory)
  assert len(internal) == 2
  assert search.space['learning_rate.base'] == Parameter('discrete', (0.1,))
  assert [t.number for t in search.trials] == [2, 4, 10]
  whole = search.trials[0].parameters['learning_rate_decay_steps']
  assert (whole, type(whole)) == (522526, int)
  assert type(search.trials[0].steps) is int
  empty = search.trials[1].measurements
  assert {k: len(v) for k, v in empty.items()} == {
    'step': 0,
    'val/average_precision': 0,
  }
  assert search.trials[2].measurements == {}


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize(
  ('file', 'content', 'message'),
  [
    ('study.json', '{"batch', 'study.json is damaged: Expecting|Unterminated'),
    ('study.json', '[]', 'study.json is damaged: it holds no object'),
    ('study.json', '{}', "study.json is damaged: it has no 'parameter_config"),
    ('study.json', {'batch_size': 1.5}, 'study.json is damaged: 1.5 is not a'),
    (
      'study.json',
      {'parameter_configs': {'a': {'type': 'TEXT', 'min_value': 0,
                                   'max_value': 1}}},
      "study.json is damaged: unknown type 'TEXT' of a",
    ),
    (
      'study.json',
      {'parameter_configs': {'a': {'type': 'DOUBLE', 'min_value': 0,
                                   'max_value': 1, 'scale': 'ODD'}}},
      "study.json is damaged: unknown scale 'ODD' of a",
    ),
    ('2/metadata.json', None, '2/metadata.json is missing'),
    ('2/metadata.json', '', '2/metadata.json is damaged: Expecting value'),
    ('2/metadata.json', {'status': 'LOST'}, "damaged: unknown status 'LOST'"),
    ('2/metadata.json', {'steps': None}, '2/metadata.json is damaged: '),
    ('2/metadata.json', {'parameters': 3}, '2/metadata.json is damaged: '),
    ('2/measurements.csv', None, '2/measurements.csv is missing'),
    ('2/measurements.csv', '', '2/measurements.csv is missing'),
    ('2/measurements.csv', 'step,a\n1,x\n', "csv is damaged: .*'x'"),
    ('2/measurements.csv', 'step,a\n1,2\n3', 'csv is damaged: its lines have'),
    ('2/measurements.csv', 'a\n1\n', 'csv is damaged: its columns are a'),
    ('2/measurements.csv', 'step,a,a\n1,1,1\n', 'its columns are step,a,a'),
    ('2/measurements.csv', 'step\n1.5\n', 'csv is damaged: its steps are not'),
    ('2/measurements.csv', 'step\ninf\n', 'csv is damaged: its steps are not'),
  ],
)  # fmt: skip
def test_what_is_damaged_is_named(tmp_path, file, content, message, packed):
  path = published(tmp_path / 'tree') / file
  if content is None:
    path.unlink()
  elif isinstance(content, str):
    path.write_text(content)
  else:
    edited(path, **content)
  tree = tmp_path / 'tree'
  if packed:
    tree = tmp_path / 'tree.tar'
    with tarfile.open(tree, 'w') as tar:
      tar.add(tmp_path / 'tree', 'tree')
  with pytest.raises(ValueError, match=message) as error:
    read_tree(tree)
  assert str(error.value).startswith(str(tree))
  assert '\n' not in str(error.value)


def test_what_is_not_there_is_named(tmp_path):
  with pytest.raises(ValueError, match='none is no directory of a search'):
    read_search(tmp_path / 'none')
  with pytest.raises(ValueError, match='study.json is missing'):
    read_search(tmp_path)
  with pytest.raises(ValueError, match='no study.json in '):
    read_tree(tmp_path)
  with pytest.raises(ValueError, match='neither a directory nor a tar'):
    read_tree(tmp_path / 'none')
  directory = published(tmp_path)
  (directory / '2').rename(directory / '3')
  published(tmp_path / 'again')
  (tmp_path / 'again/imagenet_subsets/half/imagenet/resnet_50/nesterov/256/2'
   ).rename(directory / '4')  # fmt: skip
  with pytest.raises(ValueError, match='256 has two trials 2'):
    read_search(directory)
  edited(directory / '3/metadata.json', trial_id=9)
  assert [t.number for t in read_search(directory).trials] == [2, 9]


# Writing, again and again.


def test_a_second_write_touches_nothing(tmp_path):
  search = random_search(0)
  write_search(tmp_path, search)
  for path in tmp_path.rglob('*'):
    os.utime(path, (1, 1))
  write_search(tmp_path, search)
  assert {p.stat().st_mtime for p in tmp_path.rglob('*.*')} == {1}
  trials = list(search.trials)
  steps = trials[2].steps
  trials[2] = trials[2]._replace(steps=steps + 1)
  trials[3] = trials[3]._replace(status=INFEASIBLE, measurements={})
  changed = search._replace(trials=tuple(trials))
  directory = write_search(tmp_path, changed)
  new = {p for p in directory.rglob('*.*') if p.stat().st_mtime != 1}
  assert new == {directory / '3/metadata.json', directory / '4/metadata.json'}
  assert_same(read_search(directory), changed)


class Killed(BaseException):
  pass


def test_whenever_it_is_killed_the_next_write_completes_it(
  tmp_path, monkeypatch
):
  """Killed before each change of the file system in turn."""
  calls = {
    (os, 'replace'): os.replace,
    (pathlib.Path, 'write_bytes'): pathlib.Path.write_bytes,
    (pathlib.Path, 'mkdir'): pathlib.Path.mkdir,
  }
  trials = random_search(0).trials[:3]
  search = random_search(0, trials=trials)
  for allowed in itertools.count():
    root = tmp_path / str(allowed)
    root.mkdir()
    left = [allowed]

    def counted(function, left=left):
      def call(*args, **kwargs):
        if not left[0]:
          raise Killed
        left[0] -= 1
        return function(*args, **kwargs)

      return call

    with monkeypatch.context() as m:
      for (owner, name), function in calls.items():
        m.setattr(owner, name, counted(function))
      try:
        write_search(root, search)
      except Killed:
        pass
      else:
        break
    # No reader takes the part for the whole, and what is named is whole.
    with pytest.raises(ValueError, match='no study.json'):
      read_tree(root)
    for path in root.rglob('[0-9]/*'):
      number = int(path.parent.name)
      assert {p.name for p in path.parent.iterdir()} == {
        'metadata.json',
        'measurements.csv',
      }
      assert number in (1, 2, 3)
      assert path.read_bytes().endswith(b'\n')
    directory = write_search(root, search)
    assert_same(read_search(directory), search)
    assert not list(root.rglob('.*'))
  assert allowed > 10


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'dataset': 'a/b'}, "'a/b' cannot be the name of a directory"),
    ({'model': '..'}, "'..' cannot be the name of a directory"),
    (
      {'trials': (Trial(1, {}, INFEASIBLE, 0, {}),) * 2},
      'two trials of .* have the same number',
    ),
    (
      {'trials': (Trial(1, {}, COMPLETE, 0, {}),)},
      'trial 1 of mnist/mlp/nesterov_momentum/32 is COMPLETE but was not',
    ),
    (
      {'trials': (Trial(1, {}, COMPLETE, 0, {'a': np.zeros(1)}),)},
      'trial 1 .* has measurements without a column step',
    ),
    (
      {
        'trials': (
          Trial(
            1, {}, COMPLETE, 0, {'step': np.zeros(1, int), 'a': np.zeros(2)}
          ),
        )
      },
      'trial 1 .* has measurements of different lengths',
    ),
    (
      {
        'space': {
          'learning_rate': SPACE['learning_rate.base'],
          'learning_rate.base': SPACE['learning_rate.base'],
        }
      },
      'two parameters have one published name',
    ),
  ],
)
def test_what_the_form_cannot_hold_is_refused(tmp_path, changes, message):
  for write in (
    lambda search: write_search(tmp_path, search),
    lambda search: write_tar(tmp_path / 'a.tar.xz', [search]),
  ):
    with pytest.raises(ValueError, match=message):
      write(random_search(0, **changes))
  assert not any(tmp_path.iterdir())


def test_trials_of_another_search_are_not_mixed_in(tmp_path):
  search = random_search(0)
  write_search(tmp_path, search)
  before = contents(tmp_path)
  with pytest.raises(ValueError, match='32/11 is of another search'):
    write_search(tmp_path, search._replace(trials=search.trials[:10]))
  assert contents(tmp_path) == before


# Archives.

COMPRESS = {'bz2': bz2.compress, 'xz': lzma.compress, 'gz': gzip.compress}
DECOMPRESS = {
  'bz2': bz2.decompress,
  'xz': lzma.decompress,
  'gz': gzip.decompress,
}


def test_a_tar_is_the_directory_and_always_the_same(tmp_path):
  searches = [random_search(seed, 2**seed) for seed in (5, 3, 4)]
  for search in searches:
    write_search(tmp_path / 'tree', search)
  first = write_tar(tmp_path / 'a.tar.xz', searches)
  second = write_tar(tmp_path / 'b.tar.xz', searches[::-1])
  assert first.read_bytes() == second.read_bytes()
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    'a.tar.xz',
    'b.tar.xz',
    'tree',
  ]
  with tarfile.open(first) as tar:
    members = tar.getmembers()
    packed = {m.name: tar.extractfile(m).read() for m in members}
  assert packed == contents(tmp_path / 'tree')
  assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {
    (0, 0, 0, '', 0o644)
  }
  from_tree, from_tar = read_tree(tmp_path / 'tree'), read_tree(first)
  assert [s.batch_size for s in from_tree] == [8, 16, 32]
  for a, b, c in zip(
    from_tree, from_tar, sorted(searches, key=lambda s: s[3]), strict=True
  ):
    assert_same(a, c)
    assert_same(b, c)


def test_a_tar_is_refused_where_it_would_mislead(tmp_path):
  search = random_search(0)
  with pytest.raises(ValueError, match=r'a.tar is not named .*: use .tar.xz'):
    write_tar(tmp_path / 'a.tar', [search])
  with pytest.raises(ValueError, match='two searches of mnist/mlp/nesterov_mo'):
    write_tar(tmp_path / 'a.tar.xz', [search, search])
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('mode', ['', 'bz2', 'xz', 'gz'])
def test_archives_are_read_however_they_were_packed(tmp_path, mode):
  """With a folder of its own, `./` in front, and in no particular order."""
  first = published(tmp_path / 'tree')
  write_search(tmp_path / 'tree/solution_quality', random_search(1))
  path = tmp_path / f'data.tar.{mode}'
  with tarfile.open(path, f'w:{mode}') as tar:
    tar.add(first / '2/measurements.csv', './x/2/measurements.csv')
    tar.add(tmp_path / 'tree/solution_quality', './x/solution_quality')
    tar.add(first / 'study.json', './x/study.json')
    tar.add(first / '2/metadata.json', './x/2/metadata.json')
    tar.add(first / 'study.json', './x/2/._study.json')
  imagenet, mnist = read_tree(path)
  assert_same(imagenet, read_search(first))
  assert_same(mnist, random_search(1))
  (only,) = read_tree(path, 'x/solution_quality/mnist/*')
  assert_same(only, mnist)
  (only,) = read_tree(tmp_path / 'tree', 'solution_quality/mnist/*')
  assert_same(only, mnist)
  with pytest.raises(ValueError, match="in a directory like 'lm1b/"):
    read_tree(path, 'lm1b/*')


@pytest.mark.parametrize('mode', ['', 'bz2', 'xz', 'gz'])
def test_an_archive_that_breaks_off_is_refused(tmp_path, mode):
  """Wherever it does so: between two files as well as in one."""
  path = tmp_path / f'data.tar.{mode}'
  write_search(tmp_path / 'tree', random_search(1))
  with tarfile.open(path, f'w:{mode}', format=tarfile.USTAR_FORMAT) as tar:
    tar.add(tmp_path / 'tree', '.')
    ends = [m.offset for m in tar.getmembers()[-3:]]
  whole = path.read_bytes()
  broken = [whole[: len(whole) * share // 10] for share in (3, 6)]
  if mode:
    text = DECOMPRESS[mode](whole)
    broken += [COMPRESS[mode](text[:end])[:-1] for end in ends]
  else:
    broken += [whole[:end] for end in ends]
  for content in broken:
    path.write_bytes(content)
    with pytest.raises(ValueError, match='is no whole tar archive'):
      read_tree(path)
  path.write_bytes(b'no archive at all' * 100)
  with pytest.raises(ValueError, match='is no whole tar archive'):
    read_tree(path)


@pytest.mark.parametrize('kind', ['measurements', 'other', 'sparse', 'name'])
def test_a_bomb_is_refused_before_it_is_decompressed(
  tmp_path, monkeypatch, kind
):
  """A megabyte or less that would be gigabytes in memory."""
  size = 2**32
  monkeypatch.setattr(archive, 'MOST_BYTES', 2**22)
  member = tarfile.TarInfo('x/2/measurements.csv')
  if kind == 'other':
    member.name = 'x/weights.bin'
  if kind == 'sparse':
    member.type = tarfile.GNUTYPE_SPARSE
  if kind == 'name':
    member.type = tarfile.GNUTYPE_LONGNAME
  member.size = size if kind != 'sparse' else 512
  header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
  if kind == 'sparse':
    header[483:495] = f'{size:011o}\0'.encode()  # what it is unpacked
    header[148:156] = b' ' * 8
    header[148:156] = f'{sum(header):06o}\0 '.encode()
  path = tmp_path / 'bomb.tar.gz'
  # The same megabyte of zeros again and again, as members of a gzip file.
  zeros = gzip.compress(bytes(2**20))
  with path.open('wb') as file:
    file.write(gzip.compress(bytes(header)))
    for _ in range(1 if kind != 'name' else 20):
      file.write(zeros)
  tracemalloc.start()
  with pytest.raises(ValueError, match='at most: leave it out') as error:
    read_tree(path)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 3 * archive.MOST_BYTES
  assert str(error.value).startswith(str(path))
  assert '\n' not in str(error.value)


# The whole way.

SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
MIN_STEPS, CRITICAL = 2000, 48


def known_tree(root, seed, scale):
  """Best trials reach 0.1 at S(B); some sizes have none that does."""
  rng = np.random.default_rng(seed)
  for size in SIZES:
    steps = round(
      MIN_STEPS * (1 + CRITICAL / size) * math.exp(rng.normal(0, scale))
    )
    reaches = size not in (4, 1024)
    grid = np.array([0, steps // 2, steps, 2 * steps])
    trials = []
    for number, best in ((1, 0.1), (2, 0.09 if reaches else 0.1), (3, 0.3)):
      columns = {'step': grid, ERROR: np.array([0.9, 0.1, best, 0.2])}
      status = INFEASIBLE if number == 3 else COMPLETE
      trials.append(Trial(number, {}, status, 2 * steps, columns))
    write_search(
      root,
      Search('mnist', 'mlp', 'sgd', size, {}, 2 * steps, False, trials),
    )


def test_a_known_curve_comes_back_from_disk(tmp_path):
  known_tree(tmp_path, 0, 0.0)
  (workload,) = summarize(read_tree(tmp_path), ERROR, 0.1)
  assert [row.batch_size for row in workload.rows] == SIZES
  censored = [row.batch_size for row in workload.rows if row.steps is None]
  assert censored == [4, 1024]
  labels = dict(zip(SIZES, workload.regimes.labels, strict=True))
  assert {s for s in SIZES if labels[s] == 'censored'} == {4, 1024}
  assert labels[16] == 'perfect scaling'
  assert labels[32] == 'diminishing returns'
  assert labels[512] == 'maximal data parallelism'
  fit = workload.fit
  assert fit is not None
  assert fit.points == len(SIZES) - 2
  assert fit.min_steps == pytest.approx(MIN_STEPS, rel=0.01)
  assert fit.critical_batch_size == pytest.approx(CRITICAL, rel=0.01)


def test_a_known_curve_with_noise_is_within_its_intervals(tmp_path):
  count, held, errors = 40, np.zeros(2), []
  for seed in range(count):
    root = tmp_path / str(seed)
    known_tree(root, seed, 0.15)
    (workload,) = summarize(read_tree(root), ERROR, 0.1)
    fit = workload.fit
    assert fit is not None
    low, high = fit.min_steps_interval
    held[0] += low <= MIN_STEPS <= high
    low, high = fit.critical_batch_size_interval
    held[1] += low <= CRITICAL <= high
    errors.append(math.log(fit.critical_batch_size / CRITICAL))
  # 4 standard errors; and the intervals are not wide for nothing.
  assert np.all(held / count > 0.95 - 4 * math.sqrt(0.95 * 0.05 / count))
  assert 0.05 < np.std(errors) < 0.3
