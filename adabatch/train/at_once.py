"""How many examples a device takes at once, found by the run itself.

With `buckets.max_per_device='auto'` a ladder has no limit at first. Before the
first update one is looked for: on accelerators the most with which the program
of the largest batch fits by the compiler's own count of memory, tried with a
real update; on CPUs, where memory is seldom what counts, the fastest of a few.
Later a program that does not fit, or an update for which there is no memory
after all, halves it. All processes do so together.

What a device takes at once changes no batch size and no learning rate; losses
differ by the order of their sums.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.errors import JaxRuntimeError

from adabatch.config import ConfigError
from adabatch.controllers.buckets import Bucket, Ladder, bucket_for
from adabatch.devices.mesh import any_process, of_first_process
from adabatch.devices.messages import Call
from adabatch.devices.step import Variant
from adabatch.devices.trainer import Trainer
from adabatch.train import memory
from adabatch.train.build import Parts
from adabatch.train.calls import Progress
from adabatch.train.checkpoints import Saved
from adabatch.train.records import Record, note
from adabatch.train.rules import finds_limit

CANDIDATES = (64, 256, 1024, 4096)  # examples at once on a CPU
CPU_DEFAULT = 4096  # where none of them is tried
REPEATS = 3  # of a measured update, of which the fastest counts


def halved(bucket: Bucket, ladder: Ladder) -> Ladder | None:
  """The same sizes with at most half as many examples at once.

  Where BatchNorm's groups would be cut by so few, with as few as keep them
  whole.

  Args:
    bucket: that is too large.
    ladder: that it is of.

  Returns:
    None where no fewer can be had.

  >>> from adabatch.controllers.buckets import ladder
  >>> halved(Bucket(64, 1, 2), ladder(16, 128, devices=2)).max_per_device
  32
  >>> groups = ladder(60, 60, devices=1, group_size=32)
  >>> halved(Bucket(64, 1, 1), groups).max_per_device
  32
  """
  half = bucket.microbatch_size // 2
  for most in (*range(half, 0, -1), *range(half + 1, bucket.microbatch_size)):
    smaller = ladder._replace(max_per_device=most)
    try:
      for size in ladder.batch_sizes:
        bucket_for(size, smaller)
    except ValueError:
      continue
    return smaller
  return None


def most_that_fit(
  ladder: Ladder, size: int, fits: Callable[[Bucket], bool]
) -> Ladder | None:
  """The ladder with a limit with which a batch size fits; None: none does.

  From the ladder's own limit, or all examples at once, halved until it fits.
  """
  now: Ladder | None = ladder
  while now is not None and not fits(bucket_for(size, now)):
    now = halved(bucket_for(size, now), now)
  return now


def kept(parts: Parts, trainer: Trainer) -> dict[str, Any] | None:
  """For a checkpoint: what was found, and on what."""
  if not finds_limit(parts.config):
    return None
  most = parts.ladder.max_per_device
  return {'most': most, 'devices': _described(trainer)}


def _described(trainer: Trainer) -> list[Any]:
  devices = trainer.devices
  kind = devices.mesh.devices.flat[0].device_kind
  return [kind, devices.size, trainer.replicas]


def _is_cpu(trainer: Trainer) -> bool:
  return trainer.devices.platform == 'cpu'


def _use(run: Any, ladder: Ladder) -> None:
  """The run has another limit from now on."""
  run.parts = run.parts._replace(ladder=ladder)
  if hasattr(run, 'decisions'):
    run.decisions.ladder = ladder


def begin(run: Any, saved: Saved | None) -> list[str]:
  """Finds the limit of a run that begins; one that goes on has it.

  Args:
    run: of the loop, before its first decision.
    saved: a checkpoint that it goes on from.

  Returns:
    Lines that say it.
  """
  parts, trainer = run.parts, run.trainer
  if not finds_limit(parts.config) or run.finished():
    return []
  if saved is None:
    with run.paused('compiling'):
      ladder, line = find(parts, trainer)
      trainer.programs.drop_unused()  # most of them are of no use
      _start_anew(trainer)
    _use(run, ladder)
    return [line]
  known = saved.host.get('at_once')
  if known is not None and known['devices'] == _described(trainer):
    _use(run, parts.ladder._replace(max_per_device=known['most']))
    return []
  # Of these devices nothing is known; the state is not to be spent.
  ladder = _unlimited(parts.ladder)
  if _is_cpu(trainer):
    most = min(ladder.max_per_device or 1, CPU_DEFAULT)
    ladder = ladder._replace(max_per_device=most)
  _use(run, ladder)
  why = 'not looked for on these devices: halved if it is too much'
  return [_line(ladder, why)]


def _start_anew(trainer: Trainer) -> None:
  trainer.release()
  trainer.go_on(None, trainer.replicas)


def compiled(run: Any, call: Call, ahead: Sequence[Variant]) -> str | None:
  """Compiles what a call needs, and looks whether there is room for it.

  Args:
    run: of the loop; nothing of it is under way.
    call: that is next.
    ahead: programs that may come after it.

  Returns:
    None; or, where there is no room, a line that says that fewer examples are
    taken at once from now on, so that another call is next.
  """
  trainer, parts = run.trainer, run.parts
  variant, bucket = trainer.variant(call), call.plan.bucket
  if not finds_limit(parts.config):
    try:
      trainer.compile(call, ahead)
    except JaxRuntimeError as error:
      raise _told(error, call.update, bucket) from error
    return None
  compiled = True
  try:
    trainer.compile(call, ahead)
  except JaxRuntimeError as error:
    if not memory.out_of_memory(error):
      raise
    compiled = False
  # Asked by all processes, also by one whose compiler refused.
  if variant not in run.fitting and not fits(parts, trainer, variant):
    trainer.programs.forget(variant)
    _halve(run, bucket)
    return _halved_line(call, run.parts.ladder)
  run.fitting.add(variant)
  if not compiled:  # it was the state that found no room
    trainer.compile(call, ahead)
  return None


def recover(
  run: Any, error: Exception, restore: Callable[[], Saved | None]
) -> Iterator[Record]:
  """After an update for which there was no memory after all.

  Its state is lost; the run goes on from the newest checkpoint, or the start,
  with fewer examples at once, and does the same updates again.

  Args:
    run: of the loop.
    error: what happened.
    restore: the newest checkpoint; None: the start.

  Raises:
    ConfigError: in one line, where the number was given, or where other
      processes wait for the update.
  """
  if (
    run.trainer.evaluates or run.last is None or not memory.out_of_memory(error)
  ):
    raise in_words(run, error)
  call = run.last
  if not finds_limit(run.parts.config) or jax.process_count() > 1:
    raise _told(error, call.update, call.plan.bucket) from error
  run.stretch = None  # what was dispatched of it does not count
  _halve(run, call.plan.bucket)
  line = _halved_line(call, run.parts.ladder)
  yield from run.again(restore, _keep)
  yield note(run.at, f'{line}; on from update {run.at.update}')


def _keep(at: Progress, before: Progress) -> None:
  at.rollbacks, at.rate = before.rollbacks, before.rate
  at.left_out = before.left_out


def _halve(run: Any, bucket: Bucket) -> None:
  ladder = halved(bucket, run.parts.ladder)
  if ladder is None:
    raise _no_room(bucket, run.parts)
  # What was compiled ahead for the old limit will not be asked for.
  run.trainer.programs.drop_unused()
  _use(run, ladder)


def _halved_line(call: Call, ladder: Ladder) -> str:
  return (
    f'update {call.update}: no memory for {call.plan.bucket.microbatch_size} '
    f'examples at once on each device, {ladder.max_per_device} from now on '
    "(buckets.max_per_device='auto')"
  )


def _told(error: Exception, update: int, bucket: Bucket) -> Exception:
  """One line about memory after so many updates, or the error itself."""
  if not memory.out_of_memory(error):
    return error
  size = bucket.microbatch_size
  return ConfigError(
    f'update {update + 1}: no memory for {size} examples at once on each '
    f'device: set buckets.max_per_device={max(size // 2, 1)} and start the '
    'same command again'
  )


def in_words(run: Any, error: Exception) -> Exception:
  """One line about memory for an evaluation, or the error itself."""
  if not run.trainer.evaluates or not memory.out_of_memory(error):
    return error
  most = run.parts.config.eval.max_per_device
  return ConfigError(
    f'no memory to evaluate {most} examples at once on each device: lower '
    'eval.max_per_device and start the same command again'
  )


def find(parts: Parts, trainer: Trainer) -> tuple[Ladder, str]:
  """Looks for it; the trainer's state is spent.

  Args:
    parts: of the run, its ladder without a limit.
    trainer: of it, before the first update.

  Returns:
    The ladder with the limit, and a line that says it.

  Raises:
    ConfigError: if nothing fits.
  """
  ladder = most_that_fit(
    _unlimited(parts.ladder),
    parts.ladder.batch_sizes[-1],
    lambda bucket: _tried(parts, trainer, bucket),
  )
  if ladder is None:
    raise _no_room(Bucket(1, 1, 1), parts)
  if not _is_cpu(trainer):
    return ladder, _line(ladder, 'the most that fit')
  return _fastest(parts, ladder, trainer)


def _unlimited(ladder: Ladder) -> Ladder:
  """The limit that is none, as a number."""
  most = bucket_for(ladder.batch_sizes[-1], ladder).microbatch_size
  return ladder._replace(max_per_device=most)


def _tried(parts: Parts, trainer: Trainer, bucket: Bucket) -> bool:
  """Whether an update fits, by the compiler's count and in truth."""
  variant = _variant(parts, trainer, bucket)
  if not fits(parts, trainer, variant):
    return False
  if _is_cpu(trainer):  # which has no limit of its own
    return True
  try:
    trainer.try_out(variant)
  except JaxRuntimeError as error:
    if not memory.out_of_memory(error):
      raise
    if jax.process_count() > 1:  # the others wait for it in the update
      raise _told(error, 0, bucket) from error
    _start_anew(trainer)  # its state went with it
    return False
  return True


