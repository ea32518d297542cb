"""Programs that a plan puts in a directory and a run takes from there."""

import importlib.util
import json
import shutil

import jax
import pytest

from adabatch.config import ConfigError, flatten
from adabatch.plan import saved
from adabatch.plan.job import plan
from adabatch.report import write_plan
from adabatch.report.summary import describe
from adabatch.train import train
from configs import digits_mlp
from tests import in_turn
from tests.experiments import digits, records
from tests.test_distributed import (
  CONSTANT,
  finish,
  launch_command,
  start_two,
  take_turns,
)
from tests.test_launch import DIGITS, launch, one_line, summary

# Sizes 16, 32 and 64, for a quarter of an epoch each.
GROWS = {
  'epochs': 0.75,
  'controller.name': 'geodamp',
  'controller.geodamp.delay_epochs': 0.25,
  'controller.max_batch_size': 64,
  'eval.every_epochs': 3.0,
}
REPLICAS = {
  'controller.initial_batch_size': 32,
  'sync.name': 'local_sgd',
  'sync.replicas': 4,
  'sync.local_steps': 3,
}
CASES = {
  'one model': {},
  'replicas': REPLICAS,
  'several updates in a call': {'updates_per_call': 5},
  'streaming': {'data.placement': 'streaming', 'data.workers': 0},
  # Two buckets, which several sizes share.
  'exact sizes': {'controller.name': 'padadamp', 'buckets.rounding': 'exact'},
}
quickly = pytest.mark.usefixtures('compile_quickly')


def two():
  return jax.devices()[:2]


def save(config, directory, workdir, devices=None):
  """What `plan.json` says of the programs."""
  config = config.copy_and_resolve_references()
  config.plan.save = str(directory)
  return plan(config, workdir, devices=devices or two())['programs']


def run(config, workdir, directory=None, devices=None, **how):
  """Its summary, and all that was logged but the time."""
  config = config.copy_and_resolve_references()
  config.compilation.programs = None if directory is None else str(directory)
  summary = train(config, workdir, devices=devices or two(), **how)
  lines = records(workdir) + records(workdir, 'eval')
  times = 'seconds', 'examples_per_second'
  return summary, [
    {k: v for k, v in line.items() if k not in times} for line in lines
  ]


@quickly
@pytest.mark.parametrize('case', CASES)
def test_a_run_takes_all_and_is_the_same_to_the_bit(case, tmp_path, capfd):
  config = digits(**GROWS | CASES[case])
  usual, expected = run(config, tmp_path / 'usual')
  found = save(config, tmp_path / 'programs', tmp_path / 'plan')
  files = list((tmp_path / 'programs').glob('*.program'))
  assert found['number'] == found['compiled'] == len(files)
  assert found['bytes'] == sum(file.stat().st_size for file in files)
  capfd.readouterr()
  taken, lines = run(config, tmp_path / 'taken', tmp_path / 'programs')
  assert lines == expected
  assert len(lines) > 20
  assert usual['compilations'] == taken['loaded_programs'] > 1
  assert usual['loaded_programs'] == taken['compilations'] == 0
  assert 'compilation.programs' not in capfd.readouterr().err


@quickly
def test_saved_again_nothing_is_compiled_but_what_is_damaged(
  tmp_path, monkeypatch, capfd
):
  config, programs = digits(**GROWS), tmp_path / 'programs'
  first = save(config, programs, tmp_path)
  assert first['compiled'] == first['number'] == 3
  before = {p.name: p.stat().st_mtime_ns for p in programs.iterdir()}
  with monkeypatch.context() as m:
    m.setattr(saved.ProgramWriter, 'write', None)
    again = save(config, programs, tmp_path)
  assert again | {'seconds': 0} == first | {'seconds': 0, 'compiled': 0}
  assert before == {p.name: p.stat().st_mtime_ns for p in programs.iterdir()}
  assert capfd.readouterr().err.count(': there\n') == 3
  damaged = next(programs.glob('*.program'))
  damaged.write_bytes(b'')
  assert save(config, programs, tmp_path)['compiled'] == 1
  assert damaged.stat().st_size > 0


