"""Decoding the part of an image that a crop shows, and nothing below it.

Three quarters of the time that a JPEG takes go into its entropy-coded data,
which can only be read from the top. So the height that stands in the header is
lowered to the bottom of the crop, and the decoder stops there; what it
complains about then, the bytes that are left over, is what was wanted. Rows of
the crop are the same as in the whole image, bit for bit.

All randomness is a function of 64-bit words that are keyed by (seed, position)
alone (`position_words`), where position is the example's place in the one
order.
"""

from __future__ import annotations

import contextlib
import math
import re
from typing import NamedTuple

import numpy as np

from adabatch.data import image_formats
from adabatch.data.image_formats import CorruptRecord

# simplejpeg's colour spaces, by number of channels.
_COLORSPACES = {1: 'GRAY', 3: 'RGB'}

# How far the chroma of a row reaches into the rows below it, rounded up.
_CONTEXT_ROWS = 2

# A header that asks for more than this is damaged: three bytes each must fit.
_MAX_PIXELS = 2**28

# The largest first, as the decoder can divide both sides of an image.
_FACTORS = (8, 4, 2)

# Bytes between the last row and the end of the image. The decoder reports its
# first complaint, so it had none about the rows.
_LEFT_OVER = re.compile(
  r'Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9'
)

# Markers that start a frame, without those that only share their range.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = frozenset({0xC0, 0xC1})
_SCAN = 0xDA
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})

# Second word of the Philox key. `order.py` has the epoch there, which never
# gets this far.
_CROP_STREAM = 2**64 - 1
_TRIES = 10
_WORDS = 2 + 4 * _TRIES


class Box(NamedTuple):
  """A rectangle of pixels: rows [top, top + height), columns alike."""

  top: int
  left: int
  height: int
  width: int


class _Frame(NamedTuple):
  """What a JPEG's frame header says, and the offset of its height field."""

  sequential: bool
  components: int
  height: int
  width: int
  offset: int


def image_size(encoded: bytes) -> tuple[int, int]:
  """Height and width of an encoded image, from its header.

  Args:
    encoded: JPEG, PNG or whatever else `image_formats.decode` reads.

  Returns:
    (height, width) in pixels.

  Raises:
    CorruptRecord: if there is no such header.

  >>> import simplejpeg
  >>> image_size(simplejpeg.encode_jpeg(np.zeros((5, 7, 3), np.uint8)))
  (5, 7)
  """
  frame = _frame(encoded)
  if frame:
    return frame.height, frame.width
  with image_formats.opened(encoded) as opened:
    return opened.height, opened.width  # Pillow refuses empty ones


def decode(encoded: bytes, channels: int) -> np.ndarray:
  """A whole image.

  Args:
    encoded: JPEG, PNG or whatever else `image_formats.decode` reads.
    channels: 1 (grey), 3 (RGB) or 4 (RGBA).

  Returns:
    uint8 [height, width, channels].

  Raises:
    CorruptRecord: if the bytes are damaged, cut off, or no image.

  >>> import simplejpeg
  >>> decode(simplejpeg.encode_jpeg(np.full((5, 7, 3), 9, np.uint8)), 1).shape
  (5, 7, 1)
  """
  frame = _frame(encoded)
  if frame and frame.components in (1, 3) and channels in _COLORSPACES:
    return _decode_jpeg(encoded, channels, frame.height, frame.width, 1)
  return image_formats.decode(encoded, channels)


