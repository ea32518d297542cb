"""Images of every kind, and what TensorFlow makes of them.

    python -m tests.decode_by_tensorflow

writes decoded_by_tensorflow.json anew, where TensorFlow is installed; the tests
need the file only.
"""

import base64
import io
import json
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image

FILE = pathlib.Path(__file__).with_name('decoded_by_tensorflow.json')
SHAPE = 4, 6
FLIP = Image.Transpose.FLIP_LEFT_RIGHT


def png(samples, depth, kind, *, palette=b'', transparent=b'', extra=()):
  """A PNG of whole numbers [H, W] or [H, W, C] of so many bits.

  Pillow cannot write most of them. `kind` as in the header: 0 grey, 2 colour,
  3 palette, 4 grey and alpha, 6 colour and alpha.
  """

  def chunk(name, content):
    crc = struct.pack('>I', zlib.crc32(name + content))
    return struct.pack('>I', len(content)) + name + content + crc

  height, width = samples.shape[:2]
  rows = samples.reshape(height, -1)
  if depth == 16:
    packed = [row.astype('>u2').tobytes() for row in rows]
  else:
    bits = np.unpackbits(rows.astype(np.uint8)[..., None], -1)[..., 8 - depth :]
    packed = [np.packbits(row).tobytes() for row in bits]
  header = struct.pack('>IIBBBBB', width, height, depth, kind, 0, 0, 0)
  parts = [(b'IHDR', header), *extra]
  parts += [(b'PLTE', palette)] * bool(palette)
  parts += [(b'tRNS', transparent)] * bool(transparent)
  parts.append((b'IDAT', zlib.compress(b''.join(b'\0' + r for r in packed))))
  parts.append((b'IEND', b''))
  return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in parts)


def saved(image, file_format, **options):
  file = io.BytesIO()
  image.save(file, file_format, **options)
  return file.getvalue()


def without_adobe(encoded):
  """A JPEG without the marker that says whether its inks are inverted."""
  at = encoded.index(b'\xff\xee')
  size = int.from_bytes(encoded[at + 2 : at + 4], 'big')
  return encoded[:at] + encoded[at + 2 + size :]


def as_ycck(encoded):
  """A JPEG of four components that says that they are Y, Cb, Cr and K."""
  found = bytearray(encoded)
  at = encoded.index(b'\xff\xee')
  found[at + 1 + int.from_bytes(encoded[at + 2 : at + 4], 'big')] = 2
  return bytes(found)


