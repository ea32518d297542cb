"""Exact means over a whole split: metrics, and what rules need of it."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import numpy as np

from adabatch import data
from adabatch.data.source import Data
from adabatch.devices import evaluation_steps
from adabatch.devices.gathered import Gathered
from adabatch.devices.in_rows import place_split
from adabatch.devices.mesh import BY_DEVICE, WHOLE, Devices
from adabatch.devices.programs import CompiledOnce, Compiling
from adabatch.devices.recipe import Recipe
from adabatch.devices.replicas import State
from adabatch.devices.stream import Window, empty
from adabatch.models import contract
from adabatch.models.tasks import Task
from adabatch.optim import gradient_noise

# Name of a split -> what is told of its unreadable records: (record, reason).
Skipped = Callable[[str], Callable[[int, str], None]]


class Pieces(NamedTuple):
  """A split in pieces of one shape, as `evaluation_steps` takes them.

  Attributes:
    open: () -> iterator over (data, first) of each piece, the same number of
      them on every process.
    example: (data, first) of a piece, or their shapes.
    where: the data of a piece lie.
    slots: examples that one device takes of a piece.
    limit: examples of `data` that are real, from the first.
    examples: examples in all.
    close: ends what reads between passes.
  """

  open: Callable[[], Iterator[tuple[Data, Any]]]
  example: tuple[Any, Any]
  where: str
  slots: int
  limit: int
  examples: int
  close: Callable[[], None] = lambda: None


def resident_pieces(
  arrays: Data,
  limit: int,
  devices: Devices,
  max_per_device: int,
  multiple: int = 1,
) -> Pieces:
  """The first `limit` examples of arrays that lie on every device.

  Every example counts exactly once: the slots beyond the last are empty. A
  device takes a multiple of `multiple` slots, which may be above
  `max_per_device`.
  """
  slots = min(max_per_device, -(-limit // devices.size))
  slots = -(-slots // multiple) * multiple
  chunks = -(-limit // (slots * devices.size))
  firsts = np.arange(chunks * devices.size, dtype=np.int32) * slots
  placed = [
    devices.place(row, BY_DEVICE)
    for row in firsts.reshape(chunks, devices.size)
  ]
  pieces = [(arrays, first) for first in placed]
  return Pieces(lambda: iter(pieces), pieces[0], WHOLE, slots, limit, limit)


def streamed_pieces(
  split: Any,
  devices: Devices,
  max_per_device: int,
  *,
  workers: int,
  skipped: Callable[[int, str], None],
) -> Pieces:
  """A whole split, read anew at each pass in the order in which it is stored.

  Processes that read stay for the next pass, whose first examples they have
  ready by then.

  Args:
    split: what `data.read_chunks` reads.
    devices: of all processes.
    max_per_device: most examples a device takes at once.
    workers: processes that read; 0 for a thread.
    skipped: is told of records that could not be read: (record, reason).
  """
  own, processes = len(devices.own), jax.process_count()
  slots = min(max_per_device, -(-split.num_examples // devices.size))
  here = jax.process_index()
  mine = len(range(here, split.num_examples, processes))
  most = -(-split.num_examples // processes)
  zeros = devices.place(np.zeros(devices.size, np.int32), BY_DEVICE)

  reader: Any = None

  def close() -> None:
    nonlocal reader
    opened, reader = reader, None
    if opened is not None:
      opened.close()

  def pieces() -> Iterator[tuple[Data, Any]]:
    nonlocal reader
    reader = reader or data.read_chunks(
      split,
      None,
      0,
      stop=split.num_examples,
      process=here,
      processes=processes,
      workers=workers,
      again=True,
    )
    complete = False
    try:
      window = Window(reader, skipped)
      for start in range(0, most, own * slots):
        # An empty slot has the weight 0.
        arrays = empty(split.shapes, (own * slots,))
        rows = slice(0, min(own * slots, mine - start))
        if rows.stop > 0:
          window.copy(start, {name: a[rows] for name, a in arrays.items()})
          window.forget(start + rows.stop)
        shares = {
          name: a.reshape(own, slots, *a.shape[1:])
          for name, a in arrays.items()
        }
        yield devices.place_own(shares), zeros
      complete = workers > 0
    finally:
      # Who stopped midway would go on there at the next pass.
      if not complete:
        close()

  sharding = devices.shardings(BY_DEVICE)
  shapes = {
    name: jax.ShapeDtypeStruct(
      (devices.size, *array.shape), array.dtype, sharding=sharding
    )
    for name, array in empty(split.shapes, (slots,)).items()
  }
  example = shapes, zeros
  examples = split.num_examples
  return Pieces(pieces, example, BY_DEVICE, slots, slots, examples, close)


class _Sums:
  """What a body sums up over all pieces of a split."""

  def __init__(
    self, body: Any, recipe: Recipe, pieces: Pieces, compiling: Compiling
  ):
    self._pieces, self._place = pieces, recipe.devices.placer()
    self._function = recipe.devices.spmd(
      body,
      arguments=(WHOLE, WHOLE, pieces.where, WHOLE, BY_DEVICE),
      donate=(3,),
    )
    self._program = CompiledOnce(self._function, compiling)

  def lower(self, state: State, zeros: Any) -> Any:
    """What is compiled, for a state or its shapes."""
    arrays, first = self._pieces.example
    sums = self._place(zeros)
    return self._function.lower(
      state.params, state.model_state, arrays, sums, first
    )

  def __call__(
    self, state: State, zeros: Any, gathered: Gathered | None = None
  ) -> Any:
    """The sums; `gathered` is given what else the body returns."""
    sums, pieces = self._place(zeros), self._pieces
    for arrays, first in pieces.open():
      if pieces.where == BY_DEVICE:
        # Pieces of a large split must not pile up in the devices' memory: one
        # is at work, and the next was read and sent meanwhile.
        jax.block_until_ready(sums)
      sums = self._program.run(
        state.params, state.model_state, arrays, sums, first
      )
      if gathered is not None:
        sums, found = sums
        gathered.add(*found)
    return sums


def _zeros(tree: Any) -> Any:
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)


def summary(
  task: Task, sums: Any, weight: Any, gathered: Gathered | None
) -> dict[str, float]:
  """What a task reports.

  Args:
    task: it.
    sums: weighted, of each metric of examples.
    weight: the sum of the weights.
    gathered: of all examples; None where the task wants nothing of the kind.
  """
  # Device results come back sorted by name.
  means = {n: float(sums[n]) / float(weight) for n in task.metric_names}
  found = task.summarize(means)
  if task.whole is None or gathered is None:
    return found
  names = [name for name in task.higher_is_better if name not in found]
  if not math.isfinite(means['loss']):  # nobody's order means anything
    return found | dict.fromkeys(names, math.nan)
  return found | contract.named(task.whole.metrics(gathered.all()), names)


class Evaluator:
  """Means in evaluation mode over a split, each example counted once.

  Attributes:
    examples: how many there are.
    slots: how many a device takes at once.
    skipped: how many of them could not be read, the last time.
    close: ends what reads between evaluations.
  """

  def __init__(
    self, recipe: Recipe, pieces: Pieces, compiling: Compiling = nullcontext
  ):
    """Programs are compiled within what `compiling` makes, once they are first
    used."""
    self._task = recipe.task
    self.examples, self.slots = pieces.examples, pieces.slots
    self.close = pieces.close
    self.skipped = 0
    body = recipe.model, recipe.task, recipe.inputs.load
    size = pieces.slots, pieces.limit
    self._metrics, self._gradient = (
      _Sums(make(*body, *size), recipe, pieces, compiling)
      for make in (
        evaluation_steps.evaluation_step,
        evaluation_steps.gradient_step,
      )
    )
    self._norm = CompiledOnce(jax.jit(gradient_noise.squared_norm), compiling)

  def _count(self, weight: Any) -> None:
    self.skipped = self.examples - round(float(weight))
    if not weight > 0:
      raise data.DatasetError(
        f'none of the {self.examples} examples to be evaluated can be read'
      )

  def _no_metrics(self) -> Any:
    zeros = dict.fromkeys(self._task.metric_names, np.float32(0))
    return zeros, np.float32(0)

  def lower(self, state: State) -> Any:
    """What is compiled for `metrics`, of a state or its shapes."""
    return self._metrics.lower(state, self._no_metrics())

  def metrics(self, state: State) -> dict[str, float]:
    """What the task reports of the split."""
    gathered = Gathered(self.examples) if self._task.whole else None
    total = self._metrics(state, self._no_metrics(), gathered)
    sums, weight = jax.device_get(total)
    self._count(weight)
    return summary(self._task, sums, weight, gathered)

  def gradient_norm_squared(self, state: State) -> float:
    """|mean gradient|^2 of the evaluation-mode loss."""
    zeros = _zeros(state.params), np.float32(0)
    total, weight = self._gradient(state, zeros)
    norm, weight = jax.device_get((self._norm.run(total), weight))
    self._count(weight)
    return float(norm) / float(weight) ** 2


class Calibration:
  """Running statistics as they would be at the parameters there are.

  Those in the state lag behind, and before the first update they are whatever
  they were initialised with; the loss in evaluation mode then says nothing of
  the parameters.

  Attributes:
    examples: that a calibration goes over.
  """

  def __init__(
    self, recipe: Recipe, pieces: Pieces, compiling: Compiling = nullcontext
  ):
    """`pieces` hold whole BatchNorm groups of examples in random order."""
    self.examples = pieces.examples
    body = evaluation_steps.calibration_step(
      recipe.model,
      recipe.task,
      recipe.inputs.load,
      pieces.slots,
      pieces.limit,
      devices=recipe.devices.size,
      rng=data.seed_key(recipe.seed),
    )
    self._sum = _Sums(body, recipe, pieces, compiling)
    finish = recipe.devices.jit(evaluation_steps.calibrated)
    self._finish = CompiledOnce(finish, compiling)

  def __call__(self, state: State) -> State:
    """The same state with calibrated statistics; the given one stays."""
    zeros = _zeros(state.model_state)
    sums = self._sum(state, (zeros, zeros, np.float32(0)))
    return state._replace(model_state=self._finish.run(state.model_state, sums))


def _whole(recipe: Recipe, which: int, arrays: Any, skipped: Skipped) -> Pieces:
  """A whole split: 0, that of training, or 1, of evaluation."""
  inputs, name = recipe.inputs, recipe.split_names[which]
  split = inputs.evaluation if which else inputs.train
  if inputs.streaming:
    return streamed_pieces(
      split,
      recipe.devices,
      recipe.evaluated_at_once,
      workers=inputs.workers,
      skipped=skipped(name),
    )
  if arrays is None:
    arrays = place_split(split.arrays, recipe.devices)
  return _resident(recipe, arrays, split.num_examples)


def _resident(
  recipe: Recipe, arrays: Data, examples: int, multiple: int = 1
) -> Pieces:
  return resident_pieces(
    arrays, examples, recipe.devices, recipe.evaluated_at_once, multiple
  )


def make_evaluator(
  recipe: Recipe, skipped: Skipped, compiling: Compiling
) -> Evaluator:
  """Of the evaluation split."""
  return Evaluator(recipe, _whole(recipe, 1, None, skipped), compiling)


class Measurements:
  """The signals that cost a pass over data, for the rules that need them.

  `full_*` go over the whole training split, `subset_*` over a fixed part of it,
  in evaluation mode with calibrated statistics.
  """

  def __init__(
    self,
    recipe: Recipe,
    train_arrays: Data | None,
    skipped: Skipped,
    compiling: Compiling,
    *,
    has_statistics: bool,
  ):
    """Makes only what `recipe.needs` asks for.

    No rule reads metrics of a whole split, so nothing is gathered for them.

    Args:
      recipe: what is trained.
      train_arrays: the training split on the devices; None if it is a stream.
      skipped: is told of records that cannot be read.
      compiling: makes what is entered while a program is compiled.
      has_statistics: whether the model has any, such as BatchNorm's.
    """
    recipe = recipe._replace(task=recipe.task._replace(whole=None))
    self._recipe, self._skipped = recipe, skipped
    self._needs = recipe.needs
    sources = {
      'full': lambda: _whole(recipe, 0, train_arrays, skipped),
      'subset': self._subset,
    }
    self._evaluators = {
      source: Evaluator(recipe, make(), compiling)
      for source, make in sources.items()
      if any(name.startswith(f'{source}_') for name in self._needs)
    }
    self._calibration = None
    if self._evaluators and has_statistics:
      self._calibration = Calibration(
        recipe, self._calibration_pieces(), compiling
      )

  def _drawn(self, stream: int) -> tuple[np.ndarray, Data]:
    """Examples of the training split, drawn because some sets are sorted."""
    recipe, split = self._recipe, self._recipe.inputs.train
    size = min(recipe.subset_size, split.num_examples)
    high, low = data.position_halves(recipe.seed)
    rng = np.random.Generator(np.random.Philox([low, stream, high]))
    chosen = rng.permutation(split.num_examples)[:size]
    chunk = split.read(np.sort(chosen), None)
    for record, reason in chunk.skipped:
      self._skipped(recipe.split_names[0])(record, reason)
    return chosen, chunk.arrays

  def _subset(self) -> Pieces:
    chosen, arrays = self._drawn(0)
    arrays = place_split(arrays, self._recipe.devices)
    return _resident(self._recipe, arrays, len(chosen))

  def _calibration_pieces(self) -> Pieces:
    # In the order drawn: a group of one class would not be one of training.
    chosen, arrays = self._drawn(1)
    order = np.argsort(np.argsort(chosen))
    arrays = {name: array[order] for name, array in arrays.items()}
    return _resident(
      self._recipe,
      place_split(arrays, self._recipe.devices),
      len(chosen),
      self._recipe.group_size or 1,
    )

  def take(self, state: State) -> tuple[dict[str, float], int]:
    """The signals by name, and how many examples were evaluated for them."""
    values, cost = {}, 0
    if self._calibration is not None:
      state = self._calibration(state)
      cost += self._calibration.examples
    for source, evaluator in self._evaluators.items():
      measures = {
        f'{source}_loss': lambda e=evaluator: e.metrics(state)['loss'],
        f'{source}_gradient_norm_squared': (
          lambda e=evaluator: e.gradient_norm_squared(state)
        ),
      }
      for name in self._needs & measures.keys():
        values[name] = measures[name]()
        cost += evaluator.examples
    return values, cost

  def close(self) -> None:
    """Ends what reads between measurements."""
    for evaluator in self._evaluators.values():
      evaluator.close()
