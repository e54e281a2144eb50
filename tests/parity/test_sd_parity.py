"""Stable Diffusion's networks and their files against PyTorch diffusers and transformers, live.

Every variant as a small random model: U-Nets of 1.x, 2.x and for inpainting, both CLIP text
encoders, the autoencoder, and the denoising loss's gradient to pixels through all of them.
"""

from __future__ import annotations

import json

import diffusers
import jax
import jax.numpy as jnp
import make_sd_goldens as torch_side
import numpy as np
import pytest
import sd_models
import torch
import transformers

from udp_jax.models import weights
from udp_jax.models.clip_text import CLIPText, CLIPTextConfig
from udp_jax.models.sd_unet import UNet2DCondition, UNet2DConditionConfig
from udp_jax.models.sd_vae import AutoencoderKL, AutoencoderKLConfig
from udp_jax.models.tokenizer import load_tokenizer, train_tokenizer
from udp_jax.ops import schedules

OUTPUT, GRADIENT = 1e-4, 1e-3  # Largest absolute error over the largest magnitude.

# Three levels, two layers each, on maps that are not square powers of two.
_THREE_LEVELS = {
  "sample_size": 24,
  "block_out_channels": [16, 32, 48],
  "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
  "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
  "layers_per_block": 2,
  "norm_num_groups": 8,
  "cross_attention_dim": 20,
}
UNETS = {
  "1": sd_models.UNET_1 | _THREE_LEVELS | {"attention_head_dim": 8},
  "2": sd_models.UNET_2 | _THREE_LEVELS | {"attention_head_dim": [2, 4, 6]},
  "inpainting": sd_models.UNET_INPAINTING,
}
TEXTS = {
  act: fields | {"max_position_embeddings": 77, "num_hidden_layers": 3}
  for act, fields in sd_models.TEXTS.items()
}
# The three levels' latents of 24x24 are pictures of 48x48.
VAE = sd_models.VAE | {"sample_size": 48, "layers_per_block": 2, "block_out_channels": [16, 32]}

CLASSES = {
  "unet": (diffusers.UNet2DConditionModel, UNet2DCondition, UNet2DConditionConfig),
  "vae": (diffusers.AutoencoderKL, AutoencoderKL, AutoencoderKLConfig),
  "text": (transformers.CLIPTextModel, CLIPText, CLIPTextConfig),
}
MODELS = (
  [("unet", version, fields) for version, fields in UNETS.items()]
  + [("text", act, fields) for act, fields in TEXTS.items()]
  + [("vae", "1", VAE)]
)
IDS = [f"{kind}-{name}" for kind, name, _ in MODELS]


def error(actual, expected) -> float:
  actual, expected = np.asarray(actual), np.asarray(expected)
  assert actual.shape == expected.shape
  return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


def compare(what, pairs):
  """pairs: name -> (actual, expected, tolerance)."""
  errors = {name: (error(a, e), tolerance) for name, (a, e, tolerance) in pairs.items()}
  worst = sorted(errors.items(), key=lambda item: -item[1][0] / item[1][1])
  print(f"\n{what}: " + ", ".join(f"{name} {value:.1e}" for name, (value, _) in worst[:4]))
  assert all(value < tolerance for value, tolerance in errors.values()), worst[:4]


def inputs_of(kind, config):
  if kind == "vae":
    return (jnp.zeros((1, config.sample_size, config.sample_size, 3)),)
  if kind == "text":
    return (jnp.zeros((1, config.max_position_embeddings), jnp.int32),)
  x_t = jnp.zeros((1, config.sample_size, config.sample_size, config.in_channels))
  return x_t, jnp.zeros((1,), jnp.int32), jnp.zeros((1, 7, config.cross_attention_dim))


def ours(kind, fields, tensors):
  """Our module and params from a config.json's fields and its tensors."""
  _, module_class, config_class = CLASSES[kind]
  module = module_class(config_class.from_dict(fields))
  inputs = inputs_of(kind, module.config)
  template = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  return module, weights.from_torch_names(tensors, template)


def state(model):
  return {name: value.numpy() for name, value in model.state_dict().items()}


def pair(kind, fields):
  """PyTorch's model with random weights, our module and the same params."""
  model = {"unet": torch_side.unet, "vae": torch_side.vae, "text": torch_side.text}[kind](fields)
  return model, *ours(
    kind,
    json.loads(json.dumps(dict(model.config.to_dict() if kind == "text" else model.config))),
    state(model),
  )


