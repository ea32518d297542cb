"""ResNet-20 on CIFAR-10, the small-batch baseline of post-local SGD.

    python launch.py --config=configs/resnet20_cifar10.py \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

Lin et al., Don't use large mini-batches, use local SGD, 2018
(arXiv:1808.07217): 300 epochs, B = 128, Nesterov momentum, learning rate 0.1,
divided by 10 after 150 and 225 epochs. Expected test accuracy (%), theirs:
92.63 +- 0.26 with a small batch; 92.48 +- 0.17 with 16 times 128 and learning
rate 3.2 after a warmup of 5 epochs from 0.1, which is

    --config.controller.initial_batch_size=2048
    --config.controller.max_batch_size=2048
    --config.learning_rate.scaling=linear
    --config.learning_rate.warmup.kind=gradual
    --config.learning_rate.warmup.epochs=5

Hardware: one GPU; not run here in full.
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
  c.learning_rate.decay.name = 'piecewise'
  c.learning_rate.decay.boundaries = (150.0, 225.0)
  c.learning_rate.decay.factor = 0.1
  c.controller.name = 'constant'
  c.controller.initial_batch_size = 128
  c.controller.max_batch_size = 128
  return c
