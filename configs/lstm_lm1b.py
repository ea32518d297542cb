"""An LSTM on LM1B, a workload of the steps-to-result curves.

    python launch.py --config=configs/lstm_lm1b.py \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

Shallue et al., 2018 (arXiv:1811.03600): goal: a cross-entropy of 3.9 nats per
token, reached in about 180,000 steps at B >= 256; scaling is perfect up to
about 16 sequences (read off a figure, with Nesterov momentum). Vocabulary and
sequence length as in `transformer_lm1b.py`, so the goal is no exact comparison.
The batch grows where the gradient noise is large (McCandlish et al., 2018,
arXiv:1812.06162); the learning rate was not tuned.

Hardware: a server with several GPUs; not run here in full.
"""

from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 10.0
  c.task.name = 'language_modelling'
  c.data.name = 'lm1b'
  c.data.train_split = 'train'
  c.data.eval_split = 'test'
  c.data.tokenizer = 'sentencepiece'
  c.data.vocab_size = 32_000
  c.data.sequence_length = 64
  c.model.name = 'lstm'
  c.optimizer.name = 'adam'
  c.learning_rate.base = 5e-4
  c.learning_rate.decay.name = 'cosine'
  c.learning_rate.decay.final = 0.1
  c.controller.name = 'noise_scale'
  c.controller.initial_batch_size = 32
  c.controller.max_batch_size = 1024
  c.controller.every = 100
  c.controller.growth_limit = 2.0
  c.buckets.max_per_device = 128
  c.eval.max_per_device = 128
  c.eval.every_epochs = 0.1
  c.target.metric = 'loss'
  c.target.value = 3.9
  return c
