"""Exact means over a whole split: metrics, and the gradient's norm."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from adabatch import data
from adabatch.devices import evaluation_steps, feeds, parallel, steps
from adabatch.devices.replicas import State
from adabatch.models.tasks import Task
from adabatch.optim import gradient_noise


class Pieces(NamedTuple):
  """A split in pieces of one shape, as `evaluation_steps` takes them.

  Attributes:
    open: () -> iterator over (data, first) of each piece, the same number of
      them on every process.
    sharded: whether each device is given data of its own.
    slots: examples that one device takes of a piece.
    limit: examples of `data` that are real, from the first.
    examples: examples in all.
  """

  open: Callable[[], Iterator[tuple[steps.Data, Any]]]
  sharded: bool
  slots: int
  limit: int
  examples: int


def resident_pieces(
  arrays: steps.Data,
  limit: int,
  mesh: Mesh,
  max_per_device: int,
  multiple: int = 1,
) -> Pieces:
  """The first `limit` examples of arrays that lie on every device.

  Every example counts exactly once: the slots beyond the last are empty. A
  device takes a multiple of `multiple` slots, which may be above
  `max_per_device`.
  """
  slots = min(max_per_device, -(-limit // mesh.size))
  slots = -(-slots // multiple) * multiple
  chunks = -(-limit // (slots * mesh.size))
  firsts = np.arange(chunks * mesh.size, dtype=np.int32) * slots
  placed = [
    parallel.shard(row, mesh) for row in firsts.reshape(chunks, mesh.size)
  ]
  return Pieces(
    lambda: ((arrays, first) for first in placed), False, slots, limit, limit
  )


def streamed_pieces(
  split: Any,
  mesh: Mesh,
  max_per_device: int,
  *,
  workers: int,
  skipped: Callable[[int, str], None],
) -> Pieces:
  """A whole split, read anew at each pass in the order in which it is stored.

  Args:
    split: what `data.read_chunks` reads.
    mesh: the devices.
    max_per_device: most examples a device takes at once.
    workers: processes that read; 0 for a thread.
    skipped: is told of records that could not be read: (record, reason).
  """
  own, processes = len(feeds.own_devices(mesh)), jax.process_count()
  slots = min(max_per_device, -(-split.num_examples // mesh.size))
  here = jax.process_index()
  mine = len(range(here, split.num_examples, processes))
  most = -(-split.num_examples // processes)
  zeros = parallel.shard(np.zeros(mesh.size, np.int32), mesh)

  def pieces() -> Iterator[tuple[steps.Data, Any]]:
    reader = data.read_chunks(
      split,
      None,
      0,
      stop=split.num_examples,
      process=here,
      processes=processes,
      workers=workers,
    )
    try:
      window = feeds.Window(reader, skipped)
      for start in range(0, most, own * slots):
        # An empty slot has the weight 0.
        arrays = feeds.empty(split.shapes, (own * slots,))
        rows = slice(0, min(own * slots, mine - start))
        if rows.stop > 0:
          window.copy(start, {name: a[rows] for name, a in arrays.items()})
          window.forget(start + rows.stop)
        shares = {
          name: a.reshape(own, slots, *a.shape[1:])
          for name, a in arrays.items()
        }
        yield parallel.shard_own(shares, mesh), zeros
    finally:
      reader.close()

  return Pieces(pieces, True, slots, slots, split.num_examples)


# Makes what is entered while a program is compiled.
Compiling = Callable[[], AbstractContextManager[Any]]


class _Program:
  """A jitted function of the same shapes each time, compiled at the first."""

  def __init__(self, function: Any, compiling: Compiling):
    self._function, self._compiling = function, compiling
    self._compiled: Any = None

  def __call__(self, *args: Any) -> Any:
    if self._compiled is None:
      with self._compiling():
        self._compiled = self._function.lower(*args).compile()
    return self._compiled(*args)


class Evaluator:
  """Means in evaluation mode over a split, each example counted once.

  Attributes:
    examples: how many there are.
    skipped: how many of them could not be read, the last time.
  """

  def __init__(
    self,
    model: nn.Module,
    task: Task,
    load: steps.Load,
    pieces: Pieces,
    *,
    mesh: Mesh,
    backend: str,
    options: dict[str, Any] | None = None,
    compiling: Compiling = nullcontext,
  ):
    """`load` makes a batch from data on the device; programs are compiled
    within what `compiling` makes, once they are first used."""
    self._pieces, self._mesh, self._task = pieces, mesh, task
    self.examples, self.skipped = pieces.examples, 0
    body = model, task, load, pieces.slots, pieces.limit

    def program(body):
      function = parallel.spmd(
        body,
        mesh,
        layout=(False, False, pieces.sharded, False, True),
        backend=backend,
        donate=(3,),
        options=options,
      )
      return _Program(function, compiling)

    self._metrics = program(evaluation_steps.evaluation_step(*body))
    self._gradient = program(evaluation_steps.gradient_step(*body))
    self._norm = _Program(jax.jit(gradient_noise.squared_norm), compiling)

  def _sum(self, program: Callable[..., Any], state: State, zeros: Any) -> Any:
    sums = parallel.replicate((zeros, np.float32(0)), self._mesh)
    for arrays, first in self._pieces.open():
      if self._pieces.sharded:
        # Pieces of a large split must not pile up in the devices' memory: one
        # is at work, and the next was read and sent meanwhile.
        jax.block_until_ready(sums)
      sums = program(state.params, state.model_state, arrays, sums, first)
    return sums

  def _count(self, weight: Any) -> None:
    self.skipped = self.examples - round(float(weight))
    if not weight > 0:
      raise data.DatasetError(
        f'none of the {self.examples} examples to be evaluated can be read'
      )

  def metrics(self, state: State) -> dict[str, float]:
    """What the task reports of the split."""
    zeros = dict.fromkeys(self._task.metric_names, np.float32(0))
    sums, weight = jax.device_get(self._sum(self._metrics, state, zeros))
    self._count(weight)
    # Device results come back sorted by name.
    names = self._task.metric_names
    means = {name: float(sums[name]) / float(weight) for name in names}
    return self._task.summarize(means)

  def gradient_norm_squared(self, state: State) -> float:
    """|mean gradient|^2 of the evaluation-mode loss."""
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state.params)
    total, weight = self._sum(self._gradient, state, zeros)
    norm, weight = jax.device_get((self._norm(total), weight))
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
    self,
    model: nn.Module,
    task: Task,
    load: steps.Load,
    pieces: Pieces,
    *,
    mesh: Mesh,
    backend: str,
    seed: int,
    options: dict[str, Any] | None = None,
    compiling: Compiling = nullcontext,
  ):
    """`pieces` hold whole BatchNorm groups of examples in random order."""
    self._pieces, self._mesh = pieces, mesh
    self.examples = pieces.examples
    function = parallel.spmd(
      evaluation_steps.calibration_step(
        model,
        task,
        load,
        pieces.slots,
        pieces.limit,
        devices=mesh.size,
        rng=jax.random.key(seed),
      ),
      mesh,
      layout=(False, False, pieces.sharded, False, True),
      backend=backend,
      donate=(3,),
      options=options,
    )
    self._program = _Program(function, compiling)
    finish = jax.jit(evaluation_steps.calibrated, compiler_options=options)
    self._finish = _Program(finish, compiling)

  def __call__(self, state: State) -> State:
    """The same state with calibrated statistics; the given one stays."""
    zeros = jax.tree.map(
      lambda x: np.zeros(x.shape, x.dtype), state.model_state
    )
    zeros = zeros, zeros, np.float32(0)
    sums = parallel.replicate(zeros, self._mesh)
    for arrays, first in self._pieces.open():
      sums = self._program(state.params, state.model_state, arrays, sums, first)
    return state._replace(model_state=self._finish(state.model_state, sums))


class Measurements:
  """The signals that cost a pass over data, for the rules that need them.

  `full_*` go over the whole training split, `subset_*` over a fixed part of it,
  in evaluation mode with calibrated statistics.
  """

  def __init__(
    self,
    needs: frozenset[str],
    evaluator: Callable[[Pieces], Evaluator],
    *,
    full: Callable[[], Pieces],
    subset: Callable[[], Pieces],
    calibration: Callable[[], Calibration] | None = None,
  ):
    """Makes only the evaluators that `needs` asks for.

    Args:
      needs: the signals that the rule reads.
      evaluator: pieces of a split -> an evaluator of them.
      full: makes the pieces of the training split.
      subset: makes those of the fixed part.
      calibration: makes what calibrates running statistics; None: there are
        none.
    """
    self._needs = needs
    sources = {'full': full, 'subset': subset}
    self._evaluators = {
      source: evaluator(make())
      for source, make in sources.items()
      if any(name.startswith(f'{source}_') for name in needs)
    }
    self._calibration = None
    if self._evaluators and calibration is not None:
      self._calibration = calibration()

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
