"""Stable Diffusion XL against PyTorch diffusers and transformers, live.

Small random models: the U-Net with every gradient, both text encoders, whole pipelines from the
same latents, the denoising loss's gradient to pixels, LoRA files and folders in both directions.
The full size is compared by the names and shapes of its tensors.
"""

from __future__ import annotations

import functools
import importlib.util
import math

import diffusers
import jax
import jax.numpy as jnp
import make_sd_goldens as torch_side
import numpy as np
import pytest
import sd_models
import torch
import transformers
from diffusers import (
  DDIMScheduler,
  StableDiffusionXLImg2ImgPipeline,
  StableDiffusionXLInpaintPipeline,
  StableDiffusionXLPipeline,
)
from diffusers.models.autoencoders import vae as their_vae
from diffusers.pipelines.stable_diffusion_xl import (
  pipeline_stable_diffusion_xl_img2img,
  pipeline_stable_diffusion_xl_inpaint,
)

from udp_jax import threats
from udp_jax.models import conditioning, lora, lora_files, pipeline, published, trainable, weights
from udp_jax.models.latent import TEXT, TEXT_2, UNET, VAE
from udp_jax.models.noise_scheduler import sampler_options
from udp_jax.models.sampling import Sampling, make_sample
from udp_jax.models.sd_unet import UNet2DCondition, UNet2DConditionConfig
from udp_jax.objectives.denoising import denoising
from udp_jax.ops import samplers
from udp_jax.ops.keys import normal_each, split_each

OUTPUT, GRADIENT = 1e-4, 1e-3  # Largest absolute error over the largest magnitude.
PROMPTS = ["a photograph of a cat", "the sea at night"]
NEGATIVE = "a dog"
SCALE = 4.0
needs_peft = pytest.mark.skipif(
  importlib.util.find_spec("peft") is None, reason="peft is not installed: pip install peft"
)

# Three levels with 1, 2 and 3 blocks, as XL has 1, 2 and 10.
DEEP = {
  "sample_size": 12,
  "in_channels": 4,
  "out_channels": 4,
  "block_out_channels": [8, 16, 24],
  "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
  "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
  "layers_per_block": 1,
  "transformer_layers_per_block": [1, 2, 3],
  "attention_head_dim": [1, 2, 4],
  "norm_num_groups": 4,
  "cross_attention_dim": 20,
  "use_linear_projection": True,
  "addition_embed_type": "text_time",
  "addition_time_embed_dim": 8,
  "projection_class_embeddings_input_dim": 6 * 8 + 10,
}


def compare(what, actual, expected, tolerance=OUTPUT):
  actual, expected = np.asarray(actual), np.asarray(expected)
  assert actual.shape == expected.shape
  error = np.max(np.abs(actual - expected)) / np.max(np.abs(expected))
  print(f"{what}: {error:.1e}")
  assert error < tolerance, what


def nchw(images):
  return torch.from_numpy(np.array(images, np.float32)).permute(0, 3, 1, 2).contiguous()


def nhwc(tensor):
  return tensor.detach().permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def both(make_tiny_sdxl, tmp_path_factory):
  """Number of input channels -> the same tiny model, ours and theirs loaded from one folder."""

  @functools.cache
  def load(in_channels=4):
    folder = tmp_path_factory.mktemp("model") / "sdxl"
    pipeline.save_pipeline_folder(folder, make_tiny_sdxl(in_channels=in_channels))
    kind = StableDiffusionXLPipeline if in_channels == 4 else StableDiffusionXLInpaintPipeline
    return pipeline.load_pipeline(folder), _quiet(
      kind.from_pretrained(folder, add_watermarker=False)
    )

  return load


def _quiet(pipe):
  pipe.set_progress_bar_config(disable=True)
  pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
  return pipe


