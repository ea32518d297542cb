"""What an evaluation says of the model, and whether that is finite at all."""

import math

from adabatch.devices.trainer import Trainer
from adabatch.train.build import Parts
from adabatch.train.calls import Progress
from adabatch.train.not_finite import Diverged
from adabatch.train.records import Record, eval_record
from adabatch.train.skipped import limits


def check(trainer: Trainer, at: Progress) -> None:
  """Before the model is evaluated or kept: whether it is finite.

  Updates report the loss before them, so of the last nobody else would know.

  Args:
    trainer: has the model.
    at: after which update.

  Raises:
    Diverged: if it is not.
  """
  if not trainer.finite():
    raise Diverged(
      at.update,
      at.examples,
      'updated model (its parameters, statistics or optimizer)',
    )


def evaluate(trainer: Trainer, parts: Parts, at: Progress) -> Record:
  """Measures the evaluation split.

  Args:
    trainer: has the model.
    parts: of the run.
    at: where it is; told of the result.

  Raises:
    Diverged: if the model or its loss is not finite.
  """
  split = parts.recipe.split_names[1]
  check(trainer, at)
  metrics = trainer.evaluate()
  if not math.isfinite(metrics['loss']):
    raise Diverged(at.update, at.examples, f'{split} loss')
  if not parts.recipe.inputs.tokens_per_example:
    skipped = trainer.evaluator.skipped
    limits(parts.config).check_records(
      skipped, split, trainer.evaluator.examples
    )
    at.skipped_evaluation_records = skipped
  better = parts.recipe.task.higher_is_better
  at.evaluated_with(split, metrics, better, parts.due, parts.config.target)
  return 'eval', eval_record(at, parts, split, metrics)
