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


def write_tfds(root, images, labels, shape=(None, None, 3), name='tiny'):
  """Writes ROOT/NAME/1.0.0 with one split, 'train', of 3 classes.

  Args:
    root: the data_dir.
    images: arrays, which become PNGs, or bytes, which are kept.
    labels: one integer each.
    shape: what the set says of its images.
    name: the set's name.

  Returns:
    The directory.
  """
  directory = root / name / '1.0.0'
  directory.mkdir(parents=True)
  path = directory / f'{name}-train.array_record-00000-of-00001'
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
      'classLabel': {'numClasses': '3'},
      'pythonClassName': f'{features}.class_label_feature.ClassLabel',
    },
  }
  (directory / 'features.json').write_text(
    json.dumps(
      {
        'featuresDict': {'features': inner},
        'pythonClassName': f'{features}.features_dict.FeaturesDict',
      }
    )
  )
  keys = [{'featureKey': 'image'}, {'featureKey': 'label'}]
  info = {
    'fileFormat': 'array_record',
    'name': name,
    'version': '1.0.0',
    'splits': [
      {
        'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
        'name': 'train',
        'numBytes': '1000',
        'shardLengths': [str(len(images))],
      }
    ],
    'supervisedKeys': {'tuple': {'items': keys}},
  }
  (directory / 'dataset_info.json').write_text(json.dumps(info))
  return directory
