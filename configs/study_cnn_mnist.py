"""Steps to result of the simple CNN on MNIST, SGD, momentum and Nesterov.

    python launch.py --config=configs/study_cnn_mnist.py --job=study \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

Shallue et al., 2018 (arXiv:1811.03600): goal: validation error 0.01 on the last
5,000 training images; two 5x5 convolutions (32, 64 channels) and a layer of
1,024 units; 100 trials that do not diverge at each batch size. Theirs, read off
a figure, with Nesterov momentum: perfect scaling up to about 32, a plateau from
about 2,048, and about 130 to 190 steps there. Of the published spaces only
ResNet-50's is known here (its archive's description); this one takes the ranges
of learning rate and momentum from it.

Hardware: two CPU cores do about 700 examples a second, which is days for one
batch size; meant for GPUs, a worker on each. Not run here: MNIST is not at
hand.
"""

from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 200.0
  c.max_updates = 80_000
  c.data.name = 'mnist'
  c.data.train_split = 'train[:55000]'
  c.data.eval_split = 'train[55000:]'
  c.model.name = 'simple_cnn'
  c.model.simple_cnn.channels = (32, 64)
  c.model.simple_cnn.hidden_size = 1024
  c.buckets.max_per_device = 8192
  c.eval.every_epochs = 0.001
  c.eval.growth = 1.05
  c.eval.max_per_device = 5000
  c.target.metric = 'accuracy'
  c.target.value = 0.99
  c.search.space = (
    ('learning_rate.base', 'log', 1e-4, 10.0),
    ('optimizer.momentum', 'reverse_log', 0.9, 0.9999),
  )
  c.search.trials = 100
  c.study.batch_sizes = (2, 8, 32, 128, 512, 2048, 8192, 32768, 55000)
  c.study.optimizers = ('sgd', 'momentum', 'nesterov')
  return c
