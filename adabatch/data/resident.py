"""Image sets that fit in memory, each split as one contiguous array.

`load(name, split)` knows the sets in `EMBEDDED`, which ship with a dependency;
every other name is a TensorFlow Datasets image-classification set, prepared on
disk as `array_record` and read without TensorFlow.
"""

from __future__ import annotations

import io
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from adabatch.data import order

# Bytes or records handled at once, so that memory stays near the result's.
_CHUNK = 2**20
_RECORDS = 1024

_NAME = re.compile(
  r'(?P<set>[a-z_]\w*)(/(?P<config>[\w.\-]+))?(:(?P<version>\d+\.\d+\.\d+))?',
  re.IGNORECASE,
)
_SLICE = re.compile(
  r'(?P<split>\w+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?'
)
_PIL_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}


class DatasetError(ValueError):
  """A data set that cannot be loaded; the message is one line."""


class Split(NamedTuple):
  """One split of a data set, in memory.

  Attributes:
    arrays: 'image', uint8 or float32 [N, H, W, C]; 'label', int32 [N]; perhaps
      others, all with leading axis N.
    num_classes: labels are in [0, num_classes).
  """

  arrays: dict[str, np.ndarray]
  num_classes: int


def load(
  name: str, split: str, data_dir: str | os.PathLike[str] | None = None
) -> Split:
  """Loads one split of an image-classification set.

  Args:
    name: a key of `EMBEDDED`, or a TFDS name, 'NAME[/CONFIG][:VERSION]';
      without a version, the newest on disk.
    split: 'train', 'train[:80%]', 'train[1000:]', 'train+test', ...
    data_dir: holds NAME/VERSION/*.array_record*; default: TFDS_DATA_DIR, else
      ~/tensorflow_datasets.

  Returns:
    The split, images in the order in which they are stored.

  Raises:
    DatasetError: if the set is unknown or not prepared, has no such split, or
      is not an image-classification set whose images have one size.

  >>> digits = load('digits', 'train[:80%]')
  >>> digits.arrays['image'].shape, digits.num_classes
  ((1150, 8, 8, 1), 10)
  """
  if name in EMBEDDED:
    arrays, num_classes, splits = EMBEDDED[name]()
    rows = _parse_split(name, split, splits)
    return from_arrays({k: v[rows] for k, v in arrays.items()}, num_classes)
  return _load_tfds(name, split, data_dir)


def from_arrays(arrays: Mapping[str, np.ndarray], num_classes: int) -> Split:
  """A split from a caller's own arrays, checked.

  Args:
    arrays: 'image', uint8 or float32 [N, H, W, C], and 'label', integers [N],
      which become int32; others may follow, with leading axis N.
    num_classes: labels must be in [0, num_classes).

  Returns:
    The split. Arrays are copied only where they are not contiguous.

  Raises:
    DatasetError: if the arrays do not fit this description.

  >>> images = np.zeros((2, 8, 8, 1), np.uint8)
  >>> split = from_arrays({'image': images, 'label': np.array([0, 1])}, 2)
  >>> split.arrays['label'].dtype
  dtype('int32')
  """
  given = {key: np.asarray(value) for key, value in arrays.items()}
  for key in ('image', 'label'):
    if key not in given:
      raise DatasetError(f"arrays has {sorted(given)}: it needs '{key}'")
  image, label = given['image'], given['label']
  if image.ndim != 4 or image.dtype not in (np.uint8, np.float32):
    raise DatasetError(
      f'image is {image.dtype} {list(image.shape)}: '
      'give uint8 or float32 [N, H, W, C]'
    )
  if label.ndim != 1 or label.dtype.kind not in 'iu':
    raise DatasetError(
      f'label is {label.dtype} {list(label.shape)}: give integers [N]'
    )
  lengths = {k: v.shape[0] if v.ndim else None for k, v in given.items()}
  if len(set(lengths.values())) != 1:
    raise DatasetError(f'leading axes differ: {lengths}')
  if len(label) == 0:
    raise DatasetError('arrays hold no examples: give at least one')
  low, high = int(label.min()), int(label.max())
  if low < 0 or high >= num_classes:
    raise DatasetError(
      f'labels are in [{low}, {high}]: with num_classes={num_classes} they '
      f'must be in [0, {num_classes - 1}] (an unlabelled split has -1)'
    )
  given['label'] = label.astype(np.int32)
  return Split(
    {k: np.ascontiguousarray(v) for k, v in given.items()}, num_classes
  )


