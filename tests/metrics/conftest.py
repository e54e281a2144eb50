"""A model that is told something, of a few operations."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from udp_jax.ops import schedules


@pytest.fixture(scope="session")
def prompted_model(gaussian_model):
  """The best denoiser of pictures around the brightness that `cond` (B, 1) names.

  Its parameters: {"spread": deviation of the pixels}, on [-1, 1].
  """

  def apply(params, x_t, timesteps, cond=None, keys=None):
    del keys
    abar = schedules.gather(gaussian_model.schedule.alphas_cumprod, timesteps, 4)
    away = x_t - jnp.sqrt(abar) * cond[:, :, None, None]
    return jnp.sqrt(1.0 - abar) * away / (abar * params["spread"] ** 2 + 1.0 - abar)

  return gaussian_model._replace(apply=apply)
