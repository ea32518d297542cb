"""Where the data of a run lies, and what a batch is made of."""

import functools
import io
import json
import multiprocessing
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import adabatch
from adabatch import data
from adabatch import train as training
from adabatch.config import ConfigError
from adabatch.config.extras import NotInstalled
from adabatch.devices.trainer import Trainer
from adabatch.train import inputs
from adabatch.train.build import build
from adabatch.train.open_splits import open_splits
from tests.experiments import digits, records
from tests.test_launch import ROOT
from tests.tfds_sets import SENTENCES, write_set, write_tfds

train = functools.partial(training.train, devices=jax.devices()[:2])

pytestmark = pytest.mark.usefixtures('compile_quickly')

COUNT = 12


def photographs(seed=0):
  """JPEGs of different sizes, none of them smooth."""
  rng = np.random.Generator(np.random.Philox(seed))
  encoded = []
  for i in range(COUNT):
    small = rng.integers(0, 256, (6, 6, 3), np.uint8)
    image = Image.fromarray(small).resize((60 + 5 * i, 90 - 3 * i))
    file = io.BytesIO()
    image.save(file, 'JPEG')
    encoded.append(file.getvalue())
  return encoded


def open_set(data_dir, **overrides):
  settings = {
    'data.name': 'tiny',
    'data.data_dir': str(data_dir),
    'data.eval_split': 'train[:50%]',
    'data.workers': 0,
  }
  c = digits(**settings | overrides)
  return inputs.open_inputs(c, labels='classes')


@pytest.fixture
def varied(tmp_path):
  write_tfds(tmp_path, photographs(), np.arange(COUNT) % 3)
  return tmp_path


@pytest.fixture
def uniform(tmp_path):
  rng = np.random.Generator(np.random.Philox(0))
  images = rng.integers(0, 256, (COUNT, 10, 8, 3), np.uint8)
  write_tfds(tmp_path, images, np.arange(COUNT) % 3, shape=(10, 8, 3))
  return tmp_path


def batch(load, split, positions=None):
  """The first examples as a run would load them."""
  indices = np.arange(COUNT)
  chunk = split.read(indices, positions)
  arrays = {k: jnp.array(v) for k, v in chunk.arrays.items()}
  if positions is not None:
    halves = data.position_halves(positions)
    positions = tuple(jnp.array(half) for half in halves)
  return jax.jit(load)(arrays, jnp.array(indices), positions)


# Where it lies.


@pytest.mark.parametrize(
  ('overrides', 'streaming'),
  [
    ({}, False),
    # 18 examples of 10 x 8 x 3 bytes and a label of 4.
    ({'data.max_resident_bytes': 4392}, False),
    ({'data.max_resident_bytes': 4391}, True),
    ({'data.max_resident_bytes': 1, 'data.placement': 'resident'}, False),
    ({'data.placement': 'streaming'}, True),
  ],
)
def test_images_of_one_size_lie_on_the_devices_if_they_fit(
  uniform, overrides, streaming
):
  opened = open_set(uniform, **overrides)
  assert opened.streaming == streaming
  assert isinstance(opened.train, data.Split) != streaming
  assert opened.train.shapes['image'].shape == (10, 8, 3)


def test_images_that_differ_in_size_are_streamed(varied):
  opened = open_set(varied, **{'data.image_size': 16})
  assert opened.streaming
  for split in (opened.train, opened.evaluation):
    assert split.shapes['image'].shape == (16, 16, 3)


def test_workers_are_as_many_as_cores_unless_set(varied):
  assert open_set(varied).workers == 0
  assert open_set(varied, **{'data.workers': 3}).workers == 3
  assert open_set(varied, **{'data.workers': None}).workers > 0


# What an image goes through.


