"""Steps to result of a fully connected network on Fashion-MNIST.

    python launch.py --config=configs/study_fashion_mnist_fc.py --job=study \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

After Shallue et al., 2018 (arXiv:1811.03600), who train such nets on MNIST: at
each of ten batch sizes learning rate and momentum are tuned anew, for plain SGD
and for Nesterov momentum. The goal, a validation error below 0.12 on the last
10,000 training images, was chosen so that every batch size can reach it in
minutes.

Expected: docs/fashion_mnist_fc.md. With Nesterov momentum perfect scaling up to
512, a plateau of about 150 updates from 1,024 on; plain SGD leaves the line at
32 and needs 400. Took an hour on two CPU cores (x86-64, JAX 0.10.2) beside
other work, the last quarter of it with two workers: the same command started
twice.
"""

from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 40.0
  c.max_updates = 20_000
  c.data.name = 'fashion_mnist'
  c.data.train_split = 'train[:50000]'
  c.data.eval_split = 'train[50000:]'
  c.model.name = 'mlp'
  c.model.mlp.hidden_sizes = (128, 128)
  c.eval.every_epochs = 0.005
  c.eval.growth = 1.05
  c.eval.max_per_device = 10_000
  c.buckets.max_per_device = 8192
  c.target.metric = 'accuracy'
  c.target.value = 0.88
  c.search.space = (
    ('learning_rate.base', 'log', 3e-4, 10.0),
    ('optimizer.momentum', 'reverse_log', 0.5, 0.999),
  )
  c.search.trials = 30
  c.study.batch_sizes = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
  c.study.optimizers = ('sgd', 'nesterov')
  return c
