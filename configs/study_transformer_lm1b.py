"""Steps to result of a Transformer on LM1B.

    python launch.py --config=configs/study_transformer_lm1b.py --job=study \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

Shallue et al., 2018 (arXiv:1811.03600): goal: a validation cross-entropy of 3.9
nats per token, Nesterov momentum, a constant learning rate that is tuned with
the momentum; 100 trials that do not diverge at each batch size. Theirs, read
off a figure: perfect scaling up to about 256, a plateau from about 4,096, about
10,000 steps there. Of the published spaces only ResNet-50's is known here (its
archive's description); this one takes the ranges of learning rate and momentum
from it. Vocabulary and rows differ from theirs, see transformer_lm1b.py, so the
goal is no exact comparison.

Each trial is a run of its own; the text is turned into tokens once.

Hardware: TPU slices or servers with several GPUs; not run here.
"""

from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 20.0
  c.max_updates = 1_000_000
  c.task.name = 'language_modelling'
  c.data.name = 'lm1b'
  c.data.train_split = 'train'
  c.data.eval_split = 'test'
  c.data.tokenizer = 'sentencepiece'
  c.data.vocab_size = 32_000
  c.data.sequence_length = 256
  c.model.name = 'transformer'
  c.model.dtype = 'bfloat16'
  c.buckets.max_per_device = 64
  c.eval.max_per_device = 64
  c.eval.every_epochs = 0.02
  c.eval.growth = 1.05
  c.target.metric = 'loss'
  c.target.value = 3.9
  c.search.space = (
    ('learning_rate.base', 'log', 1e-4, 10.0),
    ('optimizer.momentum', 'reverse_log', 0.9, 0.9999),
  )
  c.search.trials = 100
  c.search.grace = 1800.0
  c.study.batch_sizes = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
  c.study.optimizers = ('nesterov',)
  return c
