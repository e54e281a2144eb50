"""Stable Diffusion's networks against the Flax ones of diffusers 0.39 and transformers 4, live.

diffusers' Flax U-Net differs from its PyTorch one in two places, which are mended here: GEGLU takes
the tanh approximation of GELU, and the group norms of `FlaxTransformer2DModel` an epsilon of 1e-5
for 1e-6.
"""

from __future__ import annotations

import importlib
import importlib.util
import types
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.models import weights
from udp_jax.models.clip_text import CLIPText, CLIPTextConfig
from udp_jax.models.sd_unet import UNet2DCondition, UNet2DConditionConfig
from udp_jax.models.sd_vae import AutoencoderKL, AutoencoderKLConfig

GOLDENS = Path(__file__).parents[1] / "goldens"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def diffusers():
  """Imported by the tests: it takes seconds, and collecting tests need not wait for it."""
  return pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def sd_models():
  spec = importlib.util.spec_from_file_location("sd_models", GOLDENS / "sd_models.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def as_in_pytorch(diffusers, monkeypatch):
  """Mends the two deviations."""
  attention_flax = importlib.import_module("diffusers.models.attention_flax")
  mended = types.SimpleNamespace(**vars(nn))
  mended.gelu = lambda x: jax.nn.gelu(x, approximate=False)
  mended.GroupNorm = lambda num_groups, epsilon: nn.GroupNorm(num_groups, epsilon=1e-6)
  monkeypatch.setattr(attention_flax, "nn", mended)


def random_params(sd_models, module, *inputs):
  template = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  shapes = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(template):
    keys = tuple(entry.key for entry in path)
    kernel = keys[-1] == "kernel"
    shape = (*leaf.shape[:-3:-1], *leaf.shape[:-2]) if kernel else leaf.shape
    shapes[weights.torch_name(keys)] = shape
  return weights.from_torch_names(sd_models.tensors(shapes, "flax"), template)


def check(actual, expected):
  actual, expected = np.asarray(actual), np.asarray(expected)
  assert actual.shape == expected.shape
  error = np.max(np.abs(actual - expected)) / np.max(np.abs(expected))
  assert error < 2e-5, error


# Version 1's values by PyTorch are in test_sd_goldens.py.
@pytest.mark.parametrize("version", ["1", "2"])
def test_unet(sd_models, diffusers, as_in_pytorch, version):
  # Their group norms always have 32 groups.
  sizes = {"block_out_channels": [32, 64], "norm_num_groups": 32}
  fields = sd_models.UNETS[version] | sizes
  unet = UNet2DCondition(UNet2DConditionConfig.from_dict(fields), conv_method="xla")
  inputs = sd_models.unet_inputs(fields)
  x_t, timesteps, cond = (jnp.asarray(inputs[k]) for k in ("x_t", "timesteps", "cond"))
  params = random_params(sd_models, unet, x_t, timesteps, cond)

  as_tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
  del as_tuples["norm_num_groups"]
  as_tuples.pop("upcast_attention", None)
  theirs = diffusers.FlaxUNet2DConditionModel(**as_tuples)

  @jax.jit
  def both(params):
    expected = theirs.apply({"params": params}, x_t.transpose(0, 3, 1, 2), timesteps, cond).sample
    return unet.apply({"params": params}, x_t, timesteps, cond), expected.transpose(0, 2, 3, 1)

  check(*both(params))


def test_autoencoder(sd_models, diffusers):
  fields = sd_models.VAE
  vae = AutoencoderKL(AutoencoderKLConfig.from_dict(fields), conv_method="xla")
  size = fields["sample_size"]
  images = np.tanh(sd_models.draw("flax images", 2, size, size, 3))
  params = random_params(sd_models, vae, images)
  as_tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
  theirs = diffusers.FlaxAutoencoderKL(**as_tuples)
  renamed = jax.tree.map(lambda leaf: leaf, params)
  for part in ("encoder", "decoder"):
    attention = renamed[part]["mid_block"]["attentions_0"]
    for old, new in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
      attention[new] = attention.pop(old)
    attention["proj_attn"] = attention.pop("to_out_0")

  @jax.jit
  def ours(params):
    mean, logvar = vae.apply({"params": params}, images, method="encode")
    return mean, logvar, vae.apply({"params": params}, mean, method="decode")

  @jax.jit
  def expected(params):
    variables = {"params": params}
    nchw = images.transpose(0, 3, 1, 2)
    moments = theirs.apply(variables, nchw, method=theirs.encode).latent_dist
    latents = moments.mean.transpose(0, 3, 1, 2)
    decoded = theirs.apply(variables, latents, method=theirs.decode).sample
    return moments.mean, moments.logvar, decoded.transpose(0, 2, 3, 1)

  for actual, wanted in zip(ours(params), expected(renamed)):
    check(actual, wanted)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_text_encoder(sd_models, act):
  fields = sd_models.TEXTS[act]
  text = CLIPText(CLIPTextConfig.from_dict(fields))
  token_ids = jnp.asarray(sd_models.token_ids(fields))
  params = random_params(sd_models, text, token_ids)
  renamed = jax.tree.map(lambda leaf: leaf, params)
  encoder = renamed["text_model"]["encoder"]
  encoder["layers"] = {str(i): encoder.pop(f"layers_{i}") for i in range(len(encoder))}

  transformers = pytest.importorskip("transformers")
  config = transformers.CLIPTextConfig(**fields)
  theirs = transformers.FlaxCLIPTextModel(config, input_shape=token_ids.shape, _do_init=False)
  expected = jax.jit(lambda p: theirs(token_ids, params=p).last_hidden_state)(renamed)
  check(jax.jit(text.apply)({"params": params}, token_ids), expected)
