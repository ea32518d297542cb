"""What is made of compiled programs."""

import jax
import pytest

from adabatch.controllers.buckets import Bucket, bucket_for
from adabatch.plan import figures
from adabatch.plan.compiler import Compiled, Compiler, TooLarge
from adabatch.plan.hlo import Collective, Cost
from adabatch.plan.topology import Topology
from adabatch.report import plan_table
from adabatch.train.build import build
from adabatch.train.memory import beside_training
from tests.experiments import digits


class Device:
  """Of a topology, two on each host."""

  platform = 'tpu'

  def __init__(self, number):
    self.process_index = number // 2


GRADIENTS = Collective('all-reduce', 1, 1e6, False, 4)
GROUPS = Collective('all-reduce', 1, 128.0, False, 2)


def program(steps):
  """Of groups that exchange once a microbatch, twice in one of them."""
  cost = Cost(
    cycles=100.0 + 10.0 * steps,
    traffic=1000.0 * steps,
    unknown=0,
    collectives=(GROUPS._replace(times=steps), GRADIENTS, GROUPS),
    aliased=3,
  )
  return Compiled(cost, {'peak': steps}, 1.0, None)


def test_between_two_numbers_of_microbatches():
  made = {Bucket(4, k, 4): program(k) for k in (2, 16)}
  found = figures._between(Bucket(4, 4, 4), made)
  assert found.cost.cycles == 140
  assert found.cost.traffic == 4000
  times = {c.bytes: c.times for c in found.cost.collectives}
  assert times == {1e6: 1, 128.0: 5}
  assert found.memory == {'peak': 16}
  assert found.seconds == 0


def test_what_is_kept_is_found_under_the_same_flags_alone(
  tmp_path, monkeypatch
):
  class Lowered:
    def as_text(self):
      return 'a program'

  machine = Topology('v5e:2x2', 'v5e', (2, 2), 1, [Device(0)], ('jax',))
  found = []

  def compiling(lowered, platform):
    found.append(platform)
    return {'why': f'number {len(found)}'}

  monkeypatch.setattr('adabatch.plan.compiler._compile', compiling)

  def compile_with(machine=machine):
    return Compiler(machine, tmp_path)(Lowered()).why

  assert [compile_with(), compile_with()] == ['number 1'] * 2
  monkeypatch.setenv('LIBTPU_INIT_ARGS', '--xla_tpu_scoped_vmem_limit_kib=1')
  assert [compile_with(), compile_with()] == ['number 2'] * 2
  monkeypatch.delenv('LIBTPU_INIT_ARGS')
  assert compile_with() == 'number 1'
  assert compile_with(machine._replace(shape=(4, 4))) == 'number 3'
  assert compile_with(machine._replace(target='other')) == 'number 4'
  assert Compiler(machine, None)(Lowered()).why == 'number 5'


V5E = Topology('v5e:2x2', 'v5e', (2, 2), 1, [Device(i) for i in range(4)])


def parts_of(**overrides):
  return build(digits(**overrides), jax.devices()[:4])


def programs_of(parts, **changed):
  program = Compiled(
    Cost(1.5e6, 819e6, 0, (GRADIENTS,), 3), {'peak': 2**30}, 2.0, 7e6
  )
  rungs = dict.fromkeys(parts.ladder.batch_sizes, program)
  return figures.Programs(rungs, {}, {})._replace(**changed)


def test_figures_of_a_rung():
  parts = parts_of(**{'data.placement': 'streaming', 'data.workers': 0})
  made = programs_of(parts)
  found = figures.figures(parts, V5E, made, 64, 1e6)
  exchange = 2 * 3 / 4 * 1e6 / (2 * 50e9)
  assert found['compiler_seconds'] == pytest.approx(1e-3)
  assert found['all_reduce_seconds'] == pytest.approx(exchange)
  assert found['seconds'] == pytest.approx(1e-3 + exchange)
  assert found['bandwidth_bound_seconds'] == pytest.approx(1e-3)
  assert found['flops_bound_seconds'] == pytest.approx(64e6 / 4 / 197e12)
  rate = 64 / (1e-3 + exchange)
  assert found['examples_per_second'] == pytest.approx(rate)
  # Each of two hosts; an image has 64 bytes, its label 4.
  assert found['host_examples_per_second'] == pytest.approx(rate / 2)
  assert found['host_bytes_per_second'] == pytest.approx(rate / 2 * 68)
  assert found['compiled_flops_per_example'] == pytest.approx(7e6 * 4 / 64)
  # The batch that is read ahead: 16 examples on each device.
  assert found['beside_bytes'] == 16 * 68
  assert found['bytes'] == 2**30 + 16 * 68
  assert found['fits']


