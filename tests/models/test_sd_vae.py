"""The autoencoder: shapes, config in and out, and one line for every config that does not fit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.errors import ConfigError
from udp_jax.models import weights
from udp_jax.models.sd_vae import AutoencoderKL, AutoencoderKLConfig

SMALL = AutoencoderKLConfig(
  block_out_channels=(8, 16),
  layers_per_block=1,
  norm_num_groups=4,
  latent_channels=3,
  sample_size=16,
)


@pytest.fixture(scope="module")
def params():
  """Of SMALL, without zeros."""
  shapes = jax.eval_shape(AutoencoderKL(SMALL).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  generator = np.random.default_rng(0)
  return jax.tree.map(lambda s: 0.2 * generator.normal(size=s.shape).astype("f"), shapes["params"])


@pytest.fixture(scope="module")
def pictures():
  return jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (2, 12, 16, 3)).astype("f"))


def outcome(params, pictures, **options):
  """The reconstruction and its gradient to pixels."""
  vae = AutoencoderKL(SMALL, **options)

  def total(x):
    made = vae.apply({"params": params}, x)
    return jnp.sum(made**2), made

  gradient, made = jax.jit(jax.grad(total, has_aux=True))(pictures)
  return made, gradient


@pytest.fixture(scope="module")
def wide(params, pictures):
  return outcome(params, pictures)


@pytest.fixture(scope="module")
def encode():
  vae = AutoencoderKL(SMALL)
  return jax.jit(lambda params, x: vae.apply({"params": params}, x, method="encode"))


def test_shapes_of_any_size_that_divides(params, pictures, encode, wide) -> None:
  mean, logvar = encode(params, pictures)
  assert mean.shape == logvar.shape == (2, 6, 8, 3)
  assert mean.dtype == jnp.float32
  decode = jax.jit(lambda z: AutoencoderKL(SMALL).apply({"params": params}, z, method="decode"))
  made = decode(mean)
  assert made.shape == pictures.shape and made.dtype == jnp.float32
  np.testing.assert_allclose(wide[0], made, atol=1e-5)


@pytest.mark.slow
def test_remat_and_bfloat16_compute_the_same(params, pictures, wide) -> None:
  wide, gradient = wide
  again, recomputed = outcome(params, pictures, remat=True)
  assert float(jnp.abs(gradient).max()) > 0
  np.testing.assert_allclose(wide, again, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(gradient, recomputed, rtol=1e-3, atol=1e-3)
  narrow = jax.jit(AutoencoderKL(SMALL, dtype=jnp.bfloat16).apply)({"params": params}, pictures)
  assert narrow.dtype == jnp.float32
  error = jnp.linalg.norm(narrow - wide) / jnp.linalg.norm(wide)
  assert 1e-6 < float(error) < 0.05


def test_logvar_is_clipped(params, pictures, encode) -> None:
  bias = np.array([0.0, 0.0, 0.0, 1e3, -1e3, 1e3], np.float32)
  loud = params | {"quant_conv": params["quant_conv"] | {"bias": bias}}
  _, logvar = encode(loud, pictures)
  assert set(np.unique(logvar)) == {-30.0, 20.0}


def test_parameters_of_stable_diffusion() -> None:
  vae = AutoencoderKL(AutoencoderKLConfig())
  shapes = jax.eval_shape(vae.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 83_653_863
  names = {
    weights.torch_name(tuple(entry.key for entry in path))
    for path, _ in jax.tree_util.tree_flatten_with_path(shapes)[0]
  }
  assert {
    "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
    "encoder.down_blocks.2.downsamplers.0.conv.bias",
    "encoder.mid_block.attentions.0.to_out.0.weight",
    "decoder.up_blocks.0.upsamplers.0.conv.weight",
    "decoder.conv_norm_out.weight",
    "quant_conv.weight",
    "post_quant_conv.bias",
  } < names


def test_config_there_and_back() -> None:
  for config in (SMALL, AutoencoderKLConfig()):
    assert AutoencoderKLConfig.from_dict(config.to_dict()) == config
  assert (SMALL.downscale, AutoencoderKLConfig().downscale) == (2, 8)
  # diffusers' own defaults, for a config that leaves them out.
  theirs = AutoencoderKLConfig.from_dict({"_class_name": "AutoencoderKL"})
  assert (theirs.block_out_channels, theirs.layers_per_block, theirs.sample_size) == ((64,), 1, 32)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"act_fn": "relu"}, "act_fn='relu'"),
    ({"shift_factor": 0.1}, "shift_factor=0.1"),
    ({"latents_mean": [0.0]}, "latents_mean"),
    ({"down_block_types": ["AttnDownEncoderBlock2D", "DownEncoderBlock2D"]}, "down_block_types"),
    ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types"),
    ({"norm_num_groups": 5}, "8 channels do not divide into 5 groups"),
    ({"norm_num_groups": 0}, "8 channels do not divide into 0 groups"),
    ({"sample_size": 15}, "sample_size 15 is not a multiple of 2"),
    ({"scaling_factor": 0.0}, "scaling_factor"),
    ({"block_out_channels": [8]}, "down_block_types"),
  ],
)
def test_configs_that_do_not_fit(fields, message) -> None:
  with pytest.raises(ConfigError, match=message):
    AutoencoderKLConfig.from_dict(SMALL.to_dict() | fields)


def test_a_config_without_levels() -> None:
  with pytest.raises(ConfigError, match="block_out_channels is empty"):
    AutoencoderKLConfig(block_out_channels=())


def test_pictures_and_latents_that_do_not_fit(params) -> None:
  vae = AutoencoderKL(SMALL)
  with pytest.raises(ConfigError, match="13x16x3 do not fit"):
    vae.apply({"params": params}, jnp.zeros((1, 13, 16, 3)), method="encode")
  with pytest.raises(ConfigError, match="16x16x4 do not fit"):
    vae.apply({"params": params}, jnp.zeros((1, 16, 16, 4)), method="encode")
  with pytest.raises(ConfigError, match="latents of 4 channels"):
    vae.apply({"params": params}, jnp.zeros((1, 8, 8, 4)), method="decode")


def test_without_the_two_small_convolutions(pictures) -> None:
  fields = vars(SMALL) | {"use_quant_conv": False, "use_post_quant_conv": False}
  vae = AutoencoderKL(AutoencoderKLConfig(**fields | {"mid_block_add_attention": False}))
  variables = jax.eval_shape(vae.init, jax.random.key(0), pictures)
  assert set(variables["params"]) == {"encoder", "decoder"}
  assert "attentions_0" not in variables["params"]["encoder"]["mid_block"]
