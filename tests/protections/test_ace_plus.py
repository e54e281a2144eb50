"""ACE+: ACE with the latents' own distance."""

from __future__ import annotations

import numpy as np

from tests.protections.rounds import DATA, STEP, blocks, build, deltas
from udp_jax.protections import targets

FEW = {"train_steps": 2, "perturb_steps": 3}


def test_ace_plus_walks_to_the_latents_of_the_target(latent_model):
  """With the published weight the latents decide: a sign step towards the target's averages."""
  found = deltas(build("ace_plus", latent_model, **FEW), 1)
  away = blocks(DATA.images / 255) - blocks(targets.picture("pattern", (8, 8, 3)))
  far = np.abs(away) > 0.1
  assert far.mean() > 0.4  # Averages of the pattern are often grey.
  np.testing.assert_allclose(found[1][far], (-3 * STEP * np.sign(away))[far], atol=1e-6)


def test_without_the_weight_it_is_ace(latent_model):
  plus = deltas(build("ace_plus", latent_model, latent_weight=0.0, **FEW), 2)
  np.testing.assert_array_equal(plus, deltas(build("ace", latent_model, **FEW), 2))
