"""Wide ResNet 16-4 on CIFAR-10 with a batch that grows at three epochs.

    python launch.py --config=configs/wrn16_4_cifar10.py \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

The authors of AdaDamp (Sievert and Charles, 2019, arXiv:1910.08222) report for
200 epochs and one seed, with a batch from 256 to 5120 and a learning rate that
falls from there on: 91.95 % test accuracy after 14,960 updates; with decay of
the learning rate at B = 128: 92.05 % after 78,200; with a batch from 128 to
16,000: 91.86 % after 29,240. The first is this config, with the boundaries and
the factor of Zagoruyko and Komodakis, 2016 (arXiv:1605.07146). AdaDamp itself
is

    --config.controller.name=adadamp --config.learning_rate.decay.name=constant

Hardware: one GPU; not run here in full.
"""

from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 200.0
  c.data.name = 'cifar10'
  c.data.train_split = 'train'
  c.data.eval_split = 'test'
  c.data.crop_padding = 4
  c.data.flip = True
  c.model.name = 'wide_resnet'
  c.model.wide_resnet.depth = 16
  c.model.wide_resnet.widen_factor = 4
  c.model.wide_resnet.batch_norm_group = 128
  c.optimizer.name = 'nesterov'
  c.optimizer.momentum = 0.9
  c.optimizer.weight_decay = 5e-4
  c.learning_rate.base = 0.1
  c.learning_rate.decay.name = 'piecewise'
  c.learning_rate.decay.boundaries = (60.0, 120.0, 160.0)
  c.learning_rate.decay.factor = 0.2
  c.controller.name = 'from_lr_schedule'
  c.controller.initial_batch_size = 256
  c.controller.max_batch_size = 5120
  c.buckets.max_per_device = 1024
  return c
