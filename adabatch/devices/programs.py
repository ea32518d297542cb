"""One compiled program for each key, the likely next one ahead of time."""

import contextlib
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from adabatch.config.files import cache_directory

# What is to be compiled -> its executable, where it was compiled before.
Stored = Callable[[Any], Any]


class Programs:
  """Key (a bucket and what is done with it) -> executable, compiled once each.

  Lowering (tracing) happens in the caller's thread, because tracing contexts
  are local to threads; compiling, which is where the time goes, in a worker.
  At most one program is compiled ahead of need, or two, side by side, as long
  as they come too late: while they wait to be used no other is started, so a
  run compiles at most that many programs more than it uses. No more than need
  be: on CPUs compilers take their time from training.

  Attributes:
    compilations: programs compiled or being compiled; not those that were
      compiled before and are there.
    loaded: those.
    compile_seconds: time spent lowering and compiling, or loading, in whichever
      thread.
    stall_seconds: time `get` made its caller wait, the first program's apart.
    first_seconds: the wait for the first program.
    ahead: programs that are compiled ahead, at most.
  """

  def __init__(self, lower: Callable[[Any], Any], stored: Stored | None = None):
    """Starts with none.

    Args:
      lower: maps a key to an object with `.compile()`.
      stored: the executable of such an object where it was compiled before,
        else None; asked for in the worker.
    """
    self._lower, self._stored = lower, stored
    # Those that are stored, for all that is known.
    self._loaded: set[Hashable] = set()
    self._programs: dict[Hashable, Future] = {}
    self._used: dict[Hashable, Any] = {}
    self._dropped = 0
    self.ahead = 1
    # Two ahead, and the one that was not expected.
    self._worker = ThreadPoolExecutor(3, thread_name_prefix='compile')
    # All threads add to `compile_seconds`, and say what is not stored.
    self._lock = threading.Lock()
    self.compile_seconds = 0.0
    self.stall_seconds = 0.0
    self.first_seconds = 0.0

  @property
  def compilations(self) -> int:
    with self._lock:
      return len(self._programs.keys() - self._loaded) + self._dropped

  @property
  def loaded(self) -> int:
    return len(self._loaded)

  @property
  def used(self) -> frozenset[Any]:
    """The keys that `get` was asked for."""
    return frozenset(self._used)

  def ready(self, key: Hashable) -> bool:
    """Whether `get` has returned the program, so that nothing is waited for."""
    return self._used.get(key) is not None

  def __getitem__(self, key: Hashable) -> Any:
    """The program of a key that is ready."""
    return self._used[key]

  @contextlib.contextmanager
  def _counted(self) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    with self._lock:
      self.compile_seconds += seconds

  def _compile(self, key, lowered):
    with self._counted():
      program = None if self._stored is None else self._stored(lowered)
      if program is not None:
        return program
      with self._lock:
        self._loaded.discard(key)
      return lowered.compile()

  def _start(self, key) -> Future:
    with self._counted():
      lowered = self._lower(key)
    if self._stored is not None:
      with self._lock:
        self._loaded.add(key)
    self._programs[key] = self._worker.submit(self._compile, key, lowered)
    return self._programs[key]

  def get(self, key, *likely):
    """The program of a key; waits for it if it is not ready.

    Args:
      key: what is run now.
      *likely: what may be run soon, the next one first; see `prefetch`.
    """
    start = time.perf_counter()
    future = self._programs.get(key) or self._start(key)
    first, late = not self._used, not future.done()
    # Several processes compile the same, whatever each has waited for.
    if key not in self._used and jax.process_count() == 1:
      self.ahead = 2 if first or late else 1
    self._used.setdefault(key)
    self.prefetch(*likely)
    self._used[key] = program = future.result()
    waited = time.perf_counter() - start
    if first:
      self.first_seconds = waited
    else:
      self.stall_seconds += waited
    return program

  def look(self, key) -> Any:
    """A program that may never be run: `get` and not counted as used."""
    return (self._programs.get(key) or self._start(key)).result()

  def forget(self, key) -> None:
    """One that cannot be run was never used."""
    self._used.pop(key, None)
    there = self._programs.pop(key, None) is not None
    with self._lock:
      self._dropped += there and key not in self._loaded

  def prefetch(self, *keys) -> None:
    """Starts to compile programs, as far as few others wait to be used."""
    for key in keys:
      waiting = self._programs.keys() - self._used.keys()
      if key not in self._programs and len(waiting) < self.ahead:
        self._start(key)

  def drop_unused(self) -> None:
    """Forgets what was compiled ahead, because it will not be asked for."""
    for key in self._programs.keys() - self._used.keys():
      # What has not begun to compile counts for nothing.
      begun = not self._programs.pop(key).cancel()
      with self._lock:
        if not begun:
          self._loaded.discard(key)
        self._dropped += begun and key not in self._loaded

  def close(self) -> None:
    """Drops what has not started; a compilation under way is waited for."""
    self._worker.shutdown(wait=True, cancel_futures=True)


# Makes what is entered while a program is compiled.
Compiling = Callable[[], contextlib.AbstractContextManager[Any]]


class CompiledOnce:
  """A jitted function of the same shapes each time.

  Attributes:
    run: the function; compiles it at the first call, and is the executable
      from then on.
  """

  def __init__(
    self, function: Any, compiling: Compiling = contextlib.nullcontext
  ):
    self._function, self._compiling = function, compiling
    self.run: Callable[..., Any] = self._first

  def _first(self, *args: Any) -> Any:
    with self._compiling():
      self.run = self._function.lower(*args).compile()
    return self.run(*args)


def memory_of(program: Any, platform: str) -> int | None:
  """Bytes that a program needs on each device, its arguments among them.

  Args:
    program: that was compiled.
    platform: of the devices. XLA knows of a TPU's program when it needs how
      much; elsewhere all that is temporary is had at once.

  Returns:
    None where XLA does not say.
  """
  found = program.memory_analysis()
  if found is None:
    return None
  if platform == 'tpu':
    return int(found.peak_memory_in_bytes)
  return int(
    found.argument_size_in_bytes
    + found.output_size_in_bytes
    - found.alias_size_in_bytes
    + found.temp_size_in_bytes
  )


def use_persistent_cache() -> None:
  """Keeps compiled programs on disk, so that the next run starts faster.

  They lie in JAX_COMPILATION_CACHE_DIR if that is set, else in the user's cache
  directory.
  """
  if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore
    path = cache_directory('programs')
    jax.config.update('jax_compilation_cache_dir', str(path))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


@contextlib.contextmanager
def no_persistent_cache() -> Iterator[None]:
  """What is compiled in it is compiled here.

  On CPUs an executable that was read back from there loses its functions when
  it is written once more, which shows where it is run.
  """
  before = jax.config.jax_enable_compilation_cache  # pyright: ignore
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # JAX asks for the setting once
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()
