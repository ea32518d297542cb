"""RandAugment of images on the device, without what needs interpolation.

Cubuk et al. (2020), RandAugment, arXiv:1909.13719. Of its fourteen operations
ten are here: identity, autocontrast, posterize, solarize, color, contrast,
brightness, sharpness, translate_x and translate_y. Equalize (a histogram of
each image), rotate and both shears (a gather of single pixels, which is slow on
a TPU) are left out.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

MOST = 10  # the largest magnitude


class Draw(NamedTuple):
  """Of one operation on one image.

  Attributes:
    magnitude: M / 10, in [0, 1].
    sign: -1.0 or 1.0.
  """

  magnitude: float
  sign: jax.Array


def grey(image: jax.Array) -> jax.Array:
  """Luma of ITU-R 601, as PIL has it: float32 [H, W, 1] of whole numbers."""
  if image.shape[-1] == 1:
    return image.astype(jnp.float32)
  weights = jnp.array([19595, 38470, 7471], jnp.int32)
  total = jnp.sum(image.astype(jnp.int32) * weights, -1, keepdims=True)
  return ((total + 0x8000) >> 16).astype(jnp.float32)


def _blend(image: jax.Array, other: jax.Array, draw: Draw) -> jax.Array:
  """other + f (image - other), f = 1 +- 0.9 M / 10, as PIL.ImageEnhance."""
  factor = 1 + draw.sign * 0.9 * draw.magnitude
  mixed = other + factor * (image.astype(jnp.float32) - other)
  return jnp.clip(mixed, 0, 255).astype(jnp.uint8)


def brightness(image: jax.Array, draw: Draw) -> jax.Array:
  """Blends with black."""
  return _blend(image, jnp.zeros((), jnp.float32), draw)


def color(image: jax.Array, draw: Draw) -> jax.Array:
  """Blends with the grey image."""
  return _blend(image, grey(image), draw)


def contrast(image: jax.Array, draw: Draw) -> jax.Array:
  """Blends with the mean of the grey image, rounded."""
  return _blend(image, jnp.floor(jnp.mean(grey(image)) + 0.5), draw)


def sharpness(image: jax.Array, draw: Draw) -> jax.Array:
  """Blends with a mean of 3 x 3 pixels, the middle one counting five times.

  Pixels of the edge stay as they are.
  """
  values = image.astype(jnp.float32)
  height, width = image.shape[:2]
  if height < 3 or width < 3:
    return image
  total = 4 * values[1:-1, 1:-1]
  for row in range(3):
    for column in range(3):
      total += values[row : height - 2 + row, column : width - 2 + column]
  smooth = values.at[1:-1, 1:-1].set(jnp.floor(total / 13 + 0.5))
  return _blend(image, smooth, draw)


def posterize(image: jax.Array, draw: Draw) -> jax.Array:
  """Keeps the upper 8 - round(4 M / 10) bits."""
  cleared = round(4 * draw.magnitude)
  return image & jnp.uint8(256 - 2**cleared)


def solarize(image: jax.Array, draw: Draw) -> jax.Array:
  """Inverts pixels from 255 (1 - M / 10) on."""
  threshold = 255 * (1 - draw.magnitude)
  return jnp.where(image < threshold, image, 255 - image)


def autocontrast(image: jax.Array, draw: Draw) -> jax.Array:
  """Stretches each channel to 0 and 255; one of a single value stays."""
  del draw
  values = image.astype(jnp.float32)
  low, high = jnp.min(values, (0, 1)), jnp.max(values, (0, 1))
  scale = 255 / jnp.maximum(high - low, 1)
  stretched = jnp.clip(values * scale - low * scale, 0, 255).astype(jnp.uint8)
  return jnp.where(high > low, stretched, image)


def _translate(image: jax.Array, draw: Draw, axis: int) -> jax.Array:
  """Moves by 0.45 M / 10 of a side, rounded; what is bared is black."""
  size = image.shape[axis]
  most = round(0.45 * size * draw.magnitude)
  padded = jnp.pad(
    image, [(most, most) if a == axis else (0, 0) for a in range(image.ndim)]
  )
  start = most + draw.sign.astype(jnp.int32) * most
  return jax.lax.dynamic_slice_in_dim(padded, start, size, axis)


OPERATIONS: dict[str, Callable[[jax.Array, Draw], jax.Array]] = {
  'identity': lambda image, draw: image,
  'autocontrast': autocontrast,
  'posterize': posterize,
  'solarize': solarize,
  'color': color,
  'contrast': contrast,
  'brightness': brightness,
  'sharpness': sharpness,
  'translate_x': lambda image, draw: _translate(image, draw, 1),
  'translate_y': lambda image, draw: _translate(image, draw, 0),
}


def randaugment(
  images: jax.Array, keys: jax.Array, *, number: int, magnitude: float
) -> jax.Array:
  """So many operations on each image, one after the other, each drawn anew.

  Args:
    images: uint8 [B, H, W, C], C = 1 or 3.
    keys: B keys (`position_keys`).
    number: N, operations on each image; static.
    magnitude: M in [0, 10], of all of them; static. Whether an operation goes
      up or down (to the left or the right) is drawn.

  Returns:
    uint8 [B, H, W, C]; row b depends on images[b] and keys[b] only.

  Raises:
    ValueError: for other images, or numbers outside their range.

  >>> keys = jax.vmap(jax.random.key)(jnp.arange(2))
  >>> images = jnp.full((2, 8, 8, 3), 100, jnp.uint8)
  >>> randaugment(images, keys, number=2, magnitude=9).shape
  (2, 8, 8, 3)
  """
  if images.dtype != jnp.uint8 or images.shape[-1] not in (1, 3):
    raise ValueError(
      f'images are {images.dtype} of {images.shape[-1]} channels: give uint8 '
      'of 1 or 3'
    )
  if number < 1 or not 0 <= magnitude <= MOST:
    raise ValueError(
      f'number={number}, magnitude={magnitude}: give a number of operations '
      f'from 1 on and a magnitude in [0, {MOST}]'
    )
  branches = list(OPERATIONS.values())

  def one(image: jax.Array, key: jax.Array) -> jax.Array:
    words = jax.random.bits(key, (number, 2), jnp.uint32)
    for which, sign in words:
      draw = Draw(magnitude / MOST, jnp.where(sign & 1, 1.0, -1.0))
      image = jax.lax.switch(
        (which % jnp.uint32(len(branches))).astype(jnp.int32),
        [lambda x, make=make, draw=draw: make(x, draw) for make in branches],
        image,
      )
    return image

  return jax.vmap(one)(images, keys)
