"""The threat img2img is `models.editing.img2img` under a threat's options."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.errors import ConfigError
from udp_jax.models import editing
from udp_jax.models.sampling import Sampling
from udp_jax.threats.base import build_edit


def test_a_model_that_is_sure_replaces_the_picture(gaussian_model, pictures) -> None:
  images = (pictures[:2] / 255).astype(np.float32)
  params = {"mean": jnp.full((8, 8, 3), 0.4), "log_spread": jnp.full((3,), -12.0)}
  keys = jax.random.split(jax.random.key(0), 2)
  options = {"strength": 0.5, "sample_steps": 4, "guidance_scale": 1.0}
  edit = build_edit("img2img", gaussian_model, options)
  assert not edit.needs_masks
  np.testing.assert_allclose(edit.apply(keys, params, images), 0.7, atol=2e-3)
  unsure = params | {"log_spread": jnp.zeros((3,))}
  found = edit.apply(keys, unsure, images)
  sampling = Sampling(sample_steps=4, guidance_scale=1.0)
  same = editing.img2img(gaussian_model, sampling, 0.5)(keys, unsure, images)
  np.testing.assert_array_equal(found, same)
  assert np.abs(found - 0.7).max() > 0.1


def test_what_an_edit_has_no_use_for(gaussian_model) -> None:
  with pytest.raises(ConfigError, match="uncond_ids"):
    build_edit("img2img", gaussian_model, {"uncond_ids": (1, 2)})
  with pytest.raises(ConfigError, match="strength"):
    build_edit("img2img", gaussian_model, {"strength": 0.0})
