"""Resident splits: embedded sets, TFDS sets on disk, a caller's arrays."""

import hashlib
import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adabatch.data import channel_statistics, resident, splits, tfds_records
from adabatch.data.resident import (
  DatasetError,
  from_arrays,
  load,
)
from tests.tfds_sets import PREPARED, needs, write_tfds


def _rows(split):
  """Each example as bytes, so that examples can be compared as a set."""
  image = split.arrays['image']
  return [row.tobytes() for row in image]


# --- digits ---


def test_digits_splits_are_disjoint_and_complete():
  # As rows, because a few of the digits are drawn alike.
  _, _, splits = resident.EMBEDDED['digits']()
  both = np.concatenate([splits['train'], splits['validation']])
  np.testing.assert_array_equal(np.sort(both), np.arange(1797))
  assert len(splits['train']) == 1438


def test_digits_images_and_labels_belong_together():
  from sklearn import datasets

  raw: Any = datasets.load_digits()
  known = {
    np.rint(image * 255 / 16).astype(np.uint8).tobytes(): label
    for image, label in zip(raw.images, raw.target, strict=True)
  }
  split = load('digits', 'train')
  assert split.arrays['image'].dtype == np.uint8
  assert split.arrays['image'].shape == (1438, 8, 8, 1)
  assert split.arrays['image'].max() == 255
  assert split.arrays['label'].dtype == np.int32
  labels = [known[row] for row in _rows(split)]
  assert labels == split.arrays['label'].tolist()


@pytest.mark.parametrize(
  ('first', 'second'),
  [
    ('train[:80%]', 'train[80%:]'),
    ('train[:1000]', 'train[1000:]'),
    ('train[:-100]', 'train[-100:]'),
    ('train[:-10%]', 'train[-10%:]'),
  ],
)
def test_slices_complete_each_other(first, second):
  whole = _rows(load('digits', 'train'))
  parts = _rows(load('digits', first)), _rows(load('digits', second))
  assert parts[0] + parts[1] == whole
  assert _rows(load('digits', f'{first}+{second}')) == whole


@pytest.mark.parametrize(
  'spec', ['train[:33%]', 'train[5%:-5%]', 'train[-7:]', 'train[10:20]']
)
def test_slices_mean_what_they_mean_in_tfds(spec):
  import tensorflow_datasets as tfds

  info = tfds.core.SplitInfo(
    name='train', shard_lengths=[1438], num_bytes=0, filename_template=None
  )
  (wanted,) = tfds.core.ReadInstruction.from_spec(spec).to_absolute(
    {'train': info}
  )
  rows = splits.rows_of('x', spec, {'train': np.arange(1438)})
  assert rows.tolist() == list(range(1438))[wanted.from_ : wanted.to]


# --- a TFDS set that the test writes itself ---


def _pictures(count, *shape):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.mark.parametrize('channels', [1, 3])
def test_tfds_set_is_read_exactly(tmp_path, monkeypatch, channels):
  monkeypatch.setattr(resident, '_RECORDS', 4)  # several reads
  images, labels = _pictures(10, 5, 4, channels), np.arange(10) % 3
  write_tfds(tmp_path, images, labels, (5, 4, channels))
  split = load('tiny', 'train', tmp_path)
  np.testing.assert_array_equal(split.arrays['image'], images)
  np.testing.assert_array_equal(split.arrays['label'], labels)
  assert split.arrays['label'].dtype == np.int32
  assert split.num_classes == 3
  part = load('tiny:1.0.0', 'train[20%:]', tmp_path)
  np.testing.assert_array_equal(part.arrays['image'], images[2:])


def test_tfds_data_dir_may_be_relative_or_in_the_environment(
  tmp_path, monkeypatch
):
  write_tfds(tmp_path / 'data', _pictures(2, 5, 4, 3), [0, 1])
  monkeypatch.chdir(tmp_path)
  assert len(load('tiny', 'train', 'data').arrays['label']) == 2
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'data'))
  assert len(load('tiny', 'train').arrays['label']) == 2


def test_grey_pictures_in_a_colour_set(tmp_path):
  images = [_pictures(1, 5, 4, 3)[0], _pictures(1, 5, 4)[0]]
  write_tfds(tmp_path, images, [0, 1])
  found = load('tiny', 'train', tmp_path).arrays['image']
  np.testing.assert_array_equal(found[1], np.repeat(images[1][..., None], 3, 2))


def test_the_newest_version_is_read(tmp_path):
  directory = write_tfds(tmp_path, _pictures(2, 5, 4, 3), [0, 1])
  for version in ('9.0.0', '10.0.0'):
    (directory.parent / version).mkdir()
    for file in ('features.json', 'dataset_info.json'):
      (directory.parent / version / file).touch()
  found = tfds_records.find('tiny', tmp_path)
  assert found.name == '10.0.0'


def _message(call):
  with pytest.raises(DatasetError) as caught:
    call()
  message = str(caught.value)
  assert '\n' not in message
  assert caught.value.__suppress_context__ or not caught.value.__context__
  return message


