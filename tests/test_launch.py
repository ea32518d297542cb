"""The command, as a user types it."""

import fcntl
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tests import commands
from tests.tfds_sets import PREPARED, needs

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = '--config=configs/digits_mlp.py'


def launch_anew(cache, *arguments):
  """The command in all its length, with a user's cache of its own."""
  environment = os.environ | {'XLA_FLAGS': '', 'XDG_CACHE_HOME': str(cache)}
  del environment['JAX_COMPILATION_CACHE_DIR']
  return subprocess.run(
    [sys.executable, 'launch.py', *arguments],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )


def launch(*arguments):
  """The same without its imports, and compiled quickly."""
  environment = os.environ | {'XLA_FLAGS': commands.QUICKLY}
  return commands.run(['launch.py', *arguments], environment)


def said(result):
  """Its lines on standard error, but for what comes before the first update."""
  stage = re.compile(r' *[\d.]+ s  (reading|compiling|training)\b')
  lines = result.stderr.splitlines()
  return [line for line in lines if line.strip() and not stage.match(line)]


def one_line(result, status=1):
  """A refused command: its exit status and one line, no traceback."""
  assert result.returncode == status
  lines = said(result)
  assert len(lines) == 1, result.stderr
  assert lines[0].startswith('error: ')
  return lines[0]


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
  """The main job, as the README runs it, beside a cache of programs."""
  workdir = tmp_path_factory.mktemp('runs') / 'digits'
  cache = workdir.with_name('cache')
  result = launch_anew(cache, DIGITS, f'--workdir={workdir}')
  assert result.returncode == 0, result.stderr
  return workdir, result


def summary(workdir):
  return json.loads((workdir / 'summary.json').read_text())


def records(workdir, kind='train'):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [r for r in map(json.loads, lines) if r['kind'] == kind]


def test_main_job_reaches_its_figures(digits):
  workdir, _ = digits
  result = summary(workdir)
  assert result['status'] == 'completed'
  assert result['final']['validation']['accuracy'] >= 0.95
  sizes = [record['batch_size'] for record in records(workdir)]
  assert sizes[-2] >= 8 * sizes[0]  # the end of the run cuts the last
  assert result['compilations'] <= result['buckets_visited'] + 2


def test_main_job_leaves_its_files(digits):
  workdir, result = digits
  names = {path.name for path in workdir.iterdir()}
  assert names == {
    'config.json',
    'inputs.json',
    'metrics.jsonl',
    'tensorboard',
    'checkpoints',
    'best',  # the last evaluation was not
    'summary.json',
    'log.txt',
    'report.html',
  }
  assert set(summary(workdir)) >= {
    'status',
    'updates',
    'examples',
    'epochs',
    'seconds',
    'device_seconds',
    'compilations',
    'compile_seconds',
    'stall_seconds',
    'final',
    'best',
    'target',
    'loss_evaluation_examples',
    'losses_below_minimum',
  }
  assert set(records(workdir)[0]) == {
    'kind',
    'update',
    'examples',
    'epoch',
    'seconds',
    'loss',
    'batch_size',
    'nominal_batch_size',
    'damping',
    'learning_rate',
    'examples_per_second',
  }
  assert set(records(workdir, 'eval')[0]) == {
    'kind',
    'update',
    'examples',
    'epoch',
    'seconds',
    'split',
    'loss',
    'accuracy',
  }
  assert 'report.html' in result.stdout
  assert 'arning' not in result.stderr, 'nothing that is imported warns'
  assert '\r' not in result.stderr, 'a bar must not be piped'


def test_constant_needs_more_updates_for_the_same_accuracy(digits, tmp_path):
  workdir, _ = digits
  constant = tmp_path / 'constant'
  result = launch(
    DIGITS, '--config.controller.name=constant', f'--workdir={constant}'
  )
  assert result.returncode == 0, result.stderr
  a, b = summary(workdir), summary(constant)
  assert b['updates'] >= 2 * a['updates']
  assert a['final']['validation']['accuracy'] == pytest.approx(
    b['final']['validation']['accuracy'], abs=0.015
  )
  assert b['compilations'] == 1


