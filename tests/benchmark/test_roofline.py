"""Kernels, bytes and the bound of programs for GPUs, counted by hand."""

from __future__ import annotations

import pytest

from udp_jax.benchmark import flops, hlo, roofline
from udp_jax.benchmark.roofline import Reach

REACH = Reach(matmul=1e12, copy=1e9, launch=1e-6)

# Lines of programs that XLA compiled for an H100, cut to what is read.
TEXT = """\
HloModule jit_f, is_scheduled=true

%fused_dynamic_update_slice (param_0.1: f32[6,32,64], param_1.7: f32[32,64], param_2.10: s32[]) -> f32[6,32,64] {
  %param_0.1 = f32[6,32,64]{2,1,0} parameter(0)
  %param_1.7 = f32[32,64]{1,0} parameter(1)
  %bitcast.1.1 = f32[1,32,64]{2,1,0} bitcast(%param_1.7)
  %param_2.10 = s32[] parameter(2)
  %constant_27_1 = s32[] constant(0)
  ROOT %dynamic_update_slice.4.1 = f32[6,32,64]{2,1,0} dynamic-update-slice(%param_0.1, %bitcast.1.1, %param_2.10, %constant_27_1, %constant_27_1)
}

%fused_dynamic_slice (param_0.2: f32[6,32,64], param_1.9: s32[]) -> f32[1,32,64] {
  %param_0.2 = f32[6,32,64]{2,1,0} parameter(0)
  %bitcast.9 = f32[6,2048]{1,0} bitcast(%param_0.2)
  %param_1.9 = s32[] parameter(1)
  %constant_27_2 = s32[] constant(0)
  %dynamic_slice.4.1 = f32[1,2048]{1,0} dynamic-slice(%bitcast.9, %param_1.9, %constant_27_2), dynamic_slice_sizes={1,2048}
  ROOT %bitcast.10 = f32[1,32,64]{2,1,0} bitcast(%dynamic_slice.4.1)
}

%fused_two (param_0.3: f32[32,64], param_1.3: f32[6,32,64]) -> (f32[32,64], bf16[32,64]) {
  %param_0.3 = f32[32,64]{1,0} parameter(0)
  %param_1.3 = f32[6,32,64]{2,1,0} parameter(1)
  %slice.1 = f32[1,32,64]{2,1,0} slice(%param_1.3), slice={[0:1], [0:32], [0:64]}
  %bitcast.11 = f32[32,64]{1,0} bitcast(%slice.1)
  %add.1 = f32[32,64]{1,0} add(%param_0.3, %bitcast.11)
  %convert.1 = bf16[32,64]{1,0} convert(%add.1)
  ROOT %tuple.1 = (f32[32,64]{1,0}, bf16[32,64]{1,0}) tuple(%add.1, %convert.1)
}

%gemm_fusion_dot_computation (parameter_0: f32[32,64], parameter_1: f32[64,64]) -> f32[32,64] {
  %parameter_1 = f32[64,64]{1,0} parameter(1)
  %parameter_0 = f32[32,64]{1,0} parameter(0)
  ROOT %dot.1 = f32[32,64]{1,0} dot(%parameter_0, %parameter_1), lhs_contracting_dims={1}, rhs_contracting_dims={0}, backend_config={"sizes":["16"]}
}

%body (arg_tuple.4: (s32[], f32[64,64], f32[6,32,64])) -> (s32[], f32[64,64], f32[6,32,64]) {
  %arg_tuple.4 = (s32[], f32[64,64]{1,0}, f32[6,32,64]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg_tuple.4), index=0
  %w = f32[64,64]{1,0} get-tuple-element(%arg_tuple.4), index=1
  %stack = f32[6,32,64]{2,1,0} get-tuple-element(%arg_tuple.4), index=2
  %cut = f32[1,32,64]{2,1,0} fusion(%stack, %i), kind=kLoop, calls=%fused_dynamic_slice
  %row = f32[32,64]{1,0} bitcast(%cut)
  %gemm_fusion_dot = f32[32,64]{1,0} fusion(%row, %w), kind=kCustom, calls=%gemm_fusion_dot_computation, metadata={op_name="jit(f)/while/body/dot_general" stack_frame_id=11}, backend_config={"fusion_backend_config":{"kind":"__triton_gemm"}}
  %kept = f32[6,32,64]{2,1,0} fusion(%stack, %gemm_fusion_dot, %i), kind=kLoop, calls=%fused_dynamic_update_slice
  ROOT %tuple.12 = (s32[], f32[64,64]{1,0}, f32[6,32,64]{2,1,0}) tuple(%i, %w, %kept)
}

%condition (arg_tuple.2: (s32[], f32[64,64], f32[6,32,64])) -> pred[] {
  %arg_tuple.2 = (s32[], f32[64,64]{1,0}, f32[6,32,64]{2,1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%arg_tuple.2), index=0
  %six = s32[] constant(6)
  ROOT %lt = pred[] compare(%i.2, %six), direction=LT
}

%command_buffer (p: bf16[8,16,16,64], k: bf16[128,3,3,64], b: bf16[128]) -> bf16[8,16,16,128] {
  %p = bf16[8,16,16,64]{3,2,1,0} parameter(0)
  %k = bf16[128,3,3,64]{3,2,1,0} parameter(1)
  %b = bf16[128]{0} parameter(2)
  %cudnn-conv-bias-activation.3 = (bf16[8,16,16,128]{3,2,1,0}, u8[4096]{0}) custom-call(%p, %k, %b), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBiasActivationForward"
  ROOT %out = bf16[8,16,16,128]{3,2,1,0} get-tuple-element(%cudnn-conv-bias-activation.3), index=0
}

%small (p.1: f32[32,64]) -> f32[32,64] {
  %p.1 = f32[32,64]{1,0} parameter(0)
  ROOT %copy.1 = f32[32,64]{1,0} copy(%p.1)
}

%large (p.2: f32[32,64]) -> f32[32,64] {
  %p.2 = f32[32,64]{1,0} parameter(0)
  %copy.2 = f32[32,64]{1,0} copy(%p.2)
  ROOT %copy.3 = f32[32,64]{1,0} copy(%copy.2)
}

%wrapped (p.3: f32[32,64]) -> f32[64,32] {
  %p.3 = f32[32,64]{1,0} parameter(0)
  ROOT %transpose.1 = f32[64,32]{1,0} transpose(%p.3), dimensions={1,0}
}

ENTRY %main (a: f32[6,32,64], w.1: f32[64,64], x: bf16[8,16,16,64], k.1: bf16[128,3,3,64], b.1: bf16[128], n: s32[]) -> f32[32,64] {
  %a = f32[6,32,64]{2,1,0} parameter(0)
  %w.1 = f32[64,64]{1,0} parameter(1)
  %x = bf16[8,16,16,64]{3,2,1,0} parameter(2)
  %k.1 = bf16[128,3,3,64]{3,2,1,0} parameter(3)
  %b.1 = bf16[128]{0} parameter(4)
  %n = s32[] parameter(5)
  %tuple.10 = (s32[], f32[64,64]{1,0}, f32[6,32,64]{2,1,0}) tuple(%n, %w.1, %a)
  %while = (s32[], f32[64,64]{1,0}, f32[6,32,64]{2,1,0}) while(%tuple.10), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  %stack.1 = f32[6,32,64]{2,1,0} get-tuple-element(%while), index=2
  %conv = bf16[8,16,16,128]{3,2,1,0} call(%x, %k.1, %b.1), to_apply=%command_buffer
  %rows = f32[64,64]{1,0} copy(%w.1)
  %row.1 = f32[32,64]{1,0} slice(%rows), slice={[0:32], [0:64]}
  %two = (f32[32,64]{1,0}, bf16[32,64]{1,0}) fusion(%row.1, %stack.1), kind=kLoop, calls=%fused_two
  %chosen = f32[32,64]{1,0} conditional(%n, %row.1, %row.1), branch_computations={%small, %large}
  %async-start = ((f32[32,64]{1,0}), f32[64,32]{1,0}, u32[]) async-start(%row.1), calls=%wrapped
  %async-done = f32[64,32]{1,0} async-done(%async-start), calls=%wrapped
  %copy-start = (f32[64,64]{1,0}, f32[64,64]{1,0}, u32[]) copy-start(%w.1)
  %copy-done = f32[64,64]{1,0} copy-done(%copy-start)
  %all-gather-start = (f32[32,64]{1,0}, f32[64,64]{1,0}) all-gather-start(%row.1), dimensions={0}
  ROOT %all-gather-done = f32[64,64]{1,0} all-gather-done(%all-gather-start)
}
"""  # noqa: E501
ROW = 4 * 32 * 64
CONVOLUTION = 2 * (8 * 16 * 16 * 128) * 9 * 64


