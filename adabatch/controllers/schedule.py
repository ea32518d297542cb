"""Rules that know the size in advance, from updates, examples or epochs."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from adabatch.controllers.base import (
  BatchSizeController,
  Signals,
  always,
  described,
  only_at_start,
)
from adabatch.controllers.state import (
  SMALLEST_RATIO,
  Held,
  accept,
  check_choice,
  check_number,
  hold,
  reject,
  required,
  round_up,
)
from adabatch.controllers.tables import per_example, read_table


@described
def constant(*, initial_batch_size: float) -> BatchSizeController:
  """The same size for ever: B_k = B_0.

  Args:
    initial_batch_size: B_0, examples.

  Returns:
    A controller that needs no signals and is due only at the start.

  Raises:
    ValueError: `initial_batch_size` is below 1.

  >>> controller = constant(initial_batch_size=64)
  >>> controller.update(controller.init(), Signals(update=1000))[0]
  64.0
  """
  check_number('initial_batch_size', initial_batch_size, at_least=1)
  return BatchSizeController(
    init=lambda: Held(float(initial_batch_size)),
    update=lambda state, signals: hold(state),
    needs=frozenset(),
    due=only_at_start,
  )


@described
def padadamp(*, initial_batch_size: float, rate: float) -> BatchSizeController:
  """Linear growth with the number of updates: the passive AdaDamp.

    B_k = ceil(B_0 + rate k)

  Args:
    initial_batch_size: B_0, examples.
    rate: growth in examples per update, at least 0; `padadamp_rate` gives
      the authors' choice.

  Returns:
    A controller that needs `update`.

  Raises:
    ValueError: an argument is out of range.

  >>> controller = padadamp(initial_batch_size=64, rate=0.5)
  >>> controller.update(controller.init(), Signals(update=101))[0]
  115.0

  Reference: Sievert and Charles, 2019, https://arxiv.org/abs/1910.08222
  """
  check_number('rate', rate, at_least=0)
  return _of_progress(
    'padadamp',
    initial_batch_size,
    'update',
    lambda k: round_up(initial_batch_size + rate * k),
  )


def padadamp_rate(
  *,
  initial_batch_size: float,
  max_batch_size: float,
  epochs: float,
  num_examples: int,
) -> float:
  """The authors' growth rate for `padadamp`.

    rate = 4/3 (B_max - B_0) (B_0 + 2 B_max + 3)
           / (2 B_max - 2 B_0 + 3 epochs num_examples)

  Args:
    initial_batch_size: B_0, examples.
    max_batch_size: B_max, examples, at least B_0.
    epochs: length of the training.
    num_examples: size of the training set.

  Returns:
    The growth in examples per update.

  Raises:
    ValueError: an argument is out of range.

  >>> round(padadamp_rate(initial_batch_size=64, max_batch_size=1024,
  ...                     epochs=10, num_examples=50_000), 4)
  1.8025

  Reference: the code of the authors' experiments,
  https://github.com/stsievert/adadamp-experiments (train/train.py)
  """
  check_number('initial_batch_size', initial_batch_size, at_least=1)
  check_number('max_batch_size', max_batch_size, at_least=initial_batch_size)
  check_number('epochs', epochs, above=0)
  check_number('num_examples', num_examples, at_least=1)
  b0, b_max = initial_batch_size, max_batch_size
  growth = (b_max - b0) * (b0 + 2 * b_max + 3)
  return 4 / 3 * growth / (2 * b_max - 2 * b0 + 3 * epochs * num_examples)


@described
def geodamp(
  *, initial_batch_size: float, factor: float = 2.0, delay_epochs: float = 5.0
) -> BatchSizeController:
  """Geometric growth with the epochs.

    B_k = B_0 factor^floor(epoch / delay_epochs)

  AdaBatch multiplies the learning rate by a factor at the same epochs as well.

  Args:
    initial_batch_size: B_0, examples.
    factor: growth at each step, at least 1.
    delay_epochs: epochs between two steps, above 0.

  Returns:
    A controller that needs `epoch`.

  Raises:
    ValueError: an argument is out of range.

  >>> controller = geodamp(initial_batch_size=64)
  >>> controller.update(controller.init(), Signals(epoch=10.0))[0]
  256.0

  Reference: Sievert and Charles, 2019, https://arxiv.org/abs/1910.08222;
  Devarakonda et al., 2017, https://arxiv.org/abs/1712.02029, for AdaBatch.
  """
  check_number('factor', factor, at_least=1)
  check_number('delay_epochs', delay_epochs, above=0)

  def size(epoch: float) -> float:
    try:
      return initial_batch_size * float(factor) ** _steps(epoch, delay_epochs)
    except OverflowError:
      return math.inf

  return _of_progress('geodamp', initial_batch_size, 'epoch', size)


def _steps(epoch: float, delay_epochs: float) -> int:
  # 0.3 / 0.1 is a little less than 3.
  return math.floor(epoch / delay_epochs * (1 + 1e-12))


@described
def step_table(
  *,
  table: str | Sequence[Sequence[float]],
  unit: str = 'examples',
  tokens_per_example: float | None = None,
  initial_batch_size: float | None = None,
) -> BatchSizeController:
  """The sizes of a table: from each count on, its size.

    '0:768 250M:1536 500M:3072'

  Args:
    table: text of `count:size` entries with spaces between them, where a
      count may end in K, M, B or T (10^3, 10^6, 10^9, 10^12); or a list of
      (count, size). Counts rise, sizes are in examples and at least 1. Such is
      Megatron's --step-batch-size-schedule, with the unit 'tokens'. Or, with
      all in tokens, what `tables.parse_olmo` takes.
    unit: of the counts, 'examples', 'epochs' or 'tokens'.
    tokens_per_example: for 'tokens'.
    initial_batch_size: examples, before the first count; needed only if the
      first count is above 0, and unused otherwise.

  Returns:
    A controller that needs `examples` or `epoch`.

  Raises:
    ValueError: the table or the unit is malformed.

  >>> controller = step_table(table='0:64 1.5K:128')
  >>> controller.update(controller.init(), Signals(examples=1500))[0]
  128.0

  Reference: the batch-size table of Megatron-LM,
  https://github.com/NVIDIA/Megatron-LM
  """
  check_choice('unit', unit, ('examples', 'epochs', 'tokens'))
  entries = read_table(table, unit, tokens_per_example)
  if initial_batch_size is not None:
    check_number('initial_batch_size', initial_batch_size, at_least=1)
  if entries[0][0] > 0:
    if initial_batch_size is None:
      raise ValueError(
        f'table={table!r} starts at {entries[0][0]:g}; start it at 0 or give '
        'initial_batch_size, the size before that'
      )
    entries = [(0.0, float(initial_batch_size)), *entries]
  counts, sizes = zip(*entries, strict=True)
  return _of_progress(
    'step_table',
    sizes[0],
    'epoch' if unit == 'epochs' else 'examples',
    lambda count: sizes[max(bisect_right(counts, count) - 1, 0)],
    floor=False,
  )


@described
def ramp_up(
  *,
  initial_batch_size: float,
  final_batch_size: float,
  increment: float,
  examples: int,
  unit: str = 'examples',
  tokens_per_example: float | None = None,
) -> BatchSizeController:
  """From a first to a last size by equal increments over some examples.

    steps = (B_final - B_0) / increment
    B = B_0 + increment min(steps, floor(seen steps / examples))

  Args:
    initial_batch_size: B_0, examples.
    final_batch_size: B_final, examples, at least B_0.
    increment: examples added at each step; divides B_final - B_0.
    examples: length of the ramp, at least 1.
    unit: of that, 'examples' or 'tokens'.
    tokens_per_example: for 'tokens'.

  Returns:
    A controller that needs `examples`.

  Raises:
    ValueError: an argument is out of range.

  >>> controller = ramp_up(initial_batch_size=32, final_batch_size=128,
  ...                      increment=32, examples=3000)
  >>> controller.update(controller.init(), Signals(examples=2000))[0]
  96.0

  Reference: `--rampup-batch-size` of Megatron-LM,
  https://github.com/NVIDIA/Megatron-LM
  """
  check_number('initial_batch_size', initial_batch_size, at_least=1)
  check_number(
    'final_batch_size', final_batch_size, at_least=initial_batch_size
  )
  check_number('increment', increment, above=0)
  check_number('examples', examples, at_least=1)
  check_choice('unit', unit, ('examples', 'tokens'))
  # An integer where it was one, so that steps are exact.
  each = per_example(unit, tokens_per_example)
  length = examples if each == 1 else examples / each
  steps, rest = divmod(final_batch_size - initial_batch_size, increment)
  if rest:
    raise ValueError(
      f'increment={increment!r} was given; set it to a divisor of '
      f'final_batch_size - initial_batch_size = '
      f'{final_batch_size - initial_batch_size:g}'
    )

  def size(seen: float) -> float:
    return initial_batch_size + increment * (
      min(seen, length) * steps // length
    )

  return _of_progress('ramp_up', initial_batch_size, 'examples', size)


def _of_progress(
  rule: str,
  initial_batch_size: float,
  field: str,
  size: Callable[[float], float],
  *,
  floor: bool = True,
) -> BatchSizeController:
  """B = size(progress), not below B_0 where that is a floor."""
  check_number('initial_batch_size', initial_batch_size, at_least=1)

  def update(state: Held, signals: Signals):
    progress = _progress(rule, signals, field)
    if not math.isfinite(progress):
      return reject(state)
    smallest = initial_batch_size if floor else 1
    return accept(state, size(progress), smallest=smallest)

  return BatchSizeController(
    init=lambda: Held(float(initial_batch_size)),
    update=update,
    needs=frozenset({field}),
  )


def _progress(rule: str, signals: Signals, field: str) -> Any:
  values = required(rule, signals, [field])
  assert values is not None, 'there is a count before the first update too'
  return values[0]


class LearningRateState(NamedTuple):
  """State of `from_lr_schedule`."""

  batch_size: float
  peak: float = 0.0  # largest value of the schedule so far
  ignored: int = 0


@described
def from_lr_schedule(
  schedule: Callable[[int], Any],
  *,
  initial_batch_size: float,
  due: Callable[[int], bool] = always,
) -> BatchSizeController:
  """Grow the batch where a schedule would have decayed the learning rate.

    alpha = schedule(examples) / (its largest value so far)
    B = B_0 / alpha

  So a warmup (alpha = 1) leaves the size alone. alpha is bounded below by
  1e-12, so a schedule that ends at 0 gives 1e12 B_0, not infinity, and it
  is rounded to six significant digits: a float32 schedule knows no more,
  and 64.00001 examples would fill another bucket than 64. What the learning
  rate itself does is not this rule's business.

  Args:
    schedule: examples trained on so far -> learning rate, or a multiplier
      of it; any callable whose result `float` accepts.
    initial_batch_size: B_0, examples.
    due: k -> may the size change after k updates? Only there is the schedule
      read, and only there is its largest value looked for; see `every_due`.

  Returns:
    A controller that needs `examples`, and `update` where `due` is given.

  Raises:
    ValueError: `schedule` is not callable or B_0 is out of range.

  >>> controller = from_lr_schedule(
  ...   lambda examples: 0.1 if examples < 1000 else 0.01,
  ...   initial_batch_size=64)
  >>> _, state = controller.update(controller.init(), Signals(examples=0))
  >>> controller.update(state, Signals(update=1, examples=1000))[0]
  640.0

  Reference: Smith et al., 2018, https://arxiv.org/abs/1711.00489
  """
  check_number('initial_batch_size', initial_batch_size, at_least=1)
  if not callable(schedule):
    raise ValueError(
      f'schedule={schedule!r} was given; set schedule to a function of the '
      'examples, such as an optax schedule'
    )

  def update(state: LearningRateState, signals: Signals):
    if not due(signals.update):
      return hold(state)
    examples = _progress('from_lr_schedule', signals, 'examples')
    if not math.isfinite(examples):
      return reject(state)
    value = float(schedule(examples))
    if not math.isfinite(value):
      return reject(state)
    peak = max(state.peak, value)
    alpha = float(f'{value / peak:.6g}') if peak > 0 else 1.0
    size = initial_batch_size / max(alpha, SMALLEST_RATIO)
    return accept(state._replace(peak=peak), size, smallest=initial_batch_size)

  return BatchSizeController(
    init=lambda: LearningRateState(float(initial_batch_size)),
    update=update,
    needs=frozenset(['examples'] if due is always else ['examples', 'update']),
    due=due,
  )
