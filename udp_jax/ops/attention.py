"""Attention functions that models take as an argument, so that they can be exchanged.

  dot_product  computes the whole matrix of weights at once; best for short sequences everywhere.
  chunked      takes a few queries at a time and recomputes them for the gradient; memory grows
               linearly with the sequence, on any backend.
  by_head      takes one head of one picture at a time, in parts that fit a cache, with its own
               gradient; for CPUs.
  library      cuDNN's fused kernel by `jax.nn.dot_product_attention` where it takes the sizes and
               works, else `dot_product`, in parts if long; for GPUs (`choose`).
  flash        Pallas' kernel for TPUs (Dao et al., arXiv:2205.14135); TPUs only.

All take query (B, Q, heads, D), key and value (B, K, heads, D) (positions, not a random key) and
return (B, Q, heads, D) in the dtype of the query.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from udp_jax.ops.linear import asked_precision

# Queries and keys per tile of the flash kernel; its default, 128, reads all keys 32 times at 64x64.
_FLASH_BLOCK = 512

# From this many positions on, the matrix of attention weights dominates memory.
LONG_SEQUENCE = 1024

# Norm of cuDNN's error, relative to the norm of the result: bfloat16 rounds by up to 0.004.
_LARGEST_ERROR = 0.02

_log = logging.getLogger(__name__)

AttentionFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def dot_product_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, *, wide: bool | None = None
) -> jax.Array:
  """Softmax attention (Vaswani et al., arXiv:1706.03762), its softmax in at least float32.

  Logits are float32 whatever the dtype, but on TPUs, where they leave the matrix unit in the dtype
  of the query unless `wide`. `wide` selects whether the other products, also in the gradient,
  return float32 too and are rounded afterwards; None decides by backend, as in `ops.linear`.

  >>> one, two = jnp.zeros((1, 1, 1, 2)), jnp.zeros((1, 2, 1, 2))
  >>> dot_product_attention(one, two, two.at[:, 1].set(4.0)).tolist()  # Equal weights: the mean.
  [[[[2.0, 2.0]]]]
  """
  if wide is None:
    wide = jax.default_backend() == "cpu"
  return _whole(wide, asked_precision(), query, key, value)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _whole(
  wide: bool, precision: str | None, query: jax.Array, key: jax.Array, value: jax.Array
) -> jax.Array:
  return _whole_forward(wide, precision, query, key, value)[0]


def _whole_forward(
  wide: bool, precision: str | None, query: jax.Array, key: jax.Array, value: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  scaled = query * query.shape[-1] ** -0.5
  logits = (_logits if wide else _logits_of_target)(precision, scaled, key)
  # Keep only narrow weights for the gradient; autodiff would keep those of the softmax too.
  weights = jax.nn.softmax(logits).astype(query.dtype)
  out = _einsum("bhqk,bkhd->bqhd", weights, value, precision=precision, wide=wide)
  return out.astype(query.dtype), (query, key, value, weights)


def _whole_backward(
  wide: bool, precision: str | None, residuals: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, ...]:
  query, key, value, weights = residuals
  product = partial(_einsum, precision=precision, wide=wide)
  scale = query.shape[-1] ** -0.5
  change = _widened(product("bqhd,bkhd->bhqk", gradient, value))
  wide_weights = _widened(weights)
  change = wide_weights * (change - jnp.sum(wide_weights * change, axis=-1, keepdims=True))
  # Products of float32 with bfloat16 would widen the keys and queries first.
  change = change.astype(query.dtype)
  found = (
    product("bhqk,bkhd->bqhd", change, key) * scale,
    product("bhqk,bqhd->bkhd", change, query * scale),
    product("bhqk,bqhd->bkhd", weights, gradient),
  )
  return tuple(each.astype(query.dtype) for each in found)


_whole.defvjp(_whole_forward, _whole_backward)


def attention_logits(query: jax.Array, key: jax.Array) -> jax.Array:
  """Returns the products of queries and keys in at least float32, for a softmax of the caller's.

  The gradient's products have the dtype of the query: autodiff would widen the keys first.

  Args:
    query: (B, Q, heads, D), already scaled.
    key: (B, K, heads, D).

  Returns:
    (B, heads, Q, K).

  >>> one = jnp.ones((1, 1, 1, 2), jnp.bfloat16)
  >>> attention_logits(one, one)
  Array([[[[2.]]]], dtype=float32)
  """
  return _logits(asked_precision(), query, key)


def _logits_of_target(precision: str | None, query: jax.Array, key: jax.Array) -> jax.Array:
  """Returns float32 logits, rounded to the dtype of the query on TPUs.

  Their predicted max step on v5e takes 1.2 % longer with float32 logits: 0.3 GB more of memory.
  """
  product = partial(_einsum, "bqhd,bkhd->bhqk", precision=precision)
  return jax.lax.platform_dependent(
    query, key, tpu=lambda q, k: _widened(product(q, k, wide=False)), default=product
  )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logits(precision: str | None, query: jax.Array, key: jax.Array) -> jax.Array:
  return _einsum("bqhd,bkhd->bhqk", query, key, precision=precision)


def _logits_forward(precision: str | None, query: jax.Array, key: jax.Array):
  return _logits(precision, query, key), (query, key)


def _logits_backward(precision: str | None, saved: tuple[jax.Array, ...], gradient: jax.Array):
  product = partial(_einsum, "bqhd,bkhd->bhqk", precision=precision, wide=False)
  _, pull = jax.vjp(product, *saved)
  return pull(gradient.astype(saved[0].dtype))


_logits.defvjp(_logits_forward, _logits_backward)


def chunked_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, *, chunk_size: int | None = None
) -> jax.Array:
  """`dot_product_attention` for `chunk_size` queries at a time (Rabe & Staats, arXiv:2112.05682).

  None means all queries of a short sequence, and 256 of a long one. The program is the same on
  every backend, because `launch.aot` compiles on a CPU for a TPU.

  >>> one, two = jnp.zeros((1, 1, 1, 2)), jnp.zeros((1, 2, 1, 2))
  >>> chunked_attention(one, two, two.at[:, 1].set(4.0), chunk_size=1).tolist()
  [[[[2.0, 2.0]]]]
  """
  attend = partial(dot_product_attention, wide=False)
  length = query.shape[1]
  if chunk_size is None:
    chunk_size = length if length < LONG_SEQUENCE else 256
  if length <= chunk_size:
    return attend(query, key, value)
  return _in_parts(attend, chunk_size, query, key, value)


def _in_parts(
  attend: AttentionFn, size: int, query: jax.Array, key: jax.Array, value: jax.Array
) -> jax.Array:
  """Attends with `size` queries at a time; the gradient computes their weights again."""
  b, length, heads, d = query.shape
  again = jax.checkpoint(attend)
  if length <= size:
    return again(query, key, value)
  parts = _cut(query, size, axis=1).swapaxes(0, 1)
  out = jax.lax.map(lambda part: again(part, key, value), parts).swapaxes(0, 1)
  return out.reshape(b, -1, heads, d)[:, :length]


def by_head_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, *, max_weights: int | None = None
) -> jax.Array:
  """Attention for one head of one picture at a time, as plain products that are fast on CPUs.

  For a long sequence, `max_weights` weights are computed at a time, to fit a CPU's cache, and again
  for the gradient (as in Dao et al., arXiv:2205.14135, appendix B, only the logarithm of each sum
  of weights is kept). None means 2^20, or all weights of a short sequence at once. Under a mesh in
  the context, each device processes its share of the batch.

  >>> one, two = jnp.zeros((1, 1, 1, 2)), jnp.zeros((1, 2, 1, 2))
  >>> by_head_attention(one, two, two.at[:, 1].set(4.0), max_weights=2).round(5).tolist()
  [[[[2.0, 2.0]]]]
  """
  if max_weights is None:
    if query.shape[1] < LONG_SEQUENCE:
      return dot_product_attention(query, key, value)
    max_weights = 2**20
  chunk_size = min(query.shape[1], max(1, max_weights // key.shape[1]))
  attend = partial(_by_head, chunk_size, asked_precision())
  return _per_device(attend, query, key, value)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_head(
  chunk_size: int, precision: str | None, query: jax.Array, key: jax.Array, value: jax.Array
) -> jax.Array:
  return _by_head_forward(chunk_size, precision, query, key, value)[0]


def _by_head_forward(
  chunk_size: int, precision: str | None, query: jax.Array, key: jax.Array, value: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  product = partial(_einsum, "ij,jk->ik", precision=precision)

  def head(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    keys, values = arrays[1:]

    def part(queries: jax.Array) -> tuple[jax.Array, jax.Array]:
      logits = product(queries, keys.T)
      largest = logits.max(axis=1, keepdims=True)
      weights = jnp.exp(logits - largest)
      total = weights.sum(axis=1, keepdims=True)
      out = product(weights.astype(values.dtype), values) / total
      return out.astype(query.dtype), (largest + jnp.log(total))[:, 0]

    return jax.lax.map(part, _cut(arrays[0], chunk_size))

  arrays = (_heads_first(query * query.shape[-1] ** -0.5), _heads_first(key), _heads_first(value))
  out, log_total = jax.lax.map(head, arrays)
  out = _heads_last(out.reshape(*out.shape[:1], -1, out.shape[-1]), query)
  return out, (query, key, value, out, log_total)


def _by_head_backward(
  chunk_size: int,
  precision: str | None,
  residuals: tuple[jax.Array, ...],
  gradient: jax.Array,
) -> tuple[jax.Array, ...]:
  product = partial(_einsum, "ij,jk->ik", precision=precision)
  query, key, value, out, log_total = residuals
  scale = query.shape[-1] ** -0.5
  # The term of the softmax's gradient that all weights of a query have in common.
  common = jnp.sum(gradient.astype(log_total.dtype) * out.astype(log_total.dtype), axis=-1)

  def head(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    keys, values = arrays[1:3]

    def part(
      sums: tuple[jax.Array, jax.Array], chunk: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
      queries, gradients, log_totals, commons = chunk
      weights = jnp.exp(product(queries, keys.T) - log_totals[:, None])
      change = weights * (product(gradients, values.T) - commons[:, None])
      change, weights = change.astype(queries.dtype), weights.astype(queries.dtype)
      # Put positions last: products with few channels last leave most of a register empty.
      sums = (
        sums[0] + product(queries.T, change),
        sums[1] + product(gradients.T, weights),
      )
      return sums, (product(change, keys) * scale).astype(query.dtype)

    queries, gradients, commons = (_cut(arrays[i], chunk_size) for i in (0, 3, 5))
    empty = jnp.zeros(keys.T.shape, log_total.dtype)
    chunks = (queries, gradients, arrays[4], commons)
    sums, query_gradient = jax.lax.scan(part, (empty, empty), chunks)
    return query_gradient, *(each.astype(query.dtype) for each in sums)

  arrays = (_heads_first(query * scale), _heads_first(key), _heads_first(value))
  given = (_heads_first(gradient), log_total, _heads_first(common[..., None])[..., 0])
  parts, *others = jax.lax.map(head, arrays + given)
  # Transpose outside the loop: inside, the compiler would transpose the products instead.
  found = (parts.reshape(parts.shape[0], -1, parts.shape[-1]), *(x.swapaxes(1, 2) for x in others))
  return tuple(_heads_last(each, like) for each, like in zip(found, (query, key, value)))


_by_head.defvjp(_by_head_forward, _by_head_backward)


def _einsum(
  subscripts: str, a: jax.Array, b: jax.Array, *, precision: str | None, wide: bool = True
) -> jax.Array:
  """`jnp.einsum` that returns at least float32 if `wide`, else the dtype of its inputs."""
  dtype = np.promote_types(a.dtype, np.float32) if wide else a.dtype
  return jnp.einsum(subscripts, a, b, precision=precision, preferred_element_type=dtype)


def _widened(x: jax.Array) -> jax.Array:
  return x.astype(np.promote_types(x.dtype, np.float32))


def _cut(x: jax.Array, size: int, axis: int = 0) -> jax.Array:
  """Cuts (..., length, ...) into (..., count, size, ...), padding the last part with zeros."""
  length = x.shape[axis]
  count = -(-length // size)
  widths = [(0, count * size - length if i == axis else 0) for i in range(x.ndim)]
  return jnp.pad(x, widths).reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])


def _heads_first(x: jax.Array) -> jax.Array:
  """(B, positions, heads, D) -> (B * heads, positions, D)."""
  return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _heads_last(x: jax.Array, like: jax.Array) -> jax.Array:
  """(B * heads, positions and padding, D) -> (B, positions, heads, D), the shape of `like`."""
  b, length, heads, _ = like.shape
  return x[:, :length].reshape(b, heads, length, -1).swapaxes(1, 2)


class Gpu(NamedTuple):
  """The GPU and cuDNN version that decide whether the fused attention runs.

  Attributes:
    capability: NVIDIA's compute capability, (8, 0) for an A100.
    cudnn_version: 91002 for cuDNN 9.10.2; None without cuDNN.
  """

  capability: tuple[int, int]
  cudnn_version: int | None


def local_gpu() -> Gpu | None:
  """Returns the least capable NVIDIA GPU of this process; None if the default backend differs.

  >>> gpu = local_gpu()
  >>> gpu is None or gpu.capability > (0, 0)
  True
  """
  if jax.default_backend() != "gpu":
    return None
  devices = jax.local_devices()
  if any("cuda" not in device.client.platform_version for device in devices):
    return None
  least = min(tuple(int(n) for n in device.compute_capability.split(".")) for device in devices)
  return Gpu((least[0], least[1]), _cudnn_version())


def _cudnn_version() -> int | None:
  """Returns the version loaded by JAX's CUDA plugin; JAX looks for plugins in this order."""
  for plugin in ("jax_cuda13_plugin", "jax_cuda12_plugin", "jaxlib.cuda"):
    try:
      versions = importlib.import_module(f"{plugin}._versions")
    except ImportError:
      continue
    try:
      return int(versions.cudnn_get_version())
    except RuntimeError:  # The plugin exists, but cuDNN does not.
      return None
  return None


