"""ADM's files: names and shapes at full size, the order of attention, and folders."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from udp_jax.errors import BadDataError, ConfigError
from udp_jax.models import adm, factory, places, weights
from udp_jax.models.ddpm_unet import UNet2D

SMALL = {
  "_class_name": "ADM",
  "image_size": 16,
  "num_channels": 32,
  "num_res_blocks": 1,
  "channel_mult": "1,2",
  "attention_resolutions": "8",
  "num_head_channels": 16,
  "learn_sigma": True,
  "resblock_updown": True,
}


def published(width, multiples, layers, attended, outputs, scale_shift=True, by_resnet=True):
  """Names and shapes of a guided-diffusion model, from the paper's description of the network."""
  found = {}

  def weight(name, *shape):
    found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

  def resnet(name, inputs, channels):
    weight(f"{name}.in_layers.0", inputs)
    weight(f"{name}.in_layers.2", channels, inputs, 3, 3)
    weight(f"{name}.emb_layers.1", 2 * channels if scale_shift else channels, 4 * width)
    weight(f"{name}.out_layers.0", channels)
    weight(f"{name}.out_layers.3", channels, channels, 3, 3)
    if inputs != channels:
      weight(f"{name}.skip_connection", channels, inputs, 1, 1)

  def attention(name, channels):
    weight(f"{name}.norm", channels)
    weight(f"{name}.qkv", 3 * channels, channels, 1)
    weight(f"{name}.proj_out", channels, channels, 1)

  weight("time_embed.0", 4 * width, width)
  weight("time_embed.2", 4 * width, 4 * width)
  weight("input_blocks.0.0", width, 3, 3, 3)
  skips, channels, number = [width], width, 1
  for level, multiple in enumerate(multiples):
    for _ in range(layers):
      resnet(f"input_blocks.{number}.0", channels, width * multiple)
      channels = width * multiple
      if level in attended:
        attention(f"input_blocks.{number}.1", channels)
      skips.append(channels)
      number += 1
    if level < len(multiples) - 1:
      if by_resnet:
        resnet(f"input_blocks.{number}.0", channels, channels)
      else:
        weight(f"input_blocks.{number}.0.op", channels, channels, 3, 3)
      skips.append(channels)
      number += 1
  resnet("middle_block.0", channels, channels)
  attention("middle_block.1", channels)
  resnet("middle_block.2", channels, channels)
  number = 0
  for level, multiple in reversed(list(enumerate(multiples))):
    for layer in range(layers + 1):
      resnet(f"output_blocks.{number}.0", channels + skips.pop(), width * multiple)
      channels, place = width * multiple, 1
      if level in attended:
        attention(f"output_blocks.{number}.1", channels)
        place = 2
      if level and layer == layers:
        if by_resnet:
          resnet(f"output_blocks.{number}.{place}", channels, channels)
        else:
          weight(f"output_blocks.{number}.{place}.conv", channels, channels, 3, 3)
      number += 1
  weight("out.0", channels)
  weight("out.2", outputs, channels, 3, 3)
  return found


def template(flags):
  config = adm.unet_config(flags)
  x_t = jax.ShapeDtypeStruct((1, config.sample_size, config.sample_size, 3), jnp.float32)
  timesteps = jax.ShapeDtypeStruct((1,), jnp.int32)
  return jax.eval_shape(UNet2D(config).init, jax.random.key(0), x_t, timesteps)["params"]


def our_shapes(flags):
  """Shapes by PyTorch's names."""
  actual = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(template(flags)):
    keys, shape = tuple(entry.key for entry in path), leaf.shape
    if keys[-1] == "kernel":
      shape = (*shape[:-3:-1], *shape[:-2])
    actual[weights.torch_name(keys)] = shape
  return actual


@pytest.mark.parametrize("case", ["imagenet_256", "without_resnets"])
def test_every_tensor_has_its_place(case):
  """By shapes alone: nothing of this size is allocated."""
  if case == "imagenet_256":
    flags: dict = adm.IMAGENET_256
    theirs = published(256, (1, 1, 2, 2, 4, 4), 2, {3, 4, 5}, 6)
    assert sum(map(math.prod, theirs.values())) == 552_814_086
    assert theirs["input_blocks.16.0.emb_layers.1.weight"] == (2048, 1024)
  else:
    flags = SMALL | {"resblock_updown": False, "use_scale_shift_norm": False, "learn_sigma": False}
    theirs = published(32, (1, 2), 1, {1}, 3, scale_shift=False, by_resnet=False)
  tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in theirs.items()}
  made = adm.renamed(tensors, flags)
  assert {name: value.shape for name, value in made.items()} == our_shapes(flags)


