"""Rounds of methods on an autoencoder of averages, whose gradients are known.

Pictures are mid-tones and budgets small, so that nothing is clipped at black or white.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax import protections
from udp_jax.data import batches

KEY = jax.random.key(6)
PICTURES = np.random.default_rng(0).integers(60, 200, (6, 8, 8, 3)).astype(np.uint8)
PARAMS = {"mean": jnp.zeros((4, 4, 3)), "log_spread": jnp.full((3,), -1.0)}
DATA = batches.make_batches(PICTURES, 3)
STEP, RADIUS = 1 / 255, 6 / 255


def build(name, model, **options):
  return protections.build(name, model, {"radius": RADIUS, "step_size": STEP} | options)


def deltas(protection, rounds, data=DATA):
  """Delta after every round, from the start on: (rounds + 1, num_batches, B, H, W, C)."""
  state, update = jax.jit(protection.init)(KEY, data, PARAMS), jax.jit(protection.update)
  found = [np.asarray(state.delta)]
  for _ in range(rounds):
    state, _ = update(KEY, state, data, PARAMS)
    found.append(np.asarray(state.delta))
  return np.stack(found)


def blocks(pixels):
  """Means of 2x2 pixels, repeated."""
  shape = pixels.shape
  cells = pixels.reshape(*shape[:-3], 4, 2, 4, 2, 3).mean((-4, -2), keepdims=True)
  return np.broadcast_to(cells, (*shape[:-3], 4, 2, 4, 2, 3)).reshape(shape)
