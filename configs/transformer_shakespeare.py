"""A small Transformer on the characters of Shakespeare, minutes on two cores.

    python launch.py --config=configs/transformer_shakespeare.py \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

The text of Karpathy's char-rnn (2015), byte by byte: 1.0 MB to train on, 56 kB
to validate. The batch counts rows of 128 characters and grows by AdaDamp from 4
to at most 64, with F* = 0.8 nats.

Expected: validation cross-entropy 1.541 nats per character after 1,753 updates
and 31,372 rows (4 epochs, seed 0), in six and a half minutes on two CPU cores
(x86-64, JAX 0.10.2); below 1.65 from epoch 2.5 on. The batch grows to 32.
"""

from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 4.0
  c.task.name = 'language_modelling'
  c.data.name = 'tiny_shakespeare'
  c.data.train_split = 'train'
  c.data.eval_split = 'validation'
  c.data.tokenizer = 'bytes'
  c.data.sequence_length = 128
  c.model.name = 'transformer'
  c.model.transformer.num_layers = 4
  c.model.transformer.model_dim = 128
  c.model.transformer.num_heads = 4
  c.model.transformer.hidden_dim = 512
  c.model.transformer.dropout_rate = 0.0
  c.optimizer.name = 'adamw'
  c.optimizer.beta1 = 0.9
  c.optimizer.beta2 = 0.99
  c.optimizer.weight_decay = 0.1
  c.learning_rate.base = 3e-3
  c.learning_rate.reference_batch_size = 16
  c.learning_rate.scaling = 'sqrt'
  c.learning_rate.decay.name = 'cosine'
  c.learning_rate.decay.final = 0.05
  c.controller.name = 'adadamp'
  c.controller.adadamp.loss_source = 'ema'
  c.controller.adadamp.minimum_loss = 0.8
  c.controller.initial_batch_size = 4
  c.controller.max_batch_size = 64
  c.controller.every = 20
  c.eval.max_per_device = 64
  c.eval.every_epochs = 0.5
  c.log.every_updates = 10
  return c
