"""LeNet-5 on MNIST with CROSSBOW's synchronous model averaging.

    python launch.py --config=configs/lenet_mnist_sma.py \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

Koliousis et al., 2019 (arXiv:1901.02244): the smallest of their networks, with
learners of 4 examples each, so few that one of them leaves most of a GPU idle.
Eight learners here, drawn to the central model after every update. The learning
rate is not theirs and was not tuned.

Hardware: a GPU, or two CPU cores. Not run here: MNIST is not at hand; the same
with --config.data.name=fashion_mnist runs.
"""

from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 10.0
  c.data.name = 'mnist'
  c.data.train_split = 'train'
  c.data.eval_split = 'test'
  c.model.name = 'lenet'
  c.optimizer.name = 'sgd'
  c.optimizer.weight_decay = 1e-4
  c.learning_rate.base = 0.02
  c.learning_rate.decay.name = 'cosine'
  c.controller.name = 'constant'
  c.controller.initial_batch_size = 32
  c.controller.max_batch_size = 32
  c.sync.name = 'sma'
  c.sync.replicas = 8
  c.sync.local_steps = 1
  c.sync.sma.rho = 1.0
  c.sync.sma.momentum = 0.9
  c.target.metric = 'accuracy'
  c.target.value = 0.99
  return c
