"""Attention as a function that models take as an argument, so that it can be exchanged.

  dot_product  the whole matrix of weights at once: the best for short sequences everywhere.
  chunked      a few queries at a time, made again for the gradient: memory in proportion to the
               sequence's length, on any backend.
  library      `jax.nn.dot_product_attention`; on NVIDIA GPUs in 16 bits cuDNN's fused kernel.
  flash        Pallas' kernel for TPUs (Dao et al., arXiv:2205.14135); TPUs only.

All take query (B, Q, heads, D), key and value (B, K, heads, D) (positions, not a random key) and
return (B, Q, heads, D) in the dtype of the query.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# Queries and keys of a tile of the flash kernel: its 128 would read all keys 32 times at 64x64.
_FLASH_BLOCK = 512

# From this many positions on the matrix of attention weights is what costs memory.
LONG_SEQUENCE = 1024

AttentionFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def dot_product_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Softmax attention (Vaswani et al., arXiv:1706.03762), softmax in float32 or wider."""
  logits = jnp.einsum("bqhd,bkhd->bhqk", query * query.shape[-1] ** -0.5, key)
  weights = jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
  return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(query.dtype), value)


def chunked_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, *, chunk_size: int | None = None
) -> jax.Array:
  """`dot_product_attention` of `chunk_size` queries at a time (Rabe & Staats, arXiv:2112.05682).

  None for all of a short sequence at once, and of a long one so many that their weights stay in a
  CPU's cache (32 there, 256 elsewhere).
  """
  b, length, heads, d = query.shape
  if chunk_size is None:
    fitting = 32 if jax.default_backend() == "cpu" else 256
    chunk_size = length if length < LONG_SEQUENCE else fitting
  if length <= chunk_size:
    return dot_product_attention(query, key, value)
  count = -(-length // chunk_size)
  padded = jnp.pad(query, ((0, 0), (0, count * chunk_size - length), (0, 0), (0, 0)))
  chunks = padded.reshape(b, count, chunk_size, heads, d).swapaxes(0, 1)

  @jax.checkpoint
  def one(chunk: jax.Array) -> jax.Array:
    return dot_product_attention(chunk, key, value)

  out = jax.lax.map(one, chunks).swapaxes(0, 1)
  return out.reshape(b, count * chunk_size, heads, d)[:, :length]


def library_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """`jax.nn.dot_product_attention`, which picks cuDNN's kernel where there is one."""
  narrow = query.dtype in (jnp.bfloat16, jnp.float16)
  fused = narrow and jax.default_backend() == "gpu"
  return jax.nn.dot_product_attention(query, key, value, implementation="cudnn" if fused else "xla")


def flash_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Pallas' flash attention for TPUs: no matrix of weights in memory. Fails on other backends.

  Sequences must be multiples of 128. XLA cannot split the kernel over devices: under a mesh in the
  context (`jax.sharding.use_abstract_mesh`) each device takes its own share of the batch.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return _flash(query, key, value)
  batch = PartitionSpec(mesh.axis_names)
  # Nothing is known of replication inside a Pallas kernel, so it is not checked.
  split = jax.shard_map(_flash, in_specs=(batch,) * 3, out_specs=batch, check_vma=False)
  return split(query, key, value)


def _flash(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  from jax.experimental.pallas.ops.tpu import flash_attention as pallas

  q, k = (math.gcd(_FLASH_BLOCK, leaf.shape[1]) for leaf in (query, key))
  names = {"block_q": q, "block_k_major": k, "block_k": k, "block_b": 1}
  names |= {"block_q_major_dkv": q, "block_k_major_dkv": k, "block_k_dkv": k, "block_q_dkv": q}
  names |= {"block_k_major_dq": k, "block_k_dq": k, "block_q_dq": q}
  heads_first = (leaf.swapaxes(1, 2) for leaf in (query, key, value))
  out = pallas.flash_attention(
    *heads_first, sm_scale=query.shape[-1] ** -0.5, block_sizes=pallas.BlockSizes(**names)
  )
  return out.swapaxes(1, 2)


FUNCTIONS: dict[str, AttentionFn] = {
  "dot_product": dot_product_attention,
  "chunked": chunked_attention,
  "library": library_attention,
  "flash": flash_attention,
}


def default(backend: str | None = None, *, long: bool = False) -> str:
  """The name that is used where none is given.

  Args:
    backend: "cpu", "gpu" or "tpu"; None for JAX's default.
    long: of sequences so long that the matrix of weights costs more than its products.

  Returns:
    "library" on GPUs; for long sequences "flash" on TPUs and "chunked" elsewhere; "dot_product"
    for all others.
  """
  backend = backend or jax.default_backend()
  if backend == "gpu":
    return "library"
  return {"tpu": "flash"}.get(backend, "chunked") if long else "dot_product"
