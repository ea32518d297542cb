"""The simple CNN on Fashion-MNIST, a workload of the steps-to-result curves.

    python launch.py --config=configs/cnn_fashion_mnist.py \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

Shallue et al., 2018 (arXiv:1811.03600): the network of `cnn_mnist.py`, Nesterov
momentum, goal: validation error 0.10, on the last 5,000 training images. Their
fewest steps are about 155, from B = 2048 on; scaling is perfect up to 32 to 128
(read off a figure). They tune the learning rate for each batch size; here the
batch grows by AdaDamp, with a rate that was not tuned.
`cnn_fashion_mnist.py:narrow` and `:wide` have half and twice the width.

Hardware: a CPU does about 700 examples a second on two cores; better a GPU.
"""

from adabatch import config

# channels of the convolutions, units of the dense layer
SIZES = {
  'base': ((32, 64), 1024),
  'narrow': ((16, 32), 512),
  'wide': ((64, 128), 2048),
}


def get_config(size='base'):
  if size not in SIZES:
    raise config.ConfigError(
      f'unknown size {size!r}: choose one of {", ".join(SIZES)}'
    )
  channels, hidden_size = SIZES[size]
  c = config.default()
  c.epochs = 20.0
  c.data.name = 'fashion_mnist'
  c.data.train_split = 'train[:55000]'
  c.data.eval_split = 'train[55000:]'
  c.model.name = 'simple_cnn'
  c.model.simple_cnn.channels = channels
  c.model.simple_cnn.hidden_size = hidden_size
  c.optimizer.name = 'nesterov'
  c.optimizer.momentum = 0.9
  c.learning_rate.base = 0.01
  c.controller.name = 'adadamp'
  c.controller.adadamp.loss_source = 'ema'
  c.controller.initial_batch_size = 32
  c.controller.max_batch_size = 2048
  c.buckets.max_per_device = 256
  c.target.metric = 'accuracy'
  c.target.value = 0.90
  return c
