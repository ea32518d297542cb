"""How many examples a device takes at once, where the run finds it itself."""

import math
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from adabatch.config import ConfigError
from adabatch.controllers import buckets
from adabatch.controllers.buckets import bucket_for
from adabatch.devices.evaluation import Evaluator
from adabatch.devices.programs import Programs
from adabatch.devices.step import Variant
from adabatch.devices.trainer import Trainer
from adabatch.plan.job import plan
from adabatch.search.job import search
from adabatch.train import at_once, memory
from adabatch.train.build import build
from adabatch.train.job import train
from tests.experiments import digits, records

FULL = JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.')
AUTO = {'buckets.max_per_device': 'auto'}
# Sizes 16, 32, 64, 128 by progress alone, all of them within 60 updates.
GROWING = {
  'controller.name': 'padadamp',
  'controller.padadamp.rate': 3.0,
  'controller.every': 5,
  'model.mlp.hidden_sizes': (64,) * 3,  # more activations than parameters
  'max_updates': 60,
  'epochs': 100.0,
}


# Where memory is not measured: compiled sooner.
SMALL = {'model.mlp.hidden_sizes': (8,)}


def growing(**overrides):
  return digits(**GROWING | overrides)


def one():
  return jax.devices()[:1]


def lines(workdir):
  """What was trained, without what was measured with a clock."""
  names = 'update', 'batch_size', 'examples', 'loss', 'learning_rate'
  return [[r[name] for name in names] for r in records(workdir)]


@pytest.fixture(name='with_64', scope='module')
def _with_64(tmp_path_factory):
  """The lines of a run that takes 64 at once from the start."""
  workdir = tmp_path_factory.mktemp('with_64')
  train(growing(**{'buckets.max_per_device': 64}), workdir, devices=one())
  made = lines(workdir)
  assert [line[1] for line in made[:: len(made) - 1]] == [16, 128]
  return made


@pytest.fixture(name='limit')
def _limit(monkeypatch):
  """Memory of a device, which a test may change while a run goes on."""
  limit = {'bytes': math.inf}
  monkeypatch.setattr(memory, 'of_device', lambda made: limit['bytes'])
  return limit


def between(config, fewer, more):
  """Memory in which so many examples at once fit, and more do not."""
  parts = build(config, one())
  trainer = Trainer(parts.recipe)
  needed = []
  for most in (fewer, more):
    ladder = parts.ladder._replace(max_per_device=most)
    bucket = bucket_for(128, ladder)
    peak = trainer.memory(Variant(bucket, True, 1))
    needed.append(peak + memory.beside_training(parts.recipe, bucket))
  trainer.close()
  assert needed[0] < needed[1]
  return sum(needed) / 2


@pytest.fixture(name='room', scope='module')
def _room():
  return between(growing(), 64, 128)


def test_it_changes_no_result(tmp_path, with_64, capfd):
  train(growing(**AUTO), tmp_path, devices=one())
  assert "buckets.max_per_device='auto': " in capfd.readouterr().err
  found = lines(tmp_path)
  for one_line, other in zip(found, with_64, strict=True):
    assert one_line[:3] == other[:3]
    np.testing.assert_allclose(one_line[3:], other[3:], rtol=1e-5)


def test_it_is_halved_at_the_start(tmp_path, with_64, limit, room, capfd):
  limit['bytes'] = room
  train(growing(**AUTO), tmp_path, devices=one())
  assert '64 examples at once on each device' in capfd.readouterr().err
  assert lines(tmp_path) == with_64


def after(updates, monkeypatch, then):
  """Calls it before the call that comes after so many updates."""
  dispatch, done = Trainer.dispatch, []

  def counting(self, call, **how):
    if call.update >= updates and not done:
      done.append(call)
      then(self, call)
    return dispatch(self, call, **how)

  monkeypatch.setattr(Trainer, 'dispatch', counting)
  return done


