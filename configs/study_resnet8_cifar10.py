"""Steps to result of ResNet-8 on CIFAR-10: plain SGD against Nesterov momentum.

    python launch.py --config=configs/study_resnet8_cifar10.py --job=study \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

Shallue et al., 2018 (arXiv:1811.03600): goal: validation error 0.30; ResNet-8
without BatchNorm; learning rate, momentum and a linear decay (its length and
its end) are tuned, 100 trials that do not diverge at each batch size. Theirs,
read off a figure: with Nesterov momentum perfect scaling up to 256, a plateau
from 512 and about 700 to 950 steps there; plain SGD scales up to 16 or 32 and
needs about 3,100 to 3,600. Here the validation set is the last 5,000 training
images, and images are flipped at random. Of the published spaces only
ResNet-50's is known here (its archive's description); this one takes its
ranges.

Hardware: two CPU cores do about 1,000 examples a second, five minutes for one
trial; meant for GPUs, a worker on each. Not run here in full.
"""

from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 100.0
  c.max_updates = 50_000
  c.data.name = 'cifar10'
  c.data.train_split = 'train[:45000]'
  c.data.eval_split = 'train[45000:]'
  c.data.flip = True
  c.model.name = 'cifar_resnet'
  c.model.cifar_resnet.depth = 8
  c.model.cifar_resnet.batch_norm_group = 0
  c.learning_rate.decay.name = 'linear'
  c.learning_rate.decay.unit = 'run'
  c.learning_rate.decay.length = 1.0
  c.buckets.max_per_device = 8192
  c.eval.every_epochs = 0.01
  c.eval.growth = 1.05
  c.eval.max_per_device = 5000
  c.target.metric = 'accuracy'
  c.target.value = 0.70
  c.search.space = (
    ('learning_rate.base', 'log', 1e-4, 10.0),
    ('optimizer.momentum', 'reverse_log', 0.9, 0.9999),
    ('learning_rate.decay.length', 'linear', 0.5, 1.0),
    ('learning_rate.decay.final', 'log', 1e-4, 0.1),
  )
  c.search.trials = 100
  c.study.batch_sizes = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
  c.study.optimizers = ('sgd', 'nesterov')
  return c
