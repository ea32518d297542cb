"""How many programs are compiled, when, in which thread, and what is counted.

The programs are fakes whose compilation waits for an event where a test wants
it to take its time; no test sleeps or measures.
"""

import collections
import contextlib
import random
import threading

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from adabatch.devices import programs as programs_lib
from adabatch.devices.programs import CompiledOnce, Programs

PATIENCE = 30  # seconds after which a test that would hang fails


class Compiler:
  """Lowers to fakes; `hold(bucket)` makes its compilation wait."""

  def __init__(self):
    self.lowered = []
    self.compiled = collections.Counter()
    self.threads = {}
    self.started = collections.defaultdict(threading.Event)
    self.held = {}
    self.errors = {}
    self._lock = threading.Lock()

  def hold(self, bucket):
    self.held[bucket] = threading.Event()
    return self.held[bucket]

  def lower(self, bucket):
    assert threading.current_thread() is threading.main_thread()
    self.lowered.append(bucket)
    return Lowered(self, bucket)


class Lowered:
  def __init__(self, compiler, bucket):
    self.compiler, self.bucket = compiler, bucket

  def compile(self):
    c, bucket = self.compiler, self.bucket
    with c._lock:
      c.compiled[bucket] += 1
    c.threads[bucket] = threading.current_thread()
    c.started[bucket].set()
    if bucket in c.held:
      assert c.held[bucket].wait(PATIENCE)
    if bucket in c.errors:
      raise c.errors[bucket]
    return f'program {bucket}'


@pytest.fixture
def compiler():
  return Compiler()


@pytest.fixture
def programs(compiler):
  programs = Programs(compiler.lower)
  yield programs
  for event in compiler.held.values():
    event.set()
  programs.close()


@pytest.mark.parametrize('seed', range(30))
def test_never_more_programs_than_visited_and_ahead(compiler, programs, seed):
  """Whatever is asked for, and whatever is said to be likely."""
  rng = random.Random(seed)
  buckets = range(rng.randint(1, 12))
  visited = set()
  for _ in range(80):
    bucket = rng.choice(buckets)
    likely = rng.choices([bucket, *buckets], k=rng.randint(0, 3))
    if rng.random() < 0.2:
      begun = len(compiler.lowered)
      room = programs.ahead - len(set(compiler.lowered) - visited)
      programs.prefetch(*likely)
      assert len(compiler.lowered) - begun <= max(room, 0)
    visited.add(bucket)
    assert programs.get(bucket, *likely) == f'program {bucket}'
    assert len(programs.used) == len(visited)
    assert programs.compilations <= len(visited) + 2
    assert programs.ahead <= 2
    assert len(set(compiler.lowered)) == len(compiler.lowered)
    assert programs.compilations == len(compiler.lowered)
  programs.close()  # may drop the one that nobody asked for
  assert visited <= set(compiler.compiled) <= set(compiler.lowered)
  assert set(compiler.compiled.values()) == {1}


def test_a_ladder_costs_its_rungs_and_nothing_else(compiler, programs):
  for rung in range(6):
    for _ in range(3):
      programs.get(rung, *range(rung + 1, min(rung + 2, 6)))
  assert programs.compilations == len(programs.used) == 6
  assert compiler.lowered == list(range(6))


def test_a_program_is_ready_once_it_was_waited_for(compiler, programs):
  """One that is compiled ahead may take its time yet."""
  compiler.errors['broken'] = RuntimeError('out of memory')
  assert not programs.ready('now')
  programs.get('now', 'next')
  assert programs.ready('now')
  assert programs['now'] == 'program now'
  assert not programs.ready('next')
  programs.get('next')
  assert programs.ready('next')
  with pytest.raises(RuntimeError):
    programs.get('broken')
  assert not programs.ready('broken')
  programs.drop_unused()
  assert programs.ready('now')
  assert programs['next'] == 'program next'


