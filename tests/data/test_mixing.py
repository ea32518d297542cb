"""RandAugment, random erasing and mixup, against slow twins; by position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from adabatch import data
from adabatch.data import operations
from adabatch.models import tasks
from adabatch.train.inputs import Augmentation, make_load

MAGNITUDES = (0.0, 3.0, 6.0, 10.0)


def pictures(channels, count=1):
  rng = np.random.default_rng(channels)
  shape = (count, 11, 9, channels)
  images = rng.integers(30, 220, shape, np.uint8)
  images[:, 0, 0], images[:, 5, 5] = 0, 255
  images[:, :4] //= 2
  return images


def keys_of(positions):
  halves = data.position_halves(np.asarray(positions))
  return data.position_keys(jax.random.key(3), *halves)


def enhanced(kind):
  return lambda image, m, sign: kind(image).enhance(1 + sign * 0.9 * m / 10)


def moved(axis):
  def move(image, m, sign):
    array = np.asarray(image)
    by = round(0.45 * array.shape[axis] * m / 10) * int(sign)
    wide = np.zeros_like(array)
    to, start = slice(max(-by, 0), None), slice(max(by, 0), None)
    stop = slice(None, array.shape[axis] - abs(by))
    source = np.moveaxis(array, axis, 0)[start][stop]
    np.moveaxis(wide, axis, 0)[to][stop] = source
    return Image.fromarray(wide)

  return move


TWINS = {
  'identity': lambda image, m, sign: image,
  'autocontrast': lambda image, m, sign: ImageOps.autocontrast(image),
  'posterize': lambda image, m, sign: ImageOps.posterize(
    image, 8 - round(4 * m / 10)
  ),
  'solarize': lambda image, m, sign: ImageOps.solarize(
    image, 255 * (1 - m / 10)
  ),
  'color': enhanced(ImageEnhance.Color),
  'contrast': enhanced(ImageEnhance.Contrast),
  'brightness': enhanced(ImageEnhance.Brightness),
  'sharpness': enhanced(ImageEnhance.Sharpness),
  'translate_x': moved(1),
  'translate_y': moved(0),
}


@pytest.mark.parametrize('channels', [1, 3])
def test_operations_are_those_of_pil(channels):
  assert TWINS.keys() == operations.OPERATIONS.keys()
  (array,) = pictures(channels)
  image = Image.fromarray(array[..., 0] if channels == 1 else array)
  for name, twin in TWINS.items():
    for magnitude in MAGNITUDES:
      for sign in (-1.0, 1.0):
        draw = operations.Draw(magnitude / 10, jnp.float32(sign))
        found = operations.OPERATIONS[name](jnp.asarray(array), draw)
        assert found.dtype == jnp.uint8
        expected = np.asarray(twin(image, magnitude, sign), np.int32)
        difference = np.abs(expected.reshape(array.shape) - np.int32(found))
        assert difference.max() <= 1, (name, magnitude, sign)
        assert (difference > 0).mean() < 0.05, (name, magnitude, sign)


def test_each_image_is_changed_by_its_own_key():
  images = jnp.asarray(np.repeat(pictures(3), 64, 0))
  keys = keys_of(np.arange(64))
  change = jax.jit(
    lambda x, k: data.randaugment(x, k, number=1, magnitude=10.0)
  )
  found = change(images, keys)
  # Operations of which five go two ways; posterizing to 4 bits goes one.
  kinds = np.unique(np.asarray(found).reshape(64, -1), axis=0)
  assert 12 <= len(kinds) <= 16
  np.testing.assert_array_equal(change(images[::2], keys[::2]), found[::2])


@pytest.mark.parametrize(
  ('images', 'number', 'magnitude', 'message'),
  [
    (np.zeros((1, 4, 4, 3), np.float32), 1, 5, 'float32 of 3 channels'),
    (np.zeros((1, 4, 4, 2), np.uint8), 1, 5, 'uint8 of 2 channels'),
    (np.zeros((1, 4, 4, 1), np.uint8), 0, 5, 'number=0'),
    (np.zeros((1, 4, 4, 1), np.uint8), 1, 10.5, 'magnitude=10.5'),
  ],
)
def test_what_it_is_not_for(images, number, magnitude, message):
  with pytest.raises(ValueError, match=message):
    data.randaugment(
      jnp.asarray(images), keys_of([0]), number=number, magnitude=magnitude
    )


def test_a_rectangle_is_erased():
  images = jnp.ones((4000, 20, 30, 1))
  erase = jax.jit(lambda x, k: data.random_erasing(x, k, probability=0.25))
  keys = keys_of(np.arange(4000))
  found = np.asarray(erase(images, keys))[..., 0]
  changed = (found == 0).any((1, 2))
  assert changed.mean() == pytest.approx(0.25, abs=0.03)
  areas, ratios, tops = [], [], []
  for image in found[changed]:
    rows, columns = (np.flatnonzero((image == 0).any(a)) for a in (1, 0))
    box = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert not box.any()  # a whole rectangle
    areas.append(box.size / image.size)
    ratios.append(box.shape[0] / box.shape[1])
    if box.shape[0] < 20:
      tops.append(rows[0] / (20 - box.shape[0]))
  assert 0.01 < min(areas) < 0.04
  assert 0.36 < max(areas) < 0.44
  assert np.mean(areas) == pytest.approx(0.2, abs=0.02)
  assert np.mean(np.log(ratios)) == pytest.approx(0, abs=0.15)
  assert np.mean(tops) == pytest.approx(0.5, abs=0.05)
  np.testing.assert_array_equal(
    erase(images[:7], keys[100:107])[..., 0], found[100:107]
  )


def test_partners_come_from_the_whole_split():
  draw = jax.jit(lambda k: data.draw_partners(k, alpha=0.5, num_examples=5))
  partners, shares = draw(keys_of(np.arange(3000)))
  assert np.bincount(partners, minlength=5).min() > 500
  assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
  # Of Beta(a, a): 1 / (4 (2 a + 1)).
  assert np.var(shares) == pytest.approx(0.125, abs=0.01)


def test_examples_are_mixed_as_they_are_augmented():
  images = pictures(1, 10)
  arrays = {'image': jnp.asarray(images), 'label': jnp.arange(10)}
  statistics = np.array([0.4], np.float32), np.array([0.2], np.float32)
  indices, positions = np.array([3, 1, 4, 1]), np.array([7, 2**32 + 1, 9, 2])
  halves = data.position_halves(positions)
  made = Augmentation(padding=2, flip=True, mixup=0.5)
  load = jax.jit(make_load(statistics, made, seed=3))
  batch = load(arrays, indices, halves)
  keys = keys_of(positions)
  draw = jax.jit(lambda k: data.draw_partners(k, alpha=0.5, num_examples=10))
  partners, shares = draw(data.stream_of(keys, 2))

  def floats(rows, keys):
    cut = data.random_crop_flip(
      arrays['image'][rows], keys, padding=2, flip=True
    )
    return data.to_float(cut, *statistics)

  one = floats(indices, keys)
  other = floats(partners, data.stream_of(keys, 3))
  weight = np.asarray(shares).reshape(-1, 1, 1, 1)
  np.testing.assert_allclose(
    batch['image'], weight * one + (1 - weight) * other, rtol=1e-5, atol=1e-6
  )
  task, logits = tasks.classification(0.1), jnp.eye(4, 10)
  losses = tasks.training_loss(task, logits, batch)
  for i in range(4):
    both = [
      task.loss(logits[i : i + 1], {'label': jnp.array([label])})[0]
      for label in (indices[i], int(partners[i]))
    ]
    expected = shares[i] * both[0] + (1 - shares[i]) * both[1]
    assert float(losses[i]) == pytest.approx(float(expected), rel=1e-5)
  # Evaluation is of the examples as they are.
  assert make_load(statistics, made)(arrays, indices, None).keys() == {
    'image',
    'label',
  }
