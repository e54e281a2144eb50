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
  cases = itertools.product(SIZES, (1, 7, 64, 77), DTYPES, (False, True))
  for size, length, dtype, gradient in cases:
    query = jax.ShapeDtypeStruct((2, 63, 3, size), dtype)
    key = jax.ShapeDtypeStruct((2, length, 3, size), dtype)
    if not refusal(gpu, dtype=dtype, head_size=size, key_length=length, gradient=gradient):
      jax_cudnn.check_layout(query, key, key, *[None] * 7, layout)
      jax_cudnn.check_is_flash_attention(
        query, key, key, layout.value, cudnn_version, False, gradient
      )
      taken += 1
  old = gpu.capability == (10, 3) and cudnn_version < 91100
  assert (taken == 0) == (gpu.capability < (8, 0) or old)


@pytest.fixture
def machine(monkeypatch):
  """`machine(gpu, works)` pretends: the implementations that are asked of JAX, by head size."""
  asked = []
  compute = jax.nn.dot_product_attention

  def watched(query, key, value, *, implementation):
    asked.append((implementation, query.shape[-1]))
    return compute(query, key, value, implementation="xla")

  def pretend(gpu, works=True):
    monkeypatch.setattr(attention, "local_gpu", lambda: gpu)
    monkeypatch.setattr(attention, "_cudnn_works", lambda dtype, head_size: works)
    monkeypatch.setattr(jax.nn, "dot_product_attention", watched)
    return asked

  return pretend


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gpu", [None, V100, A100, H100, B200])
@pytest.mark.usefixtures("standard_dtypes")
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
  assert [name for name, _ in asked] == [name or "xla" for name in expected]


@pytest.mark.usefixtures("standard_dtypes")
def test_what_fails_where_it_is_tried_is_not_used(machine):
  asked = machine(H100, works=False)
  attention.library_attention(*(jnp.ones((1, 5, 2, 8), jnp.bfloat16),) * 3)
  assert asked == [("xla", 8)]


@pytest.mark.usefixtures("standard_dtypes")
def test_cudnn_is_tried_once_and_its_failure_is_said(monkeypatch, caplog):
  """There is no cuDNN here, so that the attempt on a pretended A100 fails, within a trace."""
  monkeypatch.setattr(attention, "local_gpu", lambda: A100)
  attention._cudnn_works.cache_clear()
  query, key, value = (jnp.asarray(v, jnp.bfloat16) for v in draw_for_cudnn(8))
  with caplog.at_level(logging.WARNING):
    for _ in range(2):
      loss = lambda *v: attention.library_attention(*v).astype(jnp.float32).sum()
      jax.jit(jax.grad(loss))(query, key, value)
  attention._cudnn_works.cache_clear()
  warning = "cuDNN's attention fails for bfloat16 heads of 8 channels ("
  assert [record.getMessage().startswith(warning) for record in caplog.records] == [True]


def draw_for_cudnn(head_size, length=9):
  generator = np.random.default_rng(3)
  return generator.normal(size=(3, 1, length, 2, head_size))


def test_the_attempt_says_yes_where_it_works(monkeypatch):
  threads = []

  def fused(query, key, value, *, implementation):
    assert implementation == "cudnn"
    threads.append(threading.current_thread())
    return query + key + value

  monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
  attention._cudnn_works.cache_clear()
  assert attention._cudnn_works(jnp.dtype(jnp.float16), 8)
  assert attention._cudnn_works(jnp.dtype(jnp.float16), 8)
  attention._cudnn_works.cache_clear()
  assert len(threads) == 1 and threads[0] is not threading.main_thread()


@pytest.mark.parametrize(
  "dtype, atol", [(jnp.float32, 1e-5), (jnp.bfloat16, 0.03), (jnp.float16, 0.004)]
)
@pytest.mark.parametrize("name", HERE)
def test_every_form_and_its_gradient_against_a_softmax_in_float32(name, dtype, atol):
  if (name, dtype) == ("library", jnp.float16) and jax.default_backend() == "cpu":
    pytest.skip("JAX's own form has no gradient in float16 on CPUs")
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
  # jax's own form promotes as it goes.
  with jax.numpy_dtype_promotion("standard" if name == "library" else "strict"):
    got = jax.jit(partial(found, attention.FUNCTIONS[name]))(weights, *values)
  for ours, theirs in zip(got, expected, strict=True):
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs, atol=atol)


@pytest.mark.usefixtures("standard_dtypes")
def test_the_fallback_keeps_no_weights_of_a_long_sequence():
  shape = jax.ShapeDtypeStruct((1, 2048, 1, 4), jnp.bfloat16)
  function = jax.grad(
    lambda *v: attention.library_attention(*v).astype(jnp.float32).sum(), (0, 1, 2)
  )
  compiled = jax.jit(function).lower(shape, shape, shape).compile()
  # The matrix of weights alone has 2048 * 2048 numbers of 4 bytes.
  assert compiled.memory_analysis().temp_size_in_bytes < 2048 * 2048 * 4


FORMS = {
  "library": attention.library_attention,
  "wide": partial(dot_product_attention, wide=True),
  "narrow": partial(dot_product_attention, wide=False),
  "chunked": partial(chunked_attention, chunk_size=1),
  "by_head": partial(by_head_attention, max_weights=2),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.usefixtures("standard_dtypes")
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
