"""DenseNet-40 of growth rate 12 on CIFAR-100, a workload of local SGD.

    python launch.py --config=configs/densenet40_cifar100.py \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

Huang et al., Densely connected convolutional networks, 2017 (arXiv:1608.06993):
300 epochs, B = 64, Nesterov momentum, learning rate 0.1, divided by 10 after
150 and 225 epochs, weight decay 1e-4; their test error with augmentation is
24.42 % (recalled). Lin et al., 2018 (arXiv:1808.07217) use it for local SGD.

Hardware: one GPU; not run here in full.
"""

from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 300.0
  c.data.name = 'cifar100'
  c.data.train_split = 'train'
  c.data.eval_split = 'test'
  c.data.crop_padding = 4
  c.data.flip = True
  c.model.name = 'densenet'
  c.model.densenet.depth = 40
  c.model.densenet.growth_rate = 12
  c.model.densenet.batch_norm_group = 64
  c.optimizer.name = 'nesterov'
  c.optimizer.momentum = 0.9
  c.optimizer.weight_decay = 1e-4
  c.learning_rate.base = 0.1
  c.learning_rate.decay.name = 'piecewise'
  c.learning_rate.decay.boundaries = (150.0, 225.0)
  c.learning_rate.decay.factor = 0.1
  c.controller.name = 'constant'
  c.controller.initial_batch_size = 64
  c.controller.max_batch_size = 64
  c.buckets.max_per_device = 256
  return c
