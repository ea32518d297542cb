"""Mean and standard deviation of the channels."""

import numpy as np
import pytest

from adabatch import data
from adabatch.data import statistics
from adabatch.data.source import Chunk


def images(count, seed=0):
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (count, 5, 4, 3), np.uint8)
  pixels[..., 1] = 7  # a constant channel
  return pixels


def split_of(values, name='image'):
  labels = np.zeros(len(values), np.int32)
  return data.from_arrays({name: values, 'label': labels}, 1)


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_equal_numpy(dtype, monkeypatch):
  monkeypatch.setattr(statistics, '_BLOCK', 400)
  pixels = images(9)
  given = pixels if dtype == np.uint8 else (pixels / 255).astype(dtype)
  mean, std = data.channel_statistics(split_of(given))
  assert mean.dtype == std.dtype == np.float32
  scaled = pixels / 255
  np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-6)
  expected = scaled.std((0, 1, 2))
  np.testing.assert_allclose(std[[0, 2]], expected[[0, 2]], rtol=1e-6)
  assert std[1] == 1


def test_of_columns_far_from_zero(monkeypatch):
  monkeypatch.setattr(statistics, '_BLOCK', 64)
  rng = np.random.default_rng(0)
  table = rng.normal([0, 1e6, -3], [1, 10, 1e-3], (500, 3)).astype(np.float32)
  mean, std = data.channel_statistics(split_of(table, 'features'))
  exact = table.astype(np.float64)
  np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-6)
  np.testing.assert_allclose(std, exact.std(0), rtol=1e-5)


class Damaged:
  """Every third record of a split cannot be read."""

  def __init__(self, split, of=3):
    self.num_examples, self.shapes = split.num_examples, split.shapes
    self._split, self._of, self.read_rows = split, of, []

  def read(self, indices, positions):
    chunk = self._split.read(indices, positions)
    self.read_rows += indices.tolist()
    bad = indices % self._of == self._of - 1
    chunk.arrays['weight'][bad] = 0
    chunk.arrays['image'][bad] = 255
    return Chunk(chunk.arrays, tuple((int(i), 'torn') for i in indices[bad]))


def test_what_cannot_be_read_is_left_out():
  pixels = images(30)
  found = data.channel_statistics(Damaged(split_of(pixels)))
  whole = data.channel_statistics(split_of(pixels[np.arange(30) % 3 < 2]))
  np.testing.assert_array_equal(found, whole)
  with pytest.raises(data.DatasetError, match=r'30 records .*record 0: torn'):
    data.channel_statistics(Damaged(split_of(pixels), of=1))


def test_of_a_large_set_the_same_examples_wherever_it_lies(monkeypatch):
  monkeypatch.setattr(statistics, 'MEASURED_BYTES', 60 * 50 + 7)
  pixels = images(200)
  resident = split_of(pixels)
  streamed = Damaged(resident, of=10**9)
  found = data.channel_statistics(streamed)
  chosen = np.array(streamed.read_rows)
  assert len(set(chosen.tolist())) == 50
  np.testing.assert_array_equal(found, data.channel_statistics(resident))
  few = data.channel_statistics(split_of(pixels[chosen]))
  np.testing.assert_array_equal(found, few)
  assert np.diff(chosen).max() > 1, 'not the first ones alone'
