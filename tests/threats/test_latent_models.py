"""Threats on Stable Diffusion XL's layout: types and shapes, little is compiled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from udp_jax import threats
from udp_jax.data import batches
from udp_jax.errors import ConfigError
from udp_jax.models.base import embed_prompts

KEY = jax.random.key(0)
SHORT = {"train_steps": 4, "sample_steps": 2}
OPTIONS = {
  "lora": {"rank": 2},
  "dreambooth": {"rank": 2, "prior_weight": 0.5},
  "full": {},
}


def _cond(pipeline, texts) -> np.ndarray:
  return embed_prompts(pipeline.model, pipeline.params, pipeline.tokenizer(texts))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_training(name, tiny_sdxl, tmp_path):
  model, params = tiny_sdxl.model, tiny_sdxl.params
  cond = _cond(tiny_sdxl, ["a photograph of a cat", "the sea at night"])
  images = np.zeros((2, *model.image_shape), np.uint8)
  if name == "dreambooth":
    data = batches.batches_with_prior(
      images, cond, images, cond, prior_weight=0.5, global_batch_size=2
    )
  else:
    data = batches.make_batches(images, 2, cond=cond)
  threat = threats.build(name, model, SHORT | OPTIONS[name])
  state = jax.eval_shape(threat.init, KEY, params)
  update = lambda key, state, data, params: threat.update(key, state, data, 4, params)
  state, losses = jax.eval_shape(update, KEY, state, data, params)
  assert losses.shape == (4,)
  theta = threat.init(KEY, params).params
  merged = threat.trainable.merge(theta, params)
  # Both text encoders stay as they are.
  for part in ("text_encoder", "text_encoder_2", "vae"):
    assert merged[part] is params[part]
  sample = lambda params, cond: threat.sample(KEY, params, 2, cond, cond[:1])
  assert jax.eval_shape(sample, merged, cond).shape == (2, 16, 16, 3)
  if threat.save is not None:
    names = safetensors.numpy.load_file(threat.save(tmp_path, theta))
    assert all(each.startswith("unet.") for each in names)
    attention = "unet.mid_block.attentions.0.transformer_blocks.1.attn2.to_k.lora_A.weight"
    assert names[attention].shape == (2, 28)


@pytest.mark.parametrize("name", ["lora", "dreambooth", "full", "textual_inversion"])
def test_two_text_encoders_are_not_trained(name, tiny_sdxl):
  given = {"token_ids": [3], "init_from": 2}
  options = given if name == "textual_inversion" else {"train_text_encoder": True}
  threat = threats.build(name, tiny_sdxl.model, SHORT | options)
  with pytest.raises(ConfigError, match="has two text encoders"):
    jax.eval_shape(threat.init, KEY, tiny_sdxl.params)


@pytest.mark.parametrize("name", ["img2img", "inpaint", "inpaint of 9 channels"])
def test_edits(name, tiny_sdxl, make_tiny_sdxl):
  nine = "9" in name
  found = make_tiny_sdxl(in_channels=9) if nine else tiny_sdxl
  options = {"strength": 0.5, "sample_steps": 4} | ({"inpainting_unet": True} if nine else {})
  edit = threats.build_edit(name.split()[0], found.model, options)
  cond = _cond(tiny_sdxl, ["a photograph of a cat", ""])
  images, masks = jnp.zeros((2, 16, 16, 3)), jnp.ones((2, 16, 16, 1))
  given = jax.random.split(KEY, 2), found.params, images, cond, cond[1:], masks
  assert jax.eval_shape(edit.apply, *given).shape == (2, 16, 16, 3)
