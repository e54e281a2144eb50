"""Noise, then the upscaler."""

from __future__ import annotations

import numpy as np

from tests.models.restorers import rrdbnet_files
from tests.purifiers.photographs import apply, photograph
from udp_jax import purifiers
from udp_jax.models import ncnn_file, realesrgan
from udp_jax.ops.image import to_float


def test_it_is_the_chain():
  layers = ncnn_file.parse(*rrdbnet_files(width=3, growth=2, blocks=1))
  weights = realesrgan.params_from_layers(layers)
  images = to_float(photograph(2, 13, 10))
  got = apply(purifiers.build("noisy_upscaling", None, {"std": 0.1, "weights": weights}), images)
  parts = [{"name": "gaussian_noise", "std": 0.1}, {"name": "upscale", "weights": weights}]
  expected = apply(purifiers.build("chain", None, {"methods": parts}), images)
  np.testing.assert_array_equal(got, expected)
  quiet = apply(purifiers.build("upscale", None, {"weights": weights}), images)
  assert np.abs(got - quiet).mean() > 1e-3
