"""Attention as a function that models take as an argument, so that it can be exchanged.

  dot_product  the whole matrix of weights at once: the best for short sequences everywhere.
  chunked      a few queries at a time, made again for the gradient: memory in proportion to the
               sequence's length, on any backend.
  by_head      a head of a picture at a time, in parts that stay in a cache, with a gradient of its
               own: for CPUs.
  library      `jax.nn.dot_product_attention`; on NVIDIA GPUs in 16 bits cuDNN's fused kernel.
  flash        Pallas' kernel for TPUs (Dao et al., arXiv:2205.14135); TPUs only.

All take query (B, Q, heads, D), key and value (B, K, heads, D) (positions, not a random key) and
return (B, Q, heads, D) in the dtype of the query.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# Queries and keys of a tile of the flash kernel: its 128 would read all keys 32 times at 64x64.
_FLASH_BLOCK = 512

# From this many positions on the matrix of attention weights is what costs memory.
LONG_SEQUENCE = 1024

AttentionFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def dot_product_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, *, wide: bool | None = None
) -> jax.Array:
  """Softmax attention (Vaswani et al., arXiv:1706.03762), softmax in float32 or wider.

  `wide` says whether products return float32, in the gradient too, and are rounded after; None
  decides by backend, as in `ops.linear`.
  """
  if wide is None:
    wide = jax.default_backend() == "cpu"
  if wide:
    return _whole(query, key, value)
  logits = jnp.einsum("bqhd,bkhd->bhqk", query * query.shape[-1] ** -0.5, key)
  weights = jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
  return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(query.dtype), value)


@jax.custom_vjp
def _whole(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  return _whole_forward(query, key, value)[0]


def _whole_forward(query: jax.Array, key: jax.Array, value: jax.Array):
  scaled = query * query.shape[-1] ** -0.5
  weights = jax.nn.softmax(_wide_einsum("bqhd,bkhd->bhqk", scaled, key)).astype(query.dtype)
  out = _wide_einsum("bhqk,bkhd->bqhd", weights, value).astype(query.dtype)
  return out, (query, key, value, weights)


def _whole_backward(residuals: tuple[jax.Array, ...], gradient: jax.Array):
  query, key, value, weights = residuals
  scale = query.shape[-1] ** -0.5
  change = _wide_einsum("bqhd,bkhd->bhqk", gradient, value)
  wide = weights.astype(change.dtype)
  change = wide * (change - jnp.sum(wide * change, axis=-1, keepdims=True))
  change = change.astype(query.dtype)
  found = (
    _wide_einsum("bhqk,bkhd->bqhd", change, key) * scale,
    _wide_einsum("bhqk,bqhd->bkhd", change, query * scale),
    _wide_einsum("bhqk,bqhd->bkhd", weights, gradient),
  )
  return tuple(each.astype(query.dtype) for each in found)


_whole.defvjp(_whole_forward, _whole_backward)


def chunked_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, *, chunk_size: int | None = None
) -> jax.Array:
  """`dot_product_attention` of `chunk_size` queries at a time (Rabe & Staats, arXiv:2112.05682).

  None for all of a short sequence at once, and 256 of a long one. The program is the same on every
  backend, as `launch.aot` compiles for a TPU on a CPU.
  """
  b, length, heads, d = query.shape
  if chunk_size is None:
    chunk_size = length if length < LONG_SEQUENCE else 256
  if length <= chunk_size:
    return dot_product_attention(query, key, value, wide=False)
  chunks = _cut(query, chunk_size, axis=1).swapaxes(0, 1)

  @jax.checkpoint
  def one(chunk: jax.Array) -> jax.Array:
    return dot_product_attention(chunk, key, value, wide=False)

  out = jax.lax.map(one, chunks).swapaxes(0, 1)
  return out.reshape(b, -1, heads, d)[:, :length]


def by_head_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, *, max_weights: int | None = None
) -> jax.Array:
  """Attention by one head of one picture at a time: the products are plain ones, and fast on CPUs.

  A long sequence's weights are made by `max_weights` at a time, a number that fits a CPU's cache,
  and again for the gradient (as in Dao et al., arXiv:2205.14135, appendix B: only the logarithm of
  each sum of weights is kept). None for 2^20, and for all of a short sequence at once. Under a mesh
  in the context each device takes its share of the batch.
  """
  if max_weights is None:
    if query.shape[1] < LONG_SEQUENCE:
      return dot_product_attention(query, key, value)
    max_weights = 2**20
  chunk_size = min(query.shape[1], max(1, max_weights // key.shape[1]))
  return _per_device(partial(_by_head, chunk_size), query, key, value)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_head(chunk_size: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  return _by_head_forward(chunk_size, query, key, value)[0]


def _by_head_forward(
  chunk_size: int, query: jax.Array, key: jax.Array, value: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  def head(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    keys, values = arrays[1:]

    def part(queries: jax.Array) -> tuple[jax.Array, jax.Array]:
      logits = _wide_product(queries, keys.T)
      largest = logits.max(axis=1, keepdims=True)
      weights = jnp.exp(logits - largest)
      total = weights.sum(axis=1, keepdims=True)
      out = _wide_product(weights.astype(values.dtype), values) / total
      return out.astype(query.dtype), (largest + jnp.log(total))[:, 0]

    return jax.lax.map(part, _cut(arrays[0], chunk_size))

  arrays = (_heads_first(query * query.shape[-1] ** -0.5), _heads_first(key), _heads_first(value))
  out, log_total = jax.lax.map(head, arrays)
  out = _heads_last(out.reshape(*out.shape[:1], -1, out.shape[-1]), query)
  return out, (query, key, value, out, log_total)


def _by_head_backward(
  chunk_size: int, residuals: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, ...]:
  query, key, value, out, log_total = residuals
  scale = query.shape[-1] ** -0.5
  # Of the softmax: what all weights of a query have in common.
  common = jnp.sum(gradient.astype(log_total.dtype) * out, axis=-1)

  def head(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    keys, values = arrays[1:3]

    def part(
      sums: tuple[jax.Array, jax.Array], chunk: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
      queries, gradients, log_totals, commons = chunk
      weights = jnp.exp(_wide_product(queries, keys.T) - log_totals[:, None])
      change = weights * (_wide_product(gradients, values.T) - commons[:, None])
      change, weights = change.astype(queries.dtype), weights.astype(queries.dtype)
      # With positions last: products with a few channels last leave most of a register empty.
      sums = (
        sums[0] + _wide_product(queries.T, change),
        sums[1] + _wide_product(gradients.T, weights),
      )
      return sums, (_wide_product(change, keys) * scale).astype(query.dtype)

    queries, gradients, commons = (_cut(arrays[i], chunk_size) for i in (0, 3, 5))
    empty = jnp.zeros(keys.T.shape, log_total.dtype)
    chunks = (queries, gradients, arrays[4], commons)
    sums, query_gradient = jax.lax.scan(part, (empty, empty), chunks)
    return query_gradient, *(each.astype(query.dtype) for each in sums)

  arrays = (_heads_first(query * scale), _heads_first(key), _heads_first(value))
  given = (_heads_first(gradient), log_total, _heads_first(common[..., None])[..., 0])
  parts, *others = jax.lax.map(head, arrays + given)
  # Turned outside of the loop: inside, the compiler would turn the products instead.
  found = (parts.reshape(parts.shape[0], -1, parts.shape[-1]), *(x.swapaxes(1, 2) for x in others))
  return tuple(_heads_last(each, like) for each, like in zip(found, (query, key, value)))


_by_head.defvjp(_by_head_forward, _by_head_backward)


def _wide_einsum(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """Added up in float32 or wider."""
  wide = jnp.promote_types(a.dtype, jnp.float32)
  return jnp.einsum(subscripts, a, b, preferred_element_type=wide)


def _wide_product(a: jax.Array, b: jax.Array) -> jax.Array:
  return _wide_einsum("ij,jk->ik", a, b)


def _cut(x: jax.Array, size: int, axis: int = 0) -> jax.Array:
  """(..., count, size, ...) of (..., length, ...): the last part filled up with zeros."""
  length = x.shape[axis]
  count = -(-length // size)
  widths = [(0, count * size - length if i == axis else 0) for i in range(x.ndim)]
  return jnp.pad(x, widths).reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])


def _heads_first(x: jax.Array) -> jax.Array:
  """(B * heads, positions, D) of (B, positions, heads, D)."""
  return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _heads_last(x: jax.Array, like: jax.Array) -> jax.Array:
  """(B, positions, heads, D) of (B * heads, positions and filling, D)."""
  b, length, heads, _ = like.shape
  return x[:, :length].reshape(b, heads, length, -1).swapaxes(1, 2)


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
  return _per_device(_flash, query, key, value)


def _per_device(function: AttentionFn, *arrays: jax.Array) -> jax.Array:
  """`function` by each device for its share of the batch, if a mesh in the context has some."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or arrays[0].shape[0] % mesh.size:
    return function(*arrays)
  batch = PartitionSpec(mesh.axis_names)
  # Nothing is known of replication inside a Pallas kernel, so it is not checked.
  split = jax.shard_map(function, in_specs=(batch,) * 3, out_specs=batch, check_vma=False)
  return split(*arrays)


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
  "by_head": by_head_attention,
  "library": library_attention,
  "flash": flash_attention,
}


def default(backend: str | None = None, *, long: bool = False) -> str:
  """The name that is used where none is given.

  Args:
    backend: "cpu", "gpu" or "tpu"; None for JAX's default.
    long: of sequences so long that the matrix of weights costs more than its products.

  Returns:
    "library" on GPUs; for long sequences "flash" on TPUs and "by_head" on CPUs; "dot_product" for
    all others.
  """
  backend = backend or jax.default_backend()
  if backend == "gpu":
    return "library"
  return {"tpu": "flash"}.get(backend, "by_head") if long else "dot_product"
