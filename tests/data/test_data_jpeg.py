"""Decoding of crops, against decoding everything, and where crops lie."""

import io
import math

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from adabatch.data import jpeg
from adabatch.data.jpeg import Box, CorruptRecord, decode_crop

HEIGHT, WIDTH = 121, 157  # no multiple of anything


def picture():
  """Smooth, so that neighbours resemble each other, as in photographs."""
  rng = np.random.default_rng(0)
  coarse = rng.integers(60, 196, (4, 5, 3), dtype=np.uint8)
  return cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def saved(file_format, mode='RGB', **options):
  encoded = io.BytesIO()
  image = Image.fromarray(picture()).convert(mode)
  image.save(encoded, file_format, **options)
  return encoded.getvalue()


def sampled(subsampling):
  return simplejpeg.encode_jpeg(picture(), colorsubsampling=subsampling)


ENCODED = {
  **{name: sampled(name) for name in ('444', '422', '420', '440', '411')},
  'grey': saved('JPEG', 'L'),
  'restart markers': saved('JPEG', restart_marker_rows=1),
  'progressive': saved('JPEG', progressive=True),
  'CMYK': saved('JPEG', 'CMYK'),
  'PNG': saved('PNG'),
  'grey PNG': saved('PNG', 'L'),
}


def boxes(count):
  """Boxes of all sizes, the first ones at the image's edges."""
  rng = np.random.default_rng(1)
  found = [
    Box(0, 0, HEIGHT, WIDTH),
    Box(0, 0, 50, 60),
    Box(0, WIDTH - 60, 50, 60),
    Box(HEIGHT - 50, 0, 50, 60),
    Box(HEIGHT - 50, WIDTH - 60, 50, 60),
    Box(0, 0, 1, 1),
    Box(HEIGHT - 1, WIDTH - 1, 1, 1),
  ]
  for _ in range(count - len(found)):
    height = int(rng.integers(1, HEIGHT + 1))
    width = int(rng.integers(1, WIDTH + 1))
    top = int(rng.integers(HEIGHT - height + 1))
    left = int(rng.integers(WIDTH - width + 1))
    found.append(Box(top, left, height, width))
  return found


def cut(image, box):
  return image[box.top : box.top + box.height, box.left : box.left + box.width]


def resized(image, size, interpolation=cv2.INTER_LINEAR):
  found = cv2.resize(image, (size, size), interpolation=interpolation)
  return found.reshape(size, size, image.shape[-1])


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('kind', ENCODED)
def test_a_crop_is_cut_from_the_whole_bit_for_bit(kind, channels):
  if (kind, channels) == ('CMYK', 1):
    with pytest.raises(CorruptRecord, match='CMYK does not become 1 channel'):
      jpeg.decode(ENCODED[kind], channels)
    return
  whole = jpeg.decode(ENCODED[kind], channels)
  assert whole.shape == (HEIGHT, WIDTH, channels)
  size = 80  # nothing is twice as large in both directions
  for box in boxes(60):
    found = decode_crop(ENCODED[kind], box, size, channels)
    np.testing.assert_array_equal(found, resized(cut(whole, box), size), kind)


@pytest.mark.parametrize('kind', ENCODED)
def test_the_whole_is_what_others_decode(kind):
  with Image.open(io.BytesIO(ENCODED[kind])) as opened:
    expected = np.asarray(opened.convert('RGB'), int)
  found = jpeg.decode(ENCODED[kind], 3)
  # Decoders may round their colours, or fill in chroma, in their own way.
  assert np.abs(found - expected).mean() < 1


@pytest.mark.parametrize('kind', ENCODED)
def test_large_boxes_are_averaged(kind):
  whole = jpeg.decode(ENCODED[kind], 3)
  errors = []
  for box in boxes(150):
    for size in (12, 30):
      if min(box.height, box.width) < 2 * size:
        continue
      found = decode_crop(ENCODED[kind], box, size, 3).astype(int)
      expected = resized(cut(whole, box), size, cv2.INTER_AREA)
      errors.append(np.abs(found - expected).mean())
  assert len(errors) > 60
  # A box may move by half of a pixel that the decoder averages.
  assert max(errors) < 10
  assert np.mean(errors) < 4