def test_unet_and_every_gradient():
  model = torch_side.unet(DEEP)
  fields = dict(model.config)
  module = UNet2DCondition(UNet2DConditionConfig.from_dict(fields), remat=True)
  inputs = sd_models.unet_inputs(DEEP)
  pooled = sd_models.draw("pooled", 2, 10)
  sizes = np.array([[1024, 768, 0, 16, 512, 512], [64, 64, 0, 0, 64, 64]], np.float32)
  tensors = {name: value.numpy() for name, value in model.state_dict().items()}
  given = inputs["x_t"], inputs["timesteps"], inputs["cond"]
  init = functools.partial(module.init, added=(pooled, sizes))
  template = jax.eval_shape(init, jax.random.key(0), *given)["params"]
  params = weights.from_torch_names(tensors, template)

  x_t, cond = nchw(inputs["x_t"]).requires_grad_(), torch.from_numpy(inputs["cond"])
  told = torch.from_numpy(pooled).requires_grad_()
  output = model(
    x_t,
    torch.from_numpy(inputs["timesteps"]),
    cond.requires_grad_(),
    added_cond_kwargs={"text_embeds": told, "time_ids": torch.from_numpy(sizes)},
  ).sample
  (output * nchw(inputs["cotangent"])).sum().backward()

  @jax.jit
  def forward_backward(params, x_t, cond, pooled):
    def objective(params, x_t, cond, pooled):
      made = module.apply({"params": params}, x_t, given[1], cond, added=(pooled, sizes))
      return (made * inputs["cotangent"]).sum(), made

    return jax.grad(objective, (0, 1, 2, 3), has_aux=True)(params, x_t, cond, pooled)

  (of_params, of_x_t, of_cond, of_pooled), made = forward_backward(params, *given[::2], pooled)
  compare("output", made, nhwc(output))
  compare("gradient for x_t", of_x_t, nhwc(x_t.grad), GRADIENT)
  compare("gradient for cond", of_cond, cond.grad, GRADIENT)
  compare("gradient for the pooled text", of_pooled, told.grad, GRADIENT)
  theirs = {name: value.grad.numpy() for name, value in model.named_parameters()}
  ours = weights.to_torch_names(of_params)
  assert ours.keys() == theirs.keys()
  for name, value in theirs.items():
    compare(f"gradient of {name}", ours[name], value, GRADIENT)


def test_text_encoders(both):
  ours, theirs = both()
  texts = [*PROMPTS, ""]
  ids = ours.tokenizer(texts)
  options = {"padding": "max_length", "truncation": True, "return_tensors": "np"}
  for tokenizer, name in ((ours.tokenizer, "tokenizer"), (ours.tokenizer_2, "tokenizer_2")):
    np.testing.assert_array_equal(
      tokenizer(texts), getattr(theirs, name)(texts, **options).input_ids
    )
  assert (ours.tokenizer_2(texts) != ids).any()
  with torch.no_grad():
    text, _, pooled, _ = theirs.encode_prompt(
      texts, device="cpu", do_classifier_free_guidance=False
    )
  found = conditioning.unpack(jax.jit(ours.model.embed)(ours.params, ids), 10)
  compare("both encoders", found.embeddings, text)
  compare("pooled text", found.pooled, pooled)


@pytest.mark.parametrize("sized", [False, True])
def test_text_to_image(both, sized):
  ours, theirs = both()
  noise = np.random.default_rng(1).normal(size=(2, 8, 8, 4)).astype(np.float32)
  # The same for both prompts: diffusers 0.42 mixes up different ones in batches of several.
  sizes = {"original_size": (64, 48), "crops_coords_top_left": (3, 5), "target_size": (16, 16)}

  @jax.jit
  def run(params, noise):
    ids, negative = ours.tokenizer(PROMPTS), ours.tokenizer([NEGATIVE])
    cond = ours.model.embed(params, ids)
    uncond = jnp.repeat(ours.model.embed(params, negative), 2, axis=0)
    if sized:
      cond, uncond = (
        conditioning.with_sizes(given, (64, 48), crop=(3, 5), target=(16, 16))
        for given in (cond, uncond)
      )
    denoise = lambda x_t, t, cond: ours.model.apply(params, x_t, t, cond)
    predict = samplers.guided(denoise, cond, uncond, scale=SCALE)
    options = {"num_steps": 6, **sampler_options(ours.scheduler, "ddim", latent=True)}
    options = samplers.arguments("ddim", options)
    x0 = samplers.ddim(jax.random.key(0), predict, ours.model.schedule, noise, **options)
    return ours.model.decode(params, x0)

  expected = theirs(
    PROMPTS,
    negative_prompt=[NEGATIVE] * 2,
    num_inference_steps=6,
    guidance_scale=SCALE,
    latents=nchw(noise),
    output_type="np",
    **(sizes if sized else {}),
  ).images
  assert np.std(expected) > 0.05
  compare(f"text to image, sizes given: {sized}", run(ours.params, noise), expected)


