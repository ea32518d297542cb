"""From critical batch sizes along a run to the ramp that it could have had."""

from collections.abc import Sequence
from typing import NamedTuple

from adabatch.study.critical import Critical


class Step(NamedTuple):
  """From so many examples on, batches of this size."""

  examples: int
  batch_size: int


def ramp(
  initial: int, at: Sequence[int], sizes: Sequence[Critical]
) -> list[Step]:
  """Doubles where the critical size exceeds twice the current one.

  Of a point where no size was too large, the largest that was tried counts.

  Args:
    initial: batch size at the start.
    at: examples of the points, rising.
    sizes: their critical sizes.

  Returns:
    The steps, the first from 0.

  Reference: Merrill et al., 2025 (arXiv:2505.23971), section on batch size
  warmup.

  >>> found = [Critical(b, b, b, 999) for b in (40.0, 70.0, 300.0)]
  >>> [tuple(step) for step in ramp(32, [100, 200, 300], found)]
  [(0, 32), (200, 64), (300, 256)]
  """
  steps = [Step(0, initial)]
  for examples, found in zip(at, sizes, strict=True):
    size = steps[-1].batch_size
    while found.low and found.at_least > 2 * size:
      size *= 2
    if size > steps[-1].batch_size:
      steps.append(Step(max(examples, 1), size))
  return steps


def step_table(steps: Sequence[Step], unit: int = 1) -> str:
  """As `controller.step_table.table` takes it, and Megatron.

  Megatron's `--step-batch-size-schedule` counts tokens, with sizes in examples.

  Args:
    steps: of the ramp.
    unit: what an example counts; tokens of text.

  >>> step_table([Step(0, 32), Step(200, 64)], unit=128)
  '0:32 25600:64'
  """
  return ' '.join(f'{s.examples * unit}:{s.batch_size}' for s in steps)


def olmo(steps: Sequence[Step], tokens_per_example: int) -> str:
  """As OLMo-core's `BatchSizeSchedulerCallback` takes it, all in tokens.

  Args:
    steps: of the ramp.
    tokens_per_example: predicted of each.

  >>> olmo([Step(0, 32), Step(200, 64)], 128)
  'batch_sizes=[4096, 8192], schedule=[Duration.tokens(0), \
Duration.tokens(25600)]'
  """
  sizes = ', '.join(str(s.batch_size * tokens_per_example) for s in steps)
  starts = ', '.join(
    f'Duration.tokens({s.examples * tokens_per_example})' for s in steps
  )
  return f'batch_sizes=[{sizes}], schedule=[{starts}]'
