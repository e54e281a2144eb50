"""A blur and an unsharp mask against scipy."""

from __future__ import annotations

import numpy as np

from tests.purifiers.photographs import apply, photograph
from udp_jax import purifiers
from udp_jax.ops.image import to_float


def test_the_two_filters():
  from scipy.ndimage import gaussian_filter

  images = np.asarray(to_float(photograph(2)))

  def blur(x, sigma):
    return gaussian_filter(x, (0, sigma, sigma, 0), mode="mirror", radius=(0, *[3 * sigma] * 2, 0))

  options = {"sigma": 1.0, "amount": 0.8, "mask_sigma": 2.0}
  got = apply(purifiers.build("blur_sharpen", None, options), images)
  blurred = blur(images, 1)
  expected = np.clip(blurred + 0.8 * (blurred - blur(blurred, 2)), 0, 1)
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_it_brings_back_contrast_and_no_grain():
  generator = np.random.default_rng(0)
  grain = generator.choice([-8, 8], (2, 24, 30, 3))
  clean = np.clip(photograph(2), 20, 235)
  images = to_float(np.stack([*clean, *(clean + grain)]).astype(np.uint8))
  blurred, sharpened = (
    apply(purifiers.build(name, None, {"sigma": 1.0}), images)
    for name in ("gaussian_blur", "blur_sharpen")
  )
  loss = [np.abs(x[:2] - images[:2]).mean() for x in (blurred, sharpened)]
  assert loss[1] < 0.7 * loss[0]
  assert np.abs(sharpened[2:] - sharpened[:2]).mean() < 0.6 * 8 / 255
