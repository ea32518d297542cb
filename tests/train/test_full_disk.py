"""What cannot be written ends a run in one line, and it goes on exactly."""

import contextlib
import io
import logging
import os
import pathlib
import resource
import threading
import time

import jax
import numpy as np
import pytest

from adabatch.config.files import (
  GrowingFile,
  WriteError,
  read_json,
  write_json,
  writing,
)
from adabatch.report import write_report
from adabatch.train import train
from adabatch.train.checkpoints import Checkpoints
from adabatch.train.metrics import Mark, MetricsWriter
from tests.experiments import digits, records
from tests.train.test_resume import same_results

pytestmark = pytest.mark.usefixtures('compile_quickly')


@contextlib.contextmanager
def no_file_above(size):
  """As on a full disk: what would make a file larger fails."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def noted(do, order):
  """The same method, which leaves its name."""

  def noting(*args):
    order.append(do.__name__)
    return do(*args)

  return noting


class Meanwhile(threading.Event):
  """A stop that is not asked for, with which something is done in a run."""

  def __init__(self, update, do):
    super().__init__()
    self._left, self._do = update, do

  def is_set(self):
    self._left -= 1
    if self._left == 0:
      self._do()
    return super().is_set()


def test_a_full_device_is_named_in_one_line():
  file = GrowingFile(pathlib.Path('/dev/full'))
  with pytest.raises(WriteError) as raised:
    file.append(b'a line')
  file.close()
  assert str(raised.value) == (
    'cannot write /dev/full (No space left on device): mend that and start '
    'the same command again'
  )


def test_as_much_is_written_as_there_is_room_for(tmp_path):
  """And what was there before stays when a whole file cannot be written."""
  path, other = tmp_path / 'lines', tmp_path / 'whole.json'
  write_json(other, 1)
  file = GrowingFile(path)
  with no_file_above(10):
    file.append(b'12345678')
    with pytest.raises(WriteError, match=r'lines \(File too large\)'):
      file.append(b'12345678')
    with pytest.raises(WriteError, match=r'/whole.json \(File too large\)'):
      write_json(other, 'more than there is room for')
  file.close()
  assert path.read_bytes() == b'1234567812'
  assert read_json(other) == 1
  assert sorted(os.listdir(tmp_path)) == ['lines', 'whole.json']


def test_a_file_is_on_the_disk_before_and_after_it_is_renamed(
  tmp_path, monkeypatch
):
  done, path = [], tmp_path / 'a.json'

  def fsync(number):
    done.append(pathlib.Path(os.readlink(f'/proc/self/fd/{number}')).name)

  monkeypatch.setattr(os, 'fsync', fsync)
  monkeypatch.setattr(os, 'replace', lambda *_: done.append('replace'))
  write_json(path, 1)
  assert done == [f'.a.json.{os.getpid()}', 'replace', tmp_path.name]


def test_what_is_no_error_of_the_system_is_raised_as_it_is():
  with pytest.raises(KeyError), writing('/a/file'):
    raise KeyError


def test_a_run_on_a_disk_that_fills_goes_on_exactly(tmp_path, monkeypatch):
  """It ends at once, in the middle of a line; nothing hangs or is lost."""
  config = digits(
    max_updates=20,
    **{'controller.max_batch_size': 16, 'checkpoint.every_updates': 5},
  )
  devices, whole, full = (
    jax.devices()[:1],
    tmp_path / 'whole',
    tmp_path / 'full',
  )
  order = []
  with monkeypatch.context() as m:
    for of, name in ((MetricsWriter, 'sync'), (Checkpoints, 'save')):
      m.setattr(of, name, noted(getattr(of, name), order))
    train(config, whole, devices=devices)
  assert order == ['sync', 'save'] * 4  # so that none is ahead of its lines
  kept = Checkpoints(whole / 'checkpoints', None).read(20, None).host
  lines = (whole / 'metrics.jsonl').read_bytes()
  assert Mark(**kept['metrics']) == Mark().after(lines)
  with contextlib.ExitStack() as stack:

    def fill():
      deadline = time.monotonic() + 20
      while not (full / 'checkpoints' / '10').exists():
        assert time.monotonic() < deadline, 'the checkpoint is not written'
        time.sleep(0.01)
      room = (full / 'metrics.jsonl').stat().st_size + 100
      stack.enter_context(no_file_above(room))

    before = time.monotonic()
    with pytest.raises(WriteError, match='File too large') as raised:
      train(config, full, devices=devices, stop=Meanwhile(13, fill))
  assert '\n' not in str(raised.value)
  assert time.monotonic() - before < 60
  assert Checkpoints(full / 'checkpoints', None).updates() == [5, 10]
  assert not (full / 'summary.json').exists()
  train(config, full, devices=devices)
  same_results(whole, full)
  # A finished run too is looked at, and says so.
  (whole / 'metrics.jsonl').write_bytes(lines[:-1])
  with contextlib.redirect_stderr(io.StringIO()) as said:
    train(config, whole, devices=devices)
    assert 'metrics.jsonl is damaged: changed; all is' in said.getvalue()
    assert (whole / 'metrics.jsonl').read_bytes() == lines
    # And needs no room for it, nor a disk that can be written to.
    with no_file_above(0):
      train(config, whole, devices=devices)
  assert said.getvalue().count('is complete: nothing to do') == 2


def test_a_directory_that_is_moved_away_ends_the_run(tmp_path):
  here, there = tmp_path / 'here', tmp_path / 'there'
  config = digits(max_updates=15, **{'checkpoint.every_updates': 10})
  stop = Meanwhile(5, lambda: here.rename(there))
  with pytest.raises(WriteError, match='was moved or deleted') as raised:
    train(config, here, devices=jax.devices()[:1], stop=stop)
  assert str(raised.value).startswith(f'cannot write {here} (')
  assert not here.exists()
  assert len(records(there)) == 10
  assert not (there / 'checkpoints').exists()


def look_until_it_is_known(checkpoints):
  for _ in range(2000):
    checkpoints.check()
    time.sleep(0.01)


def test_a_failed_checkpoint_is_told_before_the_next(tmp_path, caplog, capfd):
  """By a look after each record; without the pages that Orbax logs."""
  state = {'w': np.random.default_rng(0).random((100, 100))}
  checkpoints = Checkpoints(tmp_path / 'it', 3)
  with contextlib.closing(checkpoints), caplog.at_level(logging.ERROR):
    checkpoints.save(1, state, {})
    checkpoints.wait()
    with no_file_above(20_000):
      checkpoints.save(2, state, {})
      with pytest.raises(WriteError) as raised:
        look_until_it_is_known(checkpoints)
  assert str(raised.value).startswith(
    f'cannot write {tmp_path / "it"} (File too large)'
  )
  assert (caplog.text, capfd.readouterr().err) == ('', '')
  assert Checkpoints(tmp_path / 'it', None).updates() == [1]


def test_a_run_looks_for_failed_checkpoints(tmp_path, monkeypatch):
  def fail(self):
    raise WriteError(28, os.strerror(28), str(self))

  monkeypatch.setattr(Checkpoints, 'check', fail)
  with pytest.raises(WriteError, match='No space left'):
    train(digits(max_updates=3), tmp_path, devices=jax.devices()[:1])
  assert records(tmp_path) == []


def test_a_report_that_is_there_needs_no_disk(tmp_path):
  line = '{"kind": "train", "update": %d, "examples": 8, "loss": 1.5}\n'
  (tmp_path / 'metrics.jsonl').write_text(line % 1 + line % 2)
  page = write_report(tmp_path)
  with no_file_above(0):
    assert write_report(tmp_path) == page
    page.write_text('')
    with pytest.raises(WriteError, match=r'report\.html'):
      write_report(tmp_path)