@quickly
@pytest.mark.parametrize(
  ('other', 'number', 'why'),
  [
    ({'model.mlp.hidden_sizes': (31,)}, 2, 'of another network or config'),
    ({'updates_per_call': 4}, 2, 'of another network or config'),
    ({}, 1, 'for 2 x cpu, here 1 x cpu'),
  ],
)
def test_what_does_not_fit_is_compiled_and_said_once(
  other, number, why, tmp_path, capfd
):
  save(digits(**GROWS), tmp_path / 'programs', tmp_path / 'plan')
  config, devices = digits(**GROWS | other), jax.devices()[:number]
  _, expected = run(config, tmp_path / 'usual', devices=devices)
  capfd.readouterr()
  summary, lines = run(config, tmp_path / 'run', tmp_path / 'programs', devices)
  assert lines == expected
  assert summary['compilations'] == 3
  assert summary['loaded_programs'] == 0
  said = capfd.readouterr().err
  assert said.count('compilation.programs=') == 1
  assert f'those there are {why}: it is compiled here\n' in said


@quickly
def test_a_damaged_program_is_compiled(tmp_path, capfd):
  config, programs = digits(**GROWS), tmp_path / 'programs'
  save(config, programs, tmp_path / 'plan')
  for path in list(programs.glob('*.program'))[:2]:
    path.write_bytes(path.read_bytes()[:-100])
  capfd.readouterr()
  _, expected = run(config, tmp_path / 'usual')
  summary, lines = run(config, tmp_path / 'run', programs)
  assert lines == expected
  assert summary['compilations'] == 2
  assert summary['loaded_programs'] == 1
  assert capfd.readouterr().err.count('cannot be loaded (it is damaged)') == 2


@quickly
def test_a_resumed_run_may_begin_to_take_them(tmp_path):
  config = digits(**GROWS)
  _, expected = run(config, tmp_path / 'usual')
  save(config, tmp_path / 'programs', tmp_path / 'plan')
  run(config, tmp_path / 'run', last_update=30)
  config.plan.save = 'elsewhere'  # of the plan alone
  summary, lines = run(config, tmp_path / 'run', tmp_path / 'programs')
  assert lines == expected
  assert summary['compilations'] == 0 < summary['loaded_programs']


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path):
  config = digits(**{'compilation.programs': str(tmp_path / 'none')})
  with pytest.raises(ConfigError, match='has no readable index'):
    train(config, tmp_path / 'w')
  config.parallel.backend = 'pmap'
  with pytest.raises(ConfigError, match="has none of parallel.backend='pmap'"):
    train(config, tmp_path / 'w')
  config = digits(
    **{'plan.save': str(tmp_path / 'programs'), 'parallel.backend': 'pmap'}
  )
  with pytest.raises(ConfigError, match="of parallel.backend='pmap' cannot be"):
    plan(config, tmp_path / 'w')
  assert list(tmp_path.iterdir()) == []


@quickly
def test_a_program_that_is_too_large_is_said_and_left_out(
  tmp_path, monkeypatch, capfd
):
  write = saved.ProgramWriter.write

  def some(writer, lowered, what):
    if what.startswith('32 '):
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 17 GB\nof 16')
    return write(writer, lowered, what)

  monkeypatch.setattr(saved.ProgramWriter, 'write', some)
  config = digits(**GROWS | {'plan.save': str(tmp_path / 'programs')})
  found = plan(config, tmp_path, devices=two())
  assert found['programs']['too_large'] == 1
  assert found['programs']['number'] == 2
  said = capfd.readouterr().err
  assert 'is not kept: RESOURCE_EXHAUSTED: 17 GB of 16\n' in said
  assert ', 1 too large' in describe(found)
  assert ', 1 too large' in write_plan(tmp_path).read_text()


