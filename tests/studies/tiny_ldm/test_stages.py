"""The optimiser of both stages, step by step."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.studies.tiny_ldm import stages


def test_steps_warm_up_and_fade_out() -> None:
  """Adam under one constant gradient moves by its learning rate, whatever the gradient's size."""
  options = SimpleNamespace(learning_rate=0.01, warmup_steps=4, train_steps=12)
  tx = stages.optimiser(options)
  params = {"a": jnp.zeros(3)}
  state = tx.init(params)
  moved, update = [], jax.jit(tx.update)
  for _ in range(12):
    updates, state = update({"a": jnp.array([30.0, -40.0, 0.0])}, state, params)
    moved.append(np.asarray(updates["a"]))
  steps = np.arange(12)
  fade = 0.5 * (1 + np.cos(np.pi * (steps - 4) / 8))
  rate = 0.01 * np.where(steps < 4, steps / 4, fade)
  np.testing.assert_allclose(moved, rate[:, None] * [[-1.0, 1.0, 0.0]], atol=1e-6)


def test_large_gradients_are_cut() -> None:
  """A gradient of norm 50 weighs no more in Adam's means than one of norm 1."""
  options = SimpleNamespace(learning_rate=0.01, warmup_steps=0, train_steps=100)
  moved = []
  for size in (1.0, 50.0):
    tx = stages.optimiser(options)
    params = jnp.zeros(1)
    state, update = tx.init(params), jax.jit(tx.update)
    for gradient in (size, 0.1, 0.1):
      updates, state = update(jnp.full(1, gradient), state, params)
    moved.append(float(updates[0]))
  np.testing.assert_allclose(*moved, rtol=1e-5)
