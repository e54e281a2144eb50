"""Models of the races: what both sides are told, and weights that leave no gradient zero."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
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
  # Every number of a small model is a draw of its own.
  kernels = [leaf.ravel() for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
  numbers = np.concatenate([kernel * np.float32(100) for kernel in kernels])
  assert len(np.unique(numbers)) > 0.99 * len(numbers)


def test_a_large_model_gets_windows_of_one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(models, "_MANY", 100)
  monkeypatch.setattr(models, "_DRAWN", 1000)
  shapes = {"a": (10, 40), "b": (10, 40), "large": (50, 100), "bias": (7,)}
  model = SimpleNamespace(
    init=lambda key: {name: jnp.zeros(shape, jnp.float32) for name, shape in shapes.items()}
  )
  first, again = (models.random_params(model, np.random.default_rng(0)) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert jax.tree.map(np.shape, first) == shapes and first["large"].dtype == np.float32
  assert not np.array_equal(first["a"], first["b"])
  assert np.all(first["bias"] == 1)
  for name, fan_in in (("a", 10), ("large", 50)):
    assert np.std(first[name]) == pytest.approx(fan_in**-0.5, rel=0.15)
  # All of the draw, over and over.
  flat = first["large"].ravel()
  np.testing.assert_array_equal(flat[:1000], flat[1000:2000])
  assert len(np.unique(flat)) > 990
