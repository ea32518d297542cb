"""Steps to result of ResNet-50 on ImageNet, with the published search space.

    python launch.py --config=configs/study_resnet50_imagenet.py --job=study \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

Shallue et al., 2018 (arXiv:1811.03600): goal: validation error 0.25, Nesterov
momentum; the space is that of the published archive at B = 256 (600,000 steps):
learning rate, momentum, length and end of a linear decay, label smoothing; 100
trials that do not diverge at each batch size. Theirs, read off a figure:
perfect scaling up to 8,192, a plateau not before 32,768, about 6,500 steps
there. They held validation images out of the training set; here the goal is
measured on `validation`. Each trial is a run of its own that streams its data.

With workers on many machines give them one storage:

    --config.search.storage=postgresql://USER:PASSWORD@HOST/NAME

Hardware: 100 trials of 90 epochs at ten batch sizes; TPU slices. Not run here.
"""

from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 120.0
  c.max_updates = 600_000
  c.data.name = 'imagenet2012'
  c.data.train_split = 'train'
  c.data.eval_split = 'validation'
  c.data.flip = True
  c.data.mean = (0.485, 0.456, 0.406)
  c.data.std = (0.229, 0.224, 0.225)
  c.model.name = 'resnet'
  c.model.resnet.depth = 50
  c.model.dtype = 'bfloat16'
  c.optimizer.weight_decay = 1e-4
  c.learning_rate.decay.name = 'linear'
  c.learning_rate.decay.unit = 'run'
  c.learning_rate.decay.length = 1.0
  c.buckets.max_per_device = 256
  c.eval.max_per_device = 256
  c.eval.every_epochs = 0.25
  c.checkpoint.every_updates = 2000
  c.target.metric = 'accuracy'
  c.target.value = 0.75
  c.search.space = (
    ('learning_rate.base', 'log', 1e-4, 10.0),
    ('optimizer.momentum', 'reverse_log', 0.9, 0.9999),
    ('learning_rate.decay.length', 'linear', 0.5, 1.0),
    ('learning_rate.decay.final', 'log', 1e-4, 0.1),
    ('task.label_smoothing', 'discrete', 0.0, 0.01, 0.1),
  )
  c.search.trials = 100
  c.search.grace = 1800.0
  c.study.batch_sizes = (
    *(64, 128, 256, 512, 1024, 2048),
    *(4096, 8192, 16384, 32768, 65536),
  )
  c.study.optimizers = ('nesterov',)
  return c