def test_it_is_halved_in_mid_run(
  tmp_path, with_64, limit, room, monkeypatch, capfd
):
  """Somebody else takes memory; the larger rung comes later."""
  # 128 at once are the fastest on this processor, or they are made to be.
  monkeypatch.setattr(at_once, 'CANDIDATES', ())
  after(8, monkeypatch, lambda *_: limit.update(bytes=room))
  train(growing(**AUTO), tmp_path, devices=one())
  text = capfd.readouterr().err
  assert '128 examples at once on each device (the fastest of 128)' in text
  assert 'no memory for 128 examples at once on each device, 64 from' in text
  assert lines(tmp_path) == with_64  # no update is done twice, none is lost


def poison(tree):
  """What an update leaves that finds no memory: results that never come, and
  nothing of what it was given."""

  def compute(tree):
    large = jax.lax.sort(jnp.sin(jnp.arange(2**44, dtype=jnp.float32)))
    return jax.tree.map(lambda x: x + large[3].astype(x.dtype), tree)

  return jax.jit(compute, donate_argnums=0)(tree)


@pytest.fixture(name='fails')
def _fails(monkeypatch):
  """update -> it finds no memory, once; the calls that did."""
  dispatch, done = Trainer.dispatch, []

  def at(update):
    def failing(self, call, **how):
      reports = dispatch(self, call, **how)
      if call.update <= update < call.update + call.count and not done:
        done.append(call)
        self.state, reports = poison((self.state, reports))
      return reports

    monkeypatch.setattr(Trainer, 'dispatch', failing)
    return done

  return at


@pytest.mark.parametrize(
  ('every', 'update', 'start'),
  [
    (7, 39, 35),
    (7, 41, 35),  # the last one before a checkpoint
    (1000, 45, 0),
  ],
)
def test_an_update_finds_no_memory(
  every, update, start, tmp_path, with_64, fails, monkeypatch, capfd
):
  """From the newest checkpoint, or from the start, to the same end."""
  monkeypatch.setattr(at_once, 'CANDIDATES', ())
  failed = fails(update)
  config = growing(**AUTO, **{'checkpoint.every_updates': every})
  summary = train(config, tmp_path, devices=one())
  assert failed[0].plan.bucket.microbatch_size == 128
  assert summary['status'] == 'completed'
  text = capfd.readouterr().err
  assert 'no memory for 128 examples at once on each device, 64 from' in text
  assert f'; on from update {start}\n' in text
  found = lines(tmp_path)
  assert [line[0] for line in found] == list(range(1, 61))
  for line, other in zip(found, with_64, strict=True):
    assert line[:3] == other[:3]
    np.testing.assert_allclose(line[3:], other[3:], rtol=1e-5)
  if start == 0:  # nothing is left of what was done with 128 at once
    assert found == with_64


@pytest.mark.parametrize('update', [39, 41])
def test_of_a_given_number_too(update, tmp_path, fails):
  fails(update)
  config = growing(**SMALL, **{'checkpoint.every_updates': 7})
  match = r'no memory for 128 .* set buckets\.max_per_device=64 '
  with pytest.raises(ConfigError, match=match) as error:
    train(config, tmp_path, devices=one())
  assert '\n' not in str(error.value)


def test_the_update_that_is_tried_finds_no_memory(
  tmp_path, with_64, monkeypatch, capfd
):
  """On an accelerator; the state that it spoils is made anew."""
  look = Programs.look

  class NoMemory:
    def __init__(self, program):
      self.program, self.memory_analysis = program, program.memory_analysis

    def __call__(self, *args):
      return poison(self.program(*args))

  def failing(self, key):
    program = look(self, key)
    return program if key.bucket.microbatch_size <= 64 else NoMemory(program)

  monkeypatch.setattr(Programs, 'look', failing)
  monkeypatch.setattr(at_once, '_is_cpu', lambda trainer: False)
  train(growing(**AUTO), tmp_path, devices=one())
  text = capfd.readouterr().err
  assert '64 examples at once on each device (the most that fit)' in text
  assert lines(tmp_path) == with_64