def test_another_program_waits_until_the_likely_one_was_used(
  compiler, programs
):
  programs.get('a', 'b', 'c')
  programs.get('a', 'd')
  assert compiler.lowered == ['a', 'b', 'c']
  for program in 'bc':
    programs._programs[program].result()
  programs.get('b', 'd')
  assert compiler.lowered == ['a', 'b', 'c']
  programs.get('c', 'd')
  assert compiler.lowered == ['a', 'b', 'c', 'd']


def test_the_next_program_compiles_while_this_one_runs(compiler, programs):
  release = compiler.hold('next')
  # `get` returns although `next` is held up ...
  assert programs.get('now', 'next') == 'program now'
  assert compiler.started['next'].wait(PATIENCE)
  # ... and again, as training goes on.
  assert programs.get('now', 'next') == 'program now'
  assert not release.is_set()
  release.set()
  assert programs.get('next') == 'program next'
  assert compiler.compiled['next'] == 1


def test_two_are_compiled_ahead_while_they_come_too_late(compiler, programs):
  # Side by side: each is only ready once the others have started.
  compiler.held['a'] = compiler.started['c']
  compiler.held['b'] = compiler.started['c']
  programs.get('a', 'b', 'c', 'd')  # the first always does
  assert compiler.lowered == ['a', 'b', 'c']
  for program in 'bc':
    programs._programs[program].result()
  programs.get('b', 'c', 'd')
  assert compiler.lowered == ['a', 'b', 'c']
  release = compiler.hold('d')
  programs.get('c', 'd', 'e')
  assert compiler.lowered == ['a', 'b', 'c', 'd']
  assert compiler.started['d'].wait(PATIENCE)
  threading.Timer(0.05, release.set).start()
  programs.get('d', 'e', 'f', 'g')
  assert compiler.lowered == ['a', 'b', 'c', 'd', 'e', 'f']
  programs.get('d', 'e', 'f', 'g')  # asked for again, neither early nor late
  programs.prefetch('e', 'f', 'g')
  assert compiler.lowered == ['a', 'b', 'c', 'd', 'e', 'f']


def test_processes_compile_the_same_however_long_each_waits(
  compiler, programs, monkeypatch
):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  programs.get('a', 'b', 'c')
  programs.get('b', 'c', 'd')
  assert compiler.lowered == ['a', 'b', 'c']


def test_this_program_and_the_next_compile_at_the_same_time(compiler, programs):
  """`now` is only ready once `next` has started, so neither waits."""
  compiler.held['now'] = compiler.started['next']
  assert programs.get('now', 'next') == 'program now'


def test_an_unexpected_bucket_does_not_wait_for_the_likely_one(
  compiler, programs
):
  for likely in ('likely', 'later'):
    compiler.hold(likely)
  programs.get('now', 'likely', 'later')
  for likely in ('likely', 'later'):
    assert compiler.started[likely].wait(PATIENCE)
  assert programs.get('unexpected') == 'program unexpected'


def test_get_waits_for_the_program_that_is_on_its_way(compiler, programs):
  release = compiler.hold('next')
  programs.get('now', 'next')
  assert compiler.started['next'].wait(PATIENCE)
  threading.Timer(0.01, release.set).start()
  assert programs.get('next') == 'program next'
  assert compiler.compiled['next'] == 1


def test_compiling_is_left_to_other_threads(compiler, programs):
  """Lowering is not, which the fake asserts."""
  programs.get('now', 'next')
  programs.get('next')
  assert threading.main_thread() not in compiler.threads.values()
  assert set(compiler.threads) == {'now', 'next'}


def test_errors_of_the_compiler_reach_the_caller(compiler, programs):
  compiler.errors['now'] = RuntimeError('out of memory')
  for _ in range(2):
    with pytest.raises(RuntimeError, match='out of memory'):
      programs.get('now')
  assert compiler.compiled['now'] == 1


def test_errors_of_a_likely_program_wait_until_it_is_needed(compiler, programs):
  compiler.errors['next'] = RuntimeError('out of memory')
  assert programs.get('now', 'next') == 'program now'
  assert compiler.started['next'].wait(PATIENCE)
  assert programs.get('now', 'next') == 'program now'
  with pytest.raises(RuntimeError, match='out of memory'):
    programs.get('next')


