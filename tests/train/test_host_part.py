"""What the host does beside updates: Python calls, waits, compilations."""

import collections
import sys

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from adabatch import data
from adabatch.devices.programs import use_persistent_cache
from adabatch.train.build import build
from adabatch.train.loop import loop
from adabatch.train.reports import Reports
from tests.experiments import digits

pytestmark = pytest.mark.usefixtures('compile_quickly')

CALLS = 70  # of Python functions for an update, with one update a call


def parts_of(updates, **overrides):
  rng = np.random.default_rng(0)
  arrays = {
    'image': rng.normal(size=(100, 3, 3, 1)).astype(np.float32),
    'label': np.arange(100) % 4,
  }
  split = data.from_arrays(arrays, 4)
  keys = {
    'epochs': 1e6,
    'max_updates': updates,
    'model.mlp.hidden_sizes': (4,),
    'controller.name': 'constant',
    'eval.every_epochs': 1e6,
    'log.every_updates': 50,
  }
  config = digits(**keys | overrides)
  return build(config, jax.devices()[:1], (split, split))


def profiled(parts, first, last):
  """Python calls by file from one train record to another."""
  calls = collections.Counter()

  def count(frame, event, arg):
    if event == 'call':
      calls[frame.f_code.co_filename] += 1

  try:
    for kind, record in loop(parts):
      if kind == 'train':
        on = first <= record['update'] < last
        sys.setprofile(count if on else None)
  finally:
    sys.setprofile(None)
  return calls


def test_an_update_takes_few_python_calls():
  calls = profiled(parts_of(300, updates_per_call=1), 50, 250)
  assert 5 < sum(calls.values()) / 200 < CALLS
  assert sum(n for name, n in calls.items() if 'jax' in name) / 200 < 10


def test_an_update_of_many_in_a_call_takes_fewer():
  calls = profiled(parts_of(2100, updates_per_call=50), 50, 2050)
  assert sum(calls.values()) / 2000 < CALLS / 10


@pytest.mark.parametrize(
  ('rule', 'waits'), [('constant', 0), ('padadamp', 0), ('adadamp', 9)]
)
def test_devices_are_waited_for_where_a_decision_reads_them(
  monkeypatch, rule, waits
):
  """And for the end; else reports are fetched of earlier calls alone."""
  parts = parts_of(
    100,
    updates_per_call=1,
    **{
      'controller.name': rule,
      'controller.every': 10,
      'controller.max_batch_size': 16,
    },
  )
  left = []
  fetch = Reports._fetch

  def noting(self, keep):
    if len(self._queue) > keep:
      left.append(keep)
    yield from fetch(self, keep)

  monkeypatch.setattr(Reports, '_fetch', noting)
  list(loop(parts))
  assert left.count(0) in range(waits, waits + 3)
  assert set(left) == {0, 2}


def test_nothing_else_is_waited_for(monkeypatch):
  """Values and arrays that are fetched are as many in a longer run."""
  waits = collections.Counter()

  def noting(name, wait):
    def noted(*args):
      waits[name] += 1
      return wait(*args)

    return noted

  array = type(jax.numpy.zeros(()))
  value = property(noting('value', array._value.__get__))
  monkeypatch.setattr(array, '_value', value)
  for name in ('block_until_ready', 'device_get'):
    monkeypatch.setattr(jax, name, noting(name, getattr(jax, name)))
  found = []
  for updates in (100, 200):
    waits.clear()
    list(loop(parts_of(updates, updates_per_call=1)))
    found.append(dict(waits))
  assert found[0] == found[1]
  assert 0 < sum(found[0].values()) < 12


def test_a_restart_compiles_nothing(tmp_path, monkeypatch):
  """With what the first start left in the cache on the disk."""
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
  )
  before = {name: getattr(jax.config, name) for name in names}
  events = collections.Counter()

  def count(event, **about):
    events[event.rsplit('/', 1)[-1]] += 1

  jax.monitoring.register_event_listener(count)
  jax.config.update('jax_compilation_cache_dir', None)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  found = []
  try:
    for _ in range(2):
      use_persistent_cache()
      jax.clear_caches()
      compilation_cache.reset_cache()
      events.clear()
      list(loop(parts_of(20)))
      found.append((events['cache_hits'], events['cache_misses']))
  finally:
    jax.monitoring.unregister_event_listener(count)
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
  (hits, misses), again = found
  assert misses > 2
  assert again == (hits + misses, 0)
