"""Models from configs and from folders."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from udp_jax.errors import ConfigError, MissingDataError
from udp_jax.models import factory
from udp_jax.ops import schedules


def config(**changes) -> ConfigDict:
  """`config.model` of a fresh one-level U-Net."""
  unet = {
    "sample_size": 8,
    "block_out_channels": (8,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "add_attention": False,
  }
  unet |= changes.pop("unet", {})
  fields = {"path": "", "unet": unet, "schedule": "linear", "num_train_timesteps": 50} | changes
  return ConfigDict(fields)


def performance(**changes) -> ConfigDict:
  return ConfigDict({"dtype": "float32", "conv_method": "", "remat": False} | changes)


@pytest.mark.parametrize("name", factory.SCHEDULES)
def test_a_fresh_model(name):
  model, unet, params = factory.build(config(schedule=name), performance())
  assert params is None and model.shape == (8, 8, 3)
  assert unet.block_out_channels == (8,) and unet.norm_num_groups == 4
  expected = getattr(schedules, name)(50).alphas_cumprod
  np.testing.assert_array_equal(model.schedule.alphas_cumprod, expected)


def test_lists_of_a_config_file_become_tuples():
  unet = {"block_out_channels": [8], "down_block_types": ["DownBlock2D"]}
  model, built, _ = factory.build(config(unet=unet), performance())
  assert built.block_out_channels == (8,)
  jax.eval_shape(model.init, jax.random.key(0))  # Flax hashes its fields.


def test_a_saved_model_predicts_the_same(tiny_model, tmp_path):
  schedule = schedules.scaled_linear(50, prediction_type="v_prediction")
  model = tiny_model.model._replace(schedule=schedule)
  factory.save(tmp_path / "model", model, tiny_model.config, tiny_model.params)
  loaded, unet, params = factory.build(config(path=str(tmp_path / "model")), performance())
  assert unet == tiny_model.config
  np.testing.assert_allclose(loaded.schedule.alphas_cumprod, schedule.alphas_cumprod, rtol=1e-6)
  assert loaded.schedule.prediction_type == "v_prediction"
  jax.tree.map(np.testing.assert_array_equal, params, tiny_model.params)
  x_t = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
  timesteps = np.array([3, 40], np.int32)
  predict = [jax.jit(lambda p, apply=m.apply: apply(p, x_t, timesteps)) for m in (model, loaded)]
  np.testing.assert_array_equal(predict[1](params), predict[0](tiny_model.params))


def test_bfloat16_and_conv_method_reach_the_network(tiny_model):
  x_t, t = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1,), jnp.int32)

  def program(**changes) -> str:
    model, *_ = factory.build(config(), performance(**changes))
    return str(jax.make_jaxpr(lambda p: model.apply(p, x_t, t))(tiny_model.params))

  plain = program()
  assert "bf16" not in plain and "bf16" in program(dtype="bfloat16")
  assert program(conv_method="xla").count("custom_vjp") < plain.count("custom_vjp")
  assert "remat" not in plain and "remat" in program(remat=True)


@pytest.mark.parametrize(
  "changes, speed, message",
  [
    ({"schedule": "sigmoid"}, {}, "unknown schedule 'sigmoid'; known: linear, scaled_linear"),
    ({}, {"dtype": "float8"}, "unknown dtype 'float8'; known: float32, bfloat16"),
    ({}, {"conv_method": "fft"}, "unknown conv_method 'fft'; known: xla, direct, winograd"),
    ({"unet": {"chanels": 3}}, {}, "config.model.unet: .*chanels"),
    ({"unet": {"norm_num_groups": 3}}, {}, "8 channels do not divide into 3 groups"),
    ({"unet": {"down_block_types": ("Down",)}}, {}, "unknown U-Net block 'Down'"),
  ],
)
def test_unusable_configs(changes, speed, message):
  with pytest.raises(ConfigError, match=message):
    factory.build(config(**changes), performance(**speed))


def test_a_missing_folder(tmp_path):
  with pytest.raises(MissingDataError, match="nowhere"):
    factory.build(config(path=str(tmp_path / "nowhere")), performance())


def test_choices_for_latent_models_alone():
  given = config()
  given.vae = "x.safetensors"
  with pytest.raises(ConfigError, match="are for Stable Diffusion's models"):
    factory.open_model(given, performance())