def test_figures_of_what_does_not_fit():
  parts = parts_of()
  made = programs_of(parts, fits_with={128: 16, 64: None})
  for size, words in ((128, 'buckets.max_per_device=16 fits'), (64, 'nothing')):
    found = figures.figures(parts, V5E, made, size, None)
    assert not found['fits']
    rows = plan_table._memory(found)
    assert rows[-1].startswith('too large: ')
    assert words in rows[-1]
  found = figures.figures(parts, V5E, made, 16, None)
  assert plan_table._memory(found)[-1] == ''  # noqa: PLC1901
  made.rungs[128] = TooLarge('it says so')
  found = figures.figures(parts, V5E, made, 128, None)
  assert found == {'fits': False, 'why': 'it says so', 'fits_with': 16}


def test_what_lies_beside_a_program_counts():
  parts = parts_of()
  bucket = bucket_for(64, parts.ladder)
  beside = beside_training(parts.recipe, bucket)
  assert beside == 359 * (128 + 4)  # the evaluation split, in rows
  limit = int(V5E.chip.memory)
  program = programs_of(parts).rungs[64]

  def fits(peak):
    one = program._replace(memory={'peak': peak})
    return figures._fits(parts, V5E, bucket, one)

  assert fits(limit - beside)
  assert not fits(limit - beside + 1)
  assert not figures._fits(parts, V5E, bucket, TooLarge(''))


def test_an_evaluation_takes_all_its_pieces():
  parts = parts_of()
  program = programs_of(parts).rungs[64]
  made = figures.Evaluation(program, 10, 1000)
  found = figures.evaluation_figures(parts, V5E, made)
  assert found['examples_at_once'] == 40
  assert found['calls'] == 9  # of 359 examples
  assert found['compiler_seconds'] == pytest.approx(9e-3)
  exchange = 9 * 2 * 3 / 4 * 1e6 / (2 * 50e9)
  assert found['all_reduce_seconds'] == pytest.approx(exchange)
  assert found['seconds'] == pytest.approx(9e-3 + exchange)
  assert found['bytes'] == 2**30 + 1000
  assert found['fits']
  large = made._replace(beside=2**34)
  assert not figures.evaluation_figures(parts, V5E, large)['fits']


def test_the_plan_takes_what_the_run_will_find(monkeypatch):
  parts = parts_of(**{'buckets.max_per_device': 'auto'})
  assert parts.ladder.max_per_device is None
  monkeypatch.setattr(
    figures, '_fits', lambda parts, machine, b, program: b.microbatch_size < 9
  )
  program = programs_of(parts).rungs[64]
  found = figures.at_most(parts, V5E, lambda lowered: program)
  assert found.ladder == parts.ladder._replace(max_per_device=8)
  monkeypatch.setattr(figures, '_fits', lambda *_: True)
  assert figures.at_most(parts, V5E, lambda lowered: program) == parts


def test_a_rung_on_some_of_the_devices():
  parts = parts_of(**{'buckets.min_per_device': 32})
  assert bucket_for(64, parts.ladder).devices == 2
  alone = programs_of(parts).rungs[64]
  among = alone.cost._replace(collectives=(GRADIENTS._replace(devices=None),))
  made = programs_of(parts, rungs={64: alone._replace(cost=among)})
  found = figures.figures(parts, V5E, made, 64, 1e6)
  exchange = 2 * 1 / 2 * 1e6 / (2 * 50e9)
  assert found['all_reduce_seconds'] == pytest.approx(exchange)
  assert found['device_seconds'] == pytest.approx(2 * found['seconds'])
  assert found['flops_bound_seconds'] == pytest.approx(64e6 / 2 / 197e12)
  assert found['compiled_flops_per_example'] == pytest.approx(7e6 * 2 / 64)
  # Alike but for their devices, and each is compiled.
  pair = [Bucket(32, 1, 1), Bucket(32, 1, 2)]
  assert figures._to_compile(pair) == pair


def test_a_schedule_on_some_of_the_devices():
  spent = {'seconds': 10.0, 'chip_hours': 1.0}
  assert 'in use' not in plan_table._time_of(spent)
  words = plan_table._time_of(spent | {'in_use': 0.25})
  assert words.endswith('1 chip-hours, devices in use 25% of it')
