"""Denoising losses whose value is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.metrics import denoising


def test_denoising_loss_depends_on_pictures_and_parameters_alone(gaussian_model, pictures):
  params = gaussian_model.init(jax.random.key(0))
  options = {"draws": 3, "seed": 1}
  loss = denoising.denoising_loss(gaussian_model, **options)
  value = loss(params, pictures)
  assert loss(params, pictures) == value
  # 20 pictures in batches of 6 leave 4 places of padding.
  small = denoising.denoising_loss(gaussian_model, per_device_batch_size=6, **options)
  assert small(params, pictures) == pytest.approx(value, rel=1e-6)
  knowing = params | {"mean": jnp.asarray(pictures.mean(0) / 127.5 - 1)}
  assert loss(knowing, pictures) < value


def test_denoising_loss_has_the_expectation_of_its_closed_form(gaussian_model):
  """Grey pictures and a model that is sure of them: the noise is recovered up to the spread."""
  grey = np.full((64, 8, 8, 3), 128, np.uint8)
  mean = jnp.full((8, 8, 3), 2 * 128 / 255 - 1)
  params = {"mean": mean, "log_spread": jnp.zeros(3)}
  loss = denoising.denoising_loss(gaussian_model, draws=16)(params, grey)
  # noise_pred = sigma^2 noise / (signal^2 + sigma^2) = (1 - abar) noise.
  abar = np.asarray(gaussian_model.schedule.alphas_cumprod, np.float64)
  spread = np.std(abar**2) / np.sqrt(64 * 16)
  assert loss == pytest.approx(np.mean(abar**2), abs=5 * spread)
