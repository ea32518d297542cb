"""The learning rate as a function of examples seen and batch size."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adabatch.optim.precision import scale_in_float32
from adabatch.optim.scaling import Scaling, StatefulScaling, no_scaling
from adabatch.optim.schedules import Schedule

LearningRateRule = Callable[
  [jax.typing.ArrayLike, jax.typing.ArrayLike], jax.Array
]
# (examples, scaling factor, batch_size) -> factor
Warmup = Callable[
  [jax.typing.ArrayLike, jax.typing.ArrayLike, jax.typing.ArrayLike], jax.Array
]
# A number of examples, or batch_size -> a number of examples.
Length = float | Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]


class ScaleByBatchLearningRateState(NamedTuple):
  """What the last update used, and what the scaling remembers.

      updates <- -learning_rate * updates

  Attributes:
    learning_rate: float32 scalar, undamped; 0 before the first update.
    scaling_state: state of a StatefulScaling, () for any other.
    count: updates so far, int32 scalar, where the base is a schedule of them;
      () for any other.
  """

  learning_rate: jax.Array
  scaling_state: Any
  count: Any = ()


def no_warmup() -> Warmup:
  """The whole scaling factor from the first update.

      w(e, f, B) = f

  Returns:
    A warmup: (examples, factor, batch_size), scalars -> float32 scalar.

  >>> print(no_warmup()(0, 8.0, 2048))
  8.0
  """
  return lambda examples, factor, batch_size: jnp.asarray(factor, jnp.float32)


def constant_warmup(length: Length, start: float | None = None) -> Warmup:
  """A lower learning rate at first, then the whole scaling factor.

      w(e, f, B) = f_0 if e < length(B) else f,
      f_0 = start f, or min(1, f) where start is None

  The latter is the small-batch learning rate, or the target itself where the
  batch is smaller than the reference: no warmup starts above its target.

  Args:
    length: examples, or a function batch_size -> examples.
    start: fraction of the target, in (0, 1]; None for the small-batch rate.

  Returns:
    A warmup: (examples, factor, batch_size), scalars -> float32 scalar.

  Raises:
    ValueError: length is negative or start not in (0, 1]; at 0 the warmup would
      train nothing.

  Reference: Goyal et al., Accurate, Large Minibatch SGD, 2017
  (arXiv 1706.02677), section 2.2.

  >>> warmup = constant_warmup(1000)
  >>> print(warmup(999, 8.0, 2048), warmup(1000, 8.0, 2048))
  1.0 8.0
  """
  length_at = _length_at('constant_warmup', length)
  if start is not None and not 0 < start <= 1:
    raise ValueError(f'constant_warmup: start must be in (0, 1], got {start}')

  def warmup(examples, factor, batch_size):
    examples, factor = _float32(examples), _float32(factor)
    first = _first(factor, start)
    return jnp.where(examples < length_at(batch_size), first, factor)

  return warmup


def gradual_warmup(length: Length, start: float | None = None) -> Warmup:
  """From a lower learning rate to the target by a constant amount.

      w(e, f, B) = f_0 + (f - f_0) min(1, e / length(B)),
      f_0 = start f, or min(1, f) where start is None

  By default it starts from the small-batch learning rate, not from 0, and from
  the target itself where the batch is smaller than the reference: no warmup
  starts above its target. The amount is the same at each update while the batch
  size is; a batch twice as large takes twice the amount.

  Args:
    length: examples, or a function batch_size -> examples.
    start: fraction of the target, in [0, 1]; None for the small-batch rate. The
      update before which no example was seen has this rate, so 0 leaves the
      parameters as they are once.

  Returns:
    A warmup: (examples, factor, batch_size), scalars -> float32 scalar.

  Raises:
    ValueError: length is negative or start not in [0, 1].

  Reference: Goyal et al., Accurate, Large Minibatch SGD, 2017
  (arXiv 1706.02677), section 2.2.

  >>> warmup = gradual_warmup(1000)
  >>> print(*[warmup(e, 9.0, 2048) for e in (0, 500, 1000, 2000)])
  1.0 5.0 9.0 9.0
  >>> from_zero = gradual_warmup(1000, start=0.0)
  >>> print(*[from_zero(e, 1.0, 2048) for e in (0, 500, 1000)])
  0.0 0.5 1.0
  """
  length_at = _length_at('gradual_warmup', length)
  if start is not None and not 0 <= start <= 1:
    raise ValueError(f'gradual_warmup: start must be in [0, 1], got {start}')

  def warmup(examples, factor, batch_size):
    examples, factor = _float32(examples), _float32(factor)
    length = length_at(batch_size)
    # A length of zero is no warmup, not 0/0.
    fraction = examples / jnp.where(length > 0, length, 1)
    fraction = jnp.where(length > 0, jnp.minimum(1, fraction), 1)
    first = _first(factor, start)
    # Exactly the factor at the end: 1 + (f - 1) would be off by rounding.
    return jnp.where(fraction < 1, first + (factor - first) * fraction, factor)

  return warmup


def affine_length(
  intercept: float, slope: float, *, num_examples: float
) -> Callable[[jax.typing.ArrayLike], jax.Array]:
  """A warmup length in epochs that is affine in the batch size.

      length(B) = max(0, a + b B) num_examples

  Args:
    intercept: a in epochs.
    slope: b in epochs for each example in the batch.
    num_examples: examples in an epoch.

  Returns:
    A function: global batch size in examples (scalar) -> examples.

  Raises:
    ValueError: num_examples is not positive.

  Reference: McCord and Dash: 5 epochs best at B = 7,680 and 10 at about
  30,000, so a = 3.3 and b = 2.2e-4; MLPerf's LARS runs with B >= 32k use
  about a = 0, b = 1/2048.

  >>> print(affine_length(1.0, 0.001, num_examples=50_000)(2000))
  150000.0
  """
  if not num_examples > 0:
    raise ValueError(
      f'affine_length: num_examples must be positive, got {num_examples}'
    )

  def length(batch_size):
    epochs = intercept + slope * _float32(batch_size)
    return jnp.maximum(epochs, 0) * num_examples

  return length


def scale_by_batch_learning_rate(
  base: jax.typing.ArrayLike | LearningRateRule | optax.Schedule,
  *,
  decay: Schedule | None = None,
  scaling: Scaling | StatefulScaling | None = None,
  warmup: Warmup | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Multiplies the updates by minus the learning rate of this update.

      u <- -lr(e, B) u,  lr(e, B) = base * decay(e) * warmup(e, scaling(B), B)

  The state holds the learning rate that was used, for the logs:
  `optax.tree_utils.tree_get(opt_state, 'learning_rate')`. (Under
  `optax.inject_hyperparams` pass `hyperparam_dtype=jnp.float32`, and name the
  callables that are given in `static_args`.)

  Args:
    base: learning rate at the reference batch size, which the others multiply:
      a number; a rule, that is a function of two arguments (examples,
      batch_size) -> learning rate; or a schedule as optax takes them, a
      function of one, the count of this transform's updates so far. (For one of
      examples give `lambda examples, batch_size: schedule(examples)`.)
    decay: examples -> multiplier; None is no decay.
    scaling: batch_size -> factor, or AdaScale; None is no scaling.
    warmup: (examples, factor, batch_size) -> factor; None is no warmup.

  Returns:
    A transform whose `update` needs the keyword arguments `batch_size` (true
    global batch) and `examples` (seen before this update), scalars, and takes
    `gradient_noise` (a pair S, |G|^2 of scalars, or None), which only AdaScale
    reads. Dtypes and shardings of the updates are kept.

  Raises:
    ValueError: base is a function whose parameters do not tell what it takes.

  Reference: Goyal et al., Accurate, Large Minibatch SGD, 2017
  (arXiv 1706.02677); Johnson et al., AdaScale SGD, 2020 (arXiv 2007.05105).

  >>> from adabatch.optim import linear_scaling
  >>> tx = scale_by_batch_learning_rate(0.5, scaling=linear_scaling(32))
  >>> ones = jnp.ones(2)
  >>> updates, state = tx.update(ones, tx.init(ones), batch_size=64, examples=0)
  >>> print(updates, state.learning_rate)
  [-1. -1.] 1.0
  """
  # The options default to None, not to functions: inject_hyperparams would
  # take a function for a schedule. The number is called `base`, because a
  # hyperparameter called `learning_rate` would make tree_get ambiguous.
  scheduled = callable(base) and _is_schedule(base)
  scale = _stateful(scaling)

  def init(params):
    del params
    rate = jnp.zeros([], jnp.float32)
    count = jnp.zeros([], jnp.int32) if scheduled else ()
    return ScaleByBatchLearningRateState(rate, scale.init(), count)

  def update(
    updates,
    state,
    params=None,
    *,
    batch_size: jax.typing.ArrayLike,
    examples: jax.typing.ArrayLike,
    gradient_noise: Any = None,
    **extra,
  ):
    del params, extra
    factor, kept = scale.update(state.scaling_state, batch_size, gradient_noise)
    factor = (warmup or no_warmup())(examples, factor, batch_size)
    multiplier = 1.0 if decay is None else decay(examples)
    value = _base_now(base, scheduled, state.count, examples, batch_size)
    rate = _float32(value) * _float32(multiplier) * _float32(factor)
    count = optax.safe_increment(state.count) if scheduled else ()
    updates = scale_in_float32(updates, -rate)
    return updates, ScaleByBatchLearningRateState(rate, kept, count)

  # optax's type for update knows no required extra arguments.
  return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore


