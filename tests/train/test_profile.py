"""Traces of some updates."""

import gzip
import json

import jax
import pytest

from adabatch.config import ConfigError
from adabatch.train import profile, train
from tests.experiments import digits

pytestmark = pytest.mark.usefixtures('compile_quickly')


def traced(monkeypatch, tmp_path, window, per_call, updates=20):
  """The updates done where a trace began and ended."""
  done, at = [], []
  due = profile.Profile.due

  def noting(self, update, count):
    at[:] = [update]
    return due(self, update, count)

  monkeypatch.setattr(profile.Profile, 'due', noting)
  for name in ('start_trace', 'stop_trace'):
    monkeypatch.setattr(jax.profiler, name, lambda *_, **__: done.append(*at))
  config = digits(
    max_updates=updates,
    updates_per_call=per_call,
    **{'log.profile': window, 'controller.name': 'constant'},
  )
  train(config, tmp_path, devices=jax.devices()[:1])
  return done


@pytest.mark.parametrize(
  ('window', 'per_call', 'expected'),
  [
    ('5:4', 1, [4, 8]),
    ('1:1', 1, [0, 1]),
    ('5:4', 4, [4, 8]),
    ('6:4', 4, [4, 12]),
    ('20:6', 1, [19, 19]),  # ended by the end of the run
    ('21:5', 1, []),
  ],
)
def test_the_calls_of_a_window_are_traced(
  monkeypatch, tmp_path, capsys, window, per_call, expected
):
  assert traced(monkeypatch, tmp_path, window, per_call) == expected
  said = f'log.profile={window}: no such update was done since the start'
  assert (said in capsys.readouterr().err) == (not expected)


def test_a_trace_holds_the_programs(tmp_path):
  config = digits(max_updates=12, **{'log.profile': '6:3'})
  train(config, tmp_path, devices=jax.devices()[:1])
  (path,) = tmp_path.glob('profile/**/*.trace.json.gz')
  events = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
  names = [event.get('name', '') for event in events]
  runs = [name for name in names if 'ThunkExecutor::Execute' in name]
  assert len(runs) >= 3, sorted(set(names))


@pytest.mark.parametrize('window', ['3', '0:4', '5:0', '(1, 2)', 'a:b'])
def test_what_is_no_window_is_refused(tmp_path, window):
  with pytest.raises(ConfigError, match='log.profile=.* must be START:COUNT'):
    train(digits(**{'log.profile': window}), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
