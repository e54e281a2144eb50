"""What the values of test_sd_goldens.py and the tables of test_published.py do not say."""

from __future__ import annotations

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.errors import ConfigError
from udp_jax.models import transformer
from udp_jax.models.sd_unet import UNet2DCondition, UNet2DConditionConfig

TINY = UNet2DConditionConfig(
  sample_size=4,
  # Wide enough for filters that are worth holding.
  block_out_channels=(16,),
  down_block_types=("CrossAttnDownBlock2D",),
  up_block_types=("CrossAttnUpBlock2D",),
  layers_per_block=1,
  norm_num_groups=4,
  cross_attention_dim=6,
  attention_head_dim=2,
  dropout=0.5,
)


def inputs(config=TINY, side=4, batch=2):
  generator = np.random.default_rng(0)
  x_t = generator.normal(size=(batch, side, side, config.in_channels)).astype(np.float32)
  cond = generator.normal(size=(batch, 5, config.cross_attention_dim)).astype(np.float32)
  return x_t, np.array([3, 800][:batch]), cond


def relative_error(actual, expected) -> float:
  return float(np.max(np.abs(np.asarray(actual) - expected)) / np.max(np.abs(expected)))


@pytest.fixture(scope="module")
def outputs():
  """The same model run in every way, compiled together; params without zeros."""
  x_t, timesteps, cond = inputs(side=8)
  shapes = jax.eval_shape(UNet2DCondition(TINY).init, jax.random.key(0), x_t, timesteps, cond)
  generator = np.random.default_rng(1)
  params = jax.tree.map(
    lambda s: (0.4 * generator.normal(size=s.shape)).astype(s.dtype), shapes["params"]
  )

  @jax.jit
  def run(params):
    def call(variables=None, seeds=None, **options):
      model = UNet2DCondition(TINY, **options)
      return model.apply(variables or {"params": params}, x_t, timesteps, cond, seeds=seeds)

    # The pictures twice: as they are, and with another text for the first.
    other = np.concatenate([cond, -cond[:1], cond[1:]])
    twice = np.tile(x_t, (2, 1, 1, 1)), np.tile(timesteps, 2), other
    plain = UNet2DCondition(TINY, conv_method="xla")
    two_texts = plain.apply({"params": params}, *twice)
    remade = {"conv_method": "winograd", "remat": True}
    model = UNet2DCondition(TINY, **remade)
    one = (x_t[:1], timesteps[:1], cond[:1])
    _, prepared = model.apply({"params": params}, *one, mutable=["prepared"])
    return {
      "plain": two_texts[:2],
      "held": call({"params": params, **prepared}, **remade),
      "filters": prepared,
      "bfloat16": call(dtype=jnp.bfloat16, conv_method="xla"),
      "dropout": call(seeds=jnp.arange(2, dtype=jnp.uint32), conv_method="xla"),
      "other text": two_texts[2:],
    }

  return jax.tree.map(np.asarray, run(params))


@pytest.mark.slow
def test_held_filters_and_remat_change_nothing(outputs):
  assert len(jax.tree.leaves(outputs["filters"])) > 5
  assert relative_error(outputs["held"], outputs["plain"]) < 1e-5


@pytest.mark.slow
def test_bfloat16_stays_near_float32(outputs):
  assert outputs["bfloat16"].dtype == np.float32
  assert 1e-4 < relative_error(outputs["bfloat16"], outputs["plain"]) < 5e-2


@pytest.mark.slow
def test_dropout_and_text_act(outputs):
  assert relative_error(outputs["dropout"], outputs["plain"]) > 1e-2
  # Of the first picture alone.
  assert relative_error(outputs["other text"][0], outputs["plain"][0]) > 1e-3
  np.testing.assert_allclose(outputs["other text"][1], outputs["plain"][1], rtol=1e-5, atol=1e-5)


def test_exchanged_attention_is_for_long_self_attention_alone():
  """And text_attention for all else."""
  seen: dict[str, list] = {"long": [], "text": []}

  def recorded(name):
    def attend(query, key, value):
      seen[name].append((query.shape, key.shape))
      return transformer.dot_product_attention(query, key, value)

    return attend

  model = UNet2DCondition(TINY, attention=recorded("long"))
  for tried in (model, model.clone(text_attention=recorded("text"), fused=False)):
    for side in (8, 32):
      given = inputs(side=side)
      variables = jax.eval_shape(tried.init, jax.random.key(0), *given)
      jax.eval_shape(tried.apply, variables, *given)
  # One transformer down, one in the middle, two up; 32 * 32 positions, 2 heads of 8 channels.
  assert seen["long"] == [((2, 1024, 2, 8), (2, 1024, 2, 8))] * 8
  text = (2, 5, 2, 8)
  short = [((2, 64, 2, 8), (2, 64, 2, 8)), ((2, 64, 2, 8), text)] * 4
  assert seen["text"] == short + [((2, 1024, 2, 8), text)] * 4


