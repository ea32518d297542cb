"""The network of a run, without its data."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors import safe_open

import adabatch
from adabatch import data
from adabatch.config import ConfigError, default
from adabatch.train import evaluate_job, train
from adabatch.train.best import Best
from adabatch.train.calls import Due, Progress
from adabatch.train.checkpoints import CheckpointError, Saved
from adabatch.train.workdir import Workdir
from tests.data.test_tables import config, table_of, write
from tests.experiments import digits, records

ROOT = pathlib.Path(__file__).parent.parent.parent


def evaluated(loaded, split):
  """The metrics of a split, by hand."""
  inputs, labels = split.arrays.values()
  outputs = loaded(inputs)
  means = loaded.task.metrics(outputs, {'label': labels})
  return {name: float(np.mean(values)) for name, values in means.items()}


def on_two(c, workdir, **more):
  return train(c, workdir, devices=jax.devices()[:2], **more)


@pytest.mark.parametrize(
  'overrides',
  [
    {},
    {
      'model.name': 'strided_cnn',
      'model.strided_cnn.channels': (4,),
      'model.strided_cnn.hidden_size': 8,
      'model.strided_cnn.batch_norm_group': 8,
    },
    {'ema.half_life': 500.0},
    {'sync.name': 'sma', 'sync.sma.rho': 0.5, 'sync.replicas': 2},
  ],
  ids=['mlp', 'batch norm', 'averaged', 'replicas'],
)
def test_it_evaluates_as_the_run_did(overrides, tmp_path):
  c = digits(max_updates=12, **{'controller.name': 'constant'} | overrides)
  final = on_two(c, tmp_path)['final']['validation']
  loaded = adabatch.load(tmp_path)
  assert loaded.update == 12
  found = evaluated(loaded, data.load('digits', 'validation'))
  assert found == pytest.approx(final, rel=1e-6)


def test_in_a_fresh_process_when_the_data_are_gone(tmp_path):
  name = write(tmp_path / 'mine.csv', table_of())
  final = on_two(config(name), tmp_path / 'run')['final']['train[80%:]']
  _, split = data.load_tables(name, ('train[:80%]', 'train[80%:]'))
  np.savez(tmp_path / 'some.npz', **split.arrays)
  (tmp_path / 'mine.csv').unlink()
  code = (
    'import sys, json, numpy as np, adabatch\n'
    'loaded = adabatch.load(sys.argv[1])\n'
    'some = np.load(sys.argv[2])\n'
    'outputs = loaded(some["features"])\n'
    'values = loaded.task.metrics(outputs, {"label": some["label"]})\n'
    'means = {k: float(np.mean(v)) for k, v in values.items()}\n'
    'print(json.dumps([means, loaded.classes]))\n'
  )
  result = subprocess.run(
    [sys.executable, '-c', code, tmp_path / 'run', tmp_path / 'some.npz'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  means, classes = json.loads(result.stdout)
  assert means == pytest.approx(final, rel=1e-6)
  assert classes == ['ant', 'bee', 'cat']


def test_which(tmp_path):
  c = digits(max_updates=9)
  c.checkpoint.every_updates, c.checkpoint.keep = 3, 2
  on_two(c, tmp_path)
  kept = sorted(path.name for path in (tmp_path / 'checkpoints').iterdir())
  assert adabatch.load(tmp_path, 6).update == 6
  with pytest.raises(CheckpointError, match='no checkpoint of update 3, but'):
    adabatch.load(tmp_path, 3)
  # The one evaluation was that of the newest.
  assert adabatch.load(tmp_path, 'best').update == 9
  with pytest.raises(ConfigError, match="which='newest': give 'last'"):
    adabatch.load(tmp_path, 'newest')
  with pytest.raises(ValueError, match=r'give \[B, 8, 8, 1\]'):
    adabatch.load(tmp_path)(np.zeros((2, 8, 8), np.uint8))
  with pytest.raises(ValueError, match='inputs are float32, and the network'):
    adabatch.load(tmp_path)(np.zeros((2, 8, 8, 1), np.float32))
  after = sorted(path.name for path in (tmp_path / 'checkpoints').iterdir())
  assert after == kept


KEPT = {'controller.name': 'constant', 'checkpoint.best': True}


def test_the_best(tmp_path):
  c = digits(epochs=6.0, **KEPT)
  c.learning_rate.base = 0.5  # so that it is not the last
  on_two(c, tmp_path, last_update=300)
  shutil.copytree(tmp_path, tmp_path / 'then')
  on_two(c, tmp_path)  # goes on with the best so far
  lines = records(tmp_path, 'eval')
  accuracies = [line['accuracy'] for line in lines]
  best = lines[int(np.argmax(accuracies))]
  assert best['update'] < lines[-1]['update']
  loaded = adabatch.load(tmp_path, 'best')
  assert loaded.update == best['update']
  found = evaluated(loaded, data.load('digits', 'validation'))
  assert found['accuracy'] == pytest.approx(max(accuracies), rel=1e-6)
  # One of an update that is to be done again is not kept.
  then = tmp_path / 'then'
  (kept,) = (then / 'best').iterdir()
  shutil.copytree(kept, then / 'best/9999')
  on_two(c, then)
  assert adabatch.load(then, 'best').update == best['update']
  # Nor is what was the best before the key was False for a while.
  (then / 'best' / kept.name).rename(then / 'best/90')
  with pytest.raises(ConfigError, match='keeps no .* or train with checkpoint'):
    adabatch.load(then, 'best')


def test_the_best_of_a_run_that_diverges(tmp_path):
  c = digits(epochs=6.0, **KEPT)
  c.learning_rate.decay.name = 'piecewise'
  c.learning_rate.decay.boundaries = (2.5,)
  c.learning_rate.decay.factor = 1e30
  assert on_two(c, tmp_path)['status'] == 'diverged'
  best = records(tmp_path, 'eval')[-1]
  loaded = adabatch.load(tmp_path, 'best')
  assert loaded.update == best['update'] == 180
  with pytest.raises(CheckpointError, match='checkpoints holds no checkpoint'):
    adabatch.load(tmp_path)


@pytest.mark.parametrize(
  ('accuracies', 'written', 'best'),
  [
    # Evaluated at updates 2, 4, 6 and 8, with checkpoints of 4 and of 8.
    ((0.5, 0.6, 0.4, 0.3), [4], 4),
    ((0.5, 0.4, 0.6, 0.3), [2, 6], 6),
    ((0.3, 0.4, 0.5, 0.6), [], 8),
    ((np.nan, 0.4, np.nan, 0.3), [4], 4),
    ((np.nan,) * 4, [], None),
  ],
)
def test_the_best_is_written_once_it_is_not_the_newest(
  accuracies, written, best
):
  found = []

  def save(update, state, host):
    found.append(update)
    assert state['w'] == update
    assert host['progress']['best_update'] == update

  at, kept = Progress(next_evaluation=0), Best(save, None)
  due, higher = Due(1.0, 1.0, 4, 1), {'accuracy': True}
  for accuracy in accuracies:
    at.update += 2
    metrics, target = {'accuracy': accuracy}, digits().target
    at.evaluated_with('test', metrics, higher, due, target)
    state, host = {'w': jax.numpy.array(at.update)}, {'progress': at.host()}
    if at.best_update == at.update:
      kept.hold(at.update, state, host)
    if at.update % due.checkpoint == 0:
      kept.write(at.update)
      # As a run that goes on from this checkpoint.
      kept = Best(save, Saved(at.update, state, host))
  assert (found, at.best_update) == (written, best)


def test_evaluated_on_any_split(tmp_path):
  c = digits(max_updates=12, **{'controller.name': 'constant'})
  with pytest.raises(ConfigError, match='holds no run'):
    evaluate_job.evaluate(c, tmp_path)
  final = on_two(c, tmp_path)['final']['validation']
  devices = jax.devices()[:1]
  again = evaluate_job.evaluate(c, tmp_path, devices=devices)
  assert again['final']['validation'] == pytest.approx(final, rel=1e-6)
  other = c.copy_and_resolve_references()
  # Its statistics are not those that are used.
  other.data.train_split, other.data.eval_split = 'train[:50]', 'train[:100]'
  other.controller.max_batch_size = 32
  with pytest.raises(ConfigError, match='with controller.max_batch_size=128'):
    evaluate_job.evaluate(other, tmp_path, devices=devices)
  other.controller.max_batch_size = 128
  found = evaluate_job.evaluate(other, tmp_path, devices=devices)
  split = data.load('digits', 'train[:100]')
  expected = evaluated(adabatch.load(tmp_path), split)
  assert found['final']['train[:100]'] == pytest.approx(expected, rel=1e-6)
  lines = (tmp_path / 'evaluations.jsonl').read_text().splitlines()
  splits = [json.loads(line)['split'] for line in lines]
  assert splits == ['validation', 'train[:100]']


def test_exported(tmp_path):
  on_two(digits(max_updates=2), tmp_path)
  loaded = adabatch.load(tmp_path)
  assert loaded.tokenizer is None
  with pytest.raises(ValueError, match='no tokenizer: give its inputs as an'):
    loaded('some text')
  path = tmp_path / 'out' / 'mine.safetensors'
  loaded.export(path)
  # As readable as any other file.
  assert path.stat().st_mode == (tmp_path / 'config.json').stat().st_mode
  with safe_open(path, 'numpy') as file:
    about = json.loads(file.metadata()['inputs'])
    kernel = file.get_tensor('params.Dense_0.kernel')
    assert len(file.keys()) == 4
  np.testing.assert_array_equal(kernel, loaded.params['Dense_0']['kernel'])
  written = json.loads((tmp_path / 'inputs.json').read_text())
  assert about == {k: v for k, v in written.items() if k != 'checksums'}


@pytest.mark.parametrize(
  ('name', 'old', 'new'),
  [
    ('inputs.json', '"statistics"', '"statistica"'),
    ('inputs.json', '"checksums"', '"checksumz"'),
    ('config.json', '"seed": 0', '"seed": 1'),
  ],
)
def test_files_that_are_not_what_was_written(name, old, new, tmp_path):
  """A bit of one may be the standard deviation of the images."""
  files = Workdir(tmp_path)
  files.open(default(), {'statistics': None})
  assert files.read_inputs() == {'statistics': None}
  text = (tmp_path / name).read_text()
  assert old in text
  (tmp_path / name).write_text(text.replace(old, new))
  with pytest.raises(ConfigError, match='json is not what the run wrote'):
    files.read_inputs()


def test_no_run(tmp_path):
  with pytest.raises(ConfigError, match='holds no checkpoints'):
    adabatch.load(tmp_path)
