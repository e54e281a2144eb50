"""CLIP's image tower: its patches as a convolution, and the configs that it takes."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.conftest import random_params
from udp_jax.errors import ConfigError
from udp_jax.models import clip_vision

SMALL = {
  "hidden_size": 6,
  "intermediate_size": 8,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "image_size": 12,
  "patch_size": 4,
}


def test_patches_are_a_convolution_whose_stride_is_its_size() -> None:
  layer = clip_vision._Patches(6, 4)
  images = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
  params = random_params(jax.eval_shape(layer.init, jax.random.key(0), images))
  kernel = params["params"]["kernel"]
  expected = jax.lax.conv_general_dilated(
    images, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  found = layer.apply(params, images)
  np.testing.assert_allclose(found, expected.reshape(2, 9, 6), rtol=1e-4, atol=1e-5)


def test_every_patch_counts_at_its_place() -> None:
  network = clip_vision.CLIPVision(clip_vision.CLIPVisionConfig(**SMALL))
  images = np.random.default_rng(0).normal(size=(1, 12, 12, 3)).astype(np.float32)
  params = random_params(jax.eval_shape(network.init, jax.random.key(0), images))
  apply = jax.jit(network.apply)
  plain = apply(params, images)
  assert plain.shape == (1, 6)
  tiles = images.reshape(1, 3, 4, 3, 4, 3)
  swapped = tiles[:, [1, 0, 2]].reshape(images.shape)
  assert np.abs(apply(params, swapped) - plain).max() > 1e-3
  with pytest.raises(ValueError, match="takes pictures of 12x12x3, not "):
    network.apply(params, images[:, :8])


def test_configs_are_read_as_they_are_written() -> None:
  config = clip_vision.CLIPVisionConfig(**SMALL)
  written = config.to_dict()
  assert written["model_type"] == "clip_vision_model" and written["num_channels"] == 3
  assert clip_vision.CLIPVisionConfig.from_dict(written | {"something": "else"}) == config


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"hidden_act": "relu"}, "hidden_act='relu' is not supported, only"),
    ({"num_attention_heads": 4}, "hidden_size=6 is not a multiple of num_attention_heads=4"),
    ({"patch_size": 5}, "image_size=12 is not a multiple of patch_size=5"),
    ({"patch_size": 0}, "is not a multiple of patch_size=0"),
    ({"num_channels": 1}, "num_channels=1 is not supported"),
    ({"model_type": "siglip"}, "model_type='siglip' is not supported"),
  ],
)
def test_other_towers_are_refused(change: dict, message: str) -> None:
  with pytest.raises(ConfigError, match=message):
    clip_vision.CLIPVisionConfig.from_dict(SMALL | change)
