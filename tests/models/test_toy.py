"""The toy models are what their docstrings say."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.models import toy
from udp_jax.ops import schedules


@pytest.mark.parametrize("model", [toy.on_pixels(), toy.on_latents()])
def test_it_is_the_best_denoiser_of_its_pictures(model):
  """Its loss is that of the conditional mean, and any other parameters' is higher."""
  key_x, key_noise = jax.random.split(jax.random.key(3))
  mean, spread = jnp.full(model.shape, 0.2), 0.4
  x0 = mean[None] + spread * jax.random.normal(key_x, (2000, *model.shape))
  noise, t = jax.random.normal(key_noise, x0.shape), jnp.full(2000, 20)
  x_t = schedules.add_noise(model.schedule, x0, noise, t)

  def loss(mean, spread):
    params = {"mean": jnp.full(model.shape, mean), "log_spread": jnp.full((3,), np.log(spread))}
    return float(jnp.square(noise - model.apply(params, x_t, t)).mean())

  abar = float(model.schedule.alphas_cumprod[20])
  best = abar * spread**2 / (abar * spread**2 + 1 - abar)
  np.testing.assert_allclose(loss(0.2, spread), best, rtol=0.02)
  assert min(loss(0.4, spread), loss(0.2, 0.8), loss(0.2, 0.2)) > loss(0.2, spread)


def test_its_autoencoder_gives_back_means():
  model = toy.on_latents()
  images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
  latents = model.encode(None, images, None)
  assert latents.shape == (2, 4, 4, 3)
  np.testing.assert_allclose(model.decode(None, latents)[:, 0, 0], images[:, :2, :2].mean((1, 2)))
  drawn = model.encode(None, images, jax.random.split(jax.random.key(1)))
  assert 0.02 < float(jnp.std(drawn - latents)) < 0.08