def decode_crop(
  encoded: bytes,
  box: tuple[int, int, int, int],
  size: int,
  channels: int,
  *,
  flip: bool = False,
  out: np.ndarray | None = None,
) -> np.ndarray:
  """A rectangle of an image, resized to a square.

  Pixels are interpolated bilinearly (OpenCV's INTER_LINEAR). Where the
  rectangle is at least 2, 4 or 8 times as large as the square in both
  directions, the JPEG decoder itself averages so many pixels each way, and the
  rectangle is taken to the nearest of those; otherwise the result is that of
  decoding the whole image, cutting and resizing, bit for bit.

  Damage below the rectangle may go unseen.

  Args:
    encoded: JPEG, PNG or whatever else `image_formats.decode` reads.
    box: the rectangle (top, left, height, width) in pixels of the image.
    size: height and width of the result.
    channels: 1 (grey), 3 (RGB) or 4 (RGBA).
    flip: whether to mirror left and right.
    out: uint8 [size, size, channels], contiguous, to be filled; None for a new
      array.

  Returns:
    uint8 [size, size, channels]: `out`, where it was given.

  Raises:
    CorruptRecord: if the bytes are damaged, cut off, or no image.
    ValueError: if the box does not lie inside the image.

  >>> import simplejpeg
  >>> encoded = simplejpeg.encode_jpeg(np.full((40, 60, 3), 9, np.uint8))
  >>> decode_crop(encoded, Box(0, 10, 20, 30), size=8, channels=3).shape
  (8, 8, 3)
  """
  import cv2  # of an extra, which not every set needs

  frame = _frame(encoded)
  if frame and frame.components in (1, 3) and channels in _COLORSPACES:
    _check_inside(box, frame.height, frame.width)
    pixels = _jpeg_box(encoded, frame, box, size, channels)
  else:
    whole = decode(encoded, channels)
    _check_inside(box, *whole.shape[:2])
    top, left, height, width = box
    pixels = whole[top : top + height, left : left + width]
  if out is None:
    out = np.empty((size, size, channels), np.uint8)
  # OpenCV knows images of one channel without an axis for it.
  target = out[..., 0] if channels == 1 else out
  if pixels.shape[:2] == (size, size):
    out[:] = pixels.reshape(out.shape)
  else:
    cv2.resize(pixels, (size, size), target, interpolation=cv2.INTER_LINEAR)
  if flip:
    cv2.flip(target, 1, target)
  return out


def position_words(seed: int, position: int) -> list[int]:
  """Random 64-bit words for one position, the same on every machine.

  Args:
    seed: 0 <= seed < 2**64.
    position: the example's place in the one order, 0 <= position < 2**64.

  Returns:
    As many words as `random_resized_box` and `flips` look at.

  >>> position_words(0, 7) == position_words(0, 7) != position_words(0, 8)
  True
  """
  key = np.array([seed, _CROP_STREAM], np.uint64)
  # A generator counts upwards in the first word of its counter, so positions
  # in the second never run into each other.
  counter = np.array([0, position, 0, 0], np.uint64)
  return np.random.Philox(key=key, counter=counter).random_raw(_WORDS).tolist()


def flips(words: list[int]) -> bool:
  """Whether to mirror the image, with probability 1/2.

  >>> [flips(position_words(0, position)) for position in range(4)]
  [False, False, True, False]
  """
  return bool(words[0] >> 63)


def random_resized_box(
  height: int,
  width: int,
  words: list[int],
  *,
  min_area: float = 0.08,
  max_area: float = 1.0,
  min_ratio: float = 3 / 4,
  max_ratio: float = 4 / 3,
) -> Box:
  """The rectangle of Inception's random crop.

  Its share of the image's area is uniform in [min_area, max_area], the
  logarithm of its width / height uniform between the two ratios, its place
  uniform. What does not fit is drawn again, ten times at most; then the
  largest rectangle in the middle with an allowed ratio is taken.

  Reference: Szegedy et al., Going Deeper with Convolutions, 2015, section 6,
  as in torchvision's RandomResizedCrop.

  Args:
    height: of the image, in pixels.
    width: of the image, in pixels.
    words: random words (`position_words`).
    min_area: smallest share of the area, in (0, max_area].
    max_area: largest share of the area, at most 1.
    min_ratio: smallest width / height.
    max_ratio: largest width / height.

  Returns:
    A rectangle inside the image.

  >>> random_resized_box(100, 200, position_words(seed=0, position=0))
  Box(top=0, left=34, height=100, width=105)
  """
  low, high = math.log(min_ratio), math.log(max_ratio)
  for first in range(2, len(words), 4):
    area = min_area + _unit(words[first]) * (max_area - min_area)
    ratio = math.exp(low + _unit(words[first + 1]) * (high - low))
    box_width = round(math.sqrt(area * height * width * ratio))
    box_height = round(math.sqrt(area * height * width / ratio))
    if 0 < box_height <= height and 0 < box_width <= width:
      top = _below(words[first + 2], height - box_height + 1)
      left = _below(words[first + 3], width - box_width + 1)
      return Box(top, left, box_height, box_width)
  box_height = min(height, max(1, round(width / min_ratio)))
  box_width = min(width, max(1, round(height * max_ratio)))
  return _centre(height, width, box_height, box_width)


