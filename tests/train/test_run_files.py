"""What a run shows and leaves behind: clock, metrics, console, directory."""

import io
import json
import math
import os
import re
import struct
import time

import pytest
from tensorboardX.proto import event_pb2

from adabatch import config as config_lib
from adabatch.config import ConfigError
from adabatch.config import files as files_lib
from adabatch.config.comments import comments
from adabatch.config.files import checksum, finite
from adabatch.train import console as console_lib
from adabatch.train.beginning import Beginning
from adabatch.train.console import Console
from adabatch.train.log import Log
from adabatch.train.log_file import LogFile
from adabatch.train.metrics import MetricsWriter
from adabatch.train.reports import Clock
from adabatch.train.workdir import Workdir

# The clock.


class Now:
  """A time that only moves when told to."""

  def __init__(self):
    self.seconds = 100.0

  def __call__(self):
    return self.seconds


def test_clock_stands_still_while_paused():
  now = Now()
  clock = Clock(now=now)
  now.seconds += 2
  with clock.paused():
    now.seconds += 10
    assert clock.seconds == 2.0
    with clock.paused():
      now.seconds += 10
    now.seconds += 10
    assert clock.seconds == 2.0
  now.seconds += 3
  assert clock.seconds == 5.0


def test_clock_goes_on_where_it_was():
  now = Now()
  clock = Clock(40.0, now)
  now.seconds += 2
  assert clock.seconds == 42.0


def test_clock_goes_on_after_an_error_in_a_pause():
  now = Now()
  clock = Clock(now=now)

  def fail():
    now.seconds += 10
    raise KeyError

  with pytest.raises(KeyError), clock.paused():
    fail()
  now.seconds += 3
  assert clock.seconds == 3.0


# Metrics.


def train_record(update, **changes):
  return {
    'update': update,
    'examples': 32 * update,
    'epoch': update / 10,
    'loss': 2.0 / update,
    'batch_size': 32,
    'learning_rate': 0.1,
    'examples_per_second': 1000.0,
  } | changes


def write(path, updates, *, after=0, loss=None):
  writer = MetricsWriter(path, after)
  for update in updates:
    changes = {} if loss is None else {'loss': loss}
    writer.write('train', train_record(update, **changes))
  writer.close()


def strict_json(text):
  """Without Python's NaN and Infinity, which JSON does not know."""

  def refuse(word):
    raise AssertionError(f'{word} is not JSON')

  return json.loads(text, parse_constant=refuse)


def lines(path):
  text = (path / 'metrics.jsonl').read_text()
  return [strict_json(line) for line in text.splitlines()]


def events(path):
  """(step, tag, value) of all scalars, in the order of the files.

  An event file is a row of records: length (8 bytes), its checksum (4), an
  `Event` protocol buffer, its checksum (4).
  """
  found = []
  for file in sorted((path / 'tensorboard').iterdir()):
    data, at = file.read_bytes(), 0
    while at < len(data):
      (length,) = struct.unpack_from('<Q', data, at)
      event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
      at += 16 + length
      found += [
        (event.step, v.tag, v.simple_value) for v in event.summary.value
      ]
  return found


def test_records_can_be_read_back(tmp_path):
  writer = MetricsWriter(tmp_path, 0)
  writer.write('train', train_record(1))
  evaluation = {'update': 1, 'split': 'validation', 'accuracy': 0.5}
  writer.write('eval', evaluation)
  # At once, not when the run ends.
  assert lines(tmp_path) == [
    {'kind': 'train', **train_record(1)},
    {'kind': 'eval', **evaluation},
  ]
  writer.close()
  tags = [f'train/{name}' for name in train_record(1) if name != 'update']
  *trained, evaluated = events(tmp_path)
  assert [(step, tag) for step, tag, _ in trained] == [(1, t) for t in tags]
  assert {tag: value for _, tag, value in trained} == {
    f'train/{name}': pytest.approx(value)
    for name, value in train_record(1).items()
    if name != 'update'
  }
  assert evaluated == (1, 'eval/validation/accuracy', 0.5)