def cudnn_refusal(
  gpu: Gpu | None,
  *,
  dtype: jnp.dtype | type,
  head_size: int,
  key_length: int,
  gradient: bool = True,
) -> str:
  """Returns why cuDNN's fused attention (no mask, no bias) would not run here; "" if it would.

  The conditions are JAX's own (`check_layout` and `check_is_flash_attention` of
  jax/_src/cudnn/fused_attention_stablehlo.py, the same in 0.10.2 and 0.12.0.1), and those of
  cuDNN's support matrix that JAX does not check. Lengths may be any: JAX differentiates even ones
  only, and `cudnn_attention` fills odd ones up.

  Args:
    gpu: the GPU, from `local_gpu`; None for another backend.
    dtype: the dtype of query, key and value.
    head_size: channels of one head.
    key_length: number of positions of key and value.
    gradient: whether the attention will also be differentiated.

  >>> cudnn_refusal(Gpu((8, 0), 91002), dtype=jnp.bfloat16, head_size=160, key_length=256)
  'heads of 160 channels; at most 128 on compute capability 8.0'
  >>> cudnn_refusal(Gpu((9, 0), 91002), dtype=jnp.bfloat16, head_size=160, key_length=256)
  ''
  """
  if gpu is None:
    return "not an NVIDIA GPU"
  if gpu.cudnn_version is None:
    return "cuDNN is not installed"
  capability = ".".join(map(str, gpu.capability))
  if gpu.capability < (8, 0):  # A condition of cuDNN that JAX does not check.
    return f"compute capability {capability}; at least 8.0"
  if gpu.capability == (10, 3) and gpu.cudnn_version < 91100:
    return f"cuDNN {gpu.cudnn_version}; at least 91100 on compute capability 10.3"
  if jnp.dtype(dtype) not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)):
    return f"{jnp.dtype(dtype).name}; only bfloat16 and float16"
  if head_size % 8:
    return f"heads of {head_size} channels; only multiples of 8"
  largest = 256 if gpu.capability >= (9, 0) else 128
  # cuDNN has gradients of larger heads on Hopper and, from 9.23 on, of 256 channels on Blackwell's
  # data centre GPUs; JAX does not check this.
  if gradient and gpu.capability >= (10, 0):
    whole = gpu.capability < (11, 0) and gpu.cudnn_version >= 92300 and head_size == 256
    largest = 256 if whole else 128
  if head_size > largest:
    return f"heads of {head_size} channels; at most {largest} on compute capability {capability}"
  if gradient and key_length == 1:  # A known issue of cuDNN.
    return "the gradient of attention to a single position"
  return ""