def test_images_of_different_sizes(tmp_path):
  images = [_pictures(1, 5, 4, 3)[0], _pictures(1, 4, 5, 3)[0]]
  write_tfds(tmp_path, images, [0, 1])
  message = _message(lambda: load('tiny', 'train', tmp_path))
  assert 'tiny' in message
  assert 'resident sets need one image size' in message


def test_unlabelled_examples(tmp_path):
  write_tfds(tmp_path, _pictures(2, 5, 4, 3), [-1, -1])
  assert _message(lambda: load('tiny', 'train', tmp_path)).startswith(
    "data set 'tiny', split 'train': record 0 has the label -1, but there are 3"
  )


def test_a_label_beyond_int32_is_no_other_one(tmp_path):
  write_tfds(tmp_path, _pictures(2, 5, 4, 3), [0, 2**32 + 1])
  message = _message(lambda: load('tiny', 'train', tmp_path))
  assert 'record 1 has the label 4294967297' in message


def test_an_image_of_another_kind_is_refused_by_name(tmp_path):
  file = io.BytesIO()
  Image.fromarray(np.zeros((5, 4), np.float32)).save(file, 'TIFF')
  pictures = [_pictures(1, 5, 4, 3)[0], file.getvalue()]
  write_tfds(tmp_path, pictures, [0, 1])
  message = _message(lambda: load('tiny', 'train', tmp_path))
  assert "split 'train': record 1: a TIFF image of mode F is not r" in message
  assert 'damaged' not in message


def test_grey_images_of_16_bits_keep_their_upper_8(tmp_path):
  deep = _pictures(1, 5, 4)[0].astype(np.uint16) * 256 + 77
  file = io.BytesIO()
  Image.fromarray(deep).save(file, 'PNG')
  write_tfds(tmp_path, [file.getvalue()], [0], (5, 4, 1))
  found = load('tiny', 'train', tmp_path).arrays['image'][0, ..., 0]
  np.testing.assert_array_equal(found, deep >> 8)


def test_a_missing_set_of_tfds_names_place_and_command(tmp_path):
  write_tfds(tmp_path, _pictures(2, 5, 4, 3), [0, 1])
  before = sorted(tmp_path.rglob('*'))
  for root, place in (
    (tmp_path, f'is not prepared in {tmp_path}; '),
    (tmp_path / 'no', f'prepared: data_dir {tmp_path / "no"} does not exist; '),
  ):
    # Nor is a real name taken for a slip.
    for name in ('mnist', 'cifar100', 'titanic:4.0.0'):
      message = _message(lambda n=name, r=root: load(n, 'train', r))
      for part in (name, place, "pip install 'adabatch[prepare]'"):
        assert part in message
      assert 'array_record' in message
      assert 'did you mean' not in message
  # TFDS itself would have started a download into the directory.
  assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize(
  ('name', 'near'),
  [
    ('tinny', 'tiny'),
    ('configued', 'configured'),
    ('digit', 'digits'),
    ('fashionmnist', 'fashion_mnist'),
    ('cifar-10', 'cifar10'),
    ('no_such_set', None),
    ('xyz', None),
  ],
)
def test_a_name_that_nobody_knows(tmp_path, name, near):
  write_tfds(tmp_path, _pictures(2, 5, 4, 3), [0, 1])
  write_tfds(tmp_path / 'configured', _pictures(2, 5, 4, 3), [0, 1], name='a')
  (tmp_path / 'no_such_sets').mkdir()  # not one either
  message = _message(lambda: load(name, 'train', tmp_path))
  assert (f"(did you mean '{near}'?)" in message) == (near is not None)
  assert ('did you mean' in message) == (near is not None)
  # What it would advise cannot work.
  assert 'adabatch[prepare]' not in message


def test_another_version_of_a_set(tmp_path):
  write_tfds(tmp_path, _pictures(2, 5, 4, 3), [0, 1])
  message = _message(lambda: load('tiny:2.0.0', 'train', tmp_path))
  assert (
    f"'tiny:2.0.0' is not prepared in {tmp_path}, which has version 1.0.0"
    in (message)
  )


def test_a_damaged_set_that_is_not_of_tfds_is_not_to_be_prepared(tmp_path):
  write_tfds(tmp_path, [b'no image'] * 2, [0, 1])
  message = _message(lambda: load('tiny', 'train', tmp_path))
  assert f'remove it and write it to {tmp_path}/tiny/VERSION' in message
  assert 'adabatch[prepare]' not in message


@pytest.mark.parametrize(
  ('split', 'part'),
  [
    ('test', 'it has train'),
    ('train[:x]', 'train[:x]'),
    ('train[:0]', 'train[:0]'),
    ('train[:99]', '2 examples'),
  ],
)
def test_unknown_split(tmp_path, split, part):
  write_tfds(tmp_path, _pictures(2, 5, 4, 3), [0, 1])
  message = _message(lambda: load('tiny', split, tmp_path))
  assert 'tiny' in message
  assert part in message


@pytest.mark.parametrize(
  'split', ['test', 'train[:x]', 'train[:0]', 'train[:9999]', '', 'train[3]']
)
def test_unknown_split_of_digits(split):
  assert 'digits' in _message(lambda: load('digits', split))


