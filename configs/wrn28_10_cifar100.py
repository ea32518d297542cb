"""Wide ResNet 28-10 on CIFAR-100, a workload of local SGD.

    python launch.py --config=configs/wrn28_10_cifar100.py \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS \\
        --config.model.dtype=bfloat16

Zagoruyko and Komodakis, Wide residual networks, 2016 (arXiv:1605.07146): 200
epochs, B = 128, Nesterov momentum, learning rate 0.1, times 0.2 after 60, 120
and 160 epochs; their test error is 19.25 % without dropout and 18.85 % with
dropout 0.3 (recalled). Lin et al., 2018 (arXiv:1808.07217) use it for local
SGD.

Hardware: one GPU, better several; not run here in full.
"""

from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 200.0
  c.data.name = 'cifar100'
  c.data.train_split = 'train'
  c.data.eval_split = 'test'
  c.data.crop_padding = 4
  c.data.flip = True
  c.model.name = 'wide_resnet'
  c.model.wide_resnet.depth = 28
  c.model.wide_resnet.widen_factor = 10
  c.model.wide_resnet.dropout_rate = 0.3
  c.model.wide_resnet.batch_norm_group = 128
  c.optimizer.name = 'nesterov'
  c.optimizer.momentum = 0.9
  c.optimizer.weight_decay = 5e-4
  c.learning_rate.base = 0.1
  c.learning_rate.decay.name = 'piecewise'
  c.learning_rate.decay.boundaries = (60.0, 120.0, 160.0)
  c.learning_rate.decay.factor = 0.2
  c.controller.name = 'constant'
  c.controller.initial_batch_size = 128
  c.controller.max_batch_size = 128
  c.buckets.max_per_device = 256
  return c
