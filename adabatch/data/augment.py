"""Augmentation on the device, inside a compiled step.

The randomness of an example is keyed by (seed, position) alone, where position
is the example's place in the one order, so an example is augmented alike in
whatever batch and on whatever device it lands, and differently in each epoch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def position_halves(positions: int | np.ndarray) -> tuple:
  """Splits positions into two 32-bit halves; on the host.

  JAX has no 64-bit integers unless it is told to, and positions outgrow 32 bits
  on long runs.

  Args:
    positions: an int, or integers of any shape; 0 <= position < 2**63.

  Returns:
    (high, low), uint32 of the same shape: position = high * 2**32 + low.

  Raises:
    ValueError: if a position is negative or no integer.

  >>> high, low = position_halves(2**32 + 5)
  >>> int(high), int(low)
  (1, 5)
  """
  given = np.asarray(positions)
  if given.dtype.kind not in 'iu' or (given.size and given.min() < 0):
    raise ValueError(f'positions {positions}: give integers >= 0')
  words = given.astype(np.uint64)
  high = (words >> np.uint64(32)).astype(np.uint32)
  low = (words & np.uint64(0xFFFFFFFF)).astype(np.uint32)
  return high, low


def position_keys(
  seed_key: jax.Array, high: jax.typing.ArrayLike, low: jax.typing.ArrayLike
) -> jax.Array:
  """One random key for each position.

  Args:
    seed_key: a key, `jax.random.key(seed)`.
    high: uint32 [B], the upper halves of the positions (`position_halves`).
    low: uint32 [B], the lower halves.

  Returns:
    B keys, each from the seed and its own position alone.

  >>> keys = position_keys(jax.random.key(0), *position_halves(np.arange(3)))
  >>> keys.shape
  (3,)
  """

  def fold(high, low):
    return jax.random.fold_in(jax.random.fold_in(seed_key, high), low)

  return jax.vmap(fold)(jnp.asarray(high), jnp.asarray(low))


def to_float(
  images: jax.Array, mean: jax.typing.ArrayLike, std: jax.typing.ArrayLike
) -> jax.Array:
  """Standardised inputs: `(x - mean) / std`, x = images / 255 for uint8.

  Args:
    images: uint8 [B, H, W, C], or float [B, ..., C], which is not divided.
    mean: float32 [C] (`channel_statistics`).
    std: float32 [C], not 0.

  Returns:
    float32, of the same shape.

  >>> to_float(jnp.full((1, 1, 1, 1), 255, jnp.uint8), [0.5], [0.25]).tolist()
  [[[[2.0]]]]
  """
  scaled = images.astype(jnp.float32)
  if images.dtype == jnp.uint8:
    scaled = scaled / 255
  # Reshaped so that it also holds where implicit rank promotion is an error.
  last = *[1] * (images.ndim - 1), -1
  mean = jnp.asarray(mean, jnp.float32).reshape(last)
  std = jnp.asarray(std, jnp.float32).reshape(last)
  return (scaled - mean) / std


def random_crop_flip(
  images: jax.Array, keys: jax.Array, *, padding: int, flip: bool
) -> jax.Array:
  """Pads, crops back to the old size at a random place, and mirrors half.

  Meant for raw images, before `to_float`: padding is then black, and bytes are
  cheaper to move than floats.

  Args:
    images: [B, H, W, C], any dtype.
    keys: B keys (`position_keys`).
    padding: pixels of zeros added on each of the four sides, >= 0; static. The
      crop's place is one of (2 * padding + 1)**2, all equally likely.
    flip: whether to mirror left and right with probability 1/2; static.

  Returns:
    [B, H, W, C], same dtype; row b depends on images[b] and keys[b] only.

  Raises:
    ValueError: if padding < 0.

  >>> keys = position_keys(jax.random.key(0), *position_halves(np.arange(2)))
  >>> images = jnp.ones((2, 4, 4, 3), jnp.uint8)
  >>> random_crop_flip(images, keys, padding=1, flip=True).shape
  (2, 4, 4, 3)
  """
  if padding < 0:
    raise ValueError(f'padding={padding}: give padding >= 0')
  # Three words for each image whatever is switched on, so that the crop does
  # not change when flips are turned off. A remainder of 2**32 is biased by less
  # than 1e-7 here.
  words = jax.vmap(lambda key: jax.random.bits(key, (3,), jnp.uint32))(keys)
  if padding:
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(images, sides)
    places = (words[:, :2] % jnp.uint32(2 * padding + 1)).astype(jnp.int32)

    def crop(image, place):
      return jax.lax.dynamic_slice(
        image, (place[0], place[1], 0), images.shape[1:]
      )

    images = jax.vmap(crop)(padded, places)
  if flip:
    mirrored = (words[:, 2] & 1).astype(bool).reshape(-1, 1, 1, 1)
    images = jnp.where(mirrored, images[:, :, ::-1], images)
  return images