def fits(parts: Parts, trainer: Trainer, variant: Variant) -> bool:
  """Whether a program does, on the devices of all processes."""
  try:
    peak = trainer.memory(variant)
    room = memory.of_device(trainer.devices)
    beside = memory.beside_training(parts.recipe, variant.bucket)
    failed = peak is not None and peak + beside > room
  except JaxRuntimeError as error:
    if not memory.out_of_memory(error):
      raise
    failed = True
  return not any_process(failed)


def _variant(parts: Parts, trainer: Trainer, bucket: Bucket) -> Variant:
  """The program of a bucket that does the most."""
  return Variant(bucket, parts.recipe.sync is not None, trainer.replicas)


def _fastest(
  parts: Parts, ladder: Ladder, trainer: Trainer
) -> tuple[Ladder, str]:
  """Of a few numbers that fit the one with the most examples a second."""
  most = ladder.max_per_device or 1
  tried: dict[Ladder, float] = {}
  for number in (*(n for n in CANDIDATES if n < most), most):
    limited = ladder._replace(max_per_device=number)
    try:
      size = bucket_for(ladder.batch_sizes[-1], limited).microbatch_size
    except ValueError:  # BatchNorm's groups would be cut
      continue
    # One of them is enough, for the others take as long.
    devices = bucket_for(ladder.batch_sizes[-1], limited).devices
    variant = _variant(parts, trainer, Bucket(size, 1, devices))
    seconds = trainer.try_out(variant, REPEATS)
    tried[limited] = of_first_process(seconds / size)
  best = min(tried, key=lambda one: tried[one])
  others = ', '.join(str(one.max_per_device) for one in tried)
  return best, _line(best, f'the fastest of {others}')


def _line(ladder: Ladder, why: str) -> str:
  return (
    f"buckets.max_per_device='auto': {ladder.max_per_device} examples at once "
    f'on each device ({why})'
  )


def _no_room(bucket: Bucket, parts: Parts) -> ConfigError:
  room = memory.of_device(parts.recipe.devices)
  return ConfigError(
    f'an update with {bucket.microbatch_size} examples at once on each device '
    f'does not fit in its {room / 1e9:.3g} GB, and fewer cannot be had: make '
    'the network smaller'
  )
