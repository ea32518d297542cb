"""A network of Flax NNX, trained by its constructor's arguments as keys.

    python launch.py --config=examples/nnx_network.py \\
        --config.model.two_layers.width=32

Plain `nnx.Dropout` is random in training alone. A BatchNorm would be refused:
its statistics would depend on the devices; LayerNorm, GroupNorm and RMSNorm are
of each example.
"""

from flax import nnx

import adabatch
from adabatch import config


class TwoLayers(nnx.Module):
  def __init__(self, num_classes, width=64, rate=0.1, *, rngs):
    self.hidden = nnx.Linear(64, width, rngs=rngs)
    self.norm = nnx.LayerNorm(width, rngs=rngs)
    self.dropout = nnx.Dropout(rate, rngs=rngs)
    self.out = nnx.Linear(width, num_classes, rngs=rngs)

  def __call__(self, x):
    x = self.norm(self.hidden(x.reshape(len(x), -1)))
    return self.out(self.dropout(nnx.relu(x)))


def get_config():
  c = config.default()
  c.epochs = 5.0
  c.controller.initial_batch_size = 16
  c.controller.max_batch_size = 128
  adabatch.register(c, 'model', 'two_layers', TwoLayers)
  return c