def test_each_key_of_a_crop_counts(varied):
  positions = np.arange(COUNT)
  plain = {'data.image_size': 16, 'data.eval_resize': 20}

  def images(positions=positions, **overrides):
    opened = open_set(varied, **plain | overrides)
    return opened.train.read(np.arange(COUNT), positions).arrays['image']

  first = images()
  np.testing.assert_array_equal(first, images())
  for key, value in (
    ('data.min_area', 0.9),
    ('data.flip', True),
    ('seed', 1),
  ):
    assert (images(**{key: value}) != first).any(), key
  mirrored = (images(**{'data.flip': True}) == first[:, :, ::-1]).all((1, 2, 3))
  assert 0 < mirrored.sum() < COUNT
  middle = images(None)
  assert (images(None, **{'data.eval_resize': 40}) != middle).any()
  np.testing.assert_array_equal(middle, images(None, **{'data.flip': True}))
  # Where it is not given, as much of an image is seen as with 224 of 256.
  usual = images(None, **{'data.eval_resize': None, 'data.image_size': 14})
  np.testing.assert_array_equal(
    usual, images(None, **{'data.eval_resize': 16, 'data.image_size': 14})
  )


def test_a_cropped_image_is_not_augmented_again(varied):
  opened = open_set(varied, **{'data.image_size': 16, 'data.flip': True})
  got = batch(opened.load_train(0), opened.train, np.arange(COUNT))
  raw = opened.train.read(np.arange(COUNT), np.arange(COUNT)).arrays['image']
  mean, std = (x / 255 for x in (raw.mean((0, 1, 2)), raw.std((0, 1, 2))))
  # The same pixels, up to a scale and an offset for each channel.
  for c in range(3):
    x = raw[..., c].ravel() / 255
    y = np.asarray(got['image'][..., c]).ravel()
    slope, offset = np.polyfit(x, y, 1)
    np.testing.assert_allclose(y, slope * x + offset, atol=1e-3)
  assert mean.shape == std.shape == (3,)


def test_a_padded_crop_is_refused_there(varied):
  with pytest.raises(ConfigError, match='data.crop_padding=2 is for images of'):
    open_set(varied, **{'data.crop_padding': 2})


def test_images_of_one_size_are_augmented_alike_wherever_they_lie(uniform):
  overrides = {'data.crop_padding': 2, 'data.flip': True}
  overrides |= {'data.randaugment': (2, 5), 'data.random_erasing': 0.5}
  overrides |= {'data.mean': (0.1, 0.2, 0.3), 'data.std': (1.0, 2.0, 0.5)}
  got = []
  for placement in ('resident', 'streaming'):
    opened = open_set(uniform, **overrides, **{'data.placement': placement})
    got.append(batch(opened.load_train(0), opened.train, np.arange(COUNT)))
  for key in ('image', 'label'):
    np.testing.assert_array_equal(got[0][key], got[1][key])
  plain = batch(opened.load, opened.train)
  assert (got[0]['image'] != plain['image']).any()
  raw = opened.train.read(np.arange(COUNT)).arrays['image']
  expected = (raw / 255 - [0.1, 0.2, 0.3]) / [1.0, 2.0, 0.5]
  np.testing.assert_allclose(plain['image'], expected, atol=1e-5)


def test_statistics_are_measured_on_readable_examples(uniform):
  for placement in ('resident', 'streaming'):
    opened = open_set(uniform, **{'data.placement': placement})
    image = np.asarray(batch(opened.load, opened.train)['image'])
    np.testing.assert_allclose(image.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(image.std((0, 1, 2)), 1, atol=1e-4)


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'data.placement': 'disk'}, "unknown data.placement 'disk'"),
    ({'data.mean': (0.5,)}, 'must have 3 numbers'),
    ({'data.std': (0.5, 0.5, 0.0)}, 'must be above 0'),
    ({'data.mean': ('a', 'b', 'c')}, 'data.mean=.* must be finite numbers'),
    ({'data.mean': (0.5, 0.5, float('nan'))}, 'must be finite numbers'),
    ({'data.crop_padding': 8}, 'must be below the size of the images, 10x8'),
    ({'data.randaugment': (2,)}, r'randaugment=\(2,\) must be \(operations, m'),
    ({'data.randaugment': (1.5, 9)}, 'must be .* a whole number from 1 on'),
    ({'data.randaugment': (2, 11)}, 'and a number from 0 to 10'),
    (
      {'data.mixup': 0.2, 'data.placement': 'streaming'},
      'mixes with any example of .*, which is streamed: set data.placement',
    ),
  ],
)
def test_what_is_refused(uniform, overrides, message):
  with pytest.raises(ConfigError, match=message):
    open_set(uniform, **overrides)


# Text.