def central_box(height: int, width: int, resize: int, crop: int) -> Box:
  """The square that is left of an image resized, then cut in the middle.

  Args:
    height: of the image, in pixels.
    width: of the image, in pixels.
    resize: the shorter side would be resized to this many pixels,
    crop: and a square of so many cut out, 1 <= crop <= resize.

  Returns:
    The square in pixels of the image: its side is crop / resize of the shorter
    side.

  Raises:
    ValueError: unless 1 <= crop <= resize.

  >>> central_box(512, 600, resize=256, crop=224)
  Box(top=32, left=76, height=448, width=448)
  """
  if not 1 <= crop <= resize:
    raise ValueError(f'crop={crop} of resize={resize}: 1 <= crop <= resize')
  side = max(1, round(min(height, width) * crop / resize))
  return _centre(height, width, side, side)


def _centre(height: int, width: int, box_height: int, box_width: int) -> Box:
  top, left = (height - box_height) // 2, (width - box_width) // 2
  return Box(top, left, box_height, box_width)


def _unit(word: int) -> float:
  """Uniform in [0, 1), exactly: the upper 53 bits."""
  return (word >> 11) * 2.0**-53


def _below(word: int, count: int) -> int:
  """Uniform in [0, count), with a bias of count / 2**64."""
  return (word * count) >> 64


def _check_inside(box: tuple[int, ...], height: int, width: int) -> None:
  top, left, box_height, box_width = box
  fits_rows = 0 <= top < top + box_height <= height
  if not (fits_rows and 0 <= left < left + box_width <= width):
    raise ValueError(f'box {tuple(box)} is not inside {height}x{width} pixels')


def _frame(encoded: bytes) -> _Frame | None:
  """The frame header of a JPEG; None if this is no JPEG, or has none.

  Raises:
    CorruptRecord: if the size it gives cannot be true.
  """
  if encoded[:2] != b'\xff\xd8':
    return None
  at = 2
  while at + 9 < len(encoded):
    if encoded[at] != 0xFF:
      return None
    marker = encoded[at + 1]
    if marker == 0xFF:  # a fill byte
      at += 1
    elif marker in _ALONE:
      at += 2
    elif marker in _FRAMES:
      height = int.from_bytes(encoded[at + 5 : at + 7], 'big')
      width = int.from_bytes(encoded[at + 7 : at + 9], 'big')
      if not 0 < height * width <= _MAX_PIXELS:
        raise CorruptRecord(f'damaged JPEG: {height}x{width} pixels')
      sequential = marker in _SEQUENTIAL
      return _Frame(sequential, encoded[at + 9], height, width, at + 5)
    elif marker == _SCAN:
      return None
    else:
      at += 2 + int.from_bytes(encoded[at + 2 : at + 4], 'big')
  return None


def _jpeg_box(
  encoded: bytes, frame: _Frame, box: tuple[int, ...], size: int, channels: int
) -> np.ndarray:
  """The box of a JPEG with one or three components, or one times smaller."""
  top, left, height, width = box
  factor = next((f for f in _FACTORS if f * size <= min(height, width)), 1)
  rows = top + height + factor * _CONTEXT_ROWS
  pixels = None
  if frame.sequential and rows < frame.height:
    shortened = bytearray(encoded)
    shortened[frame.offset : frame.offset + 2] = rows.to_bytes(2, 'big')
    # What is not clear now, such as restart markers below, the whole will show.
    with contextlib.suppress(CorruptRecord):
      pixels = _decode_jpeg(shortened, channels, rows, frame.width, factor)
  if pixels is None:
    pixels = _decode_jpeg(encoded, channels, frame.height, frame.width, factor)
  bottom, right = (
    round((top + height) / factor),
    round((left + width) / factor),
  )
  return pixels[round(top / factor) : bottom, round(left / factor) : right]


def _decode_jpeg(
  encoded: bytes | bytearray,
  channels: int,
  height: int,
  width: int,
  factor: int,
) -> np.ndarray:
  """A JPEG of one or three components, each side divided by `factor`."""
  import simplejpeg  # of an extra, which not every set needs

  height, width = -(-height // factor), -(-width // factor)
  pixels = np.empty((height, width, channels), np.uint8)
  try:
    simplejpeg.decode_jpeg(
      encoded,
      _COLORSPACES[channels],
      min_height=height,
      min_width=width,
      min_factor=factor,
      buffer=pixels,
    )
  except ValueError as error:
    if not _LEFT_OVER.match(str(error)):
      raise CorruptRecord(f'damaged JPEG: {_line(error)}') from None
  return pixels


def _line(error: Exception) -> str:
  """The first line of a library's message."""
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__
