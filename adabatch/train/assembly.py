"""From the parts of an experiment to what runs on the devices."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np

from adabatch import data
from adabatch.config import Config, ConfigError, refusing
from adabatch.devices import parallel, steps
from adabatch.devices.evaluate import (
  Calibration,
  Compiling,
  Evaluator,
  Measurements,
  Pieces,
  resident_pieces,
  streamed_pieces,
)
from adabatch.devices.feeds import ResidentFeed, StreamingFeed
from adabatch.devices.updates import Updates
from adabatch.train.agreement import Agreement
from adabatch.train.experiment import Experiment
from adabatch.train.learner_tuning import TuningRule

# Name of a split -> what is told of its unreadable records: (record, reason).
Skipped = Callable[[str], Callable[[int, str], None]]


def make_updates(config: Config, e: Experiment, skipped: Skipped) -> Updates:
  """The train state and its programs, fed from memory or from a stream."""
  inputs = e.inputs
  order = data.Order(inputs.train.num_examples, config.seed)
  mesh = e.mesh
  if e.sync is not None:
    mesh = parallel.replica_mesh(mesh, e.replicas)
  if inputs.streaming:
    processes = jax.process_count()
    if config.sync.tune.enabled and e.replicas < processes:
      raise ConfigError(
        f'sync.tune.enabled with a streamed set needs a replica for each '
        f'process, got sync.replicas={e.replicas} and {processes} processes'
      )
    with refusing('sync.replicas'):
      feed = StreamingFeed(
        inputs.train,
        order,
        mesh,
        workers=inputs.workers,
        skipped=skipped(config.data.train_split),
        replicas=e.replicas,
      )
  else:
    feed = ResidentFeed(inputs.train, order, mesh, replicas=e.replicas)
  return Updates(
    e.model,
    e.task,
    e.tx,
    inputs.load_train(config.seed),
    feed,
    network_input=e.network_input,
    seed=config.seed,
    mesh=mesh,
    backend=config.parallel.backend,
    estimate_noise=e.estimate_noise,
    # Needed where a replica may train on a single example. That depends on the
    # config alone and never on the devices, so that a checkpoint fits any
    # number of them.
    keep_gradient=e.estimate_noise and e.ladder.batch_sizes[0] == e.replicas,
    updates_per_call=config.updates_per_call,
    options=e.compiler_options,
    sync=e.sync,
    replicas=e.replicas,
  )


def make_agreement(config: Config, e: Experiment) -> Agreement:
  """When replicas agree, and how their number changes."""
  tune = config.sync.tune
  return Agreement(
    None if e.sync is None else e.sync.rule(e.replicas),
    replicas=e.replicas,
    drops=e.learning_rate_drops,
    tuning=(
      TuningRule(tune.most, tune.threshold, tune.windows)
      if tune.enabled
      else None
    ),
    rows=math.gcd(e.replicas, e.mesh.size),
  )


def make_evaluators(
  config: Config,
  e: Experiment,
  train_arrays: Any,
  skipped: Skipped,
  *,
  has_statistics: bool,
  compiling: Compiling = nullcontext,
) -> tuple[Evaluator, Measurements]:
  """What is measured of the evaluation split, and to choose batch sizes.

  Args:
    config: the whole config.
    e: its parts.
    train_arrays: the training split on the devices; None if it is a stream.
    skipped: is told of records that cannot be read.
    has_statistics: whether the model has any, such as BatchNorm's.
    compiling: makes what is entered while a program is compiled.
  """
  inputs, most = e.inputs, config.eval.max_per_device

  def evaluator(pieces: Pieces) -> Evaluator:
    return Evaluator(
      e.model,
      e.task,
      inputs.load,
      pieces,
      mesh=e.mesh,
      backend=config.parallel.backend,
      options=e.compiler_options,
      compiling=compiling,
    )

  def resident(arrays: steps.Data, examples: int, multiple: int = 1) -> Pieces:
    return resident_pieces(arrays, examples, e.mesh, most, multiple)

  def streamed(split: Any, name: str) -> Pieces:
    return streamed_pieces(
      split, e.mesh, most, workers=inputs.workers, skipped=skipped(name)
    )

  def full() -> Pieces:
    if inputs.streaming:
      return streamed(inputs.train, config.data.train_split)
    return resident(train_arrays, inputs.train.num_examples)

  def drawn(stream: int) -> tuple[np.ndarray, steps.Data]:
    """Examples of the training split, drawn because some sets are sorted."""
    examples = inputs.train.num_examples
    size = min(config.controller.subset_size, examples)
    key = [config.seed, stream] if stream else config.seed
    rng = np.random.Generator(np.random.Philox(key))
    chosen = rng.permutation(examples)[:size]
    chunk = inputs.train.read(np.sort(chosen), None)
    for record, reason in chunk.skipped:
      skipped(config.data.train_split)(record, reason)
    return chosen, chunk.arrays

  def subset() -> Pieces:
    chosen, arrays = drawn(0)
    return resident(parallel.replicate(arrays, e.mesh), len(chosen))

  def calibration() -> Calibration:
    # In the order drawn: a group of one class would not be one of training.
    chosen, arrays = drawn(1)
    order = np.argsort(np.argsort(chosen))
    arrays = {name: a[order] for name, a in arrays.items()}
    pieces = resident(
      parallel.replicate(arrays, e.mesh),
      len(chosen),
      e.ladder.group_size or 1,
    )
    return Calibration(
      e.model,
      e.task,
      inputs.load,
      pieces,
      mesh=e.mesh,
      backend=config.parallel.backend,
      seed=config.seed,
      options=e.compiler_options,
      compiling=compiling,
    )

  def evaluation() -> Pieces:
    split = inputs.evaluation
    if inputs.streaming:
      return streamed(split, config.data.eval_split)
    arrays = parallel.replicate(split.arrays, e.mesh)
    return resident(arrays, split.num_examples)

  measurements = Measurements(
    e.controller.needs,
    evaluator,
    full=full,
    subset=subset,
    calibration=calibration if has_statistics else None,
  )
  return evaluator(evaluation()), measurements
