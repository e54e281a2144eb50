"""Attention against a softmax written out in NumPy."""

import itertools
import logging
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as jax_cudnn
from jax.experimental.pallas import tpu as pltpu
from jax.test_util import check_grads

from udp_jax.ops import attention
from udp_jax.ops.attention import by_head_attention, chunked_attention, dot_product_attention


def draw(scale=1.0):
  generator = np.random.default_rng(0)
  query = scale * generator.normal(size=(2, 5, 3, 4))
  key, value = generator.normal(size=(2, 2, 7, 3, 4))
  return query, key, value


def naive(query, key, value):
  """Position by position in float64."""
  out = np.zeros(query.shape)
  for b in range(query.shape[0]):
    for h in range(query.shape[2]):
      for i in range(query.shape[1]):
        logits = key[b, :, h] @ query[b, i, h] / np.sqrt(query.shape[3])
        weights = np.exp(logits - logits.max())
        out[b, i, h] = weights @ value[b, :, h] / weights.sum()
  return out


def test_against_the_definition():
  values = draw()
  got = jax.jit(dot_product_attention)(*(np.float32(v) for v in values))
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, naive(*values), rtol=1e-5, atol=1e-6)


def test_huge_logits_do_not_overflow():
  values = draw(scale=1e4)
  got = jax.jit(dot_product_attention)(*(np.float32(v) for v in values))
  np.testing.assert_allclose(got, naive(*(np.float64(np.float32(v)) for v in values)), atol=1e-2)


def test_bfloat16_keeps_its_type_and_a_softmax_that_sums_to_one():
  query, key, value = draw()
  ones = jnp.ones(value.shape, jnp.bfloat16)
  attend = jax.jit(dot_product_attention)
  cast = [jnp.asarray(v, jnp.bfloat16) for v in (query, key, value)]
  got = attend(*cast)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(jnp.float32), naive(query, key, value), atol=0.05)
  np.testing.assert_allclose(attend(*cast[:2], ones).astype(jnp.float32), 1.0, atol=0.01)


# Flash attention is a kernel for TPUs; `python -m launch.aot` compiles it.
HERE = sorted(set(attention.FUNCTIONS) - {"flash"})


@pytest.mark.parametrize("name", HERE)
def test_every_function_against_the_definition(name):
  values = draw()
  got = jax.jit(attention.FUNCTIONS[name])(*(np.float32(v) for v in values))
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, naive(*values), rtol=1e-5, atol=1e-6)


PARTS = [partial(chunked_attention, chunk_size=size) for size in (2, 3, 5, 8)]
# One query at a time, one filled-up part, several, and all.
PARTS += [partial(by_head_attention, max_weights=size) for size in (1, 14, 21, 100)]
PARTS += [partial(dot_product_attention, wide=wide) for wide in (True, False)]


@pytest.mark.parametrize("function", PARTS)
def test_parts_change_neither_values_nor_gradients(function):
  with jax.enable_x64(True):
    values = draw()
    compiled = jax.jit(function)
    np.testing.assert_allclose(compiled(*values), naive(*values), rtol=1e-12, atol=1e-12)
    check_grads(compiled, values, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
  "function",
  [
    partial(by_head_attention, max_weights=14),
    partial(by_head_attention, max_weights=100),
    partial(dot_product_attention, wide=True),
    partial(dot_product_attention, wide=False),
  ],
)
def test_gradients_in_bfloat16(function):
  values = [jnp.asarray(v, jnp.bfloat16) for v in draw()]
  weights = jnp.asarray(np.random.default_rng(1).normal(size=values[0].shape))

  def gradients(function, values):
    loss = lambda *v: jnp.sum(function(*v).astype(jnp.float32) * weights)
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*values)

  expected = gradients(
    partial(dot_product_attention, wide=False), [v.astype(jnp.float32) for v in values]
  )
  for ours, theirs in zip(gradients(function, values), expected):
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs, atol=0.06)


def test_by_head_does_not_overflow():
  values = [np.float32(v) for v in draw(scale=1e4)]
  loss = lambda *v: jnp.sum(by_head_attention(*v, max_weights=14) ** 2)
  assert all(np.isfinite(g).all() for g in jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*values))


