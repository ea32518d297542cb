"""AdaDamp on scikit-learn's handwritten digits: an MLP, seconds on a laptop.

    python launch.py --config=configs/digits_mlp.py

Expected: validation accuracy above 0.95; the batch size grows from 16 to 512.
"""

from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 40.0
  c.data.name = 'digits'
  c.data.train_split = 'train'
  c.data.eval_split = 'validation'
  c.model.name = 'mlp'
  c.model.mlp.hidden_sizes = (128, 128)
  c.optimizer.name = 'momentum'
  c.optimizer.momentum = 0.9
  c.learning_rate.base = 0.02
  c.controller.name = 'adadamp'
  c.controller.adadamp.loss_source = 'full'
  c.controller.initial_batch_size = 16
  c.controller.max_batch_size = 512
  c.controller.every = 20
  return c
