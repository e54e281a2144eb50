"""Our full-size parameter trees against the published Stable Diffusion models, without weights.

The tables come from tests/models/published/make_tables.py, which says what each of them is.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from udp_jax.models import pipeline, published, weights
from udp_jax.models.clip_text import CLIPText, CLIPTextConfig
from udp_jax.models.sd_unet import UNet2DCondition, UNet2DConditionConfig
from udp_jax.models.sd_vae import AutoencoderKL, AutoencoderKLConfig

TABLES = Path(__file__).parent / "published"

# Parameters, as the models' authors count them.
TOTALS = {
  "sd14_unet": 859_520_964,  # Version 1.5's, too.
  "sd15_inpainting_unet": 859_535_364,  # 5 more channels of input: 5 * 3 * 3 * 320.
  "sd21_unet": 865_910_724,
  "sd_vae": 83_653_863,
  "clip_vit_l14_text": 123_060_480,
  "openclip_h_text": 340_387_840,
}


def read(name: str):
  """A table's config and tensors."""
  table = json.loads((TABLES / f"{name}.json").read_text())
  base = read(table["as"])[1] if "as" in table else {}
  return table["config"], base | table["tensors"]


def unet_inputs(c: UNet2DConditionConfig):
  side = (c.sample_size, c.sample_size)
  x_t = jax.ShapeDtypeStruct((1, *side, c.in_channels), jnp.float32)
  cond = jax.ShapeDtypeStruct((1, 77, c.cross_attention_dim), jnp.float32)
  return x_t, jax.ShapeDtypeStruct((1,), jnp.int32), cond


def module_and_inputs(name: str, fields):
  if name.endswith("unet"):
    unet = UNet2DConditionConfig.from_dict(fields)
    return UNet2DCondition(unet), unet_inputs(unet)
  if name.endswith("vae"):
    vae = AutoencoderKLConfig.from_dict(fields)
    images = jax.ShapeDtypeStruct((1, vae.sample_size, vae.sample_size, 3), jnp.float32)
    return AutoencoderKL(vae), (images,)
  text = CLIPTextConfig.from_dict(fields)
  return CLIPText(text), (jax.ShapeDtypeStruct((1, 77), jnp.int32),)


# Larger ones of the same layout, or of one more channel.
LIKE_OTHERS = ("sd15_inpainting_unet", "sd14_unet", "sd21_unet", "openclip_h_text")


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow if name in LIKE_OTHERS else ())
    for name in sorted(TOTALS)
  ],
)
def test_tensors_are_the_published_ones(name):
  fields, expected = read(name)
  module, inputs = module_and_inputs(name, fields)
  output, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), *inputs)
  actual = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
    keys = tuple(entry.key for entry in path)
    shape = list(leaf.shape)
    if keys[-1] == "kernel":
      shape = [*shape[:-3:-1], *shape[:-2]]
    actual[weights.torch_name(keys)] = shape
    assert leaf.dtype == jnp.float32
  assert actual == expected
  assert sum(math.prod(shape) for shape in actual.values()) == TOTALS[name]
  assert jax.tree.leaves(output)[0].dtype == jnp.float32


def test_defaults_are_stable_diffusion_1():
  assert UNet2DConditionConfig() == UNet2DConditionConfig.from_dict(read("sd14_unet")[0])
  assert CLIPTextConfig() == CLIPTextConfig.from_dict(read("clip_vit_l14_text")[0])
  assert AutoencoderKLConfig() == AutoencoderKLConfig.from_dict(read("sd_vae")[0])


@pytest.mark.slow
def test_xl_counts():
  """Names and shapes: tests/parity/test_sdxl_parity.py."""
  configs, scheduler = published.architecture("sdxl")
  shapes = jax.eval_shape(pipeline.build_model(configs, scheduler).init, jax.random.key(0))
  totals = {
    part: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    for part, tree in shapes.items()
  }
  assert totals == {
    "unet": 2_567_463_684,
    "vae": TOTALS["sd_vae"],
    "text_encoder": TOTALS["clip_vit_l14_text"],
    "text_encoder_2": 694_659_840,
  }
