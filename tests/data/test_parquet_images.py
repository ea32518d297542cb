"""Encoded images in parquet files."""

import io
import shutil

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from adabatch import data
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
  made = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
  assert len(made) == 2
  (again,) = data.find_parquet_images(name, ['train'])
  assert again.fingerprint == whole.fingerprint
  assert {p: p.stat().st_mtime_ns for p in cache.iterdir()} == made
  moved = tmp_path / 'elsewhere'
  moved.mkdir()
  for part in range(2):
    shutil.copy(tmp_path / f'train-{part}.parquet', moved)
  (there,) = data.find_parquet_images(f'parquet:{moved}', ['train'])
  assert there.fingerprint == whole.fingerprint
  write(tmp_path / 'train-1.parquet', count=45, start=48)  # the same labels
  (other,) = data.find_parquet_images(name, ['train'])
  assert other.fingerprint != whole.fingerprint


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
