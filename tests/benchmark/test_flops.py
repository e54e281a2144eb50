"""Counted FLOPs of compiled programs against counts by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from udp_jax.benchmark import flops
from udp_jax.ops.conv import conv2d


def _count(function, *arguments) -> flops.Cost:
  return flops.count(jax.jit(function).lower(*arguments).compile().as_text())


def test_products_and_convolutions() -> None:
  a, b = jnp.ones((8, 16)), jnp.ones((16, 32))
  assert _count(lambda a, b: jnp.tanh(a) @ b, a, b).total == 2 * 8 * 16 * 32
  batched = jnp.ones((5, 8, 16)), jnp.ones((5, 16, 4))
  assert _count(lambda a, b: a @ b, *batched).total == 2 * 5 * 8 * 16 * 4
  x, kernel = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 24))
  found = _count(lambda x, k: conv2d(x, k, method="xla"), x, kernel)
  assert found.total == 2 * (2 * 8 * 8 * 24) * 9 * 16
  found = _count(lambda x, k: conv2d(x, k, method="xla", stride=2), x, kernel)
  assert found.total == 2 * (2 * 4 * 4 * 24) * 9 * 16


def test_loops_are_multiplied_by_their_trips() -> None:
  a = jnp.ones((8, 8))

  def nested(a):
    def inner(x, _):
      return jnp.sin(x @ a), None

    def outer(x, _):
      return jax.lax.scan(inner, x, None, length=3)[0] @ a, None

    return jax.lax.scan(outer, a, None, length=5)[0]

  assert _count(nested, a).total == 2 * 8**3 * 5 * (3 + 1)


def test_a_conditional_counts_its_dearest_branch() -> None:
  a = jnp.ones((8, 8))
  found = _count(
    lambda first, a: jax.lax.cond(first, lambda: jnp.sin(a @ a) @ a, lambda: a), True, a
  )
  assert found == flops.Cost(4 * 8**3, ())


def test_a_part_that_may_be_left_out_counts_once_and_is_listed() -> None:
  def part(wanted, function, a):
    return jax.lax.while_loop(
      lambda carry: carry[0],
      lambda carry: (jnp.zeros_like(carry[0]), function(carry[1])),
      (wanted, a),
    )[1]

  def two(first, second, a):
    a = part(first, lambda a: jax.lax.scan(lambda x, _: (x @ x, None), a, None, length=3)[0], a)
    return part(second, lambda a: jnp.cos(a) @ a, a)

  found = _count(two, True, False, jnp.ones((8, 8)))
  assert found.parts == (3 * 2 * 8**3, 2 * 8**3)
  assert found.total == 4 * 2 * 8**3


def test_what_is_no_program_is_an_error() -> None:
  with pytest.raises(ValueError, match="no entry"):
    flops.count("nothing")


# Calls of libraries, as XLA writes them for an H100, cut to what is read.
CONV = """
%x = bf16[8,16,16,64]{{3,2,1,0}} parameter(0)
%k = bf16[128,3,3,64]{{3,2,1,0}} parameter(1)
%dy = bf16[8,{size},{size},128]{{3,2,1,0}} parameter(2)
%b = bf16[128]{{0}} parameter(3)
%call = ({result}{{3,2,1,0}}, u8[0]{{0}}) custom-call({operands}), window={{size=3x3 pad=1_1x1_1 \
stride={stride}x{stride}}}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv{form}"
"""
GEMM = """
%a = bf16[6,32,64]{2,1,0} parameter(0)
%b = bf16[6,48,64]{2,1,0} parameter(1)
%call = (bf16[6,32,48]{2,1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["2"],"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}}
"""  # noqa: E501
ATTENTION = """
%q = bf16[8,256,4,64]{3,2,1,0} parameter(0)
%k = bf16[8,78,4,64]{3,2,1,0} parameter(1)
%call = (bf16[8,4,256,64]{3,1,2,0}, f32[8,4,256]{2,1,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="TARGET", backend_config={"operation_queue_id": "0", "cudnn_fmha_backend_config": {"fmha_scale": 0.125, "intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["8", "4", "256", "78"], "tuple_shapes": []}, "bmm1_dot_dimension_numbers": {"lhs_contracting_dimensions": ["3"]}}}
"""  # noqa: E501


def _called(lines: str) -> float:
  body = "\n".join(f"  {line}" for line in lines.replace("\\\n", "").strip().splitlines())
  return flops.count(f"ENTRY %main (x: f32[]) -> f32[] {{\n{body}\n}}\n").total


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
  ("form", "operands", "result"),
  [
    ("Forward", "%x, %k", "bf16[8,{size},{size},128]"),
    ("BiasActivationForward", "%x, %k, %b", "bf16[8,{size},{size},128]"),
    ("BackwardInput", "%dy, %k", "bf16[8,16,16,64]"),
    ("BackwardFilter", "%x, %dy", "bf16[128,3,3,64]"),
  ],
)
def test_convolutions_of_cudnn(form, operands, result, stride):
  """Each form multiplies as often as the forward convolution."""
  size = 16 // stride
  result = result.format(size=size)
  text = CONV.format(form=form, operands=operands, result=result, size=size, stride=stride)
  assert _called(text) == 2 * (8 * size * size * 128) * 9 * 64


def test_products_of_cublas():
  assert _called(GEMM) == 2 * 6 * 32 * 48 * 64


def test_attention_of_cudnn():
  """Logits and outputs; for the gradient the logits again, and four products."""
  product = 2 * 8 * 4 * 256 * 78 * 64
  assert _called(ATTENTION.replace("TARGET", "__cudnn$fmhaSoftmax")) == 2 * product
  assert _called(ATTENTION.replace("TARGET", "__cudnn$fmhaSoftmaxBackward")) == 5 * product


def test_other_calls_count_nothing():
  assert _called(ATTENTION.replace("TARGET", "__gpu$xla.gpu.triton")) == 0


def test_calls_of_computations_are_entered():
  text = """\
%inner (a: f32[8,16], b: f32[16,32]) -> f32[8,32] {
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[16,32]{1,0} parameter(1)
  ROOT %d = f32[8,32]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (a.1: f32[8,16], b.1: f32[16,32]) -> f32[8,32] {
  %a.1 = f32[8,16]{1,0} parameter(0)
  %b.1 = f32[16,32]{1,0} parameter(1)
  %start = ((f32[8,16]{1,0}, f32[16,32]{1,0}), f32[8,32]{1,0}) async-start(%a.1, %b.1), calls=%inner
  %done = f32[8,32]{1,0} async-done(%start), calls=%inner
  ROOT %c = f32[8,32]{1,0} call(%a.1, %b.1), to_apply=%inner
}
"""
  assert flops.count(text).total == 2 * (2 * 8 * 16 * 32)
