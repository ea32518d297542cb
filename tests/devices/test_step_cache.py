"""How many programs are compiled, when, in which thread, and what is counted.

The programs are fakes whose compilation waits for an event where a test wants
it to take its time; no test sleeps or measures.
"""

import collections
import random
import threading

import jax
import jax.numpy as jnp
import pytest

from adabatch.devices import step_cache
from adabatch.devices.step_cache import StepCache

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
def cache(compiler):
  cache = StepCache(compiler.lower)
  yield cache
  for event in compiler.held.values():
    event.set()
  cache.close()


@pytest.mark.parametrize('seed', range(30))
def test_never_more_programs_than_visited_and_one(compiler, cache, seed):
  """Whatever is asked for, and whatever is said to be likely."""
  rng = random.Random(seed)
  buckets = range(rng.randint(1, 12))
  visited = set()
  for _ in range(80):
    bucket = rng.choice(buckets)
    likely = rng.choice([None, bucket, *buckets])
    if rng.random() < 0.2:
      cache.prefetch(likely)
      assert len(set(compiler.lowered) - visited) <= 1
    visited.add(bucket)
    assert cache.get(bucket, likely) == f'program {bucket}'
    assert len(cache.used) == len(visited)
    assert cache.compilations <= len(visited) + 1
    assert len(set(compiler.lowered)) == len(compiler.lowered)
    assert cache.compilations == len(compiler.lowered)
  cache.close()  # may drop the one that nobody asked for
  assert visited <= set(compiler.compiled) <= set(compiler.lowered)
  assert set(compiler.compiled.values()) == {1}


def test_a_ladder_costs_its_rungs_and_nothing_else(compiler, cache):
  for rung in range(6):
    for _ in range(3):
      cache.get(rung, rung + 1 if rung < 5 else None)
  assert cache.compilations == len(cache.used) == 6
  assert compiler.lowered == list(range(6))


def test_another_program_waits_until_the_likely_one_was_used(compiler, cache):
  cache.get('a', 'b')
  cache.get('a', 'c')
  assert compiler.lowered == ['a', 'b']
  cache.get('b', 'c')
  assert compiler.lowered == ['a', 'b', 'c']


def test_the_next_program_compiles_while_this_one_runs(compiler, cache):
  release = compiler.hold('next')
  # `get` returns although `next` is held up ...
  assert cache.get('now', 'next') == 'program now'
  assert compiler.started['next'].wait(PATIENCE)
  # ... and again, as training goes on.
  assert cache.get('now', 'next') == 'program now'
  assert not release.is_set()
  release.set()
  assert cache.get('next') == 'program next'
  assert compiler.compiled['next'] == 1


def test_this_program_and_the_next_compile_at_the_same_time(compiler, cache):
  """`now` is only ready once `next` has started, so neither waits."""
  compiler.held['now'] = compiler.started['next']
  assert cache.get('now', 'next') == 'program now'


def test_an_unexpected_bucket_does_not_wait_for_the_likely_one(compiler, cache):
  compiler.hold('likely')
  cache.get('now', 'likely')
  assert compiler.started['likely'].wait(PATIENCE)
  assert cache.get('unexpected') == 'program unexpected'


def test_get_waits_for_the_program_that_is_on_its_way(compiler, cache):
  release = compiler.hold('next')
  cache.get('now', 'next')
  assert compiler.started['next'].wait(PATIENCE)
  threading.Timer(0.01, release.set).start()
  assert cache.get('next') == 'program next'
  assert compiler.compiled['next'] == 1


def test_compiling_is_left_to_other_threads(compiler, cache):
  """Lowering is not, which the fake asserts."""
  cache.get('now', 'next')
  cache.get('next')
  assert threading.main_thread() not in compiler.threads.values()
  assert set(compiler.threads) == {'now', 'next'}


def test_errors_of_the_compiler_reach_the_caller(compiler, cache):
  compiler.errors['now'] = RuntimeError('out of memory')
  for _ in range(2):
    with pytest.raises(RuntimeError, match='out of memory'):
      cache.get('now')
  assert compiler.compiled['now'] == 1


