"""The text of a program is counted like the program itself."""

import pytest

from adabatch.plan import hlo
from adabatch.plan.hlo import Collective

TEXT = """\
HloModule jit_f, is_scheduled=true, \
input_output_alias={ {0}: (0, {}, may-alias), {1}: (2, {}, must-alias) }, \
entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b), backend_config={"estimated_cycles":"7000"}
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%state), index=1
  %fusion.1 = f32[8]{0} fusion(%x), kind=kLoop, calls=%f, \
backend_config={"estimated_cycles":"100"}
  %all-reduce.2 = f32[8]{0} all-reduce(%fusion.1), channel_id=2, \
replica_groups=[8,4]<=[32], to_apply=%add, \
backend_config={"estimated_cycles":"10"}
  ROOT %tuple = (s32[], f32[8]{0}) tuple(%i, %all-reduce.2)
}

%condition (state: (s32[], f32[8])) -> pred[] {
  %state = (s32[], f32[8]{0}) parameter(0)
  %bound = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (p: f32[8], q: bf16[4,16]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %q = bf16[4,16]{1,0:T(8,128)S(1)} parameter(1)
  %small = bf16[4,16]{1,0:T(8,128)S(1)} fusion(%q), kind=kLoop, calls=%g, \
backend_config={"estimated_cycles":"1000"}
  %start = (f32[8]{0}, f32[32]{0}) all-gather-start(%p), channel_id=1, \
replica_groups={{0,1,2,3}}, dimensions={0}
  %done = f32[32]{0} all-gather-done(%start), \
backend_config={"estimated_cycles":"4611686018427387904"}
  %init = (s32[], f32[8]{0}) tuple(%zero, %p)
  %while = (s32[], f32[8]{0}) while(%init), \
condition=%condition, body=%body KNOWN
  ROOT %out = f32[8]{0} get-tuple-element(%while), index=1
}
"""


@pytest.mark.parametrize(
  ('known', 'times'),
  [
    ('', 5),
    (', backend_config={"known_trip_count":{"n":"3"}}', 3),
  ],
)
def test_a_program_is_counted(known, times):
  """A loop counts as often as it goes round; what it calls is not seen."""
  found = hlo.read(TEXT.replace(' KNOWN', known))
  assert found.cycles == 1000 + times * 110
  assert found.unknown == 1
  assert found.aliased == 2
  assert found.collectives == (
    Collective('all-gather', 1, (32 + 128) / 2, True, 4),
    Collective('all-reduce', times, 32, False, 4),
  )
  # The small fusion lies in the chip's own memory. The gathered array is
  # written once; in the loop each of two instructions reads and writes 32.
  assert found.traffic == (32 + 32 + 128) + times * (64 + 64)


def test_what_is_no_program():
  with pytest.raises(ValueError, match='no ENTRY'):
    hlo.read('HloModule nothing')


GATHERING = """HloModule m

%fused (param_0: u8[1000,128], param_1: s32[4]) -> u8[4,128] {
  %param_0 = u8[1000,128]{1,0} parameter(0)
  %param_1 = s32[4]{0} parameter(1)
  ROOT %gather.1 = u8[4,128]{1,0} gather(%param_0, %param_1), offset_dims={1}
}

%both (param_0: f32[100]) -> f32[100] {
  %param_0 = f32[100]{0} parameter(0)
  %some = f32[10]{0} dynamic-slice(%param_0), dynamic_slice_sizes={10}
  ROOT %all = f32[100]{0} negate(%param_0)
}

ENTRY %main (p: u8[1000,128], i: s32[4], x: f32[100]) -> u8[4,128] {
  %p = u8[1000,128]{1,0} parameter(0)
  %i = s32[4]{0} parameter(1)
  %x = f32[100]{0} parameter(2)
  %y = f32[100]{0} fusion(%x), kind=kLoop, calls=%both
  ROOT %r = u8[4,128]{1,0} fusion(%p, %i), kind=kCustom, calls=%fused
}
"""


def test_of_what_is_gathered_from_only_rows_are_read():
  traffic = hlo.read(GATHERING).traffic
  # What is read as a whole as well counts as a whole.
  assert traffic == (400 + 400) + (512 + 512 + 16)


ASYNCHRONOUS = """HloModule m

%called (param_0: f32[64]) -> f32[64] {
  %param_0 = f32[64]{0} parameter(0)
  ROOT %r = f32[64]{0} all-reduce(%param_0), replica_groups={{0,1,2,3}}
}

ENTRY %main (p: f32[64]) -> f32[64] {
  %p = f32[64]{0} parameter(0)
  %s = ((f32[64]{0}), f32[64]{0}) call-start(%p), to_apply=%called
  ROOT %d = f32[64]{0} call-done(%s)
}
"""


def test_what_other_cores_exchange_meanwhile():
  (exchange,) = hlo.read(ASYNCHRONOUS).collectives
  assert exchange == Collective('all-reduce', 1, 256.0, True, 4)
