"""Attention is lowered for the GPU of a target, as JAX would lower it there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from launch import cudnn
from udp_jax.ops import attention
from udp_jax.ops.attention import Gpu

H100, A100 = Gpu((9, 0), 91500), Gpu((8, 0), 91500)


def _lowered(*, head_size: int = 64, length: int = 64, dtype=jnp.bfloat16, gpu=None) -> str:
  """The gradient of `library_attention` as text, lowered for NVIDIA's GPUs."""
  given = jax.ShapeDtypeStruct((2, length, 3, head_size), dtype)

  def loss(query: jax.Array) -> jax.Array:
    return attention.library_attention(query, query, query, gpu=gpu).astype(jnp.float32).sum()

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


def test_a_gpu_that_is_named_decides_alone():
  with cudnn.pretend(H100):
    texts = [_lowered(head_size=160, gpu=gpu) for gpu in (H100, A100)]
  assert ["__cudnn$fmhaSoftmaxBackward" in text for text in texts] == [True, False]


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


@pytest.mark.parametrize(("queries", "keys"), [(4096, 77), (77, 77), (63, 64), (64, 64)])
def test_jax_lowers_the_gradient_for_any_lengths(queries: int, keys: int):
  """Also for the 77 words of Stable Diffusion's prompts."""
  query, key = (jax.ShapeDtypeStruct((2, n, 8, 40), jnp.bfloat16) for n in (queries, keys))

  def loss(query: jax.Array, key: jax.Array) -> jax.Array:
    return attention.library_attention(query, key, key).astype(jnp.float32).sum()

  with cudnn.pretend(H100):
    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(query, key)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "__cudnn$fmhaSoftmaxBackward" in text
