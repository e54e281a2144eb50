"""SDS on latents, on an autoencoder of averages."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.protections.rounds import DATA, KEY, PARAMS, RADIUS
from udp_jax import protections
from udp_jax.errors import ConfigError

LATENT_STEP = 0.01


def states(model, rounds, **options):
  given = {"radius": RADIUS, "latent_step": LATENT_STEP, "latent_radius": 0.035} | options
  method = protections.build("sds_z", model, given)
  state, update = jax.jit(method.init)(KEY, DATA, PARAMS), jax.jit(method.update)
  found = [state]
  for _ in range(rounds):
    found.append(update(KEY, found[-1], DATA, PARAMS)[0])
  return found


def test_latents_step_in_their_box(latent_model):
  first, second, *_, last = states(latent_model, 12)
  np.testing.assert_allclose(np.abs(second.latents - first.first), LATENT_STEP, atol=1e-6)
  away = np.abs(np.asarray(last.latents - last.first))
  assert away.max() <= 0.035 + 1e-6 and away.max() > 0.03
  np.testing.assert_array_equal(first.first, last.first)


def test_plus_is_the_opposite_of_minus(latent_model):
  _, minus = states(latent_model, 1)
  _, plus = states(latent_model, 1, direction="plus")
  np.testing.assert_allclose(plus.latents - plus.first, minus.first - minus.latents, atol=1e-6)


def test_the_decoded_picture_is_projected_into_the_budget(latent_model):
  *_, last = states(latent_model, 3, radius=0.9)
  decoded = jax.vmap(lambda z: latent_model.decode(PARAMS, z))(last.latents)
  clean = DATA.images / 255
  np.testing.assert_allclose(clean + last.delta, decoded, atol=1e-5)
  *_, near = states(latent_model, 3)
  assert np.abs(near.delta).max() <= RADIUS * (1 + 1e-5)
  np.testing.assert_allclose(near.delta, np.clip(last.delta, -RADIUS, RADIUS), atol=1e-5)


def test_what_the_autoencoder_loses_can_be_kept(latent_model):
  first, *_, last = states(latent_model, 3, radius=0.9, keep_lost=True)
  moved = np.asarray(last.latents - last.first) / 2  # Latents are on [-1, 1], each for 2x2 pixels.
  expected = moved.repeat(2, axis=2).repeat(2, axis=3)
  np.testing.assert_allclose(last.delta, expected, atol=1e-5)
  assert not np.any(first.delta)


def test_mistakes(gaussian_model, latent_model):
  with pytest.raises(ConfigError, match="sds_z needs a latent diffusion model"):
    states(gaussian_model, 0)
  with pytest.raises(ConfigError, match="sds_z: unknown direction 'up'"):
    states(latent_model, 0, direction="up")
  with pytest.raises(ConfigError, match="sds_z has no option 'transforms'"):
    states(latent_model, 0, transforms="jpeg")
