"""Noise that is measured in the picture, and removed."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.restorers import ffdnet_tensors
from tests.purifiers.photographs import apply, photograph
from udp_jax import purifiers
from udp_jax.models import ffdnet as network
from udp_jax.ops.image import to_float
from udp_jax.purifiers.blind_denoiser import noise_std
from udp_jax.purifiers.ffdnet import denoised


@pytest.mark.parametrize("std", [0.01, 0.05, 0.2])
def test_the_estimate_of_white_noise(std):
  y, x = np.mgrid[:96, :97] / 96
  smooth = 0.5 + 0.2 * np.sin(9 * x) + 0.1 * y
  noise = np.random.default_rng(0).normal(0, std, (3, 96, 97, 3))
  got = noise_std(jnp.asarray(smooth[..., None] + noise))
  np.testing.assert_allclose(got, std, rtol=0.06)


def test_the_estimate_is_donohos():
  images = np.random.default_rng(1).random((1, 7, 6, 2))
  expected = []
  for c in range(2):
    # The diagonal details of an orthonormal Haar transform, one by one.
    details = []
    for i in range(0, 6, 2):
      for j in range(0, 6, 2):
        (a, b), (d, e) = images[0, i : i + 2, j : j + 2, c]
        details.append(abs((a - b) - (d - e)) / 2)
    expected.append(np.median(details) / 0.6744898)
  np.testing.assert_allclose(noise_std(jnp.asarray(images)), [np.mean(expected)], rtol=1e-5)
  assert noise_std(jnp.ones((2, 1, 8, 3))).tolist() == [0.0, 0.0]


def test_each_picture_has_its_own_estimate():
  weights = network.params_from_tensors(ffdnet_tensors())
  strength = np.array([4, 20])[:, None, None, None]
  noise = strength * np.random.default_rng(2).normal(size=(2, 24, 30, 3))
  levels = np.clip(np.round(photograph(2) + noise), 0, 255).astype(np.uint8)
  images = to_float(levels)
  purifier = purifiers.build("blind_denoiser", None, {"gain": 1.5, "weights": weights})
  expected = denoised(weights, images, jnp.minimum(1.5 * noise_std(images), 75 / 255))
  np.testing.assert_allclose(apply(purifier, images), expected, atol=1e-5)
  assert noise_std(images)[1] > 3 * noise_std(images)[0]
