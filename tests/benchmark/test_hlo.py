"""What is read from the text of a compiled program: loops, collectives, cycles."""

from __future__ import annotations

import pytest

from udp_jax.benchmark import hlo

# What a program for TPUs looks like: layouts in the types, asynchronous pairs, limits of loops in
# their conditions, inside a fusion at times.
TPU_TEXT = """\
HloModule jit_f, is_scheduled=true

%add.clone (x.1: f32[], y.1: f32[]) -> f32[] {
  %x.1 = f32[] parameter(0)
  %y.1 = f32[] parameter(1)
  ROOT %add.5 = f32[]{:T(128)} add(%x.1, %y.1)
}

%compare_fusion (a: s32[], b: s32[]) -> pred[] {
  %a = s32[]{:T(128)} parameter(0)
  %b = s32[]{:T(128)} parameter(1)
  ROOT %lt.2 = pred[]{:T(512)} compare(%a, %b), direction=LT
}

%inner_condition (p.1: (s32[], f32[8])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %five = s32[]{:T(128)} constant(5)
  ROOT %fused = pred[]{:T(512)} fusion(%i.1, %five), kind=kLoop, calls=%compare_fusion
}

%inner_body (p.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.2 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %v.2 = f32[8]{0:T(128)} get-tuple-element(%p.2), index=1
  %all-reduce-start.1 = (bf16[4,8]{1,0:T(8,128)(2,1)}, f32[8]{0:T(128)}) all-reduce-start(%v.2, %v.2), replica_groups={{0,1}}, to_apply=%add.clone, metadata={op_name="jit(f)/psum (first)"}
  %all-reduce-done.1 = (bf16[4,8]{1,0:T(8,128)(2,1)}, f32[8]{0:T(128)}) all-reduce-done(%all-reduce-start.1)
  ROOT %t.2 = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%v.2, %v.2)
}

%outer_condition (p.3: (s32[], f32[8])) -> pred[] {
  %p.3 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i.3 = s32[]{:T(128)} get-tuple-element(%p.3), index=0
  %three = s32[]{:T(128)} constant(3)
  ROOT %lt.3 = pred[]{:T(512)} compare(%i.3, %three), direction=LT
}

%outer_body (p.4: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.4 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  ROOT %while.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%p.4), condition=%inner_condition, body=%inner_body
}

%unknown_condition (p.5: (s32[], s32[])) -> pred[] {
  %p.5 = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %i.5 = s32[]{:T(128)} get-tuple-element(%p.5), index=0
  %n.5 = s32[]{:T(128)} get-tuple-element(%p.5), index=1
  ROOT %lt.5 = pred[]{:T(512)} compare(%i.5, %n.5), direction=LT
}

%async_computation (p.6: f32[8]) -> f32[2] {
  %p.6 = f32[8]{0:T(128)} parameter(0)
  ROOT %rs = f32[2]{0:T(128)} reduce-scatter(%p.6), dimensions={0}, to_apply=%add.clone
}

%branch (p.7: f32[8]) -> f32[32] {
  %p.7 = f32[8]{0:T(128)} parameter(0)
  %all-gather-start = (f32[8]{0:T(128)}, f32[32]{0:T(128)}) all-gather-start(%p.7), dimensions={0}
  ROOT %all-gather-done = f32[32]{0:T(128)} all-gather-done(%all-gather-start)
}

ENTRY %main (p.8: f32[8]) -> f32[8] {
  %p.8 = f32[8]{0:T(128)} parameter(0)
  %w.8 = (s32[]{:T(128)}, /*index=1*/f32[8]{0:T(128)}) while(%p.8), condition=%outer_condition, body=%outer_body
  %u.8 = (s32[]{:T(128)}, s32[]{:T(128)}) while(%w.8), condition=%unknown_condition, body=%branch
  %async-start = ((f32[8]{0}), f32[2]{0}, u32[]) async-start(%p.8), calls=%async_computation
  %async-done = f32[2]{0:T(128)} async-done(%async-start), calls=%async_computation
  ROOT %c.8 = f32[32]{0:T(128)} conditional(%p.8, %p.8, %p.8), branch_computations={%branch, %async_computation}
}
"""  # noqa: E501


def test_loops_of_a_program():
  loops = hlo.loops(hlo.parse(TPU_TEXT))
  assert loops == [
    hlo.Loop("outer_body", 3, 3),
    hlo.Loop("inner_body", 5, 15),
    hlo.Loop("branch", None, 1),
  ]


def test_collectives_of_a_program():
  """A pair is one; loops multiply; branches, wrapped and fused computations are entered."""
  table = hlo.summary(hlo.collectives(hlo.parse(TPU_TEXT)))
  assert table == {
    "all-reduce": {
      "in_program": 1,
      "executed": 15,
      "bytes": 15 * (2 * 32 + 4 * 8),
      "dtypes": ["bf16", "f32"],
    },
    # In a loop of unknown length and in a branch, which is the same computation here.
    "all-gather": {"in_program": 1, "executed": 2, "bytes": 2 * 4 * 32, "dtypes": ["f32"]},
    "reduce-scatter": {"in_program": 1, "executed": 2, "bytes": 2 * 4 * 2, "dtypes": ["f32"]},
  }


def test_cycles_of_a_program():
  """Each computation once, and nothing of what is fused: its fusion has the estimate."""
  estimates = {"%v.2 =": 7, "%i.1 =": 1000, "%p.8 =": 20, "%a =": 300}
  lines = []
  for line in TPU_TEXT.splitlines():
    found = [number for name, number in estimates.items() if line.strip().startswith(name)]
    lines.append(line + "".join(f', backend_config={{"estimated_cycles":"{n}"}}' for n in found))
  assert hlo.cycles(hlo.parse("\n".join(lines))) == 27
  assert hlo.cycles(hlo.parse(TPU_TEXT)) is None


def test_text_without_a_program():
  with pytest.raises(ValueError, match="no program"):
    hlo.parse("HloModule nothing\n")


@pytest.mark.parametrize(
  ("line", "operands", "arrays"),
  [
    ("%a = f32[2,3]{1,0:T(8,128)} add(%b, f32[2,3]{1,0:T(8,128)} %c.1)", ["b", "c.1"], [[2, 3]]),
    ('%a = f32[] constant(3), metadata={op_name="jit(f)/%x"}', [], [[]]),
    (
      "ROOT %t = (bf16[4]{0}, /*index=1*/u8[0]{0}) custom-call((f32[4]{0}) %x, %y), calls=%z",
      ["x", "y"],
      [[4], [0]],
    ),
    ("%k = token[] after-all()", [], []),
  ],
)
def test_operands_and_arrays_of_an_instruction(line, operands, arrays):
  (one,) = hlo.parse(f"ENTRY %main (b: f32[]) -> f32[] {{\n  {line}\n}}").computations["main"]
  assert one.operands == operands
  assert [shape for _, shape in one.arrays] == arrays


def test_collectives_in_a_called_computation():
  """On GPUs kernels are recorded together, and called as one."""
  text = """\
%command_buffer (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %all-reduce = f32[8]{0} all-reduce(%p), to_apply=%add
}

ENTRY %main (p.1: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  ROOT %call = f32[8]{0} call(%p.1), to_apply=%command_buffer
}
"""
  assert hlo.collectives(hlo.parse(text)) == [hlo.Collective("all-reduce", ("f32",), 1, 32, 1)]
