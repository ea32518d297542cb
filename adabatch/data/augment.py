"""Augmentation on the device, inside a compiled step.

The randomness of an example is keyed by (seed, position) alone, where position
is the example's place in the one order, so an example is augmented alike in
whatever batch and on whatever device it lands, and differently in each epoch.
"""

from __future__ import annotations

from functools import partial

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
    raise ValueError(f'{positions}: give integers >= 0 of 64 bits')
  words = given.astype(np.uint64)
  high = (words >> np.uint64(32)).astype(np.uint32)
  low = (words & np.uint64(0xFFFFFFFF)).astype(np.uint32)
  return high, low


def seed_key(seed: int | jax.Array) -> jax.Array:
  """The key of all 64 bits of a seed.

  `jax.random.key` takes the lower 32 alone, without 64-bit integers; this is
  the key that it makes with them, and below 2**32 both make the same.

  Args:
    seed: 0 <= seed < 2**64; or its halves, uint32 [2], which may be traced
      (`position_halves`).

  Raises:
    ValueError: if the seed is negative or has more bits.

  >>> jax.random.key_data(seed_key(2**32 + 5)).tolist()
  [1, 5]
  """
  high, low = position_halves(seed) if isinstance(seed, int) else seed
  words = jax.random.key_data(jax.random.key(low))
  return jax.random.wrap_key_data(words.at[::2].set(high))


def position_keys(
  seed_key: jax.Array, high: jax.typing.ArrayLike, low: jax.typing.ArrayLike
) -> jax.Array:
  """One random key for each position.

  Args:
    seed_key: a key (`seed_key`).
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
    # Both give the same. Of slices a TPU makes a loop over the images; for CPUs
    # selections are far slower.
    images = jax.lax.platform_dependent(
      padded,
      places,
      tpu=partial(crop_by_selection, padding=padding),
      default=partial(crop_by_slices, padding=padding),
    )
  if flip:
    mirrored = (words[:, 2] & 1).astype(bool).reshape(-1, 1, 1, 1)
    images = jnp.where(mirrored, images[:, :, ::-1], images)
  return images


def crop_by_slices(
  padded: jax.Array, places: jax.Array, padding: int
) -> jax.Array:
  """Images without 2 * padding rows and columns.

  Args:
    padded: [B, H, W, C].
    places: int32 [B, 2], the first row and column, in [0, 2 * padding].
    padding: on each side.
  """
  height, width, channels = padded.shape[1:]
  sides = height - 2 * padding, width - 2 * padding, channels

  def crop(image, place):
    return jax.lax.dynamic_slice(image, (place[0], place[1], 0), sides)

  return jax.vmap(crop)(padded, places)


def crop_by_selection(
  padded: jax.Array, places: jax.Array, padding: int
) -> jax.Array:
  """The same: of all places the one that is wanted, first by row."""
  cropped = padded
  for axis in (1, 2):
    size = padded.shape[axis] - 2 * padding
    place = places[:, axis - 1].reshape(-1, 1, 1, 1)
    shifted = [
      jax.lax.slice_in_dim(cropped, k, k + size, axis=axis)
      for k in range(2 * padding + 1)
    ]
    chosen = shifted[0]
    for k, candidate in enumerate(shifted[1:], 1):
      chosen = jnp.where(place == k, candidate, chosen)
    cropped = chosen
  return cropped


def stream_of(keys: jax.Array, number: int) -> jax.Array:
  """Keys of another use of the same positions; crops and flips have theirs.

  Args:
    keys: B keys (`position_keys`).
    number: of the use.
  """
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def random_erasing(
  images: jax.Array, keys: jax.Array, *, probability: float
) -> jax.Array:
  """Fills a rectangle with 0, which in standardised images is the mean.

  Its area is a share of the image in [0.02, 0.4], the ratio of its sides in
  [0.3, 1 / 0.3] with an even logarithm; sides are rounded to pixels and no
  longer than those of the image, and it lies anywhere within it.

  Args:
    images: [B, H, W, C], standardised.
    keys: B keys (`position_keys`).
    probability: that an image has one, in [0, 1]; static.

  Returns:
    [B, H, W, C]; row b depends on images[b] and keys[b] only.

  Source: Zhong et al. (2020), Random erasing data augmentation.

  >>> keys = position_keys(jax.random.key(0), *position_halves(np.arange(2)))
  >>> erased = random_erasing(jnp.ones((2, 9, 9, 1)), keys, probability=1.0)
  >>> bool((erased == 0).any((1, 2, 3)).all())
  True
  """
  sides = jnp.array(images.shape[1:3], jnp.float32)

  def mask(key):
    share, ratio, top, left, whether = jax.random.uniform(key, (5,))
    area = (0.02 + 0.38 * share) * sides[0] * sides[1]
    root = 0.3 ** (jnp.array([0.5, -0.5]) * (2 * ratio - 1))
    size = jnp.clip(jnp.round(jnp.sqrt(area) * root), 1, sides)
    start = jnp.floor(jnp.array([top, left]) * (sides - size + 1))
    inside = [
      (jnp.arange(n) >= begin) & (jnp.arange(n) < begin + length)
      for n, begin, length in zip(images.shape[1:3], start, size, strict=True)
    ]
    return inside[0][:, None] & inside[1][None] & (whether < probability)

  erased = jax.vmap(mask)(keys)[..., None]
  return jnp.where(erased, jnp.zeros((), images.dtype), images)


def draw_partners(
  keys: jax.Array, *, alpha: float, num_examples: int
) -> tuple[jax.Array, jax.Array]:
  """Which example each is mixed with, and how much of it is itself.

  Drawn from the whole training split by the position, so that an example is
  mixed alike in batches of any size.

  Args:
    keys: B keys (`position_keys`).
    alpha: of the Beta(alpha, alpha) that shares are drawn from, above 0.
    num_examples: of the split.

  Returns:
    Indices int32 [B], and the example's own share float32 [B] in [0, 1].

  Source: Zhang et al. (2018), mixup, arXiv:1710.09412; there partners are those
  of one batch.

  >>> keys = position_keys(jax.random.key(0), *position_halves(np.arange(3)))
  >>> partners, shares = draw_partners(keys, alpha=0.2, num_examples=10)
  >>> partners.shape, shares.shape
  ((3,), (3,))
  """

  def one(key):
    partner, share = jax.random.split(key)
    return (
      jax.random.randint(partner, (), 0, num_examples),
      jax.random.beta(share, alpha, alpha),
    )

  return jax.vmap(one)(keys)
