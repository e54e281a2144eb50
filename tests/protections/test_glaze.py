"""Glaze, step by step on an autoencoder of averages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.protections.rounds import (
  DATA,
  KEY,
  PARAMS,
  PICTURES,
  RADIUS,
  STEP,
  blocks,
  build,
  deltas,
)
from udp_jax.data import batches
from udp_jax.errors import ConfigError
from udp_jax.models import perceptual
from udp_jax.models.sampling import Sampling
from udp_jax.ops.image import to_float
from udp_jax.ops.keys import example_keys, stream
from udp_jax.protections import targets
from udp_jax.threats.img2img import img2img


def test_glaze_is_adam_within_the_radius(latent_model):
  found = deltas(build("glaze", latent_model, perceptual="", target="pattern"), 8)
  assert np.abs(found[0]).max() <= RADIUS and np.abs(found[0]).std() > 0.2 * RADIUS
  direction = -np.sign(blocks(DATA.images / 255) - blocks(targets.picture("pattern", (8, 8, 3))))
  # The drawn latents (0.05) hardly ever turn a distance of 0.2 and more.
  first = np.clip(found[0] + STEP * direction, -RADIUS, RADIUS)
  assert (np.abs(found[1] - first) < 1e-5).mean() > 0.9
  assert np.abs(found).max() <= RADIUS + 1e-7
  assert np.sign(found[-1] * direction).mean() > 0.8


def test_glaze_towards_a_picture_of_ones_own(latent_model):
  reference = np.clip(PICTURES.astype(int) + np.array([90, -90] * 3)[:, None, None, None], 0, 255)
  data = batches.make_batches(PICTURES, 3, reference=reference.astype(np.uint8))
  protection = build("glaze", latent_model, perceptual="", target="reference")
  assert (
    protection.needs_reference and not build("glaze", latent_model, perceptual="").needs_reference
  )
  mean = batches.unbatch(deltas(protection, 12, data)[-1], 6).mean((1, 2, 3))
  np.testing.assert_array_equal(np.sign(mean), [1, -1] * 3)


STYLE = {"target": "style_transfer", "style_ids": (1, 2), "guidance_scale": 1.0, "perceptual": ""}


def test_glaze_towards_the_picture_in_another_style(latent_model):
  """Pictures as img2img makes them, and then as if they had been given."""
  protection = build("glaze", latent_model, **STYLE, sample_steps=10)
  state = jax.jit(protection.init)(KEY, DATA, PARAMS)
  assert state.style.shape == DATA.images.shape and state.style.dtype == jnp.uint8
  edit = img2img(latent_model, strength=0.4, sampling=Sampling(10, scheduler=targets.SCHEDULER))
  apply = jax.jit(edit.apply)
  cond = np.ones((1, 2), np.int32)
  for number, ids in enumerate(DATA.ids):
    keys = example_keys(stream(KEY, "style"), 0, ids)
    edited = apply(keys, PARAMS, to_float(DATA.images[number]), cond, cond)
    np.testing.assert_allclose(state.style[number], 255 * np.asarray(edited), atol=0.51)
  # Nearer to what the model knows, which is grey.
  clean, styled = (np.abs(p.astype(float) - 127.5).mean() for p in (DATA.images, state.style))
  assert styled < 0.9 * clean and not protection.needs_reference

  given = batches.make_batches(PICTURES, 3, reference=batches.unbatch(state.style, 6))
  reference = build("glaze", latent_model, perceptual="", target="reference")
  np.testing.assert_allclose(deltas(protection, 4)[-1], deltas(reference, 4, given)[-1], atol=1e-6)


def test_a_style_needs_a_prompt(latent_model):
  for lacking in ({"style_ids": None}, {"guidance_scale": 7.5}):
    with pytest.raises(ConfigError, match="'style_transfer' needs style_prompt"):
      build("glaze", latent_model, **STYLE | lacking)
  with pytest.raises(ConfigError, match="strength"):
    build("glaze", latent_model, **STYLE, sample_steps=10, strength=0.0)


def test_glaze_is_held_back_by_what_can_be_seen(latent_model, monkeypatch):
  def distance(params, x, y):
    return jnp.square(x - y).mean((1, 2, 3)) * 255**2

  stub = perceptual.PerceptualDistance("stub", "Stub", {}, distance, 8, "")
  monkeypatch.setattr(perceptual, "load", lambda name, weights=None: stub)
  free = np.abs(deltas(build("glaze", latent_model, perceptual_budget=1e6), 12)[-1])
  held = np.abs(deltas(build("glaze", latent_model, perceptual_budget=4.0), 12)[-1])
  rms = np.sqrt(np.square(255 * held).mean((2, 3, 4)))
  assert rms.max() < 2.7 and np.sqrt(np.square(255 * free).mean((2, 3, 4))).min() > 4
  large = stub._replace(min_size=9)
  # Budgets are in units of LPIPS.
  calibrated = stub._replace(calibration=((1.0, 2.0), (3.0, 6.0)))
  monkeypatch.setattr(perceptual, "load", lambda name, weights=None: calibrated)
  again = np.abs(deltas(build("glaze", latent_model, perceptual_budget=2.0), 12)[-1])
  np.testing.assert_array_equal(again, held)
  with pytest.raises(ConfigError, match="budget of 9 is in units of LPIPS"):
    build("glaze", latent_model, perceptual_budget=9.0)
  monkeypatch.setattr(perceptual, "load", lambda name, weights=None: large)
  with pytest.raises(ConfigError, match="stub needs pictures of 9 pixels and more"):
    build("glaze", latent_model)
