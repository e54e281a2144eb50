"""Attention against a softmax written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.ops.attention import dot_product_attention


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
