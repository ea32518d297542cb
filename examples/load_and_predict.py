"""A trained network, taken home: from the directory of its run alone.

    python examples/load_and_predict.py DIRECTORY

`load` gives it with its preprocessing; neither the data nor their statistics
are needed. A network of your own must be registered first: call its get_config.
"""

import sys

import jax
import numpy as np
import sklearn.datasets

import adabatch
from adabatch import config
from adabatch.train import train

c = config.default()
c.epochs = 5.0
c.controller.initial_batch_size = 16
c.controller.max_batch_size = 128
summary = train(c, sys.argv[1])
print(summary['final'])

network = adabatch.load(sys.argv[1])  # or load(directory, 120), of an update
digits = sklearn.datasets.load_digits()
images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
predicted = np.argmax(network(images), -1)
accuracy = np.mean(predicted == digits.target)
print(f'{accuracy:.3f} of all digits, after {network.update} updates')
print('parameters:', jax.tree.map(np.shape, network.params))