@pytest.mark.parametrize('source', ['full', 'subset', 'ema'])
def test_loss_sources(source, tmp_path):
  result = launch(
    DIGITS,
    f'--config.controller.adadamp.loss_source={source}',
    '--config.max_updates=60',
    '--config.controller.subset_size=100',
    f'--workdir={tmp_path}',
  )
  assert result.returncode == 0, result.stderr
  # Measured before the first update and at updates 20, 40 and 60.
  cost = {'full': 4 * 1438, 'subset': 4 * 100, 'ema': 0}
  assert summary(tmp_path)['loss_evaluation_examples'] == cost[source]
  sizes = [record['nominal_batch_size'] for record in records(tmp_path)]
  assert sizes[-1] > 2 * sizes[0]


def test_target_stops_the_run(tmp_path):
  result = launch(DIGITS, '--config.target.value=0.96', f'--workdir={tmp_path}')
  assert result.returncode == 0, result.stderr
  target = summary(tmp_path)['target']
  assert summary(tmp_path)['status'] == 'target_reached'
  assert target['reached']
  assert target['updates'] == summary(tmp_path)['updates']
  last = records(tmp_path, 'eval')[-1]
  assert last['accuracy'] > 0.96 >= records(tmp_path, 'eval')[-2]['accuracy']


@needs('fashion_mnist', 'cifar10')
@pytest.mark.parametrize(
  ('name', 'accuracy'), [('fashion_mnist', 0.7), ('cifar10', 0.3)]
)
def test_tfds_sets_train_unchanged(name, accuracy, tmp_path):
  result = launch(
    '--config=configs/fashion_mnist_cnn.py',
    f'--config.data.data_dir={PREPARED}',
    f'--config.data.name={name}',
    '--config.data.train_split=train[:6000]',
    '--config.epochs=1',
    f'--workdir={tmp_path}',
  )
  assert result.returncode == 0, result.stderr
  assert summary(tmp_path)['final']['test']['accuracy'] > accuracy


BAD = {
  'unknown key': (
    ['--config.learning_rate.bsae=1'],
    ["'learning_rate.bsae'", "'learning_rate.base'"],
  ),
  'unknown section': (['--config.lerning_rate.base=1'], ['learning_rate.base']),
  'wrong type': (['--config.epochs=many'], ['--config.epochs', 'many']),
  'unknown flag': (['--wrokdir=x'], ['workdir']),
  'no such config': (['--config=configs/none.py'], ['configs/none.py']),
  'no variants': ([f'{DIGITS}:x'], ['configs/digits_mlp.py', "':x'"]),
  'argument': (['epochs=3'], ["'epochs=3'"]),
  'B0 above B_max': (
    ['--config.controller.initial_batch_size=1024'],
    ['controller.initial_batch_size=1024', 'controller.max_batch_size=512'],
  ),
  'B0 below 1': (
    ['--config.controller.initial_batch_size=0'],
    ['controller.initial_batch_size', 'at least 1', '0'],
  ),
  'B_max below 1': (
    ['--config.controller.max_batch_size=-5'],
    ['controller.max_batch_size', '-5'],
  ),
  'controller': (
    ['--config.controller.name=adadmp'],
    ["'adadmp'", 'adadamp', 'noise_scale', 'step_table'],
  ),
  'model': (['--config.model.name=cnn'], ["'cnn'", 'mlp', 'strided_cnn']),
  'optimizer': (['--config.optimizer.name=sdg'], ["'sdg'", 'nesterov', 'lamb']),
  'backend': (['--config.parallel.backend=x'], ['shard_map', 'pmap']),
  'rounding': (['--config.buckets.rounding=x'], ['exact', 'nearest']),
  'decay': (['--config.learning_rate.decay.name=x'], ['cosine', 'piecewise']),
  'warmup': (['--config.learning_rate.warmup.kind=x'], ['gradual']),
  'scaling': (['--config.learning_rate.scaling=x'], ['adascale', 'linear']),
  'loss source': (
    ['--config.controller.adadamp.loss_source=x'],
    ['full', 'subset', 'ema'],
  ),
  'target metric': (
    ['--config.target.metric=acuracy', '--config.target.value=0.5'],
    ['accuracy'],
  ),
  'data set': (
    ['--config.data.name=mnist', '--config.data.data_dir=/nowhere'],
    ['mnist', '/nowhere', 'build'],
  ),
  'split': (['--config.data.train_split=trian'], ['trian', 'train']),
  'image too small': (
    ['--config.model.name=pooled_cnn'],
    ['28x28', '8x8', 'strided_cnn'],
  ),
  'F*': (
    ['--config.controller.adadamp.minimum_loss=50'],
    ['controller.adadamp.minimum_loss=50'],
  ),
  'no epochs': (['--config.epochs=0'], ['epochs', 'above 0']),
  'less than an example': (['--config.epochs=1e-9'], ['epochs', '1e-09']),
  'not a number': (
    ['--config.learning_rate.base=nan'],
    ['base', 'a finite number'],
  ),
  'momentum': (['--config.optimizer.momentum=1.5'], ['[0, 1)', '1.5']),
  'seed': (['--config.seed=-1'], ['seed', '[0, 2^64)', '-1']),
  'no units': (
    ['--config.model.mlp.hidden_sizes=(0,)'],
    ['model.mlp'],
  ),
  'padding': (['--config.data.crop_padding=8'], ['crop_padding=8', '8x8']),
  'decay unit': (
    ['--config.learning_rate.decay.unit=steps'],
    ['learning_rate.decay', 'steps', 'updates'],
  ),
  'min above initial': (
    ['--config.controller.min_batch_size=64'],
    ['min_batch_size=64', 'initial_batch_size=16'],
  ),
  'wrapper': (['--config.controller.smooth=1.0'], ['controller.smooth']),
  'schedule without decay': (
    ['--config.controller.name=from_lr_schedule'],
    ['learning_rate.decay.name'],
  ),
  'of another job': (
    ['--config.probe.at=all'],
    ['probe.at has no effect on --job=train', '--job=probe reads it'],
  ),
  'of other jobs': (
    ['--job=probe', '--config.search.trials=3'],
    ['search.trials', '--job=search and --job=study'],
  ),
  'none of another job': (
    ['--config.probe.examples=None'],
    ['probe.examples has no effect on --job=train'],
  ),
  'coordinator alone': (
    ['--coordinator_address=localhost:1'],
    ['--distributed'],
  ),
}


