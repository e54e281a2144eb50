"""Attention against a softmax written out in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
    np.testing.assert_allclose(function(*values), naive(*values), rtol=1e-12, atol=1e-12)
    check_grads(function, values, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


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


def test_flash_attention_is_attention():
  # Pallas interprets its TPU kernel here. Over several devices: tests/test_parallel.py.
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