def choose(
  gpu: Gpu | None,
  *,
  dtype: jnp.dtype | type,
  query_length: int,
  key_length: int,
  head_size: int,
) -> Literal["cudnn", "whole", "parts"]:
  """Returns the form that `library_attention` has on a GPU; nothing is asked of this machine.

  form     what runs                                   where
  "cudnn"  cuDNN's fused kernel                        `cudnn_refusal` has no objection
  "whole"  `dot_product_attention`                     else, with fewer than 1,024 x 1,024 weights
  "parts"  the same for 1,024 queries at a time; the   else
           gradient computes the weights again

  cuDNN refuses float32, the VAE's heads of 512 channels everywhere, and heads of more than 128
  channels on compute capabilities below 9.0; from 10.0 on, their gradient (but that of 256
  channels exists on 10.x from cuDNN 9.23 on).

  Args:
    gpu: the GPU, from `local_gpu`; None for another backend.
    dtype: the dtype of query, key and value.
    query_length: number of positions of the query.
    key_length: number of positions of key and value.
    head_size: channels of one head.

  >>> sizes = {"query_length": 4096, "key_length": 4096}
  >>> choose(Gpu((9, 0), 91002), dtype=jnp.bfloat16, head_size=40, **sizes)
  'cudnn'
  >>> choose(Gpu((9, 0), 91002), dtype=jnp.float32, head_size=40, **sizes)
  'parts'
  """
  if not cudnn_refusal(gpu, dtype=dtype, head_size=head_size, key_length=key_length):
    return "cudnn"
  return "whole" if query_length * key_length < LONG_SEQUENCE**2 else "parts"


