"""Blurring against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from tests.purifiers.photographs import apply
from udp_jax import purifiers
from udp_jax.errors import ConfigError

SHARP = np.random.default_rng(0).uniform(size=(2, 24, 30, 3)).astype(np.float32)


@pytest.mark.parametrize("sigma", [0.7, 2.0])
def test_the_blur_is_scipy_s(sigma: float) -> None:
  found = apply(purifiers.build("gaussian_blur", None, {"sigma": sigma}), SHARP)
  reach = int(np.ceil(3 * sigma))
  expected = scipy.ndimage.gaussian_filter(
    SHARP.astype(np.float64), (0, sigma, sigma, 0), mode="mirror", radius=(0, reach, reach, 0)
  )
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_taps_are_odd() -> None:
  few = apply(purifiers.build("gaussian_blur", None, {"sigma": 2.0, "kernel_size": 1}), SHARP)
  np.testing.assert_allclose(few, SHARP, atol=1e-6)
  with pytest.raises(ConfigError, match="kernel_size must be odd or 0, got 4"):
    purifiers.build("gaussian_blur", None, {"kernel_size": 4})