@pytest.mark.parametrize(
  "function",
  [partial(chunked_attention, chunk_size=16), partial(by_head_attention, max_weights=16 * 512)],
)
def test_parts_are_not_kept_for_the_gradient(function):
  shape = jax.ShapeDtypeStruct((1, 512, 1, 4), jnp.float32)

  def temporary(function) -> int:
    gradient = jax.jit(jax.grad(lambda *v: function(*v).sum(), argnums=(0, 1, 2)))
    return gradient.lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

  # The matrix of weights has 512 * 512 numbers; sixteen rows of it at a time need far less.
  assert temporary(function) < temporary(dot_product_attention) / 4


def test_the_default_exists_for_every_backend():
  assert {attention.default(b) for b in ("cpu", "gpu", "tpu", None)} <= set(attention.FUNCTIONS)


@pytest.mark.slow
def test_flash_attention_is_attention():
  # Pallas interprets its TPU kernel here. Over several devices: tests/runtime/test_mesh.py.
  batch = [
    jax.random.normal(key, (2, 256, 2, 40)) for key in jax.random.split(jax.random.key(0), 4)
  ]

  def gradients(function):
    loss = lambda query, key, value, weights: jnp.sum(function(query, key, value) * weights)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*batch)

  with pltpu.force_tpu_interpret_mode():
    found = gradients(attention.flash_attention)
  for ours, theirs in zip(
    jax.tree.leaves(found), jax.tree.leaves(gradients(dot_product_attention))
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


# ---- cuDNN's fused attention, decided without a GPU ----

V100, A100, RTX4090, H100, B200, B300, RTX5090 = (
  attention.Gpu(capability, 91002)
  for capability in ((7, 0), (8, 0), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0))
)
GPUS = (V100, A100, RTX4090, H100, B200, B300, RTX5090)
SIZES = (12, 32, 40, 64, 80, 128, 160, 256, 264, 512)
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def refusal(gpu, *, dtype=jnp.bfloat16, head_size=64, key_length=77, gradient=True):
  return attention.cudnn_refusal(
    gpu, dtype=dtype, head_size=head_size, key_length=key_length, gradient=gradient
  )


def test_what_cudnn_takes():
  taken = {gpu: {size for size in SIZES if not refusal(gpu, head_size=size)} for gpu in GPUS}
  to_128 = {32, 40, 64, 80, 128}
  assert taken == {
    V100: set(),
    A100: to_128,
    RTX4090: to_128,
    H100: to_128 | {160, 256},
    B200: to_128,
    B300: set(),
    RTX5090: to_128,
  }
  newer = [gpu._replace(cudnn_version=92300) for gpu in (B200, B300, RTX5090)]
  for gpu, sizes in zip(newer, (to_128 | {256}, to_128 | {256}, to_128), strict=True):
    assert {size for size in SIZES if not refusal(gpu, head_size=size)} == sizes
  # Only the gradient of large heads is missing.
  assert not refusal(B200, head_size=160, gradient=False)


@pytest.mark.parametrize(
  "gpu, options, reason",
  [
    (None, {}, "not an NVIDIA GPU"),
    (A100._replace(cudnn_version=None), {}, "cuDNN is not installed"),
    (V100, {}, "compute capability 7.0; at least 8.0"),
    (B300, {}, "cuDNN 91002; at least 91100 on compute capability 10.3"),
    (H100, {"dtype": jnp.float32}, "float32; only bfloat16 and float16"),
    (H100, {"head_size": 12}, "heads of 12 channels; only multiples of 8"),
    (A100, {"head_size": 160}, "heads of 160 channels; at most 128 on compute capability 8.0"),
    (H100, {"head_size": 512}, "heads of 512 channels; at most 256 on compute capability 9.0"),
    (B200, {"head_size": 256}, "heads of 256 channels; at most 128 on compute capability 10.0"),
    (H100, {"key_length": 1}, "the gradient of attention to a single position"),
  ],
)
def test_a_refusal_says_why(gpu, options, reason):
  assert refusal(gpu, **options) == reason