def test_nan_and_infinity_become_null(tmp_path):
  writer = MetricsWriter(tmp_path, 0)
  writer.write('train', train_record(1, loss=math.nan, damping=-math.inf))
  writer.close()
  (line,) = lines(tmp_path)
  assert line['loss'] is None
  assert line['damping'] is None
  assert line['learning_rate'] == 0.1


def test_finite_looks_into_everything():
  value = {'a': [1, math.nan, (math.inf, 'b')], 'c': {'d': -math.inf}, 'e': 0.5}
  assert finite(value) == {
    'a': [1, None, [None, 'b']],
    'c': {'d': None},
    'e': 0.5,
  }


def test_resuming_drops_later_records(tmp_path):
  write(tmp_path, range(1, 8))
  write(tmp_path, (5, 6), after=4, loss=9.0)
  expected = [(u, 2.0 / u) for u in range(1, 5)] + [(5, 9.0), (6, 9.0)]
  assert [(r['update'], r['loss']) for r in lines(tmp_path)] == expected
  assert [p.name for p in tmp_path.glob('*.tmp')] == []


def test_starting_over_drops_all_records(tmp_path):
  write(tmp_path, range(1, 4))
  write(tmp_path, (1,), loss=9.0)
  assert [r['loss'] for r in lines(tmp_path)] == [9.0]


def test_resuming_keeps_the_records_of_the_checkpoint_itself(tmp_path):
  writer = MetricsWriter(tmp_path, 0)
  writer.write('train', train_record(4))
  writer.write('eval', {'update': 4, 'split': 'test', 'loss': 1.0})
  writer.close()
  before = lines(tmp_path)
  MetricsWriter(tmp_path, 4).close()
  assert lines(tmp_path) == before


@pytest.mark.parametrize('cut', [1, 2, 10, 60])
def test_resuming_drops_a_torn_last_line(tmp_path, cut):
  write(tmp_path, range(1, 4))
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(path.read_bytes()[:-cut])
  write(tmp_path, (3,), after=2, loss=9.0)
  assert [r['loss'] for r in lines(tmp_path)] == [2.0, 1.0, 9.0]


def test_an_empty_record_can_be_resumed(tmp_path):
  (tmp_path / 'metrics.jsonl').touch()
  write(tmp_path, (5,), after=4)
  assert [r['update'] for r in lines(tmp_path)] == [5]


def test_resuming_keeps_the_events_of_before(tmp_path):
  """Within the same second too, after which the files are named."""
  write(tmp_path, range(1, 4))
  write(tmp_path, (3,), after=2, loss=9.0)
  losses = [e for e in events(tmp_path) if e[1] == 'train/loss']
  expected = [(1, 2.0), (2, 1.0), (3, 2.0 / 3), (3, 9.0)]
  assert [(e[0], e[2]) for e in losses] == [
    (step, pytest.approx(value)) for step, value in expected
  ]


# The console.


class Terminal(io.StringIO):
  def isatty(self):
    return True


def visible(text):
  """Lines as they stand in the end: a carriage return starts one anew."""
  shown = [re.split(r'\r(?!$)', line)[-1] for line in text.split('\n')]
  return [line.rstrip('\r ') for line in shown if line.strip('\r ')]


def test_piped_prints_lines():
  stream = io.StringIO()
  console = Console(6400, stream=stream, seconds_between_lines=0.0)
  console.start(0)
  console.say('hello')
  console.progress(train_record(50))
  console.progress(train_record(100))
  console.close()
  assert stream.getvalue().splitlines() == [
    'hello',
    'update 50  epoch 5.00  B 32  lr 0.1  loss 0.0400',
    'update 100  epoch 10.00  B 32  lr 0.1  loss 0.0200',
  ]


