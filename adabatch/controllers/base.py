"""What a batch-size controller is: signals in, a nominal batch size out."""

import functools
import inspect
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

Arguments = ParamSpec('Arguments')

# A NamedTuple of plain numbers; a wrapper's state holds the inner state.
State = Any


class GradientNoise(NamedTuple):
  """Unsmoothed estimates of one update; either may be negative by chance.

  Attributes:
    trace_covariance: S = tr Sigma, of the per-example gradient covariance.
    squared_norm: |G|^2 of the true gradient.

  >>> GradientNoise(trace_covariance=6.0, squared_norm=2.0).squared_norm
  2.0
  """

  trace_covariance: float
  squared_norm: float


class Signals(NamedTuple):
  """What a controller may read: host floats, the same on every process.

  None means not measured at this update; NaN, measured in vain. A rule that
  misses a signal where a decision is due raises `MissingSignal`; one that gets
  NaN keeps its size. Give numbers as they were measured: rules round what they
  divide.

  Attributes:
    update: updates done so far, k.
    examples: examples trained on so far.
    epoch: examples over the size of the training set.
    loss: minibatch training loss of the last update.
    full_loss: F(x_k) over the whole training set, in evaluation mode.
    subset_loss: the same over a fixed subset.
    gradient_norm_squared: ||g||^2 of the last minibatch gradient.
    full_gradient_norm_squared: ||grad F(x_k)||^2 over the whole training set.
    subset_gradient_norm_squared: the same over a fixed subset.
    gradient_noise: estimates of the last update, in the norm that the run
      measures it in.
    learning_rate: of the last update, with decay, warmup and scaling, but
      without the damping that a size above B_max causes: a rule must not read
      its own effect.
    critical_batch_size: largest size in examples that training on from here
      has shown to cost nothing; the lower end of its interval.
    batch_size: examples of the last update.
    seconds_per_update: what updates like the last one take; of one clock, and
      so not the same when a run is repeated.

  A new signal is a field here and, if an update reports it, a name in
  `OF_UPDATES`, a field of `devices.messages.Report` made in `devices.step`, and
  a line in `train.decisions.Decisions.observe`; if it takes a pass over data,
  its name begins with `full_` or `subset_` and
  `devices.measurements.Measurements.take` makes it.

  >>> Signals(update=3, loss=1.5).full_loss is None
  True
  """

  update: int = 0
  examples: int | None = None
  epoch: float | None = None
  loss: float | None = None
  full_loss: float | None = None
  subset_loss: float | None = None
  gradient_norm_squared: float | None = None
  full_gradient_norm_squared: float | None = None
  subset_gradient_norm_squared: float | None = None
  gradient_noise: GradientNoise | None = None
  learning_rate: float | None = None
  critical_batch_size: float | None = None
  batch_size: float | None = None
  seconds_per_update: float | None = None


# What needs no training to be known.
PROGRESS = frozenset(['update', 'examples', 'epoch'])
# What an update reports: there is none of it before the first one.
OF_UPDATES = frozenset(
  [
    'loss',
    'gradient_norm_squared',
    'gradient_noise',
    'learning_rate',
    'batch_size',
    'seconds_per_update',
  ]
)


class MissingSignal(ValueError):
  """A rule was not given a signal that it needs."""


def always(update: int) -> bool:
  """The size may change after any number of updates.

  >>> always(7)
  True
  """
  del update
  return True


def only_at_start(update: int) -> bool:
  """The size is chosen once, before the first update.

  >>> only_at_start(0), only_at_start(7)
  (True, False)
  """
  return update == 0


class BatchSizeController(NamedTuple):
  """A batch-size rule: a pair of pure functions and what they need.

  Call `update` once before training, with `Signals(update=0, ...)`, for the
  size of the first update; then once after each update k = 1, 2, ... in
  order. A rule that needs nothing of updates (`OF_UPDATES`) may be asked only
  where `due(k)`. Expensive signals (`full_*`, `subset_*`) are needed only
  there, and where one is missing there, `update` raises `MissingSignal`. Before
  the first update nothing is expected of `loss` and the other signals of
  updates.

  Attributes:
    init: () -> state.
    update: (state, signals) -> (nominal batch size of the next update in
      examples, state). The size is finite, at least 1 and uncapped.
    needs: names of the `Signals` fields that `update` reads. `update`, which is
      always there, may be read without being named.
    due: k -> may the size change after k updates?
    rule: how it was made, so that a state goes on with the rule that wrote it.

  >>> from adabatch.controllers import Signals, constant
  >>> controller = constant(initial_batch_size=64)
  >>> size, state = controller.update(controller.init(), Signals())
  >>> size
  64.0
  """

  init: Callable[[], State]
  update: Callable[[State, Signals], tuple[float, State]]
  needs: frozenset[str]
  due: Callable[[int], bool] = always
  rule: str = 'a rule without a name'


def check_needs(controller: BatchSizeController) -> None:
  """Refuses a rule that waits for what never comes.

  Raises:
    ValueError: if it needs what is no field of `Signals`.
  """
  for name in sorted(controller.needs - {*Signals._fields}):
    raise ValueError(
      f'the rule needs {name!r}, which is no signal: choose of '
      f'{", ".join(Signals._fields)}'
    )


def described(
  factory: Callable[Arguments, BatchSizeController],
) -> Callable[Arguments, BatchSizeController]:
  """Lets the controllers that a function makes say how they were made.

  Args:
    factory: makes a controller of arguments.

  >>> from adabatch.controllers import constant, every
  >>> every(constant(initial_batch_size=64), updates=5).rule
  'every(controller=constant(initial_batch_size=64), updates=5)'
  """
  signature = inspect.signature(factory)

  @functools.wraps(factory)
  def make(
    *args: Arguments.args, **kwargs: Arguments.kwargs
  ) -> BatchSizeController:
    controller = factory(*args, **kwargs)
    given = signature.bind(*args, **kwargs).arguments.items()
    words = ', '.join(f'{name}={_described(value)}' for name, value in given)
    return controller._replace(rule=f'{factory.__name__}({words})')

  return make


def _described(value: Any) -> str:
  """Equal values alike, and nothing that another process would say otherwise:
  no address of a function."""
  if isinstance(value, BatchSizeController):
    return value.rule
  if callable(value):
    return getattr(value, '__qualname__', type(value).__name__)
  if isinstance(value, float | numbers.Integral) and value == value // 1:
    return repr(value if isinstance(value, bool) else int(value))
  return repr(value)