@pytest.fixture(scope="module")
def found() -> dict[str, roofline.Kernel]:
  kernels = roofline.kernels(hlo.parse(TEXT), REACH)
  assert len({kernel.name for kernel in kernels}) == len(kernels)
  return {kernel.name: kernel for kernel in kernels}


def test_what_runs_a_kernel(found):
  """Not what only names or groups; loops, calls and the dearest branch are entered."""
  assert list(found) == [
    *("cut", "gemm_fusion_dot", "kept", "cudnn-conv-bias-activation.3", "rows", "row.1", "two"),
    *("copy.2", "copy.3", "transpose.1", "copy-start", "all-gather-start"),
  ]
  assert {name for name, kernel in found.items() if kernel.runs == 6} == {
    *("cut", "gemm_fusion_dot", "kept")
  }


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("cut", 2 * ROW + 4),  # A sixth of the stack is read, and the index.
    ("kept", 2 * ROW + 4),  # A sixth of the stack is written, none of the rest is touched.
    ("gemm_fusion_dot", 2 * ROW + 4 * 64 * 64),
    ("two", 2 * ROW + ROW + ROW / 2),  # Two results, one of them half as wide.
    ("row.1", 2 * ROW),
    ("copy.2", 2 * ROW),
    ("transpose.1", 2 * ROW),
    ("copy-start", 2 * 4 * 64 * 64),
    ("all-gather-start", ROW + 4 * 64 * 64),
    # Without the scratch memory.
    (
      "cudnn-conv-bias-activation.3",
      2 * (8 * 16 * 16 * (64 + 128) + 128 * 9 * 64 + 128),
    ),
  ],
)
def test_bytes_of_a_kernel(found, name, expected):
  assert found[name].bytes == expected


