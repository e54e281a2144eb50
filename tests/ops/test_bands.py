"""Bands of frequencies against scipy, and that they are self-adjoint, as their gradients are."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.ndimage

from udp_jax.ops import bands

PICTURES = np.random.default_rng(0).normal(0, 1, (2, 13, 18, 3)).astype(np.float32)
BANDS = {
  "gaussian": partial(bands.gaussian_band, sigma=2.5),
  "low": partial(bands.dct_band, low=0.0, high=0.3),
  "middle": partial(bands.dct_band, low=0.2, high=0.7),
}


@pytest.mark.parametrize("sigma", [0.4, 2.5, 9.0])
def test_gaussian_is_that_of_scipy(sigma):
  """Also where the kernel is wider than the picture."""
  expected = scipy.ndimage.gaussian_filter(
    PICTURES.astype(np.float64), (0, sigma, sigma, 0), mode="reflect"
  )
  got = jax.jit(partial(bands.gaussian_band, sigma=sigma))(PICTURES)
  np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.3), (0.2, 0.7), (0.5, 2.0), (0.0, 2.0)])
def test_dct_range_is_that_of_scipy(low, high):
  coefficients = scipy.fft.dctn(PICTURES.astype(np.float64), axes=(1, 2), norm="ortho")
  y, x = np.mgrid[:13, :18]
  length = np.sqrt((y / 13) ** 2 + (x / 18) ** 2)
  kept = (length >= low) & (length < high)
  coefficients *= kept[None, :, :, None]
  expected = scipy.fft.idctn(coefficients, axes=(1, 2), norm="ortho")
  np.testing.assert_allclose(
    jax.jit(partial(bands.dct_band, low=low, high=high))(PICTURES), expected, atol=5e-6
  )
  every = np.square(PICTURES.astype(np.float64)).sum((1, 2, 3))
  share = np.square(coefficients).sum((1, 2, 3)) / every
  np.testing.assert_allclose(bands.energy_share(PICTURES, low, high), share, atol=1e-5)


@pytest.mark.parametrize("name", BANDS)
def test_bands_are_self_adjoint_and_so_are_gradients(name):
  band = jax.jit(BANDS[name])
  u, v = (np.random.default_rng(seed).normal(0, 1, PICTURES.shape) for seed in (1, 2))
  u, v = u.astype(np.float32), v.astype(np.float32)
  one, other = np.vdot(u, band(v)), np.vdot(band(u), v)
  np.testing.assert_allclose(one, other, rtol=1e-4)
  assert abs(one) > 1e-2
  np.testing.assert_allclose(jax.grad(lambda p: jnp.vdot(u, band(p)))(v), band(u), atol=1e-5)
  # Linear, each picture and channel apart.
  np.testing.assert_allclose(band(2 * u - v), 2 * band(u) - band(v), atol=1e-5)
  np.testing.assert_allclose(band(u[1:, ..., 2:]), band(u)[1:, ..., 2:], atol=1e-6)


def test_a_range_is_a_projection_and_ranges_add_up():
  low, rest = bands.dct_band(PICTURES, 0.0, 0.4), bands.dct_band(PICTURES, 0.4, 2.0)
  np.testing.assert_allclose(bands.dct_band(low, 0.0, 0.4), low, atol=5e-6)
  np.testing.assert_allclose(bands.dct_band(rest, 0.0, 0.4), 0, atol=5e-6)
  np.testing.assert_allclose(low + rest, PICTURES, atol=5e-6)
  assert bands.energy_share(jnp.zeros((1, 4, 4, 3)), 0.0, 0.5).tolist() == [0.0]


def test_a_blur_keeps_bounds_and_the_mean():
  bounded = np.clip(PICTURES, -1, 1)
  blurred = bands.gaussian_band(bounded, 1.7)
  assert np.abs(blurred).max() < 1
  np.testing.assert_allclose(blurred.mean((1, 2)), bounded.mean((1, 2)), atol=1e-5)


def test_what_is_no_band():
  with pytest.raises(ValueError, match="sigma must be positive, got 0"):
    bands.gaussian_band(PICTURES, 0)
  with pytest.raises(ValueError, match="frequencies from 0.5 to 0.5 are no range"):
    bands.dct_band(PICTURES, 0.5, 0.5)
