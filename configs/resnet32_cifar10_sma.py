"""ResNet-32 on CIFAR-10 with CROSSBOW's synchronous model averaging.

    python launch.py --config=configs/resnet32_cifar10_sma.py \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

Koliousis et al., CROSSBOW: scaling deep learning with small batch sizes on
multi-GPU servers, 2019 (arXiv:1901.02244): learners without momentum of their
own, 64 examples each, drawn to a central model that has momentum 0.9 after
every update. Where the learning rate drops they start again from it. Their
claim is 1.3 to 4 times less time to an accuracy than synchronous SGD on a
server with 8 GPUs. Here K = 16: two learners on each of 8 GPUs;

    --config.sync.tune.enabled=True

lets the program find how many a device should train. The drops of the learning
rate after 80 and 120 of 160 epochs are the usual ones of this network.

Hardware: 8 GPUs, or fewer with more learners on each; not run here in full.
"""

from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 160.0
  c.data.name = 'cifar10'
  c.data.train_split = 'train'
  c.data.eval_split = 'test'
  c.data.crop_padding = 4
  c.data.flip = True
  c.model.name = 'cifar_resnet'
  c.model.cifar_resnet.depth = 32
  c.model.cifar_resnet.batch_norm_group = 64
  c.optimizer.name = 'sgd'
  c.optimizer.weight_decay = 1e-4
  c.learning_rate.base = 0.1
  c.learning_rate.decay.name = 'piecewise'
  c.learning_rate.decay.boundaries = (80.0, 120.0)
  c.learning_rate.decay.factor = 0.1
  c.controller.name = 'constant'
  c.controller.initial_batch_size = 1024
  c.controller.max_batch_size = 1024
  c.sync.name = 'sma'
  c.sync.replicas = 16
  c.sync.local_steps = 1
  c.sync.sma.rho = 1.0
  c.sync.sma.momentum = 0.9
  return c