def test_the_data_may_be_known_by_their_number(tmp_path):
  config = digits(
    **{
      'data.name': 'cifar10',
      'data.eval_split': 'test',
      'data.data_dir': str(tmp_path / 'none'),
      'plan.save': str(tmp_path / 'programs'),
      'controller.name': 'constant',
    }
  )
  found = plan(config, tmp_path / 'w', devices=two())
  assert found['programs']['number'] == 1
  assert 'if its examples are as many' in describe(found)


def test_one_command_saves_and_another_loads(tmp_path):
  programs = tmp_path / 'programs'
  short = '--config.max_updates=30', '--config.controller.max_batch_size=32'
  arguments = DIGITS, *short, f'--workdir={tmp_path / "w"}'
  keep = f'--config.plan.save={programs}'
  result = launch(*arguments, '--job=plan', keep)
  assert result.returncode == 0, result.stderr
  number = len(list(programs.glob('*.program')))
  assert f'programs: {number} in {programs}, ' in result.stdout
  assert result.stderr.count(': compiling\n') == number
  take = f'--config.compilation.programs={programs}'
  # Without JAX's own cache, and with all that it would have found there.
  result = launch(*arguments, take, '--config.compilation_cache=False')
  assert result.returncode == 0, result.stderr
  assert 'programs' not in result.stderr
  found = summary(tmp_path / 'w')
  assert found['compilations'] == 0 < found['loaded_programs']
  shutil.rmtree(programs)
  result = launch(DIGITS, f'--workdir={tmp_path / "x"}', take)
  assert 'has no readable index.json' in one_line(result)


def test_two_processes_save_and_load(tmp_path):
  keys = CONSTANT | {'max_updates': 6}
  programs = tmp_path / 'programs'
  # The command is given what those in turn change in the same file.
  ours, file = map(flatten, (in_turn.config(keys), digits_mlp.get_config()))
  saving = {k: v for k, v in ours.items() if v != file[k]}
  saving['plan.save'] = programs

  def planning(address, process):
    return [
      *launch_command(address, process, tmp_path / 'plan', saving),
      '--job=plan',
    ]

  finish(start_two(planning))
  assert len(list(programs.glob('*.program'))) == 1
  take = keys | {'compilation.programs': str(programs)}
  jobs = [(str(tmp_path / 'usual'), keys), (str(tmp_path / 'taken'), take)]
  outputs = finish(take_turns(lambda process: jobs))
  assert not any('program' in err for _, err in outputs)
  usual, taken = (
    [line['loss'] for line in records(tmp_path / name)]
    for name in ('usual', 'taken')
  )
  assert usual == taken
  assert len(taken) == 6
  found = summary(tmp_path / 'taken')
  assert found['compilations'] == 0
  assert found['loaded_programs'] == 1


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='the compiler of TPUs (libtpu) is not installed',
)
@quickly
def test_programs_of_a_tpu_are_saved_and_refused_elsewhere(tmp_path, capfd):
  programs = tmp_path / 'programs'
  config = digits(
    max_updates=3,
    **{
      'plan.topology': 'v5e:2x2',
      'plan.save': str(programs),
      'controller.name': 'constant',
    },
  )
  found = plan(config, tmp_path / 'plan')['programs']
  assert found['number'] == found['compiled'] == 1
  index = json.loads((programs / 'index.json').read_text())
  ((name, entry),) = index['programs'].items()
  assert (programs / f'{name}.program').stat().st_size == entry['bytes'] > 0
  (made,) = index['made'].values()
  assert (made['kind'], made['devices']) == ('TPU v5 lite', 4)
  assert made['compiler'].startswith('libtpu ')
  assert plan(config, tmp_path / 'plan')['programs']['compiled'] == 0
  capfd.readouterr()
  summary, _ = run(config, tmp_path / 'run', programs)
  assert (summary['compilations'], summary['loaded_programs']) == (1, 0)
  said = capfd.readouterr().err
  assert said.count('compilation.programs=') == 1
  assert 'those there are for 4 x TPU v5 lite, here 2 x cpu: ' in said
