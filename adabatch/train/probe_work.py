"""The work of a probe: what is not there yet is made, and is shared."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.errors import JaxRuntimeError
from tqdm import tqdm

from adabatch import optim
from adabatch.config import FREE, ConfigError, flatten
from adabatch.controllers.buckets import bucket_for
from adabatch.devices.agreed import decide, digest
from adabatch.devices.checksums import checksums
from adabatch.devices.losses import ExampleLosses
from adabatch.devices.mesh import any_process, is_first_process
from adabatch.devices.point_noise import (
  NoiseScale,
  PointNoise,
)
from adabatch.optim.noise_norms import euclidean, of_adam
from adabatch.train import memory
from adabatch.train.branches import Branches, Point, noise_exponent, point_of
from adabatch.train.build import Parts
from adabatch.train.checkpoints import Saved
from adabatch.train.noise import WITH_SECOND_MOMENTS
from adabatch.train.probe_points import (
  Task,
  examples_of,
  looks_of,
  tasks_of,
)
from adabatch.train.probe_results import describe_point
from adabatch.train.probe_store import Arrays, Made, ProbeStore
from adabatch.train.rules import finds_limit
from adabatch.train.skipped import teller

PATIENCE = 0.5  # seconds between two looks at what others are making
NOISES = ('simple', 'adam')


class Piece(NamedTuple):
  """What is made at once.

  Attributes:
    about: what makes it what it is, see `ProbeStore`.
    examples: that are trained on.
    doing: what the bar says meanwhile.
    make: makes it; None if that was stopped.
  """

  about: dict[str, Any]
  examples: int
  doing: str
  make: Callable[[Callable[[int], Any]], Arrays | None]


class Work:
  """Makes the branches of points, one after the other."""

  def __init__(
    self,
    parts: Parts,
    store: ProbeStore,
    stop: threading.Event,
    *,
    alone: bool = True,
    check: Callable[[], None] = lambda: None,
  ):
    """Nothing is placed or compiled yet.

    Args:
      parts: of the run.
      store: of what has been made, open.
      stop: set it to end cleanly.
      alone: whether nobody else shows what is done.
      check: asked now and then; may raise.
    """
    self._parts, self._store, self._stop = parts, store, stop
    self._shown = alone and is_first_process()
    self._check = check
    self._branches: tuple[Any, Branches] | None = None
    self._noise: PointNoise | None = None

  def close(self) -> None:
    """Ends reading and compiling."""
    if self._branches is not None:
      self._branches[1].close()

  def run(self, saved: Saved) -> dict[str, Any] | None:
    """What a checkpoint says; None if it was stopped before.

    Of a process that is not the first, nothing.

    Raises:
      ConfigError: where there is no memory for a branch.
      WriteError: if a file cannot be written.
    """
    point = point_of(self._parts, saved.host)
    size = point.plan.batch_size
    examples = examples_of(self._parts, point)
    tasks = tasks_of(self._parts.config, size, examples)
    state = self._identity(saved, point)
    pieces = [
      *(self._piece(state, saved, point, task, examples) for task in tasks),
      self._noise_piece(state, saved),
    ]
    found = self._make(pieces, f'probe of update {saved.update}')
    if found is None:
      return None
    if not is_first_process():
      return {}
    *branches, noise = found
    return describe_point(
      self._parts,
      point,
      [(t.factor, t.multiplier, t.repeat, t.branch) for t in tasks],
      [
        Made(ExampleLosses(a['losses'], a['weights']), float(a['seconds']))
        for a in branches
      ],
      _noise_of(noise),
      examples=examples,
      evaluated=int(branches[0]['evaluated']),
      seconds=float(noise['seconds']),
    )

  # What there is to be made.

  def _identity(self, saved: Saved, point: Point) -> dict[str, Any]:
    keys = flatten(self._parts.config)
    return {
      'update': saved.update,
      'state': checksums(saved.state),
      'at': [point.examples, point.left_out, point.rate * point.plan.damping],
      'data': self._parts.fingerprints,
      # Runs that share a directory may have come to the same state.
      'config': digest({k: v for k, v in keys.items() if k not in FREE}),
    }

  def _piece(
    self,
    state: dict[str, Any],
    saved: Saved,
    point: Point,
    task: Task,
    examples: int,
  ) -> Piece:
    p, branch = self._parts.config.probe, task.branch
    looks = looks_of(self._parts.config, point.plan.batch_size, examples)
    about = {
      'kind': branch.batch_size,
      'looks': looks,
      'examples': examples,
      'warmup': p.warmup,
      'memory': p.learning_rate != 'none',
    }

    def make(told: Callable[[int], Any]) -> Arrays | None:
      with self._told_of_memory(branch.batch_size):
        branches = self._branches_of(saved, point)
        grown = branches.grow(
          saved.state,
          point,
          branch,
          examples,
          looks=looks,
          stop=self._stops,
          told=told,
        )
      if grown is None:
        return None
      evaluated = np.asarray((len(looks) + 1) * branches.evaluated)
      return grown._asdict() | {'evaluated': evaluated}

    doing = f'batch {branch.batch_size}, repeat {task.repeat + 1}'
    return Piece(state | about | branch._asdict(), examples, doing, make)

  def _noise_piece(self, state: dict[str, Any], saved: Saved) -> Piece:
    asked = self._parts.config.probe.noise_examples
    about = state | {'kind': 'noise', 'examples': asked}

    def make(told: Callable[[int], Any]) -> Arrays:
      del told
      try:
        found = self._take_noise(saved, asked)
      except JaxRuntimeError as error:
        if not memory.out_of_memory(error):
          raise
        raise ConfigError(
          f'no memory for the gradients of {asked} examples: lower '
          'probe.noise_examples or eval.max_per_device'
        ) from error
      return {
        name: np.array(one or [], np.float64) for name, one in found.items()
      }

    return Piece(about, 0, 'noise', make)

  def _branches_of(self, saved: Saved, point: Point) -> Branches:
    """Those of the batch size of a point; its programs are kept."""
    parts, size = self._parts, point.plan.batch_size
    if finds_limit(parts.config):
      known = saved.host.get('at_once')
      most = None if known is None else known['most']
      parts = parts._replace(ladder=parts.ladder._replace(max_per_device=most))
    key = size, parts.ladder
    if self._branches is None or self._branches[0] != key:
      self.close()
      self._branches = None  # before there are two
      config = parts.config
      rule = config.probe.learning_rate != 'none'
      scaled = optim.SCALING_EXPONENTS[config.learning_rate.scaling]
      cut = parts.ladder.damping_exponent + scaled
      branches = Branches(
        parts,
        size,
        memory=rule,
        exponent=noise_exponent(config) if rule else cut,
        warmup=config.probe.warmup,
        skipped=teller(say),
      )
      self._branches = key, branches
    return self._branches[1]

  def _take_noise(
    self, saved: Saved, asked: int
  ) -> dict[str, NoiseScale | None]:
    """Of the checkpoint's gradients, plain and as Adam takes them."""
    parts, o = self._parts, self._parts.config.optimizer
    if self._noise is None:
      norms = {'simple': euclidean()}
      if o.name in WITH_SECOND_MOMENTS:
        norms['adam'] = of_adam(o.beta2, o.epsilon)
      self._noise = PointNoise(parts.recipe, asked, teller(say), norms)
    return self._noise.take(saved.state)

  @contextlib.contextmanager
  def _told_of_memory(self, size: int) -> Iterator[None]:
    """One line where there is none for a branch."""
    try:
      yield
    except JaxRuntimeError as error:
      if not memory.out_of_memory(error):
        raise
      ladder = self._parts.ladder._replace(batch_sizes=(size,))
      at_once = bucket_for(size, ladder).microbatch_size
      raise ConfigError(
        f'no memory for a branch with batches of {size}, {at_once} examples at '
        'once on each device: lower buckets.max_per_device or '
        'eval.max_per_device, or leave out large probe.factors'
      ) from error

  def _stops(self) -> bool:
    """Whether to end within a branch; of several processes none does alone."""
    self._check()
    return jax.process_count() == 1 and self._stop.is_set()

  # Making it.

  def _make(self, pieces: Sequence[Piece], title: str) -> list[Arrays] | None:
    """All of it, what others make among it; None if it was stopped."""
    made: dict[int, Arrays] = {}
    bar = tqdm(
      total=sum(piece.examples for piece in pieces),
      desc=title,
      unit=' examples',
      unit_scale=True,
      disable=not self._shown,
      dynamic_ncols=True,
      # A log is not to be filled by it.
      mininterval=0.1 if sys.stderr.isatty() else 10.0,
    )
    with bar:
      while len(made) < len(pieces):
        before = len(made)
        for i, piece in enumerate(pieces):
          if i in made:
            continue
          self._check()
          if any_process(self._stop.is_set()):
            return None
          doing = f'{len(made)}/{len(pieces)}: {piece.doing}'
          bar.set_postfix_str(doing, refresh=sys.stderr.isatty())
          at = bar.n
          found, stopped = self._take(piece, bar.update)
          if stopped:
            return None
          if found is not None:
            made[i] = found
            bar.update(at + piece.examples - bar.n)
        if len(made) == before and self._stop.wait(PATIENCE):
          return None
    return [made[i] for i in range(len(pieces))]

  def _take(
    self, piece: Piece, told: Callable[[int], Any]
  ) -> tuple[Arrays | None, bool]:
    """What it is, or None while another makes it; and whether to stop."""
    store, alone = self._store, jax.process_count() == 1
    found = store.read(piece.about)
    if decide(found is not None):
      return found or {}, False
    with store.claim(piece.about) if alone else _claimed() as mine:
      if not mine:
        return None, False
      # Another may have made it since.
      found = store.read(piece.about) if alone else None
      if found is not None:
        return found, False
      began = time.perf_counter()
      found = piece.make(told)
      if found is None:
        return None, True
      found['seconds'] = np.asarray(time.perf_counter() - began)
      if is_first_process():
        store.write(piece.about, found)
    return found, False


def say(line: str) -> None:
  """Above the bar."""
  tqdm.write(line, file=sys.stderr)


@contextlib.contextmanager
def _claimed() -> Iterator[bool]:
  """Of several processes that do everything together."""
  yield True


def _noise_of(arrays: Arrays) -> dict[str, NoiseScale | None]:
  found: dict[str, NoiseScale | None] = {}
  for name in NOISES:
    if name in arrays:
      values = [float(x) for x in arrays[name]]
      found[name] = NoiseScale(*values) if values else None
  return found
