"""A parquet file of encoded images, trained by its path.

    python examples/parquet.py DIRECTORY

makes digits.parquet as hubs of data have it, a column `image` of bytes and one
of labels, and does what this command does:

    python launch.py --config.data.name=parquet:PATH/digits.parquet \\
        --config.data.train_split='train[:90%]' \\
        --config.data.eval_split='train[90%:]'

A folder with train-0.parquet, train-1.parquet, val.parquet has the splits
`train` and `val`. Columns of numbers, or lists of them, are a table.
"""

import io
import pathlib
import sys

import numpy as np
import pyarrow as pa
import sklearn.datasets
from PIL import Image
from pyarrow import parquet

from adabatch import config
from adabatch.train import train


def encode(image):
  file = io.BytesIO()
  pixels = (image * 15).astype(np.uint8)
  Image.fromarray(pixels).convert('RGB').save(file, 'PNG')
  return {'bytes': file.getvalue(), 'path': None}


directory = pathlib.Path(sys.argv[1])
directory.mkdir(parents=True, exist_ok=True)
digits = sklearn.datasets.load_digits()
columns = {'image': map(encode, digits.images), 'label': digits.target}
table = pa.table({name: list(values) for name, values in columns.items()})
parquet.write_table(table, directory / 'digits.parquet')

c = config.default()
c.epochs = 5.0
c.data.name = f'parquet:{directory}/digits.parquet'
c.data.train_split = 'train[:90%]'
c.data.eval_split = 'train[90%:]'
c.controller.initial_batch_size = 16
c.controller.max_batch_size = 128
summary = train(c, directory / 'run')
print(summary['final'])