@pytest.mark.parametrize("length", [1, 2, 7, 64, 77, 1024, 4095, 4096])
def test_without_a_bias_cudnn_takes_any_length(length):
  assert not refusal(A100, key_length=length, gradient=length > 1)


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: str(gpu.capability))
@pytest.mark.parametrize("cudnn_version", [90800, 91002, 92300])
def test_nothing_that_jax_refuses_is_let_pass(gpu, cudnn_version, monkeypatch):
  """Against the installed JAX's own checks, so that a new release's conditions are not missed."""
  gpu = gpu._replace(cudnn_version=cudnn_version)
  parse = lambda capability: tuple(int(n) for n in capability.split("."))
  monkeypatch.setattr(
    jax_cudnn, "check_compute_capability", lambda least: gpu.capability >= parse(least)
  )
  monkeypatch.setattr(
    jax_cudnn, "is_cuda_compute_capability_equal", lambda one: gpu.capability == parse(one)
  )
  layout = jax_cudnn.AttentionLayout.BTNH
  taken = 0
  # Odd lengths are filled up. In place of a bias JAX passes an array of no numbers.
  cases = itertools.product(SIZES, (2, 8, 64, 78), DTYPES, (False, True))
  for size, length, dtype, gradient in cases:
    query = jax.ShapeDtypeStruct((2, 64, 3, size), dtype)
    key = jax.ShapeDtypeStruct((2, length, 3, size), dtype)
    if not refusal(gpu, dtype=dtype, head_size=size, key_length=length, gradient=gradient):
      jax_cudnn.check_layout(query, key, key, *[None] * 7, layout)
      jax_cudnn.check_is_flash_attention(
        query, key, key, layout.value, cudnn_version, True, gradient
      )
      taken += 1
  old = gpu.capability == (10, 3) and cudnn_version < 91100
  assert (taken == 0) == (gpu.capability < (8, 0) or old)


# Heads of the models, at their positions: CIFAR's, Stable Diffusion's four levels, each to itself
# and to 77 tokens, its VAE's, and SDXL's. c: cudnn, w: whole, p: parts. The GPUs are those above, a
# B200 with cuDNN 9.23, and none; float32 is the same on all of them.
CHOICES = """
size  queries  keys   V100 A100 4090 H100 B200 B300 5090 9.23 none float32
256       256   256   w    w    w    c    w    w    w    c    w    w
256        16    16   w    w    w    c    w    w    w    c    w    w
 40      4096  4096   p    c    c    c    c    p    c    c    p    p
 40      4096    77   w    c    c    c    c    w    c    c    w    w
 80      1024  1024   p    c    c    c    c    p    c    c    p    p
 80      1024    77   w    c    c    c    c    w    c    c    w    w
160       256   256   w    w    w    c    w    w    w    w    w    w
160       256    77   w    w    w    c    w    w    w    w    w    w
160        64    64   w    w    w    c    w    w    w    w    w    w
160        64    77   w    w    w    c    w    w    w    w    w    w
512      4096  4096   p    p    p    p    p    p    p    p    p    p
 64      4096  4096   p    c    c    c    c    p    c    c    p    p
 64      1024    77   w    c    c    c    c    w    c    c    w    w
 12      1023  1024   w    w    w    w    w    w    w    w    w    w
 64         8     1   w    w    w    w    w    w    w    w    w    w
"""


@pytest.mark.parametrize("row", CHOICES.splitlines()[2:], ids=lambda row: row[:20])
def test_the_form_by_gpu_sizes_and_dtype(row):
  size, queries, keys, *letters = row.split()
  sizes = {"head_size": int(size), "query_length": int(queries), "key_length": int(keys)}
  gpus = (*GPUS, B200._replace(cudnn_version=92300), None)

  def chosen(gpu, dtype):
    return attention.choose(gpu, dtype=dtype, **sizes)[0]

  for dtype in (jnp.bfloat16, jnp.float16):
    assert [chosen(gpu, dtype) for gpu in gpus] == letters[:-1]
  assert {chosen(gpu, jnp.float32) for gpu in gpus} == {letters[-1]}


@pytest.fixture
def machine(monkeypatch):
  """`machine(gpu, works)` pretends: what is asked of cuDNN and of our own form, by head size."""
  asked = []
  compute = attention.dot_product_attention

  def fused(query, key, value, *, implementation, key_value_seq_lengths=None):
    asked.append((implementation, query.shape[-1]))
    return compute(query, key, value)

  def own(query, key, value, *, wide):
    asked.append(("own", query.shape[-1]))
    return compute(query, key, value, wide=wide)

  def pretend(gpu, works=lambda *_: True):
    monkeypatch.setattr(attention, "local_gpu", lambda: gpu)
    monkeypatch.setattr(attention, "_cudnn_works", works)
    monkeypatch.setattr(attention, "dot_product_attention", own)
    monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
    return asked

  return pretend


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gpu", [None, V100, A100, H100, B200])
def test_the_library_s_form_by_gpu_and_dtype(gpu, dtype, machine):
  asked = machine(gpu)
  for size in (32, 160, 256, 12):
    query, key = (
      jax.ShapeDtypeStruct((1, 5, 2, size), dtype),
      jax.ShapeDtypeStruct((1, 7, 2, size), dtype),
    )
    gradient = jax.grad(lambda *v: attention.library_attention(*v).astype(jnp.float32).sum())
    jax.eval_shape(gradient, query, key, key)
  expected = [
    () if refusal(gpu, dtype=dtype, head_size=size) else "cudnn" for size in (32, 160, 256, 12)
  ]
  assert [name for name, _ in asked] == [name or "own" for name in expected]


