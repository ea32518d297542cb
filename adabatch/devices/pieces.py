"""A split in pieces of one shape, to go over all of its examples once."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from adabatch import data
from adabatch.data.source import Data
from adabatch.devices.in_rows import place_split
from adabatch.devices.mesh import BY_DEVICE, WHOLE, Devices
from adabatch.devices.recipe import Recipe
from adabatch.devices.stream import Window, empty

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
  return Pieces(pieces.__iter__, pieces[0], WHOLE, slots, limit, limit)


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


def whole_split(
  recipe: Recipe, which: int, arrays: Any, skipped: Skipped
) -> Pieces:
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
  return in_memory(recipe, arrays, split.num_examples)


def in_memory(
  recipe: Recipe, arrays: Data, examples: int, multiple: int = 1
) -> Pieces:
  return resident_pieces(
    arrays, examples, recipe.devices, recipe.evaluated_at_once, multiple
  )


def drawn(
  recipe: Recipe, skipped: Skipped, stream: int, size: int | None = None
) -> tuple[np.ndarray, Data]:
  """Examples of the training split, drawn because some sets are sorted.

  Args:
    recipe: what is trained.
    skipped: is told of records that cannot be read.
    stream: another one draws others.
    size: how many at most; None: `recipe.subset_size`.

  Returns:
    Which they are, int [n] in random order, and their arrays in rising order.
  """
  split = recipe.inputs.train
  size = min(size or recipe.subset_size, split.num_examples)
  high, low = data.position_halves(recipe.seed)
  rng = np.random.Generator(np.random.Philox([low, stream, high]))
  chosen = rng.permutation(split.num_examples)[:size]
  chunk = split.read(np.sort(chosen), None)
  for record, reason in chunk.skipped:
    skipped(recipe.split_names[0])(record, reason)
  return chosen, chunk.arrays