def tensors_of(flags, seed=0):
  config = adm.unet_config(flags)
  theirs = published(32, (1, 2), 1, {1}, config.out_channels)
  generator = np.random.default_rng(seed)
  return {
    name: generator.normal(0, 0.1, shape).astype(np.float32) for name, shape in theirs.items()
  }


def test_the_order_of_query_key_and_value():
  """(heads, 3, channels) in released models; (3, heads, channels) with the new order."""
  name, tensors = "middle_block.1.qkv.weight", tensors_of(SMALL)
  whole = tensors[name][..., 0]
  parts = {
    own: adm.renamed(tensors, SMALL)[f"mid_block.attentions.0.{own}.weight"]
    for own in ("to_q", "to_k", "to_v")
  }
  for place, own in enumerate(parts):
    expected = [whole[48 * head + 16 * place : 48 * head + 16 * (place + 1)] for head in range(4)]
    np.testing.assert_array_equal(parts[own], np.concatenate(expected))
  newer = adm.renamed(tensors, SMALL | {"use_new_attention_order": True})
  for place, own in enumerate(parts):
    np.testing.assert_array_equal(
      newer[f"mid_block.attentions.0.{own}.weight"], whole[64 * place : 64 * (place + 1)]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  place = tmp_path_factory.mktemp("adm") / "prior"
  place.mkdir()
  (place / "config.json").write_text(json.dumps(SMALL))
  safetensors.numpy.save_file(tensors_of(SMALL), place / "model.safetensors")
  return place


def test_a_folder_is_a_pixel_model_with_a_learned_variance(folder, tmp_path):
  assert places.kind_of(folder) == places.PIXEL
  model, config, params = factory.load(folder)
  assert model.shape == model.image_shape == (16, 16, 3)
  np.testing.assert_allclose(model.schedule.alphas_cumprod[0], 1 - 1e-4, rtol=1e-6)
  at = (params, jnp.ones((2, 16, 16, 3)), jnp.array([5, 900]), None)
  prediction, share = jax.jit(model.apply_learned)(*at)
  np.testing.assert_allclose(prediction, jax.jit(model.apply)(*at), atol=1e-5)
  assert share.shape == prediction.shape and float(jnp.std(share)) > 0
  # As a folder of diffusers' layout it is the same model.
  factory.save(tmp_path / "again", model, config, params)
  other, _, again = factory.load(tmp_path / "again")
  np.testing.assert_array_equal(jax.jit(other.apply_learned)(again, *at[1:])[0], prediction)


def test_flags_that_are_not_supported():
  for changes, said in (
    ({"class_cond": True}, "class_cond=True is not supported"),
    ({"num_head_channels": -1}, "num_head_channels is needed"),
    ({"channel_mult": "", "image_size": 512}, "channel_mult that does not start with 1"),
    ({"channel_mult": "1,x"}, "cannot be read"),
  ):
    with pytest.raises(ConfigError, match=said):
      adm.unet_config(SMALL | changes)
  with pytest.raises(ConfigError, match="noise_schedule='sqrt'"):
    adm.schedule({"noise_schedule": "sqrt"})
  with pytest.raises(BadDataError, match=r"output_blocks.9.0.in_layers.0.weight is no tensor"):
    adm.renamed({"output_blocks.9.0.in_layers.0.weight": np.zeros(3)}, SMALL)


def test_schedules():
  half = adm.schedule({"diffusion_steps": 500})
  assert half.num_steps == 500
  np.testing.assert_allclose(1 - half.alphas_cumprod[0], 2e-4, rtol=1e-3)
  assert adm.schedule({"predict_xstart": True}).prediction_type == "sample"
  assert adm.schedule({"noise_schedule": "cosine"}).alphas_cumprod[500] == pytest.approx(
    0.5, abs=0.02
  )
