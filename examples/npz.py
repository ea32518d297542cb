"""Arrays of a NumPy file, trained by its path.

    python examples/npz.py DIRECTORY

makes digits.npz with x_train, y_train, x_test, y_test (uint8 images), and does
what this command does:

    python launch.py --config.data.name=npz:PATH/digits.npz \\
        --config.data.train_split=train --config.data.eval_split=test

A file with `x` and `y` alone has one split, to be cut: 'train[:90%]'. Other
names are given by `data.input_key` and `data.label_key`.
"""

import pathlib
import sys

import numpy as np
import sklearn.datasets

from adabatch import config
from adabatch.train import train

directory = pathlib.Path(sys.argv[1])
directory.mkdir(parents=True, exist_ok=True)
digits = sklearn.datasets.load_digits()
x, y = (digits.images * 15).astype(np.uint8), digits.target
np.savez(
  directory / 'digits.npz',
  x_train=x[:1500],
  y_train=y[:1500],
  x_test=x[1500:],
  y_test=y[1500:],
)

c = config.default()
c.epochs = 5.0
c.data.name = f'npz:{directory}/digits.npz'
c.data.eval_split = 'test'
c.controller.initial_batch_size = 16
c.controller.max_batch_size = 128
summary = train(c, directory / 'run')
print(summary['final'])
