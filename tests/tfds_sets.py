"""TensorFlow Datasets: where prepared ones may be, and how to write some."""

import io
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

# What looks here is marked `prepared` and passes, or is skipped, if it is not
# there.
PREPARED = pathlib.Path(__file__).parents[2] / 'shared' / 'tfds'
# Enough of them to learn pieces from.
SENTENCES = [
  f'{who} {does} the {what}, {how}'.encode()
  for who in ('the fox', 'a quick dog', 'brown bears')
  for does in ('jumps over', 'speaks to', 'hears')
  for what in ('lazy dog', 'first citizen', 'brown fox')
  for how in ('quickly', 'before we proceed')
]
# A network for them that is compiled soon.
SMALL_LSTM = {
  'model.name': 'lstm',
  'model.lstm.num_layers': 1,
  'model.lstm.hidden_size': 4,
  'model.lstm.embedding_size': 4,
}


def needs(*names):
  """Marks a test that is skipped where one of these sets is not prepared."""
  missing = [name for name in names if not (PREPARED / name).is_dir()]
  reason = f'not prepared in {PREPARED}: {", ".join(missing)}'
  skip = pytest.mark.skipif(bool(missing), reason=reason)
  return lambda test: pytest.mark.prepared(skip(test))


def encode_png(image):
  encoded = io.BytesIO()
  Image.fromarray(np.squeeze(image)).save(encoded, 'PNG')
  return encoded.getvalue()


def write_tfds(
  root,
  images,
  labels,
  shape=(None, None, 3),
  name='tiny',
  split='train',
  classes=3,
):
  """Writes a split of ROOT/NAME/1.0.0.

  Args:
    root: the data_dir.
    images: arrays, which become PNGs, or bytes, which are kept.
    labels: one integer each.
    shape: what the set says of its images.
    name: the set's name.
    split: its name.
    classes: how many the set says that it has.

  Returns:
    The directory.
  """
  directory = root / name / '1.0.0'
  directory.mkdir(parents=True, exist_ok=True)
  path = directory / f'{name}-{split}.array_record-00000-of-00001'
  # Uncompressed, so that a test finds the record that it damages.
  writer = ArrayRecordWriter(str(path), 'group_size:1,uncompressed')
  for image, label in zip(images, labels, strict=True):
    encoded = image if isinstance(image, bytes) else encode_png(image)
    example: Any = tf_example_pb2.Example()  # pyright: ignore
    feature = example.features.feature
    feature['image'].bytes_list.value.append(encoded)
    feature['label'].int64_list.value.append(int(label))
    writer.write(example.SerializeToString())
  writer.close()
  features = 'tensorflow_datasets.core.features'
  dimensions = [str(size or -1) for size in shape]
  inner = {
    'image': {
      'image': {'dtype': 'uint8', 'shape': {'dimensions': dimensions}},
      'pythonClassName': f'{features}.image_feature.Image',
    },
    'label': {
      'classLabel': {'numClasses': str(classes)},
      'pythonClassName': f'{features}.class_label_feature.ClassLabel',
    },
  }
  keys = [{'featureKey': 'image'}, {'featureKey': 'label'}]
  describe(
    directory,
    inner,
    len(images),
    1000,
    split,
    supervisedKeys={'tuple': {'items': keys}},
  )
  return directory


def describe(directory, features, count, size, split='train', **more):
  """Writes what a set says of itself, a split more than before.

  Args:
    directory: of its version, in that of its name.
    features: by name, as TFDS writes them.
    count: examples in its one file.
    size: in bytes.
    split: its name.
    more: of the set.
  """
  kind = 'tensorflow_datasets.core.features.features_dict.FeaturesDict'
  (directory / 'features.json').write_text(
    json.dumps(
      {'featuresDict': {'features': features}, 'pythonClassName': kind}
    )
  )
  path = directory / 'dataset_info.json'
  before = json.loads(path.read_text())['splits'] if path.exists() else []
  info = {
    'fileFormat': 'array_record',
    'name': directory.parent.name,
    'version': directory.name,
    'splits': [
      *(known for known in before if known['name'] != split),
      {
        'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
        'name': split,
        'numBytes': str(size),
        'shardLengths': [str(count)],
      },
    ],
    **more,
  }
  path.write_text(json.dumps(info))


def write_set(root, documents, name='tiny', features=('text',), split='train'):
  """A TFDS set of one split; a document may be None: no record at all."""
  directory = root / name / '1.0.0'
  directory.mkdir(parents=True, exist_ok=True)
  path = directory / f'{name}-{split}.array_record-00000-of-00001'
  writer = ArrayRecordWriter(str(path), 'group_size:1,uncompressed')
  for document in documents:
    example: Any = tf_example_pb2.Example()  # pyright: ignore
    if document is not None:
      feature = example.features.feature['text']
      feature.bytes_list.value.append(document)
    writer.write(example.SerializeToString() or b'\xff')
  writer.close()
  kind = 'tensorflow_datasets.core.features.text_feature.Text'
  describe(
    directory,
    {key: {'pythonClassName': kind, 'text': {}} for key in features},
    len(documents),
    sum(len(d or b'') for d in documents),
    split,
  )
  return path


def small_text(root, repeats=5):
  """Writes a set of about 250 rows so many times; the keys of runs on it."""
  write_set(root, SENTENCES * repeats)
  return {
    'task.name': 'language_modelling',
    'data.name': 'tiny',
    'data.data_dir': str(root),
    'data.train_split': 'train[:80%]',
    'data.eval_split': 'train[80%:]',
    'data.sequence_length': 10,
    'target.metric': 'loss',
  }
