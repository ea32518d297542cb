"""ResNet-8 without BatchNorm on CIFAR-10, to a validation error below 0.30.

    python launch.py --config=configs/resnet8_cifar10.py \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

A workload of Shallue et al., 2018 (arXiv:1811.03600): goal: validation error
0.30, which they reach in about 700 to 950 updates of Nesterov momentum from
B = 512 on; scaling is perfect up to 256 (read off a figure). Here the
validation set is the last 5,000 training images; the batch grows by AdaDamp.

Expected: error 0.278 after 3,690 updates and 270,080 examples (6 epochs, seed
0), in six minutes on two CPU cores (x86-64, JAX 0.10.2). The batch grows from
32 to 128. The learning rate was chosen among three.
"""

from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 12.0
  c.data.name = 'cifar10'
  c.data.train_split = 'train[:45000]'
  c.data.eval_split = 'train[45000:]'
  c.data.flip = True
  c.model.name = 'cifar_resnet'
  c.model.cifar_resnet.depth = 8
  c.model.cifar_resnet.batch_norm_group = 0
  c.optimizer.name = 'nesterov'
  c.optimizer.momentum = 0.9
  c.learning_rate.base = 0.05
  c.learning_rate.reference_batch_size = 64
  c.learning_rate.scaling = 'sqrt'
  c.learning_rate.decay.name = 'linear'
  c.learning_rate.decay.final = 0.05
  c.controller.name = 'adadamp'
  c.controller.adadamp.loss_source = 'ema'
  c.controller.initial_batch_size = 32
  c.controller.max_batch_size = 256
  c.controller.every = 20
  c.buckets.max_per_device = 256
  c.buckets.rounding = 'nearest'
  c.target.metric = 'accuracy'
  c.target.value = 0.70
  return c