def test_what_fails_where_it_is_tried_is_not_used(machine):
  """Each kind on its own: to itself, to another sequence, and to an odd number of keys."""
  tried = []

  def works(dtype, head_size, keys):
    tried.append(keys)
    return keys == 64

  asked = machine(H100, works)
  four, six, seven = (jnp.ones((1, length, 2, 8), jnp.bfloat16) for length in (4, 6, 7))
  for query, key in ((four, seven), (seven, seven), (four, six), (six, six)):
    attention.library_attention(query, key, key)
  assert tried == [77, 77, 78, 64]
  assert asked == [("own", 8)] * 3 + [("cudnn", 8)]


def test_cudnn_is_tried_once_and_its_failure_is_said(monkeypatch, caplog):
  """There is no cuDNN here, so that the attempt on a pretended A100 fails, within a trace."""
  monkeypatch.setattr(attention, "local_gpu", lambda: A100)
  attention._cudnn_works.cache_clear()
  query, key, value = (jnp.asarray(v, jnp.bfloat16) for v in draw_for_cudnn(8))
  with caplog.at_level(logging.WARNING):
    for _ in range(2):
      loss = lambda *v: attention.library_attention(*v).astype(jnp.float32).sum()
      jax.jit(jax.grad(loss))(query, key, value)
    jax.eval_shape(loss, query[:, :3], key[:, :8], value[:, :8])
  attention._cudnn_works.cache_clear()
  warning = "cuDNN's attention fails for bfloat16 heads of 8 channels and {} keys"
  assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
    warning.format(keys) for keys in (77, 78)
  ]


def draw_for_cudnn(head_size, length=9):
  generator = np.random.default_rng(3)
  return generator.normal(size=(3, 1, length, 2, head_size))


@pytest.fixture
def fused(monkeypatch):
  """`fused(function)` stands for cuDNN's attention: the threads that call it, and its queries."""
  calls = []
  masked = partial(jax.nn.dot_product_attention, implementation="xla")

  def replace(function):
    def watched(query, key, value, *, implementation, key_value_seq_lengths=None):
      assert implementation == "cudnn" and not (query.shape[1] % 2 or key.shape[1] % 2)
      calls.append((threading.current_thread(), query.shape[1], key.shape[1]))
      if key_value_seq_lengths is not None:
        # JAX's own form stands for the kernel that masks keys.
        return masked(query, key, value, key_value_seq_lengths=key_value_seq_lengths)
      return function(query, key, value)

    monkeypatch.setattr(jax.nn, "dot_product_attention", watched)
    attention._cudnn_works.cache_clear()
    return calls

  yield replace
  attention._cudnn_works.cache_clear()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_attempt_says_yes_where_it_works(fused, dtype):
  calls = fused(attention.dot_product_attention)
  for _ in range(2):
    assert all(attention._cudnn_works(jnp.dtype(dtype), 40, keys) for keys in (64, 78))
  assert [lengths for _, *lengths in calls] == [[64, 64], [64, 78]]
  assert threading.main_thread() not in {thread for thread, *_ in calls}


@pytest.mark.parametrize(("queries", "keys"), [(5, 7), (5, 8), (6, 7), (6, 8)])
def test_odd_lengths_are_filled_up(queries, keys, fused):
  """And masked: values and gradients are those of the lengths that were given."""
  calls = fused(attention.dot_product_attention)
  draw = np.random.default_rng(7).normal
  query, key, value, weights = (
    jnp.asarray(draw(size=(2, length, 3, 8)), jnp.float32)
    for length in (queries, keys, keys, queries)
  )

  def results(attend, *values):
    out, pull = jax.vjp(attend, *values)
    return out, *pull(weights)

  with jax.numpy_dtype_promotion("standard"):  # JAX's own form promotes as it goes.
    found = jax.jit(partial(results, attention.cudnn_attention))(query, key, value)
  expected = jax.jit(partial(results, attention.dot_product_attention))(query, key, value)
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
  assert calls[0][1:] == (queries + queries % 2, keys + keys % 2)


