"""Steps to result against batch size, and what that says of larger ones.

Works on anybody's numbers: it needs curves, or trials, and no training.

Reference: Shallue et al., Measuring the Effects of Data Parallelism on Neural
Network Training, 2018 (arXiv:1811.03600).
"""

from adabatch.study.curves import (
  Regimes,
  StepsToTarget,
  best_under,
  regimes,
  spread_over_trials,
  steps_to_target,
)
from adabatch.study.fit import (
  CriticalBatchSize,
  fit_critical_batch_size,
  lack_of_fit,
  overhead_batch_size,
  predict,
)
from adabatch.study.table import (
  Row,
  Workload,
  summarize,
  to_json,
)

__all__ = [
  'CriticalBatchSize',
  'Regimes',
  'Row',
  'StepsToTarget',
  'Workload',
  'best_under',
  'fit_critical_batch_size',
  'lack_of_fit',
  'overhead_batch_size',
  'predict',
  'regimes',
  'spread_over_trials',
  'steps_to_target',
  'summarize',
  'to_json',
]
