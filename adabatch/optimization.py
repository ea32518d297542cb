"""From a config to the optimizer and its learning rate."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from adabatch import optim
from adabatch.config import Config, ConfigError, choose, refusing
from adabatch.run_end import Extent

DECAYS = {
  'constant': lambda length, d, convert: optim.constant(),
  'piecewise': lambda length, d, convert: optim.piecewise(
    [convert(boundary) for boundary in d.boundaries], d.factor
  ),
  'cosine': lambda length, d, convert: optim.cosine(length, d.final),
  'linear': lambda length, d, convert: optim.linear(length, d.final),
  'polynomial': lambda length, d, convert: optim.polynomial(
    length, d.power, d.final
  ),
}
SCALINGS = {
  'none': lambda reference: optim.no_scaling(),
  'linear': optim.linear_scaling,
  'sqrt': optim.sqrt_scaling,
  'adascale': optim.adascale,
}
WARMUPS = {
  'none': lambda length: optim.no_warmup(),
  'constant': optim.constant_warmup,
  'gradual': optim.gradual_warmup,
}


def _to_examples(config: Config, extent: Extent, length: Any) -> Any:
  """A length in `learning_rate.decay.unit`, in examples."""
  unit = config.learning_rate.decay.unit
  if unit == 'run':
    return length * extent.run
  return optim.to_examples(
    length,
    unit,
    num_examples=extent.epoch,
    reference_batch_size=config.learning_rate.reference_batch_size,
  )


def lasts_as_the_run(config: Config) -> bool:
  """Whether the decay depends on where the run ends."""
  decay = config.learning_rate.decay
  if decay.name == 'constant':
    return False
  whole = decay.length is None and decay.name != 'piecewise'
  return whole or decay.unit == 'run'


def make_decay(config: Config, extent: Extent) -> optim.Schedule:
  """The learning-rate decay: examples -> multiplier."""
  decay = config.learning_rate.decay

  def convert(length: Any) -> Any:
    return _to_examples(config, extent, length)

  make = choose(DECAYS, decay.name, 'learning_rate.decay.name')
  with refusing('learning_rate.decay'):
    convert(1.0)  # refuses an unknown unit, also where no length is given
    length = extent.run if decay.length is None else convert(decay.length)
    return make(length, decay, convert)


def make_scaling(config: Config) -> optim.Scaling | optim.StatefulScaling:
  """How the learning rate grows with the batch size."""
  rate = config.learning_rate
  return choose(SCALINGS, rate.scaling, 'learning_rate.scaling')(
    rate.reference_batch_size
  )


def make_learning_rate(config: Config, extent: Extent):
  """The transform that applies base, scaling, warmup and decay."""
  rate = config.learning_rate
  decay, scaling = _whole_decay(config, extent), make_scaling(config)
  warmup = choose(WARMUPS, rate.warmup.kind, 'learning_rate.warmup.kind')(
    optim.affine_length(
      rate.warmup.epochs,
      rate.warmup.epochs_per_example,
      num_examples=extent.epoch,
    )
  )
  return optim.scale_by_batch_learning_rate(
    rate.base, decay=decay, scaling=scaling, warmup=warmup
  )


def _whole_decay(config: Config, extent: Extent) -> optim.Schedule:
  """The decay with what the batch-size rule makes of it."""
  rate, c = config.learning_rate, config.controller
  decay = make_decay(config, extent)
  if c.name == 'from_lr_schedule':
    if rate.decay.name == 'constant':
      raise ConfigError(
        'controller.name=from_lr_schedule grows the batch where '
        'learning_rate.decay would lower the rate, and that is constant: set '
        'learning_rate.decay.name'
      )
    if rate.scaling != 'none':
      raise ConfigError(
        'controller.name=from_lr_schedule turns the decay into batch size, '
        f'which learning_rate.scaling={rate.scaling!r} would undo: set it to '
        "'none'"
      )
    decay = optim.after_batch_growth(
      decay,
      exponent=c.from_lr_schedule.exponent,
      initial_batch_size=c.initial_batch_size,
      max_batch_size=extent.max_batch_size,
    )
  decays = [decay]
  if c.name == 'geodamp' and c.geodamp.lr_factor != 1:
    span = c.geodamp.delay_epochs * extent.epoch
    steps = int(extent.run / span) + 1
    decays.append(
      optim.piecewise(
        [span * i for i in range(1, steps + 1)], c.geodamp.lr_factor
      )
    )
  return lambda examples: jnp.prod(jnp.stack([d(examples) for d in decays]))


def learning_rate_drops(config: Config, extent: Extent) -> tuple[float, ...]:
  """Where a piecewise learning rate drops, in examples; () for the others."""
  rate = config.learning_rate
  if (
    rate.decay.name != 'piecewise'
    or rate.decay.factor >= 1
    or config.controller.name == 'from_lr_schedule'
  ):
    return ()
  with refusing('learning_rate.decay'):
    return tuple(
      _to_examples(config, extent, boundary)
      for boundary in rate.decay.boundaries
    )


def unwarmed_rate(
  config: Config, extent: Extent
) -> Callable[[int, int], float]:
  """(examples, batch size) -> learning rate without warmup and damping."""
  scaling, base = make_scaling(config), config.learning_rate.base
  decay = _whole_decay(config, extent)
  if isinstance(scaling, optim.StatefulScaling):
    raise ConfigError(
      'sync.name=qsr reads the learning rate, which learning_rate.scaling='
      'adascale keeps on the devices: choose another of the two'
    )
  return lambda examples, batch_size: (
    base * float(decay(examples) * scaling(batch_size))
  )


def make_optimizer(config: Config, extent: Extent):
  """The whole optax chain, damping last."""
  o = config.optimizer
  choose(optim.OPTIMIZERS, o.name, 'optimizer.name')
  return optim.make_optimizer(
    o.name,
    make_learning_rate(config, extent),
    momentum=o.momentum,
    beta1=o.beta1,
    beta2=o.beta2,
    epsilon=o.epsilon,
    weight_decay=o.weight_decay,
    decay_mask=(
      True if o.decay_norms_and_biases else optim.no_norms_and_biases
    ),
    trust_coefficient=o.trust_coefficient,
    beta2_reference_batch_size=(
      config.learning_rate.reference_batch_size if o.beta2_in_examples else None
    ),
  )