TEXT = {
  'task.name': 'language_modelling',
  'model.name': 'transformer',
  'model.transformer.num_layers': 1,
  'model.transformer.model_dim': 8,
  'model.transformer.num_heads': 2,
  'model.transformer.hidden_dim': 8,
  'data.name': 'tiny',
  'data.eval_split': 'train',
  'data.sequence_length': 10,
  'max_updates': 2,
  'controller.name': 'constant',
}


def open_words(tmp_path, **overrides):
  settings = TEXT | {'data.data_dir': str(tmp_path)} | overrides
  cache = inputs.TextCache(lambda writer: tmp_path / 'cache', writer=True)
  return inputs.open_inputs(digits(**settings), cache=cache, labels='tokens')


def test_text_is_rows_of_tokens(tmp_path):
  write_set(tmp_path, SENTENCES)
  total = sum(map(len, SENTENCES)) + len(SENTENCES)
  for length in (10, 25):
    opened = open_words(tmp_path, **{'data.sequence_length': length})
    assert opened.tokens_per_example == length
    assert opened.train.num_examples == -(-total // length)
    assert not opened.streaming
    assert opened.end_of_document == 256
  size = opened.train.num_examples * (2 * 26 + 4) * 2
  for limit, streaming in ((size, False), (size - 1, True)):
    opened = open_words(
      tmp_path,
      **{'data.sequence_length': 25, 'data.max_resident_bytes': limit},
    )
    assert opened.streaming == streaming


def test_pieces_are_as_many_as_asked_for(tmp_path):
  write_set(tmp_path, SENTENCES)
  overrides = {'data.tokenizer': 'sentencepiece', 'data.vocab_size': 290}
  assert open_words(tmp_path, **overrides).train.num_classes == 290


def test_a_text_run_from_memory_and_from_disk_is_the_same(tmp_path):
  write_set(tmp_path, SENTENCES)
  losses = []
  for placement in ('resident', 'streaming'):
    config = digits(
      **TEXT, **{'data.data_dir': str(tmp_path), 'data.placement': placement}
    )
    summary = train(config, tmp_path / placement)
    losses.append(summary['final']['train'])
    assert (tmp_path / placement / 'text').is_dir()
  loaded = adabatch.load(tmp_path / 'resident')
  assert loaded.tokenizer.encode('né').tolist() == [110, 195, 169]
  assert losses[0] == pytest.approx(losses[1], rel=1e-5)
  assert losses[0]['perplexity'] == pytest.approx(np.exp(losses[0]['loss']))


def test_documents_that_cannot_be_read_are_reported(tmp_path, capfd):
  write_set(tmp_path, [*SENTENCES, None, None])
  config = digits(**TEXT, **{'data.data_dir': str(tmp_path)})
  config.data.max_skipped_fraction = 1.0
  summary = train(config, tmp_path / 'run')
  # In each of the two splits, which are the same here.
  assert summary['skipped_records'] == 2
  assert summary['skipped_evaluation_records'] == 2
  told = capfd.readouterr().err
  assert told.count(f'skipped document {len(SENTENCES)} of train') == 2
  documents = len(SENTENCES) + 2
  for key, value, allowed in (('', 1, 1), ('_fraction', 1.5 / documents, 1)):
    strict = config.copy_and_resolve_references()
    strict.data[f'max_skipped{key}'] = value
    message = (
      f'2 documents of train could not be read, .* allow {allowed} of its '
      f'{documents} in an epoch'
    )
    with pytest.raises(data.DatasetError, match=message):
      train(strict, tmp_path / 'strict')


def test_a_repaired_text_is_read_again(tmp_path):
  write_set(tmp_path, [*SENTENCES, None])
  config = digits(**TEXT, **{'data.data_dir': str(tmp_path)})
  config.data.max_skipped = 0
  with pytest.raises(data.DatasetError, match='repair the data set'):
    train(config, tmp_path / 'run')
  write_set(tmp_path, [*SENTENCES, b'repaired'])
  assert train(config, tmp_path / 'run')['skipped_records'] == 0


def test_a_slip_in_the_name_is_seen(tmp_path):
  with pytest.raises(data.NotPrepared, match=r"\(did you mean 'digits'\?\)"):
    open_set(tmp_path, **{'data.name': 'digit'})


def test_rows_longer_than_the_text_are_refused(tmp_path):
  write_set(tmp_path, [b'short'])
  with pytest.raises(ConfigError, match='must be below the 7 tokens of train'):
    open_words(tmp_path, **{'data.sequence_length': 7})
  assert open_words(tmp_path, **{'data.sequence_length': 6}).train.num_examples


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'model.name': 'mlp'}, 'do not go together'),
    ({'model.transformer.num_heads': 3}, 'model.transformer'),
    ({'task.name': 'classification'}, 'do not go together'),
  ],
)
def test_a_network_for_other_data_is_refused_before_anything_is_written(
  tmp_path, overrides, message
):
  write_set(tmp_path, SENTENCES)
  config = digits(**TEXT | {'data.data_dir': str(tmp_path)} | overrides)
  with pytest.raises(ConfigError, match=message):
    train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_another_run_that_makes_tokens_is_not_disturbed(tmp_path):
  """The directory is locked before the first of them is written."""
  write_set(tmp_path, SENTENCES)
  workdir = tmp_path / 'run'
  workdir.mkdir()
  code = (
    'import fcntl, os, sys, time\n'
    f'held = os.open({str(workdir)!r}, os.O_RDONLY)\n'
    'fcntl.flock(held, fcntl.LOCK_EX)\n'
    'print("held", flush=True)\n'
    'time.sleep(600)\n'
  )
  with subprocess.Popen(
    [sys.executable, '-c', code], stdout=subprocess.PIPE, cwd=ROOT
  ) as other:
    try:
      assert other.stdout is not None
      assert other.stdout.readline() == b'held\n'
      config = digits(**TEXT, **{'data.data_dir': str(tmp_path)})
      with pytest.raises(ConfigError, match='another run is at work'):
        train(config, workdir)
      assert list(workdir.iterdir()) == []
    finally:
      other.kill()