def test_products_of_a_kernel(found):
  products = {name: kernel.flops for name, kernel in found.items() if kernel.flops}
  assert products == {
    "gemm_fusion_dot": 2 * 32 * 64 * 64,
    "cudnn-conv-bias-activation.3": CONVOLUTION,
  }


def test_where_a_kernel_comes_from(found):
  gemm = found["gemm_fusion_dot"]
  assert gemm.kind == "__triton_gemm" and gemm.op_name == "jit(f)/while/body/dot_general"
  assert found["cudnn-conv-bias-activation.3"].kind == "__cudnn$convBiasActivationForward"
  assert found["cut"].kind == "fusion" and found["cut"].op_name == ""


def test_the_bound_is_the_sum(found):
  """Each kernel takes the longer of its products and its bytes, and a launch."""
  gemm, conv = found["gemm_fusion_dot"], found["cudnn-conv-bias-activation.3"]
  assert gemm.seconds == pytest.approx(gemm.bytes / 1e9 + 1e-6)
  fast = Reach(matmul=1e9, copy=1e12, launch=1e-6)
  for reach in (REACH, fast):
    kernels = roofline.kernels(hlo.parse(TEXT), reach)
    total = roofline.bound(kernels, reach)
    assert total.kernels == 3 * 6 + 9
    assert total.tflop == pytest.approx((6 * gemm.flops + CONVOLUTION) / 1e12)
    assert total.gigabytes == pytest.approx(sum(one.runs * one.bytes for one in kernels) / 1e9)
    assert total.seconds == pytest.approx(sum(one.runs * one.seconds for one in kernels))
    assert sum(total.parts.values()) == pytest.approx(total.seconds)
    assert total.parts["launches"] == pytest.approx(27e-6)
  assert total.parts["products"] == pytest.approx((6 * gemm.flops + conv.flops) / 1e9)


def test_the_largest_kernels(found):
  """By the time of all their runs together."""
  names = [kernel.name for kernel in roofline.largest(found.values(), 2)]
  assert names == ["cudnn-conv-bias-activation.3", "gemm_fusion_dot"]
  assert 6 * found["gemm_fusion_dot"].seconds > found["rows"].seconds


GEMM = """\
ENTRY %main (a: bf16[32,64], b: bf16[48,64]) -> bf16[32,48] {
  %a = bf16[32,64]{1,0} parameter(0)
  %b = bf16[48,64]{1,0} parameter(1)
  %gemm = (bf16[32,48]{1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}}
  ROOT %out = bf16[32,48]{1,0} get-tuple-element(%gemm), index=0
}
"""  # noqa: E501


def test_scratch_memory_of_a_product_is_not_counted():
  (gemm,) = roofline.kernels(hlo.parse(GEMM), REACH)
  assert gemm.bytes == 2 * (32 * 64 + 48 * 64 + 32 * 48)
  assert gemm.flops == 2 * 32 * 48 * 64


LOOP_IN_A_BRANCH = """\
%condition (t: (s32[])) -> pred[] {
  %t = (s32[]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] constant(100)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (t.1: (s32[])) -> (s32[]) {
  %t.1 = (s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %d = f32[2,2]{1,0} broadcast(%i.1), dimensions={}
  %e = f32[2,2]{1,0} dot(%d, %d), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %r = (s32[]) tuple(%i.1)
}

%looped (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  %q = (s32[]) tuple(%p)
  %w = (s32[]) while(%q), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"100"}}
  ROOT %o = s32[] get-tuple-element(%w), index=0
}

%flat (p.1: s32[]) -> s32[] {
  %p.1 = s32[] parameter(0)
  %first = s32[] negate(%p.1)
  %second = s32[] negate(%first)
  ROOT %third = s32[] negate(%second)
}

ENTRY %main (x: s32[]) -> s32[] {
  %x = s32[] parameter(0)
  ROOT %z = s32[] conditional(%x, %x, %x), branch_computations={%looped, %flat}
}
"""  # noqa: E501


def test_a_branch_with_a_loop_is_as_dear_as_all_its_rounds():
  """A hundred rounds of two kernels against three kernels; the counter of FLOPs agrees."""
  kernels = roofline.kernels(hlo.parse(LOOP_IN_A_BRANCH), REACH)
  assert [(one.name, one.runs) for one in kernels] == [("d", 100), ("e", 100)]
  counted = flops.count(LOOP_IN_A_BRANCH).total
  assert counted == sum(one.runs * one.flops for one in kernels) == 100 * 2 * 2 * 2 * 2