def test_piped_prints_now_and_then(monkeypatch):
  now = Now()
  monkeypatch.setattr(console_lib.time, 'monotonic', now)
  stream = io.StringIO()
  console = Console(6400, stream=stream, seconds_between_lines=10.0)
  for update in range(1, 41):
    now.seconds += 1
    console.progress(train_record(update))
  updates = re.findall(r'^update (\d+)', stream.getvalue(), re.MULTILINE)
  assert updates == ['10', '20', '30', '40']


@pytest.mark.parametrize('stream', [io.StringIO, Terminal])
def test_disabled_prints_nothing(stream):
  stream = stream()
  console = Console(
    640, enabled=False, stream=stream, seconds_between_lines=0.0
  )
  console.start(0)
  console.say('hello')
  console.progress(train_record(1))
  console.close()
  assert stream.getvalue() == ''


def test_a_terminal_shows_a_bar(monkeypatch):
  monkeypatch.setenv('COLUMNS', '200')
  stream = Terminal()
  console = Console(6400, stream=stream)
  console.say('before')
  console.start(3200)
  console.progress(train_record(150))
  console.say('between')
  # The last batch reaches beyond the end of the run.
  console.progress(train_record(201))
  console.close()
  *messages, bar = visible(stream.getvalue())
  assert messages == ['before', 'between']
  assert bar.startswith('100%')
  assert '6.40k/6.40k' in bar
  assert 'epoch 20.10  B 32  lr 0.1  loss 0.0100' in bar
  assert ' 50%' in stream.getvalue()  # where the resumed run went on


def test_a_terminal_copes_with_nan_and_an_early_end():
  stream = Terminal()
  console = Console(6400, stream=stream)
  console.progress(train_record(1))
  console.close()
  console.start(0)
  console.progress(train_record(2, loss=math.nan))
  console.close()
  assert 'loss nan' in stream.getvalue()


# The directory.


@pytest.fixture
def workdir(tmp_path):
  return Workdir(tmp_path / 'runs' / 'mine')


def config(**changes):
  c = config_lib.default()
  c.update_from_flattened_dict(changes)
  return c


def results(workdir):
  (workdir.path / 'metrics.jsonl').write_text('{"update": 1}\n')


def test_checking_a_directory_does_not_make_it(workdir):
  workdir.check(config())
  assert not workdir.has_checkpoints()
  assert workdir.read_summary() is None
  assert not workdir.path.parent.exists()


def test_a_run_is_taken_up_again_with_its_own_config(workdir):
  workdir.open(config(), {})
  results(workdir)
  workdir.check(config())
  written = strict_json((workdir.path / 'config.json').read_text())
  assert written == json.loads(json.dumps(config().to_dict()))


def test_another_config_is_refused_by_its_keys(workdir):
  workdir.open(config(), {})
  results(workdir)
  other = config(**{
    'learning_rate.base': 0.25,
    'model.mlp.hidden_sizes': (64, 32),
    'max_updates': 7,
  })  # fmt: skip
  with pytest.raises(ConfigError) as error:
    workdir.check(other)
  message = str(error.value)
  assert 'learning_rate.base (0.1 there, 0.25 here)' in message
  assert 'model.mlp.hidden_sizes ([128] there, [64, 32] here)' in message
  assert 'max_updates (None there, 7 here)' in message
  assert '\n' not in message
  assert 'seed' not in message


def test_many_differences_are_counted(workdir):
  workdir.open(config(), {})
  results(workdir)
  names = (
    'seed',
    'epochs',
    'max_updates',
    'log.every_updates',
    'checkpoint.every_updates',
    'eval.every_epochs',
    'data.crop_padding',
  )
  with pytest.raises(ConfigError, match='and 2 more; choose another') as error:
    workdir.check(config(**dict.fromkeys(names, 99)))
  assert str(error.value).count(' here)') == 5


def test_a_key_that_only_one_config_has_is_a_difference(workdir):
  workdir.open(config(), {})
  path = workdir.path / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'extra': 1}))
  results(workdir)
  with pytest.raises(ConfigError, match='extra'):
    workdir.check(config())


