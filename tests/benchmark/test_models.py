"""Models of the races: what both sides are told, and weights that leave no gradient zero."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from experiments.configs import benchmark
from udp_jax.benchmark import models
from udp_jax.errors import ConfigError


def test_latent_models_and_their_configs_agree() -> None:
  spec = benchmark.SD_SMALL
  model = models.build(spec["unet"], {}, vae=spec["vae"], image_size=spec["image_size"])
  assert model.shape == (32, 32, 4) and model.image_shape == (128, 128, 3)
  theirs = models.diffusers_configs(spec["unet"], spec["vae"])
  assert theirs["unet"]["block_out_channels"] == [64, 128, 256]
  assert theirs["vae"]["down_block_types"] == ["DownEncoderBlock2D"] * 3
  assert model.schedule.num_steps == 1000
  assert model.schedule.alphas_cumprod[-1] == pytest.approx(0.0047, abs=1e-4)  # 1.x.
  with pytest.raises(ConfigError, match="image size 130x130 is not a multiple of 4"):
    models.build(spec["unet"], {}, vae=spec["vae"], image_size=130)


def test_weights_have_no_zeros() -> None:
  config = benchmark.finish(benchmark.base(""), "smoke")
  spec = config.latent_models.sd_tiny.to_dict()
  model = models.build(spec["unet"], {}, vae=spec["vae"], image_size=spec["image_size"])
  params = models.random_params(model, np.random.default_rng(0))
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
  assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(params))
