"""Steps to result of an MLP on scikit-learn's digits: a whole study, small.

    python launch.py --config=configs/study_digits_mlp.py --job=study

At each of eight batch sizes learning rate and momentum are tuned anew, for
plain SGD and for Nesterov momentum, as in Shallue et al., 2018
(arXiv:1811.03600). The goal is a validation accuracy above 0.97.

Expected: 1,280 trials in 3 minutes on two CPU cores (x86-64, JAX 0.10.2); both
optimizers need about 300 updates at B = 8 and 30 to 40 from B = 256 on.
"""

from adabatch import config


def get_config():
  c = config.default()
  c.epochs = 200.0
  c.max_updates = 4000
  c.data.name = 'digits'
  c.data.train_split = 'train'
  c.data.eval_split = 'validation'
  c.model.name = 'mlp'
  c.model.mlp.hidden_sizes = (64, 64)
  c.eval.every_epochs = 0.01
  c.eval.growth = 1.05
  c.target.metric = 'accuracy'
  c.target.value = 0.97
  c.search.space = (
    ('learning_rate.base', 'log', 1e-3, 10.0),
    ('optimizer.momentum', 'reverse_log', 0.5, 0.99),
  )
  c.search.trials = 80
  c.study.batch_sizes = (8, 16, 32, 64, 128, 256, 512, 1024)
  c.study.optimizers = ('sgd', 'nesterov')
  return c