def test_sampling_takes_what_embed_returns(both):
  """Threats sample from token ids and from embeddings made beforehand alike."""
  ours, _ = both()
  sampling = Sampling(sample_steps=4, guidance_scale=SCALE, scheduler=ours.scheduler)
  sample = make_sample(ours.model, sampling)
  key = jax.random.key(3)
  ids, negative = ours.tokenizer(PROMPTS), ours.tokenizer([NEGATIVE])
  made = sample(key, ours.params, 2, ids, negative)
  embedded = [ours.model.embed(ours.params, some) for some in (ids, negative)]
  np.testing.assert_allclose(sample(key, ours.params, 2, *embedded), made, atol=1e-5)
  assert made.shape == (2, 16, 16, 3) and made.std() > 0.05


@pytest.fixture
def give_noise(monkeypatch):
  """Makes diffusers draw these noises, (B, h, w, 4) each, in this order."""

  def give(*noises):
    remaining = [nchw(noise) for noise in noises]
    draw = lambda shape, *args, **kwargs: remaining.pop(0).reshape(shape)
    for module in (
      their_vae,
      pipeline_stable_diffusion_xl_img2img,
      pipeline_stable_diffusion_xl_inpaint,
    ):
      monkeypatch.setattr(module, "randn_tensor", draw)
    return remaining

  return give


def _pictures(seed=5):
  return np.random.default_rng(seed).uniform(size=(2, 16, 16, 3)).astype(np.float32)


def _parts(theirs):
  names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
  return {name: getattr(theirs, name) for name in names}


def _prompts(ours):
  return ours.tokenizer(PROMPTS), ours.tokenizer([NEGATIVE])


def test_img2img(both, give_noise):
  ours, theirs = both()
  images, keys = _pictures(), jax.random.split(jax.random.key(7), 2)
  options = {"strength": 0.5, "sample_steps": 8, "guidance_scale": SCALE}
  edit = threats.build_edit("img2img", ours.model, options | {"scheduler": ours.scheduler})
  actual = edit.apply(keys, ours.params, images, *_prompts(ours))
  left = give_noise(*(normal_each(part, ours.model.shape) for part in split_each(keys, 2)))
  pipe = _quiet(StableDiffusionXLImg2ImgPipeline(**_parts(theirs), add_watermarker=False))
  expected = pipe(
    PROMPTS,
    image=nchw(images),
    negative_prompt=[NEGATIVE] * 2,
    num_inference_steps=8,
    strength=0.5,
    guidance_scale=SCALE,
    original_size=(16, 16),
    target_size=(16, 16),
    output_type="np",
  ).images
  assert not left
  compare("img2img", actual, expected)


