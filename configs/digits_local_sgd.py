"""Local SGD on scikit-learn's handwritten digits, seconds on a laptop.

    python launch.py --config=configs/digits_local_sgd.py

Four replicas of a small MLP, 16 examples each, agree every 8 updates.

Expected: validation accuracy above 0.95.
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
  c.optimizer.name = 'nesterov'
  c.optimizer.momentum = 0.9
  c.optimizer.weight_decay = 1e-4
  c.learning_rate.base = 0.05
  c.learning_rate.decay.name = 'cosine'
  c.controller.name = 'constant'
  c.controller.initial_batch_size = 64
  c.controller.max_batch_size = 64
  c.sync.name = 'local_sgd'
  c.sync.replicas = 4
  c.sync.local_steps = 8
  return c