def fingerprint(split: Split) -> str:
  """What the data is, in short: another string for other data.

  >>> arrays = {
  ...   'image': np.zeros((2, 1, 1, 1), np.uint8),
  ...   'label': np.zeros(2, np.int32),
  ... }
  >>> fingerprint(from_arrays(arrays, num_classes=3))
  '3 classes, image uint8 2x1x1x1 41d912ff, label int32 2 6522df69'
  """
  parts = [
    f'{name} {array.dtype} {"x".join(map(str, array.shape))} '
    f'{zlib.crc32(np.ascontiguousarray(array).data):08x}'
    for name, array in sorted(split.arrays.items())
  ]
  return ', '.join([f'{split.num_classes} classes', *parts])


def channel_statistics(split: Split) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of each channel, over all images and pixels.

  For uint8 images, of the values divided by 255; exact: from whole numbers.

  Args:
    split: the split, images [N, H, W, C].

  Returns:
    (mean, std), float32 [C] each. The std of a constant channel is 1, so that
    dividing by it is harmless.

  >>> images = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
  >>> split = from_arrays({'image': images, 'label': np.array([0, 0])}, 1)
  >>> [value.tolist() for value in channel_statistics(split)]
  [[0.5], [0.5]]
  """
  images = split.arrays['image']
  pixels = images.reshape(-1, images.shape[-1])
  rows = max(1, _CHUNK // pixels.shape[1])
  chunks = [pixels[i : i + rows] for i in range(0, len(pixels), rows)]
  if images.dtype == np.uint8:
    counts = np.zeros((pixels.shape[1], 256), np.int64)
    for chunk in chunks:
      for channel, values in enumerate(chunk.T):
        counts[channel] += np.bincount(values, minlength=256)
    levels = np.arange(256)
    total = counts @ levels
    mean = total / len(pixels) / 255
    # n Σx² - (Σx)², in Python's unbounded integers: no cancellation.
    spread = [
      len(pixels) * int(squares) - int(one) ** 2
      for squares, one in zip(counts @ levels**2, total, strict=True)
    ]
    std = np.sqrt([float(s) for s in spread]) / len(pixels) / 255
  else:
    count = len(pixels)
    mean = sum(c.sum(0, dtype=np.float64) for c in chunks) / count
    std = np.sqrt(sum(np.square(c - mean).sum(0) for c in chunks) / count)
    # A constant that is no exact mean of itself must still count as constant.
    std = np.where(pixels.max(0) == pixels.min(0), 0.0, std)
  std = np.where(std == 0, 1.0, std)
  return np.asarray(mean, np.float32), np.asarray(std, np.float32)


# --- sets that ship with a dependency ---


def _digits() -> tuple[dict[str, np.ndarray], int, dict[str, np.ndarray]]:
  """scikit-learn's 1,797 digits, 8 x 8; 1,438 to train, 359 to validate."""
  from sklearn import datasets  # slow to import

  digits: Any = datasets.load_digits()
  # 0..16 becomes 0..255, the range that uint8 images have everywhere else.
  images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = digits.target.astype(np.int32)
  # The file is sorted by writer, so the split follows a fixed permutation.
  shuffled = order.take(order.Order(len(labels), seed=0), 0, len(labels))
  cut = round(0.8 * len(labels))
  splits = {'train': shuffled[:cut], 'validation': shuffled[cut:]}
  return {'image': images, 'label': labels}, 10, splits


# name -> function that gives (arrays, num_classes, {split: rows})
EMBEDDED: dict[
  str,
  Callable[[], tuple[dict[str, np.ndarray], int, dict[str, np.ndarray]]],
] = {
  'digits': _digits,
}


