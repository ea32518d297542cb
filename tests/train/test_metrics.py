"""metrics.jsonl when a run goes on: cut at its mark, mended where it is not."""

import json
import shutil
import struct
import threading

import pytest

from adabatch.train import metrics
from adabatch.train.metrics import Mark, MetricsWriter

UPDATES = range(1, 7)


def record(update):
  return {'update': update, 'loss': 1 / update, 'batch_size': 8 * update}


def text(update, kind='train'):
  return json.dumps({'kind': kind, **record(update)}) + '\n'


@pytest.fixture
def run(tmp_path):
  """The directory and the mark of a run that was killed two lines later."""
  writer = MetricsWriter(tmp_path, 0, Mark())
  for update in UPDATES:
    writer.write('train', record(update))
  evaluation = record(6) | {'split': 'test'}
  writer.write('eval', evaluation)
  mark = writer.mark
  for update in (7, 8):
    writer.write('train', record(update))
  writer.close()
  return tmp_path, mark


def resumed(directory, mark):
  """What the file holds then, its mark, and what was said."""
  said = []
  writer = MetricsWriter(directory, 6, mark, said.append)
  writer.close()
  return (directory / 'metrics.jsonl').read_bytes(), writer.mark, said


def whole(directory, mark):
  return (directory / 'metrics.jsonl').read_bytes()[: mark.size]


def test_the_mark_is_that_of_the_file(run):
  directory, mark = run
  assert mark == Mark().after(whole(directory, mark))
  assert mark.lines == 7


@pytest.mark.parametrize('torn', [b'', b'{"kind": "tr'])
def test_the_file_is_cut_without_being_parsed(run, torn, monkeypatch):
  directory, mark = run
  before = whole(directory, mark)
  with (directory / 'metrics.jsonl').open('ab') as file:
    file.write(torn)
  monkeypatch.setattr(metrics, 'json', None)
  monkeypatch.setattr(metrics, 'read_lines', None)
  assert resumed(directory, mark) == (before, mark, [])


def damage(content, how):
  lines = content.splitlines(keepends=True)
  if how == 'changed':
    return content.replace(b'"batch_size": 16', b'"batch_size": 17')
  if how == 'zeroed':
    return content.replace(lines[2], bytes(len(lines[2]) - 1) + b'\n')
  if how == 'a line less':
    return b''.join(lines[:1] + lines[2:])
  if how == 'cut short':
    return content[: -len(lines[-1]) - len(lines[-2]) - len(lines[-3]) - 20]
  return b''  # emptied


HOW = {
  'changed': 'changed',
  'zeroed': 'unreadable lines: 1',
  'a line less': 'missing lines: 1',
  'cut short': 'missing lines: 1, unreadable lines: 1',
  'emptied': 'missing lines: 7',
}


@pytest.mark.parametrize('how', [*HOW, 'deleted'])
def test_what_is_wrong_is_said_and_restored_from_the_events(run, how):
  directory, mark = run
  before, path = whole(directory, mark), directory / 'metrics.jsonl'
  if how == 'deleted':
    path.unlink()
  else:
    path.write_bytes(damage(path.read_bytes(), how))
  found, now, (said,) = resumed(directory, mark)
  assert (found, now) == (before, mark)
  wrong = HOW.get(how, HOW['emptied'])
  then = 'all is restored from the TensorBoard events'
  assert said == f'{path} is damaged: {wrong}; {then}'


@pytest.mark.parametrize(
  ('right', 'wrong'),
  [
    (b'"update": 2', b'"update": 3'),
    (b'"train", "update": 4', b'"trajn", "update": 4'),
    (b'"split": "test"', b'"split": "tess"'),
  ],
)
def test_a_line_that_says_it_is_another_does_not_stay(run, right, wrong):
  directory, mark = run
  before, path = whole(directory, mark), directory / 'metrics.jsonl'
  path.write_bytes(path.read_bytes().replace(right, wrong, 1))
  found, now, (said,) = resumed(directory, mark)
  assert (found, now) == (before, mark)
  assert said.endswith('all is restored from the TensorBoard events')


@pytest.mark.parametrize(
  ('how', 'kept'), [('zeroed', 6), ('cut short', 5), ('emptied', 0)]
)
def test_without_events_what_is_whole_is_kept(run, how, kept):
  directory, mark = run
  before, path = whole(directory, mark), directory / 'metrics.jsonl'
  path.write_bytes(damage(path.read_bytes(), how))
  shutil.rmtree(directory / 'tensorboard')
  found, now, (said,) = resumed(directory, mark)
  lines = before.splitlines(keepends=True)
  del lines[{'zeroed': slice(2, 3)}.get(how, slice(kept, None))]
  assert found == b''.join(lines)
  assert now == Mark().after(found)
  assert said == f'{path} is damaged: {HOW[how]}; {kept} of 7 lines are kept'
  # From there on it is the file that is gone on with.
  assert resumed(directory, now) == (found, now, [])


def test_damaged_events_restore_what_they_hold(run):
  """A record that is damaged is left out, and all after a damaged length."""
  directory, mark = run
  before = whole(directory, mark)
  (directory / 'metrics.jsonl').unlink()
  (events,) = (directory / 'tensorboard').iterdir()
  content = bytearray(events.read_bytes())

  def length(at):
    return 16 + struct.unpack_from('<Q', content, at)[0]

  content[content.index(b'"batch_size": 16}') + 15] ^= 1  # which makes it 17
  events.write_bytes(content)
  found, _, (said,) = resumed(directory, mark)
  assert found == before.replace(text(2).encode(), b'')
  assert said.endswith('6 of 7 lines are kept')
  at = 0
  while text(4)[:-1].encode() not in content[at : at + (n := length(at))]:
    at += n
  content[at] ^= 1
  (directory / 'metrics.jsonl').unlink()
  for path in (directory / 'tensorboard').iterdir():
    path.unlink()
  events.write_bytes(content)
  found, *_ = resumed(directory, mark)
  assert found == (text(1) + text(3)).encode()


def test_events_that_were_done_again_are_not_restored(run):
  directory, mark = run
  writer = MetricsWriter(directory, 6, mark)
  writer.write('train', record(7) | {'loss': 9.0})
  mark, path = writer.mark, directory / 'metrics.jsonl'
  writer.close()
  before = path.read_bytes()
  path.unlink()
  MetricsWriter(directory, 7, mark, lambda said: None).close()
  assert path.read_bytes() == before


def test_of_several_records_of_a_kind_and_an_update_each_is_kept(run):
  directory, mark = run
  writer = MetricsWriter(directory, 6, mark)
  for now in (2, 3):
    writer.write('replicas', {'update': 7, 'replicas': now})
  writer.write('train', record(7))
  mark, path = writer.mark, directory / 'metrics.jsonl'
  writer.close()
  before = path.read_bytes()
  path.write_bytes(damage(before, 'zeroed'))
  MetricsWriter(directory, 7, mark, lambda said: None).close()
  assert path.read_bytes() == before


def test_without_a_mark_nothing_whole_is_lost(run):
  directory, mark = run
  before, path = whole(directory, mark), directory / 'metrics.jsonl'
  assert resumed(directory, None) == (before, mark, [])
  path.write_bytes(damage(before, 'zeroed'))
  found, _, (said,) = resumed(directory, None)
  assert found == before
  assert 'unreadable lines: 1' in said


def test_no_thread_writes(tmp_path):
  before = set(threading.enumerate())
  writer = MetricsWriter(tmp_path, 0, Mark())
  writer.write('train', record(1))
  assert set(threading.enumerate()) <= before
  writer.close()
