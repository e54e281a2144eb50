"""PhotoGuard's encoder attack, step by step on an autoencoder of averages."""

from __future__ import annotations

import numpy as np
import pytest

from tests.protections.rounds import DATA, RADIUS, STEP, blocks, build, deltas
from udp_jax.protections import targets


@pytest.mark.parametrize("target", ["zero", "pattern"])
def test_photoguard_encoder_walks_to_the_target(target, latent_model):
  options = {"target": target, "start": "zero", "decay_steps": 0}
  found = deltas(build("photoguard_encoder", latent_model, **options), 3)
  picture = targets.picture(target, (8, 8, 3))
  picture = np.full((8, 8, 3), 0.5) if picture is None else picture
  # Latents of zero are those of grey. Nothing is drawn: every step is the same.
  away = blocks(DATA.images / 255) - blocks(picture)
  # Who is there already turns back.
  far = np.abs(away) > 3 * STEP
  assert far.mean() > 0.8
  for step in range(4):
    walked = -step * STEP * np.sign(away)
    np.testing.assert_allclose(found[step][far], walked[far], atol=1e-6)


def test_photoguard_encoder_steps_shrink_to_a_hundredth(latent_model):
  protection = build("photoguard_encoder", latent_model, start="zero", decay_steps=4)
  lengths = np.abs(np.diff(deltas(protection, 6), axis=0)).max((1, 2, 3, 4, 5)) / STEP
  np.testing.assert_allclose(lengths, [1, 0.7525, 0.505, 0.2575, 0.01, 0.01], rtol=1e-3)
  constant = build("photoguard_encoder", latent_model, start="zero", decay_steps=0)
  lengths = np.abs(np.diff(deltas(constant, 3), axis=0)).max((1, 2, 3, 4, 5)) / STEP
  np.testing.assert_allclose(lengths, 1, rtol=1e-4)


def test_photoguard_encoder_away_goes_on_where_it_started(latent_model):
  found = deltas(build("photoguard_encoder", latent_model, target="away"), 2)
  start = blocks(found[0])
  np.testing.assert_allclose(
    np.diff(found, axis=0)[0],
    np.clip(found[0] + STEP * np.sign(start), -RADIUS, RADIUS) - found[0],
    atol=1e-6,
  )
  assert np.abs(blocks(found[2])).mean() > np.abs(start).mean()
