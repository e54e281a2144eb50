"""Edits by the best denoiser of normally distributed pictures, worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.errors import ConfigError
from udp_jax.models.editing import PartialChain, img2img
from udp_jax.models.sampling import Sampling

ONE_STEP = Sampling(sample_steps=1, guidance_scale=1.0)


def test_an_edit_of_one_step_by_hand(gaussian_model, pictures: np.ndarray) -> None:
  images = (pictures[:3] / 255).astype(np.float32)
  params = {"mean": jnp.full((8, 8, 3), 0.2), "log_spread": jnp.log(jnp.full((3,), 0.3))}
  keys = jax.random.split(jax.random.key(1), 3)
  found = img2img(gaussian_model, ONE_STEP, 1.0)(keys, params, images)

  start = PartialChain(gaussian_model, ONE_STEP, 1.0)
  abar = np.asarray(gaussian_model.schedule.alphas_cumprod, np.float64)[start.timestep]
  noise = np.stack([jax.random.normal(jax.random.split(key, 2)[1], (8, 8, 3)) for key in keys])
  x_t = np.sqrt(abar) * (2 * images - 1) + np.sqrt(1 - abar) * noise
  # E[x0 | x_t], of normally distributed pictures.
  gain = np.sqrt(abar) * 0.3**2 / (abar * 0.3**2 + 1 - abar)
  x0 = np.clip(0.2 + gain * (x_t - np.sqrt(abar) * 0.2), -1, 1)
  np.testing.assert_allclose(found, (x0 + 1) / 2, atol=2e-5)


def test_a_weaker_edit_keeps_more(gaussian_model, pictures: np.ndarray) -> None:
  images = (pictures[:4] / 255).astype(np.float32)
  params = {"mean": jnp.full((8, 8, 3), 0.0), "log_spread": jnp.zeros((3,))}
  keys = jax.random.split(jax.random.key(1), 4)
  away = []
  for strength in (0.2, 0.6, 1.0):
    sampling = Sampling(sample_steps=10, guidance_scale=1.0)
    start = PartialChain(gaussian_model, sampling, strength)
    edited = img2img(gaussian_model, sampling, strength)(keys, params, images)
    away.append((start.timestep, float(np.square(edited - images).mean())))
  assert away == sorted(away) and away[0][1] < 0.3 * away[-1][1]


def test_noised_is_the_schedule_s_mixture(gaussian_model) -> None:
  start = PartialChain(gaussian_model, Sampling(sample_steps=5), 0.6)
  x0, noise = np.random.default_rng(0).normal(size=(2, 2, 8, 8, 3)).astype(np.float32)
  abar = np.asarray(gaussian_model.schedule.alphas_cumprod, np.float64)[start.timestep]
  expected = np.sqrt(abar) * x0 + np.sqrt(1 - abar) * noise
  np.testing.assert_allclose(start.noised(x0, noise), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.5])
def test_a_strength_that_is_none(strength: float, gaussian_model) -> None:
  with pytest.raises(ConfigError, match="strength"):
    PartialChain(gaussian_model, Sampling(sample_steps=5), strength)
