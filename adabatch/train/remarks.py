"""What a run makes of its config that may not be expected, a line each."""

from collections.abc import Iterator
from typing import Any

import jax

from adabatch.config import Config
from adabatch.controllers.buckets import Ladder
from adabatch.train import noise
from adabatch.train.build import Parts
from adabatch.train.optimizer import beta2_at_its_floor, lasts_as_the_run
from adabatch.train.rules import idle_remarks
from adabatch.train.run_end import without_effect


def network(parts: Parts, params: Any) -> str:
  """A line on what is trained, on which a wrong size is seen.

  Args:
    parts: of the run.
    params: of one model.
  """
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  devices = parts.recipe.devices.size
  shape = ' x '.join(map(str, parts.recipe.network_input.shape[1:]))
  return (
    f'{parts.config.model.name}: {count:,} parameters, fed with {shape}, '
    f'on {devices} device{"s" if devices > 1 else ""}'
  )


def remarks(parts: Parts) -> Iterator[str]:
  """Lines on what a run makes of its config that may not be expected."""
  config, inputs = parts.config, parts.recipe.inputs
  for document in (*inputs.skipped_train, *inputs.skipped_evaluation):
    yield f'skipped document {document}'
  top, asked = parts.ladder.batch_sizes[-1], config.controller.max_batch_size
  if config.controller.name != 'constant' and top < asked:
    yield (
      f'controller.max_batch_size={asked} is capped at {top}: the training '
      f'split has {parts.extent.epoch} examples'
    )
  yield from _rounded_up(config, parts.ladder)
  yield from idle_remarks(config, parts.ladder)
  about = parts.extent.epoch, parts.extent.tokens_per_example
  if (line := without_effect(config, *about)) is not None:
    yield line
  yield from filter(None, [beta2_at_its_floor(config, top)])
  yield from noise.remarks(config, parts.recipe)
  if config.ema.half_life is not None:
    yield (
      'evaluated are averages of the weights, with a half-life of '
      f'{config.ema.half_life:g} examples (ema.half_life); the training loss '
      'is that of the weights themselves'
    )
  if not parts.length.exact and lasts_as_the_run(config):
    tuned = config.sync.tune.enabled
    name = f'controller.name={config.controller.name!r}'
    decides = 'sync.tune' if tuned else name
    yield (
      f'max_updates={config.max_updates} may end the run before the '
      f'{parts.length.examples} examples over which learning_rate.decay is '
      f'laid out: nobody knows before what {decides} will decide; to be sure '
      'set learning_rate.decay.length'
    )


def _rounded_up(config: Config, ladder: Ladder) -> Iterator[str]:
  """Where replicas that are left after a loss cannot share what was asked."""
  c = config.controller
  asked = c.initial_batch_size if c.min_batch_size is None else c.min_batch_size
  if ladder.batch_sizes[0] > asked:
    yield (
      f'{ladder.replicas} replicas cannot share batches of {asked} equally: '
      f'the smallest has {ladder.batch_sizes[0]} (sync.min_replicas)'
    )
