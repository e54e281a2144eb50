"""Local contrast against SciPy's filters."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from udp_jax.ops import visibility


def _reference(levels: np.ndarray) -> np.ndarray:
  """The least standard deviation of the windows that hold a pixel, in floats."""
  wide = levels.astype(np.float64)

  def mean(values: np.ndarray) -> np.ndarray:
    return scipy.ndimage.uniform_filter(values, (7, 7, 1), mode="reflect")

  variance = np.maximum(mean(wide**2) - mean(wide) ** 2, 0).mean(-1)
  return np.sqrt(scipy.ndimage.minimum_filter(variance, 7, mode="reflect"))


@pytest.mark.parametrize("shape", [(30, 41, 3), (300, 9, 1), (9, 9, 3)])
def test_contrast_is_that_of_scipy_s_windows(shape: tuple[int, ...]) -> None:
  levels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  levels[:, shape[1] // 2 :] //= 8
  found = visibility.local_contrast(levels)
  np.testing.assert_allclose(found, _reference(levels), rtol=1e-9, atol=1e-5)
  assert found.shape == shape[:2] and found.dtype == np.float64


def test_flat_areas_beside_a_line_are_flat() -> None:
  levels = np.full((40, 40, 3), 200, np.uint8)
  levels[:, 20] = 0
  contrast = visibility.local_contrast(levels)
  assert not contrast[:, :20].any() and not contrast[:, 21:].any()
  assert contrast[:, 20].min() > 16


def test_the_limit_is_the_formula() -> None:
  levels = np.random.default_rng(0).normal(120, 12, (40, 40, 3)).clip(0, 255).astype(np.uint8)
  levels[:15] = 90
  hidden = np.minimum(1, _reference(levels) / 16)
  for strength in (0.0, 0.4, 1.0):
    found = visibility.spared_limit(levels, 16, strength=strength)
    assert found.shape == (40, 40, 1) and found.dtype == np.uint8
    exact = 16 * (1 - strength * (1 - hidden))
    assert (np.abs(found[..., 0] - np.floor(exact)) * (np.abs(exact % 1) > 1e-6)).max() == 0
  assert found[:9].max() == 0 and found[20:].max() > 5


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_that_is_none(strength: float) -> None:
  with pytest.raises(ValueError, match="must be in"):
    visibility.spared_limit(np.zeros((9, 9, 3), np.uint8), 16, strength=strength)


def test_floats_are_no_levels() -> None:
  with pytest.raises(TypeError, match="expected uint8 levels"):
    visibility.local_contrast(np.zeros((9, 9, 3), np.float32))