def test_some_keys_may_change(workdir):
  """Where the data lie, and what a device and the disk can hold."""
  workdir.open(config(), {})
  results(workdir)
  elsewhere = {
    'data.data_dir': '/mnt/sets',
    'buckets.max_per_device': 8,
    'checkpoint.keep': 1,
  }
  workdir.check(config(**elsewhere))
  with pytest.raises(ConfigError, match='another config: seed'):
    workdir.check(config(seed=1, **elsewhere))


def test_checkpoints_alone_are_results(workdir):
  workdir.open(config(), {})
  checkpoints = workdir.path / 'checkpoints'
  checkpoints.mkdir()
  assert not workdir.has_checkpoints()
  (checkpoints / '5').mkdir()
  assert workdir.has_checkpoints()
  with pytest.raises(ConfigError, match='seed'):
    workdir.check(config(seed=1))


def test_a_config_without_results_is_replaced(workdir):
  workdir.open(config(), {})
  (workdir.path / 'metrics.jsonl').touch()
  (workdir.path / 'checkpoints').mkdir()
  other = config(seed=1)
  workdir.check(other)
  workdir.open(other, {})
  assert json.loads((workdir.path / 'config.json').read_text())['seed'] == 1


def test_results_without_a_config_are_refused(workdir):
  workdir.path.mkdir(parents=True)
  results(workdir)
  with pytest.raises(ConfigError, match=r'no config\.json'):
    workdir.check(config())


@pytest.mark.parametrize('text', ['', '{"seed": 0', 'null', '[1]'])
def test_a_broken_config_is_refused(workdir, text):
  workdir.open(config(), {})
  results(workdir)
  (workdir.path / 'config.json').write_text(text)
  with pytest.raises(ConfigError, match=r'config\.json is not'):
    workdir.check(config())


@pytest.mark.parametrize('below', ['', 'mine', 'runs/mine'])
def test_a_path_that_cannot_be_written_is_refused(tmp_path, below):
  (tmp_path / 'file').touch()
  workdir = Workdir(tmp_path / 'file' / below)
  workdir.check(config())
  with pytest.raises(ConfigError, match='cannot write to workdir') as error:
    workdir.open(config(), {})
  assert '\n' not in str(error.value)


def test_files_are_written_whole_or_not_at_all(workdir, monkeypatch):
  workdir.open(config(), {})
  workdir.write_summary({'updates': 1})
  with pytest.raises(TypeError):
    workdir.write_summary({'updates': 2, 'bad': object()})
  assert workdir.read_summary() == {'updates': 1}

  def fail(*_):
    raise OSError('the power went off')

  with monkeypatch.context() as m:
    m.setattr(files_lib.os, 'replace', fail)
    with pytest.raises(OSError, match='power'):
      workdir.write_summary({'updates': 2})
  assert workdir.read_summary() == {'updates': 1}
  workdir.write_summary({'updates': 3})
  assert workdir.read_summary() == {'updates': 3}
  files = ['config.json', 'inputs.json', 'summary.json']
  assert sorted(os.listdir(workdir.path)) == files


def test_a_summary_is_json(workdir):
  workdir.open(config(), {})
  workdir.write_summary({'final': {'test': {'loss': math.nan}}, 'epochs': 0.5})
  text = (workdir.path / 'summary.json').read_text()
  expected = {'final': {'test': {'loss': None}}, 'epochs': 0.5}
  assert strict_json(text) == expected | {'checksum': checksum(expected)}


@pytest.mark.parametrize(
  ('right', 'wrong'),
  [('"updates": 4', '"updates": 5'), ('status', 'spatus'), ('{', '[')],
)
def test_a_summary_that_is_damaged_is_none(workdir, right, wrong):
  workdir.open(config(), {})
  workdir.write_summary({'status': 'completed', 'updates': 4})
  path = workdir.path / 'summary.json'
  path.write_text(path.read_text().replace(right, wrong, 1))
  assert workdir.read_summary() is None


