"""Stable Diffusion's networks against values of PyTorch (tests/goldens/make_sd_goldens.py).

The same comparisons run live in tests/parity/test_sd_parity.py.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.models import weights
from udp_jax.models.clip_text import CLIPText, CLIPTextConfig
from udp_jax.models.sd_unet import UNet2DCondition, UNet2DConditionConfig
from udp_jax.models.sd_vae import AutoencoderKL, AutoencoderKLConfig
from udp_jax.ops import schedules

GOLDENS = Path(__file__).parents[1] / "goldens"
TOLERANCE = 2e-5  # Largest absolute error over the largest magnitude.


@pytest.fixture(scope="module")
def sd_models():
  spec = importlib.util.spec_from_file_location("sd_models", GOLDENS / "sd_models.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def goldens():
  with np.load(GOLDENS / "sd.npz") as file:
    return {name: file[name] for name in file.files}


def select(goldens, prefix):
  chosen = {k.removeprefix(prefix): v for k, v in goldens.items() if k.startswith(prefix)}
  assert chosen
  return chosen


def check(actual, expected, tolerance=TOLERANCE):
  actual = np.asarray(actual)
  assert actual.shape == expected.shape
  error = np.max(np.abs(actual - expected)) / np.max(np.abs(expected))
  assert error < tolerance, error


def params_of(sd_models, module, *inputs, **options):
  """The weights that the models in PyTorch had."""
  template = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **options))["params"]
  shapes = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(template):
    keys = tuple(entry.key for entry in path)
    kernel = keys[-1] == "kernel"
    shape = (*leaf.shape[:-3:-1], *leaf.shape[:-2]) if kernel else leaf.shape
    shapes[weights.torch_name(keys)] = shape
  return weights.from_torch_names(sd_models.tensors(shapes), template)


def unet_and_params(sd_models, version):
  fields = sd_models.UNETS[version]
  unet = UNet2DCondition(UNet2DConditionConfig.from_dict(fields))
  inputs = sd_models.unet_inputs(fields)
  call = (inputs["x_t"], inputs["timesteps"], inputs["cond"])
  return unet, params_of(sd_models, unet, *call), inputs


@functools.cache
def vae_and_params(sd_models):
  vae = AutoencoderKL(AutoencoderKLConfig.from_dict(sd_models.VAE))
  size = sd_models.VAE["sample_size"]
  return vae, params_of(sd_models, vae, jnp.zeros((1, size, size, 3)))


@pytest.mark.slow
def test_unet_and_its_gradients(sd_models, goldens):
  """The inpainting variant of 1.x: all of 1.x, and more channels of input."""
  expected = select(goldens, "unet_inpainting/")
  unet, params, inputs = unet_and_params(sd_models, "inpainting")

  @jax.jit
  def forward_backward(params, x_t, cond):
    def objective(*inner):
      output = unet.apply({"params": inner[0]}, inner[1], inputs["timesteps"], inner[2])
      return (output * inputs["cotangent"]).sum(), output

    gradients, output = jax.grad(objective, (0, 1, 2), has_aux=True)(params, x_t, cond)
    return output, *gradients

  output, grads, grad_x_t, grad_cond = forward_backward(params, inputs["x_t"], inputs["cond"])
  assert output.dtype == jnp.float32
  check(output, expected.pop("output"))
  check(grad_x_t, expected.pop("gradient/x_t"))
  check(grad_cond, expected.pop("gradient/cond"))
  named = weights.to_torch_names(grads)
  assert len(expected) == 10
  for key, value in expected.items():
    check(named[key.removeprefix("gradient/")], value, 1e-4)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_text_encoder(sd_models, goldens, act):
  text = CLIPText(CLIPTextConfig.from_dict(sd_models.TEXTS[act]))
  token_ids = sd_models.token_ids(sd_models.TEXTS[act])
  params = params_of(sd_models, text, token_ids)
  expected = goldens[f"text_{act}/last_hidden_state"]
  check(jax.jit(text.apply)({"params": params}, token_ids), expected)
  # The same from embeddings, and layer by layer made again.
  table = params["text_model"]["embeddings"]["token_embedding"]["embedding"]
  again = CLIPText(text.config, remat=True)
  call = jax.jit(lambda embeds: again.apply({"params": params}, None, inputs_embeds=embeds))
  check(call(table[token_ids]), expected)


def test_autoencoder(sd_models, goldens):
  """Its gradients are in the next test."""
  vae, params = vae_and_params(sd_models)
  size = sd_models.VAE["sample_size"]
  images = np.tanh(sd_models.draw("images", 2, size, size, 3))

  @jax.jit
  def encode_decode(images):
    mean, logvar = vae.apply({"params": params}, images, method="encode")
    return mean, logvar, vae.apply({"params": params}, mean, method="decode")

  for name, value in zip(("mean", "logvar", "decoded"), encode_decode(images)):
    check(value, goldens[f"vae/{name}"])


@pytest.mark.slow
def test_gradient_to_pixels_with_v_prediction(sd_models, goldens):
  """Through the autoencoder (a draw from its posterior), the schedule and the U-Net of 2.x."""
  unet, params, _ = unet_and_params(sd_models, "2")
  vae, vae_params = vae_and_params(sd_models)
  inputs = sd_models.latent_inputs(sd_models.UNETS["2"], sd_models.VAE)
  fields = sd_models.SCHEDULER | {"prediction_type": "v_prediction"}
  schedule = weights.schedule_from_config(fields)
  noise, timesteps = inputs["noise"], inputs["timesteps"]

  def losses(images):
    mean, logvar = vae.apply({"params": vae_params}, 2.0 * images - 1.0, method="encode")
    x0 = (mean + jnp.exp(0.5 * logvar) * inputs["posterior_noise"]) * vae.config.scaling_factor
    x_t = schedules.add_noise(schedule, x0, noise, timesteps)
    prediction = unet.apply({"params": params}, x_t, timesteps, inputs["cond"])
    target = schedules.training_target(schedule, x0, noise, timesteps)
    each = jnp.square(prediction - target).mean((1, 2, 3))
    return each.sum(), each

  gradient, each = jax.jit(jax.grad(losses, has_aux=True))(inputs["images"])
  check(each, goldens["latent_2/losses"])
  check(gradient, goldens["latent_2/gradient/images"], 1e-4)
