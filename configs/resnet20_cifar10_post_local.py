"""ResNet-20 on CIFAR-10 with post-local SGD: 16 replicas, from epoch 150 on.

    python launch.py --config=configs/resnet20_cifar10_post_local.py \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

Lin et al., Don't use large mini-batches, use local SGD, 2018
(arXiv:1808.07217): K = 16 replicas with 128 examples each, learning rate 3.2
after a warmup of 5 epochs from 0.1, divided by 10 after 150 and 225 of 300
epochs; replicas agree at every update before the first drop, then every 16.
Nesterov momentum, kept by each replica. Expected test accuracy (%), theirs:
92.80 +- 0.16 with H = 16, 93.02 +- 0.24 with H = 32; the large batch without
replicas (sync.name=synchronous) 92.48 +- 0.17, the small batch 92.63 +- 0.26
(configs/resnet20_cifar10.py).

BatchNorm is over the 128 examples of a replica, as on the authors' GPUs.

Hardware: 16 GPUs, or fewer with several replicas on each; not run here in full.
"""

from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 300.0
  c.data.name = 'cifar10'
  c.data.train_split = 'train'
  c.data.eval_split = 'test'
  c.data.crop_padding = 4
  c.data.flip = True
  c.model.name = 'cifar_resnet'
  c.model.cifar_resnet.depth = 20
  c.model.cifar_resnet.batch_norm_group = 128
  c.optimizer.name = 'nesterov'
  c.optimizer.momentum = 0.9
  c.optimizer.weight_decay = 1e-4
  c.learning_rate.base = 0.1
  c.learning_rate.reference_batch_size = 64
  c.learning_rate.scaling = 'linear'
  c.learning_rate.warmup.kind = 'gradual'
  c.learning_rate.warmup.epochs = 5.0
  c.learning_rate.decay.name = 'piecewise'
  c.learning_rate.decay.boundaries = (150.0, 225.0)
  c.learning_rate.decay.factor = 0.1
  c.controller.name = 'constant'
  c.controller.initial_batch_size = 2048
  c.controller.max_batch_size = 2048
  c.sync.name = 'post_local_sgd'
  c.sync.replicas = 16
  c.sync.local_steps = 16
  return c