def test_what_will_not_be_asked_for_makes_room(compiler, programs):
  """Else nothing more would be compiled ahead; it was compiled all the same."""
  programs.get('now', 'never', 'nor this')
  for program in ('never', 'nor this'):
    assert compiler.started[program].wait(PATIENCE)
  programs.prefetch('soon')
  assert compiler.lowered == ['now', 'never', 'nor this']
  programs.drop_unused()
  programs.prefetch('soon')
  assert compiler.lowered == ['now', 'never', 'nor this', 'soon']
  assert programs.compilations == 4
  assert programs.used == {'now'}


class Shelf:
  """Has what was compiled before; `hold` makes it take its time to say so."""

  def __init__(self, *buckets):
    self.buckets, self.asked = buckets, []
    self.started = collections.defaultdict(threading.Event)
    self.hold = threading.Event()
    self.hold.set()

  def __call__(self, lowered):
    self.asked.append(lowered.bucket)
    self.started[lowered.bucket].set()
    assert self.hold.wait(PATIENCE)
    if lowered.bucket in self.buckets:
      return f'stored {lowered.bucket}'
    return None


def test_what_is_stored_is_not_compiled(compiler):
  shelf = Shelf('a', 'c')
  programs = Programs(compiler.lower, shelf)
  assert programs.get('a', 'b') == 'stored a'
  assert programs.get('b', 'c') == 'program b'
  assert programs.get('c') == programs.get('c') == 'stored c'
  programs.close()
  assert compiler.compiled == {'b': 1}
  assert shelf.asked == compiler.lowered == ['a', 'b', 'c']
  assert (programs.compilations, programs.loaded) == (1, 2)


def test_what_was_stored_and_will_not_be_asked_for_was_not_compiled(compiler):
  shelf = Shelf('now', 'never')
  programs = Programs(compiler.lower, shelf)
  programs.get('now', 'never')
  assert shelf.started['never'].wait(PATIENCE)
  programs.drop_unused()
  programs.get('other')
  programs.drop_unused()
  programs.close()
  assert (programs.compilations, programs.loaded) == (1, 2)


def test_nobody_counts_as_compiled_before_it_is_known(compiler):
  shelf = Shelf('now')
  programs = Programs(compiler.lower, shelf)
  programs.get('now')
  shelf.hold.clear()
  programs.prefetch('next')
  assert programs.compilations == 0
  shelf.hold.set()
  assert programs.get('next') == 'program next'
  programs.close()
  assert (programs.compilations, programs.loaded) == (1, 1)


def test_errors_of_lowering_reach_the_caller():
  def lower(bucket):
    raise TypeError(f'cannot trace {bucket}')

  programs = Programs(lower)
  with pytest.raises(TypeError, match='cannot trace now'):
    programs.get('now')
  assert programs.compilations == len(programs.used) == 0
  programs.close()


class Time:
  """A clock that stands still except where a test moves it."""

  def __init__(self):
    self.seconds = 0.0

  def perf_counter(self):
    return self.seconds


def test_waiting_is_a_stall_after_the_first_program_only(monkeypatch):
  time = Time()
  monkeypatch.setattr(programs_lib, 'time', time)
  cost = {'a': 8.0, 'b': 2.0}

  class Slow:
    def __init__(self, bucket):
      time.seconds += 1.0  # to lower it
      self.bucket = bucket

    def compile(self):
      time.seconds += cost[self.bucket]
      return self.bucket

  programs = Programs(Slow)
  programs.get('a')
  assert (programs.first_seconds, programs.stall_seconds) == (9.0, 0.0)
  programs.get('a')
  assert (programs.first_seconds, programs.stall_seconds) == (9.0, 0.0)
  programs.get('b')
  assert (programs.first_seconds, programs.stall_seconds) == (9.0, 3.0)
  programs.get('b')
  assert programs.stall_seconds == 3.0
  assert programs.compile_seconds == 12.0
  programs.close()


