"""What is made of compiled programs."""

from adabatch.controllers.buckets import Bucket
from adabatch.plan import compiled
from adabatch.plan.compiler import Compiled, Compiler
from adabatch.plan.hlo import Collective, Cost
from adabatch.plan.topology import Topology

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
  found = compiled._between(Bucket(4, 4, 4), made)
  assert found.cost.cycles == 140
  assert found.cost.traffic == 4000
  times = {c.bytes: c.times for c in found.cost.collectives}
  assert times == {1e6: 1, 128.0: 5}
  assert found.memory == {'peak': 16}
  assert found.seconds == 0


def test_what_is_kept_is_found_under_the_same_flags_alone(
  tmp_path, monkeypatch
):
  class Device:
    platform = 'tpu'

  class Lowered:
    def as_text(self):
      return 'a program'

  machine = Topology('v5e:2x2', 'v5e', (2, 2), 1, [Device()], ('jax',))
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
