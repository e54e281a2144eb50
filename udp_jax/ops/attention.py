"""Attention as a function that models take as an argument, so that it can be exchanged."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

AttentionFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def dot_product_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Softmax attention (Vaswani et al., arXiv:1706.03762), softmax in float32.

  Args:
    query: (B, Q, heads, D).
    key: (B, K, heads, D), the attended positions (not a random key).
    value: (B, K, heads, D).

  Returns:
    (B, Q, heads, D) in the dtype of `query`.
  """
  logits = jnp.einsum("bqhd,bkhd->bhqk", query * query.shape[-1] ** -0.5, key)
  weights = jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
  return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(query.dtype), value)
