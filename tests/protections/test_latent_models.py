"""Every method on a model of Stable Diffusion's layout: types and shapes, nothing is compiled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax import lookup, protections, training

METHODS = ("advdm", "aspl", "eudp", "fsmg", "glaze", "mist", "photoguard_diffusion")
METHODS += ("photoguard_encoder", "sds", "udp")
OPTIONS = {
  "glaze": {"perceptual": ""},
  "photoguard_diffusion": {"num_draws": 2, "guidance_scale": 7.5, "uncond_ids": [0] * 77},
  "sds": {"target": "pattern"},
}


@pytest.mark.parametrize("kind", ["token ids", "embeddings"])
@pytest.mark.parametrize("name", METHODS)
def test_a_round_with_text(name, kind, tiny_pipeline):
  model, params = tiny_pipeline.model, tiny_pipeline.params
  cond = tiny_pipeline.tokenizer(["a photograph of a cat"] * 3)
  if kind == "embeddings":
    cond = np.zeros((*cond.shape, 16), np.float32)
  pictures = np.zeros((3, *model.image_shape), np.uint8)
  data = training.make_batches(pictures, 2, cond=cond)
  options = {"radius": 8 / 255} | OPTIONS.get(name, {})
  options |= {"step_size": 1 / 255, "transforms": "jpeg,resize,blur,noise"}
  protection = lookup.constructor("udp_jax.protections", name)(
    model, **options, consistency_weight=1.0
  )
  state = jax.eval_shape(protection.init, jax.random.key(0), data, params)
  after, info = jax.eval_shape(protection.update, jax.random.key(0), state, data, params)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  assert after.delta.shape == (2, 2, *model.image_shape) and after.delta.dtype == jnp.float32
  assert info.loss.shape == (2, 2)


def test_all_methods_are_here():
  controls = {"matched_noise", "random_noise", "shuffled_delta"}
  assert set(METHODS) | controls == set(protections.available())
