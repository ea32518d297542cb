"""ResNet-50 on ImageNet with a batch that grows as the training loss falls.

    python launch.py --config=configs/resnet50_imagenet_adadamp.py \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS \\
        --config.model.dtype=bfloat16

AdaDamp (Sievert and Charles, 2019, arXiv:1910.08222) in place of the decay of
Goyal et al., 2017 (arXiv:1706.02677): B = 256 at first, up to 8192, and from
there on the learning rate is damped. To be compared with a top-1 error of
23.60 +- 0.12 % after 450,000 updates of B = 256 (`resnet50_imagenet.py:256`);
there is no published number for this run and it was not run here.

Hardware: a TPU slice or a server with several GPUs.
"""

from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 90.0
  c.data.name = 'imagenet2012'
  c.data.train_split = 'train'
  c.data.eval_split = 'validation'
  c.data.flip = True
  c.data.mean = (0.485, 0.456, 0.406)
  c.data.std = (0.229, 0.224, 0.225)
  c.model.name = 'resnet'
  c.model.resnet.depth = 50
  c.optimizer.name = 'nesterov'
  c.optimizer.momentum = 0.9
  c.optimizer.weight_decay = 1e-4
  c.learning_rate.base = 0.1
  c.learning_rate.decay.name = 'constant'
  c.controller.name = 'adadamp'
  c.controller.adadamp.loss_source = 'ema'
  c.controller.adadamp.decay = 0.99
  c.controller.initial_batch_size = 256
  c.controller.max_batch_size = 8192
  c.controller.every = 100
  c.buckets.max_per_device = 256
  c.eval.max_per_device = 256
  c.checkpoint.every_updates = 2000
  return c
