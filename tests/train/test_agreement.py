"""What processes compare, and when they start again to let one in."""

import threading

import jax
import pytest

from adabatch.config import ConfigError
from adabatch.train import agreement, elastic
from adabatch.train.build import check
from adabatch.train.calls import Progress
from tests.experiments import digits


@pytest.fixture
def compared(monkeypatch):
  """What was given to `agree`."""
  found = []
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(
    agreement, 'agree', lambda what, values: found.append(values)
  )
  return found


def host(seconds, **others):
  """Of a run whose target is reached, on a process with such a clock."""
  reached = {'updates': 4, 'examples': 64, 'seconds': seconds}
  at = Progress(100, update=4, seconds=2 * seconds, reached=reached, **others)
  return {'progress': at.host(), 'replicas': {'replicas': 2}}


def test_clocks_are_not_compared(compared):
  for seconds in (1.0, 1.5):
    agreement.same_run(4, host(seconds))
  agreement.same_run(4, host(1.0, rollbacks=1))
  first, second, other = compared
  assert first == second
  assert [k for k in first if first[k] != other[k]] == ['progress.rollbacks']


@pytest.mark.parametrize('stopping', [False, True])
def test_a_newcomer_is_let_in_unless_the_run_is_to_stop(
  stopping, tmp_path, monkeypatch
):
  done, stop = [], threading.Event()
  monkeypatch.setattr(elastic, 'start_again', done.append)
  elastic.let_in(tmp_path, lambda: done.append('waited'), stop)
  assert done == []
  (tmp_path / '.joining.1').touch()
  if stopping:
    stop.set()
  elastic.let_in(tmp_path, lambda: done.append('waited'), stop)
  again = [] if stopping else ['a process waits to join']
  assert done == ['waited', *again]


def elastic_config(**overrides):
  return digits(
    **{
      'sync.name': 'diloco',
      'sync.min_replicas': 1,
      'sync.replicas': 4,
      'processes.restarts': 1,
      'controller.name': 'adadamp',
    }
    | overrides
  )


@pytest.mark.parametrize('left', [1, 2, 3])
def test_any_number_that_is_left_can_go_on(left, monkeypatch):
  """Also where it does not divide the batch sizes: shares are rounded up."""
  config = elastic_config()
  monkeypatch.setattr(jax, 'process_count', lambda: left)
  config = elastic.with_those_left(config, 4)
  assert config.sync.replicas == left
  check(config, left)


@pytest.mark.parametrize(
  ('processes', 'replicas', 'message'),
  [(None, 4, 'give --coordinator'), (3, 4, 'and 3 pro'), (2, 0, 'replicas=0')],
)
def test_who_is_to_come_must_be_known(processes, replicas, message, tmp_path):
  config = elastic_config(**{'sync.replicas': replicas})
  with pytest.raises(ConfigError, match=message):
    elastic.patience(config, tmp_path, processes, 0, distributed=True)
