"""The records that a run yields, in plain numbers; `log` writes them."""

import math
from typing import Any

from adabatch.train.build import Parts
from adabatch.train.calls import Progress, Update
from adabatch.train.replicas import Change

# What happened, and its numbers. Kinds: `start` (everything was accepted),
# `train`, `eval`, `probe`, `replicas`, `skipped` (an update that is not
# finite), `cut` (what came after an update is done again), `rollback` (why),
# `note` (a line of text) and `summary`, the last.
Record = tuple[str, dict[str, Any]]


def train_record(
  done: Update,
  logged: tuple[int, float],
  parts: Parts,
  distances: dict[str, float],
) -> dict[str, Any]:
  """The record of one update.

  Args:
    done: the update.
    logged: examples and seconds at the record before.
    parts: of the run.
    distances: of replicas at the last sync, by name.
  """
  tokens_per_example = parts.recipe.inputs.tokens_per_example
  examples, seconds = logged
  record = {
    'update': done.update,
    'examples': done.examples,
    'epoch': done.examples / parts.extent.epoch,
    'seconds': done.seconds,
    'loss': done.report.loss,
    'batch_size': done.plan.batch_size,
    'nominal_batch_size': done.plan.nominal,
    'damping': done.plan.damping,
    'learning_rate': done.report.learning_rate,
    'examples_per_second': (done.examples - examples)
    / max(done.seconds - seconds, 1e-9),
  }
  if parts.ladder.min_per_device is not None:
    record['devices'] = done.plan.bucket.devices
  if done.clipped is not None:
    # Before it was clipped; of replicas the root of the mean square.
    record['gradient_norm'] = math.sqrt(done.report.gradient_norm_squared)
    record['clipped'] = done.clipped
  if tokens_per_example is not None:
    record['tokens'] = done.examples * tokens_per_example
    record['tokens_per_second'] = (
      record['examples_per_second'] * tokens_per_example
    )
  if done.noise is not None:
    # Of this update alone: noisy, and without meaning where |G|^2 <= 0.
    trace, norm = done.noise
    record['gradient_noise_scale'] = trace / norm if norm > 0 else None
  return record | distances


def eval_record(
  at: Progress, parts: Parts, split: str, metrics: dict[str, float]
) -> dict[str, Any]:
  """The record of an evaluation."""
  return {
    'update': at.update,
    'examples': at.examples,
    'epoch': at.examples / parts.extent.epoch,
    'seconds': at.seconds,
    'split': split,
    **metrics,
  }


def replicas_record(at: Progress, change: Change) -> dict[str, Any]:
  """The record of another number of replicas.

  A checkpoint may have been written already, from which the change is made,
  and recorded, anew: so it has the number of the next update.
  """
  return {
    'update': at.update + 1,
    'examples': at.examples,
    'seconds': at.seconds,
    'replicas': change.now,
    'before': change.before,
    'why': change.why,
  }


def note(at: Progress, text: str) -> Record:
  """A line for the user."""
  return 'note', {'update': at.update, 'text': text}


def _tokens(examples: int | None, parts: Parts) -> dict[str, int | None]:
  """Of so many examples of text; nothing of others."""
  each = parts.recipe.inputs.tokens_per_example
  if each is None:
    return {}
  return {'tokens': None if examples is None else examples * each}


def summary(status: str, run: Any) -> dict[str, Any]:
  """What `summary.json` holds.

  Args:
    status: `completed`, `target_reached`, `diverged`, `preempted` or `grow`.
    run: with `at`, `parts`, `trainer`, `decisions`, `replicas` and `clock`.
  """
  at, parts, seconds = run.at, run.parts, run.clock.seconds
  programs, inputs = run.trainer.programs, parts.recipe.inputs
  target, counts = parts.config.target, run.replicas.counts
  reached = at.reached or dict.fromkeys(('updates', 'examples', 'seconds'))
  tokens, reached = (
    _tokens(at.examples, parts),
    reached | _tokens(reached['examples'], parts),
  )
  probes = {}
  if run.probe is not None:
    probes = {
      'probe_examples': at.probe_examples,
      'probe_evaluated_examples': at.probe_evaluated_examples,
      'probe_seconds': at.probe_seconds,
      'probes': at.probes,
    }
  return {
    'status': status,
    'updates': at.update,
    'examples': at.examples,
    **tokens,
    'epochs': at.examples / parts.extent.epoch,
    'seconds': seconds,
    'devices': parts.recipe.devices.size,
    'device_seconds': run.clock.device_seconds,
    **({'wanted_devices': at.asked} if status == 'grow' else {}),
    'compilations': programs.compilations,
    'loaded_programs': programs.loaded,
    'buckets_visited': len({variant.bucket for variant in programs.used}),
    'compile_seconds': programs.compile_seconds,
    'first_compile_seconds': programs.first_seconds,
    'stall_seconds': programs.stall_seconds,
    'input_wait_seconds': run.trainer.feed.wait_seconds,
    'replicas': run.trainer.replicas,
    'sync_count': counts.syncs,
    'sync_bytes': counts.sync_bytes,
    'loss_evaluation_examples': run.decisions.evaluated_examples,
    **probes,
    'losses_below_minimum': run.decisions.losses_below_minimum,
    'skipped_records': at.skipped_records + len(inputs.skipped_train),
    'skipped_evaluation_records': at.skipped_evaluation_records
    + len(inputs.skipped_evaluation),
    'skipped_updates': at.skipped_updates,
    'rollbacks': at.rollbacks,
    'left_out_examples': at.left_out,
    'final': at.final,
    'best': at.best,
    'target': {
      'metric': target.metric,
      'value': target.value,
      'reached': at.reached is not None,
      **reached,
    },
  }
