"""A Transformer on LM1B, a workload of the steps-to-result curves.

    python launch.py --config=configs/transformer_lm1b.py \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS \\
        --config.model.dtype=bfloat16

Shallue et al., 2018 (arXiv:1811.03600): goal: a cross-entropy of 3.9 nats per
token, reached in about 10,000 steps at B >= 4096 sequences; scaling is perfect
up to about 256 (read off a figure, with Nesterov momentum). Their vocabulary
and sequence length differ from those below, so the goal is no exact comparison:
here sentencepiece learns 32,000 pieces, and sentences are packed into rows of
256 tokens that do not see one another. The batch counts rows and grows by
AdaDamp; the learning rate was not tuned. `transformer_lm1b.py:shallow`,
`:narrow` and `:wide` are other sizes of the network.

The first start trains sentencepiece and turns the text into tokens, which are
kept in the run's directory.

Hardware: a TPU slice or a server with several GPUs; not run here in full.
"""

from adabatch import config

# changes of `model.transformer`
SIZES = {
  'base': {},
  'shallow': {'num_layers': 2},
  'narrow': {'model_dim': 256, 'num_heads': 4, 'hidden_dim': 1024},
  'wide': {'model_dim': 1024, 'num_heads': 16, 'hidden_dim': 4096},
}


def get_config(size='base'):
  if size not in SIZES:
    raise config.ConfigError(
      f'unknown size {size!r}: choose one of {", ".join(SIZES)}'
    )
  c = config.default()
  c.epochs = 10.0
  c.task.name = 'language_modelling'
  c.data.name = 'lm1b'
  c.data.train_split = 'train'
  c.data.eval_split = 'test'
  c.data.tokenizer = 'sentencepiece'
  c.data.vocab_size = 32_000
  c.data.sequence_length = 256
  c.model.name = 'transformer'
  c.model.transformer.update(SIZES[size])
  c.optimizer.name = 'adamw'
  c.optimizer.beta2 = 0.98
  c.optimizer.weight_decay = 0.01
  c.optimizer.beta2_in_examples = True
  c.learning_rate.base = 5e-4
  c.learning_rate.reference_batch_size = 64
  c.learning_rate.scaling = 'sqrt'
  c.learning_rate.decay.name = 'cosine'
  c.learning_rate.decay.final = 0.1
  c.controller.name = 'adadamp'
  c.controller.adadamp.loss_source = 'ema'
  c.controller.adadamp.decay = 0.99
  c.controller.initial_batch_size = 64
  c.controller.max_batch_size = 2048
  c.controller.every = 100
  c.buckets.max_per_device = 64
  c.eval.max_per_device = 64
  c.eval.every_epochs = 0.1
  c.target.metric = 'loss'
  c.target.value = 3.9
  return c
