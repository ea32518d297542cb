"""VGG-11 on ImageNet, a workload of the steps-to-result curves.

    python launch.py --config=configs/vgg11_imagenet.py \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS \\
        --config.model.dtype=bfloat16

Shallue et al., Measuring the effects of data parallelism on neural network
training, 2018 (arXiv:1811.03600): Nesterov momentum, goal: validation error
0.35. Their fewest steps are about 13,800 at B = 32768; scaling is perfect up to
about 1024 (read off a figure). They tune the learning rate for each batch size;
the one below is a common choice for B = 256 and was not tuned here.

Hardware: a TPU slice or a server with several GPUs; not run here in full.
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
  c.model.name = 'vgg'
  c.model.vgg.depth = 11
  c.optimizer.name = 'nesterov'
  c.optimizer.momentum = 0.9
  c.optimizer.weight_decay = 5e-4
  c.learning_rate.base = 0.01
  c.learning_rate.reference_batch_size = 256
  c.learning_rate.scaling = 'linear'
  c.learning_rate.warmup.kind = 'gradual'
  c.learning_rate.warmup.epochs = 5.0
  c.learning_rate.decay.name = 'linear'
  c.learning_rate.decay.final = 0.01
  c.controller.name = 'constant'
  c.controller.initial_batch_size = 1024
  c.controller.max_batch_size = 1024
  c.buckets.max_per_device = 256
  c.eval.max_per_device = 256
  c.target.metric = 'accuracy'
  c.target.value = 0.65
  c.checkpoint.every_updates = 2000
  return c