def test_a_given_number_is_kept_and_one_line_says_what_to_do(
  tmp_path, monkeypatch
):
  def fail(trainer, call):
    raise FULL

  after(10, monkeypatch, fail)
  with pytest.raises(ConfigError, match='update 11: no memory for ') as error:
    train(growing(**SMALL), tmp_path, devices=one())
  assert 'set buckets.max_per_device=' in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'overrides',
  [
    {},
    AUTO,
    # What such a rule measures at x_0, and later.
    {'controller.name': 'adadamp', 'controller.adadamp.loss_source': 'full'},
  ],
)
@pytest.mark.parametrize('before', [0, 1])
def test_an_evaluation_finds_no_memory(
  overrides, before, tmp_path, monkeypatch
):
  metrics, done = Evaluator.metrics, []

  def failing(self, state):
    if len(done) == before:
      raise FULL
    done.append(state)
    return metrics(self, state)

  monkeypatch.setattr(Evaluator, 'metrics', failing)
  with pytest.raises(ConfigError, match=r'lower eval\.max_per_device'):
    train(growing(**SMALL | overrides), tmp_path, devices=one())


def test_other_errors_stay_what_they_are(tmp_path, monkeypatch):
  def fail(trainer, call):
    raise JaxRuntimeError('INTERNAL: something else')

  after(10, monkeypatch, fail)
  with pytest.raises(JaxRuntimeError, match='something else'):
    train(growing(**SMALL | AUTO), tmp_path, devices=one())


def test_what_was_found_is_kept_in_checkpoints(
  tmp_path, with_64, limit, room, monkeypatch
):
  limit['bytes'] = room
  train(growing(**AUTO), tmp_path, devices=one(), last_update=30)
  limit['bytes'] = math.inf
  # It is not looked for again, which would spend the state.
  monkeypatch.setattr(at_once, 'find', None)
  train(growing(**AUTO), tmp_path, devices=one())
  assert lines(tmp_path) == with_64
  # Nor where the run is at its end.
  summary = train(growing(**AUTO), tmp_path, devices=one())
  assert summary['updates'] == 60


def test_on_other_devices_it_goes_on_and_says_so(tmp_path, with_64, capfd):
  train(growing(**AUTO), tmp_path, devices=one(), last_update=30)
  train(growing(**AUTO), tmp_path, devices=jax.devices()[:2])
  assert 'not looked for on these devices' in capfd.readouterr().err
  for line, other in zip(lines(tmp_path), with_64, strict=True):
    assert line[:3] == other[:3]
    np.testing.assert_allclose(line[3:], other[3:], rtol=1e-4)


def test_nothing_fits(tmp_path, limit):
  limit['bytes'] = 5e4  # the state, but not the data beside it
  sizes = {'controller.max_batch_size': 16}  # each half is compiled
  with pytest.raises(ConfigError, match='1 examples at once .* does not fit'):
    train(growing(**SMALL | AUTO | sizes), tmp_path, devices=one())
  assert not (tmp_path / 'metrics.jsonl').exists()


def test_the_compiler_refuses(tmp_path, with_64, monkeypatch):
  """That of a TPU counts memory itself."""
  peak = Trainer.memory

  def refusing(self, variant):
    if variant.bucket.microbatch_size > 64:
      raise FULL
    return peak(self, variant)

  monkeypatch.setattr(Trainer, 'memory', refusing)
  train(growing(**AUTO), tmp_path, devices=one())
  assert lines(tmp_path) == with_64


@pytest.mark.parametrize(
  'overrides',
  [
    {'data.placement': 'streaming', 'data.workers': 0},
    {'parallel.backend': 'pmap'},
    {'updates_per_call': 5},
    {
      'sync.name': 'local_sgd',
      'sync.replicas': 4,
      'sync.local_steps': 3,
      'controller.name': 'constant',
    },
  ],
)
def test_it_is_found_for_all_kinds_of_runs(overrides, tmp_path):
  few = {'max_updates': 30, 'controller.max_batch_size': 64}
  overrides = SMALL | few | overrides
  for name, more in (('auto', AUTO), ('given', {})):
    train(
      growing(**overrides | more), tmp_path / name, devices=jax.devices()[:2]
    )
  auto, given = (lines(tmp_path / name) for name in ('auto', 'given'))
  if 'controller.name' not in overrides:
    assert {line[1] for line in given} == {16, 32, 64}
  for line, other in zip(auto, given, strict=True):
    assert line[:3] == other[:3]
    np.testing.assert_allclose(line[3:], other[3:], rtol=1e-5)