# Where already the flags are wrong, and not what they ask for.
USAGE = {
  'unknown key',
  'unknown section',
  'wrong type',
  'unknown flag',
  'no such config',
  'no variants',
  'argument',
  'of another job',
  'of other jobs',
  'none of another job',
  'coordinator alone',
}


@pytest.mark.parametrize('case', sorted(BAD))
def test_bad_input_gets_one_line(case, tmp_path):
  arguments, words = BAD[case]
  workdir = tmp_path / 'run'
  anew = case in ('no such config', 'no variants')
  flags = arguments if anew else [DIGITS, *arguments]
  result = launch(*flags, f'--workdir={workdir}')
  line = one_line(result, status=2 if case in USAGE else 1)
  for word in words:
    assert word in line
  assert not workdir.exists(), 'nothing may be written'


def test_unwritable_workdir(tmp_path):
  (tmp_path / 'file').write_text('')
  line = one_line(launch(DIGITS, f'--workdir={tmp_path}/file/run'))
  assert f'{tmp_path}/file/run' in line


def test_a_full_disk(tmp_path):
  (tmp_path / 'metrics.jsonl').symlink_to('/dev/full')
  result = launch(DIGITS, '--config.max_updates=2', f'--workdir={tmp_path}')
  assert 'metrics.jsonl (No space left on device)' in one_line(result)


def test_workdir_of_another_config(digits):
  workdir, _ = digits
  before = (workdir / 'metrics.jsonl').read_bytes()
  line = one_line(
    launch(
      DIGITS,
      f'--workdir={workdir}',
      '--config.seed=7',
      '--config.optimizer.momentum=0.5',
    )
  )
  assert 'seed' in line
  assert 'optimizer.momentum' in line
  assert (workdir / 'metrics.jsonl').read_bytes() == before


def test_f_star_too_high_for_the_moving_average(tmp_path):
  """With `ema`, F(x_0) is known only after the first update."""
  flags = [
    DIGITS,
    f'--workdir={tmp_path}/run',
    '--config.controller.adadamp.loss_source=ema',
  ]
  line = one_line(launch(*flags, '--config.controller.adadamp.minimum_loss=50'))
  assert 'minimum_loss' in line
  # The corrected command may use the same directory.
  result = launch(*flags, '--config.max_updates=5')
  assert result.returncode == 0, result.stderr