def test_errors_of_a_likely_program_wait_until_it_is_needed(compiler, cache):
  compiler.errors['next'] = RuntimeError('out of memory')
  assert cache.get('now', 'next') == 'program now'
  assert compiler.started['next'].wait(PATIENCE)
  assert cache.get('now', 'next') == 'program now'
  with pytest.raises(RuntimeError, match='out of memory'):
    cache.get('next')


def test_what_will_not_be_asked_for_makes_room(compiler, cache):
  """Else nothing more would be compiled ahead; it was compiled all the same."""
  cache.get('now', 'never')
  assert compiler.started['never'].wait(PATIENCE)
  cache.prefetch('soon')
  assert compiler.lowered == ['now', 'never']
  cache.drop_unused()
  cache.prefetch('soon')
  assert compiler.lowered == ['now', 'never', 'soon']
  assert cache.compilations == 3
  assert cache.used == {'now'}


def test_errors_of_lowering_reach_the_caller():
  def lower(bucket):
    raise TypeError(f'cannot trace {bucket}')

  cache = StepCache(lower)
  with pytest.raises(TypeError, match='cannot trace now'):
    cache.get('now')
  assert cache.compilations == len(cache.used) == 0
  cache.close()


class Time:
  """A clock that stands still except where a test moves it."""

  def __init__(self):
    self.seconds = 0.0

  def perf_counter(self):
    return self.seconds


def test_waiting_is_a_stall_after_the_first_program_only(monkeypatch):
  time = Time()
  monkeypatch.setattr(step_cache, 'time', time)
  cost = {'a': 8.0, 'b': 2.0}

  class Slow:
    def __init__(self, bucket):
      time.seconds += 1.0  # to lower it
      self.bucket = bucket

    def compile(self):
      time.seconds += cost[self.bucket]
      return self.bucket

  cache = StepCache(Slow)
  cache.get('a')
  assert (cache.first_seconds, cache.stall_seconds) == (9.0, 0.0)
  cache.get('a')
  assert (cache.first_seconds, cache.stall_seconds) == (9.0, 0.0)
  cache.get('b')
  assert (cache.first_seconds, cache.stall_seconds) == (9.0, 3.0)
  cache.get('b')
  assert cache.stall_seconds == 3.0
  assert cache.compile_seconds == 12.0
  cache.close()


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

  monkeypatch.setattr(step_cache, 'time', Clock)
  cache = StepCache(Compiled)
  cache.prefetch('a')
  cache.get('b')
  done.set()
  cache.get('a')
  cache.close()
  assert cache.compile_seconds == 2.0


def test_closing_drops_what_has_not_started(compiler, cache):
  """Two compilations run at a time: the third has to wait, and is dropped."""
  for bucket in ('a', 'b'):
    compiler.hold(bucket)
  futures = [cache._start(bucket) for bucket in ('a', 'b', 'c')]
  assert all(compiler.started[b].wait(PATIENCE) for b in ('a', 'b'))
  closing = threading.Thread(target=cache.close)
  closing.start()
  while not futures[2].cancelled():
    assert closing.is_alive()
  for event in compiler.held.values():
    event.set()
  closing.join(PATIENCE)
  assert [f.result() for f in futures[:2]] == ['program a', 'program b']
  assert compiler.compiled['c'] == 0


def test_programs_of_jax_are_compiled_once():
  function = jax.jit(lambda x: 2 * x)
  cache = StepCache(
    lambda n: function.lower(jax.ShapeDtypeStruct((n,), jnp.float32))
  )
  for size in (4, 8, 4):
    got = cache.get(size, 8)(jnp.ones(size))
    assert got.tolist() == [2.0] * size
  assert cache.compilations == 2
  cache.close()


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


@pytest.mark.usefixtures('cache_settings')
def test_the_persistent_cache_lies_with_the_users_caches(monkeypatch, tmp_path):
  jax.config.update('jax_compilation_cache_dir', None)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  step_cache.use_persistent_cache()
  expected = tmp_path / 'adabatch' / 'programs'
  assert jax.config.jax_compilation_cache_dir == str(expected)


@pytest.mark.usefixtures('cache_settings')
def test_the_persistent_cache_stays_where_the_user_put_it(tmp_path):
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  step_cache.use_persistent_cache()
  assert jax.config.jax_compilation_cache_dir == str(tmp_path)