@pytest.mark.parametrize("version", sorted(UNETS))
def test_unet_and_every_gradient(version):
  fields = UNETS[version]
  model, module, params = pair("unet", fields)
  inputs = sd_models.unet_inputs(fields)
  expected = torch_side.run_unet(model, inputs)

  @jax.jit
  def forward_backward(params, x_t, cond):
    def objective(*inner):
      output = module.apply({"params": inner[0]}, inner[1], inputs["timesteps"], inner[2])
      return (output * inputs["cotangent"]).sum(), output

    gradients, output = jax.grad(objective, (0, 1, 2), has_aux=True)(params, x_t, cond)
    return output, *gradients

  output, grads, grad_x_t, grad_cond = forward_backward(params, inputs["x_t"], inputs["cond"])
  pairs = {
    "output": (output, expected["output"], OUTPUT),
    "gradient for x_t": (grad_x_t, expected["gradient/x_t"], GRADIENT),
    "gradient for cond": (grad_cond, expected["gradient/cond"], GRADIENT),
  }
  for name, value in weights.to_torch_names(grads).items():
    pairs[f"gradient of {name}"] = (value, expected[f"gradient/{name}"], GRADIENT)
  assert len(pairs) == 3 + len(list(model.parameters()))
  compare(f"U-Net {version}", pairs)


@pytest.mark.parametrize("act", sorted(TEXTS))
def test_text_encoder(act):
  fields = TEXTS[act]
  model, module, params = pair("text", fields)
  token_ids = sd_models.token_ids(fields)
  with torch.no_grad():
    expected = model(torch.from_numpy(token_ids)).last_hidden_state.numpy()
  output = jax.jit(module.apply)({"params": params}, token_ids)
  compare(f"text encoder {act}", {"output": (output, expected, OUTPUT)})


def test_penultimate_layer_of_2():
  """The folder of 2.x says one layer less than were trained; the final norm follows it."""
  fields = TEXTS["gelu"]
  model = torch_side.text(fields)
  token_ids = torch.from_numpy(sd_models.token_ids(fields))
  with torch.no_grad():
    states = model(token_ids, output_hidden_states=True).hidden_states
    expected = getattr(model, "text_model", model).final_layer_norm(states[-2]).numpy()
  fewer = fields | {"num_hidden_layers": fields["num_hidden_layers"] - 1}
  last = f"encoder.layers.{fewer['num_hidden_layers']}."
  tensors = {name: value for name, value in state(model).items() if last not in name}
  module, params = ours("text", fewer, tensors)
  output = jax.jit(module.apply)({"params": params}, token_ids.numpy())
  compare("penultimate layer", {"output": (output, expected, OUTPUT)})


def test_autoencoder():
  model, module, params = pair("vae", VAE)
  images = np.tanh(sd_models.draw("images", 2, 48, 48, 3))
  expected = torch_side.run_vae(model, images)

  @jax.jit
  def encode(images):
    def total(images):
      mean, logvar = module.apply({"params": params}, images, method="encode")
      return mean.sum() + logvar.sum(), (mean, logvar)

    return jax.grad(total, has_aux=True)(images)

  @jax.jit
  def decode(latents):
    def total(latents):
      decoded = module.apply({"params": params}, latents, method="decode")
      return decoded.sum(), decoded

    return jax.grad(total, has_aux=True)(latents)

  gradient_images, (mean, logvar) = encode(images)
  gradient_latents, decoded = decode(expected["mean"])
  actual = {"mean": mean, "logvar": logvar, "decoded": decoded}
  pairs = {name: (value, expected[name], OUTPUT) for name, value in actual.items()}
  pairs["gradient for images"] = (gradient_images, expected["gradient/images"], GRADIENT)
  pairs["gradient for latents"] = (gradient_latents, expected["gradient/latents"], GRADIENT)
  compare("autoencoder", pairs)


