"""What makes a run follow the ramp of a probe as its branches were trained."""

import math
from collections.abc import Sequence
from typing import Any

from adabatch import optim
from adabatch.config import Config
from adabatch.study.critical import Critical
from adabatch.study.ramp import Step, olmo, ramp, step_table
from adabatch.train.branches import noise_exponent
from adabatch.train.optimizer import DECOUPLED, remembers_updates

NAMES = {0.5: 'sqrt', 1.0: 'linear'}  # of scalings, by their exponent


def describe_ramp(
  config: Config,
  at: Sequence[int],
  sizes: Sequence[Critical],
  tokens: int | None,
) -> dict[str, Any]:
  """The ramp, as it is written down here and elsewhere.

  Args:
    config: of the run.
    at: examples of the points, rising.
    sizes: their critical sizes.
    tokens: predicted of an example of text; None of all else.

  Returns:
    Its steps; lines for `step_table`, Megatron and OLMo-core; the keys that
    make a run follow it; and, in words, what has to be done to the learning
    rate that they do not.
  """
  steps = ramp(config.controller.initial_batch_size, at, sizes)
  keys, words = follow(config, steps)
  return {
    'steps': [list(step) for step in steps],
    'step_table': step_table(steps),
    'megatron': step_table(steps, tokens) if tokens else step_table(steps),
    'olmo': olmo(steps, tokens) if tokens else None,
    'keys': keys,
    'words': words,
    'rate': _rate(config, steps[0].batch_size),
  }


def _rate(config: Config, first: int) -> str | None:
  """What the branches did to the rate, for programs of other people."""
  rule = config.probe.learning_rate
  if rule == 'none':
    return None
  exponent = noise_exponent(config)
  power = '' if exponent == 1 else f'^{exponent:g}'
  said = f'the learning rate times (batch size / {first}){power}'
  return said + (' and its own factor' if rule == 'tune' else '')


def follow(
  config: Config, steps: Sequence[Step]
) -> tuple[dict[str, Any], str | None]:
  """Keys for a ramp, and what they leave to be done, or None.

  Args:
    config: of the run that was probed.
    steps: of the ramp.

  >>> from adabatch import config as config_lib
  >>> keys, words = follow(config_lib.default(), [Step(0, 32), Step(400, 64)])
  >>> {k: v for k, v in keys.items() if k.startswith('learning_rate')}
  {'learning_rate.scaling': 'linear'}
  >>> words is None
  True
  """
  c, o, rate = config.controller, config.optimizer, config.learning_rate
  first = steps[0].batch_size
  keys: dict[str, Any] = {
    'controller.name': 'step_table',
    'controller.step_table.table': step_table(steps),
  }
  if c.step_table.unit != 'examples':
    keys['controller.step_table.unit'] = 'examples'
  if (largest := steps[-1].batch_size) > c.max_batch_size:
    keys['controller.max_batch_size'] = largest
  rule = config.probe.learning_rate
  if rule == 'none':
    if rate.scaling == 'none':
      return keys, None
    return keys, f'its rate is to stay that of batches of {first}'
  if rule == 'tune':
    return keys, 'its rate is to be that of each size in the tables'
  wanted = NAMES.get(noise_exponent(config))
  # The reference is where other rules of the config hold as well.
  moves = rate.reference_batch_size != first
  tied = (
    'updates' in (rate.warmup.unit, rate.decay.unit)
    or o.beta2_in_examples
    or o.weight_decay_scaling != 'none'
  )
  left = []
  if rate.scaling != wanted:
    if wanted is None or rate.scaling != 'none' or (moves and tied):
      left.append(f'{_rate(config, first)}')
    else:
      keys['learning_rate.scaling'] = wanted
      if moves:
        keys['learning_rate.reference_batch_size'] = first
        moves = False
  if remembers_updates(config):
    if moves:
      left.append(f"Adam's beta2 to the power (batch size / {first})")
    else:
      keys |= {'optimizer.beta2_in_examples': True, 'optimizer.beta2_min': 0.0}
  decays = o.name in DECOUPLED and o.weight_decay
  if decays and o.weight_decay_scaling == 'none':
    if moves:
      left.append(f'the weight decay times (batch size / {first})^0.5')
    else:
      keys['optimizer.weight_decay_scaling'] = 'sqrt'
  return keys, ', '.join(left) or None


def floor_of_memory(config: Config) -> float | None:
  """Factor of the batch beyond which beta2 is at its floor; None: none is.

  >>> from adabatch import config as config_lib
  >>> config = config_lib.default()
  >>> config.optimizer.name = 'adam'
  >>> print(f'{floor_of_memory(config):.0f}')  # log 0.81 / log 0.999
  211
  """
  o = config.optimizer
  if config.probe.learning_rate == 'none' or not remembers_updates(config):
    return None
  floor = optim.beta2_floor(o.beta1, o.beta2, 0.0)
  if not 0 < o.beta2 < 1 or not 0 < floor < 1:
    return None
  return math.log(floor) / math.log(o.beta2)