def _parse_split(
  name: str, split: str, splits: Mapping[str, np.ndarray]
) -> np.ndarray:
  """The rows of 'train[:80%]+validation[10:]', with TFDS's own rounding."""
  parts = []
  for part in split.replace(' ', '').split('+'):
    match = _SLICE.fullmatch(part)
    if not match:
      raise DatasetError(
        f"data set '{name}': split '{split}' is no split: "
        "write 'train', 'train[:80%]', 'train[1000:]' or a sum of such"
      )
    if match['split'] not in splits:
      raise _unknown_split(name, split, list(splits))
    rows = splits[match['split']]
    bounds = []
    for text, default in ((match['start'], 0), (match['stop'], len(rows))):
      if text is None:
        bound = default
      elif text.endswith('%'):
        bound = round(float(text[:-1]) * len(rows) / 100)
      else:
        bound = int(text)
      if abs(bound) > len(rows):
        raise DatasetError(
          f"data set '{name}': split '{split}' reaches beyond the "
          f'{len(rows)} examples of {match["split"]}'
        )
      bounds.append(bound)
    parts.append(rows[bounds[0] : bounds[1]])
  rows = np.concatenate(parts)
  if len(rows) == 0:
    raise DatasetError(f"data set '{name}': split '{split}' holds no examples")
  return rows


def _unknown_split(name: str, split: str, known: list[str]) -> DatasetError:
  return DatasetError(
    f"data set '{name}' has no split '{split}': it has {', '.join(known)}"
  )


# --- TensorFlow Datasets ---