def test_a_relative_directory_stays_where_it_was(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  workdir = Workdir('mine')
  (tmp_path / 'elsewhere').mkdir()
  monkeypatch.chdir(tmp_path / 'elsewhere')
  workdir.open(config(), {})
  assert (tmp_path / 'mine' / 'config.json').exists()


# Where the records of a run go.

START = {'update': 0, 'examples': 0, 'over': False, 'network': 'mlp: small'}
EVALUATION = {
  'update': 16,
  'examples': 250,
  'epoch': 2.5,
  'seconds': 1.0,
  'split': 'validation',
  'loss': 0.5,
  'accuracy': 0.98765,
}


def logged(workdir, records, *, enabled=True):
  """What the console shows of them."""
  stream = io.StringIO()
  console = Console(
    6400, enabled=enabled, stream=stream, seconds_between_lines=0.0
  )
  log = Log(config(), workdir, console, about={}, enabled=enabled)
  assert not (workdir.path / 'metrics.jsonl').exists()
  for kind, record in records:
    log.write(kind, record)
  log.close()
  return stream.getvalue().splitlines()


def test_each_record_goes_where_it_belongs(workdir):
  replicas = {'update': 2, 'replicas': 2, 'before': 1, 'why': 'because'}
  shown = logged(
    workdir,
    [
      ('start', START),
      ('note', {'update': 0, 'text': 'the size is capped'}),
      ('replicas', replicas),
      ('train', train_record(50)),
      ('eval', EVALUATION),
      ('summary', {'status': 'completed', 'best': {'loss': math.nan}}),
    ],
  )
  assert shown == [
    'the size is capped',
    'mlp: small',
    'update 50  epoch 5.00  B 32  lr 0.1  loss 0.0400',
    'epoch 2.50  update 16  validation  loss 0.5000  accuracy 0.9877',
  ]
  assert lines(workdir.path) == [
    {'kind': 'replicas', **replicas},
    {'kind': 'train', **train_record(50)},
    {'kind': 'eval', **EVALUATION},
  ]
  assert (1.0, 'eval/validation/seconds') in {
    (value, tag) for _, tag, value in events(workdir.path)
  }
  expected = {'status': 'completed', 'best': {'loss': None}}
  assert workdir.read_summary() == expected
  written = json.loads((workdir.path / 'config.json').read_text())
  assert written == json.loads(json.dumps(config().to_dict()))


def test_nothing_is_written_before_everything_was_accepted(workdir):
  assert logged(workdir, []) == []
  assert not workdir.path.exists()


def test_a_run_that_is_over_leaves_its_config_alone(workdir):
  workdir.open(config(epochs=1.0), {})
  before = (workdir.path / 'config.json').read_text()
  assert logged(workdir, [('start', START | {'over': True})]) == []
  assert (workdir.path / 'config.json').read_text() == before


def test_only_the_first_process_writes(workdir):
  records = [
    ('start', START),
    ('note', {'update': 0, 'text': 'the size is capped'}),
    ('train', train_record(1)),
    ('summary', {'status': 'completed'}),
  ]
  assert logged(workdir, records, enabled=False) == []
  assert not workdir.path.exists()


# The config.


def test_flatten_names_every_value_once():
  flat = config_lib.flatten(config())
  assert flat['learning_rate.warmup.kind'] == 'none'
  assert flat['max_updates'] is None
  assert not any(isinstance(v, dict) for v in flat.values())
  again = config_lib.flatten(json.loads(json.dumps(config().to_dict())))
  assert again.keys() == flat.keys()


def test_differences():
  a = {'same': 1, 'other': 1, 'missing': None}
  b = {'same': 1, 'other': 2, 'new': None}
  assert config_lib.differences(a, b) == ['missing', 'new', 'other']
  assert config_lib.differences(a, dict(a)) == []


@pytest.mark.parametrize(
  ('key', 'hint'),
  [
    ('zzzz', None),
    ('learning_rate.foo', None),  # the table alone is no likeness
    ('model.mine.width', None),
    ('optimizer.lr', None),
    ('max_batch_size', 'controller.max_batch_size'),
    ('lerning_rate.bsae', 'learning_rate.base'),
    ('model.mlpp.hidden_sizes', 'model.mlp.hidden_sizes'),
    ('epoch', 'epochs'),  # and not the end of a longer key
  ],
)
def test_a_hint_only_where_something_is_close(key, hint):
  expected = f' (did you mean {hint!r}?)' if hint else ''
  assert config_lib.nearest(key) == expected


def test_every_key_says_what_it_means():
  """In a comment behind it or above, which can be read without the next one."""
  said = {key: comments()[key] for key in config_lib.flatten(config())}
  assert [key for key, words in said.items() if not words] == []
  leaning = re.compile(r'likewise|^instead|^\.\.\.')
  assert [key for key, words in said.items() if leaning.search(words)] == []
  # Tables too, but for those of one row of a table of names.
  tables = {key.rpartition('.')[0] for key in said} - {''}
  silent = {table for table in tables if not comments().get(table)}
  assert all(table.count('.') == 1 for table in silent), silent


# What a process said.


def test_what_is_said_is_kept(tmp_path):
  path = tmp_path / 'run' / 'log.txt'
  console = Console(
    6400,
    stream=Terminal(),
    seconds_between_lines=0.0,
    log=LogFile(path),
  )
  console.say('before')
  path.parent.mkdir()
  assert not path.exists()  # it may still be refused
  console.start(0)
  console.progress(train_record(50))  # a bar, and a line there
  console.warn('after')
  lines = path.read_text().splitlines()
  assert [line[21:] for line in lines] == [
    'before',
    'update 50  epoch 5.00  B 32  lr 0.1  loss 0.0400',
    'after',
  ]
  assert all(re.match(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ', x) for x in lines)


def test_other_processes_keep_what_they_say(workdir):
  path = workdir.path / 'log.1.txt'
  console = Console(6400, enabled=False, log=LogFile(path))
  log = Log(config(), workdir, console, about={}, enabled=False)
  console.say('what the first one says')
  console.warn('skipped record 3')
  workdir.path.mkdir(parents=True)
  log.write(*('start', START))
  assert [line[21:] for line in path.read_text().splitlines()] == [
    'skipped record 3'
  ]


def test_lines_wait_for_the_directory(tmp_path):
  file = LogFile(tmp_path / 'run' / 'log.txt')
  file.open()
  file.say('early')
  (tmp_path / 'run').mkdir()
  file.say('late')
  lines = (tmp_path / 'run' / 'log.txt').read_text().splitlines()
  assert [line[21:] for line in lines] == ['early', 'late']


def test_the_beginning_is_told():
  stream, done = io.StringIO(), []
  console = Console(6400, stream=stream)
  doing = Beginning(console, lambda *told: done.append(told))
  console.stage('reading digits')
  told = [
    ('training', 'update 0'),  # of no program yet
    ('compiling', 'update 0'),
    ('training', 'update 0'),
    ('compiling', 'update 9'),  # that of a later one
    ('training', 'update 9'),
  ]
  for one in told:
    doing(*one)
  assert done == told
  console.say('said')
  assert [line[9:].strip() for line in stream.getvalue().splitlines()] == [
    'reading digits',
    'compiling',
    'training',
    '',
  ]


def test_a_stage_is_told_after_a_moment(monkeypatch):
  monkeypatch.setattr(console_lib, 'MOMENT', 0.01)
  stream = io.StringIO()
  console = Console(6400, stream=stream)
  console.stage('reading digits')
  deadline = time.monotonic() + 60
  while not stream.getvalue() and time.monotonic() < deadline:
    time.sleep(0.01)
  assert stream.getvalue() == '   0.0 s  reading digits\n'


def test_of_a_run_that_is_refused_nothing_is_told():
  stream = io.StringIO()
  console = Console(6400, stream=stream)
  console.stage('reading digits')
  console.close()
  console.warn('after')
  assert stream.getvalue() == 'after\n'