def test_a_text_that_is_not_there_leaves_nothing_behind(tmp_path):
  config = digits(**TEXT, **{'data.data_dir': str(tmp_path)})
  with pytest.raises(data.NotPrepared, match='is not prepared'):
    train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


# Labels and tokens that are no classes.


@pytest.mark.parametrize('key', ['data.train_split', 'data.eval_split'])
@pytest.mark.parametrize('placement', ['resident', 'streaming'])
def test_wrong_labels_are_refused_before_anything_is_trained(
  tmp_path, placement, key
):
  images = np.zeros((COUNT, 10, 8, 3), np.uint8)
  labels = np.arange(COUNT) % 3
  labels[-1] = 3
  write_tfds(tmp_path, images, labels, shape=(10, 8, 3))
  good = {'data.train_split': 'train[:6]', 'data.eval_split': 'train[6:11]'}
  open_set(tmp_path, **good, **{'data.placement': placement})
  with pytest.raises(
    data.DatasetError, match="split 'train'.* record 11 has the label 3, but"
  ):
    open_set(tmp_path, **good | {key: 'train', 'data.placement': placement})


def test_arrays_of_ones_own_are_checked():
  split = data.load('digits', 'train')
  wrong = split._replace(num_classes=9)
  with pytest.raises(
    data.DatasetError, match="split 'train', record .* label 9"
  ):
    inputs.open_inputs(digits(), (wrong, wrong), labels='classes')
  tokens = np.array([[0, 1, 2], [3, 4, 5]], np.uint16)
  rows = data.Split({'tokens': tokens, 'weight': np.ones(2, np.float32)}, 5)
  with pytest.raises(data.DatasetError, match='record 1 has the token 5'):
    inputs.open_inputs(digits(**TEXT), (rows, rows), labels='tokens')
  rows = rows._replace(num_classes=6)
  others = rows._replace(num_classes=7)
  with pytest.raises(ConfigError, match='training has 6 tokens, evaluation 7'):
    inputs.open_inputs(digits(**TEXT), (rows, others), labels='tokens')


def test_a_set_of_which_nothing_can_be_read_says_why(tmp_path):
  write_tfds(tmp_path, [b'no image'] * 3, [0, 1, 2])
  with pytest.raises(
    data.DatasetError, match=r'none of 3 records can be read \(record 0: no im'
  ):
    open_set(tmp_path, **{'data.eval_split': 'train'})


