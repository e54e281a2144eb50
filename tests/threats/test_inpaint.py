"""Inpainting: what is masked is made anew, and the rest is the picture, exactly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.errors import ConfigError
from udp_jax.threats import inpaint
from udp_jax.threats.base import build_edit

OPTIONS = {"sample_steps": 4, "guidance_scale": 1.0}
SURE = {"mean": jnp.full((8, 8, 3), 0.4), "log_spread": jnp.full((3,), -12.0)}


def test_the_region_is_the_model_s_and_the_rest_is_kept(gaussian_model, pictures) -> None:
  images = (pictures[:2] / 255).astype(np.float32)
  masks = np.zeros((2, 8, 8, 1), np.float32)
  masks[0, 2:5, 3:6] = 1.0
  masks[1, :, :4] = 0.5
  edit = build_edit("inpaint", gaussian_model, OPTIONS)
  assert edit.needs_masks
  keys = jax.random.split(jax.random.key(0), 2)
  found = np.asarray(edit.apply(keys, SURE, images, masks=masks))
  # (mean + 1) / 2 inside; half of each where a mask is half, which is not taken for masked.
  np.testing.assert_allclose(found[0, 2:5, 3:6], 0.7, atol=2e-3)
  np.testing.assert_array_equal(found[0][masks[0, ..., 0] == 0], images[0][masks[0, ..., 0] == 0])
  np.testing.assert_array_equal(found[1, :, 4:], images[1, :, 4:])


def test_an_edit_without_a_mask_is_refused(gaussian_model, pictures) -> None:
  edit = build_edit("inpaint", gaussian_model, OPTIONS)
  keys = jax.random.split(jax.random.key(0), 1)
  with pytest.raises(ConfigError, match="inpainting needs masks"):
    edit.apply(keys, SURE, pictures[:1] / np.float32(255))


def test_a_cell_is_made_anew_if_any_of_its_pixels_is() -> None:
  masks = np.zeros((1, 8, 6, 1), np.float32)
  masks[0, 3, 4] = 1.0
  masks[0, 7, 0] = 0.5
  found = inpaint._smaller(jnp.asarray(masks), (1, 4, 3, 4))
  expected = np.zeros((1, 4, 3, 1))
  expected[0, 1, 2] = 1.0
  np.testing.assert_array_equal(found, expected)


def test_nine_channels_get_the_mask_as_pytorch_resizes_it() -> None:
  """torch.nn.functional.interpolate without a mode takes pixel floor(i * scale): 0, 2, 4, ..."""
  masks = np.random.default_rng(0).random((2, 8, 6, 1)).astype(np.float32)
  found = inpaint._nearest(jnp.asarray(masks), (2, 4, 3, 4))
  rows, columns = np.floor(np.arange(4) * 2.0).astype(int), np.floor(np.arange(3) * 2.0).astype(int)
  np.testing.assert_array_equal(found, masks[:, rows][:, :, columns] > 0.5)
  assert not np.array_equal(found, inpaint._smaller(jnp.asarray(masks), (2, 4, 3, 4)))


def test_a_network_of_nine_channels_is_told_the_mask(gaussian_model, pictures) -> None:
  seen = []

  def apply(params, x_t, timesteps, cond=None, keys=None):
    seen.append({name: value.shape for name, value in cond.items() if value is not None})
    return gaussian_model.apply(params, x_t, timesteps)

  model = gaussian_model._replace(apply=apply)
  edit = build_edit("inpaint", model, OPTIONS | {"inpainting_unet": True})
  images, masks = pictures[:2] / np.float32(255), np.ones((2, 8, 8, 1), np.float32)
  keys = jax.random.split(jax.random.key(0), 2)
  found = edit.apply(keys, SURE, images, jnp.zeros((2, 3, 4)), masks=masks)
  assert seen[0] == {"text": (2, 3, 4), "mask": (2, 8, 8, 1), "masked_latents": (2, 8, 8, 3)}
  np.testing.assert_allclose(found, 0.7, atol=2e-3)