def test_divergence(tmp_path):
  result = launch(
    DIGITS,
    f'--workdir={tmp_path}',
    '--config.learning_rate.base=1e4',
    '--config.controller.name=constant',
    '--config.optimizer.name=sgd',
    '--config.model.mlp.hidden_sizes=(64, 64, 64, 64)',
    '--config.checkpoint.every_updates=1',
    '--config.log.every_updates=1',
  )
  assert result.returncode == 3
  report = summary(tmp_path)
  assert report['status'] == 'diverged'
  update = report['diverged_update']
  assert f'update {update}' in result.stdout
  assert records(tmp_path)[-1]['update'] == update - 1
  saved = {
    int(p.name)
    for p in (tmp_path / 'checkpoints').iterdir()
    if p.name.isdigit()
  }
  assert max(saved) == update - 1
  assert (tmp_path / 'report.html').exists()


def test_the_default_config_is_as_careful(tmp_path):
  workdir = f'--workdir={tmp_path}/run'
  line = one_line(launch('--config.optimzer.name=adam', workdir), 2)
  assert "'optimizer.name'" in line
  assert 'many' in one_line(launch('--config.epochs=many', workdir), 2)
  assert launch('--config.max_updates=2', workdir).returncode == 0


def test_a_wrong_key_in_a_config_file(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(
    'from configs import digits_mlp\n'
    'def get_config():\n'
    '  c = digits_mlp.get_config()\n'
    '  c.optimizer.momntum = 0.5\n'
    '  return c\n'
  )
  line = one_line(launch(f'--config={file}', f'--workdir={tmp_path}/run'))
  assert "'optimizer.momntum'" in line
  assert "'optimizer.momentum'" in line


def test_two_runs_in_one_workdir(tmp_path):
  """The second one is refused; the first one is not disturbed."""
  flags = [DIGITS, '--config.max_updates=2', f'--workdir={tmp_path}']
  descriptor = os.open(tmp_path, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    line = one_line(launch(*flags))
  finally:
    os.close(descriptor)
  assert str(tmp_path) in line
  assert 'another run' in line
  assert launch(*flags).returncode == 0


def test_help_names_the_flags():
  result = launch('--helpshort')
  for flag in ('--config', '--workdir', '--job', '--[no]distributed'):
    assert flag in result.stdout


def programs(workdir):
  return {
    path.name
    for path in (workdir.with_name('cache') / 'adabatch/programs').iterdir()
    if path.name.endswith('-cache')
  }


def test_compiled_programs_are_kept(digits, tmp_path):
  """A run of the same programs finds them all."""
  workdir, _ = digits
  before = programs(workdir)
  assert len(before) > summary(workdir)['compilations']
  result = launch_anew(
    workdir.with_name('cache'),
    DIGITS,
    '--config.max_updates=20',
    f'--workdir={tmp_path}',
  )
  assert result.returncode == 0, result.stderr
  assert programs(workdir) == before
  ours, theirs = records(tmp_path), records(workdir)
  assert ours[-1]['update'] == 20
  assert [r['loss'] for r in ours] == [r['loss'] for r in theirs[: len(ours)]]


def test_ctrl_c_reaches_the_reading_processes_too(tmp_path):
  """The whole group gets the signal; the run writes a checkpoint and goes on
  later where it was."""
  command = [
    'launch.py',
    '--config=configs/digits_mlp.py',
    '--config.data.placement=streaming',
    '--config.data.workers=1',
    '--config.epochs=1000.0',
    '--config.controller.name=constant',
    '--config.log.every_updates=1',
    f'--workdir={tmp_path}',
  ]
  process = commands.Process(
    command, os.environ | {'XLA_FLAGS': commands.QUICKLY}
  )
  try:
    deadline = time.monotonic() + 120
    metrics = tmp_path / 'metrics.jsonl'
    while not metrics.exists() or metrics.read_bytes().count(b'\n') < 100:
      assert time.monotonic() < deadline
      assert process.poll() is None
      time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
  finally:
    process.kill()
  assert process.returncode == 130, err
  assert 'preempted' in out
  assert 'Traceback' not in err
  done = summary(tmp_path)['updates']
  again = launch(
    *command[1:], '--config.data.workers=0', f'--config.max_updates={done}'
  )
  # The number of workers may change, the length of the run may not.
  assert 'max_updates' in again.stderr
  assert 'data.workers' not in again.stderr