def test_fresh_model_predicts_zero():
  """So does every transformer add nothing: both last layers start at zero."""
  shapes = jax.eval_shape(UNet2DCondition(TINY).init, jax.random.key(0), *inputs())
  assert set(shapes) == {"params"}

  @jax.jit
  def some(key):
    """Of the parameters: what nobody asks for is not compiled."""
    params = UNet2DCondition(TINY).init(key, *inputs())["params"]
    block = params["mid_block"]["attentions_0"]
    modules = params["conv_in"], params["conv_out"], block["proj_in"], block["proj_out"]
    return [module["kernel"] for module in modules]

  conv_in, conv_out, proj_in, proj_out = some(jax.random.key(0))
  assert not np.any(conv_out)
  assert not np.any(proj_out) and np.any(proj_in)
  assert np.any(some(jax.random.key(1))[0] != conv_in)


@pytest.mark.parametrize(
  ("call", "named"),
  [
    (inputs(side=6), "multiples of 4"),
    ((inputs()[0][..., :3], *inputs()[1:]), "4, 4, 3"),
    ((*inputs()[:2], inputs()[2][..., :5]), "2, 5, 5"),
    ((*inputs()[:2], inputs()[2][:1]), "1, 5, 6"),
  ],
)
def test_wrong_sizes_are_named(call, named):
  three = UNet2DConditionConfig.from_dict(
    TINY.to_dict()
    | {
      "block_out_channels": [8] * 3,
      "down_block_types": ["DownBlock2D"] * 3,
      "up_block_types": ["UpBlock2D"] * 3,
    }
  )
  with pytest.raises(ValueError, match=named):
    jax.eval_shape(UNet2DCondition(three).init, jax.random.key(0), *call)


def test_what_xl_is_told_is_asked_for(tiny_sdxl):
  module, x_t = UNet2DCondition(tiny_sdxl.configs["unet"]), jnp.zeros((2, 8, 8, 4))
  given = x_t, jnp.zeros((2,), jnp.int32), jnp.zeros((2, 7, 28))
  for added in (None, (jnp.zeros((2, 9)), jnp.zeros((2, 6)))):
    with pytest.raises(ValueError, match=r"takes \(\(2, 10\), \(2, 6\)\), the pooled text and six"):
      jax.eval_shape(partial(module.init, added=added), jax.random.key(0), *given)


def test_xl_config(tiny_sdxl):
  config = tiny_sdxl.configs["unet"]
  assert config.depths == (1, 2) and config.pooled_dim == 10
  assert UNet2DConditionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
  # The files of other models say nothing of it.
  assert "transformer_layers_per_block" not in TINY.to_dict()
  blocks = tiny_sdxl.params["unet"]["mid_block"]["attentions_0"]
  assert {"transformer_blocks_0", "transformer_blocks_1"} < set(blocks)


def test_config_round_trip_and_diffusers_defaults():
  for config in (TINY, UNet2DConditionConfig(attention_head_dim=(5, 10, 20, 20))):
    assert UNet2DConditionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
  assert UNet2DConditionConfig.from_dict({"attention_head_dim": [5, 10, 20, 20]}).heads[1] == 10
  # What a config.json leaves out has diffusers' default value, which is not Stable Diffusion's.
  assert UNet2DConditionConfig.from_dict({"sample_size": None}).cross_attention_dim == 1280
  newer = {"_class_name": "UNet2DConditionModel", "addition_time_embed_dim": 256, "new_one": None}
  assert UNet2DConditionConfig.from_dict(newer).heads == (8,) * 4


@pytest.mark.parametrize(
  ("fields", "named"),
  [
    ({"act_fn": "gelu"}, "act_fn='gelu'"),
    ({"addition_embed_type": "text"}, "addition_embed_type='text'"),
    ({"addition_embed_type": "text_time"}, "leave no place for the pooled text"),
    ({"projection_class_embeddings_input_dim": 8}, 'without addition_embed_type="text_time"'),
    ({"transformer_layers_per_block": [1, 2, 10]}, "transformer_layers_per_block"),
    ({"transformer_layers_per_block": [1, [2], 10, 1]}, "transformer_layers_per_block"),
    ({"num_attention_heads": 8}, "num_attention_heads"),
    ({"mid_block_type": None}, "mid_block_type"),
    ({"class_embed_type": "timestep"}, "class_embed_type"),
    ({"time_cond_proj_dim": 256}, "time_cond_proj_dim"),
    ({"only_cross_attention": [True, False, False, False]}, "only_cross_attention"),
    ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
    ({"something_new": 3}, "unknown field something_new=3"),
    ({"down_block_types": ["AttnDownBlock2D"] * 4}, "AttnDownBlock2D"),
    ({"up_block_types": ["CrossAttnDownBlock2D"] * 4}, "CrossAttnDownBlock2D"),
    ({"block_out_channels": [320, 640]}, "differ in length"),
    ({"block_out_channels": [300, 640, 1280, 1280]}, "300 channels"),
    ({"attention_head_dim": [5, 10]}, "one for each level"),
    ({"attention_head_dim": 7}, "7 attention heads"),
    ({"layers_per_block": [1, 2, 2, 2]}, "layers_per_block"),
    ({"cross_attention_dim": [768, 768, 768, 768]}, "cross_attention_dim"),
  ],
)
def test_unsupported_configs_are_named(fields, named):
  with pytest.raises(ConfigError) as caught:
    UNet2DConditionConfig.from_dict(fields)
  assert named in str(caught.value)