@pytest.mark.parametrize("in_channels", [4, 9])
def test_inpainting(both, give_noise, in_channels):
  ours, theirs = both(in_channels)
  nine = in_channels == 9
  images, keys = _pictures(), jax.random.split(jax.random.key(8), 2)
  mask = np.zeros((2, 16, 16, 1), np.float32)
  mask[0, :, 8:], mask[1, 4:10, 2:14] = 1, 1
  options = {"strength": 0.5, "sample_steps": 8, "guidance_scale": SCALE}
  options |= {"scheduler": ours.scheduler, "inpainting_unet": nine}
  edit = threats.build_edit("inpaint", ours.model, options)
  actual = edit.apply(keys, ours.params, images, *_prompts(ours), mask)
  posterior, masked, noise = (normal_each(part, ours.model.shape) for part in split_each(keys, 3))
  give_noise(posterior, noise, masked)
  pipe = _quiet(StableDiffusionXLInpaintPipeline(**_parts(theirs), add_watermarker=False))
  expected = pipe(
    PROMPTS,
    image=nchw(images),
    mask_image=nchw(mask),
    height=16,
    width=16,
    negative_prompt=[NEGATIVE] * 2,
    num_inference_steps=8,
    strength=0.5,
    guidance_scale=SCALE,
    original_size=(16, 16),
    target_size=(16, 16),
    output_type="np",
  ).images
  # Ours puts the given pixels back outside the mask; theirs leaves that to the caller.
  compare(f"inpainting, {in_channels} channels", actual, mask * expected + (1 - mask) * images)


def test_gradient_to_pixels(both):
  """The denoising loss through autoencoder, both encoders and U-Net, as trainers write it."""
  ours, theirs = both()
  model, images, keys = ours.model, _pictures(), jax.random.split(jax.random.key(4), 2)
  # One timestep alone, and the draws of our objective for the other side.
  probs = np.zeros(model.schedule.num_steps, np.float32)
  probs[321] = 1.0
  _, key_noise, key_encode, _ = split_each(keys, 4)
  noise, posterior = (normal_each(key, model.shape) for key in (key_noise, key_encode))
  ids = ours.tokenizer(PROMPTS)
  objective = denoising(model, probs)

  @jax.jit
  def with_gradient(images, params):
    def total(images):
      losses, _ = objective(params, images, ids, keys)
      return losses.sum(), losses

    return jax.grad(total, has_aux=True)(images)

  gradient, losses = with_gradient(images, ours.params)
  pictures = nchw(images).requires_grad_()
  drawn = theirs.vae.encode(2.0 * pictures - 1.0).latent_dist
  latents = (drawn.mean + drawn.std * nchw(posterior)) * theirs.vae.config.scaling_factor
  timesteps = torch.tensor([321, 321])
  x_t = theirs.scheduler.add_noise(latents, nchw(noise), timesteps)
  text, _, pooled, _ = theirs.encode_prompt(
    PROMPTS, device="cpu", do_classifier_free_guidance=False
  )
  # What diffusers' train_text_to_image_sdxl.py tells of a picture of the resolution.
  time_ids = torch.tensor([[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]] * 2)
  added = {"text_embeds": pooled, "time_ids": time_ids}
  prediction = theirs.unet(x_t, timesteps, text, added_cond_kwargs=added).sample
  expected = (prediction - nchw(noise)).square().mean((1, 2, 3))
  expected.sum().backward()
  compare("loss", losses, expected.detach())
  compare("gradient to pixels", gradient, nhwc(pictures.grad), GRADIENT)


def _run_unet(pipe):
  x_t, cond, pooled = (sd_models.draw(n, *s) for n, s in _SHAPES.items())
  added = {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.full((2, 6), 16.0)}
  with torch.no_grad():
    timesteps = torch.tensor([3, 700])
    made = pipe.unet(nchw(x_t), timesteps, torch.from_numpy(cond), added_cond_kwargs=added)
  return nhwc(made.sample)


_SHAPES = {"x_t": (2, 8, 8, 4), "cond": (2, 77, 28), "pooled": (2, 10)}


def _our_unet(model, params):
  x_t, cond, pooled = (sd_models.draw(n, *s) for n, s in _SHAPES.items())
  packed = conditioning.pack(cond, pooled, jnp.full((2, 6), 16.0))
  return jax.jit(model.apply)(params, x_t, jnp.array([3, 700]), packed)


