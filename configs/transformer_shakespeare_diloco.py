"""A small Transformer on Shakespeare by DiLoCo: replicas that seldom meet.

    python launch.py --config=configs/transformer_shakespeare_diloco.py \\
        --config.data.data_dir=DIRECTORY_OF_TFDS_SETS

Douillard et al., DiLoCo, 2023 (arXiv:2311.08105): AdamW within replicas, and
Nesterov momentum 0.9 with learning rate 0.7 over the mean of what they changed
in H updates. As published H is 500; here, in a run of under a thousand updates,
50. Four replicas take 8 rows of 128 characters each.

Hardware: two CPU cores, many minutes; not run here in full.
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
  c.learning_rate.decay.name = 'cosine'
  c.learning_rate.decay.final = 0.05
  c.controller.name = 'constant'
  c.controller.initial_batch_size = 32
  c.controller.max_batch_size = 32
  c.sync.name = 'diloco'
  c.sync.replicas = 4
  c.sync.local_steps = 50
  c.sync.diloco.learning_rate = 0.7
  c.sync.diloco.momentum = 0.9
  c.eval.max_per_device = 64
  c.eval.every_epochs = 0.5
  c.log.every_updates = 10
  return c
