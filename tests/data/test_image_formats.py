"""Whole images of every kind: as TensorFlow decodes them, or refused."""

import base64
import json
import re

import numpy as np
import pytest

from adabatch.data import image_formats, jpeg
from tests.decode_by_tensorflow import FILE, SHAPE, checksum, png

KINDS = json.loads(FILE.read_text())['kinds']

# What TensorFlow decodes, and why it is refused here.
REFUSED = {
  # libpng gives opaque pixels an alpha of 2**bits - 1, not of 255.
  **{
    f'PNG {kind} {bits}{rest}': (4,)
    for kind in ('grey', 'palette')
    for bits in (1, 2, 4)
    for rest in ('', ', transparent')
  },
  # Pillow keeps the upper 8 bits only.
  'PNG grey 16, transparent': (4,),
  'PNG colour 16': (1,),
  'PNG colour 16, transparent': (1, 4),
  'PNG colour 16 and alpha': (1,),
  # libpng averages powers of the colours.
  'PNG colour 8, gamma': (1,),
  # TensorFlow takes the numbers of the palette for greys,
  'BMP P': (3, 4),
  # and what is compressed for pixels.
  'BMP, compressed': (3, 4),
  'BMP RGBA': (4,),  # Pillow loses the alpha
  'GIF, a part': (3,),  # TensorFlow puts it on black, Pillow on a colour
}


@pytest.mark.parametrize('name', KINDS)
def test_every_kind_is_decoded_as_by_tensorflow_or_refused(name):
  encoded = base64.b64decode(KINDS[name]['encoded'])
  for channels in (1, 3, 4):
    expected = KINDS[name][str(channels)]
    if expected is None or channels in REFUSED.get(name, ()):
      with pytest.raises(image_formats.UnsupportedImage) as caught:
        jpeg.decode(encoded, channels)
      message = str(caught.value)
      assert '\n' not in message
      assert re.match(r'a (\d+-bit )?\w+ image of mode \S+ (is|does)', message)
      continue
    pixels = jpeg.decode(encoded, channels)
    assert pixels.dtype == np.uint8
    assert checksum(pixels) == expected, channels


def test_of_16_bits_the_upper_8_are_kept():
  deep = np.random.default_rng(1).integers(0, 2**16, (*SHAPE, 4))
  upper = deep >> 8
  grey = jpeg.decode(png(deep[..., 0], 16, 0), 1)
  np.testing.assert_array_equal(grey[..., 0], upper[..., 0])
  grey = jpeg.decode(png(deep[..., 0], 16, 0), 3)
  np.testing.assert_array_equal(grey, np.repeat(upper[..., :1], 3, -1))
  colour = jpeg.decode(png(deep[..., :3], 16, 2), 3)
  np.testing.assert_array_equal(colour, upper[..., :3])
  np.testing.assert_array_equal(jpeg.decode(png(deep, 16, 6), 4), upper)
  np.testing.assert_array_equal(
    jpeg.decode(png(deep, 16, 6), 3), upper[..., :3]
  )


def test_transparency_is_left_out_and_not_blended():
  drawn = np.random.default_rng(1).integers(0, 256, (*SHAPE, 4))
  found = jpeg.decode(png(drawn, 8, 6), 3)
  np.testing.assert_array_equal(found, drawn[..., :3])
  found = jpeg.decode(png(drawn[..., 2:], 8, 4), 1)
  np.testing.assert_array_equal(found[..., 0], drawn[..., 2])


def test_messages_name_the_kind_and_what_is_allowed():
  deep = png(np.zeros((*SHAPE, 3), int), 16, 2)
  with pytest.raises(
    image_formats.UnsupportedImage,
    match='a 16-bit PNG image of mode RGB does not become 1 channel: allowed '
    'are grey or colour JPEG, PNG',
  ):
    image_formats.decode(deep, 1)
  with pytest.raises(
    image_formats.UnsupportedImage,
    match='a TIFF image of mode F is not read: prepare the data set with BMP, ',
  ):
    image_formats.opened(base64.b64decode(KINDS['TIFF F']['encoded']))