@needs_peft
def test_lora_files(both, tmp_path):
  """Of ours in theirs, and back through their `save_lora_weights`."""
  from diffusers.utils import convert_state_dict_to_diffusers
  from peft.utils import get_peft_model_state_dict

  ours, theirs = both()
  before = _run_unet(theirs)
  kind = trainable.lora(3, 0.5)
  theta = kind.init(jax.random.key(0), ours.params)
  theta = jax.tree.map(lambda leaf: leaf + 0.3 * sd_models.draw("theta", *leaf.shape), theta)
  assert set(theta) == {"unet"}
  lora_files.save_lora(tmp_path / "ours", theta, scale=0.5)
  theirs.load_lora_weights(tmp_path / "ours")
  expected = _run_unet(theirs)
  layers = convert_state_dict_to_diffusers(
    get_peft_model_state_dict(theirs.unet, adapter_name="default_0")
  )
  StableDiffusionXLPipeline.save_lora_weights(tmp_path / "theirs", unet_lora_layers=layers)
  theirs.unload_lora_weights()
  assert np.abs(expected - before).max() > 1e-2 * np.abs(before).max()
  compare("LoRA of ours", _our_unet(ours.model, kind.merge(theta, ours.params)), expected)
  merged = lora.merge_factors(lora_files.load_lora(tmp_path / "theirs", ours.params), ours.params)
  compare("LoRA of theirs", _our_unet(ours.model, merged), expected)


@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}])
def test_their_folders_in_ours(both, tmp_path, options):
  ours, theirs = both()
  if options:
    theirs.save_pretrained(tmp_path / "whole")
    theirs = StableDiffusionXLPipeline.from_pretrained(
      tmp_path / "whole", dtype=torch.float16, add_watermarker=False
    )
  theirs.save_pretrained(tmp_path / "theirs", **options)
  loaded = pipeline.load_pipeline(tmp_path / "theirs")
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float16) if options else b),
    loaded.params,
    ours.params,
  )
  assert loaded.configs == ours.configs


def _names(params):
  named = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    keys, shape = tuple(entry.key for entry in path), leaf.shape
    if keys[-1] == "kernel":
      shape = (*shape[:-3:-1], *shape[:-2])
    named[weights.torch_name(keys)] = shape
  return named


def test_full_size_names_and_shapes():
  """Of `published.ARCHITECTURES`, against theirs on the meta device with the same config."""
  configs, scheduler = published.architecture("sdxl")
  shapes = jax.eval_shape(pipeline.build_model(configs, scheduler).init, jax.random.key(0))
  totals = {UNET: 2_567_463_684, VAE: 83_653_863, TEXT: 123_060_480, TEXT_2: 694_659_840}
  fields = {part: config.to_dict() for part, config in configs.items()}
  with torch.device("meta"):
    theirs = {
      UNET: diffusers.UNet2DConditionModel(**fields[UNET]),
      VAE: diffusers.AutoencoderKL(**fields[VAE]),
      TEXT: transformers.CLIPTextModel(transformers.CLIPTextConfig(**fields[TEXT])),
      TEXT_2: transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(**fields[TEXT_2])
      ),
    }
  assert set(shapes) == set(theirs)
  for part, model in theirs.items():
    expected = {name: tuple(value.shape) for name, value in model.named_parameters()}
    prefix = "text_model." if part == TEXT else ""  # transformers 5 leaves it out.
    expected = {prefix + name.removeprefix(prefix): shape for name, shape in expected.items()}
    assert _names(shapes[part]) == expected
    assert sum(map(math.prod, expected.values())) == totals[part]


def test_the_config_is_understood(make_tiny_sdxl):
  """Every field of diffusers' own config of such a U-Net, and nothing is lost on the way."""
  config = make_tiny_sdxl().configs[UNET]
  theirs = diffusers.UNet2DConditionModel(**config.to_dict())
  assert UNet2DConditionConfig.from_dict(dict(theirs.config)) == config
