"""What the command says: flags, exit statuses, the summary at the end."""

import os
import pkgutil
import runpy
import signal
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from adabatch.command import jobs
from adabatch.config import ConfigError, command_line
from adabatch.config.extras import NotInstalled, needing
from adabatch.data import DatasetError
from adabatch.report.summary import describe
from adabatch.train.checkpoints import CheckpointError
from tests import commands

REFUSED = ConfigError, DatasetError, CheckpointError
SUMMARY = {
  'status': 'diverged',
  'updates': 1234,
  'examples': 56789,
  'epochs': 2.54,
  'seconds': 1.25,
  'final': {'validation': {'loss': 0.25, 'accuracy': 0.98765}},
  'message': 'the loss or gradient of update 9 is not finite',
}


def test_a_run_in_three_lines():
  assert describe(SUMMARY).splitlines() == [
    'diverged: 1,234 updates, 56,789 examples, 2.5 epochs, 1.2 s of training',
    'the loss or gradient of update 9 is not finite',
    'validation: loss 0.2500, accuracy 0.9877',
  ]


def test_a_search_says_of_what_its_best_value_is():
  summary = {
    'job': 'search',
    'status': 'completed',
    'seconds': 3.4,
    'metric': 'val/classification_error',
    'trials': {'complete': 6, 'infeasible': 1, 'unmeasured': 3},
    'best': {'trial': 4, 'steps': 9, 'value': 0.05291, 'parameters': {}},
  }
  assert describe(summary).splitlines() == [
    'completed: 6 trials (3 ended before their first evaluation) and 1 that '
    'diverged, 3 s',
    'best: trial 4, val/classification_error 0.0529, goal after 9',
  ]


def test_a_study_that_saw_perfect_scaling_alone():
  fit = {'min_steps': 0.0, 'critical_batch_size': None}
  workload = {'optimizer': 'sgd', 'rows': [], 'fit': fit, 'lack_of_fit': None}
  summary = {
    'job': 'study',
    'status': 'completed',
    'seconds': 3.4,
    'trials': {'complete': 6, 'infeasible': 0, 'unmeasured': 0},
    'workloads': [workload],
  }
  assert describe(summary).splitlines()[1:] == [
    'sgd: least updates 0, critical batch size not bounded'
  ]


@pytest.mark.parametrize(
  ('status', 'number', 'code'),
  [
    ('completed', None, 0),
    ('target_reached', None, 0),
    ('diverged', None, 3),
    ('preempted', signal.SIGTERM, 143),
    ('preempted', signal.SIGINT, 130),
    ('preempted', None, 143),  # another process was asked
    ('completed', signal.SIGINT, 0),  # it came too late
  ],
)
def test_exit_status(status, number, code):
  assert command_line.exit_code(status, number) == code


@pytest.mark.parametrize(
  ('error', 'code', 'line'),
  [
    (ConfigError('no such rule'), 1, 'error: no such rule\n'),
    (DatasetError('no such set'), 1, 'error: no such set\n'),
    (CheckpointError('all broken'), 1, 'error: all broken\n'),
    (KeyboardInterrupt(), 130, 'error: interrupted before a checkpoint'),
  ],
)
def test_what_cannot_be_done_ends_in_one_line(error, code, line, capsys):
  with pytest.raises(SystemExit) as ended, command_line.refusing(*REFUSED):
    raise error
  assert ended.value.code == code
  assert capsys.readouterr().err.startswith(line)


def test_other_errors_are_seen_in_full():
  with pytest.raises(ZeroDivisionError), command_line.refusing(*REFUSED):
    raise ZeroDivisionError


@pytest.mark.parametrize('package', ['absl', 'ml_collections'])
def test_a_missing_package_is_one_line(package, monkeypatch):
  """As after an installation of what floor 0 needs alone."""
  for module in [m for m in sys.modules if m.startswith('adabatch.command')]:
    monkeypatch.delitem(sys.modules, module)
  monkeypatch.setitem(sys.modules, package, None)  # cannot be imported
  monkeypatch.setattr(signal, 'signal', lambda *_: None)  # that of the tests
  with pytest.raises(SystemExit) as ended:
    runpy.run_path('launch.py', run_name='__main__')
  assert str(ended.value).startswith(f'error: {package} is not installed')
  assert 'adabatch[train]' in str(ended.value)
  assert '\n' not in str(ended.value)


def test_a_missing_module_of_its_own_is_no_missing_package(monkeypatch):
  monkeypatch.setitem(sys.modules, 'adabatch.search.job', None)
  with pytest.raises(ModuleNotFoundError), needing():
    pkgutil.resolve_name(jobs.JOBS['search'])


def test_a_package_of_an_extra_is_named_with_it(monkeypatch):
  monkeypatch.setitem(sys.modules, 'optuna', None)
  monkeypatch.delitem(sys.modules, 'adabatch.search.job', raising=False)
  monkeypatch.delitem(sys.modules, 'adabatch.search.storage', raising=False)
  how = r"pip install 'adabatch\[search\]'"
  with pytest.raises(NotInstalled, match=how), needing():
    pkgutil.resolve_name(jobs.JOBS['search'])


@pytest.mark.parametrize('error', [KeyError('mine'), AttributeError('wdth')])
def test_a_key_that_the_config_file_does_not_have(error, monkeypatch, capsys):
  """Of a network that is not of this package, so that only the file knows."""

  def flags(argv):
    raise error

  monkeypatch.setattr(command_line.flags, 'FLAGS', flags)
  with pytest.raises(SystemExit) as ended:
    command_line.parse(['launch.py', '--config.model.mine.wdth=3'])
  assert ended.value.code == 2
  assert "no 'model.mine.wdth'" in capsys.readouterr().err
  with pytest.raises(type(error)):  # a fault of the config's own code
    command_line.parse(['launch.py', '--config=mine.py'])


# of ml_collections' loader
@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
def test_of_a_key_that_comes_again_the_last_value_counts(capsys, monkeypatch):
  given = [
    '--config.study.batch_sizes=(8,)',
    '--config.target.value=None',
    '--config.study.batch_sizes=(16, 32)',
    '--config.target.value=0.5',
  ]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', None, flag_values=values)
  flags.DEFINE_string('job', 'study', '', flag_values=values)
  monkeypatch.setattr(flags, 'FLAGS', values)
  file = f'--config={commands.ROOT}/configs/study_digits_mlp.py'
  monkeypatch.setattr(sys, 'argv', ['launch.py', file, *given])
  command_line.parse(sys.argv)
  assert values.config.study.batch_sizes == (16, 32)
  assert values.config.target.value == 0.5
  with pytest.raises(SystemExit):
    command_line.parse(['launch.py', '--config.seed', '1', '--config.seed=2'])
  assert 'seed is given twice' in capsys.readouterr().err


def test_an_argument_without_a_value(capsys):
  with pytest.raises(SystemExit) as ended:
    command_line.parse(['launch.py', '--config.optimizer.args.b1', '0.9'])
  assert ended.value.code == 2
  err = capsys.readouterr().err
  assert 'write --config.optimizer.args.b1=VALUE' in err


def test_wrong_flags_of_processes_are_wrong_flags():
  result = commands.run(['launch.py', '--num_processes=2'], os.environ)
  assert result.returncode == 2
  assert result.stderr.startswith('error: cannot join the other processes: ')
