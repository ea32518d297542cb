"""Through how many files an update goes, and how often it changes the file.

    python -m tests.way_of_a_batch_size

An update is what happens from its dispatch to the next one: while it runs, the
one before reports; where a decision is due after it, it reports as well, and
the batch size of the next is chosen. What lies between two stretches of equal
updates, what is due there and the plan of the next stretch, is counted on its
own. Counted are the files of adabatch whose functions are called, and the
changes from one to another.
"""

import collections
import functools
import itertools
import pathlib
import sys

import jax

from adabatch.train.build import build
from adabatch.train.loop import loop
from configs import digits_mlp

HOUSE = pathlib.Path(__file__).parents[1] / 'adabatch'
# Where a way begins.
UPDATE = ('devices/trainer.py', 'dispatch')
PLAN = ('train/loop.py', 'between')

Way = tuple[str, ...]


@functools.cache  # asked for at every call of a function
def name_in_house(file: str) -> str | None:
  path = pathlib.Path(file)
  return str(path.relative_to(HOUSE)) if HOUSE in path.parents else None


def usual_ways(updates: int = 90) -> dict[str, Way]:
  """The files in the order in which they were entered; of most of a kind."""
  config = digits_mlp.get_config()
  config.max_updates = updates
  config.updates_per_call = 7  # else the first calls in a bucket are measured
  records = loop(build(config, jax.devices()[:1]))
  ways: dict[str, list[list[str]]] = collections.defaultdict(list)
  way: list[str] = []
  planning = None

  def enter(frame, event, argument):
    nonlocal way, planning
    del argument
    code = frame.f_code
    if event != 'call' or (name := name_in_house(code.co_filename)) is None:
      return
    begins, kind = (name, code.co_name), None
    if begins == UPDATE:
      decides = frame.f_locals['call'].decides
      kind = 'deciding update' if decides else 'ordinary update'
    # A generator is entered anew after each record.
    elif begins == PLAN and frame is not planning:
      kind, planning = 'plan', frame
    if kind is not None:
      way = []
      ways[kind].append(way)
    if not way or way[-1] != name:
      way.append(name)

  # What is traced before the first record would take long to follow.
  while next(records)[0] != 'train':
    pass
  sys.setprofile(enter)
  try:
    for _ in records:
      pass
  finally:
    sys.setprofile(None)
  return {
    kind: collections.Counter(map(tuple, some)).most_common(1)[0][0]
    for kind, some in ways.items()
  }


def count(way: Way) -> tuple[int, int]:
  """Files entered, and changes from one to another."""
  return len(set(way)), sum(a != b for a, b in itertools.pairwise(way))


def main() -> None:
  for kind, way in usual_ways().items():
    files, changes = count(way)
    print(f'{kind}: {files} files, {changes} changes of file')
    print('  ' + ' > '.join(way))


if __name__ == '__main__':
  main()
