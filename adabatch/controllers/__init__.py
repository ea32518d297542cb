"""Batch-size rules: pure functions of host floats, without JAX."""

from collections.abc import Callable

from adabatch.controllers.base import (
  BatchSizeController,
  GradientNoise,
  MissingSignal,
  Signals,
  State,
  always,
  check_needs,
)
from adabatch.controllers.batch_size import BatchSize
from adabatch.controllers.damping import adadamp, adadamp_grad, radadamp
from adabatch.controllers.noise import cabs, noise_scale, norm_test
from adabatch.controllers.probing import probe
from adabatch.controllers.sampler import BatchSampler
from adabatch.controllers.schedule import (
  constant,
  from_lr_schedule,
  geodamp,
  padadamp,
  padadamp_rate,
  ramp_up,
  step_table,
)
from adabatch.controllers.speed import goodput
from adabatch.controllers.state import (
  losses_below_minimum,
  round_signal,
  state_from_json,
  state_to_json,
)
from adabatch.controllers.tables import (
  parse_count,
  parse_olmo,
  parse_ramp,
  parse_table,
  read_table,
)
from adabatch.controllers.wrappers import (
  every,
  every_due,
  hysteresis,
  limit_growth,
  monotone,
  smooth,
)

# A new rule also needs a table in `config/rule_keys.py`, ranges, and a case in
# `tests/controllers`; arguments that are no keys come from `train/rules.py`.
CONTROLLERS: dict[str, Callable[..., BatchSizeController]] = {
  'constant': constant,
  'adadamp': adadamp,
  'padadamp': padadamp,
  'geodamp': geodamp,
  'radadamp': radadamp,
  'adadamp_grad': adadamp_grad,
  'step_table': step_table,
  'ramp_up': ramp_up,
  'from_lr_schedule': from_lr_schedule,
  'noise_scale': noise_scale,
  'norm_test': norm_test,
  'cabs': cabs,
  'probe': probe,
  'goodput': goodput,
}

__all__ = [
  'CONTROLLERS',
  'BatchSampler',
  'BatchSize',
  'BatchSizeController',
  'GradientNoise',
  'MissingSignal',
  'Signals',
  'State',
  'adadamp',
  'adadamp_grad',
  'always',
  'check_needs',
  'cabs',
  'constant',
  'every',
  'every_due',
  'from_lr_schedule',
  'geodamp',
  'goodput',
  'hysteresis',
  'limit_growth',
  'losses_below_minimum',
  'monotone',
  'noise_scale',
  'norm_test',
  'padadamp',
  'padadamp_rate',
  'parse_count',
  'parse_olmo',
  'parse_ramp',
  'parse_table',
  'probe',
  'radadamp',
  'ramp_up',
  'read_table',
  'round_signal',
  'smooth',
  'state_from_json',
  'state_to_json',
  'step_table',
]