def library_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """`jax.nn.dot_product_attention` by cuDNN's fused kernel where it runs, else a form of our own.

  `choose` decides by GPU, dtype and sizes. On this machine, what it leaves to cuDNN is tried and
  compared with our own form, once per process, dtype, head size and kind (to itself, to another
  sequence, to an odd number of keys): cuDNN's attention has failed under CUDA 13
  (jax-ml/jax#32430). A failure logs a warning. To avoid cuDNN altogether, choose another function:
  `--config.performance.attention=chunked`. Under a mesh in the context, each device processes its
  share of the batch.

  Args:
    query: (B, Q, heads, D).
    key: (B, K, heads, D).
    value: (B, K, heads, D).

  >>> one, two = jnp.zeros((1, 1, 1, 2)), jnp.zeros((1, 2, 1, 2))
  >>> library_attention(one, two, two.at[:, 1].set(4.0)).tolist()
  [[[[2.0, 2.0]]]]
  """
  query_length, key_length, head_size = query.shape[1], key.shape[1], query.shape[-1]
  form_on = partial(
    choose,
    dtype=query.dtype,
    query_length=query_length,
    key_length=key_length,
    head_size=head_size,
  )
  form = form_on(local_gpu())
  if form == "cudnn":
    # 77 is the length of CLIP's prompts.
    keys = 77 if key_length % 2 else 64 if key_length == query_length else 78
    if not _cudnn_works(jnp.dtype(query.dtype), head_size, keys):
      form = form_on(None)
  if form == "cudnn":
    return _per_device(cudnn_attention, query, key, value)
  attend = partial(dot_product_attention, wide=False)
  if form == "whole":
    return attend(query, key, value)
  return _in_parts(attend, LONG_SEQUENCE, query, key, value)


