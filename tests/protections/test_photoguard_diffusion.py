"""PhotoGuard's diffusion attack: its two budgets, and what it does to edits."""

from __future__ import annotations

import numpy as np
import pytest

from tests.protections.rounds import DATA, blocks, build, deltas
from udp_jax.errors import ConfigError

IN_A_BALL = {"l2_radius": 0.2, "step_size": 0.08, "num_draws": 2, "radius": 1.0}


def test_photoguard_diffusion_in_an_l2_ball(latent_model):
  found = deltas(build("photoguard_diffusion", latent_model, **IN_A_BALL), 4)
  norms = np.sqrt(np.square(found).sum((3, 4, 5)))
  np.testing.assert_allclose(norms[1], 0.08, rtol=1e-4)
  assert norms.max() <= 0.2 * (1 + 1e-6) and norms[4].min() > 0.15


@pytest.mark.slow
def test_both_budgets_of_photoguard_diffusion_hold(latent_model):
  options = IN_A_BALL | {"radius": 0.005}
  tight = deltas(build("photoguard_diffusion", latent_model, **options), 4)
  assert (
    np.abs(tight).max() <= 0.005 + 1e-7 and np.sqrt(np.square(tight).sum((3, 4, 5))).max() < 0.1
  )


def test_photoguard_diffusion_makes_edits_grey(latent_model):
  # One step from next to no noise: the edit is nearly the picture.
  found = deltas(build("photoguard_diffusion", latent_model, num_draws=1, strength=0.25), 6)
  direction = -np.sign(blocks(DATA.images / 255) - 0.5)
  far = np.abs(blocks(DATA.images / 255) - 0.5) > 0.1
  assert (np.sign(found[-1]) == direction)[far].mean() > 0.9
  with pytest.raises(ConfigError, match="drives pictures, not latents"):
    build("photoguard_diffusion", latent_model, target="zero")
