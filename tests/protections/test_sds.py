"""SDS on an autoencoder of averages whose gradients are known."""

from __future__ import annotations

import numpy as np
import pytest

from tests.protections.rounds import DATA, STEP, blocks, build, deltas
from udp_jax.errors import ConfigError
from udp_jax.protections import targets


def test_sds_plus_and_minus_are_opposite(latent_model):
  plus = deltas(build("sds", latent_model, direction="plus"), 1)[1]
  minus = deltas(build("sds", latent_model), 1)[1]
  np.testing.assert_allclose(plus, -minus, atol=1e-7)
  np.testing.assert_allclose(np.abs(plus), STEP, atol=1e-6)
  with pytest.raises(ConfigError, match="sds: unknown direction 'up'; known: minus, plus"):
    build("sds", latent_model, direction="up")


def test_sds_runs_on_pixels_and_its_target_does_not(gaussian_model):
  build("sds", gaussian_model)
  with pytest.raises(ConfigError, match="sds with a target needs a latent diffusion model"):
    build("sds", gaussian_model, target="pattern")


def test_sdst_also_walks_to_the_target(latent_model):
  direction = -np.sign(blocks(DATA.images / 255) - blocks(targets.picture("pattern", (8, 8, 3))))

  def agreement(rate):
    options = {"target": "pattern", "rate": rate}
    return np.mean(np.sign(deltas(build("sds", latent_model, **options), 4)[-1]) == direction)

  assert agreement(0.0) > 0.85 > 0.7 > agreement(1e6)