def at_batch_size(
  learning_rate: optax.GradientTransformation, batch_size: float
) -> optax.GradientTransformationExtraArgs:
  """The learning rate of one batch size, whatever is trained with.

      lr(e, B) of `learning_rate` becomes lr(e, B_0)

  For branches of a run, whose rate is scaled by somebody else. AdaScale keeps
  the gain that it has.

  Args:
    learning_rate: such as `scale_by_batch_learning_rate`.
    batch_size: B_0 in examples.

  Returns:
    A transform with the same state.

  >>> from adabatch.optim import linear_scaling
  >>> tx = scale_by_batch_learning_rate(0.5, scaling=linear_scaling(32))
  >>> held, ones = at_batch_size(tx, 32), jnp.ones(1)
  >>> print(held.update(ones, held.init(ones), batch_size=64, examples=0)[0])
  [-0.5]
  """
  inner = optax.with_extra_args_support(learning_rate)

  def update(updates, state, params=None, **extra):
    given = extra | {'batch_size': batch_size, 'gradient_noise': None}
    return inner.update(updates, state, params, **given)

  return optax.GradientTransformationExtraArgs(inner.init, update)


def _base_now(base, scheduled, count, examples, batch_size):
  if not callable(base):
    return base
  return base(count) if scheduled else base(examples, batch_size)


