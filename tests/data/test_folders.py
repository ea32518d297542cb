"""Folders of images, one for each class."""

import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from adabatch import data
from adabatch import train as training
from adabatch.config import ConfigError
from adabatch.data.image_formats import CorruptRecord
from tests.experiments import digits, records

train = functools.partial(training.train, devices=jax.devices()[:2])

CLASSES = 'ant', 'bee', 'cat'


def draw(path, label, size, seed):
  path.parent.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  pixels = rng.integers(60 * label, 60 * label + 60, (size, size, 3), np.uint8)
  Image.fromarray(pixels).save(path)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Ninety images of one size, in three formats, and a file that is none."""
  root = tmp_path_factory.mktemp('folder with a space')
  for i in range(90):
    suffix = ('jpg', 'PNG', 'webp')[i // 3 % 3]
    draw(root / CLASSES[i % 3] / f'{i:03}.{suffix}', i % 3, 8, i)
  (root / 'ant' / '._0.jpg').write_bytes(b'x')
  (root / '.cache').mkdir()
  (root / 'bee' / 'notes.txt').write_text('x')
  return root


def config(root, **overrides):
  keys = {
    'data.name': f'folder:{root}',
    'data.train_split': 'train[:80%]',
    'data.eval_split': 'train[80%:]',
    'data.mean': (0.3,) * 3,
    'data.std': (0.2,) * 3,
    'data.workers': 0,
    'epochs': 4.0,
    'controller.initial_batch_size': 8,
    'controller.max_batch_size': 32,
    'controller.every': 5,
  }
  return digits(**keys | overrides)


def test_a_split_is_the_files_in_a_fixed_random_order(root):
  name = f'folder:{root}'
  whole = data.find_images(name, 'train')
  assert whole.classes == CLASSES
  assert whole.image_shape == (8, 8, 3)
  assert whole.num_examples == 90
  assert np.bincount(whole.labels).tolist() == [30, 30, 30]
  assert (np.diff(whole.labels) != 0).sum() > 30  # mixed
  parts = [data.find_images(name, s) for s in ('train[:80%]', 'train[80%:]')]
  files = np.concatenate([part.files for part in parts])
  np.testing.assert_array_equal(files, whole.files)
  for index in (0, 41, 89):
    encoded, label = whole.parse(whole.open()[index])
    path = whole.path(index)
    assert path.read_bytes() == encoded
    assert path.parent.name == CLASSES[label]
  assert len({s.fingerprint for s in (whole, *parts)}) == 3
  assert data.find_images(name, 'train').fingerprint == whole.fingerprint


def test_resident_and_streamed_train_the_same(root, tmp_path):
  runs = {}
  for placement in ('resident', 'streaming'):
    workdir = tmp_path / placement
    train(config(root, **{'data.placement': placement}), workdir)
    runs[placement] = records(workdir)
  first, second = runs.values()
  sizes = [[line['batch_size'] for line in lines] for lines in (first, second)]
  assert sizes[0] == sizes[1]
  assert len(set(sizes[0])) > 1
  losses = [[line['loss'] for line in lines] for lines in (first, second)]
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize('placement', ['resident', 'streaming'])
def test_a_run_goes_on_exactly(root, tmp_path, placement):
  c = config(root, **{'data.placement': placement})
  whole = train(c, tmp_path / 'whole')
  train(c, tmp_path / 'cut', last_update=7)
  cut = train(c, tmp_path / 'cut')
  assert json.dumps(cut['final']) == json.dumps(whole['final'])


def test_folders_of_splits(root, tmp_path):
  for split, count in (('train', 4), ('val', 2)):
    for i in range(3 * count):
      draw(tmp_path / split / CLASSES[i % 3] / f'{i}.png', i % 3, 8, i)
  name = f'folder:{tmp_path}'
  (tmp_path / 'test' / 'unknown').mkdir(parents=True)  # never asked for
  counts = [data.find_images(name, s).num_examples for s in ('train', 'val')]
  assert counts == [12, 6]
  assert data.find_images(name, 'train+val[:50%]').num_examples == 15
  with pytest.raises(data.DatasetError, match='it has test, train, val'):
    data.find_images(name, 'validation')
  assert len({*data.find_images(name, 'train+val').files.tolist()}) == 18
  draw(tmp_path / 'val' / 'dog' / '1.png', 0, 8, 0)
  with pytest.raises(data.DatasetError, match="split 'val' differ.* adds dog"):
    data.find_images(name, 'train+val')
  with pytest.raises(data.DatasetError, match='lacks cat'):
    data.check_same_classes('x', CLASSES, CLASSES[:2], 'val')
  c = config(
    tmp_path, **{'data.train_split': 'train', 'data.eval_split': 'val'}
  )
  with pytest.raises(data.DatasetError, match="split 'val' differ.* adds dog"):
    train(c, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_other_files_have_another_fingerprint(tmp_path):
  def fingerprint():
    return data.find_images(f'folder:{tmp_path}', 'train').fingerprint

  for i in range(6):
    draw(tmp_path / CLASSES[i % 2] / f'{i}.png', i % 2, 8, i)
  seen = [fingerprint()]
  image = tmp_path / CLASSES[0] / '0.png'
  draw(image, 0, 9, 0)
  seen.append(fingerprint())
  image.rename(image.with_name('00.png'))
  seen.append(fingerprint())
  image.with_name('00.png').rename(tmp_path / CLASSES[1] / '00.png')
  seen.append(fingerprint())
  assert fingerprint() == seen[-1]
  assert len(set(seen)) == 4


def test_images_of_mixed_sizes_are_cropped_or_refused(tmp_path):
  root = tmp_path / 'data'
  for i in range(30):
    draw(root / CLASSES[i % 3] / f'{i}.png', i % 3, 8 + i % 4, i)
  crops = {'data.image_size': 8, 'data.eval_resize': 9, 'epochs': 1.0}
  summary = train(config(root, **crops), tmp_path / 'run')
  assert summary['status'] == 'completed'
  with pytest.raises(data.DatasetError, match='images differ in size'):
    train(config(root, **{'data.placement': 'resident'}), tmp_path / 'no')
  assert not (tmp_path / 'no').exists()


def test_a_damaged_image_is_skipped_when_streamed(tmp_path):
  root = tmp_path / 'data'
  for i in range(30):
    draw(root / CLASSES[i % 3] / f'{i}.png', i % 3, 8, i)
  (root / 'ant' / '3.png').write_bytes(b'no image')
  c = config(root, **{'data.placement': 'streaming', 'epochs': 1.0,
                          'data.max_skipped_fraction': 0.5})  # fmt: skip
  summary = train(c, tmp_path / 'run')
  skipped = summary['skipped_records'], summary['skipped_evaluation_records']
  assert sum(skipped) == 1
  with pytest.raises(data.DatasetError, match='folder:'):
    train(config(root, **{'data.placement': 'resident'}), tmp_path / 'no')


def test_a_relative_path_lies_in_data_dir(tmp_path):
  for i in range(4):
    draw(tmp_path / 'pets' / CLASSES[i % 2] / f'{i}.png', i % 2, 8, i)
  here = data.find_images('folder:pets', 'train', tmp_path)
  there = data.find_images(f'folder:{tmp_path}/pets', 'train')
  assert here.num_examples == 4
  assert here.fingerprint == there.fingerprint
  with pytest.raises(data.DatasetError, match='is no folder'):
    data.find_images('folder:pets', 'train', tmp_path / 'pets')


@pytest.mark.parametrize('suffix', ['jpg', 'jpeg', 'PNG', 'webp', 'bmp', 'gif'])
def test_formats(tmp_path, suffix):
  for i in range(6):
    draw(tmp_path / CLASSES[i % 2] / f'{i}.{suffix}', i % 2, 8, i)
  images = data.load(f'folder:{tmp_path}', 'train').arrays['image']
  assert images.shape == (6, 8, 8, 3)


def test_a_file_that_is_gone_is_a_damaged_record(tmp_path):
  layout(tmp_path, 'cat/1.png', 'dog/1.png')
  found = data.find_images(f'folder:{tmp_path}', 'train')
  found.path(1).unlink()
  with pytest.raises(CorruptRecord, match='No such file'):
    found.open()[1]


def test_a_flat_class_may_be_called_train(tmp_path):
  for i, name in enumerate(('car', 'train', 'plane')):
    draw(tmp_path / name / '1.png', 0, 8, i)
  found = data.find_images(f'folder:{tmp_path}', 'train')
  assert found.classes == ('car', 'plane', 'train')


def test_one_image_of_another_size_is_seen(tmp_path):
  for i in range(40):
    draw(tmp_path / CLASSES[i % 2] / f'{i:02}.png', i % 2, 8, i)
  assert data.find_images(f'folder:{tmp_path}', 'train').image_shape[0] == 8
  draw(tmp_path / CLASSES[0] / '20.png', 0, 9, 0)
  shape = data.find_images(f'folder:{tmp_path}', 'train').image_shape
  assert shape == (None, None, 3)


def layout(root, *files):
  for i, file in enumerate(files):
    draw(root / file, 0, 8, i)


@pytest.mark.parametrize(
  ('files', 'match'),
  [
    (('Training/cat/1.png', 'Testing/cat/1.png'), "called 'train'"),
    (('cat/1.png', 'dog/1.png', 'val/cat/1.png'), 'val/cat is a folder in'),
    (('car/1.png', 'train/a/1.png', 'train/b/1.png'), 'car the image 1.png'),
    (('train/a/1.png', 'train/b/1/1.png'), 'b/1 is a folder in'),
    ((), 'has no classes'),
    (('1.png',), 'has no classes'),
    (('cat/1.png', 'dog/1.png', 'dog/2.tiff'), '2.tiff is an image that is'),
  ],
)
def test_nothing_is_left_out_silently(tmp_path, files, match):
  layout(tmp_path, *files)
  with pytest.raises(data.DatasetError, match=match) as error:
    data.find_images(f'folder:{tmp_path}', 'train')
  assert '\n' not in str(error.value)


def test_links_are_followed_or_refused(tmp_path):
  layout(tmp_path / 'there', 'cat/1.png', 'dog/1.png')
  (tmp_path / 'links').mkdir()
  for name in ('cat', 'dog'):
    (tmp_path / 'links' / name).symlink_to(tmp_path / 'there' / name)
  name = f'folder:{tmp_path}/links'
  assert data.find_images(name, 'train').num_examples == 2
  (tmp_path / 'links' / 'cow').symlink_to(tmp_path / 'there' / 'cow')
  with pytest.raises(data.DatasetError, match='link to nothing'):
    data.find_images(name, 'train')


def test_mistakes_are_named_and_nothing_is_written(tmp_path):
  def refused(path, match):
    with pytest.raises((ConfigError, data.DatasetError), match=match) as error:
      train(config(path), tmp_path / 'run')
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'run').exists()

  refused(tmp_path / 'nowhere', 'is no folder')
  (tmp_path / 'images').mkdir()
  for name in CLASSES:
    (tmp_path / 'images' / name).mkdir()
  (tmp_path / 'images' / 'ant' / 'x.txt').write_bytes(b'')
  refused(tmp_path / 'images', r'ant holds no images \(but .txt\)')
  draw(tmp_path / 'one' / 'a' / '1.png', 0, 8, 0)
  draw(tmp_path / 'one' / 'a' / '2.png', 0, 8, 1)
  refused(tmp_path / 'one', 'has one class, a')
  text = config(tmp_path / 'one', **{'task.name': 'language_modelling',
                                     'model.name': 'transformer'})  # fmt: skip
  with pytest.raises(ConfigError, match='names images'):
    train(text, tmp_path / 'run')
