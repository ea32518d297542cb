"""Augmentation: equal to a slow twin, and keyed by (seed, position) alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch.data.augment import (
  crop_by_selection,
  crop_by_slices,
  position_halves,
  position_keys,
  random_crop_flip,
  seed_key,
  to_float,
)


def _images(count, dtype=np.uint8):
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.integers(0, 256, (count, 7, 6, 3)), dtype)


def _keys(positions, seed=0):
  return position_keys(jax.random.key(seed), *position_halves(positions))


def _twin(images, keys, padding, flip):
  rows = []
  for image, key in zip(np.asarray(images), keys, strict=True):
    top, left, mirror = np.asarray(jax.random.bits(key, (3,), jnp.uint32))
    top, left = int(top) % (2 * padding + 1), int(left) % (2 * padding + 1)
    sides = ((padding, padding), (padding, padding), (0, 0))
    padded = np.pad(image, sides)
    row = padded[top : top + image.shape[0], left : left + image.shape[1]]
    rows.append(np.fliplr(row) if flip and mirror % 2 else row)
  return np.stack(rows)


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
@pytest.mark.parametrize(
  ('padding', 'flip'), [(0, True), (2, False), (3, True)]
)
def test_equals_the_slow_twin(dtype, padding, flip):
  images, keys = _images(40, dtype), _keys(np.arange(40))
  found = jax.jit(
    lambda x, k: random_crop_flip(x, k, padding=padding, flip=flip)
  )(images, keys)
  assert found.dtype == dtype
  twin = _twin(images, keys, padding, flip)
  np.testing.assert_array_equal(found, twin)


def test_independent_of_how_the_batch_is_split():
  images, positions = _images(24), np.arange(2**32 - 12, 2**32 + 12)
  crop_flip = jax.jit(functools.partial(random_crop_flip, padding=2, flip=True))

  def augment(rows):
    return crop_flip(images[rows], _keys(positions[rows]))

  whole = augment(np.arange(24))
  for sizes in ([1, 7, 16], [8, 8, 8]):
    stops = np.cumsum(sizes)
    parts = [
      augment(np.arange(b - s, b)) for s, b in zip(sizes, stops, strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_every_place_and_half_the_flips_occur():
  count = 2000
  # A picture whose pixels name themselves shows where the crop was taken.
  image = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1)
  images, keys = jnp.repeat(image, count, 0), _keys(np.arange(count))
  found = np.asarray(random_crop_flip(images, keys, padding=1, flip=False))
  kinds, counts = np.unique(found, axis=0, return_counts=True)
  assert len(kinds) == 9
  # Chi-squared with 8 degrees of freedom exceeds 31.8 once in 10,000.
  assert ((counts - count / 9) ** 2 / (count / 9)).sum() < 31.8
  flipped = np.asarray(random_crop_flip(images, keys, padding=0, flip=True))
  share = (flipped[:, 0, 0, 0] == 3).mean()
  assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(count)


def test_keys_differ_by_position_half_and_seed():
  positions = np.array([0, 1, 2**32, 2**32 + 1, 2**33])
  data = [jax.random.key_data(_keys(positions, seed)) for seed in (0, 1)]
  assert len(np.unique(np.concatenate(data), axis=0)) == 10


@pytest.mark.parametrize('seed', [0, 7, 2**31 + 1, 2**32 - 1])
def test_a_seed_of_32_bits_gives_the_key_of_jax(seed):
  halves = jnp.array(position_halves(seed))
  for key in (seed_key(seed), jax.jit(seed_key)(halves)):
    assert jnp.all(key == jax.random.key(seed))


def test_a_seed_of_64_bits_gives_the_key_of_jax_with_64_bits():
  for seed in (2**32, 2**40 + 3, 2**63 + 3, 2**64 - 1):
    with jax.enable_x64(True):
      expected = jax.random.key_data(jax.random.key(np.uint64(seed)))
    halves = jnp.array(position_halves(seed))
    for key in (seed_key(seed), jax.jit(seed_key)(halves)):
      np.testing.assert_array_equal(jax.random.key_data(key), expected)


@pytest.mark.parametrize('seed', [-1, 2**64])
def test_a_seed_of_more_bits_is_refused(seed):
  with pytest.raises(ValueError, match='give integers'):
    seed_key(seed)


@pytest.mark.parametrize('position', [0, 2**32 - 1, 2**32, 2**63 - 1])
def test_halves_restore_the_position(position):
  high, low = position_halves(position)
  assert high.dtype == low.dtype == np.uint32
  assert int(high) * 2**32 + int(low) == position


def test_halves_refuse_negative_positions():
  with pytest.raises(ValueError, match='>= 0'):
    position_halves(np.array([3, -1]))


def test_to_float_standardises():
  images = _images(4)
  mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.25, 1.0])
  expected = (np.asarray(images) / 255 - mean) / std
  with jax.numpy_rank_promotion('raise'):
    found = jax.jit(to_float)(images, mean, std)
    same = to_float(jnp.asarray(images / 255, jnp.float32), mean, std)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(same, expected, rtol=1e-5, atol=1e-6)


def test_new_keys_do_not_compile_again():
  traced = []

  def body(images, keys):
    traced.append(images.shape)
    return random_crop_flip(images, keys, padding=1, flip=True)

  augment = jax.jit(body)
  for start in (0, 8, 2**40):
    augment(_images(8), _keys(np.arange(start, start + 8)))
  assert len(traced) == 1


def test_errors():
  images, keys = _images(2), _keys(np.arange(2))
  with pytest.raises(ValueError, match='padding=-1'):
    random_crop_flip(images, keys, padding=-1, flip=True)


@pytest.mark.parametrize('padding', [1, 4])
@pytest.mark.parametrize('shape', [(6, 9, 3), (5, 5, 1)])
def test_a_crop_is_the_same_by_either_way(shape, padding):
  """All places of it; a TPU selects what others slice."""
  height, width, _ = shape
  rng = np.random.default_rng(padding)
  places = np.argwhere(np.ones((2 * padding + 1, 2 * padding + 1)))
  padded = rng.integers(
    0,
    256,
    (len(places), height + 2 * padding, width + 2 * padding, shape[-1]),
    dtype=np.uint8,
  )
  slow = np.stack(
    [
      image[y : y + height, x : x + width]
      for image, (y, x) in zip(padded, places, strict=True)
    ]
  )
  for crop in (crop_by_slices, crop_by_selection):
    found = jax.jit(crop, static_argnums=2)(padded, places, padding)
    np.testing.assert_array_equal(found, slow)