# What the network is told of its inputs.


def test_the_network_gets_what_the_config_says(tmp_path):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (16, 32, 32, 3), np.uint8)
  split = data.from_arrays({'image': images, 'label': np.arange(16) % 3}, 3)

  def model(**overrides):
    settings = digits(**overrides, **{'buckets.max_per_device': 64})
    return build(settings, jax.devices()[:1], (split, split))

  for overrides, name, value in (
    ({'model.wide_resnet.widen_factor': 2}, 'widen_factor', 2),
    ({'model.densenet.growth_rate': 5}, 'growth_rate', 5),
    ({'model.cifar_resnet.batch_norm_group': 4}, 'batch_norm_group', 4),
    ({'model.vgg.dropout_rate': 0.25}, 'dropout_rate', 0.25),
    ({'model.resnet.zero_scale': False}, 'zero_scale', False),
  ):
    kind = next(iter(overrides)).split('.')[1]
    built = model(**overrides, **{'model.name': kind})
    network, group = built.recipe.model, built.ladder.group_size
    assert getattr(network, name) == value
    assert group == (getattr(network, 'batch_norm_group', 0) or None)
    assert built.recipe.group_size == group
  low = model(**{'model.dtype': 'bfloat16'})
  assert low.recipe.model.dtype == jnp.bfloat16


@pytest.mark.parametrize('before', ['resident', 'streaming'])
def test_resumed_where_the_data_lie_elsewhere(before, uniform, tmp_path):
  """Read while training, or from the devices: the same run, augmented too."""

  def run(name, placement, last_update=None):
    settings = {
      'data.name': 'tiny',
      'data.data_dir': str(uniform),
      'data.eval_split': 'train',
      'data.placement': placement,
      'data.workers': 0,
      'data.crop_padding': 1,
      'data.flip': True,
      'max_updates': 6,
      'controller.every': 2,
      'controller.initial_batch_size': 2,
      'controller.max_batch_size': 4,
      'eval.every_epochs': 100.0,
    }
    one = jax.devices()[:1]
    train(
      digits(**settings), tmp_path / name, devices=one, last_update=last_update
    )

  run('moved', before, last_update=3)
  (after,) = {'resident', 'streaming'} - {before}
  run('moved', after)
  run('whole', before)
  whole, moved = (records(tmp_path / name) for name in ('whole', 'moved'))
  assert [x['batch_size'] for x in moved] == [x['batch_size'] for x in whole]
  losses = [[x['loss'] for x in lines] for lines in (moved, whole)]
  assert len(losses[0]) == 6
  np.testing.assert_allclose(*losses, rtol=1e-5)


def test_the_free_keys_may_change_between_two_starts(
  uniform, tmp_path, monkeypatch
):
  ended, close = [], Trainer.close
  monkeypatch.setattr(
    Trainer, 'close', lambda self: (ended.append(self), close(self))
  )

  def run(**overrides):
    settings = {
      'data.name': 'tiny',
      'data.data_dir': str(uniform),
      'data.eval_split': 'train',
      'data.placement': 'streaming',
      'data.workers': 1,
      'max_updates': 1,
      'controller.initial_batch_size': 4,
      'controller.max_batch_size': 4,
    }
    return train(digits(**settings | overrides), tmp_path / 'run')

  summary = run()
  # Readers of evaluations end, too, although who opened them is still there.
  assert len(ended) == 1
  assert not multiprocessing.active_children()
  assert run(**{'data.workers': 0, 'data.max_skipped': 7}) == summary
  assert run(**{'data.max_skipped_fraction': 0.5}) == summary
  assert run(**{'data.placement': 'resident'}) == summary
  config = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert config['data']['workers'] in (0, 1)


def test_a_package_that_is_missing_is_named_to_a_caller(monkeypatch, tmp_path):
  """From Python, without the command, which says it too."""
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  rows = 'a,label\n1,0\n2,1\n'
  for name in ('train.csv', 'test.csv', 'validation.csv'):
    (tmp_path / name).write_text(rows)
  config = digits(**{'data.name': f'csv:{tmp_path}'})
  with pytest.raises(NotInstalled, match=r'pyarrow .*adabatch\[tables\]'):
    open_splits(config, None, 'classes')