def _load_tfds(
  name: str, split: str, data_dir: str | os.PathLike[str] | None
) -> Split:
  directory = _find_tfds(name, data_dir)
  # Here because importing it takes most of a second.
  import tensorflow_datasets as tfds
  from google.protobuf import message

  try:
    # Not `tfds.data_source(name)`: that imports the set's own code and starts
    # to download it when it is not prepared.
    builder: Any = tfds.builder_from_directory(directory)
  # Whatever a damaged directory makes TFDS raise.
  except Exception as error:  # noqa: BLE001
    raise DatasetError(
      f"data set '{name}' in {directory} cannot be read: {_line(error)}"
    ) from None
  info = builder.info
  image_key, label_key = _feature_keys(name, info, tfds)
  try:
    source = builder.as_data_source(
      split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
  except NotImplementedError:
    raise DatasetError(
      f"data set '{name}' in {directory} is not stored as array_record: "
      f'{_how_to_prepare(name, data_dir)}'
    ) from None
  # TFDS raises ValueError, KeyError, AssertionError, ... for a wrong split.
  except Exception as error:  # noqa: BLE001
    if re.split(r'[\[+]', split)[0] not in info.splits:
      raise _unknown_split(name, split, list(info.splits)) from None
    raise DatasetError(
      f"data set '{name}': split '{split}': {_line(error)}"
    ) from None
  if len(source) == 0:
    raise DatasetError(f"data set '{name}': split '{split}' holds no examples")
  channels = info.features[image_key].shape[-1]
  try:
    images, labels = _decode(source, image_key, label_key, channels)
    return from_arrays(
      {'image': images, 'label': labels}, info.features[label_key].num_classes
    )
  except DatasetError as error:
    raise DatasetError(f"data set '{name}', split '{split}': {error}") from None
  except (OSError, RuntimeError, IndexError, message.DecodeError) as error:
    # A file or a field is missing, or bytes are no image: array_record raises
    # RuntimeError, Pillow OSError.
    raise DatasetError(
      f"data set '{name}' in {directory} is damaged: {_line(error)}; remove it "
      f'and {_how_to_prepare(name, data_dir)}'
    ) from None


def _find_tfds(
  name: str, data_dir: str | os.PathLike[str] | None
) -> pathlib.Path:
  """The directory DATA_DIR/NAME[/CONFIG]/VERSION, newest version first."""
  match = _NAME.fullmatch(name)
  if not match:
    raise DatasetError(
      f"data set '{name}' is no name: give NAME[/CONFIG][:VERSION] or one of "
      f'{", ".join(EMBEDDED)}'
    )
  root = _data_dir(data_dir)
  base = root / match['set']
  if match['config']:
    base = base / match['config']
  versions = _versions(base, match['version'])
  if versions:
    return versions[-1]
  if base.is_dir() and not match['config']:
    configs = sorted(
      child.name
      for child in base.iterdir()
      if child.is_dir() and _versions(child, match['version'])
    )
    if len(configs) == 1:
      return _versions(base / configs[0], match['version'])[-1]
    if configs:
      raise DatasetError(
        f"data set '{name}' in {root} has several configs: name one of "
        f'{", ".join(match["set"] + "/" + config for config in configs)}'
      )
  raise DatasetError(
    f"data set '{name}' is not prepared in {root}: "
    f'{_how_to_prepare(name, data_dir)}; '
    f'built in, without a download: {", ".join(EMBEDDED)}'
  )


def _data_dir(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
  if data_dir is None:  # the same default as TFDS
    data_dir = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  return pathlib.Path(data_dir).expanduser()


def _versions(base: pathlib.Path, version: str | None) -> list[pathlib.Path]:
  """Prepared versions below `base`, oldest first."""
  if not base.is_dir():
    return []
  found = [
    child
    for child in base.iterdir()
    if re.fullmatch(r'\d+\.\d+\.\d+', child.name)
    and version in (None, child.name)
    and (child / 'dataset_info.json').is_file()
    and (child / 'features.json').is_file()
  ]
  return sorted(found, key=lambda path: [int(n) for n in path.name.split('.')])


def _how_to_prepare(name: str, data_dir: str | os.PathLike[str] | None) -> str:
  # Not `tfds build`: its command line also imports apache_beam.
  directory = str(_data_dir(data_dir))
  return (
    "prepare it with: pip install 'adabatch[prepare]' && python -c "
    f'"import tensorflow_datasets as tfds; tfds.builder({name!r}, '
    f"data_dir={directory!r}, file_format='array_record')"
    '.download_and_prepare()"'
  )


def _feature_keys(name: str, info: Any, tfds: Any) -> tuple[str, str]:
  """The names of the image and the label among the set's features."""
  given: Any = info.features
  features = (
    dict(given) if isinstance(given, tfds.features.FeaturesDict) else {}
  )
  keys = info.supervised_keys
  if not (isinstance(keys, tuple) and len(keys) == 2):
    keys = ('image', 'label')
  found: list[Any] = [
    features.get(key) if isinstance(key, str) else None for key in keys
  ]
  image, label = found
  if (
    not isinstance(image, tfds.features.Image)
    or not isinstance(label, tfds.features.ClassLabel)
    or image.np_dtype != np.uint8
    or image.shape[-1] not in _PIL_MODES
  ):
    names = ', '.join(
      f'{key}: {type(features[key]).__name__}' for key in features
    )
    raise DatasetError(
      f"data set '{name}' is no image-classification set with uint8 images of "
      f'1, 3 or 4 channels and a class label: it has {names}'
    )
  return keys


def _decode(
  source: Any, image_key: str, label_key: str, channels: int
) -> tuple[np.ndarray, np.ndarray]:
  """All records of a data source of raw bytes, as two arrays."""
  # Parsing the records ourselves and decoding with Pillow takes 30 µs an image
  # of 28 x 28, TFDS's own decoding 230 µs: 60,000 images need no cache on disk.
  from PIL import Image
  from tensorflow_datasets.proto import tf_example_pb2

  example_pb2: Any = tf_example_pb2  # generated code, without types
  mode = _PIL_MODES[channels]
  images = np.empty((0, 0, 0, channels), np.uint8)
  labels = np.empty(len(source), np.int32)
  for start in range(0, len(source), _RECORDS):
    rows = range(start, min(start + _RECORDS, len(source)))
    for row, record in zip(rows, source.__getitems__(list(rows)), strict=True):
      feature = example_pb2.Example.FromString(record).features.feature
      encoded = feature[image_key].bytes_list.value[0]
      with Image.open(io.BytesIO(encoded)) as opened:
        # A set of colour images may hold a few that are stored as grey.
        pixels = np.asarray(
          opened if opened.mode == mode else opened.convert(mode)
        )
      if row == 0:
        height, width = pixels.shape[:2]
        images = np.empty((len(source), height, width, channels), np.uint8)
      elif pixels.shape[:2] != images.shape[1:3]:
        raise DatasetError(
          'images differ in size '
          f'({images.shape[1]}x{images.shape[2]} and '
          f'{pixels.shape[0]}x{pixels.shape[1]}): '
          'resident sets need one image size; stream this set instead'
        )
      images[row] = pixels.reshape(images.shape[1:])
      labels[row] = feature[label_key].int64_list.value[0]
  return images, labels


def _line(error: Exception) -> str:
  """The first line of a library's message."""
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__
