"""Services of others that show a run's numbers, without a network."""

import contextlib
import json
import os
import pathlib
import sqlite3
import struct
import subprocess
import sys

import pytest

from adabatch.config import ConfigError
from adabatch.config.extras import NotInstalled
from adabatch.train import trackers, train
from tests import commands
from tests.experiments import digits

ROOT = pathlib.Path(__file__).parents[2]
BLOCK = 2**15
BOTH = "('jsonl', 'wandb', 'mlflow')"


def run(workdir, *more):
  """Some updates of digits; in a process of its own, which theirs end with."""
  arguments = ['train', 'digits_mlp', '--workdir', str(workdir), *more]
  return subprocess.run(
    [sys.executable, '-m', 'adabatch', *arguments],
    cwd=workdir.parent,
    env=os.environ
    | {
      'PYTHONPATH': str(ROOT),
      'WANDB_MODE': 'offline',
      'WANDB_SILENT': 'true',
      'XLA_FLAGS': commands.QUICKLY,
    },
    capture_output=True,
    text=True,
    timeout=300,
  )


def history(path):
  """The rows of a file of theirs, which is a log in LevelDB's format."""
  from wandb.proto import wandb_internal_pb2

  content, at, record = path.read_bytes(), 7, b''
  while at + 7 <= len(content):
    left = BLOCK - at % BLOCK
    if left < 7:  # padding, up to the next block
      at += left
      continue
    size, kind = struct.unpack_from('<HB', content, at + 4)
    record += content[at + 7 : at + 7 + size]
    at += 7 + size
    if kind in (1, 4):  # whole, or its last part
      found = wandb_internal_pb2.Record.FromString(record)
      if found.HasField('history'):
        yield {
          item.key or item.nested_key[0]: json.loads(item.value_json)
          for item in found.history.item
        }
      record = b''


def lines(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_each_is_given_the_numbers_of_every_record(tmp_path):
  pytest.importorskip('wandb', reason='wandb is not installed')
  pytest.importorskip('mlflow', reason='mlflow is not installed')
  workdir = tmp_path / 'run'
  keys = [
    '--set',
    f'log.writers={BOTH}',
    '--set',
    'checkpoint.every_updates=20',
  ]
  done = run(workdir, *keys, '--set', 'max_updates=60')
  assert done.returncode == 0, done.stderr
  assert not (workdir / 'tensorboard').exists()
  records = lines(workdir)
  names = json.loads((workdir / 'trackers.json').read_text())
  # Read without the library, which warns of itself.
  with contextlib.closing(sqlite3.connect(workdir / 'mlflow.db')) as there:
    run_id = (names['mlflow'],)
    ((status,),) = there.execute(
      'select status from runs where run_uuid = ?', run_id
    )
    params = dict(
      there.execute('select key, value from params where run_uuid = ?', run_id)
    )
    losses = there.execute(
      'select step, value from metrics where run_uuid = ?'
      " and key = 'train/loss' order by step",
      run_id,
    ).fetchall()
  assert status == 'FINISHED'
  assert params['controller.name'] == 'adadamp'
  assert losses == [
    (r['update'], r['loss']) for r in records if r['kind'] == 'train'
  ]
  (path,) = workdir.glob('wandb/offline-run-*/*.wandb')
  assert path.stem == f'run-{names["wandb"]}'
  rows = list(history(path))
  assert [row['update'] for row in rows] == [r['update'] for r in records]
  last = [r for r in records if r['kind'] == 'eval'][-1]
  assert rows[-1]['eval/validation/loss'] == last['loss']


@pytest.mark.parametrize(
  ('writers', 'words'),
  [
    (('jsonl', 'wandbb'), 'unknown log.writers'),
    (('tensorboard',), 'lacks jsonl'),
  ],
)
def test_what_is_no_writer_is_refused(tmp_path, writers, words):
  with pytest.raises(ConfigError, match=words):
    train(digits(**{'log.writers': writers}), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(trackers.importlib.util, 'find_spec', lambda name: None)
  config = digits(**{'log.writers': ('jsonl', 'wandb')})
  with pytest.raises(NotInstalled, match=r"pip install 'adabatch\[wandb\]'"):
    train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_one_that_fails_ends_no_run(tmp_path, monkeypatch, capfd):
  """It is said once, the others go on, and neither is closed with an error."""
  written, closed = [], []

  def broken(config, workdir):
    del config, workdir

    def write(update, numbers):
      written.append(('wandb', update))
      raise RuntimeError('the server\nis gone')

    def close(ended):
      closed.append(('wandb', ended))
      raise OSError('gone as well')

    return trackers.Tracker(write, close)

  def whole(config, workdir):
    del config, workdir

    def close(ended):
      closed.append(('mlflow', ended))
      raise OSError('the disk is full')

    return trackers.Tracker(
      lambda update, numbers: written.append(('mlflow', update)), close
    )

  monkeypatch.setitem(trackers.TRACKERS, 'wandb', broken)
  monkeypatch.setitem(trackers.TRACKERS, 'mlflow', whole)
  monkeypatch.setattr(trackers.importlib.util, 'find_spec', lambda name: True)
  config = digits(max_updates=60)
  config.log.writers = ('jsonl', 'wandb', 'mlflow')
  assert train(config, tmp_path / 'run')['status'] == 'completed'
  assert [update for name, update in written if name == 'mlflow'] == [
    record['update'] for record in lines(tmp_path / 'run')
  ]
  assert len([1 for name, _ in written if name == 'wandb']) == 1
  assert closed == [('wandb', False), ('mlflow', True)]
  for text in (capfd.readouterr().err, (tmp_path / 'run/log.txt').read_text()):
    first, last = (x for x in text.splitlines() if 'log.writers' in x)
    assert 'wandb failed (RuntimeError: the server is gone)' in first
    assert 'the run goes on' in first
    assert 'mlflow failed (OSError: the disk is full)' in last
