"""ResNet-34 on CIFAR-10: the batch grows where the learning rate would fall.

    python launch.py --config=configs/resnet34_cifar10.py \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

Smith et al., Don't decay the learning rate, increase the batch size, 2018
(arXiv:1711.00489), on the ResNet-34 with a 3x3 stem that is usual for CIFAR-10:
at epochs 60, 120 and 160 of 200 the batch becomes five times as large, from 128
to at most 5120, and then the learning rate falls. No published number is known
for this network and schedule, and it was not run here in full; a constant batch
of 128 with the decay itself is

    --config.controller.name=constant

Hardware: one GPU.
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
  c.model.name = 'resnet'
  c.model.resnet.depth = 34
  c.model.resnet.stem = 'cifar'
  c.model.resnet.batch_norm_group = 128
  c.optimizer.name = 'nesterov'
  c.optimizer.momentum = 0.9
  c.optimizer.weight_decay = 5e-4
  c.learning_rate.base = 0.1
  c.learning_rate.decay.name = 'piecewise'
  c.learning_rate.decay.boundaries = (60.0, 120.0, 160.0)
  c.learning_rate.decay.factor = 0.2
  c.controller.name = 'from_lr_schedule'
  c.controller.initial_batch_size = 128
  c.controller.max_batch_size = 5120
  c.buckets.max_per_device = 1024
  return c
