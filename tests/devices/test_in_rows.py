"""Splits on the devices, images as rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch.devices.in_rows import InRows, bytes_of, place_split
from adabatch.devices.mesh import make_devices


def split(shape, dtype):
  rng = np.random.default_rng(0)
  values = rng.integers(0, 256, (20, *shape)).astype(dtype)
  return {'image': values, 'label': np.arange(20, dtype=np.int32)}


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
@pytest.mark.parametrize(
  ('shape', 'length'),
  [((8, 8, 1), 128), ((28, 28, 1), 896), ((32, 32, 3), 3072), ((5, 3), 128)],
)
def test_examples_are_what_they_were(shape, length, dtype):
  arrays = split(shape, dtype)
  placed = place_split(arrays, make_devices(jax.devices()[:2]))
  image = placed['image']
  assert isinstance(image, InRows)
  assert image.rows.shape == (20, length)
  assert len(image) == 20
  indices = jnp.array([[3, 19], [0, 3]])
  got = jax.jit(lambda data, i: data['image'][i])(placed, indices)
  assert got.dtype == dtype
  np.testing.assert_array_equal(got, arrays['image'][np.asarray(indices)])
  np.testing.assert_array_equal(placed['label'][indices], indices)
  assert bytes_of(arrays) == sum(x.nbytes for x in jax.tree.leaves(placed))


def test_tokens_and_tables_stay_as_they_are():
  tokens = {'tokens': np.zeros((4, 129), np.uint16)}
  placed = place_split(tokens, make_devices(jax.devices()[:1]))
  assert placed['tokens'].shape == (4, 129)
  assert bytes_of(tokens) == 4 * 129 * 2
