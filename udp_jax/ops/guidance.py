"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from udp_jax.ops.chain import Predict


def guided(
  denoise: Callable[[jax.Array, jax.Array, Any], jax.Array],
  cond: Any,
  uncond: Any,
  *,
  scale: float,
) -> Predict:
  """Predicts uncond + scale * (cond - uncond) in one pass over a doubled batch.

  Args:
    denoise: (x_t, timesteps, cond) -> prediction; the network with its parameters bound.
    cond: conditioning of the prompts, pytree of arrays (B, ...).
    uncond: conditioning of the empty or negative prompt, in the same shapes.
    scale: guidance strength; 1 gives the conditional prediction alone, and skips `uncond`.

  Returns:
    The `predict` of a sampler.

  >>> denoise = lambda x_t, timesteps, cond: cond
  >>> predict = guided(denoise, jnp.ones((1, 2)), jnp.zeros((1, 2)), scale=7.5)
  >>> predict(jnp.zeros((1, 2)), jnp.zeros(1, jnp.int32)).tolist()
  [[7.5, 7.5]]
  """
  if scale == 1.0:
    return lambda x_t, timesteps: denoise(x_t, timesteps, cond)
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), uncond, cond)

  def predict(x_t: jax.Array, timesteps: jax.Array) -> jax.Array:
    doubled = jnp.concatenate([x_t, x_t]), jnp.concatenate([timesteps, timesteps])
    without, with_cond = jnp.split(denoise(*doubled, both).astype(jnp.float32), 2)
    return without + scale * (with_cond - without)

  return predict
