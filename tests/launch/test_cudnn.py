"""Attention is lowered for the GPU of a target, as JAX would lower it there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from launch import cudnn
from udp_jax.models import performance, transformer
from udp_jax.ops import attention
from udp_jax.ops.attention import Gpu

H100, A100 = Gpu((9, 0), 91500), Gpu((8, 0), 91500)


def _lowered(*, head_size: int = 64, length: int = 64, dtype=jnp.bfloat16) -> str:
  """The gradient of `library_attention` as text, lowered for NVIDIA's GPUs."""
  given = jax.ShapeDtypeStruct((2, length, 3, head_size), dtype)

  def loss(query: jax.Array) -> jax.Array:
    return attention.library_attention(query, query, query).astype(jnp.float32).sum()

  return jax.jit(jax.grad(loss)).trace(given).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("gpu", [H100, A100, Gpu((7, 0), 91500), Gpu((9, 0), None)], ids=str)
@pytest.mark.parametrize("head_size", [12, 64, 160])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_target_decides(gpu, head_size, dtype):
  """Also JAX's own checks run, for the target: they raise for what the GPU would not take."""
  refused = attention.cudnn_refusal(gpu, dtype=dtype, head_size=head_size, key_length=64)
  with cudnn.pretend(gpu):
    text = _lowered(head_size=head_size, dtype=dtype)
  assert ("__cudnn$fmhaSoftmaxBackward" in text) == (not refused)


@pytest.mark.parametrize("length", [63, 64])
def test_any_length_is_differentiated(length):
  with cudnn.pretend(H100):
    assert "__cudnn$fmhaSoftmaxBackward" in _lowered(length=length)


def test_each_device_attends_to_its_share():
  """Its pictures and their numbers of keys, of which JAX's own partitioning would not know."""
  mesh = jax.sharding.AbstractMesh((4, 2), ("data", "fsdp"))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
  query, key = (
    jax.ShapeDtypeStruct((16, length, 2, 64), jnp.bfloat16, sharding=split) for length in (64, 77)
  )

  def loss(query: jax.Array, key: jax.Array) -> jax.Array:
    with jax.sharding.use_abstract_mesh(mesh):
      return attention.library_attention(query, key, key).astype(jnp.float32).sum()

  with cudnn.pretend(H100):
    text = str(jax.jit(jax.grad(loss, (0, 1))).trace(query, key).jaxpr)
  (line,) = [line for line in text.splitlines() if "= dot_product_attention_bwd" in line]
  assert line.count("bf16[2,64,2,64]") == 1 and line.count("bf16[2,78,2,64]") == 2


@pytest.mark.parametrize("gpu", [H100, A100], ids=str)
def test_a_transformer_s_text_and_short_sequences(gpu):
  """16 x 16 positions of 2 heads: 40 channels on every GPU, 160 on an H100 alone."""
  found = {}
  options = performance.transformer_options({"backend": "gpu", "dtype": "bfloat16"})
  for size in (40, 160):
    model = transformer.Transformer2D(
      heads=2,
      num_groups=4,
      attention=options["attention"],
      method=options["conv_method"],
      text_attention=options["text_attention"],
      fused=options["fused"],
    )
    x = jax.ShapeDtypeStruct((1, 16, 16, 2 * size), jnp.bfloat16)
    text = jax.ShapeDtypeStruct((1, 77, 24), jnp.bfloat16)
    with cudnn.pretend(gpu):
      params = jax.eval_shape(model.init, jax.random.key(0), x, text)
      loss = lambda *given: model.apply(*given).astype(jnp.float32).sum()  # noqa: B023
      lowered = jax.jit(jax.grad(loss)).trace(params, x, text).lower(lowering_platforms=("cuda",))
    lines = [line for line in lowered.as_text().splitlines() if "fmhaSoftmaxBackward" in line]
    # 77 tokens are filled up to an even number, which JAX's gradient needs.
    found[size] = [f"tensor<1x{n}x2x{size}xbf16>" in "".join(lines) for n in (256, 78)]
  assert found == {40: [True, True], 160: [gpu == H100] * 2}


def test_jax_refuses_as_on_the_target():
  given = jnp.ones((1, 64, 1, 160), jnp.bfloat16)
  attend = lambda x: jax.nn.dot_product_attention(x, x, x, implementation="cudnn")
  with cudnn.pretend(A100), pytest.raises(NotImplementedError, match="head dim must be <= 128"):
    jax.eval_shape(attend, given)
  with cudnn.pretend(H100):
    assert jax.eval_shape(attend, given).shape == given.shape


def test_what_was_traced_for_another_gpu_is_not_used():
  """The same jitted function, without a GPU, for a target, and without one again."""
  attend = jax.jit(attention.library_attention)
  given = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)

  def lowered() -> bool:
    text = attend.trace(given, given, given).lower(lowering_platforms=("cuda",)).as_text()
    return "__cudnn$fmhaSoftmax" in text

  found = [lowered()]
  for gpu in (H100, Gpu((7, 0), 91500)):
    with cudnn.pretend(gpu):
      found.append(lowered())
  assert [*found, lowered()] == [False, True, False, False]


def test_nothing_is_left_behind():
  names = ("cuda_versions", "check_compute_capability", "is_cuda_compute_capability_equal")
  before = [getattr(fused_attention_stablehlo, name) for name in names]
  ours = (attention.local_gpu, attention._cudnn_works)
  with pytest.raises(ZeroDivisionError), cudnn.pretend(H100):
    assert attention.local_gpu() == H100
    raise ZeroDivisionError
  assert [getattr(fused_attention_stablehlo, name) for name in names] == before
  assert (attention.local_gpu, attention._cudnn_works) == ours
  with cudnn.pretend(None):
    assert attention.local_gpu is ours[0]


def test_a_jax_that_asks_in_another_way(monkeypatch):
  monkeypatch.delattr(fused_attention_stablehlo, "check_compute_capability")
  with pytest.raises(RuntimeError, match="has no check_compute_capability"):
    with cudnn.pretend(H100):
      pass