def test_odd_names_and_damaged_sets(tmp_path):
  assert '../x' in _message(lambda: load('../x', 'train', tmp_path))
  directory = write_tfds(tmp_path, _pictures(2, 5, 4, 3), [0, 1])
  (directory / 'features.json').write_text('{')
  assert str(directory) in _message(lambda: load('tiny', 'train', tmp_path))


def test_a_set_that_does_not_say_how_many_classes_it_has(tmp_path):
  directory = write_tfds(tmp_path, _pictures(2, 5, 4, 3), [0, 1])
  features = directory / 'features.json'
  features.write_text(features.read_text().replace('"numClasses": "3"', ''))
  message = _message(lambda: load('tiny', 'train', tmp_path))
  assert "does not say how many classes its 'label' has" in message


def test_a_missing_record_file(tmp_path):
  directory = write_tfds(tmp_path, _pictures(2, 5, 4, 3), [0, 1])
  (records,) = directory.glob('*.array_record*')
  records.unlink()
  assert 'damaged' in _message(lambda: load('tiny', 'train', tmp_path))
  records.write_bytes(b'no records')
  assert 'damaged' in _message(lambda: load('tiny', 'train', tmp_path))


def test_several_configs(tmp_path):
  for config in ('a', 'b'):
    write_tfds(tmp_path / 'multi', _pictures(2, 5, 4, 3), [0, 1], name=config)
  message = _message(lambda: load('multi', 'train', tmp_path))
  assert 'multi/a, multi/b' in message


def test_nothing_heavy_is_imported_for_digits():
  code = (
    'import sys; from adabatch.data.resident import load; '
    "load('digits', 'train'); "
    "assert 'tensorflow_datasets' not in sys.modules"
  )
  subprocess.run([sys.executable, '-c', code], check=True)


# --- the real sets ---


@needs('fashion_mnist')
def test_fashion_mnist():
  train = load('fashion_mnist', 'train', PREPARED)
  assert train.arrays['image'].shape == (60_000, 28, 28, 1)
  assert np.bincount(train.arrays['label']).tolist() == [6000] * 10
  assert _digest(train) == '1fc8802f422a8de6'
  test = load('fashion_mnist', 'test', PREPARED)
  assert test.arrays['image'].shape == (10_000, 28, 28, 1)
  assert _digest(test) == '1c706ad5aa51c27f'
  mean, std = channel_statistics(train)
  # The numbers that everybody standardises Fashion-MNIST with.
  np.testing.assert_allclose([mean[0], std[0]], [0.2860, 0.3530], atol=1e-4)


@needs('cifar10')
def test_cifar10():
  train = load('cifar10', 'train[:45000]', PREPARED)
  validation = load('cifar10', 'train[45000:]', PREPARED)
  assert train.arrays['image'].shape == (45_000, 32, 32, 3)
  assert validation.arrays['image'].shape == (5_000, 32, 32, 3)
  counts = [np.bincount(s.arrays['label']) for s in (train, validation)]
  assert (counts[0] + counts[1]).tolist() == [5000] * 10
  assert _digest(train) == 'c56315f7dd611884'
  assert _digest(validation) == '3d1b4f309d265ad2'


@needs('imagenet2012')
def test_imagenet_is_not_resident():
  message = _message(lambda: load('imagenet2012', 'train', PREPARED))
  assert 'one image size' in message


@needs('tiny_shakespeare')
def test_text_is_no_image_set():
  message = _message(lambda: load('tiny_shakespeare', 'train', PREPARED))
  assert 'no image-classification set' in message


def _digest(split):
  digest = hashlib.sha256(split.arrays['image'])
  digest.update(split.arrays['label'])
  return digest.hexdigest()[:16]


# --- a caller's arrays ---


@pytest.mark.parametrize(
  ('change', 'part'),
  [
    ({'image': np.zeros((4, 8, 8), np.uint8)}, '[4, 8, 8]'),
    ({'image': np.zeros((4, 8, 8, 1))}, 'float64'),
    ({'image': np.zeros((3, 8, 8, 1), np.uint8)}, 'leading axes'),
    ({'label': np.array([0, 1, 2, 3])}, 'record 3 has the label 3'),
    ({'label': np.array([0, 1, -1, 2])}, 'record 2 has the label -1'),
    ({'label': np.zeros(4)}, 'float64'),
    ({'weight': np.zeros(5)}, 'leading axes'),
    ({'weight': np.float32(1)}, 'leading axes'),
  ],
)
def test_from_arrays_refuses(change, part):
  good = {
    'image': np.zeros((4, 8, 8, 1), np.uint8),
    'label': np.array([0, 1, 2, 0]),
  }
  assert from_arrays(good, 3).num_classes == 3
  assert part in _message(lambda: from_arrays({**good, **change}, 3))


def test_from_arrays_needs_both_and_some_examples():
  images, labels = np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, np.int64)
  assert 'label' in _message(lambda: from_arrays({'image': images}, 3))
  empty = {'image': images, 'label': labels}
  assert 'no examples' in _message(lambda: from_arrays(empty, 3))
