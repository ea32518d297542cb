"""Chips side by side: slices, their sides, and the links in use.

A slice has one fast network, a link to each neighbour. Several of them are
connected by that of the data centre, of which only what its maker publishes is
known.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from adabatch.plan import topology

# Chips of the largest slice.
LARGEST = {'v4': 4096, 'v5e': 256, 'v5p': 8960, 'v6e': 256, 'tpu7x': 9216}


class Place(NamedTuple):
  """Where a number of chips lies.

  Attributes:
    shape: sides of each slice.
    slices: how many.
  """

  shape: tuple[int, ...]
  slices: int


def links(shape: Sequence[int]) -> int:
  """Links of a chip in use: two along a side, one between two chips.

  At least one, so that it can be divided by; one chip exchanges nothing.

  >>> links((16, 16)), links((2, 2)), links((1, 2, 4)), links((1, 1))
  (4, 2, 3, 1)
  """
  return max(sum(min(side - 1, 2) for side in shape), 1)


def place(machine: topology.Topology, chips: int) -> Place | None:
  """So many chips of a machine's kind; None: of that nothing is known.

  Args:
    machine: whose own sides are taken for its own number.
    chips: a power of two, or the machine's own.
  """
  if chips == math.prod(machine.shape):
    return Place(machine.shape, 1)
  generation, number = machine.generation, machine.chip.sides
  largest = LARGEST[generation]
  if chips <= largest:
    return Place(topology.sides(chips, number), 1)
  if machine.chip.network is None:
    return None
  return Place(topology.sides(largest, number), chips // largest)