def images():
  """Name -> encoded image."""
  rng = np.random.default_rng(0)
  found = {}

  def drawn(bits, *axes):
    return rng.integers(0, 2**bits, (*SHAPE, *axes))

  for bits in (1, 2, 4, 8, 16):
    grey = drawn(bits)
    key = struct.pack('>H', int(grey[0, 0]))
    found[f'PNG grey {bits}'] = png(grey, bits, 0)
    found[f'PNG grey {bits}, transparent'] = png(grey, bits, 0, transparent=key)
  for bits in (1, 2, 4, 8):
    entries = 2 ** min(bits, 4)
    indices = rng.integers(0, entries, SHAPE)
    table, alpha = rng.bytes(3 * entries), rng.bytes(entries)
    found[f'PNG palette {bits}'] = png(indices, bits, 3, palette=table)
    found[f'PNG palette {bits}, transparent'] = png(
      indices, bits, 3, palette=table, transparent=alpha
    )
  for bits in (8, 16):
    colour = drawn(bits, 3)
    key = struct.pack('>HHH', *map(int, colour[0, 0]))
    found[f'PNG colour {bits}'] = png(colour, bits, 2)
    found[f'PNG colour {bits}, transparent'] = png(
      colour, bits, 2, transparent=key
    )
    found[f'PNG grey {bits} and alpha'] = png(drawn(bits, 2), bits, 4)
    found[f'PNG colour {bits} and alpha'] = png(drawn(bits, 4), bits, 6)
  gamma = [(b'gAMA', struct.pack('>I', 45455))]
  found['PNG colour 8, gamma'] = png(drawn(8, 3), 8, 2, extra=gamma)

  grey = Image.fromarray(drawn(8).astype(np.uint8))
  colour = Image.fromarray(drawn(8, 3).astype(np.uint8))
  alpha = Image.fromarray(drawn(8, 4).astype(np.uint8))
  palette = Image.fromarray(drawn(3).astype(np.uint8))
  palette.putpalette(rng.bytes(24))
  modes = {'L': grey, 'RGB': colour, 'RGBA': alpha, 'P': palette}
  modes['1'] = grey.convert('1')
  for mode, image in modes.items():
    found[f'BMP {mode}'] = saved(image, 'BMP')
  for depth, name in ((16, 'BMP of 16 bits'), (24, 'BMP, compressed')):
    damaged = bytearray(found['BMP RGB'])
    damaged[28], damaged[30] = depth, 1 if depth == 24 else 0
    found[name] = bytes(damaged)
  found['GIF P'] = saved(palette, 'GIF')
  found['GIF P, transparent'] = saved(palette, 'GIF', transparency=3)
  found['GIF L'] = saved(grey, 'GIF')
  found['GIF of two'] = saved(
    palette, 'GIF', save_all=True, append_images=[palette.transpose(FLIP)]
  )
  # A logical screen of 9 x 7 pixels around a frame of 6 x 4.
  part = bytearray(found['GIF P'])
  part[6:10] = struct.pack('<HH', 9, 7)
  found['GIF, a part'] = bytes(part)
  lossless = {'lossless': True, 'exact': True}
  for mode in ('L', 'RGB', 'RGBA'):
    found[f'WebP {mode}'] = saved(modes[mode], 'WEBP', **lossless)
  found['WebP of two'] = saved(
    colour, 'WEBP', save_all=True, append_images=[colour.transpose(FLIP)]
  )

  slope = np.add.outer(np.arange(16) * 8, np.arange(24) * 5).astype(np.uint8)
  four = np.stack([slope, slope[::-1], slope[:, ::-1], slope // 2], -1)
  smooth = Image.fromarray(four[..., :3])
  inks = Image.frombytes('CMYK', slope.shape[::-1], four.tobytes())
  found['JPEG L'] = saved(smooth.convert('L'), 'JPEG')
  found['JPEG YCbCr'] = saved(smooth, 'JPEG')
  found['JPEG RGB'] = saved(smooth, 'JPEG', keep_rgb=True)
  found['JPEG CMYK'] = saved(inks, 'JPEG')
  found['JPEG CMYK, not inverted'] = without_adobe(found['JPEG CMYK'])
  found['JPEG YCCK'] = as_ycck(found['JPEG CMYK'])

  found['TIFF RGB'] = saved(colour, 'TIFF')
  found['TIFF F'] = saved(Image.fromarray(drawn(8).astype(np.float32)), 'TIFF')
  found['TIFF I'] = saved(Image.fromarray(drawn(8).astype(np.int32)), 'TIFF')
  found['TIFF YCbCr'] = saved(colour.convert('YCbCr'), 'TIFF')
  found['PPM RGB'] = saved(colour, 'PPM')
  return found


def checksum(pixels):
  """Of the values and the shape."""
  return f'{zlib.crc32(pixels.tobytes() + repr(pixels.shape).encode()):08x}'


def main():
  import tensorflow as tf

  def decoded(name, encoded, channels):
    try:
      pixels = tf.io.decode_image(
        encoded, channels=channels, expand_animations=False
      )
      if name.startswith('JPEG'):
        # The same, but for the fast DCT that `decode_image` takes.
        pixels = tf.io.decode_jpeg(
          encoded, channels=channels, dct_method='INTEGER_ACCURATE'
        )
    except tf.errors.InvalidArgumentError:
      return None
    return checksum(pixels.numpy())

  kinds = {
    name: {
      'encoded': base64.b64encode(encoded).decode(),
      **{str(c): decoded(name, encoded, c) for c in (1, 3, 4)},
    }
    for name, encoded in images().items()
  }
  whole = {'tensorflow': tf.__version__, 'kinds': kinds}
  FILE.write_text(json.dumps(whole, indent=1) + '\n')


if __name__ == '__main__':
  main()
