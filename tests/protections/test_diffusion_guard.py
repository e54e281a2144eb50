"""DiffusionGuard: its objective by NumPy, with and without a U-Net that sees the mask."""

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
  STEP,
  blocks,
  build,
  deltas,
)
from udp_jax.data import batches
from udp_jax.data.batches import Batch
from udp_jax.errors import ConfigError
from udp_jax.ops import schedules
from udp_jax.ops.image import quantise_within, to_float
from udp_jax.ops.keys import normal_each, split_each
from udp_jax.protections import diffusion_guard

# Left half kept, right half repainted; of latents 4x4.
HALF = np.broadcast_to(np.arange(4)[None, :, None] >= 2, (4, 4, 1)).astype(np.float32)
KEPT = np.broadcast_to(np.arange(8)[None, :, None] < 4, (8, 8, 1)).astype(np.uint8)
CLEAN = Batch(PICTURES, np.arange(6), np.ones(6))


def told(count=6):
  """What an inpainting U-Net is told; its masked latents are made by the method."""
  masks = np.repeat(HALF[None], count, axis=0)
  nothing = np.zeros((count, 4, 4, 3), np.float32)
  return {"text": np.zeros((count, 1, 1), np.float32), "mask": masks, "masked_latents": nothing}


@pytest.fixture(scope="module")
def inpainting(latent_model):
  """Predicts x_t plus the latents that it sees, where the mask lets it see them."""

  def apply(params, x_t, timesteps, cond=None, keys=None):
    return 0.02 * x_t + (1.0 - cond["mask"]) * cond["masked_latents"]

  return latent_model._replace(apply=apply)


def averages(pictures):
  return 2.0 * pictures.reshape(*pictures.shape[:-3], 4, 2, 4, 2, 3).mean((-4, -2)) - 1.0


def test_the_norm_by_hand_with_a_mask(inpainting):
  model = inpainting._replace(encode=lambda p, x, k: inpainting.encode(p, x, None))
  keys, batch = jax.random.split(jax.random.key(3), 6), CLEAN._replace(cond=told())
  objective = diffusion_guard.first_noise(model, 4)
  found, _ = jax.jit(lambda x, k: objective(PARAMS, x, batch, k))(to_float(PICTURES), keys)
  noise = np.asarray(normal_each(split_each(keys, 3)[1], (4, 4, 3)))
  seen = (1 - HALF) * averages(PICTURES / 255)
  expected = np.sqrt(np.square(0.02 * noise + seen).sum((1, 2, 3)))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_norm_by_hand_without_a_mask_channel(latent_model):
  """The kept half is noised to the first of 4 steps, 37 of 50; the rest is noise."""
  model = latent_model._replace(encode=lambda p, x, k: latent_model.encode(p, x, None))
  keys = jax.random.split(jax.random.key(3), 6)
  batch = CLEAN._replace(mask=np.repeat(KEPT[None], 6, axis=0))
  objective = diffusion_guard.first_noise(model, 4)
  found, _ = jax.jit(lambda x, k: objective(PARAMS, x, batch, k))(to_float(PICTURES), keys)
  noise = np.asarray(normal_each(split_each(keys, 3)[1], (4, 4, 3)))
  abar = float(np.cumprod(1 - np.linspace(1e-4, 0.2, 50))[37])
  noised = np.sqrt(abar) * averages(PICTURES / 255) + np.sqrt(1 - abar) * noise
  x_t = np.where(HALF > 0, noise, noised)
  predicted = np.sqrt(1 - abar) * x_t / (abar * np.exp(-2.0) + 1 - abar)
  np.testing.assert_allclose(found, np.sqrt(np.square(predicted).sum((1, 2, 3))), rtol=1e-4)


def test_the_first_step_is_the_published_one(latent_model, monkeypatch):
  """Of 4 steps of 1000 with Stable Diffusion's offset: 751."""
  seen = []

  def add_noise(schedule, x0, noise, timestep):
    seen.append(timestep)
    return x0

  monkeypatch.setattr(schedules, "add_noise", add_noise)
  objective = diffusion_guard.first_noise(latent_model._replace(schedule=schedules.linear()), 4)
  keys = jax.random.split(jax.random.key(3), 6)
  jax.eval_shape(lambda x: objective(PARAMS, x, CLEAN, keys)[0], to_float(PICTURES))
  assert seen == [751]


def test_steps_raise_the_norm_in_the_kept_region_alone(inpainting):
  """Where the latents decide, a step moves them away from grey, and nothing else moves."""
  data = DATA._replace(cond=jax.tree.map(lambda leaf: leaf.reshape(2, 3, *leaf.shape[1:]), told()))
  method = build("diffusion_guard", inpainting, masks="single")
  found = deltas(method, 3, data)
  assert np.abs(found[:, ..., 4:, :]).max() == 0
  latents = 2 * blocks(DATA.images / 255) - 1
  clear = (np.abs(latents) > 0.25) & (KEPT > 0)
  assert clear.any()
  np.testing.assert_allclose(found[3][clear], 3 * STEP * np.sign(latents[clear]), atol=1e-6)

  @jax.jit
  def norms(images):
    objective = diffusion_guard.first_noise(inpainting, 4)
    return objective(PARAMS, images, CLEAN._replace(cond=told()), jax.random.split(KEY, 6))[0]

  method = build("diffusion_guard", inpainting)
  delta = jnp.asarray(deltas(method, 8, data)[-1].reshape(PICTURES.shape))
  saved = np.asarray(quantise_within(PICTURES, delta, 6))
  assert 0 < np.abs(saved.astype(int) - PICTURES).max() <= 6
  assert (norms(to_float(saved)) > norms(to_float(PICTURES))).all()


def test_masks_hold_and_contours_differ_from_step_to_step(latent_model):
  masks = np.repeat(KEPT[None], 6, axis=0)
  data = batches.make_batches(PICTURES, 3, mask=masks)
  moves = np.abs(np.diff(deltas(build("diffusion_guard", latent_model), 4, data), axis=0)) > 0
  assert not (moves & ~(KEPT > 0)).any()
  moved = moves.any(-1)  # (steps, batches, B, H, W)
  assert moved.any((-1, -2)).all()
  assert (moved[0] != moved[1]).any() and not moved[..., :4].all()
  whole = build("diffusion_guard", latent_model, masks="global")
  assert (np.abs(deltas(whole, 1)[1]) > 0).mean() > 0.99


def test_what_cannot_be_used(latent_model):
  with pytest.raises(ConfigError, match="unknown masks 'dropout'; known: contour_shrink, single"):
    build("diffusion_guard", latent_model, masks="dropout")
  with pytest.raises(ConfigError, match="contour_strength is -1 and contour_smoothness 0.1"):
    build("diffusion_guard", latent_model, contour_strength=-1)
  with pytest.raises(ConfigError, match="num_steps must be in"):
    build("diffusion_guard", latent_model, sample_steps=0)
