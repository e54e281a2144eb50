"""Methods on a model of Stable Diffusion's layout: types and shapes, nothing is compiled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.strict import lenient, lenient_model
from udp_jax import protections
from udp_jax.data import batches
from udp_jax.errors import ConfigError
from udp_jax.models.base import embed_prompts

# One for each way to use the parts: training with its text, encoder and decoder, sampler.
OPTIONS = {
  "aspl": {
    "trains": "denoiser_and_text",
    "prior_weight": 1.0,
    "class_ids": [1] * 77,
    "num_class_images": 3,
    "uncond_ids": [0] * 77,
  },
  "ace_plus": {"trains": "lora", "perturb_steps": 2},
  "blurguard": {"num_segments": 2, "sigma_steps": 2},
  "diffusion_guard": {},
  "glaze": {"perceptual": ""},
  "metacloak": {"trains": "denoiser_and_text"},
  "pid": {},
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


def test_diffusion_guard_tells_an_inpainting_model_of_its_masks(make_tiny_pipeline):
  """The U-Net of 9 channels takes the noise, the drawn mask and what the mask leaves."""
  with lenient():
    pipeline = make_tiny_pipeline(in_channels=9)
  model = lenient_model(pipeline.model)
  cond = {
    "text": pipeline.tokenizer(["a photograph of a cat"] * 2),
    "mask": np.ones((2, 8, 8, 1), np.float32),
    "masked_latents": np.zeros((2, 8, 8, 4), np.float32),
  }
  data = batches.make_batches(np.zeros((2, *model.image_shape), np.uint8), 2)
  data = data._replace(cond=jax.tree.map(lambda leaf: leaf[None], cond))
  options = {"radius": 8 / 255, "step_size": 1 / 255}
  protection = protections.build("diffusion_guard", model, options)
  state = jax.eval_shape(protection.init, jax.random.key(0), data, pipeline.params)
  _, info = jax.eval_shape(protection.update, jax.random.key(0), state, data, pipeline.params)
  assert info.loss.shape == (1, 2)


# Those that a study of Stable Diffusion XL runs.
OF_XL = {
  "udp": {"train_steps": 2, "trains": "lora"},
  "eudp": {"train_steps": 2},
  "advdm": {},
  "mist": {},
  "sds": {},
  "photoguard_encoder": {},
  "fsmg": {"train_steps": 2, "trains": "cross_attention"},
  "aspl": {"train_steps": 2, "prior_weight": 1.0, "class_ids": [1] * 77, "num_class_images": 2},
}


def _of_xl(name, pipeline, **more):
  model = pipeline.model
  cond = embed_prompts(model, pipeline.params, pipeline.tokenizer(["a photograph of a cat"] * 2))
  data = batches.make_batches(np.zeros((2, *model.image_shape), np.uint8), 2, cond=cond)
  options = {"radius": 8 / 255, "step_size": 1 / 255} | OF_XL[name] | more
  if name == "aspl":
    options |= {"guidance_scale": 1.0}
  return protections.build(name, model, options), data


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_XL)
def test_a_round_of_xl(name, tiny_sdxl):
  protection, data = _of_xl(name, tiny_sdxl)
  assert data.cond.shape == (1, 2, 78, 28)  # A row with the pooled text and the sizes.
  state = jax.eval_shape(protection.init, jax.random.key(0), data, tiny_sdxl.params)
  after, info = jax.eval_shape(protection.update, jax.random.key(0), state, data, tiny_sdxl.params)
  assert after.delta.shape == (1, 2, 16, 16, 3) and info.loss.shape == (1, 2)
  if hasattr(state, "surrogate"):
    assert "text_encoder" not in str(jax.tree.structure(state.surrogate.params))


def test_xl_text_encoders_are_not_trained(tiny_sdxl):
  protection, data = _of_xl("aspl", tiny_sdxl, trains="denoiser_and_text")
  with pytest.raises(ConfigError, match="has two text encoders"):
    jax.eval_shape(protection.init, jax.random.key(0), data, tiny_sdxl.params)


@pytest.mark.slow
def test_sizes_reach_the_perturbation(tiny_sdxl):
  """A crop of a larger picture is another condition than a whole picture."""
  from udp_jax.models import conditioning

  protection, data = _of_xl("advdm", tiny_sdxl)
  key, update = jax.random.key(0), jax.jit(protection.update)
  state = protection.init(key, data, tiny_sdxl.params)
  losses = []
  for cond in (
    data.cond,
    conditioning.with_sizes(data.cond, (16, 16)),
    conditioning.with_sizes(data.cond, (64, 64), crop=(0, 48), target=(16, 16)),
  ):
    _, info = update(key, state, data._replace(cond=cond), tiny_sdxl.params)
    losses.append(np.asarray(info.loss))
  np.testing.assert_array_equal(losses[0], losses[1])
  assert np.abs(losses[2] - losses[0]).min() > 1e-4