def test_seconds_of_threads_that_end_together_all_count(monkeypatch):
  """Two threads add to compile_seconds; `+=` alone would lose one."""
  reading, done = threading.Event(), threading.Event()
  local = threading.local()

  class Clock:
    """A compiler's clock says 0.0, then 1.0; 'a' is slow to read the 1.0."""

    @staticmethod
    def perf_counter():
      calls = getattr(local, 'calls', 0)
      local.calls = calls + 1
      if threading.current_thread() is threading.main_thread():
        return 0.0
      if calls == 1 and local.bucket == 'a':
        reading.set()
        assert done.wait(PATIENCE)
      return float(calls)

  class Compiled:
    def __init__(self, bucket):
      self.bucket = bucket

    def compile(self):
      local.bucket = self.bucket
      if self.bucket == 'b':
        assert reading.wait(PATIENCE)
      return self.bucket

  monkeypatch.setattr(programs_lib, 'time', Clock)
  programs = Programs(Compiled)
  programs.prefetch('a')
  programs.get('b')
  done.set()
  programs.get('a')
  programs.close()
  assert programs.compile_seconds == 2.0


def test_closing_drops_what_has_not_started(compiler, programs):
  """Three compilations run at a time: a fourth has to wait, and is dropped."""
  for bucket in 'abc':
    compiler.hold(bucket)
  futures = [programs._start(bucket) for bucket in 'abcd']
  assert all(compiler.started[b].wait(PATIENCE) for b in 'abc')
  closing = threading.Thread(target=programs.close)
  closing.start()
  while not futures[3].cancelled():
    assert closing.is_alive()
  for event in compiler.held.values():
    event.set()
  closing.join(PATIENCE)
  assert [f.result() for f in futures[:3]] == [f'program {b}' for b in 'abc']
  assert compiler.compiled['d'] == 0


def test_programs_of_jax_are_compiled_once():
  function = jax.jit(lambda x: 2 * x)
  programs = Programs(
    lambda n: function.lower(jax.ShapeDtypeStruct((n,), jnp.float32))
  )
  for size in (4, 8, 4):
    got = programs.get(size, 8)(jnp.ones(size))
    assert got.tolist() == [2.0] * size
  assert programs.compilations == 2
  programs.close()


def test_a_function_is_compiled_at_its_first_call():
  """Within what is entered meanwhile, such as a clock that stands still."""
  entered, traced = [], []

  @contextlib.contextmanager
  def compiling():
    entered.append(len(traced))
    yield
    entered.append(len(traced))

  def double(x):
    traced.append(x)
    return 2 * x

  function = CompiledOnce(jax.jit(double), compiling)
  assert entered == []
  for x in (1.0, 3.0):
    assert function.run(jnp.float32(x)) == 2 * x
  assert entered == [0, 1]
  assert CompiledOnce(jax.jit(double)).run(jnp.float32(2.0)) == 4.0


@pytest.fixture
def cache_settings():
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
  )
  old = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in old.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.mark.usefixtures('cache_settings')
def test_the_persistent_cache_lies_with_the_users_caches(monkeypatch, tmp_path):
  jax.config.update('jax_compilation_cache_dir', None)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  programs_lib.use_persistent_cache()
  expected = tmp_path / 'adabatch' / 'programs'
  assert jax.config.jax_compilation_cache_dir == str(expected)


@pytest.mark.usefixtures('cache_settings')
def test_the_persistent_cache_stays_where_the_user_put_it(tmp_path):
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  programs_lib.use_persistent_cache()
  assert jax.config.jax_compilation_cache_dir == str(tmp_path)


@pytest.mark.usefixtures('cache_settings')
def test_without_the_persistent_cache_nothing_is_taken_from_it(tmp_path):
  """A program that was, cannot be written again on a CPU."""
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))

  compilation_cache.reset_cache()

  def kept(factor):
    """Files there, once one more program was compiled."""
    jax.jit(lambda x: jnp.sin(x) * factor).lower(jnp.ones(5)).compile()
    return len(list(tmp_path.glob('*-cache')))

  before = kept(3)
  assert before > 0
  with programs_lib.no_persistent_cache():
    assert kept(4) == before
  assert kept(5) == before + 1
