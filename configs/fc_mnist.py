"""A fully connected network on MNIST, a workload of the steps-to-result curves.

    python launch.py --config=configs/fc_mnist.py \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

Shallue et al., 2018 (arXiv:1811.03600) train nets of one to three hidden layers
of 64 to 2048 units; this one has a single layer of 1024. Other widths:

    --config.model.mlp.hidden_sizes='(256, 256, 256)'

The batch grows by AdaDamp with a learning rate that was not tuned.

Hardware: two CPU cores do about 60,000 examples a second. Not run here: MNIST
is not at hand (`--config.data.name=fashion_mnist` runs as well)."""

from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 20.0
  c.data.name = 'mnist'
  c.data.train_split = 'train[:55000]'
  c.data.eval_split = 'train[55000:]'
  c.model.name = 'mlp'
  c.model.mlp.hidden_sizes = (1024,)
  c.optimizer.name = 'nesterov'
  c.optimizer.momentum = 0.9
  c.learning_rate.base = 0.02
  c.controller.name = 'adadamp'
  c.controller.adadamp.loss_source = 'ema'
  c.controller.initial_batch_size = 32
  c.controller.max_batch_size = 2048
  c.updates_per_call = 20
  return c
