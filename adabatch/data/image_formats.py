"""Whole images of every format and mode, as TensorFlow decodes them.

A data set says how many channels of 8 bits its images have; what is stored may
have another depth, a palette, transparency or inks. Each combination is either
decoded as `tf.io.decode_image(encoded, channels, expand_animations=False)` does
(JPEGs: with the accurate one of its two DCTs), bit for bit, or refused by name.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

# Pillow's modes by number of channels.
_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}

# What becomes so many channels, for messages.
_ALLOWED = {
  1: 'grey or colour JPEG, PNG (colour of 8 bits, without a gamma)',
  3: 'JPEG, PNG, uncompressed BMP of 24, 32 or 8 grey bits, whole GIF, still '
  'WebP without transparency',
  4: 'PNG (of 16 bits without a transparent colour, else of 8), uncompressed '
  'BMP of 24 or 8 grey bits, still WebP with transparency',
}

# libpng's weights of red, green and blue in a grey, over 2**15.
_GREY = np.array([9798, 19235, 3735])


class CorruptRecord(ValueError):
  """A record that holds no usable image; the message is one line."""


class UnsupportedImage(CorruptRecord):
  """An image of a kind that does not become what the data set declares."""


def opened(encoded: bytes) -> Any:
  """The image, opened with Pillow but not decoded.

  Raises:
    CorruptRecord: if the bytes are no image.
    UnsupportedImage: if they are one of a format that TensorFlow does not read.
  """
  from PIL import Image  # seldom needed

  with _pillow_errors():
    image = Image.open(io.BytesIO(encoded))
  if image.format not in _DECODERS:
    raise UnsupportedImage(
      f'{_kind(image, encoded)} is not read: prepare the data set with '
      f'{", ".join(sorted(_DECODERS))}'
    )
  return image


def decode(encoded: bytes, channels: int) -> np.ndarray:
  """A whole image.

  Args:
    encoded: JPEG, PNG, BMP, GIF (the first frame) or WebP.
    channels: 1 (grey), 3 (RGB) or 4 (RGBA).

  Returns:
    uint8 [height, width, channels]. Of 16 bits the upper 8 are kept, palettes
    are looked up, and transparency that is not asked for is left out.

  Raises:
    CorruptRecord: if the bytes are damaged, cut off, or no image.
    UnsupportedImage: if the image does not become so many channels.

  >>> from PIL import Image
  >>> file = io.BytesIO()
  >>> Image.fromarray(np.full((5, 7), 0x1234, np.uint16)).save(file, 'PNG')
  >>> hex(decode(file.getvalue(), channels=1)[0, 0, 0])
  '0x12'
  """
  with opened(encoded) as image, _pillow_errors():
    pixels = _DECODERS[image.format](image, encoded, channels)
    if pixels is None:
      raise UnsupportedImage(
        f'{_kind(image, encoded)} does not become {channels} '
        f'channel{"s" * (channels > 1)}: allowed are {_ALLOWED[channels]}'
      )
  return pixels.reshape(*pixels.shape[:2], channels)


# Each gives the pixels, uint8 [H, W] or [H, W, C], or None to refuse.


def _jpeg(image: Any, encoded: bytes, channels: int) -> np.ndarray | None:
  del encoded
  if (image.mode, channels) in (('L', 1), ('L', 3), ('RGB', 3)):
    return _converted(image, channels)
  if image.mode != 'CMYK' or channels != 3:
    return None
  # Pillow takes all for inverted, as Adobe's programs store them.
  ink = np.asarray(image).astype(np.int32)
  light = 255 - ink if 'adobe' in image.info else ink
  return (light[..., :3] * light[..., 3:] // 255).astype(np.uint8)


def _png(image: Any, encoded: bytes, channels: int) -> np.ndarray | None:
  if encoded[12:16] != b'IHDR':
    raise CorruptRecord('damaged PNG: it does not start with its header')
  depth, kind = encoded[24], encoded[25]  # kind: 1 palette, 2 colour, 4 alpha
  keyed = 'transparency' in image.info
  if channels == 4 and (depth < 8 or (depth == 16 and keyed)):
    return None
  if channels == 1 and kind & 2:
    # Of 16 bits Pillow has lost the lower 8, and a gamma makes libpng average
    # in another space.
    if depth == 16 or {'gamma', 'srgb', 'icc_profile'} & image.info.keys():
      return None
    return ((_converted(image, 3) @ _GREY) >> 15).astype(np.uint8)
  if depth == 16 and kind == 0:
    grey = (np.asarray(image) >> 8).astype(np.uint8)
    alpha = [np.full_like(grey, 255)] * (channels == 4)
    colours = [grey] * min(channels, 3)
    return np.stack([*colours, *alpha], -1)
  return _converted(image, channels)


def _bmp(image: Any, encoded: bytes, channels: int) -> np.ndarray | None:
  bits = int.from_bytes(encoded[28:30], 'little')
  kinds = [(8, 'L'), (24, 'RGB'), *([(32, 'RGB')] * (channels == 3))]
  known = channels > 1 and (bits, image.mode) in kinds
  if not known or image.info.get('compression') != 0:
    return None
  return _converted(image, channels)


def _gif(image: Any, encoded: bytes, channels: int) -> np.ndarray | None:
  del encoded
  if channels != 3 or image.tile[0][1] != (0, 0, *image.size):
    return None
  pixels = _converted(image, 4)
  # What is transparent in a first frame is black.
  return pixels[..., :3] * (pixels[..., 3:] > 0)


def _webp(image: Any, encoded: bytes, channels: int) -> np.ndarray | None:
  del encoded
  if image.mode != _MODES[channels] or getattr(image, 'is_animated', False):
    return None
  return _converted(image, channels)


_DECODERS = {
  'BMP': _bmp,
  'GIF': _gif,
  'JPEG': _jpeg,
  'PNG': _png,
  'WEBP': _webp,
}


def _kind(image: Any, encoded: bytes) -> str:
  bits = f'{encoded[24]}-bit ' if image.format == 'PNG' else ''
  return f'a {bits}{image.format} image of mode {image.mode}'


def _converted(image: Any, channels: int) -> np.ndarray:
  """Pillow's own conversion, alpha left out and not blended."""
  if image.mode == 'P':  # which may have a transparent entry
    image = image.convert('RGBA')
  mode = _MODES[channels]
  return np.asarray(image if image.mode == mode else image.convert(mode))


@contextlib.contextmanager
def _pillow_errors() -> Iterator[None]:
  """Whatever damaged bytes make Pillow's many decoders raise."""
  from PIL import UnidentifiedImageError

  try:
    yield
  except CorruptRecord:
    raise
  except UnidentifiedImageError:  # its message has the address of the stream
    raise CorruptRecord('no image') from None
  except Exception as error:  # noqa: BLE001
    raise CorruptRecord(f'damaged image: {line(error)}') from None


def line(error: Exception) -> str:
  """The first line of a library's message."""
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__
