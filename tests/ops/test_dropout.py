"""Masks from hashed positions: frequencies, independence, determinism."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.ops.dropout import dropout, hashed_bits

SEEDS = jax.random.bits(jax.random.key(3), (64,), jnp.uint32)


def test_every_bit_is_fair_and_neighbours_are_independent():
  bits = np.asarray(hashed_bits(SEEDS, (16, 16, 32)))
  planes = ((bits[..., None] >> np.arange(32, dtype=np.uint32)) & 1).reshape(-1, 32).astype(float)
  count = len(planes)
  # Five standard deviations of a fair coin.
  assert np.abs(planes.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(count)
  signs = 2 * planes - 1
  correlations = signs.T @ signs / count - np.eye(32)
  assert np.abs(correlations).max() < 6 / np.sqrt(count)
  low = 2.0 * (bits & 1) - 1
  for axis in range(4):
    shifted = np.moveaxis(low, axis, 0)
    assert abs(np.mean(shifted[1:] * shifted[:-1])) < 5 / np.sqrt(count)


def test_neighbouring_seeds_give_unrelated_bits_and_the_same_seed_the_same():
  # A picture's bits do not depend on the pictures beside it.
  first, second = hashed_bits(jnp.arange(2, dtype=jnp.uint32), (4096,))
  assert np.array_equal(first, hashed_bits(jnp.zeros(1, jnp.uint32), (4096,))[0])
  differing = np.bitwise_count(np.asarray(first ^ second)).mean()
  assert abs(differing - 16) < 5 * np.sqrt(8 / 4096)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_rate_and_scale(rate):
  x = jnp.ones((64, 64, 16))
  out = np.asarray(dropout(SEEDS, x, rate))
  assert set(np.unique(out)) <= {np.float32(0), np.float32(1 / (1 - rate))}
  assert abs((out == 0).mean() - rate) <= 5 * np.sqrt(rate * (1 - rate) / x.size)


def test_gradient_passes_where_the_value_passes():
  x = jnp.linspace(1.0, 2.0, 1280).reshape(64, 20)
  out, pullback = jax.vjp(lambda x: dropout(SEEDS, x, 0.3), x)
  (gradient,) = pullback(jnp.ones_like(out))
  np.testing.assert_allclose(gradient, np.where(np.asarray(out) != 0, 1 / 0.7, 0), rtol=1e-6)


def test_dtype_and_bad_rates():
  assert dropout(SEEDS[:8], jnp.ones(8, jnp.bfloat16), 0.5).dtype == jnp.bfloat16
  for rate in (-0.1, 1.0, float("nan")):
    with pytest.raises(ValueError, match="dropout rate"):
      dropout(SEEDS[:8], jnp.ones(8), rate)
