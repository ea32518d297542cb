"""A way to agree of one's own: local SGD whose period grows with time.

    python launch.py --config=examples/own_sync_rule.py \\
        --config.sync.growing.doubling=500

Four replicas train alone and meet every H updates; H doubles every `doubling`
examples, from `sync.local_steps` to `most`.
"""

import adabatch
from adabatch import config
from adabatch.optim import sync


def growing(local_steps, doubling=1000, most=16):
  """H = min(local_steps * 2^floor(examples / doubling), most)."""

  def period(examples, batch_size, damping):
    del batch_size, damping
    return min(local_steps * 2 ** (examples // doubling), most)

  return sync.local_sgd(local_steps)._replace(period=period)


def get_config():
  c = config.default()
  c.epochs = 5.0
  c.controller.name = 'constant'
  c.controller.initial_batch_size = 32
  c.sync.replicas = 4
  c.sync.local_steps = 2
  adabatch.register(c, 'sync', 'growing', growing)
  return c