@jax.custom_vjp
def _of_wrong_gradient(query, key, value):
  return attention.dot_product_attention(query, key, value)


def _too_small(pull, gradient):
  return tuple(0.9 * each for each in pull(gradient))


_of_wrong_gradient.defvjp(partial(jax.vjp, attention.dot_product_attention), _too_small)


@pytest.mark.parametrize(
  ("wrong", "error"),
  [
    (_of_wrong_gradient, "0.1"),
    # One output of the 64 * 2 * 2.
    (lambda *v: attention.dot_product_attention(*v).at[0, 0, 0].multiply(2), None),
    # Three positions of padding that take part in the softmax.
    (lambda *v: 64 / 67 * attention.dot_product_attention(*v), None),
    (lambda query, *v: query * jnp.nan, "nan"),
  ],
  ids=["gradient", "one output", "padding", "nan"],
)
def test_the_attempt_compares_values(wrong, error, fused, caplog):
  fused(wrong)
  assert not attention._cudnn_works(jnp.dtype(jnp.bfloat16), 40, 64)
  (said,) = [record.getMessage() for record in caplog.records]
  assert "(a relative error of " in said
  assert error is None or f"(a relative error of {error})" in said


@pytest.mark.parametrize(
  "dtype, atol", [(jnp.float32, 1e-5), (jnp.bfloat16, 0.03), (jnp.float16, 0.004)]
)
@pytest.mark.parametrize("name", HERE)
def test_every_form_and_its_gradient_against_a_softmax_in_float32(name, dtype, atol):
  values = [jnp.asarray(v, dtype) for v in draw_for_cudnn(40)]
  weights = jnp.asarray(np.random.default_rng(4).normal(size=values[0].shape) / 8, dtype)

  def plain(query, key, value):
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision="highest") / 40**0.5
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), value, precision="highest")

  def found(function, weights, *values):
    out, pull = jax.vjp(function, *values)
    return out, *pull(weights)

  exact = [v.astype(jnp.float32) for v in (weights, *values)]
  expected = jax.jit(partial(found, plain))(*exact)
  got = jax.jit(partial(found, attention.FUNCTIONS[name]))(weights, *values)
  for ours, theirs in zip(got, expected, strict=True):
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs, atol=atol)


@pytest.mark.parametrize(("queries", "keys"), [(1024, 77), (1024, 1024), (1030, 1100)])
def test_the_library_in_bfloat16_against_float64(queries, keys):
  """The forms without cuDNN: whole, one part, and two parts, the second of which is filled up."""
  draw = np.random.default_rng(5).normal
  given = [
    jnp.asarray(draw(size=(1, length, 2, 40)), jnp.bfloat16)
    for length in (queries, keys, keys, queries)
  ]

  def found(function, *values):
    out, pull = jax.vjp(function, *values[:3])
    return out, *pull(values[3])

  def plain(query, key, value):
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(40))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)

  got = jax.jit(partial(found, attention.library_attention))(*given)
  with jax.enable_x64(True):
    exact = jax.jit(partial(found, plain))(*(np.asarray(x, np.float64) for x in given))
    for ours, theirs in zip(got, (np.asarray(x) for x in exact), strict=True):
      assert ours.dtype == jnp.bfloat16 and theirs.dtype == np.float64
      error = np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs)
      assert error < 1e-2


def test_the_fallback_keeps_no_weights_of_a_long_sequence():
  shape = jax.ShapeDtypeStruct((1, 8192, 1, 4), jnp.bfloat16)
  function = jax.grad(
    lambda *v: attention.library_attention(*v).astype(jnp.float32).sum(), (0, 1, 2)
  )
  compiled = jax.jit(function).lower(shape, shape, shape).compile()
  # The matrix of logits alone has 8192 * 8192 numbers of 4 bytes.
  assert compiled.memory_analysis().temp_size_in_bytes < 8192 * 8192 * 4


