"""The U-Net against values that PyTorch diffusers computed (tests/goldens/make_goldens.py)."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.errors import ConfigError
from udp_jax.models import weights
from udp_jax.models.ddpm_unet import UNet2D, UNet2DConfig
from udp_jax.models.layers import timestep_embedding

GOLDENS = Path(__file__).parents[1] / "goldens"


def relative_error(actual, expected) -> float:
  """Largest absolute error over the largest magnitude."""
  return float(np.max(np.abs(np.asarray(actual) - expected)) / np.max(np.abs(expected)))


def apply(model: UNet2D, params, values, **options):
  """The compiled forward pass (an eager one takes seconds)."""
  call = jax.jit(lambda p, x_t: model.apply({"params": p}, x_t, values["timesteps"], **options))
  return call(params, values["x_t"])


@functools.cache
def shapes(config: UNet2DConfig):
  size = config.sample_size
  x_t = jax.ShapeDtypeStruct((1, size, size, config.in_channels), jnp.float32)
  timesteps = jax.ShapeDtypeStruct((1,), jnp.int32)
  return jax.eval_shape(UNet2D(config).init, jax.random.key(0), x_t, timesteps)["params"]


@functools.cache
def load(name: str):
  """The model and parameters of a golden, and its values."""
  fields, tensors = weights.load_pretrained(GOLDENS / name, class_name="UNet2DModel")
  config = UNet2DConfig.from_dict(fields)
  prefix = f"{name}/"
  with np.load(GOLDENS / "unet.npz") as file:
    values = {k.removeprefix(prefix): file[k] for k in file.files if k.startswith(prefix)}
  return config, weights.from_torch_names(tensors, shapes(config)), values


def run(config, params, values, **options):
  """Output, and gradients of sum(output * cotangent) for parameters and input."""
  model = UNet2D(config, **options)

  @jax.jit
  def forward_backward(params, x_t):
    def objective(params, x_t):
      output = model.apply({"params": params}, x_t, values["timesteps"])
      return (output * values["cotangent"]).sum(), output

    (_, output), gradients = jax.value_and_grad(objective, (0, 1), has_aux=True)(params, x_t)
    return output, *gradients

  return forward_backward(params, values["x_t"])


DIRECT = {"conv_method": "direct", "remat": True}


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("unet_cifar_like", {}),
    # Each is a program of its own.
    pytest.param("unet_defaults_fp16", DIRECT, marks=pytest.mark.slow),
    pytest.param("unet_defaults_fp16", {}, marks=pytest.mark.slow),
    pytest.param("unet_cifar_like", DIRECT, marks=pytest.mark.slow),
    pytest.param("unet_cifar_like", {"conv_method": "xla"}, marks=pytest.mark.slow),
  ],
)
def test_agrees_with_pytorch(name, options):
  """With every option for speed, too."""
  config, params, values = load(name)
  output, grads, grad_x_t = run(config, params, values, **options)
  assert relative_error(output, values["output"]) < 1e-5
  assert relative_error(grad_x_t, values["gradient/x_t"]) < 1e-5
  named = weights.to_torch_names(grads)
  checked = [key for key in values if key.startswith("gradient/") and key != "gradient/x_t"]
  assert len(checked) == 9
  for key in checked:
    assert relative_error(named[key.removeprefix("gradient/")], values[key]) < 1e-4, key


@pytest.mark.slow
def test_bfloat16_stays_near_float32():
  config, params, values = load("unet_cifar_like")
  output = apply(UNet2D(config, dtype=jnp.bfloat16), params, values)
  assert output.dtype == jnp.float32
  assert 1e-4 < relative_error(output, values["output"]) < 5e-2


def test_cifar10_tensors_are_those_of_diffusers():
  expected = json.loads((GOLDENS / "cifar10_shapes.json").read_text())
  template = shapes(UNet2DConfig())
  actual = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(template):
    keys = tuple(entry.key for entry in path)
    shape = list(leaf.shape)
    actual[weights.torch_name(keys)] = (
      [*shape[:-3:-1], *shape[:-2]] if keys[-1] == "kernel" else shape
    )
  assert actual == expected
  assert sum(leaf.size for leaf in jax.tree_util.tree_leaves(template)) == 35_746_307


def test_fresh_model_predicts_zero_and_depends_on_the_key():
  config = UNet2DConfig(
    sample_size=8,
    block_out_channels=(8,),
    down_block_types=("AttnDownBlock2D",),
    up_block_types=("AttnUpBlock2D",),
    layers_per_block=1,
    norm_num_groups=4,
  )
  model = UNet2D(config)
  x_t, timesteps = jnp.ones((2, 8, 8, 3)), jnp.array([0, 999])

  @jax.jit
  def init(key):
    output, variables = model.init_with_output(key, x_t, timesteps)
    return output, variables["params"]["conv_in"]["kernel"]

  (output, first), (_, second) = init(jax.random.key(0)), init(jax.random.key(1))
  assert not np.array_equal(first, second)
  assert output.shape == (2, 8, 8, 3)
  np.testing.assert_array_equal(output, 0.0)


@pytest.mark.slow
def test_dropout_acts_in_training_only():
  config, params, values = load("unet_cifar_like")
  model = UNet2D(UNet2DConfig(**{**vars(config), "dropout": 0.5}), conv_method="xla")
  assert relative_error(apply(model, params, values), values["output"]) < 1e-5
  trained = apply(model, params, values, seeds=jnp.arange(len(values["output"]), dtype=jnp.uint32))
  assert relative_error(trained, values["output"]) > 1e-2


def test_timestep_embedding_closed_form():
  t = np.array([0, 1, 999])
  for flip, shift in ((False, 1), (True, 0)):
    angles = t[:, None] * 10000.0 ** (-np.arange(4) / (4 - shift))
    parts = [np.sin(angles), np.cos(angles)]
    expected = np.concatenate(parts[::-1] if flip else parts, axis=1)
    actual = timestep_embedding(jnp.asarray(t), 8, flip_sin_to_cos=flip, freq_shift=shift)
    np.testing.assert_allclose(actual, expected, atol=2e-4)
  assert timestep_embedding(jnp.asarray(t), 9).shape == (3, 9)


def test_config_round_trip_and_diffusers_defaults():
  config = UNet2DConfig(dropout=0.1, attention_head_dim=8)
  assert UNet2DConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
  # What a config.json leaves out has diffusers' default value, which is not ours.
  partial = UNet2DConfig.from_dict({"sample_size": 16})
  assert partial.attention_head_dim == 8 and partial.downsample_padding == 1
  assert partial.flip_sin_to_cos and partial.freq_shift == 0 and partial.norm_eps == 1e-5


@pytest.mark.parametrize(
  ("fields", "named"),
  [
    ({"act_fn": "gelu"}, "act_fn='gelu'"),
    ({"attention_head_dim": 0}, "256 channels do not divide into heads of 0"),
    ({"attention_head_dim": 512}, "256 channels do not divide into heads of 512"),
    ({"class_embed_type": "timestep"}, "class_embed_type"),
    ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift='spatial'"),
    ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups=None"),
    ({"downsample_type": "mean"}, "downsample_type='mean'"),
    ({"down_block_types": ["SkipDownBlock2D"] * 4}, "SkipDownBlock2D"),
    ({"block_out_channels": [128, 256]}, "differ in length"),
    ({"block_out_channels": [100, 256, 256, 256]}, "100 channels"),
  ],
)
def test_unsupported_configs_are_named(fields, named):
  with pytest.raises(ConfigError) as caught:
    UNet2DConfig.from_dict(fields)
  assert named in str(caught.value)
