"""From a config to the optimizer and its learning rate."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from adabatch import optim
from adabatch.config import Config, ConfigError, choose, refusing
from adabatch.controllers import parse_count
from adabatch.models import MODELS, own
from adabatch.train.run_end import Extent

# Names in a config; a new one also needs its keys in `config/keys.py`.
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
  'wsd': lambda length, d, convert: optim.wsd(
    length, d.cooldown, d.final, d.shape
  ),
}
SCALINGS = {
  'none': lambda reference: optim.no_scaling(),
  'linear': optim.linear_scaling,
  'sqrt': optim.sqrt_scaling,
  'adascale': optim.adascale,
}
WEIGHT_DECAY_SCALINGS = {
  'none': lambda reference: None,
  'linear': optim.linear_scaling,
  'sqrt': optim.sqrt_scaling,
}
# Whose second moment and weight decay can follow the batch size.
ADAMS, DECOUPLED = ('adam', 'adamw', 'lamb', 'muon'), ('adamw', 'lamb', 'muon')
MOST_STEPS = 10_000  # of a learning rate that falls as the batch grows
WARMUPS = {
  'none': lambda length, start: optim.no_warmup(),
  'constant': optim.constant_warmup,
  'gradual': optim.gradual_warmup,
}


def in_examples(config: Config, extent: Extent, length: Any, unit: str) -> Any:
  """A length in a unit of the config, in examples."""
  length = parse_count(length)
  if unit == 'run':
    return length * extent.run
  return optim.to_examples(
    length,
    unit,
    num_examples=extent.epoch,
    reference_batch_size=config.learning_rate.reference_batch_size,
    tokens_per_example=extent.tokens_per_example,
  )


def lasts_as_the_run(config: Config) -> bool:
  """Whether decay or warmup depend on where the run ends."""
  decay, warmup = config.learning_rate.decay, config.learning_rate.warmup
  if warmup.kind != 'none' and warmup.length and warmup.unit == 'run':
    return True
  if decay.name == 'constant':
    return False
  whole = decay.length is None and decay.name != 'piecewise'
  return whole or decay.unit == 'run'


def make_decay(config: Config, extent: Extent) -> optim.Schedule:
  """The learning-rate decay: examples -> multiplier."""
  decay = config.learning_rate.decay

  def convert(length: Any) -> Any:
    return in_examples(config, extent, length, decay.unit)

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


def damping_exponent(config: Config) -> float:
  """Exponent of B_max / B_nominal in the damping of the learning rate.

  Where the batch grows instead of a decay the remaining decay goes to the
  learning rate whole, whatever the optimizer: see `optim.after_batch_growth`.
  """
  rate, given = config.learning_rate, config.learning_rate.damping_exponent
  if config.controller.name == 'from_lr_schedule':
    if given not in (None, 1):
      raise ConfigError(
        f'learning_rate.damping_exponent={given} does not go with '
        'controller.name=from_lr_schedule, which beyond max_batch_size leaves '
        'the rest of the decay to the learning rate (1): leave it unset'
      )
    return 1.0
  if given is not None:
    return given
  if is_of_optax(config.optimizer.name):
    with refusing('optimizer.name'):
      optim.find_optimizer(config.optimizer.name)
    if config.controller.name == 'constant':
      return 0.0  # but for the last batch nothing is ever missing
    raise ConfigError(
      f'optimizer.name={config.optimizer.name} has no known exponent for the '
      'damping of its rate where the rule asks for more than max_batch_size: '
      'set learning_rate.damping_exponent (without scaling 1 as of sgd, 0.5 as '
      'of adam)'
    )
  choose(optim.OPTIMIZERS, config.optimizer.name, 'optimizer.name')
  choose(SCALINGS, rate.scaling, 'learning_rate.scaling')
  return optim.damping_exponent(config.optimizer.name, rate.scaling)


def make_learning_rate(config: Config, extent: Extent):
  """The transform that applies base, scaling, warmup and decay."""
  rate = config.learning_rate
  decay, scaling = _whole_decay(config, extent), make_scaling(config)
  return optim.scale_by_batch_learning_rate(
    rate.base,
    decay=decay,
    scaling=scaling,
    warmup=_make_warmup(config, extent),
  )


def _make_warmup(config: Config, extent: Extent) -> optim.Warmup:
  """Refuses one that would do nothing."""
  rate, w = config.learning_rate, config.learning_rate.warmup
  make = choose(WARMUPS, w.kind, 'learning_rate.warmup.kind')
  if w.kind != 'none' and w.start is None and rate.scaling == 'none':
    raise ConfigError(
      f'learning_rate.warmup.kind={w.kind} starts from the rate of the '
      "reference batch size, which with learning_rate.scaling='none' is the "
      'target already: set learning_rate.warmup.start to a fraction of it'
    )
  by_epochs = w.epochs or w.epochs_per_example
  if w.kind != 'none' and not by_epochs and w.length is None:
    raise ConfigError(
      f'learning_rate.warmup.kind={w.kind} has no length: set '
      'learning_rate.warmup.epochs, or learning_rate.warmup.length'
    )
  if by_epochs and w.length is not None:
    raise ConfigError(
      f'learning_rate.warmup has the length {w.length} {w.unit} and one in '
      'learning_rate.warmup.epochs: leave one of them out'
    )
  with refusing('learning_rate.warmup'):
    # Refuses an unknown unit, also where no length is given.
    length = in_examples(config, extent, w.length or 1.0, w.unit)
    if w.length is None:
      length = optim.affine_length(
        w.epochs, w.epochs_per_example, num_examples=extent.epoch
      )
    return make(length, w.start)


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
    if extent.run > MOST_STEPS * span:
      raise ConfigError(
        f'controller.geodamp.delay_epochs={c.geodamp.delay_epochs} makes more '
        f'than {MOST_STEPS} steps of the learning rate: raise it'
      )
    steps = int(extent.run / span) + 1
    decays.append(
      optim.piecewise(
        [span * i for i in range(1, steps + 1)], c.geodamp.lr_factor
      )
    )

  def whole(examples):
    value = decays[0](examples)
    for other in decays[1:]:
      value = value * other(examples)
    return value

  return whole


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
      in_examples(config, extent, boundary, rate.decay.unit)
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


def largest_decay(
  config: Config, extent: Extent, start: int, stop: int
) -> float:
  """The largest factor that the decay has, of a few places of a stretch.

  Args:
    config: of the run.
    extent: what its schedules are laid out over.
    start, stop: of the stretch, in examples.
  """
  decay, steps = _whole_decay(config, extent), 8
  return max(
    float(decay(start + (stop - start) * i // steps)) for i in range(steps + 1)
  )


class Held(NamedTuple):
  """An optimizer that is the same at all batch sizes, but for the damping.

  Attributes:
    batch_size: whose learning rate holds, in examples.
    memory: whether Adam's second moment and a decoupled weight decay remember
      as many examples as at that size; they do already where the config says
      how they follow the batch size. beta2 then falls to beta1^2 at most.
  """

  batch_size: int
  memory: bool


def remembers_updates(config: Config) -> bool:
  """Whether there is an Adam whose second moment counts updates."""
  o = config.optimizer
  return o.name in ADAMS and not o.beta2_in_examples


def make_optimizer(config: Config, extent: Extent, held: Held | None = None):
  """The whole optax chain, damping last but for what only watches.

  Args:
    config: of the run.
    extent: what its schedules are laid out over.
    held: for branches of the run; None: as the config says.
  """
  o = config.optimizer
  scaling = choose(
    WEIGHT_DECAY_SCALINGS,
    o.weight_decay_scaling,
    'optimizer.weight_decay_scaling',
  )(config.learning_rate.reference_batch_size)
  # A search may give it one; a member of a population has it as an array.
  fixed = isinstance(o.weight_decay, int | float) and not any(
    row[0] == 'optimizer.weight_decay' for row in config.search.space
  )
  if scaling is not None and fixed and o.weight_decay == 0:
    raise ConfigError(
      f'optimizer.weight_decay_scaling={o.weight_decay_scaling} has no effect '
      "on optimizer.weight_decay=0: set that, or the scaling to 'none'"
    )
  rate, reference = make_learning_rate(config, extent), None
  beta2_min = o.beta2_min
  if o.beta2_in_examples:
    reference = config.learning_rate.reference_batch_size
  if held is not None:
    rate = optim.at_batch_size(rate, held.batch_size)
    if held.memory and remembers_updates(config):
      # That key has no effect on the run; beta1^2 stays a floor.
      reference, beta2_min = held.batch_size, 0.0
    if held.memory and scaling is None and o.name in DECOUPLED:
      scaling = optim.sqrt_scaling(held.batch_size)
  if is_of_optax(o.name):
    tx = _of_optax(config, rate, scaling)
  else:
    tx = _of_ours(config, rate, scaling, reference, beta2_min)
  half_life = config.ema.half_life
  return tx if half_life is None else optim.with_average(tx, half_life)


def _of_ours(
  config: Config,
  learning_rate: Any,
  scaling: Any,
  reference: float | None,
  beta2_min: float,
):
  o = config.optimizer
  choose(optim.OPTIMIZERS, o.name, 'optimizer.name')
  if given := sorted(_arguments(o)):
    raise ConfigError(
      f'optimizer.args.{given[0]} is for the optimizers of optax, and '
      f'optimizer.name={o.name!r} has keys of its own: leave it out'
    )
  return optim.make_optimizer(
    o.name,
    learning_rate,
    momentum=o.momentum,
    beta1=o.beta1,
    beta2=o.beta2,
    epsilon=o.epsilon,
    weight_decay=o.weight_decay,
    decay_mask=True if o.decay_norms_and_biases else None,
    trust_coefficient=o.trust_coefficient,
    beta2_reference_batch_size=reference,
    beta2_min=beta2_min,
    weight_decay_scaling=scaling,
    clip_norm=o.clip_norm,
    outputs_first=own.has_outputs_first(MODELS.get(config.model.name)),
  )


def _of_optax(config: Config, learning_rate: Any, scaling: Any):
  """An optimizer of optax; L2 before it where it has no weight decay itself."""
  o = config.optimizer
  mask = True if o.decay_norms_and_biases else None
  with refusing('optimizer.name'):
    factory = optim.find_optimizer(o.name)
  with refusing('optimizer.args', Exception):
    tx = optim.of_optax(
      factory,
      learning_rate,
      _arguments(o),
      weight_decay=o.weight_decay,
      weight_decay_scaling=scaling,
      decay_mask=mask,
      clip_norm=o.clip_norm,
    )
  with refusing(
    f'optimizer.name={o.name} cannot be trained with here', Exception
  ):
    optim.check_trains(tx)
  return tx


def is_of_optax(name: str) -> bool:
  """Whether an optimizer is one of optax, by its name there.

  >>> is_of_optax('optax.lion'), is_of_optax('adam')
  (True, False)
  """
  return name.startswith('optax.')


def _arguments(optimizer: Config) -> dict[str, Any]:
  """Of optax's; a search lays a plain namespace over the config."""
  given = optimizer.args
  return dict(vars(given) if isinstance(given, SimpleNamespace) else given)


def beta2_at_its_floor(config: Config, max_batch_size: int) -> str | None:
  """A line if the batch can grow so large that beta2 falls no further.

  None if it cannot, or where beta2 is not counted in examples.
  """
  o, largest = config.optimizer, max_batch_size
  if not (o.name in ADAMS and o.beta2_in_examples and o.beta2 > 0):
    return None
  floor = optim.beta2_floor(o.beta1, o.beta2, o.beta2_min)
  reference = config.learning_rate.reference_batch_size
  # Where the floor is beta2 itself, that is at the reference batch size.
  reached = reference * math.log(floor) / math.log(o.beta2)
  if largest < reached * (1 - 1e-9) or largest <= reference:
    return None
  return (
    f'optimizer.beta2={o.beta2:g} at {reference:g} examples comes to its '
    f'floor {floor:g} at {reached:.0f}, and the batch to {largest}: beyond, '
    "Adam's second moment remembers more examples (optimizer.beta2_min)"
  )
