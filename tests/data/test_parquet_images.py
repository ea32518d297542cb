"""Encoded images in parquet files."""

import fcntl
import io
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from adabatch import data
from adabatch.data import image_cache
from tests.data.test_tables import config, train
from tests.experiments import records


def encoded(label, size, seed):
  rng = np.random.default_rng(seed)
  pixels = rng.integers(60 * label, 60 * label + 60, (size, size, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, ('JPEG', 'PNG')[seed % 2])
  return file.getvalue()


def write(path, count=90, size=lambda i: 8, start=0):
  """As a hub of data keeps them: bytes beside the path of each."""
  rows = range(start, start + count)
  images = [
    {'bytes': encoded(i % 3, size(i), i), 'path': f'{i}.jpg'} for i in rows
  ]
  table = pa.table({'image': images, 'label': [i % 3 for i in rows]})
  parquet.write_table(table, path, row_group_size=20)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache/adabatch/images'


def test_the_images_in_a_fixed_random_order(tmp_path, cache):
  for part in range(2):
    file = tmp_path / f'train-{part}.parquet'
    write(file, count=45, start=45 * part)
  name = f'parquet:{tmp_path}'
  assert data.holds_images(name)
  (whole,) = data.find_parquet_images(name, ['train'])
  assert whole.image_shape == (8, 8, 3)
  assert whole.num_classes == 3
  order = data.take(data.Order(90, 0), 0, 90)
  rows = whole.open()
  for index in (0, 41, 89):
    i = int(order[index])
    assert whole.parse(rows[index]) == (encoded(i % 3, 8, i), i % 3)
  made = {path: path.stat().st_ino for path in cache.glob('*.arrow')}
  assert len(made) == 2
  (again,) = data.find_parquet_images(name, ['train'])
  assert again.fingerprint == whole.fingerprint
  assert {p: p.stat().st_ino for p in cache.glob('*.arrow')} == made
  moved = tmp_path / 'elsewhere'
  moved.mkdir()
  for part in range(2):
    shutil.copy(tmp_path / f'train-{part}.parquet', moved)
  (there,) = data.find_parquet_images(f'parquet:{moved}', ['train'])
  assert there.fingerprint == whole.fingerprint
  write(tmp_path / 'train-1.parquet', count=45, start=48)  # the same labels
  (other,) = data.find_parquet_images(name, ['train'])
  assert other.fingerprint != whole.fingerprint


def test_what_nobody_needs_goes(tmp_path, cache, monkeypatch, capsys):
  monkeypatch.setattr(image_cache, '_OURS', {})  # as a process that begins

  def there():
    return {path.stem for path in cache.glob('*.arrow')}

  cache.mkdir(parents=True)
  for age, name in enumerate('cba'):
    (cache / f'{name}.arrow').write_bytes(b'x' * 10)
    os.utime(cache / f'{name}.arrow', (age, age))
  other = os.open(cache / 'other.uses', os.O_RDWR | os.O_CREAT)
  os.write(other, b'c.arrow\n')
  fcntl.flock(other, fcntl.LOCK_EX)  # it lives
  (cache / 'dead.uses').write_text('b.arrow\n')
  image_cache.claim(cache, ['d.arrow'], lambda path: True)
  assert there() == set('abc')
  assert not capsys.readouterr().err
  monkeypatch.setattr(image_cache, 'MOST_BYTES', 25)
  image_cache.claim(cache, ['d.arrow'], lambda path: True)
  assert there() == set('ac')  # c is older, but in use
  assert 'removed 1 file(s) of 1e-08 GB' in capsys.readouterr().err
  os.close(other)  # it ended
  image_cache.claim(cache, ['a.arrow'], lambda path: path.stem == 'a')
  assert there() == {'a'}
  assert len(list(cache.glob('*.uses'))) == 1


def test_copies_of_what_is_gone_are_not_kept(tmp_path, cache, monkeypatch):
  for part in ('one', 'two'):
    write(tmp_path / f'{part}.parquet', count=3)
    data.find_parquet_images(f'parquet:{tmp_path}/{part}.parquet', ['train'])
  (tmp_path / 'one.parquet').unlink()
  os.close(image_cache._OURS.pop(cache))  # as a process that has ended
  data.find_parquet_images(f'parquet:{tmp_path}/two.parquet', ['train'])
  assert len(list(cache.glob('*.arrow'))) == 1


def test_from_memory_and_from_a_stream_alike(tmp_path):
  write(tmp_path / 'mine.parquet')
  found = []
  for placement in ('resident', 'streaming'):
    overrides = {'data.placement': placement, 'data.workers': 0}
    c = config(f'parquet:{tmp_path}/mine.parquet', **overrides)
    train(c, tmp_path / placement)
    found.append(records(tmp_path / placement))
  for key, tolerance in (('batch_size', 0), ('loss', 1e-5)):
    np.testing.assert_allclose(
      *([r[key] for r in lines] for lines in found), rtol=tolerance
    )
  assert found[0][-1]['loss'] < 0.5


def test_images_of_many_sizes_are_cropped(tmp_path):
  write(tmp_path / 'mine.parquet', size=lambda i: 8 + i % 5)
  overrides = {'data.image_size': 8, 'data.eval_resize': 8, 'data.workers': 0}
  c = config(f'parquet:{tmp_path}/mine.parquet', **overrides, epochs=1.0)
  assert train(c, tmp_path / 'run')['status'] == 'completed'
  c.data.placement = 'resident'
  with pytest.raises(data.DatasetError, match='images differ in size'):
    train(c, tmp_path / 'no')