def _stateful(scaling: Scaling | StatefulScaling | None) -> StatefulScaling:
  """Any scaling as one that has a state, which may be empty."""
  if isinstance(scaling, StatefulScaling):
    return scaling

  def update(state, batch_size, gradient_noise):
    del gradient_noise
    return (scaling or no_scaling())(batch_size), state

  return StatefulScaling(tuple, update)


def _first(factor, start):
  """Where a warmup starts."""
  return jnp.minimum(1, factor) if start is None else start * factor


def _is_schedule(base: Callable[..., Any]) -> bool:
  """Whether a function takes the count of updates, not examples and batch size.

  Raises:
    ValueError: where its parameters do not tell.
  """
  takes = {number: _takes(base, number) for number in (1, 2)}
  if takes[1] == takes[2]:
    both = 'both fit' if takes[1] else 'neither fits'
    raise ValueError(
      f'the learning rate {base!r} must be a schedule (count of updates) or a '
      f'rule (examples, batch_size), and by its parameters {both}: wrap it in '
      'a lambda with one parameter, or with two'
    )
  return takes[1]


def _takes(function: Callable[..., Any], number: int) -> bool:
  """Whether it can be called with so many positional arguments."""
  try:
    inspect.signature(function).bind(*range(number))
  except (TypeError, ValueError):  # too few or many; no signature to be had
    return False
  return True


def _length_at(name, length):
  """The length as a function of the batch size."""
  if callable(length):
    return lambda batch_size: _float32(length(batch_size))
  if length < 0:
    raise ValueError(f'{name}: length must not be negative, got {length}')
  return lambda batch_size: _float32(length)


def _float32(value):
  return jnp.asarray(value, jnp.float32)
