"""Each example runs: data and parts of one's own; all are short."""

import functools
import runpy
import sys

import jax
import pytest

import adabatch.train
from adabatch.train import register
from tests.test_examples import EXAMPLES, LOOPS

# What of one's own is trained: by a script, which has a directory, or a config;
# with the metric that it reaches.
SCRIPTS = {
  'class_folder': ('accuracy', 0.85),
  'npz': ('accuracy', 0.85),
  'parquet': ('accuracy', 0.9),
  'csv_regression': ('mean_squared_error', 0.45),
  'hugging_face_set': ('accuracy', 0.85),
  'load_and_predict': ('accuracy', 0.9),
}
CONFIGS = {
  'nnx_network': 0.9,
  'equinox_network': 0.7,
  'own_task': 0.9,
  'own_rule': 0.9,
  'own_sync_rule': 0.85,
}


def test_each_example_is_tested_and_short():
  files = {path.stem: path for path in EXAMPLES.glob('*.py')}
  assert set(files) == {*LOOPS, *SCRIPTS, *CONFIGS}
  for path in files.values():
    assert len(path.read_text().splitlines()) < 80, path


@pytest.fixture
def registered():
  """What an example registers is forgotten."""
  before = {k: dict(names) for k, (names, _) in register.REGISTRIES.items()}
  yield
  for table, (names, _) in register.REGISTRIES.items():
    names.clear()
    names.update(before[table])


def small(train, config, workdir, **how):
  """Two sizes on one device, which are soon compiled."""
  config.controller.max_batch_size = 32
  return train(config, workdir, devices=jax.devices()[:1], **how)


@pytest.mark.parametrize('name', SCRIPTS)
def test_data_of_ones_own(name, monkeypatch, tmp_path):
  monkeypatch.setattr(sys, 'argv', [name, str(tmp_path)])
  monkeypatch.setattr(
    adabatch.train, 'train', functools.partial(small, adabatch.train.train)
  )
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  names = runpy.run_path(str(EXAMPLES / f'{name}.py'))
  (final,) = names['summary']['final'].values()
  metric, bound = SCRIPTS[name]
  assert (final[metric] < bound) == (metric == 'mean_squared_error')
  if name == 'load_and_predict':
    assert names['accuracy'] > 0.9


@pytest.mark.usefixtures('registered')
@pytest.mark.parametrize('name', CONFIGS)
def test_parts_of_ones_own(name, tmp_path):
  names = runpy.run_path(str(EXAMPLES / f'{name}.py'))
  config = names['get_config']()
  summary = small(adabatch.train.train, config, tmp_path)
  assert summary['final']['validation']['accuracy'] > CONFIGS[name]
  if name == 'own_rule':
    assert summary['buckets_visited'] > 1
