"""A network of Equinox, trained by its constructor's arguments as keys.

    python launch.py --config=examples/equinox_network.py \\
        --config.model.convolutions.channels=16

It is called with one example; `key` differs for each place in a batch, so that
results do not depend on the devices.
"""

import equinox as eqx
import jax

import adabatch
from adabatch import config


class Convolutions(eqx.Module):
  conv: eqx.nn.Conv2d
  dropout: eqx.nn.Dropout
  out: eqx.nn.Linear

  def __init__(self, num_classes, channels=8, rate=0.1, *, key):
    one, two = jax.random.split(key)
    self.conv = eqx.nn.Conv2d(1, channels, 3, stride=2, padding=1, key=one)
    self.dropout = eqx.nn.Dropout(rate)
    self.out = eqx.nn.Linear(16 * channels, num_classes, key=two)

  def __call__(self, image, *, key):
    x = self.conv(image.transpose(2, 0, 1))  # channels come first
    x = self.dropout(jax.nn.relu(x).reshape(-1), key=key)
    return self.out(x)


def get_config():
  c = config.default()
  c.epochs = 5.0
  c.controller.initial_batch_size = 16
  c.controller.max_batch_size = 128
  adabatch.register(c, 'model', 'convolutions', Convolutions)
  return c
