"""Methods on a model of Stable Diffusion's layout: types and shapes, nothing is compiled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax import protections
from udp_jax.data import batches

# One for each way to use the parts: training with its text, encoder and decoder, sampler.
OPTIONS = {
  "aspl": {
    "trains": "denoiser_and_text",
    "prior_weight": 1.0,
    "class_ids": [1] * 77,
    "num_class_images": 3,
    "uncond_ids": [0] * 77,
  },
  "glaze": {"perceptual": ""},
  "photoguard_diffusion": {"num_draws": 2, "guidance_scale": 7.5, "uncond_ids": [0] * 77},
}
ADAPTIVE = {"transforms": "jpeg,resize,blur,noise", "consistency_weight": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_a_round_with_text(name, tiny_pipeline):
  model, params = tiny_pipeline.model, tiny_pipeline.params
  cond = tiny_pipeline.tokenizer(["a photograph of a cat"] * 3)
  if name == "glaze":  # It sees no text; embeddings made beforehand must do as well.
    cond = np.zeros((*cond.shape, 16), np.float32)
  pictures = np.zeros((3, *model.image_shape), np.uint8)
  data = batches.make_batches(pictures, 2, cond=cond)
  options = {"radius": 8 / 255, "step_size": 1 / 255} | OPTIONS[name]
  options |= ADAPTIVE if name == "glaze" else {}
  protection = protections.build(name, model, options)
  state = jax.eval_shape(protection.init, jax.random.key(0), data, params)
  after, info = jax.eval_shape(protection.update, jax.random.key(0), state, data, params)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  assert after.delta.shape == (2, 2, *model.image_shape) and after.delta.dtype == jnp.float32
  assert info.loss.shape == (2, 2)
  if name == "aspl":
    assert state.class_images.shape == (2, 2, *model.image_shape)
