"""AdverseCleaner: its two filters one after the other, and how often each is applied."""

from __future__ import annotations

import numpy as np
import scipy.ndimage

from tests.purifiers.photographs import apply, photograph
from udp_jax import purifiers

PICTURES = photograph(2) / np.float32(255)


def _guided(guide: np.ndarray, x: np.ndarray, radius: int, regulariser: float) -> np.ndarray:
  """He et al.'s filter (2010) with a guide of three channels, in float64; borders left out."""

  def mean(values: np.ndarray) -> np.ndarray:
    size = 2 * radius + 1
    return scipy.ndimage.uniform_filter(values, (size, size, *[1] * (values.ndim - 2)))

  guide, x = guide.astype(np.float64), x.astype(np.float64)
  mean_g, mean_x = mean(guide), mean(x)
  cov = (
    mean(guide[..., :, None] * guide[..., None, :]) - mean_g[..., :, None] * mean_g[..., None, :]
  )
  cross = mean(guide[..., :, None] * x[..., None, :]) - mean_g[..., :, None] * mean_x[..., None, :]
  slope = np.linalg.solve(cov + regulariser * np.eye(3), cross)
  offset = mean_x - np.einsum("hwi,hwij->hwj", mean_g, slope)
  return np.einsum("hwi,hwij->hwj", guide, mean(slope)) + mean(offset)


def test_without_guided_passes_it_is_the_bilateral_filter() -> None:
  options = {"bilateral_passes": 3, "guided_passes": 0}
  found = apply(purifiers.build("adverse_cleaner", None, options), PICTURES)
  plain = apply(purifiers.build("bilateral", None, {"num_passes": 3}), PICTURES)
  np.testing.assert_allclose(found, plain, atol=1e-6)


def test_structure_comes_back_through_the_guide() -> None:
  options = {"bilateral_passes": 3, "guided_passes": 0, "guided_radius": 2}
  smooth = apply(purifiers.build("adverse_cleaner", None, options), PICTURES)
  found = apply(purifiers.build("adverse_cleaner", None, options | {"guided_passes": 1}), PICTURES)
  inner = slice(6, -6)
  for picture, before, after in zip(PICTURES, smooth, found):
    expected = np.clip(_guided(picture, before, 2, 16 / 255**2), 0, 1)
    np.testing.assert_allclose(after[inner, inner], expected[inner, inner], atol=2e-3)
