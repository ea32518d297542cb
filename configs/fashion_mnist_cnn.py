"""AdaDamp on Fashion-MNIST: a small strided CNN, a minute on two cores.

    python launch.py --config=configs/fashion_mnist_cnn.py \
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

Expected: test accuracy about 0.908 after 3,254 updates (seed 0); the batch size
grows from 32 to 1024.

Any other 28x28 or 32x32 image set with a test split runs unchanged, with
`--config.data.name=mnist` for example.
"""

from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 30.0
  c.data.name = 'fashion_mnist'
  c.data.train_split = 'train'
  c.data.eval_split = 'test'
  c.model.name = 'strided_cnn'
  c.optimizer.name = 'momentum'
  c.optimizer.momentum = 0.9
  c.learning_rate.base = 0.02
  c.controller.name = 'adadamp'
  c.controller.adadamp.loss_source = 'ema'
  c.controller.initial_batch_size = 32
  c.controller.max_batch_size = 1024
  c.controller.every = 20
  c.buckets.max_per_device = 256  # where a CPU's convolutions are fastest
  return c
