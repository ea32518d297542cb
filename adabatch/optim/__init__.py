"""Learning-rate rules for moving batch sizes, as optax transforms.

Needs only jax, numpy and optax. The transforms read keyword extra arguments of
`update`: `batch_size` (true global batch), `damping` (a power of min(1, B_max /
B_nominal)), `examples` (seen before this update) and, optionally,
`gradient_noise` (a pair S, |G|^2). All are scalars that may be traced, so new
values never compile again; arguments they do not know are ignored. How replicas
agree is in `adabatch.optim.sync`.
"""

from adabatch.optim.adam import (
  ScaleByAdamInExamplesState,
  beta2_floor,
  remembering_examples,
  scale_by_adam_in_examples,
)
from adabatch.optim.averaging import (
  AverageParamsState,
  average_along,
  average_params,
  averaged,
  no_average,
  with_average,
)
from adabatch.optim.damping import (
  SCALING_EXPONENTS,
  damping_exponent,
  scale_by_damping,
)
from adabatch.optim.learning_rate import (
  LearningRateRule,
  ScaleByBatchLearningRateState,
  Warmup,
  affine_length,
  at_batch_size,
  constant_warmup,
  gradual_warmup,
  no_warmup,
  scale_by_batch_learning_rate,
)
from adabatch.optim.masks import no_norms_and_biases
from adabatch.optim.muon import matrices, scale_by_muon_or_adam
from adabatch.optim.optax_by_name import (
  AtLearningRateState,
  at_learning_rate,
  check_trains,
  find_optimizer,
  of_optax,
)
from adabatch.optim.optimizers import (
  OPTIMIZERS,
  Hyperparameters,
  framed,
  make_optimizer,
)
from adabatch.optim.precision import in_float32, scale_in_float32
from adabatch.optim.scaling import (
  AdaScaleState,
  Scaling,
  StatefulScaling,
  adascale,
  linear_scaling,
  no_scaling,
  sqrt_scaling,
)
from adabatch.optim.schedules import (
  Schedule,
  after_batch_growth,
  constant,
  cosine,
  linear,
  piecewise,
  polynomial,
  to_examples,
  wsd,
)
from adabatch.optim.trust import scale_by_lars
from adabatch.optim.weight_decay import decaying

__all__ = [
  'OPTIMIZERS',
  'SCALING_EXPONENTS',
  'AdaScaleState',
  'AtLearningRateState',
  'AverageParamsState',
  'Hyperparameters',
  'LearningRateRule',
  'ScaleByAdamInExamplesState',
  'ScaleByBatchLearningRateState',
  'Scaling',
  'Schedule',
  'StatefulScaling',
  'Warmup',
  'adascale',
  'affine_length',
  'after_batch_growth',
  'at_batch_size',
  'at_learning_rate',
  'average_along',
  'average_params',
  'averaged',
  'beta2_floor',
  'check_trains',
  'constant',
  'constant_warmup',
  'cosine',
  'damping_exponent',
  'decaying',
  'find_optimizer',
  'framed',
  'gradual_warmup',
  'in_float32',
  'linear',
  'linear_scaling',
  'make_optimizer',
  'matrices',
  'no_average',
  'no_norms_and_biases',
  'no_scaling',
  'no_warmup',
  'of_optax',
  'piecewise',
  'polynomial',
  'remembering_examples',
  'scale_by_adam_in_examples',
  'scale_by_batch_learning_rate',
  'scale_by_damping',
  'scale_by_lars',
  'scale_by_muon_or_adam',
  'scale_in_float32',
  'sqrt_scaling',
  'to_examples',
  'with_average',
  'wsd',
]
