from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 40.0
  c.max_updates = 20_000
  c.data.name = 'fashion_mnist'
  c.data.train_split = 'train[:50000]'
  c.data.eval_split = 'train[50000:]'
  c.model.name = 'mlp'
  c.model.mlp.hidden_sizes = (128, 128)
  c.eval.every_epochs = 0.005
  c.eval.growth = 1.05
  c.eval.max_per_device = 10_000
  c.buckets.max_per_device = 8192
  c.target.metric = 'accuracy'
  c.target.value = 0.88
  c.search.space = (
    ('learning_rate.base', 'log', 3e-4, 10.0),
    ('optimizer.momentum', 'reverse_log', 0.5, 0.999),
  )
  c.search.trials = 30
  c.study.batch_sizes = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
  c.study.optimizers = ('sgd', 'nesterov')
  return c