def cudnn_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Attention by cuDNN's fused kernel, for any lengths; raises where `cudnn_refusal` has a reason.

  JAX has the gradient for even lengths only: an odd one is filled up, and what was added to the
  keys is masked. `library_attention` also decides, tries the kernel first, and splits the batch.

  Args:
    query: (B, Q, heads, D), bfloat16 or float16.
    key: (B, K, heads, D).
    value: (B, K, heads, D).

  >>> attend = cudnn_attention if local_gpu() else dot_product_attention
  >>> query = jax.ShapeDtypeStruct((1, 77, 1, 64), jnp.bfloat16)
  >>> jax.eval_shape(attend, query, query, query).shape
  (1, 77, 1, 64)
  """
  length, keys = query.shape[1], key.shape[1]

  def even(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))

  options: dict[str, Any] = {"implementation": "cudnn"}
  if keys % 2:  # What was added is masked.
    options["key_value_seq_lengths"] = jnp.full(len(key), keys, jnp.int32)
  return jax.nn.dot_product_attention(even(query), even(key), even(value), **options)[:, :length]


@cache
def _cudnn_works(dtype: jnp.dtype, head_size: int, keys: int) -> bool:
  """Returns whether cuDNN's attention and its gradient run here and have the right values.

  Args:
    dtype: the dtype of query, key and value.
    head_size: channels of one head.
    keys: number of keys that 64 queries attend to.
  """

  def largest_error() -> float:
    lengths = (64, keys, keys, 64)
    draw = np.random.default_rng(0).normal
    given = [jnp.asarray(draw(size=(2, length, 2, head_size)), dtype) for length in lengths]

    def results(attend: AttentionFn, *arrays: jax.Array) -> tuple[jax.Array, ...]:
      out, pull = jax.vjp(attend, *arrays[:3])
      return out, *pull(arrays[3])

    found = jax.jit(partial(results, cudnn_attention))(*given)
    with jax.default_matmul_precision("highest"):
      exact = jax.jit(partial(results, dot_product_attention))(*(_widened(x) for x in given))
    errors = []
    for got, expected in zip(found, (np.asarray(x) for x in exact), strict=True):
      difference = np.asarray(got, np.float32) - expected
      errors.append(np.linalg.norm(difference) / np.linalg.norm(expected))
    return float(np.max(errors))  # NaN if one of them is.

  # Use a separate thread: in this one JAX may be in the middle of tracing.
  with ThreadPoolExecutor(1) as pool:
    try:
      error = pool.submit(largest_error).result()
      reason = "" if error <= _LARGEST_ERROR else f"a relative error of {error:.2g}"
    except (RuntimeError, ValueError) as failure:
      reason = (str(failure).splitlines() or [type(failure).__name__])[0]
  if reason:
    _log.warning(
      "cuDNN's attention fails for %s heads of %d channels and %d keys (%s): ours is used instead",
      dtype.name,
      head_size,
      keys,
      reason,
    )
  return not reason


def flash_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Pallas' flash attention for TPUs, without a matrix of weights in memory; fails elsewhere.

  Sequence lengths must be multiples of 128. XLA cannot split the kernel over devices: under a mesh
  in the context (`jax.sharding.use_abstract_mesh`) each device processes its share of the batch.

  >>> query = jax.ShapeDtypeStruct((1, 128, 1, 128), jnp.float32)
  >>> jax.eval_shape(flash_attention, query, query, query).shape
  (1, 128, 1, 128)
  """
  return _per_device(_flash, query, key, value)


def _per_device(function: AttentionFn, *arrays: jax.Array) -> jax.Array:
  """Runs `function` on each device for its share of the batch, if the context has a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or arrays[0].shape[0] % mesh.size:
    return function(*arrays)
  batch = PartitionSpec(mesh.axis_names)
  # JAX cannot tell what is replicated inside a Pallas kernel, so disable the check.
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
  """Returns the name of the attention function to use if none is given.

  Args:
    backend: "cpu", "gpu" or "tpu"; None for JAX's default.
    long: whether the matrix of attention weights costs more than the products.

  Returns:
    "library" on GPUs; for long sequences "flash" on TPUs and "by_head" on CPUs; else
    "dot_product".

  >>> default("gpu"), default("cpu"), default("cpu", long=True)
  ('library', 'dot_product', 'by_head')
  """
  backend = backend or jax.default_backend()
  if backend == "gpu":
    return "library"
  return {"tpu": "flash"}.get(backend, "by_head") if long else "dot_product"