def test_where_it_would_change_results_it_is_refused(tmp_path):
  config = digits(**AUTO, **{'controller.name': 'noise_scale'})
  with pytest.raises(ConfigError, match='the gradient noise depends on it'):
    train(config, tmp_path)
  with pytest.raises(ConfigError, match='for a single run'):
    search(growing(**AUTO), tmp_path, stop=threading.Event())


def test_a_plan_knows_of_no_limit(tmp_path):
  found = plan(growing(**AUTO), tmp_path, devices=one())
  assert [r['accumulation_steps'] for r in found['ladder']] == [1] * 4
  assert any('is found when it runs' in line for line in found['remarks'])
  config = growing(**AUTO, **{'plan.save': str(tmp_path / 'programs')})
  with pytest.raises(ConfigError, match='finds when it runs: give the number'):
    plan(config, tmp_path, devices=one())


@pytest.mark.parametrize('value', ['automatic', 0, 1.5, None])
def test_values_that_mean_nothing(value, tmp_path):
  config = growing()
  config.buckets.max_per_device = value
  with pytest.raises(ConfigError, match=r'buckets\.max_per_device must be'):
    train(config, tmp_path)


def test_halving_keeps_groups_whole():
  config = growing(**{'model.name': 'strided_cnn'})
  config.model.strided_cnn.batch_norm_group = 16
  ladder = build(config, one()).ladder._replace(max_per_device=64)
  sizes = []
  while ladder is not None:
    sizes.append(ladder.max_per_device)
    bucket = bucket_for(128, ladder)
    assert bucket.microbatch_size % 16 == 0
    ladder = at_once.halved(bucket, ladder)
  assert sizes == [64, 32, 16]


def test_halving_as_far_as_groups_allow():
  """Half of 60 would cut groups of 32, and 32 do not."""
  ladder = buckets.ladder(60, 60, devices=1, group_size=32)
  found = at_once.most_that_fit(
    ladder, 60, lambda bucket: bucket.microbatch_size <= 32
  )
  assert found.max_per_device == 32
  assert at_once.halved(bucket_for(60, found), found) is None
  # On two devices a group may be shared.
  ladder = buckets.ladder(256, 256, devices=2, group_size=32)
  found = at_once.most_that_fit(
    ladder, 256, lambda bucket: bucket.microbatch_size <= 16
  )
  assert bucket_for(256, found).microbatch_size == 16


def test_what_was_compiled_ahead_is_forgotten(tmp_path, monkeypatch):
  """Or nothing more would ever be compiled ahead."""
  monkeypatch.setattr(at_once, 'CANDIDATES', ())
  most, needed, asked = [128], Trainer.memory, []

  def told(self, variant):
    too_many = variant.bucket.microbatch_size > most[0]
    return 2**60 if too_many else needed(self, variant)

  monkeypatch.setattr(Trainer, 'memory', told)
  after(3, monkeypatch, lambda *_: most.insert(0, 32))
  prefetch = Programs.prefetch

  def noting(self, *keys):
    waiting = self._programs.keys() - self._used.keys()
    asked.append((keys, [k.bucket.microbatch_size for k in waiting]))
    prefetch(self, *keys)

  monkeypatch.setattr(Programs, 'prefetch', noting)
  train(growing(**AUTO), tmp_path, devices=one())
  assert asked[-1][1] == []


def test_the_wait_for_programs_is_counted(tmp_path):
  for name, more in (('auto', AUTO), ('given', {})):
    config = growing(**more, compilation_cache=False)
    summary = train(config, tmp_path / name, devices=one())
    assert summary['first_compile_seconds'] > 0.05
    assert summary['stall_seconds'] > 0.05
