"""Our Stable Diffusion folders in PyTorch diffusers' pipelines, and theirs in ours.

Whole chains are compared: tokenizer, text encoder, guided U-Net, sampler and VAE, from the same
latents. Where a chain draws noise, diffusers is given ours.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
  DDIMScheduler,
  DPMSolverMultistepScheduler,
  StableDiffusionImg2ImgPipeline,
  StableDiffusionInpaintPipeline,
  StableDiffusionPipeline,
)
from diffusers.models.autoencoders import vae as their_vae
from diffusers.pipelines.stable_diffusion import (
  pipeline_stable_diffusion_img2img,
  pipeline_stable_diffusion_inpaint,
)

from udp_jax import threats
from udp_jax.models import pipeline
from udp_jax.models.noise_scheduler import sampler_options
from udp_jax.ops import samplers
from udp_jax.ops.keys import normal_each, split_each

PROMPTS = ["a photograph of a cat", "the sea at night"]
NEGATIVE = "a dog"
SCALE = 4.0
# Largest absolute difference of pictures in [0, 1] at the end of a chain.
TOLERANCE = 1e-4
SCHEDULERS = {"ddim": DDIMScheduler, "dpm_solver_pp_2m": DPMSolverMultistepScheduler}


@pytest.fixture(scope="module")
def both(make_tiny_pipeline, tmp_path_factory):
  """Kind -> the same tiny model, ours and theirs loaded from one folder."""

  @functools.cache
  def load(kind):
    inpainting = kind == "inpainting"
    made = make_tiny_pipeline(
      in_channels=9 if inpainting else 4, prediction_type="epsilon" if inpainting else kind
    )
    folder = tmp_path_factory.mktemp("model") / kind
    pipeline.save_pipeline_folder(folder, made)
    theirs = StableDiffusionInpaintPipeline if inpainting else StableDiffusionPipeline
    return pipeline.load_pipeline(folder), _quiet(theirs.from_pretrained(folder))

  return load


def _quiet(pipe):
  pipe.set_progress_bar_config(disable=True)
  return pipe


def _torch(images):
  return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).contiguous()


def _pictures(seed=5):
  return np.random.default_rng(seed).uniform(size=(2, 16, 16, 3)).astype(np.float32)


def _prompts(ours):
  return ours.tokenizer(PROMPTS), ours.tokenizer([NEGATIVE])


def _use(pipe, sampler):
  pipe.scheduler = SCHEDULERS[sampler].from_config(pipe.scheduler.config)


def _compare(actual, expected, label):
  error = np.abs(np.asarray(actual) - expected).max()
  print(f"{label}: largest difference of a picture {error:.1e}")
  assert np.std(expected) > 0.05 and error < TOLERANCE


@pytest.mark.parametrize(
  ("kind", "sampler", "spacing"),
  [
    ("epsilon", "ddim", None),
    ("epsilon", "ddim", "trailing"),
    ("epsilon", "dpm_solver_pp_2m", None),
    ("epsilon", "dpm_solver_pp_2m", "leading"),
    ("v_prediction", "ddim", None),
    ("v_prediction", "dpm_solver_pp_2m", "trailing"),
  ],
)
def test_text_to_image(both, kind, sampler, spacing):
  ours, theirs = both(kind)
  scheduler = ours.scheduler if spacing is None else ours.scheduler | {"timestep_spacing": spacing}
  original = theirs.scheduler
  noise = np.random.default_rng(1).normal(size=(2, 8, 8, 4)).astype(np.float32)
  ids, negative = _prompts(ours)

  @jax.jit
  def run(params, noise):
    cond = ours.model.embed(params, ids)
    uncond = jnp.repeat(ours.model.embed(params, negative), 2, axis=0)
    denoise = lambda x_t, t, cond: ours.model.apply(params, x_t, t, cond)
    predict = samplers.guided(denoise, cond, uncond, scale=SCALE)
    options = {"num_steps": 8, **sampler_options(scheduler, sampler, latent=True)}
    options = samplers.arguments(sampler, options)
    function = getattr(samplers, sampler)
    x0 = function(jax.random.key(0), predict, ours.model.schedule, noise, **options)
    return ours.model.decode(params, x0)

  try:
    # As the file of such a folder would say, where it says anything of spacing at all.
    config = dict(original.config)
    if spacing is not None:
      config |= {"timestep_spacing": spacing}
      config["_use_default_values"] = [
        name for name in config["_use_default_values"] if name != "timestep_spacing"
      ]
    theirs.scheduler = SCHEDULERS[sampler].from_config(config)
    expected = theirs(
      PROMPTS,
      negative_prompt=[NEGATIVE] * 2,
      num_inference_steps=8,
      guidance_scale=SCALE,
      latents=_torch(noise),
      output_type="np",
    ).images
  finally:
    theirs.scheduler = original
  _compare(run(ours.params, noise), expected, f"{sampler}, {spacing}")


@pytest.fixture
def give_noise(monkeypatch):
  """Makes diffusers draw these noises, (B, h, w, 4) each, in this order."""

  def give(*noises):
    remaining = [_torch(noise) for noise in noises]
    draw = lambda shape, *args, **kwargs: remaining.pop(0).reshape(shape)
    for module in (
      their_vae,
      pipeline_stable_diffusion_img2img,
      pipeline_stable_diffusion_inpaint,
    ):
      monkeypatch.setattr(module, "randn_tensor", draw)
    return remaining

  return give


@pytest.mark.parametrize(
  ("sampler", "strength"), [("ddim", 0.5), ("ddim", 1.0), ("dpm_solver_pp_2m", 0.5)]
)
def test_img2img(both, give_noise, sampler, strength):
  ours, theirs = both("epsilon")
  images, keys = _pictures(), jax.random.split(jax.random.key(7), 2)
  options = {"strength": strength, "sample_steps": 8, "guidance_scale": SCALE, "sampler": sampler}
  edit = threats.build_edit("img2img", ours.model, options | {"scheduler": ours.scheduler})
  actual = edit.apply(keys, ours.params, images, *_prompts(ours))
  shape = ours.model.shape
  left = give_noise(*(normal_each(part, shape) for part in split_each(keys, 2)))
  pipe = _quiet(StableDiffusionImg2ImgPipeline(**theirs.components, requires_safety_checker=False))
  _use(pipe, sampler)
  expected = pipe(
    PROMPTS,
    image=_torch(images),
    negative_prompt=[NEGATIVE] * 2,
    num_inference_steps=8,
    strength=strength,
    guidance_scale=SCALE,
    output_type="np",
  ).images
  assert not left
  _compare(actual, expected, f"img2img, {sampler}, strength {strength}")


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("kind", ["epsilon", "inpainting"])
def test_inpainting(both, give_noise, kind, strength):
  ours, theirs = both(kind)
  nine = kind == "inpainting"
  images, keys = _pictures(), jax.random.split(jax.random.key(8), 2)
  mask = np.zeros((2, 16, 16, 1), np.float32)
  mask[0, :, 8:], mask[1, 4:10, 2:14] = 1, 1
  options = {"strength": strength, "sample_steps": 8, "guidance_scale": SCALE}
  options |= {"scheduler": ours.scheduler, "inpainting_unet": nine}
  edit = threats.build_edit("inpaint", ours.model, options)
  actual = edit.apply(keys, ours.params, images, *_prompts(ours), mask)
  posterior, masked, noise = (normal_each(part, ours.model.shape) for part in split_each(keys, 3))
  # Their order of drawing; what is not used they do not draw (but for the masked picture).
  drawn = [noise, masked] if nine and strength == 1 else [posterior, noise, masked]
  left = give_noise(*drawn)
  pipe = _quiet(StableDiffusionInpaintPipeline(**theirs.components, requires_safety_checker=False))
  _use(pipe, "ddim")
  expected = pipe(
    PROMPTS,
    image=_torch(images),
    mask_image=_torch(mask),
    height=16,
    width=16,
    negative_prompt=[NEGATIVE] * 2,
    num_inference_steps=8,
    strength=strength,
    guidance_scale=SCALE,
    output_type="np",
  ).images
  assert not left
  # Ours puts the given pixels back outside the mask; theirs leaves that to the caller.
  expected = mask * expected + (1 - mask) * images
  _compare(actual, expected, f"inpainting, {9 if nine else 4} channels, strength {strength}")


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}, {"variant": "fp16"}])
def test_their_folders_in_ours(both, tmp_path, options):
  ours, theirs = both("inpainting")
  if "variant" in options:
    theirs = type(theirs).from_pretrained(_saved(theirs, tmp_path / "whole"), dtype=torch.float16)
  loaded = pipeline.load_pipeline(_saved(theirs, tmp_path / "theirs", **options))
  half = "variant" in options
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float16) if half else b),
    loaded.params,
    ours.params,
  )
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loaded.params))
  assert loaded.configs == ours.configs
  np.testing.assert_array_equal(loaded.tokenizer(PROMPTS), ours.tokenizer(PROMPTS))
  np.testing.assert_array_equal(
    loaded.model.schedule.alphas_cumprod, ours.model.schedule.alphas_cumprod
  )
  assert sampler_options(loaded.scheduler, "ddim", latent=True) == sampler_options(
    ours.scheduler, "ddim", latent=True
  )


def _saved(pipe, folder, **options):
  pipe.save_pretrained(folder, **options)
  return folder
