"""ResNet-50 on ImageNet with large minibatches, and what warmup does for them.

    python launch.py --config=configs/resnet50_imagenet.py:8k \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS \\
        --config.model.dtype=bfloat16

Goyal et al., Accurate, large minibatch SGD, 2017 (arXiv:1706.02677): 90 epochs,
Nesterov momentum, learning rate 0.1 B / 256, divided by 10 after 30, 60 and 80
epochs, BatchNorm over 32 examples whatever the batch. The part after the colon
names the variant; expected top-1 error on `validation` (%), theirs, over five
seeds:

    :256          B = 256                             23.60 +- 0.12
    :8k           B = 8192, gradual warmup            23.74 +- 0.09
    :8k_constant  B = 8192, constant warmup           25.88 +- 0.56
    :8k_none      B = 8192, no warmup                 24.84 +- 0.37
    :8k_lars      B = 8192, LARS (You et al., 2017, arXiv:1708.03888),
                  polynomial decay and label smoothing as in MLPerf's
                  reference; its learning rate of 10 is from memory and was not
                  tuned here: no number

Hardware: they had 256 GPUs of 2017 for B = 8192. Meant for a TPU slice or a
server with several GPUs; not run here in full. On fewer devices gradients are
accumulated above `buckets.max_per_device` examples each.
"""

from adabatch import config

# batch size, warmup, optimizer
VARIANTS = {
  '256': (256, 'none', 'nesterov'),
  '8k': (8192, 'gradual', 'nesterov'),
  '8k_constant': (8192, 'constant', 'nesterov'),
  '8k_none': (8192, 'none', 'nesterov'),
  '8k_lars': (8192, 'gradual', 'lars'),
}


def get_config(variant='8k'):
  if variant not in VARIANTS:
    raise config.ConfigError(
      f'unknown variant {variant!r}: choose one of {", ".join(VARIANTS)}'
    )
  batch_size, warmup, optimizer = VARIANTS[variant]
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
  c.optimizer.name = optimizer
  c.optimizer.momentum = 0.9
  c.optimizer.weight_decay = 1e-4
  c.learning_rate.base = 0.1
  c.learning_rate.reference_batch_size = 256
  c.learning_rate.scaling = 'linear'
  c.learning_rate.warmup.kind = warmup
  c.learning_rate.warmup.epochs = 5.0
  c.learning_rate.decay.name = 'piecewise'
  c.learning_rate.decay.boundaries = (30.0, 60.0, 80.0)
  c.learning_rate.decay.factor = 0.1
  c.controller.name = 'constant'
  c.controller.initial_batch_size = batch_size
  c.controller.max_batch_size = batch_size
  c.buckets.max_per_device = 256
  c.eval.max_per_device = 256
  c.checkpoint.every_updates = 2000
  if optimizer == 'lars':
    c.task.label_smoothing = 0.1
    c.learning_rate.base = 0.3125  # times 32 at B = 8192
    c.learning_rate.decay.name = 'polynomial'
    c.learning_rate.decay.power = 2.0
  return c