FORMS = {
  "library": attention.library_attention,
  "wide": partial(dot_product_attention, wide=True),
  "narrow": partial(dot_product_attention, wide=False),
  "chunked": partial(chunked_attention, chunk_size=1),
  "by_head": partial(by_head_attention, max_weights=2),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_logits_are_not_rounded(name, dtype):
  """One by one, as a compiler for CPUs may leave roundings out of a whole program.

  Logits of 1000 and 1000.25 are one number in bfloat16 and in float16.
  """
  rows = jnp.zeros((1, 3, 1, 64), dtype)
  query = rows[:, :2].at[..., :2].set(jnp.array([8 * 1000, 2], dtype))
  key = rows[:, 1:].at[..., 0].set(1).at[0, 1, 0, 1].set(1)
  value = rows[:, 1:].at[0, 1].set(1)
  out, pull = jax.vjp(FORMS[name], query, key, value)
  weight = 1 / (1 + np.exp(-0.25))
  np.testing.assert_allclose(out.astype(jnp.float32), weight, rtol=0.01)
  dquery, dkey, dvalue = (x.astype(jnp.float32) for x in pull(jnp.ones_like(out)))
  np.testing.assert_allclose(dvalue[0, 1], 2 * weight, rtol=0.01)
  # Of the 64 numbers of both values, the second one's alone are 1.
  change = 64 * weight * (1 - weight)
  np.testing.assert_allclose(dquery[0, :, 0, 1], change / 8, rtol=0.03)
  np.testing.assert_allclose(dkey[0, :, 0, 1], 2 * change * 2 / 8 * np.array([-1, 1]), rtol=0.03)


@pytest.mark.parametrize(
  ("platform", "dtype"), [("tpu", "bf16"), ("cuda", "f32"), ("cpu", "f32")], ids=str
)
def test_short_attention_rounds_its_logits_on_tpus_alone(platform, dtype):
  """Half the bytes of the largest array of short attention; the softmax is float32 everywhere."""
  given = jax.ShapeDtypeStruct((1, 6, 2, 4), jnp.bfloat16)
  attend = partial(attention.dot_product_attention, wide=False)
  text = jax.jit(attend).trace(given, given, given).lower(lowering_platforms=(platform,)).as_text()
  logits, _ = (line for line in text.splitlines() if "stablehlo.dot_general" in line)
  assert logits.rstrip().endswith(f"tensor<1x2x6x6x{dtype}>")
  (exponential,) = (line for line in text.splitlines() if "stablehlo.exponential" in line)
  assert exponential.rstrip().endswith("tensor<1x2x6x6xf32>")


def test_logits_alone_and_their_gradient():
  """float32 forward; products of bfloat16 in the gradient, for which keys are not widened."""
  draw = np.random.default_rng(6).normal
  query, key = (jnp.asarray(draw(size=(2, n, 3, 8)), jnp.bfloat16) for n in (5, 7))
  logits, pull = jax.vjp(attention.attention_logits, query, key)
  wide = [np.asarray(x, np.float64) for x in (query, key)]
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, np.einsum("bqhd,bkhd->bhqk", *wide), rtol=1e-5, atol=1e-5)
  cotangent = jnp.asarray(draw(size=logits.shape), jnp.float32)
  exact = np.asarray(cotangent, np.float64)
  expected = (
    np.einsum("bhqk,bkhd->bqhd", exact, wide[1]),
    np.einsum("bhqk,bqhd->bkhd", exact, wide[0]),
  )
  for ours, theirs in zip(pull(cotangent), expected, strict=True):
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs, rtol=0.02, atol=0.05)
  text = jax.jit(pull).lower(cotangent).as_text()
  products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
  assert products and not any("f32" in line.partition("->")[0] for line in products)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("precision", ["highest", "tensorfloat32"])
def test_gradients_have_the_precision_of_the_forward_pass(name, precision):
  """Traced when the context of the forward pass has ended."""

  def loss(*values):
    with jax.default_matmul_precision(precision):
      return FORMS[name](*values).sum()

  shape = jax.ShapeDtypeStruct((1, 4, 1, 8), jnp.float32)
  text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).as_text()
  lines = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
  word = {"highest": "HIGHEST", "tensorfloat32": "HIGH"}[precision]
  # One product forward, of logits, unless they are computed twice; four of the gradient.
  assert len(lines) >= 5
  assert all(f"precision = [{word}, {word}]" in line for line in lines)
