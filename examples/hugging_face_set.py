"""A set of Hugging Face's `datasets`, or anything with items and a length.

    python examples/hugging_face_set.py DIRECTORY

Where `datasets` is not installed, a list of the same rows stands in for it. A
torch `Dataset` of pairs goes the same way. What does not fit on the devices is
read while it is trained on, in the same order.
"""

import importlib.util
import sys

import sklearn.datasets

from adabatch import config, data
from adabatch.train import train

digits = sklearn.datasets.load_digits()
rows = [
  {'pixels': image.reshape(-1).tolist(), 'digit': int(label)}
  for image, label in zip(digits.images, digits.target, strict=True)
]
parts = rows[:1500], rows[1500:]
if importlib.util.find_spec('datasets'):
  import datasets

  parts = [datasets.Dataset.from_list(part) for part in parts]
splits = [
  data.from_sequence(
    part, input_key='pixels', label_key='digit', num_classes=10
  )
  for part in parts
]

c = config.default()
c.epochs = 5.0
c.data.name = 'digits of a sequence'
c.data.eval_split = 'test'
c.controller.initial_batch_size = 16
c.controller.max_batch_size = 128
summary = train(c, sys.argv[1], splits=tuple(splits))
print(summary['final'])