@pytest.mark.parametrize('factor', [2, 4, 8])
def test_boxes_on_the_grid_of_averaged_pixels_are_exact(factor):
  encoded = ENCODED['444']
  box = Box(8, 16, 96, 128)
  size = 96 // factor
  whole = simplejpeg.decode_jpeg(
    encoded, min_factor=factor, min_height=HEIGHT // factor, min_width=1
  )
  assert whole.shape[0] == math.ceil(HEIGHT / factor)
  small = cut(whole, Box(*(value // factor for value in box)))
  found = decode_crop(encoded, box, size, 3)
  np.testing.assert_array_equal(found, resized(small, size))


def test_flip_and_out():
  encoded, box = ENCODED['420'], Box(3, 5, 70, 60)
  for channels in (1, 3):
    plain = decode_crop(encoded, box, 50, channels)
    out = np.zeros((50, 50, channels), np.uint8)
    found = decode_crop(encoded, box, 50, channels, flip=True, out=out)
    assert found is out
    np.testing.assert_array_equal(out, plain[:, ::-1])
    # As large as the box: nothing to be resized.
    same = decode_crop(encoded, Box(3, 5, 50, 50), 50, channels, flip=True)
    whole = jpeg.decode(encoded, channels)
    np.testing.assert_array_equal(same, whole[3:53, 5:55][:, ::-1])


@pytest.mark.parametrize(
  'box', [(0, 0, HEIGHT + 1, 5), (-1, 0, 5, 5), (0, 0, 0, 5), (0, 150, 5, 8)]
)
@pytest.mark.parametrize('kind', ['444', 'PNG'])
def test_boxes_outside_are_refused(kind, box):
  with pytest.raises(ValueError, match='not inside 121x157'):
    decode_crop(ENCODED[kind], box, 8, 3)


# --- damage ---


@pytest.mark.parametrize('kind', ['444', '420', 'grey', 'progressive', 'PNG'])
@pytest.mark.parametrize('share', [0, 0.01, 0.3, 0.9, 0.98])
def test_cut_off(kind, share):
  encoded = ENCODED[kind][: int(share * len(ENCODED[kind]))]
  for box in (Box(0, 0, 20, 20), Box(90, 0, 30, 30)):
    with pytest.raises(CorruptRecord) as caught:
      decode_crop(encoded, box, 16, 3)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('encoded', [b'', b'text', b'\xff\xd8', bytes(1000)])
def test_no_image(encoded):
  for call in (
    lambda: jpeg.image_size(encoded),
    lambda: jpeg.decode(encoded, 3),
    lambda: decode_crop(encoded, Box(0, 0, 2, 2), 2, 3),
  ):
    with pytest.raises(CorruptRecord) as caught:
      call()
    assert '0x' not in str(caught.value)  # an address in memory


@pytest.mark.parametrize('size', [b'\x00\x00\x00\x10', b'\xff\xff\xff\xff'])
def test_impossible_sizes(size):
  encoded = bytearray(ENCODED['444'])
  at = encoded.index(b'\xff\xc0') + 5
  encoded[at : at + 4] = size
  with pytest.raises(CorruptRecord, match='pixels'):
    jpeg.image_size(bytes(encoded))


@pytest.mark.parametrize('kind', ['444', '420', 'restart markers'])
def test_damage_above_the_bottom_of_the_box_is_seen(kind):
  encoded = bytearray(ENCODED[kind])
  start = encoded.index(b'\xff\xda') + 200
  encoded[start : start + 100] = bytes(100)
  encoded[start + 50 : start + 52] = b'\xff\xc5'  # no such marker here
  with pytest.raises(CorruptRecord):
    decode_crop(bytes(encoded), Box(0, 0, 100, 50), 60, 3)


def test_bytes_left_over_inside_the_box_are_damage():
  """Unlike those below it, which only the decoder complains about."""
  encoded = ENCODED['restart markers']
  at = encoded.index(b'\xff\xd2', encoded.index(b'\xff\xda'))
  damaged = encoded[:at] + bytes(10) + encoded[at:]
  for box in (Box(0, 0, 100, 50), Box(0, 0, HEIGHT, 50)):
    decode_crop(encoded, box, 60, 3)
    with pytest.raises(CorruptRecord, match='extraneous'):
      decode_crop(damaged, box, 60, 3)


@pytest.mark.parametrize('kind', ENCODED)
def test_random_damage_raises_nothing_else(kind):
  rng = np.random.default_rng(2)
  for _ in range(60):
    encoded = bytearray(ENCODED[kind])
    at = int(rng.integers(len(encoded)))
    if rng.random() < 0.5:
      at = int(rng.integers(min(700, len(encoded))))  # headers
    encoded[at : at + 4] = rng.bytes(4)
    damaged = bytes(encoded)
    try:
      height, width = jpeg.image_size(damaged)
      box = jpeg.central_box(height, width, 8, 8)
      found = decode_crop(damaged, box, 8, 3)
    except CorruptRecord:
      continue
    assert found.shape == (8, 8, 3)


# --- where crops lie ---


def test_image_size():
  for kind, encoded in ENCODED.items():
    assert jpeg.image_size(encoded) == (HEIGHT, WIDTH), kind


def drawn(height, width, count, **options):
  return [
    jpeg.random_resized_box(
      height, width, jpeg.position_words(0, position), **options
    )
    for position in range(count)
  ]


def test_random_boxes_are_uniform():
  height, width = 3000, 4000  # rounding to whole pixels does not matter
  found = np.array(drawn(height, width, 4000, max_area=0.5), float)
  top, left, box_height, box_width = found.T
  area = box_height * box_width / (height * width)
  ratio = np.log(box_width / box_height)
  limit = math.log(4 / 3)
  # Below half of the area every ratio fits, so that nothing is drawn again.
  for share in (
    (area - 0.08) / (0.5 - 0.08),
    (ratio + limit) / (2 * limit),
    top / (height - box_height),
    left / (width - box_width),
  ):
    ordered = np.sort(share)
    assert ordered[0] > -0.01
    assert ordered[-1] < 1.01
    steps = np.arange(len(ordered)) / len(ordered)
    # Kolmogorov and Smirnov: larger than this once in a million.
    assert np.abs(ordered - steps).max() < 2.7 / math.sqrt(len(ordered))


@pytest.mark.parametrize(
  ('height', 'width'), [(375, 500), (500, 333), (7, 9), (1, 1), (1, 500)]
)
def test_random_boxes_lie_inside(height, width):
  for box in drawn(height, width, 300):
    assert box.height >= 1
    assert box.width >= 1
    assert 0 <= box.top <= height - box.height
    assert 0 <= box.left <= width - box.width
    if min(height, width) > 100:
      area = box.height * box.width / (height * width)
      assert 0.079 < area <= 1
      assert 0.74 < box.width / box.height < 1.35


def test_where_nothing_fits_the_middle_is_taken():
  # No rectangle of 0.9 of this area has an allowed ratio.
  for box in drawn(100, 500, 20, min_area=0.9):
    assert box == Box(0, 183, 100, 133)
  for box in drawn(500, 100, 20, min_area=0.9):
    assert box == Box(183, 0, 133, 100)


def test_words_are_keyed_by_seed_and_position_alone():
  words = {
    tuple(jpeg.position_words(seed, position))
    for seed in (0, 1, 2**64 - 1)
    for position in (0, 1, 2**32, 2**63 - 1)
  }
  assert len(words) == 12
  assert len({word for each in words for word in each}) == 12 * len(
    jpeg.position_words(0, 0)
  )
  # The raw words of NumPy's generators never change, so neither do crops.
  assert jpeg.position_words(7, 5)[0] == 4670323394658684684
  share = np.mean([jpeg.flips(jpeg.position_words(3, p)) for p in range(4000)])
  assert abs(share - 0.5) < 0.04


def test_central_box():
  assert jpeg.central_box(256, 256, 256, 224) == Box(16, 16, 224, 224)
  assert jpeg.central_box(300, 100, 256, 256) == Box(100, 0, 100, 100)
  assert jpeg.central_box(1, 1, 256, 224) == Box(0, 0, 1, 1)
  with pytest.raises(ValueError, match='crop=257 of resize=256'):
    jpeg.central_box(300, 300, 256, 257)


def test_central_box_is_resize_then_cut():
  image = picture()
  scale = 64 / HEIGHT
  small = cv2.resize(image, (round(WIDTH * scale), 64))
  left = (small.shape[1] - 56) // 2
  expected = small[4:60, left : left + 56]
  box = jpeg.central_box(HEIGHT, WIDTH, 64, 56)
  found = resized(cut(image, box), 56)
  assert np.abs(found.astype(int) - expected).mean() < 3