@pytest.mark.parametrize(("version", "kind"), [("1", "epsilon"), ("2", "v_prediction")])
def test_gradient_to_pixels(version, kind):
  """The denoising loss through autoencoder, posterior, schedule and U-Net, as trainers write it."""
  fields = UNETS[version]
  unet_model, unet, unet_params = pair("unet", fields)
  vae_model, vae, vae_params = pair("vae", VAE)
  scheduler = diffusers.DDPMScheduler(**sd_models.SCHEDULER, prediction_type=kind)
  inputs = sd_models.latent_inputs(fields, VAE)
  expected = torch_side.run_latent(unet_model, vae_model, scheduler, inputs)
  schedule = weights.schedule_from_config(dict(scheduler.config))
  noise, timesteps = inputs["noise"], inputs["timesteps"]

  @jax.jit
  def with_gradient(images, unet_params, vae_params):
    def total(images):
      mean, logvar = vae.apply({"params": vae_params}, 2.0 * images - 1.0, method="encode")
      x0 = (mean + jnp.exp(0.5 * logvar) * inputs["posterior_noise"]) * vae.config.scaling_factor
      x_t = schedules.add_noise(schedule, x0, noise, timesteps)
      prediction = unet.apply({"params": unet_params}, x_t, timesteps, inputs["cond"])
      target = schedules.training_target(schedule, x0, noise, timesteps)
      losses = jnp.square(prediction - target).mean((1, 2, 3))
      return losses.sum(), losses

    return jax.grad(total, has_aux=True)(images)

  gradient, losses = with_gradient(inputs["images"], unet_params, vae_params)
  pairs = {
    "losses": (losses, expected["losses"], OUTPUT),
    "gradient for pixels": (gradient, expected["gradient/images"], GRADIENT),
  }
  compare(f"pixels {version} {kind}", pairs)


@pytest.mark.parametrize(("kind", "name", "fields"), MODELS, ids=IDS)
def test_folders_of_each_open_in_the_other(kind, name, fields, tmp_path):
  """Theirs -> ours -> theirs -> ours, through save_pretrained: configs equal, weights bit-equal."""
  torch_class, _, _ = CLASSES[kind]
  model, _, params = pair(kind, fields)
  model.save_pretrained(tmp_path / "theirs")
  loaded_fields, tensors = weights.load_pretrained(tmp_path / "theirs")
  module, loaded = ours(kind, loaded_fields, tensors)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)

  class_name = torch_class.__name__
  weights.save_pretrained(tmp_path / "ours", module.config.to_dict(), loaded, class_name=class_name)
  opened, report = torch_class.from_pretrained(tmp_path / "ours", output_loading_info=True)
  assert not any(report.values()), report
  for tensor, value in state(model).items():
    np.testing.assert_array_equal(state(opened)[tensor], value, err_msg=tensor)
  for field, value in json.loads((tmp_path / "theirs" / "config.json").read_text()).items():
    # Versions and paths aside, what they say of the model is what they said before.
    if not field.startswith("_") and field != "transformers_version":
      actual = getattr(opened.config, field)
      if not isinstance(actual, torch.dtype):
        assert (list(actual) if isinstance(actual, tuple) else actual) == value, field

  opened.save_pretrained(tmp_path / "again")
  again_fields, again_tensors = weights.load_pretrained(tmp_path / "again")
  again_module, again = ours(kind, again_fields, again_tensors)
  assert again_module.config == module.config
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_every_default_config_is_understood_or_refused_by_name():
  """The defaults of diffusers name no field that we do not know."""
  fields = dict(diffusers.UNet2DConditionModel(**UNETS["1"]).config)
  config = UNet2DConditionConfig.from_dict(fields)
  assert config == UNet2DConditionConfig.from_dict(UNETS["1"])


@pytest.mark.parametrize("pad", ["!", "<|endoftext|>"])
def test_tokenizer_folders(pad, tmp_path):
  """Folders of 1.x and 2.x, written by either side, give the same ids in both."""
  prompts = [
    "",
    "A photo of sks dog!",
    "it's a <new> style, by   THE river; 1920 café naïve 🎨 !!",
    "梵高 的画",
    "long " * 100,
  ]
  tokenizer = train_tokenizer(prompts * 3, 560)
  tokenizer.special["pad_token"] = pad
  tokenizer.save(tmp_path / "plain")
  tokenizer = load_tokenizer(tmp_path / "plain")
  tokenizer.add_token("<new>")
  tokenizer.save(tmp_path / "ours")
  theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "ours")
  options = {"padding": "max_length", "truncation": True, "return_tensors": "np"}
  expected = theirs(prompts, **options).input_ids
  np.testing.assert_array_equal(tokenizer(prompts), expected)
  theirs.save_pretrained(tmp_path / "theirs")
  again = load_tokenizer(tmp_path / "theirs")
  assert again.added == tokenizer.added == {"<new>": len(tokenizer) - 1}
  np.testing.assert_array_equal(again(prompts), expected)
