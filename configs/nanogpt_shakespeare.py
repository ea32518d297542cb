"""nanoGPT's small Transformer on the characters of Shakespeare, on a CPU.

    python launch.py --config=configs/nanogpt_shakespeare.py \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

The recipe of Karpathy's nanoGPT for a laptop: 4 layers, 4 heads, 128 channels,
context 64, 2,000 batches of 12, AdamW at 1e-3 with beta2 0.99 and weight decay
0.1 on matrices, gradients clipped to the norm 1, warmup from 0 over 100
updates, a cosine to a tenth, no dropout; validated on the last tenth of the
text. Published there: validation loss 1.88. `nanogpt_shakespeare.py:growing`
sees as many examples in batches of 12, of 24 from their half on, of 48 in their
last quarter, at a rate that grows with the square root.

Expected: 1.809 nats per character after 2,000 updates, two and a half minutes
on two CPU cores (x86-64, JAX 0.10.2, seed 0), 0.07 better than published;
`:growing` 1.812 after 1,380. What differs: the Transformer of this project has
sines for positions, ReLU, and embeddings of another size; bytes are its tokens,
65 of which occur; rows are those of one cut of the text, in a random order
without repetition, where nanoGPT draws windows anywhere; its estimate is of 20
batches, this one of all.
"""

from adabatch import config

RULES = {'constant': 'constant', 'growing': 'step_table'}


def get_config(batch='constant'):
  if batch not in RULES:
    raise config.ConfigError(
      f'unknown batch {batch!r}: choose one of {", ".join(RULES)}'
    )
  c = config.default()
  c.epochs = 1.53  # 24,000 rows: 2,000 batches of 12
  c.task.name = 'language_modelling'
  c.data.name = 'tiny_shakespeare'
  c.data.train_split = 'train'
  c.data.eval_split = 'validation+test'
  c.data.tokenizer = 'bytes'
  c.data.sequence_length = 64
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
  c.optimizer.clip_norm = 1.0
  c.learning_rate.base = 1e-3
  c.learning_rate.reference_batch_size = 12
  c.learning_rate.scaling = 'sqrt'
  c.learning_rate.warmup.kind = 'gradual'
  c.learning_rate.warmup.start = 0.0
  c.learning_rate.warmup.length = 100.0
  c.learning_rate.warmup.unit = 'updates'
  c.learning_rate.decay.name = 'cosine'
  c.learning_rate.decay.final = 0.1
  c.controller.name = RULES[batch]
  c.controller.initial_batch_size = 12
  c.controller.max_batch_size = 48
  c.controller.step_table.table = '0:12 12K:24 18K:48'
  c.eval.max_per_device = 64
  c.eval.every_epochs = 0.25
  c.log.every_updates = 10
  return c
