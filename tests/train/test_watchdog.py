"""A run that stands still is noticed, and what it waits for is said."""

import os
import threading

import pytest

from adabatch.devices.processes import RETRY
from adabatch.train import watchdog
from adabatch.train.watchdog import Watchdog


def stand_still(path, doing, seconds=0.4, watched=0.1, **how):
  """The lines of a watchdog over a thread that does nothing."""
  said = []
  looking = Watchdog(path, watched, said.append, **how)
  looking(doing, 'update 7')
  threading.Event().wait(seconds)
  looking.close()
  return said


def test_the_stacks_of_a_run_that_stands_still(tmp_path):
  line, where = stand_still(tmp_path / 'log.txt', 'training')  # once
  assert 'while training, after update 7' in line
  assert str(tmp_path / 'log.txt') in where
  text = (tmp_path / 'log.txt').read_text()
  assert 'while training, after update 7' in text
  assert 'in stand_still' in text, 'the stack of the main thread'
  assert '_look' in text, 'that of the others'


def test_it_says_so_again_of_another_standstill(tmp_path):
  said = []
  looking = Watchdog(tmp_path / 'log.txt', 0.1, said.append)
  for update in (1, 2):
    looking('training', f'update {update}')
    threading.Event().wait(0.3)
  looking.close()
  lines = [line for line in said if 'log.txt' not in line]
  assert len(lines) == 2
  assert all(f'after update {i};' in line for i, line in enumerate(lines, 1))


@pytest.mark.parametrize('doing', sorted(watchdog.PATIENCE))
def test_what_takes_longer_may(doing, tmp_path):
  assert stand_still(tmp_path / 'log.txt', doing, 0.25) == []
  assert not (tmp_path / 'log.txt').exists()
  line, _ = stand_still(tmp_path / 'log.txt', doing, 0.6)
  assert f'while {doing}' in line


def test_nobody_looks_without_a_limit(tmp_path):
  threads = threading.active_count()
  Watchdog(tmp_path / 'log.txt', 0, pytest.fail)
  assert threading.active_count() == threads


def test_a_file_that_cannot_be_written_is_said(tmp_path):
  _, line = stand_still(tmp_path / 'none' / 'log.txt', 'training')
  assert 'cannot be written' in line


def test_it_ends_the_process_also_where_the_disk_hangs(tmp_path, monkeypatch):
  """To open the file waits here for a reader, as a lost server's disk would."""
  ended, again = threading.Event(), threading.Event()
  monkeypatch.setattr(
    os, '_exit', lambda status: (again if ended.is_set() else ended).set()
  )
  monkeypatch.setattr(watchdog, 'WRITING', 0.3)
  os.mkfifo(tmp_path / 'log.txt')
  (line,) = stand_still(tmp_path / 'log.txt', 'training', abort=True)
  assert 'while training' in line
  assert ended.wait(10)
  with (tmp_path / 'log.txt').open():  # lets the thread go, to its own end
    assert again.wait(10)


def test_it_ends_the_process_where_asked_to(tmp_path, monkeypatch):
  ended = []
  monkeypatch.setattr(os, '_exit', ended.append)
  stand_still(tmp_path / 'log.txt', 'training', abort=True)
  assert ended == [RETRY]
