"""A task of one's own: focal loss (Lin et al., 2017, arXiv:1708.02002).

    python launch.py --config=examples/own_task.py --config.task.focal.gamma=1.0

A task gives a number for each example, and never a mean: the trainer weighs and
sums them over microbatches, devices and processes. Shapes are checked before
the first update.
"""

import jax
import jax.numpy as jnp

import adabatch
from adabatch import config
from adabatch.models.tasks import classification


def focal(gamma=2.0):
  """(1 - p)^gamma times the cross-entropy, p that of the right class."""
  plain = classification()

  def loss(logits, batch):
    right = batch['label'][:, None]
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), right, 1)[:, 0]
    return -((1 - jnp.exp(log_p)) ** gamma) * log_p

  def metrics(logits, batch):
    values = plain.metrics(logits, batch)
    return values | {'loss': loss(logits, batch), 'nats': values['loss']}

  return plain._replace(
    loss=loss,
    metrics=metrics,
    metric_names=('loss', 'accuracy', 'nats'),
    higher_is_better={'loss': False, 'accuracy': True, 'nats': False},
  )


def get_config():
  c = config.default()
  c.epochs = 5.0
  c.controller.initial_batch_size = 16
  c.controller.max_batch_size = 128
  adabatch.register(c, 'task', 'focal', focal)
  return c
